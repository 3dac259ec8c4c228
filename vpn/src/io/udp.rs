//! The data socket: quinn-udp receives, in batches; runs are sent by UDP_SEGMENT where the route has it.
//!
//! One socket for both families: an IPv6 socket that takes IPv4 too, or an IPv4 socket where the host has no
//! IPv6. Addresses of IPv4 are always shown as such to the core.
//!
//! The kernel refuses a run whose datagrams do not fit the route's MTU, or whose device cannot make checksums.
//! That is one route's matter: datagrams to that address then go one by one for a while (and are cut into
//! fragments if they must be), and all others go on in runs.
//!
//! A datagram longer than a link of its way may be cut into fragments, unless it is to stay whole: around that one
//! send the socket is told to forbid it. Nobody else uses the socket at that time, so that nothing else is concerned.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aerie_types::{UnderlayAddr, VirtualNet};
use aerie_vpn_proto::Run;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use quinn_udp::{RecvMeta, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

use super::{RECEIVE_BUFFERS, RECEIVE_LEN, Received, ReceivedRun, Udp, UdpOffloads};
use crate::Error;

/// Enough for bursts at ten gigabits while the driver is at something else (about 5 ms).
const RECEIVE_BUFFER: libc::c_int = 8 << 20;
/// Some batches of the driver, as the kernel counts them. What waits here cannot be overtaken by a probe, so it is
/// no more than that: on a full link of 100 Mb/s about 150 ms.
const SEND_BUFFER: libc::c_int = 2 << 20;

/// Of linux/in6.h; libc has no name for it on every architecture.
const IPV6_DONTFRAG: libc::c_int = 62;

/// How long an address gets its datagrams one by one after the kernel has refused a run to it. Routes change.
const SINGLE_FOR: Duration = Duration::from_secs(60);
/// Addresses of which that is known; beyond it, runs are tried in vain, which costs one call each.
const MAX_SINGLE: usize = 256;

/// A bound UDP socket.
pub struct UdpSocket {
    socket: tokio::net::UdpSocket,
    state: UdpSocketState,
    v6: bool,
    offload: bool,
    single: Mutex<BTreeMap<UnderlayAddr, Instant>>,
}

impl UdpSocket {
    /// Binds to a port of all addresses; 0 for any port. Without `offload`, every datagram is a call of its own.
    ///
    /// # Errors
    /// [`Error::Udp`].
    pub fn bind(port: u16, offload: bool) -> Result<Self, Error> {
        Self::open(port, offload).map_err(|source| Error::Udp { port, source })
    }

    fn open(port: u16, offload: bool) -> io::Result<Self> {
        let (socket, v6) = match dual(port) {
            Ok(socket) => (socket, true),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            // No IPv6 on this host.
            Err(_) => {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
                socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
                (socket, false)
            }
        };
        enlarge(&socket);
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        for v4 in [true, false] {
            // Refused for the family that the socket is not of.
            let _ = fragments_are(Fragments::Allowed, v4, &socket);
        }
        // quinn-udp has set it; over IPv6 it would forbid fragments whatever else is set. An IPv4 socket has it not.
        let _ = set_option(socket.as_raw_fd(), libc::IPPROTO_IPV6, IPV6_DONTFRAG, 0);
        if !offload {
            // quinn-udp has switched it on. A kernel that does not know it has nothing to switch off.
            let _ = set_option(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, 0);
        }
        Ok(Self {
            socket,
            state,
            v6,
            offload,
            single: Mutex::default(),
        })
    }

    fn outward(&self, addr: SocketAddr) -> SocketAddr {
        match addr {
            SocketAddr::V4(v4) if self.v6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            addr => addr,
        }
    }

    fn send(&self, to: UnderlayAddr, bytes: &[u8], segment: Option<u16>) -> io::Result<()> {
        let to = SockaddrStorage::from(self.outward(to.0));
        let parts = [IoSlice::new(bytes)];
        let run = segment.as_ref().map(ControlMessage::UdpGsoSegments);
        self.socket.try_io(Interest::WRITABLE, || {
            sendmsg(
                self.socket.as_raw_fd(),
                &parts,
                run.as_slice(),
                MsgFlags::empty(),
                Some(&to),
            )?;
            Ok(())
        })
    }

    /// A datagram that nobody may cut.
    fn send_whole(&self, to: UnderlayAddr, datagram: &[u8]) -> io::Result<usize> {
        let v4 = to.0.is_ipv4();
        fragments_are(Fragments::Forbidden, v4, &self.socket)?;
        let sent = self.send(to, datagram, None);
        fragments_are(Fragments::Allowed, v4, &self.socket)?;
        sent.map(|()| datagram.len())
    }

    /// One by one, until the socket is full.
    fn send_each(&self, run: Run<'_>) -> io::Result<usize> {
        let mut sent = 0;
        for datagram in run.bytes.chunks(run.segment.max(1)) {
            match self.send(run.to, datagram, None) {
                Err(error) if sent == 0 => return Err(error),
                Err(_) => break,
                Ok(()) => sent += datagram.len(),
            }
        }
        Ok(sent)
    }

    fn takes_runs(&self, to: UnderlayAddr) -> bool {
        let mut single = self.single.lock().unwrap_or_else(PoisonError::into_inner);
        match single.get(&to) {
            None => true,
            Some(until) if *until > Instant::now() => false,
            Some(_) => {
                single.remove(&to);
                true
            }
        }
    }

    fn refuses_runs(&self, to: UnderlayAddr) {
        let mut single = self.single.lock().unwrap_or_else(PoisonError::into_inner);
        if single.len() < MAX_SINGLE {
            single.insert(to, Instant::now() + SINGLE_FOR);
        }
    }
}

fn dual(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

/// Asks for large buffers, beyond the host's limit where the process may.
fn enlarge(socket: &Socket) {
    let fd = socket.as_raw_fd();
    for (forced, plain, size) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER),
    ] {
        if set_option(fd, libc::SOL_SOCKET, forced, size).is_err() {
            // Without CAP_NET_ADMIN the kernel grants what its limit allows.
            let _ = set_option(fd, libc::SOL_SOCKET, plain, size);
        }
    }
}

/// Whether datagrams may be cut on their way. Either way only the own link counts, and no path MTU that the kernel was
/// told of by ICMP, which anybody can forge: what is asked for and what is sent fare alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fragments {
    Allowed,
    Forbidden,
}

/// Sets it for the datagrams of one family.
fn fragments_are(wanted: Fragments, v4: bool, socket: &tokio::net::UdpSocket) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    match (v4, wanted) {
        (true, Fragments::Allowed) => set_option(
            fd,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_OMIT,
        ),
        (true, Fragments::Forbidden) => set_option(
            fd,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_PROBE,
        ),
        (false, Fragments::Allowed) => set_option(
            fd,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_OMIT,
        ),
        (false, Fragments::Forbidden) => set_option(
            fd,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
        ),
    }
}

pub(super) fn set_option(fd: i32, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
    // SAFETY: `fd` is an open socket of the caller and the pointer is to a live c_int of the length given.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

impl Udp for UdpSocket {
    async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }

    fn try_recv(&self, batch: &mut Received) -> io::Result<()> {
        batch.runs.clear();
        let mut meta = [RecvMeta::default(); RECEIVE_BUFFERS];
        let mut memory = batch.memory.chunks_exact_mut(RECEIVE_LEN);
        let mut buffers: [IoSliceMut<'_>; RECEIVE_BUFFERS] =
            std::array::from_fn(|_| IoSliceMut::new(memory.next().unwrap_or_default()));
        let count = self.socket.try_io(Interest::READABLE, || {
            self.state.recv((&self.socket).into(), &mut buffers, &mut meta)
        })?;
        batch.runs.extend(meta.iter().take(count).map(|meta| {
            let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            ReceivedRun {
                from: UnderlayAddr(from),
                len: meta.len,
                stride: meta.stride,
            }
        }));
        Ok(())
    }

    fn try_send(&self, run: Run<'_>) -> io::Result<usize> {
        if run.whole {
            return self.send_whole(run.to, run.bytes);
        }
        let segment = u16::try_from(run.segment).ok();
        let one = run.bytes.len() <= run.segment;
        let Some(segment) = segment.filter(|_| !one && self.takes_runs(run.to)) else {
            return self.send_each(run);
        };
        match self.send(run.to, run.bytes, Some(segment)) {
            Ok(()) => Ok(run.bytes.len()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(error) => {
                let sent = self.send_each(run)?;
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE)
                ) {
                    tracing::debug!(%error, to = %run.to, "the route takes no runs; datagrams go one by one");
                    self.refuses_runs(run.to);
                }
                Ok(sent)
            }
        }
    }

    fn max_segments(&self) -> usize {
        if self.offload {
            self.state.max_gso_segments()
        } else {
            1
        }
    }

    fn offloads(&self) -> UdpOffloads {
        UdpOffloads {
            send: self.max_segments() > 1,
            receive: self.offload && self.state.gro_segments() > 1,
        }
    }

    fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    fn hosts(&self, net: VirtualNet, own_interface: &str) -> Result<Vec<UnderlayAddr>, Error> {
        let port = Udp::port(self).map_err(Error::Interfaces)?;
        crate::hosts::candidates(port, net, own_interface)
    }

    fn outward(&self) -> Vec<IpAddr> {
        crate::hosts::outward()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_arrives_as_its_datagrams_from_an_ipv4_address() {
        let (a, b) = (
            UdpSocket::bind(0, true).unwrap(),
            UdpSocket::bind(0, true).unwrap(),
        );
        let to = UnderlayAddr((Ipv4Addr::LOCALHOST, b.port().unwrap()).into());
        let bytes: Vec<u8> = (0..250).collect();
        a.writable().await.unwrap();
        let most = a.max_segments();
        if most >= 3 {
            a.try_send(Run {
                to,
                bytes: &bytes,
                segment: 100,
                whole: false,
            })
            .unwrap();
        } else {
            for bytes in bytes.chunks(100) {
                a.try_send(Run {
                    to,
                    bytes,
                    segment: bytes.len(),
                    whole: false,
                })
                .unwrap();
            }
        }
        let mut batch = Received::default();
        let mut got = Vec::new();
        while got.len() < 3 {
            b.readable().await.unwrap();
            if b.try_recv(&mut batch).is_ok() {
                got.extend(Received::places(&batch.runs).map(|(from, at)| (from, batch.memory[at].to_vec())));
            }
        }
        let from = UnderlayAddr((Ipv4Addr::LOCALHOST, a.port().unwrap()).into());
        assert!(got.iter().all(|(source, _)| *source == from), "{got:?}");
        let joined: Vec<u8> = got.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert_eq!(joined, bytes);
    }

    #[tokio::test]
    async fn what_is_to_stay_whole_is_refused_by_a_link_that_would_cut_it() {
        for to in [
            Ipv4Addr::LOCALHOST.into(),
            std::net::IpAddr::from(Ipv6Addr::LOCALHOST),
        ] {
            let (a, b) = (
                UdpSocket::bind(0, true).unwrap(),
                UdpSocket::bind(0, true).unwrap(),
            );
            if to.is_ipv6() && !a.v6 {
                continue;
            }
            let to = UnderlayAddr((to, b.port().unwrap()).into());
            let mtu: usize = std::fs::read_to_string("/sys/class/net/lo/mtu")
                .unwrap()
                .trim()
                .parse()
                .unwrap();
            let headers = if to.0.is_ipv6() { 48 } else { 28 };
            let longest = (mtu - headers).min(65_507);
            let send = |len: usize, whole: bool| {
                let bytes = vec![0; len];
                let segment = len;
                a.try_send(Run {
                    to,
                    bytes: &bytes,
                    segment,
                    whole,
                })
            };
            a.writable().await.unwrap();
            assert_eq!(send(longest, true).unwrap(), longest);
            // The loopback interface takes all that IPv4 can say, and less than IPv6 can.
            if longest < 65_507 {
                let error = send(longest + 1, true).unwrap_err();
                assert!(super::super::is_too_long(&error), "{error}");
                assert_eq!(
                    send(longest + 1, false).unwrap(),
                    longest + 1,
                    "it may be cut again"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let a = UdpSocket::bind(0, true).unwrap();
        let port = a.port().unwrap();
        let error = UdpSocket::bind(port, true).err().unwrap();
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }
}
