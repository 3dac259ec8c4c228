//! Steps one after the other, each with its time, ending at the first that fails.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets};

/// Runs steps and remembers how long each took and what test runners said of themselves.
pub(crate) struct Steps {
    total: usize,
    start: Instant,
    done: Vec<(String, Duration)>,
    summaries: Vec<String>,
}

impl Steps {
    /// `total` is only shown: how many steps there will be.
    pub(crate) fn new(total: usize) -> Self {
        Self {
            total,
            start: Instant::now(),
            done: Vec::new(),
            summaries: Vec::new(),
        }
    }

    /// Runs one step.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        eprintln!("==> [{}/{}] {name}", self.done.len() + 1, self.total);
        let start = Instant::now();
        let result = work(self).with_context(|| format!("step '{name}' failed"));
        self.done.push((name.to_owned(), start.elapsed()));
        if result.is_err() {
            self.report();
        }
        result
    }

    /// Prints the table of times and the test runners' summaries.
    pub(crate) fn report(&self) {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["step", "time"]);
        let total = ("all".to_owned(), self.start.elapsed());
        for (name, time) in self.done.iter().chain([&total]) {
            let time = Cell::new(seconds(*time)).set_alignment(CellAlignment::Right);
            table.add_row([Cell::new(name), time]);
        }
        eprintln!("\n{table}\n");
        for summary in &self.summaries {
            eprintln!("{summary}");
        }
    }

    /// Runs a test runner, showing its output as it comes, and remembers the lines of its summary.
    pub(crate) fn runner(&mut self, name: &str, mut command: Command) -> Result<()> {
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| said(&command))?;
        let mut summary = Vec::new();
        for line in child
            .stderr
            .take()
            .into_iter()
            .flat_map(|stderr| BufReader::new(stderr).split(b'\n'))
        {
            let mut line = line?;
            line.push(b'\n');
            std::io::stderr().write_all(&line)?;
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            // The summary's own line and, after it, the tests that failed.
            if !summary.is_empty() || text.contains("Summary [") {
                summary.push(text);
            }
        }
        let status = child.wait()?;
        self.summaries.push(format!("{name}:\n{}", summary.join("\n")));
        ensure!(status.success(), "{} ended with {status}", said(&command));
        Ok(())
    }
}

/// Runs a command with its output shown.
pub(crate) fn call(mut command: Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| said(&command))?;
    if !status.success() {
        bail!("'{}' ended with {status}", said(&command));
    }
    Ok(())
}

/// What a program's `--color` option should be, since its output passes through a pipe.
pub(crate) fn color() -> &'static str {
    if std::io::stderr().is_terminal() {
        "--color=always"
    } else {
        "--color=never"
    }
}

/// A duration as a person reads it.
pub(crate) fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 100.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0)
    }
}

fn said(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_step_names_itself_and_its_command() {
        let error = Steps::new(1)
            .step("never", |_| call(Command::new("false")))
            .unwrap_err();
        let message = format!("{error:#}");
        assert!(
            message.contains("step 'never' failed") && message.contains("'false'"),
            "{message}"
        );
    }

    #[test]
    fn a_runners_summary_is_remembered_with_what_follows_it() {
        let mut steps = Steps::new(1);
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "{ echo 'PASS a'; echo '  Summary [ 1s] 2 tests run'; echo FAIL b; } >&2; exit 1",
        ]);
        assert!(steps.runner("unit", command).is_err());
        assert_eq!(steps.summaries, ["unit:\n  Summary [ 1s] 2 tests run\nFAIL b"]);
    }

    #[test]
    fn long_times_are_shown_in_minutes() {
        assert_eq!(seconds(Duration::from_millis(12_340)), "12.3 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
    }
}
