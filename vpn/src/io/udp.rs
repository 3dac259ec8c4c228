//! The data socket, by quinn-udp: batches, and the kernel's segmentation where it has it.
//!
//! One socket for both families: an IPv6 socket that takes IPv4 too, or an IPv4 socket where the host has no
//! IPv6. Addresses of IPv4 are always shown as such to the core.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use aerie_types::{UnderlayAddr, VirtualRange};
use aerie_vpn_proto::Run;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

use super::{RECEIVE_BUFFERS, Received, Udp};
use crate::Error;

/// Enough for a burst at a gigabit while the driver is at something else (about 50 ms).
const BUFFER: usize = 8 << 20;

/// A bound UDP socket.
pub struct UdpSocket {
    socket: tokio::net::UdpSocket,
    state: UdpSocketState,
    v6: bool,
}

impl UdpSocket {
    /// Binds to a port of all addresses; 0 for any port.
    ///
    /// # Errors
    /// [`Error::Udp`].
    pub fn bind(port: u16) -> Result<Self, Error> {
        Self::open(port).map_err(|source| Error::Udp { port, source })
    }

    fn open(port: u16) -> io::Result<Self> {
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
        allow_fragments(&socket);
        Ok(Self { socket, state, v6 })
    }

    fn outward(&self, addr: SocketAddr) -> SocketAddr {
        match addr {
            SocketAddr::V4(v4) if self.v6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            addr => addr,
        }
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_io(Interest::WRITABLE, || {
            self.state.try_send((&self.socket).into(), transmit)
        })
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
    for (forced, plain) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    ] {
        if set_option(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            forced,
            BUFFER as libc::c_int,
        )
        .is_err()
        {
            // Without CAP_NET_ADMIN the kernel grants what its limit allows.
            let _ = set_option(socket.as_raw_fd(), libc::SOL_SOCKET, plain, BUFFER as libc::c_int);
        }
    }
}

/// A datagram longer than a link of the path allows is cut into fragments rather than lost.
fn allow_fragments(socket: &tokio::net::UdpSocket) {
    let fd = socket.as_raw_fd();
    for (level, option, value) in [
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DONT,
        ),
    ] {
        // Refused for the family that the socket is not of.
        let _ = set_option(fd, level, option, value);
    }
}

fn set_option(fd: i32, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
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
        let mut buffers: Vec<IoSliceMut<'_>> = batch
            .buffers
            .iter_mut()
            .map(|buffer| IoSliceMut::new(buffer))
            .collect();
        let count = self.socket.try_io(Interest::READABLE, || {
            self.state.recv((&self.socket).into(), &mut buffers, &mut meta)
        })?;
        batch.runs.extend(meta.iter().take(count).map(|meta| {
            let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            (UnderlayAddr(from), meta.len, meta.stride)
        }));
        Ok(())
    }

    fn try_send(&self, run: Run<'_>) -> io::Result<()> {
        let single = run.bytes.len() <= run.segment;
        let transmit = Transmit {
            destination: self.outward(run.to.0),
            ecn: None,
            contents: run.bytes,
            segment_size: (!single).then_some(run.segment),
            src_ip: None,
        };
        match self.send(&transmit) {
            Err(error) if !single && error.kind() != io::ErrorKind::WouldBlock => {
                // The kernel or the route cannot segment: one by one.
                for datagram in run.bytes.chunks(run.segment) {
                    self.send(&Transmit {
                        contents: datagram,
                        segment_size: None,
                        ..transmit
                    })?;
                }
                Ok(())
            }
            result => result,
        }
    }

    fn max_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    fn hosts(&self, range: VirtualRange, own_interface: &str) -> Result<Vec<UnderlayAddr>, Error> {
        let port = Udp::port(self).map_err(Error::Interfaces)?;
        crate::hosts::candidates(port, range, own_interface)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_arrives_as_its_datagrams_from_an_ipv4_address() {
        let (a, b) = (UdpSocket::bind(0).unwrap(), UdpSocket::bind(0).unwrap());
        let to = UnderlayAddr((Ipv4Addr::LOCALHOST, b.port().unwrap()).into());
        let bytes: Vec<u8> = (0..250).collect();
        a.writable().await.unwrap();
        let most = a.max_segments();
        if most >= 3 {
            a.try_send(Run {
                to,
                bytes: &bytes,
                segment: 100,
            })
            .unwrap();
        } else {
            for bytes in bytes.chunks(100) {
                a.try_send(Run {
                    to,
                    bytes,
                    segment: bytes.len(),
                })
                .unwrap();
            }
        }
        let mut batch = Received::default();
        let mut got = Vec::new();
        while got.len() < 3 {
            b.readable().await.unwrap();
            if b.try_recv(&mut batch).is_ok() {
                got.extend(
                    batch
                        .datagrams()
                        .iter()
                        .map(|datagram| (datagram.from, datagram.bytes.to_vec())),
                );
            }
        }
        let from = UnderlayAddr((Ipv4Addr::LOCALHOST, a.port().unwrap()).into());
        assert!(got.iter().all(|(source, _)| *source == from), "{got:?}");
        let joined: Vec<u8> = got.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert_eq!(joined, bytes);
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let a = UdpSocket::bind(0).unwrap();
        let port = a.port().unwrap();
        let error = UdpSocket::bind(port).err().unwrap();
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }
}
