//! Commands for a guest, over a serial port of its own: whatever becomes of its network, and with nobody logged in.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};

/// How long a silent guest is waited for before it is asked again whether it hears.
const HEARS: Duration = Duration::from_secs(10);

/// The way to a guest.
#[derive(Debug)]
pub(crate) struct Shell {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    /// What has come of a line.
    part: Vec<u8>,
    number: u64,
}

/// What a script left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) text: String,
}

impl Shell {
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("QEMU has no serial port for commands")?;
        let lines = BufReader::new(stream.try_clone()?);
        Ok(Self {
            stream,
            lines,
            part: Vec::new(),
            number: 0,
        })
    }

    /// Waits until the guest hears. What is said before it listens may be lost or kept, so that it is asked again and
    /// again, and an answer to any of the questions will do.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        let first = self.number + 1;
        while Instant::now() < end {
            self.say(":", HEARS)?;
            let pause = end.min(Instant::now() + HEARS);
            while let Some(line) = self.line(pause)? {
                if number_of(&line).is_some_and(|number| number >= first) {
                    return Ok(());
                }
            }
        }
        Err(anyhow!(
            "the guest took no commands for {:.0} s",
            limit.as_secs_f64()
        ))
    }

    /// Sends a script under the next number.
    fn say(&mut self, script: &str, limit: Duration) -> Result<()> {
        self.number += 1;
        self.stream.set_write_timeout(Some(limit))?;
        writeln!(self.stream, "{} {}", self.number, BASE64_STANDARD.encode(script))
            .context("the guest does not read its commands")
    }

    /// Runs a script.
    pub(crate) fn run(&mut self, script: &str, limit: Duration) -> Result<Said> {
        self.say(script, limit)?;
        let end = Instant::now() + limit;
        while let Some(line) = self.line(end)? {
            // An answer to an earlier script is one that nobody waited for.
            if number_of(&line) != Some(self.number) {
                continue;
            }
            let mut words = line.split_whitespace().skip(1);
            let code = words.next().and_then(|word| word.parse().ok());
            let code = code.with_context(|| format!("the guest answered '{line}'"))?;
            let bytes = BASE64_STANDARD
                .decode(words.next().unwrap_or_default())
                .with_context(|| format!("the guest answered '{line}'"))?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            return Ok(Said { code, text });
        }
        Err(anyhow!(
            "the guest did not answer '{script}' within {:.0} s",
            limit.as_secs_f64()
        ))
    }

    /// The next line; none when the time is up.
    fn line(&mut self, end: Instant) -> Result<Option<String>> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.lines.read_until(b'\n', &mut self.part) {
                Ok(_) => {
                    ensure!(self.part.ends_with(b"\n"), "QEMU has ended");
                    let line = std::mem::take(&mut self.part);
                    return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => (),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Which script a line answers.
fn number_of(line: &str) -> Option<u64> {
    line.split_whitespace().next()?.parse().ok()
}
