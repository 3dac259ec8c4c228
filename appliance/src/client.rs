//! The command's side of the control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::control::{Reply, Request};
use crate::paths;

/// How long a command waits for the daemon: a ping may take several seconds to find its path.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Sends one request to the daemon of `grid` (a name prefix of its socket), or to the only one that runs.
pub(crate) fn ask(run_dir: &Path, grid: Option<&str>, request: &Request) -> Result<Reply> {
    ask_at(&find_socket(run_dir, grid)?, request)
}

/// Sends one request to every daemon that runs here.
pub(crate) fn ask_all(run_dir: &Path, request: &Request) -> Vec<Result<Reply>> {
    let sockets = paths::control_sockets(run_dir).unwrap_or_default();
    sockets.iter().map(|socket| ask_at(socket, request)).collect()
}

fn ask_at(socket: &Path, request: &Request) -> Result<Reply> {
    let stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "no daemon answers at {}; start one with 'aerie up', or look at its log",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    (&stream).write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(&stream)
        .read_line(&mut answer)
        .with_context(|| format!("the daemon did not answer within {} s", TIMEOUT.as_secs()))?;
    if answer.is_empty() {
        bail!("the daemon closed the connection without an answer; its log says why");
    }
    Ok(serde_json::from_str(&answer)?)
}

fn find_socket(run_dir: &Path, grid: Option<&str>) -> Result<PathBuf> {
    let sockets = paths::control_sockets(run_dir)?;
    let wanted: Vec<_> = match grid {
        None => sockets,
        Some(prefix) => sockets
            .into_iter()
            .filter(|path| {
                path.file_stem()
                    .is_some_and(|stem| prefix.starts_with(&*stem.to_string_lossy()))
            })
            .collect(),
    };
    match wanted.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!(
            "no daemon runs here (no control socket in {}); start one with 'aerie up'",
            run_dir.display()
        ),
        many => {
            let names: Vec<_> = many
                .iter()
                .filter_map(|p| Some(p.file_stem()?.to_string_lossy().into_owned()))
                .collect();
            bail!(
                "several daemons run here; choose one with --grid, out of: {}",
                names.join(", ")
            )
        }
    }
}
