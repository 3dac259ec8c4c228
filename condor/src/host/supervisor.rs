//! Keeps `condor_master` running where no systemd does.
//!
//! ```text
//!              start                      ended by itself
//!   Stopped ───────────► Running ─────────────────────────► Waiting
//!      ▲                  │   ▲                                │
//!      │       stop       │   └───────── after a pause ────────┘
//!      └──────────────────┴─── (a stop ends the pause, too)
//! ```
//!
//! One task owns the state; handles send it commands. The process is no prisoner of the daemon: it has a group of
//! its own and goes on when the daemon is killed, and jobs with it. Its number and the moment of its start stand
//! in a file, by which the next start of the daemon adopts it instead of starting a second one. Should the daemon
//! die between the start and the writing of that file, the process is found by its name.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::process::Process;
use super::{MasterState, Shutdown, files};
use crate::Error;
use crate::plan::{FileContent, Owner};

/// The program.
pub(super) const MASTER: &str = "condor_master";

/// Commands that may wait: callers await each answer, so more than a few mean that many callers wait already.
const QUEUE: usize = 16;

/// The pause before the first new start; doubled at each failure in a row.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A process that has run so long starts the count of failures anew.
const PROVEN: Duration = Duration::from_secs(60);

/// How long a start is watched: a configuration that HTCondor refuses ends it well before.
pub(super) const SETTLE: Duration = Duration::from_millis(700);

/// How often an adopted process, of which we are not the parent, is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a fast shutdown may take before the process is killed.
const FAST_LIMIT: Duration = Duration::from_secs(20);

pub(super) struct Config {
    /// The program to run: [`MASTER`], but for tests.
    pub(super) program: PathBuf,
    /// How long a start is watched: [`SETTLE`], but for tests.
    pub(super) settle: Duration,
    /// The pause before the first new start: [`PAUSE`], but for tests.
    pub(super) pause: Duration,
    /// The file that names the process.
    pub(super) pid_file: PathBuf,
    /// Where the process's own output goes (its log has the rest).
    pub(super) output: PathBuf,
    /// `condor_master`'s log, named in errors.
    pub(super) log: PathBuf,
    pub(super) condor_config: Option<PathBuf>,
}

/// The daemons by the names that the kernel keeps of them (15 bytes). Those whose master was killed notice it only
/// after a while, and hold its port and slots until then.
const DAEMONS: [&str; 6] = [
    "condor_startd",
    "condor_schedd",
    "condor_collecto",
    "condor_negotiat",
    "condor_shared_p",
    "condor_procd",
];

/// How long orphans of a killed master may take to end before they are killed.
const ORPHAN_LIMIT: Duration = Duration::from_secs(3);

/// Sends commands to the task.
pub(super) struct Supervisor {
    commands: mpsc::Sender<Ask>,
    log: PathBuf,
}

enum Ask {
    Start(oneshot::Sender<Result<(), Error>>),
    Signal(Signal, oneshot::Sender<Result<(), Error>>),
    Stop(Shutdown, oneshot::Sender<Result<(), Error>>),
    State(oneshot::Sender<MasterState>),
}

impl Supervisor {
    /// Starts the task, which begins by adopting a process that runs already.
    pub(super) fn spawn(config: Config) -> Self {
        let (commands, inbox) = mpsc::channel(QUEUE);
        let log = config.log.clone();
        tokio::spawn(async move { Task::new(config).run(inbox).await });
        Self { commands, log }
    }

    pub(super) async fn start(&self) -> Result<(), Error> {
        self.ask(Ask::Start).await?
    }

    pub(super) async fn signal(&self, signal: Signal) -> Result<(), Error> {
        self.ask(|answer| Ask::Signal(signal, answer)).await?
    }

    pub(super) async fn stop(&self, how: Shutdown) -> Result<(), Error> {
        self.ask(|answer| Ask::Stop(how, answer)).await?
    }

    pub(super) async fn state(&self) -> Result<MasterState, Error> {
        self.ask(Ask::State).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let gone = |_| Error::Master {
            what: "is no longer supervised (the daemon is ending)".into(),
            log: self.log.clone(),
        };
        self.commands.send(ask(answer)).await.map_err(|_| gone(()))?;
        answered.await.map_err(|_| gone(()))
    }
}

struct Task {
    config: Config,
    running: Option<Running>,
    /// When to start it again after it ended by itself.
    restart_at: Option<Instant>,
    failures: u32,
}

struct Running {
    process: Process,
    /// Present if this very daemon started it.
    child: Option<Child>,
    since: Instant,
}

impl Running {
    /// Returns when the process has ended, with what is known about how.
    async fn ended(&mut self) -> String {
        match &mut self.child {
            Some(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            },
            None => {
                while self.process.is_alive() {
                    sleep(LOOK_EVERY).await;
                }
                "adopted, so its exit status is unknown".to_owned()
            }
        }
    }
}

impl Task {
    fn new(config: Config) -> Self {
        let by_name = || Process::find(config.program.file_name()?.to_str()?);
        let process = Process::load(&config.pid_file).or_else(by_name);
        if let Some(process) = &process {
            tracing::info!(pid = process.pid, "adopted the condor_master that was running");
        }
        Self {
            config,
            running: process.map(|process| Running {
                process,
                child: None,
                since: Instant::now(),
            }),
            restart_at: None,
            failures: 0,
        }
    }

    /// The one loop: a command, the end of the process, or the end of a pause, whichever comes first.
    async fn run(mut self, mut inbox: mpsc::Receiver<Ask>) {
        loop {
            let restart_at = self.restart_at;
            tokio::select! {
                ask = inbox.recv() => match ask {
                    Some(ask) => self.answer(ask).await,
                    // The daemon ends; the process goes on and is adopted at the next start.
                    None => return,
                },
                how = async {
                    match &mut self.running {
                        Some(running) => running.ended().await,
                        None => std::future::pending().await,
                    }
                } => self.ended(&how),
                () = async {
                    match restart_at {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => {
                    self.restart_at = None;
                    if let Err(error) = self.launch().await {
                        tracing::error!(%error, "condor_master cannot be started");
                        self.pause();
                    }
                }
            }
        }
    }

    async fn answer(&mut self, ask: Ask) {
        // A caller that no longer waits for its answer needs none.
        match ask {
            Ask::Start(answer) => drop(answer.send(self.start().await)),
            Ask::Signal(signal, answer) => drop(answer.send(self.signal(signal))),
            Ask::Stop(how, answer) => drop(answer.send(self.stop(how).await)),
            Ask::State(answer) => drop(answer.send(self.state())),
        }
    }

    fn state(&self) -> MasterState {
        match &self.running {
            Some(running) => MasterState::Running {
                pid: running.process.pid,
            },
            None if self.restart_at.is_some() => MasterState::Restarting {
                failures: self.failures,
            },
            None => MasterState::Stopped,
        }
    }

    async fn start(&mut self) -> Result<(), Error> {
        if self.running.is_some() {
            return Ok(());
        }
        self.restart_at = None;
        self.launch().await?;
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        match tokio::time::timeout(self.config.settle, running.ended()).await {
            Err(_) => Ok(()),
            Ok(how) => {
                self.ended(&how);
                Err(self.trouble(format!("ended at once ({how})")))
            }
        }
    }

    async fn launch(&mut self) -> Result<(), Error> {
        if self.config.program.as_os_str() == MASTER {
            end_orphans().await;
        }
        let output = |source| Error::File {
            what: "write",
            path: self.config.output.clone(),
            source,
        };
        let file = std::fs::File::create(&self.config.output).map_err(output)?;
        let mut command = Command::new(&self.config.program);
        command
            .arg("-f")
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(output)?)
            .stderr(file)
            .process_group(0);
        if let Some(path) = &self.config.condor_config {
            command.env("CONDOR_CONFIG", path);
        }
        let child = command.spawn().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NotInstalled { program: MASTER },
            _ => Error::Spawn {
                command: format!("{MASTER} -f"),
                source,
            },
        })?;
        let Some(process) = child.id().and_then(Process::child) else {
            return Err(self.trouble("ended at once".into()));
        };
        let content = FileContent {
            bytes: process.encode(),
            mode: 0o600,
            owner: Owner::Root,
        };
        tracing::info!(pid = process.pid, "started condor_master");
        let pid_file = self.config.pid_file.clone();
        self.running = Some(Running {
            process,
            child: Some(child),
            since: Instant::now(),
        });
        files::write(&pid_file, &content)
    }

    /// The process ended although nobody asked it to.
    fn ended(&mut self, how: &str) {
        if let Some(running) = self.running.take() {
            if running.since.elapsed() >= PROVEN {
                self.failures = 0;
            }
            tracing::warn!(pid = running.process.pid, how, "condor_master ended by itself");
        }
        self.pause();
    }

    fn pause(&mut self) {
        let pause = self
            .config
            .pause
            .saturating_mul(1 << self.failures.min(6))
            .min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.restart_at = Some(Instant::now() + pause);
    }

    fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        let sent = self
            .running
            .as_ref()
            .map(|running| running.process.signal(signal));
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(errno)) => Err(self.trouble(format!("did not take {signal} ({errno})"))),
            None => Err(self.trouble(format!("does not run, so it cannot take {signal}"))),
        }
    }

    async fn stop(&mut self, how: Shutdown) -> Result<(), Error> {
        self.restart_at = None;
        self.failures = 0;
        let Some(mut running) = self.running.take() else {
            return Ok(());
        };
        let steps = match how {
            Shutdown::Graceful(limit) => vec![
                (Signal::SIGTERM, limit),
                (Signal::SIGQUIT, FAST_LIMIT),
                (Signal::SIGKILL, FAST_LIMIT),
            ],
            Shutdown::Fast => vec![(Signal::SIGQUIT, FAST_LIMIT), (Signal::SIGKILL, FAST_LIMIT)],
        };
        for (signal, limit) in steps {
            // It may have ended by itself meanwhile, which is what is wanted.
            let _ = running.process.signal(signal);
            if tokio::time::timeout(limit, ended_soon(&mut running))
                .await
                .is_ok()
            {
                let _ = files::remove(&self.config.pid_file);
                return Ok(());
            }
        }
        let error = self.trouble(format!("(process {}) did not end", running.process.pid));
        self.running = Some(running);
        Err(error)
    }

    fn trouble(&self, what: String) -> Error {
        Error::Master {
            what,
            log: self.config.log.clone(),
        }
    }
}

/// Ends what a killed master has left: a second startd beside it would offer the same machine twice.
async fn end_orphans() {
    let until = Instant::now() + ORPHAN_LIMIT;
    let mut signal = Signal::SIGQUIT;
    loop {
        let orphans = Process::orphans(&DAEMONS, MASTER);
        if orphans.is_empty() {
            return;
        }
        for orphan in &orphans {
            // One that has just ended is what is wanted.
            let _ = orphan.signal(signal);
        }
        if Instant::now() > until {
            if signal == Signal::SIGKILL {
                tracing::error!(
                    count = orphans.len(),
                    "daemons of a lost condor_master cannot be killed"
                );
                return;
            }
            signal = Signal::SIGKILL;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// As [`Running::ended`], looking more often: somebody waits.
async fn ended_soon(running: &mut Running) {
    match &mut running.child {
        Some(child) => drop(child.wait().await),
        None => {
            while running.process.is_alive() {
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    /// A program in the place of `condor_master`, of a name that no other test's has: one that runs would be adopted.
    fn config(folder: &Path, script: &str) -> Config {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let program = folder.join(name.trim_start_matches('.'));
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Config {
            program,
            settle: Duration::from_millis(100),
            pause: Duration::from_millis(1),
            pid_file: folder.join("pid.json"),
            output: folder.join("out"),
            log: folder.join("log"),
            condor_config: None,
        }
    }

    async fn pid_when(supervisor: &Supervisor, fits: impl Fn(u32) -> bool) -> u32 {
        let give_up = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            if let MasterState::Running { pid } = supervisor.state().await.unwrap()
                && fits(pid)
            {
                return pid;
            }
            assert!(std::time::Instant::now() < give_up, "no such process in time");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_process_that_is_killed_is_started_again_and_one_that_is_stopped_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::spawn(config(folder.path(), "exec sleep 1000"));
        assert_eq!(supervisor.state().await.unwrap(), MasterState::Stopped);
        supervisor.start().await.unwrap();
        let first = pid_when(&supervisor, |_| true).await;
        Process::running(first).unwrap().signal(Signal::SIGKILL).unwrap();
        let second = pid_when(&supervisor, |pid| pid != first).await;
        let process = Process::running(second).unwrap();
        supervisor.stop(Shutdown::Fast).await.unwrap();
        assert!(!process.is_alive());
        assert_eq!(supervisor.state().await.unwrap(), MasterState::Stopped);
        assert!(!folder.path().join("pid.json").exists());
    }

    #[tokio::test]
    async fn a_process_outlives_the_daemon_and_is_adopted_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let first = Supervisor::spawn(config(folder.path(), "exec sleep 1000"));
        first.start().await.unwrap();
        let pid = pid_when(&first, |_| true).await;
        drop(first);
        let second = Supervisor::spawn(config(folder.path(), "exec sleep 1000"));
        assert_eq!(pid_when(&second, |_| true).await, pid);
        second.start().await.unwrap();
        assert_eq!(pid_when(&second, |_| true).await, pid, "no second one is started");
        second
            .stop(Shutdown::Graceful(Duration::from_secs(5)))
            .await
            .unwrap();
        assert!(Process::running(pid).is_none());
    }

    #[tokio::test]
    async fn a_process_that_ends_at_once_is_an_error_that_names_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path(), "exit 44");
        config.settle = Duration::from_secs(20);
        let supervisor = Supervisor::spawn(config);
        let message = supervisor.start().await.unwrap_err().to_string();
        assert!(
            message.contains("exit status: 44") && message.contains("/log"),
            "{message}"
        );
        supervisor.stop(Shutdown::Fast).await.unwrap();
    }

    #[tokio::test]
    async fn a_signal_to_nothing_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::spawn(config(folder.path(), "exec sleep 1000"));
        assert!(supervisor.signal(Signal::SIGHUP).await.is_err());
    }
}
