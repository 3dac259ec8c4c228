//! Running other people's programs: their output, and the end of what they said where they failed.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Error;

/// How many lines of a failed program are shown.
const SHOWN: usize = 15;

/// Runs a program to its end and returns what it printed.
pub(crate) fn output(
    command: &mut Command,
    program: &'static str,
    package: &'static str,
) -> Result<String, Error> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Program {
            program,
            package,
            source,
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Refused {
            program,
            status: output.status,
            said: tail(said.lines()),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end; what it says on standard error goes into the file `log` and, line by line, to `heard`.
pub(crate) fn logged(
    command: &mut Command,
    program: &'static str,
    package: &'static str,
    log: &Path,
    mut heard: impl FnMut(&str),
) -> Result<(), Error> {
    let mut file = std::fs::File::create(log).map_err(Error::file("write", log))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Program {
            program,
            package,
            source,
        })?;
    let mut last = std::collections::VecDeque::new();
    if let Some(stderr) = child.stderr.take() {
        // Progress of a program may hold bytes that are no text.
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.map_err(Error::file("read the output for", log))?;
            let line = String::from_utf8_lossy(&line).into_owned();
            writeln!(file, "{line}").map_err(Error::file("write", log))?;
            heard(&line);
            if last.len() == SHOWN {
                last.pop_front();
            }
            last.push_back(line);
        }
    }
    let status = child.wait().map_err(Error::file("wait for the writer of", log))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Refused {
        program,
        status,
        said: format!(
            "\n{}\nthe whole log is {}",
            tail(last.iter().map(String::as_str)),
            log.display()
        ),
    })
}

fn tail<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let lines: Vec<_> = lines.collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_is_told_with_what_it_said() {
        let mut command = Command::new("sh");
        let error = output(
            command.args(["-c", "echo no such luck >&2; exit 3"]),
            "sh",
            "dash",
        )
        .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("no such luck") && text.contains("exit status: 3"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let error = output(&mut Command::new("no-such-program"), "no-such-program", "luck").unwrap_err();
        assert!(error.to_string().ends_with("apt-get install luck"), "{error}");
    }

    #[test]
    fn a_log_that_fails_names_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut lines = 0;
        let mut command = Command::new("sh");
        command.args(["-c", "seq 40 >&2; exit 1"]);
        let error = logged(&mut command, "sh", "dash", &log, |_| lines += 1)
            .unwrap_err()
            .to_string();
        assert_eq!(lines, 40);
        assert!(error.contains("\n26\n") && !error.contains("\n25\n"), "{error}");
        assert!(error.contains(&log.display().to_string()), "{error}");
    }
}
