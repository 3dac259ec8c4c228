//! Runs a tool for a limited time and takes a limited answer.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::Error;

/// The most that is read of an answer: the ads of a hundred thousand slots, as asked for, fit.
const MAX_OUTPUT: u64 = 64 << 20;

/// The most that is kept of an error's text.
const MAX_ERROR: usize = 600;

/// Runs a program and returns its standard output.
pub(super) async fn run(
    program: &'static str,
    args: &[&str],
    condor_config: Option<&Path>,
    limit: Duration,
) -> Result<Vec<u8>, Error> {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(path) = condor_config {
        command.env("CONDOR_CONFIG", path);
    }
    let shown = std::iter::once(program)
        .chain(args.iter().copied())
        .take(6)
        .collect::<Vec<_>>()
        .join(" ");
    let mut child = command.spawn().map_err(|source| {
        if source.kind() == std::io::ErrorKind::NotFound {
            Error::NotInstalled { program }
        } else {
            Error::Spawn {
                command: shown.clone(),
                source,
            }
        }
    })?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let read_out = async {
            if let Some(stdout) = stdout {
                stdout.take(MAX_OUTPUT).read_to_end(&mut out).await?;
            }
            Ok(())
        };
        let read_err = async {
            if let Some(stderr) = stderr {
                stderr.take(MAX_OUTPUT).read_to_end(&mut err).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        tokio::try_join!(read_out, read_err)?;
        let status = child.wait().await?;
        Ok::<_, std::io::Error>((status, out, err))
    };
    let (status, out, err) = match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(|source| Error::Spawn {
            command: shown.clone(),
            source,
        })?,
        Err(_) => {
            return Err(Error::Timeout {
                command: shown,
                limit,
            });
        }
    };
    if status.success() {
        return Ok(out);
    }
    let text = String::from_utf8_lossy(&err);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(Error::Command {
        command: shown,
        status: status.to_string(),
        stderr: text.chars().take(MAX_ERROR).collect(),
    })
}
