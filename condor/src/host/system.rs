//! The real machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::net::TcpStream;

use super::supervisor::{self, Supervisor};
use super::{CondorVersion, Host, MasterState, Shutdown, Supervision, command, files};
use crate::Error;
use crate::audit::{Wildcard, wildcards};
use crate::intent::Manager;
use crate::plan::{FileContent, Owner, PORT};
use crate::pool::{self, Slot};

/// For questions to this machine.
const LOCAL_LIMIT: Duration = Duration::from_secs(10);

/// For questions to a manager.
const QUERY_LIMIT: Duration = Duration::from_secs(20);

/// For the question whether a collector answers.
const ALIVE_LIMIT: Duration = Duration::from_secs(5);

/// For the question whether a port is open.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// For the look-up of the machine's own name, which should be local.
const NAME_LIMIT: Duration = Duration::from_secs(2);

/// For systemd, whose unit gives `condor_master` 150 s to end.
const SYSTEMD_LIMIT: Duration = Duration::from_secs(170);

/// How a [`SystemHost`] finds its way.
#[derive(Debug, Clone)]
pub struct SystemConfig {
    /// Below which files are written: `/`, but for tests.
    pub root: PathBuf,
    /// Where this grid's daemon keeps its state; holds the file that names `condor_master`'s process.
    pub state_dir: PathBuf,
    /// Who keeps `condor_master` running; `None` looks whether systemd runs this machine.
    pub supervision: Option<Supervision>,
    /// HTCondor's main configuration file, if it is not the packaged one.
    pub condor_config: Option<PathBuf>,
    /// HTCondor's systemd unit.
    pub unit: String,
    /// `condor_master`'s log, to be named in errors.
    pub master_log: PathBuf,
}

impl SystemConfig {
    /// The packaged HTCondor of this machine.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            root: "/".into(),
            state_dir: state_dir.into(),
            supervision: None,
            condor_config: None,
            unit: "condor.service".into(),
            master_log: "/var/log/condor/MasterLog".into(),
        }
    }
}

/// HTCondor as it is installed on this machine.
pub struct SystemHost {
    config: SystemConfig,
    runner: Runner,
}

enum Runner {
    Systemd,
    Child(Supervisor),
}

impl SystemHost {
    /// A driver for this machine. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::File`] if the state folder cannot be created.
    pub fn new(config: SystemConfig) -> Result<Self, Error> {
        std::fs::create_dir_all(&config.state_dir).map_err(|source| Error::File {
            what: "create the folder",
            path: config.state_dir.clone(),
            source,
        })?;
        let detected = || {
            if Path::new("/run/systemd/system").is_dir() {
                Supervision::Systemd
            } else {
                Supervision::Child
            }
        };
        let runner = match config.supervision.unwrap_or_else(detected) {
            Supervision::Systemd => Runner::Systemd,
            Supervision::Child => Runner::Child(Supervisor::spawn(supervisor::Config {
                program: supervisor::MASTER.into(),
                settle: supervisor::SETTLE,
                pause: supervisor::PAUSE,
                pid_file: config.state_dir.join("condor_master.json"),
                output: config.state_dir.join("condor_master.out"),
                log: config.master_log.clone(),
                condor_config: config.condor_config.clone(),
            })),
        };
        Ok(Self { config, runner })
    }

    /// Who keeps `condor_master` running here.
    #[must_use]
    pub fn supervision(&self) -> Supervision {
        match self.runner {
            Runner::Systemd => Supervision::Systemd,
            Runner::Child(_) => Supervision::Child,
        }
    }

    async fn run(&self, program: &'static str, args: &[&str], limit: Duration) -> Result<Vec<u8>, Error> {
        command::run(program, args, self.config.condor_config.as_deref(), limit).await
    }

    async fn systemctl(&self, args: &[&str]) -> Result<Vec<u8>, Error> {
        let args: Vec<_> = args.iter().copied().chain([self.config.unit.as_str()]).collect();
        self.run("systemctl", &args, SYSTEMD_LIMIT).await
    }

    /// `condor_master` asks for the machine's own name before it opens its log, and hangs for minutes where the name
    /// servers are out of reach.
    async fn warn_of_slow_names(&self) {
        let Some(name) = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
        else {
            return;
        };
        let lookup = tokio::net::lookup_host((name.as_str(), 0));
        if tokio::time::timeout(NAME_LIMIT, lookup).await.is_err() {
            tracing::warn!(
                "the name servers do not answer for this machine's own name, and HTCondor will start late: add the \
                 line '127.0.1.1 {name}' to /etc/hosts"
            );
        }
    }

    async fn status(&self, manager: Option<&str>, args: &[&str], limit: Duration) -> Result<Vec<u8>, Error> {
        let pool = manager.map(|manager| ["-pool", manager]);
        let args: Vec<_> = pool
            .iter()
            .flatten()
            .copied()
            .chain(args.iter().copied())
            .collect();
        self.run("condor_status", &args, limit).await
    }

    fn path(&self, path: &Path) -> PathBuf {
        files::below(&self.config.root, path)
    }
}

impl Host for SystemHost {
    async fn probe(&self) -> Result<CondorVersion, Error> {
        let output = self.run("condor_version", &[], LOCAL_LIMIT).await?;
        let version: CondorVersion = String::from_utf8_lossy(&output).parse()?;
        if version < CondorVersion::MINIMUM {
            return Err(Error::TooOld {
                found: version.to_string(),
            });
        }
        Ok(version)
    }

    fn prepare(&self, folders: &BTreeMap<PathBuf, Owner>) -> Result<(), Error> {
        folders
            .iter()
            .try_for_each(|(path, owner)| files::folder(&self.path(path), *owner))
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        files::read(&self.path(path))
    }

    fn write(&self, path: &Path, content: &FileContent) -> Result<(), Error> {
        files::write(&self.path(path), content)
    }

    fn remove(&self, path: &Path) -> Result<(), Error> {
        files::remove(&self.path(path))
    }

    async fn state(&self) -> Result<MasterState, Error> {
        match &self.runner {
            Runner::Child(supervisor) => supervisor.state().await,
            Runner::Systemd => {
                let output = self.systemctl(&["show", "--property=MainPID", "--value"]).await?;
                let text = String::from_utf8_lossy(&output);
                Ok(match text.trim().parse() {
                    Ok(0) | Err(_) => MasterState::Stopped,
                    Ok(pid) => MasterState::Running { pid },
                })
            }
        }
    }

    async fn start(&self) -> Result<(), Error> {
        if !self.state().await?.is_up() {
            self.warn_of_slow_names().await;
        }
        match &self.runner {
            Runner::Child(supervisor) => supervisor.start().await,
            Runner::Systemd => self.systemctl(&["start"]).await.map(drop),
        }
    }

    async fn reconfig(&self) -> Result<(), Error> {
        match &self.runner {
            Runner::Child(supervisor) => supervisor.signal(Signal::SIGHUP).await,
            Runner::Systemd => self.systemctl(&["reload"]).await.map(drop),
        }
    }

    async fn stop(&self, how: Shutdown) -> Result<(), Error> {
        if let Runner::Child(supervisor) = &self.runner {
            return supervisor.stop(how).await;
        }
        if let Shutdown::Graceful(limit) = how {
            // The unit's own way is the fast one; the gentle signal comes before it.
            self.systemctl(&["kill", "--kill-whom=main", "--signal=SIGTERM"])
                .await?;
            let until = Instant::now() + limit;
            while Instant::now() < until && self.state().await?.is_up() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        self.systemctl(&["stop"]).await.map(drop)
    }

    async fn pool(&self, manager: Option<&str>) -> Result<Vec<Slot>, Error> {
        let attributes = pool::ATTRIBUTES.join(",");
        let args = ["-json", "-attributes", &attributes];
        pool::parse_slots(&self.status(manager, &args, QUERY_LIMIT).await?)
    }

    async fn is_slot_listed(&self, machine: &str, manager: Option<&str>) -> Result<bool, Error> {
        // The name is quoted by what it may hold; a name of another form is listed nowhere.
        if !machine
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        {
            return Ok(false);
        }
        let constraint = format!("Machine == \"{machine}\"");
        let args = [
            "-json",
            "-attributes",
            "Name,Machine",
            "-limit",
            "1",
            "-constraint",
            &constraint,
        ];
        let slots = pool::parse_slots(&self.status(manager, &args, QUERY_LIMIT).await?)?;
        Ok(!slots.is_empty())
    }

    async fn port_open(&self, manager: &Manager) -> bool {
        let connect = TcpStream::connect((manager.addr.0, PORT));
        matches!(tokio::time::timeout(CONNECT_LIMIT, connect).await, Ok(Ok(_)))
    }

    async fn collector_alive(&self, manager: &str) -> bool {
        let args = ["-collector", "-json", "-attributes", "Name"];
        match self.status(Some(manager), &args, ALIVE_LIMIT).await {
            Ok(output) => output.contains(&b'{'),
            Err(error) => {
                tracing::debug!(manager, %error, "the collector does not answer");
                false
            }
        }
    }

    async fn wildcards(&self) -> Result<Vec<Wildcard>, Error> {
        let dump = self.run("condor_config_val", &["-dump"], LOCAL_LIMIT).await?;
        Ok(wildcards(&String::from_utf8_lossy(&dump)))
    }
}
