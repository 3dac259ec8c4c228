//! Persistent TAP interfaces, as QEMU opens them by name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;

use crate::{Error, InterfaceName};

const DEVICE: &str = "/dev/net/tun";

nix::ioctl_write_int!(tun_set_iff, b'T', 202);
nix::ioctl_write_int!(tun_set_persist, b'T', 203);
nix::ioctl_write_int!(tun_set_owner, b'T', 204);

/// A TAP that goes with this value, unless it is kept.
pub(crate) struct Tap {
    file: File,
    name: InterfaceName,
}

impl Tap {
    /// Makes the TAP, down and on no bridge, or opens one that nobody else has open.
    pub(crate) fn open(name: &InterfaceName) -> Result<Self, Error> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::NoTun,
            _ => Error::Link {
                what: "make the TAP",
                interface: name.clone(),
                source,
            },
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(DEVICE)
            .map_err(failed)?;
        // SAFETY: all zeros is a value of this plain structure of C.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // A checked name is shorter than the field, so that a zero stays behind it.
        for (to, byte) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
            *to = byte as libc::c_char;
        }
        // Frames as they are on the wire, each behind a header of virtio.
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the descriptor is open, and the request points to an ifreq that outlives the call.
        unsafe { tun_set_iff(file.as_raw_fd(), (&raw mut request) as libc::c_ulong) }
            .map_err(|error| failed(error.into()))?;
        Ok(Self {
            file,
            name: name.clone(),
        })
    }

    /// Gives the TAP to a user, and keeps it when this process ends. Last, so that nothing half made is kept.
    pub(crate) fn keep(self, owner: Option<u32>) -> Result<(), Error> {
        let fd = self.file.as_raw_fd();
        // Nobody's number lets whoever may change interfaces open it.
        let owner = owner.unwrap_or(0);
        // SAFETY: the descriptor is open, and both calls take a number.
        let result =
            unsafe { tun_set_owner(fd, libc::c_ulong::from(owner)).and_then(|_| tun_set_persist(fd, 1)) };
        result.map(|_| ()).map_err(|error| Error::Link {
            what: "keep the TAP",
            interface: self.name.clone(),
            source: error.into(),
        })
    }
}
