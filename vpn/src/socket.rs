//! The data socket.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::Error;

/// Room for bursts, in bytes: what a gigabit brings in 50 ms.
const BUFFER: usize = 8 << 20;

/// Opens the data socket on every address of the host.
pub(crate) fn open(port: u16) -> Result<UdpSocket, Error> {
    let open = || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        enlarge(&socket);
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        UdpSocket::from_std(socket.into())
    };
    open().map_err(|source| Error::Socket { port, source })
}

/// Asks for large buffers: beyond the system's limit where the daemon may, else up to it.
fn enlarge(socket: &Socket) {
    let size = libc::c_int::try_from(BUFFER).unwrap_or(libc::c_int::MAX);
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        // SAFETY: the descriptor is open for as long as `socket` lives, and the value outlives the call.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                size_of_val(&size) as libc::socklen_t,
            );
        }
    }
    // Only what the system allows; smaller buffers cost speed, not correctness.
    if socket.recv_buffer_size().is_ok_and(|size| size < BUFFER) {
        let _ = socket.set_recv_buffer_size(BUFFER);
        let _ = socket.set_send_buffer_size(BUFFER);
    }
}
