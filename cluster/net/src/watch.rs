//! Hears that somebody changed the packet filter.
//!
//! A host's own service for its filter forgets all rules when it is started anew, those of others among them. The
//! kernel tells of every change on a netlink socket; what it tells is not read, since whoever is woken looks for itself.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;

/// The group of nf_tables' changes in linux/netfilter/nfnetlink.h, as a bit: it is the seventh.
const GROUP: u32 = 1 << 6;

/// Changes as they are told.
pub(crate) struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags,
            SockProtocol::NetlinkNetFilter,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
        // SAFETY: the descriptor is owned by what is made here, and closed after it has been deregistered.
        Ok(Self(unsafe { AsyncFd::register(fd) }?))
    }

    /// Completes when something has changed, once for all that is told at a time.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        let mut heard = false;
        while !heard {
            let mut ready = self.0.readable().await?;
            // What is longer is cut off.
            let mut buffer = [0; 4096];
            while let Ok(read) = ready.try_io(|fd| {
                let flags = MsgFlags::MSG_DONTWAIT;
                recv(fd.as_raw_fd(), &mut buffer, flags).map_err(io::Error::from)
            }) {
                match read {
                    Ok(_) => heard = true,
                    // More was told than there was room for.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard = true,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}
