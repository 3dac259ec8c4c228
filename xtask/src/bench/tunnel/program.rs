//! Programs in network namespaces: the peers' daemons, iperf3 and ping.
//!
//! They run outside the lab's nodes, whose root file system has none of them. What a program leaves behind is
//! therefore bound to this process: the kernel kills it when the thread that started it ends, and
//! dropping its handle ends it by its id.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aerie_lab::netns::NetNs;
use aerie_lab::process::Process;
use aerie_lab::wait::{tail, wait_until};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

/// How long a program may take to end when it is asked to.
const END_LIMIT: Duration = Duration::from_secs(3);

/// How many of a log's last lines a failure shows.
const SHOWN_LINES: usize = 5;

/// A program that runs. Dropping this ends it.
#[derive(Debug)]
pub(super) struct Program {
    what: String,
    child: Child,
    process: Process,
    out: PathBuf,
    err: PathBuf,
    leaves: Option<PathBuf>,
}

impl Program {
    /// Starts a program in a namespace. Its output goes to two files of the folder, named after it.
    pub(super) fn start(net: NetNs, dir: &Path, name: &str, argv: &[&str]) -> Result<Self> {
        let (out, err) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
        let mut command = inside(net, argv);
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        // The commands before the program become it, so that its id is the child's.
        let pid = i32::try_from(child.id())?;
        let process = Process::find(pid).with_context(|| format!("{name} is gone"))?;
        Ok(Self {
            what: name.to_owned(),
            child,
            process,
            out,
            err,
            leaves: None,
        })
    }

    /// Names a file that it makes and may leave behind; it is removed after its end.
    pub(super) fn leaves(&mut self, path: PathBuf) {
        self.leaves = Some(path);
    }

    pub(super) fn process(&self) -> Process {
        self.process
    }

    /// The last lines of what it said.
    pub(super) fn said(&self) -> String {
        let lines = [&self.out, &self.err].map(|path| tail(path, SHOWN_LINES));
        lines.join("\n").trim().to_owned()
    }

    /// An error with what it said, if it has ended.
    pub(super) fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status}): {}", self.what, self.said());
        }
        Ok(())
    }

    /// Waits for its end and returns its standard output, whatever its exit code.
    pub(super) fn output(mut self, limit: Duration) -> Result<String> {
        let what = format!("{} to end", self.what);
        let child = &mut self.child;
        let status = wait_until(limit, &what, || Ok(child.try_wait()?))?;
        ensure!(
            status.signal().is_none(),
            "{} was killed: {}",
            self.what,
            self.said()
        );
        Ok(String::from_utf8_lossy(&std::fs::read(&self.out)?).into_owned())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.process.signal(Signal::SIGTERM);
        let child = &mut self.child;
        let ended = wait_until(END_LIMIT, "its end", || Ok(child.try_wait()?));
        if ended.is_err() {
            // Its id is its own until it is waited for.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(path) = &self.leaves {
            // Most remove it themselves.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Runs a short command in a namespace and returns its standard output.
pub(super) fn run(net: NetNs, argv: &[&str]) -> Result<String> {
    finished(inside(net, argv), argv)
}

/// Runs a short command and returns its standard output.
pub(super) fn run_here(argv: &[&str]) -> Result<String> {
    run_in(Path::new("/"), argv)
}

/// As [`run_here`], in a folder.
pub(super) fn run_in(dir: &Path, argv: &[&str]) -> Result<String> {
    let (program, args) = argv.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(args).current_dir(dir);
    finished(command, argv)
}

fn finished(mut command: Command, argv: &[&str]) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", shown(argv)))?;
    ensure!(
        output.status.success(),
        "'{}' failed ({}): {}",
        shown(argv),
        output.status,
        one_line(&String::from_utf8_lossy(&output.stderr))
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn one_line(text: &str) -> String {
    text.trim().lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// A command's program and its first words; the rest is often long.
fn shown(argv: &[&str]) -> String {
    argv.iter().take(3).copied().collect::<Vec<_>>().join(" ")
}

fn inside(net: NetNs, argv: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "nsenter"])
        .arg(format!("--net=/proc/{}/ns/net", net.pid()))
        .args(argv);
    command
}
