//! When the network of this host may have changed: an address, an interface or a route has come or gone.
//!
//! The kernel says so on a netlink socket (rtnetlink(7)). What it says is not read: whoever is woken looks for himself
//! what there is now, so that a message that was lost, or one too many, does no harm.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;

/// Groups of linux/rtnetlink.h: links, and addresses and routes of both families.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// The socket.
#[derive(Debug)]
pub(crate) struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    /// Listens from now on.
    ///
    /// # Errors
    /// The kernel's: it knows no netlink, or no more sockets can be opened.
    pub(crate) fn watch() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        // SAFETY: the descriptor is owned by what is made here, and closed after it has been deregistered.
        Ok(Self(unsafe { AsyncFd::register(fd) }?))
    }

    /// Completes when something has changed, once for all that is told at a time.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) async fn next(&self) -> io::Result<()> {
        let mut told = false;
        while !told {
            let mut guard = self.0.readable().await?;
            // A part of a message is enough to take all of it.
            let mut buffer = [0; 64];
            loop {
                match recv(self.0.get_ref().as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    // More was told than the socket holds.
                    Ok(_) | Err(nix::Error::ENOBUFS) => told = true,
                    Err(nix::Error::EINTR) => {}
                    Err(nix::Error::EAGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            guard.clear_ready();
        }
        Ok(())
    }
}
