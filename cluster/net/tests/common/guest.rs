//! The guest's end of a TAP, opened as QEMU opens it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aerie_cluster_node::Mac;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::namespace::Namespace;

nix::ioctl_write_int!(tun_set_iff, b'T', 202);

/// What virtio puts before each frame.
const HEADER: usize = 10;

/// What does not come in so long does not come.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// A TAP with nothing behind it but the test.
pub(crate) struct Guest {
    file: File,
}

/// Waits until a port passes frames: the kernel looks after a while whether anybody has opened it.
pub(crate) fn passes(host: &Namespace, tap: &str) {
    let end = Instant::now() + LIMIT;
    while !host
        .run(&format!("ip -d -o link show {tap}"))
        .contains("state forwarding")
    {
        assert!(Instant::now() < end, "{tap} passes nothing");
    }
}

impl Guest {
    /// Opens the TAP of a port.
    pub(crate) fn plug(host: &Namespace, tap: &str) -> Self {
        let guest = Self::open(host, tap);
        passes(host, tap);
        guest
    }

    fn open(host: &Namespace, tap: &str) -> Self {
        let file = host.enter(|| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")
                .unwrap();
            // SAFETY: all zeros is a value of this plain structure of C.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, byte) in request.ifr_name.iter_mut().zip(tap.bytes()) {
                *to = byte as libc::c_char;
            }
            request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
            // SAFETY: the descriptor is open, and the request outlives the call.
            unsafe { tun_set_iff(file.as_raw_fd(), (&raw mut request) as libc::c_ulong) }.unwrap();
            file
        });
        Self { file }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let whole = [&[0; HEADER], frame].concat();
        assert_eq!((&self.file).write(&whole).unwrap(), whole.len());
    }

    /// The next frame, if one comes before the limit is over.
    pub(crate) fn receive(&self, limit: Duration) -> Option<Vec<u8>> {
        receive(&self.file, limit).map(|bytes| bytes[HEADER..].to_vec())
    }

    /// All frames up to one that is looked for, without it.
    pub(crate) fn until(&self, wanted: &[u8]) -> Vec<Vec<u8>> {
        until(wanted, |limit| self.receive(limit))
    }
}

fn receive(mut file: &File, limit: Duration) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(limit).unwrap()).unwrap();
    match file.read(&mut buffer) {
        Ok(length) => {
            buffer.truncate(length);
            Some(buffer)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

fn until(wanted: &[u8], receive: impl Fn(Duration) -> Option<Vec<u8>>) -> Vec<Vec<u8>> {
    let end = Instant::now() + LIMIT;
    let mut seen = Vec::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let Some(frame) = receive(left) else {
            panic!("the frame did not come; {seen:02x?} came");
        };
        if frame == wanted {
            return seen;
        }
        seen.push(frame);
    }
}

/// Whatever the host itself hears on an interface.
pub(crate) struct Ear {
    file: File,
}

impl Ear {
    pub(crate) fn on(host: &Namespace, interface: &str) -> Self {
        let index: i32 = host
            .run(&format!("ip -o link show {interface}"))
            .split(':')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let file = host.enter(|| {
            let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
            // SAFETY: a plain call; the descriptor is looked at before it is owned.
            let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
            assert!(fd >= 0);
            // SAFETY: the descriptor is new, and nobody else's.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: all zeros is a value of this plain structure of C.
            let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            addr.sll_family = libc::AF_PACKET as u16;
            addr.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            addr.sll_ifindex = index;
            let size = size_of::<libc::sockaddr_ll>() as u32;
            // SAFETY: the descriptor is open, and the address has the size that is said.
            let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), size) };
            assert_eq!(bound, 0);
            File::from(fd)
        });
        Self { file }
    }

    pub(crate) fn until(&self, wanted: &[u8]) -> Vec<Vec<u8>> {
        until(wanted, |limit| receive(&self.file, limit))
    }
}

/// A guest with a network stack: a namespace whose `eth0` is wired to the TAP.
pub(crate) struct Machine {
    pub(crate) inside: Namespace,
    ended: Arc<AtomicBool>,
    wire: Option<JoinHandle<()>>,
}

impl Machine {
    pub(crate) fn plug(host: &Namespace, tap: &str, mac: Mac) -> Self {
        let inside = Namespace::new();
        let plug = Guest::plug(host, tap);
        let nic = Guest::open(&inside, "eth0");
        // Nobody has its address, and whoever asks gets an answer at once.
        inside.run("sysctl -qw net.ipv6.conf.eth0.accept_dad=0");
        inside.run(&format!("ip link set eth0 address {mac} up"));
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let wire = std::thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                let mut fds = [&plug, &nic].map(|guest| PollFd::new(guest.file.as_fd(), PollFlags::POLLIN));
                poll(&mut fds, PollTimeout::from(50u8)).unwrap();
                for (from, to) in [(&plug, &nic), (&nic, &plug)] {
                    while let Some(frame) = from.receive(Duration::ZERO) {
                        to.send(&frame);
                    }
                }
            }
        });
        Self {
            inside,
            ended,
            wire: Some(wire),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(wire) = self.wire.take() {
            let _ = wire.join();
        }
    }
}
