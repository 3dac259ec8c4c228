//! What the service manager sees of the daemon.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Long enough for what takes no time, on a machine that does a hundred things beside.
const LIMIT: Duration = Duration::from_secs(30);

struct Daemon {
    child: Child,
    socket: UnixDatagram,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself, which a test says otherwise.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    fn start(folder: &Path) -> Self {
        let notify = folder.join("notify");
        let socket = UnixDatagram::bind(&notify).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_aerie"))
            .arg("up")
            .arg("--config")
            .arg(folder.join("blob.toml"))
            .arg("--state")
            .arg(folder.join("state"))
            .arg("--run-dir")
            .arg(folder.join("run"))
            .env("NOTIFY_SOCKET", &notify)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, socket }
    }

    /// Reads messages up to one that holds `text`, and returns that.
    fn told(&self, text: &str) -> String {
        loop {
            let mut bytes = [0; 4096];
            let length = self
                .socket
                .recv(&mut bytes)
                .unwrap_or_else(|error| panic!("no {text}: {error}"));
            let message = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if message.contains(text) {
                return message;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }
}

fn blob() -> String {
    format!(
        "version = 1\n[grid]\nname = \"lab\"\nca_hash = \"{}\"\nrange = \"100.96.0.0/11\"\n\
         [enrol]\nurls = [\"https://127.0.0.1:1\"]\ntoken = \"secret\"\n\
         [node]\nroles = [\"worker\"]\ngroup = \"physics\"\n",
        "ab".repeat(32)
    )
}

#[test]
fn a_daemon_without_a_configuration_is_ready_and_says_what_it_waits_for() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    daemon.told("READY=1");
    let status = daemon.told("blob.toml");
    assert!(
        status.contains("STATUS=source: ") && status.contains("WATCHDOG=1"),
        "{status}"
    );
}

#[test]
fn a_reload_is_announced_with_its_time_and_finds_a_new_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(folder.path());
    daemon.told("blob.toml");
    std::fs::write(folder.path().join("blob.toml"), blob()).unwrap();
    daemon.signal(Signal::SIGHUP);
    let reloading = daemon.told("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    daemon.told("READY=1");
    // What comes next is the machine's affair; the configuration was found.
    let later = loop {
        let status = daemon.told("STATUS=");
        if !status.contains("STATUS=source") {
            break status;
        }
    };
    assert!(daemon.child.try_wait().unwrap().is_none(), "{later}");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.child.wait().unwrap().success());
}
