//! Network namespaces, each held by a process that ends when the test does.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, setns};

pub(crate) struct Namespace {
    holder: Child,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n", "network namespaces need root");
        Self { holder }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path()))
            .args(words.split_whitespace());
        command
    }

    /// What a command that succeeds says.
    pub(crate) fn run(&self, words: &str) -> String {
        let output = self.command(words).output().unwrap();
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success(), "{words}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Works on a thread inside. Sockets made there stay in it.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).unwrap();
        let inside = || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        match std::thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// The names of all interfaces.
    pub(crate) fn links(&self) -> Vec<String> {
        let text = self.run("ip -o link show");
        let names = text.lines().filter_map(|line| line.split([':', '@']).nth(1));
        names.map(|name| name.trim().to_owned()).collect()
    }

    /// Forgets the filters, so that a test sees what they held.
    pub(crate) fn unfiltered(&self) {
        self.run("nft flush ruleset");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing left to do.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
