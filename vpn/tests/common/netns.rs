//! Network namespaces in which real nodes run, for tests that have root.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aerie_vpn::{Handle, RelayLimits, Vpn, VpnConfig};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::{Switchboard, addr, check, config, identity, peer};

/// A stream that stands still for so long has failed.
const STALL: Duration = Duration::from_secs(20);

/// A network namespace, held by a process that ends when the test does.
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

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path()))
            .args(words.split_whitespace());
        command
    }

    pub(crate) fn run(&self, words: &str) {
        let output = self.command(words).output().unwrap();
        assert!(
            output.status.success(),
            "{words}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    pub(crate) fn rules(&self, rules: &str) {
        let mut child = self.command("nft -f -").stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{rules}");
    }

    /// Loses so many of 1,000 datagrams that come in for a node, and counts them.
    pub(crate) fn lose(&self, of_1000: u32) {
        self.rules(&format!(
            "table ip loss {{
                chain input {{ type filter hook input priority 0;
                    udp dport 4242 numgen random mod 1000 < {of_1000} counter drop
                }}
            }}\n"
        ));
    }

    /// Joins two namespaces by a pair of interfaces with addresses.
    pub(crate) fn link(&self, name: &str, net: &str, other: &Self, other_name: &str, other_net: &str) {
        self.run(&format!(
            "ip link add {name} type veth peer name {other_name} netns {}",
            other.holder.id()
        ));
        for (side, name, net) in [(self, name, net), (other, other_name, other_net)] {
            // An IPv6 address is not waited for: nobody else is on the link.
            let now = if net.contains(':') { "nodad" } else { "" };
            side.run(&format!("ip addr add {net} dev {name} {now}"));
            side.run(&format!("ip link set {name} up"));
        }
    }

    /// Starts work on a thread inside the namespace.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let file = File::open(self.path()).unwrap();
        thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Starts a node. Its driver runs on a thread inside the namespace until it is shut down.
    pub(crate) fn node(&self, n: u16, board: &Switchboard, relay: Option<RelayLimits>) -> Handle {
        let mut config = config(n);
        config.relay = relay;
        self.start(n, board, config)
    }

    /// Starts a node that is set up in its own way.
    pub(crate) fn start(&self, n: u16, board: &Switchboard, config: VpnConfig) -> Handle {
        self.start_on(n, board, config, || ())
    }

    /// The same, after something was done to the node's threads.
    pub(crate) fn start_on(
        &self,
        n: u16,
        board: &Switchboard,
        config: VpnConfig,
        prepare: impl FnOnce() + Send + 'static,
    ) -> Handle {
        let (send, receive) = std::sync::mpsc::channel();
        let board = board.clone();
        self.spawn(move || {
            prepare();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let (handle, events) = Vpn::start(config, identity(n), check(), &mut rand::rng()).unwrap();
                board.join(peer(n), handle.clone());
                send.send(handle.clone()).unwrap();
                board.serve(n, handle, events).await;
            });
        });
        receive.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    pub(crate) fn ping(&self, to: u16) {
        self.ping_addr(addr(to).0);
    }

    pub(crate) fn ping_addr(&self, to: IpAddr) {
        let output = self
            .command(&format!("ping -c 3 -i 0.2 -W 5 {to}"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(" 0% packet loss"), "{text}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing left to do.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// Sends so many megabytes of a pattern over TCP and compares each byte. The rate in megabytes a second.
pub(crate) fn transfer(
    from: &Namespace,
    to: &Namespace,
    to_addr: impl Into<IpAddr>,
    megabytes: usize,
) -> f64 {
    let to_addr = to_addr.into();
    let (send, ready) = std::sync::mpsc::channel();
    let receiver = to.spawn(move || {
        let listener = TcpListener::bind(SocketAddr::from((to_addr, 5001))).unwrap();
        send.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(STALL)).unwrap();
        let pattern = pattern();
        let mut buffer = vec![0; pattern.len()];
        for block in 0..megabytes {
            stream.read_exact(&mut buffer).unwrap();
            assert!(buffer == pattern, "block {block} is damaged");
        }
    });
    ready.recv_timeout(Duration::from_secs(5)).unwrap();
    let began = Instant::now();
    let sender = from.spawn(move || {
        let mut stream = TcpStream::connect((to_addr, 5001)).unwrap();
        stream.set_write_timeout(Some(STALL)).unwrap();
        let pattern = pattern();
        for _ in 0..megabytes {
            stream.write_all(&pattern).unwrap();
        }
    });
    sender.join().unwrap();
    receiver.join().unwrap();
    megabytes as f64 / began.elapsed().as_secs_f64()
}

fn pattern() -> Vec<u8> {
    (0..1u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// Seconds of processor time that this process, in which all nodes run, has taken.
pub(crate) fn cpu_time() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    [usage.user_time(), usage.system_time()]
        .map(|time| time.num_microseconds() as f64 / 1e6)
        .iter()
        .sum()
}
