//! Nodes: hosts with a root file system, a disk of their own, and processes.
//!
//! ```text
//!              boot               kill9 / restart
//!   (disk) ───────────► running ───────────────────► off ──► running ...
//!                                                     │
//!                                                     └ clone_disk: a copy for another node
//! ```
//!
//! A node has its own network, mount, pid, UTS and IPC namespaces. Its disk is the upper folder of an overlay over
//! the shared root file system: it survives the node, as a machine's disk survives a power cut. `/run` and `/tmp`
//! do not.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cgroup;
use crate::lab::{Place, Shared};
use crate::netns::NetNs;
use crate::network::{Lease, Port};
use crate::process::{Holder, Process};
use crate::service::Service;

/// How long a command may take before it is ended and counts as failed.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// The exit code by which `timeout` says that it ended the command.
const TIMED_OUT: i32 = 124;

const BOOT: &str = include_str!("boot.sh");

/// What a command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with exit code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Standard output and standard error.
    #[must_use]
    pub fn both(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A handle of a node. The lab owns the node and ends it.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    name: String,
    seat: Mutex<Seat>,
    disk: PathBuf,
    running: Mutex<Option<Running>>,
    services: Mutex<Vec<Service>>,
}

/// Where the node is plugged in.
#[derive(Debug, Clone)]
struct Seat {
    place: Place,
    lease: Lease,
}

#[derive(Debug)]
struct Running {
    holder: Holder,
    port: Port,
}

impl Node {
    /// Boots a new node, with an empty disk or a copy of another node's.
    pub(crate) fn boot(shared: Arc<Shared>, name: &str, place: Place, image: Option<&Path>) -> Result<Self> {
        let disk = shared.dir.join("nodes").join(name);
        ensure!(!disk.exists(), "the lab has a node '{name}' already");
        for folder in ["upper", "work", "merged"] {
            std::fs::create_dir_all(disk.join(folder))?;
        }
        if let Some(image) = image {
            copy_disk(image, &disk.join("upper"))?;
        }
        let lease = place.segment(&shared).lease()?;
        let node = Self(Arc::new(Inner {
            shared,
            name: name.to_owned(),
            seat: Mutex::new(Seat { place, lease }),
            disk,
            running: Mutex::new(None),
            services: Mutex::new(Vec::new()),
        }));
        if image.is_none() {
            node.first_boot()?;
        }
        node.power_on()?;
        Ok(node)
    }

    /// What an installer would have written: the host's name and its place in the hosts file.
    fn first_boot(&self) -> Result<()> {
        let etc = self.0.disk.join("upper/etc");
        std::fs::create_dir_all(&etc)?;
        std::fs::write(etc.join("hostname"), format!("{}\n", self.0.name))?;
        std::fs::write(
            etc.join("hosts"),
            format!("127.0.0.1 localhost\n127.0.1.1 {}\n", self.0.name),
        )?;
        Ok(())
    }

    fn power_on(&self) -> Result<()> {
        let inner = &*self.0;
        let mut running = lock(&inner.running);
        ensure!(running.is_none(), "the node '{}' runs already", inner.name);
        let binds: String = inner
            .shared
            .binds
            .iter()
            .map(|(from, to)| format!("{}\t{to}\n", from.display()))
            .collect();
        let controllers = cgroup::make(&inner.shared.id, &inner.name);
        let mut command = cgroup::command(&inner.shared.id, &inner.name, "unshare");
        command
            .args([
                "--net",
                "--mount",
                "--pid",
                "--uts",
                "--ipc",
                "--cgroup",
                "--fork",
                "--kill-child",
            ])
            .args(["sh", "-c", BOOT])
            .env("LAB_CONTROLLERS", controllers.join(" "))
            .env("LAB_LOWER", inner.shared.rootfs()?)
            .env("LAB_DISK", &inner.disk)
            .env("LAB_NAME", &inner.name)
            .env("LAB_BIND", binds);
        let log = inner.shared.log(&format!("{}.boot", inner.name));
        let holder = Holder::start(command, &log, inner.shared.keep)
            .with_context(|| format!("the node '{}' does not boot", inner.name))?;
        inner.shared.record(|state| {
            state.nodes.insert(inner.name.clone(), holder.process);
        })?;
        let net = NetNs::of(holder.process.pid);
        // As systemd sets it: everybody may ping.
        net.sysctl(&[("ipv4/ping_group_range", "0 2147483647")])?;
        let seat = lock(&inner.seat).clone();
        let segment = seat.place.segment(&inner.shared);
        let port = segment.attach(net, "eth0", seat.lease)?;
        *running = Some(Running { holder, port });
        Ok(())
    }

    /// The node's name, which is its host name too.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its address on its segment.
    #[must_use]
    pub fn addr(&self) -> Ipv4Addr {
        lock(&self.0.seat).lease.addr
    }

    /// Takes the node's cable out and plugs it in elsewhere: the interface goes with its address and routes, and comes
    /// back with others. What runs on the node runs on.
    ///
    /// # Errors
    /// When the node is off, or there is no room at that place.
    pub fn roam(&self, place: impl Into<Place>) -> Result<()> {
        let inner = &*self.0;
        let place = place.into();
        let segment = place.segment(&inner.shared);
        let lease = segment.lease()?;
        let net = self.net()?;
        let mut running = lock(&inner.running);
        let running = running
            .as_mut()
            .with_context(|| format!("the node '{}' is off", inner.name))?;
        net.ip(["link del eth0"])?;
        running.port = segment.attach(net, "eth0", lease)?;
        *lock(&inner.seat) = Seat { place, lease };
        Ok(())
    }

    /// Its network namespace.
    ///
    /// # Errors
    /// When the node is off.
    pub fn net(&self) -> Result<NetNs> {
        Ok(NetNs::of(self.init()?.pid))
    }

    /// A command that goes on inside the node.
    fn enter(&self) -> Result<Command> {
        Ok(enter(&self.0.shared.id, &self.0.name, self.init()?))
    }

    /// Its first process.
    fn init(&self) -> Result<Process> {
        match &*lock(&self.0.running) {
            Some(running) => Ok(running.holder.process),
            None => bail!("the node '{}' is off", self.0.name),
        }
    }

    /// Runs a command as a user, in the user's home folder with a fresh environment, for at most a minute.
    ///
    /// # Errors
    /// When it cannot be run or does not end in time. A command that fails is not an error here.
    pub fn exec(&self, user: &str, argv: &[&str]) -> Result<Output> {
        self.exec_for(COMMAND_LIMIT, user, argv, &[])
    }

    /// As [`Node::exec`], with a limit of time and bytes for standard input.
    ///
    /// # Errors
    /// As [`Node::exec`].
    pub fn exec_for(&self, limit: Duration, user: &str, argv: &[&str], input: &[u8]) -> Result<Output> {
        let seconds = format!("{:.1}", limit.as_secs_f64());
        let mut command = self.enter()?;
        command.args(["timeout", "--kill-after=2", &seconds]);
        as_user(&mut command, user, argv);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run nsenter")?;
        let mut stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            // Beside the reading of its output, so that neither waits for the other. Who does not read its input
            // ends the writing, and that is its own affair.
            scope.spawn(move || stdin.as_mut().map(|stdin| stdin.write_all(input)));
            child.wait_with_output()
        })?;
        let output = Output {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        if output.status.code() == Some(TIMED_OUT) || output.status.signal().is_some() {
            bail!(
                "on {}, {argv:?} did not end within {seconds} s ({})\n{}",
                self.name(),
                output.status,
                output.both()
            );
        }
        Ok(output)
    }

    /// Runs a command as a user and returns its standard output.
    ///
    /// # Errors
    /// As [`Node::exec`], and when the command fails.
    pub fn run(&self, user: &str, argv: &[&str]) -> Result<String> {
        let output = self.exec(user, argv)?;
        ensure!(
            output.success(),
            "on {}, {argv:?} failed ({}):\n{}",
            self.name(),
            output.status,
            output.both()
        );
        Ok(output.stdout)
    }

    /// Runs lines of shell as a user and returns their standard output; ends at the first that fails.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn sh(&self, user: &str, script: &str) -> Result<String> {
        self.run(user, &["sh", "-euc", script])
    }

    /// Starts a command in the background as a user; its output goes to a file of the lab.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, user: &str, name: &str, argv: &[&str], env: &[(&str, &str)]) -> Result<Service> {
        let path = self.0.shared.log(&format!("{}.{name}", self.name()));
        let log = File::options().create(true).append(true).open(&path)?;
        let mut command = self.enter()?;
        let mut whole = Vec::new();
        let assignments: Vec<_> = env.iter().map(|(key, value)| format!("{key}={value}")).collect();
        if !assignments.is_empty() {
            whole.push("env");
            whole.extend(assignments.iter().map(String::as_str));
        }
        whole.extend(argv);
        as_user(&mut command, user, &whole);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let service = Service::start(command, format!("{} on {}", name, self.name()), path)?;
        lock(&self.0.services).push(service.clone());
        Ok(service)
    }

    /// Everything that was spawned on the node since it was last switched on.
    #[must_use]
    pub fn services(&self) -> Vec<Service> {
        lock(&self.0.services).clone()
    }

    /// Writes a file on the node's disk, owned by root, with the folders above it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let script = "mkdir -p \"$(dirname \"$1\")\" && cat >\"$1\"";
        let output = self.exec_for(COMMAND_LIMIT, "root", &["sh", "-c", script, "sh", path], bytes)?;
        ensure!(
            output.success(),
            "cannot write {path} on {}: {}",
            self.name(),
            output.both()
        );
        Ok(())
    }

    /// Reads a file of the node.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        let output = self.enter()?.args(["cat", path]).stdin(Stdio::null()).output()?;
        ensure!(
            output.status.success(),
            "cannot read {path} on {}: {}",
            self.name(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout)
    }

    /// Pulls the node's network cable.
    ///
    /// # Errors
    /// When the node is off.
    pub fn cut(&self) -> Result<()> {
        self.port()?.cut()
    }

    /// Plugs the cable in again.
    ///
    /// # Errors
    /// When the node is off.
    pub fn restore(&self) -> Result<()> {
        self.port()?.restore()
    }

    fn port(&self) -> Result<Port> {
        match &*lock(&self.0.running) {
            Some(running) => Ok(running.port.clone()),
            None => bail!("the node '{}' is off", self.0.name),
        }
    }

    /// Cuts the power: every process of the node is killed at once. Its disk stays.
    pub fn kill9(&self) {
        if let Some(running) = lock(&self.0.running).take() {
            running.holder.kill();
            running.port.remove();
        }
        for service in std::mem::take(&mut *lock(&self.0.services)) {
            // It was killed with the node; this takes away what entered the node on its behalf.
            let _ = service.wait(Duration::from_secs(10));
        }
    }

    /// Cuts the power and boots again from the same disk, with the same address.
    ///
    /// # Errors
    /// When it does not boot.
    pub fn restart(&self) -> Result<()> {
        self.kill9();
        self.power_on()
    }

    /// Boots another node from a copy of this one's disk, at the same place or elsewhere. What the copy shows of
    /// files that are just being written is what a disk shows after a power cut.
    ///
    /// # Errors
    /// When the disk cannot be copied or the other node does not boot.
    pub fn clone_disk(&self, name: &str, place: impl Into<Place>) -> Result<Self> {
        let lab = Arc::clone(&self.0.shared);
        let node = Self::boot(
            Arc::clone(&lab),
            name,
            place.into(),
            Some(&self.0.disk.join("upper")),
        )?;
        lab.adopt(&node);
        Ok(node)
    }
}

/// A command that goes on inside the node of a lab whose first process this is.
pub(crate) fn enter(lab: &str, name: &str, init: Process) -> Command {
    let mut command = cgroup::command(lab, name, "nsenter");
    command.args([
        "-t",
        &init.pid.to_string(),
        "-m",
        "-u",
        "-i",
        "-n",
        "-p",
        "-C",
        "--",
    ]);
    command
}

/// Adds what runs a command as a user of the node.
pub(crate) fn as_user(command: &mut Command, user: &str, argv: &[impl AsRef<OsStr>]) {
    command
        .args([
            "setpriv",
            "--reuid",
            user,
            "--regid",
            user,
            "--init-groups",
            "--reset-env",
        ])
        .args(["sh", "-c", "cd && exec \"$0\" \"$@\""])
        .args(argv);
}

fn copy_disk(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp")
        .args(["-a", "--reflink=auto", "-T"])
        .args([from, to])
        .status()
        .context("cannot run cp")?;
    ensure!(status.success(), "cannot copy the disk {}", from.display());
    Ok(())
}

/// A poisoned lock means that another test thread failed; what it guards is still to be cleaned up.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
