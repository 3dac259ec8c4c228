//! The TUN device, by tun-rs, which opens it and asks the kernel for offloads. The frames themselves are read and
//! written here as they are: what the virtio header says is `offload`'s matter.

use std::io::{self, IoSlice};
use std::net::Ipv6Addr;
use std::path::Path;

use aerie_types::{Ula, VirtualAddr, VirtualRange};
use tun_rs::{AsyncDevice, DeviceBuilder};

use super::{Tun, TunOffloads};
use crate::Error;

/// Longest name of an interface (IFNAMSIZ without its zero).
const MAX_NAME: usize = 15;

/// A TUN interface, which exists as long as this value.
pub struct TunDevice {
    device: AsyncDevice,
    offloads: TunOffloads,
}

impl TunDevice {
    /// Makes the interface, gives it its address and brings it up. The kernel routes the range to it. With
    /// `offload` super-packets are asked for; a kernel that has none of them gets a plain device.
    ///
    /// # Errors
    /// [`Error::NoTun`], [`Error::NotPermitted`], [`Error::Busy`], [`Error::Tun`].
    pub fn create(
        name: &str,
        addr: VirtualAddr,
        range: VirtualRange,
        mtu: u16,
        offload: bool,
    ) -> Result<Self, Error> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(legal) {
            return Err(Error::InterfaceName {
                name: name.to_owned(),
            });
        }
        if !Path::new("/dev/net/tun").exists() {
            return Err(Error::NoTun);
        }
        let build = |offload: bool| {
            let builder = DeviceBuilder::new().name(name).mtu(mtu).multi_queue(false);
            let builder = match addr.v4() {
                Some(v4) => builder.ipv4(v4, range.prefix_len(), None),
                None => builder,
            };
            let device = builder.offload(offload).enable(false).build_async()?;
            set_up_ipv6(name);
            device.enabled(true)?;
            Ok(device)
        };
        let device = match build(offload) {
            Err(error) if offload && is_refusal(&error) => {
                tracing::debug!(%error, interface = name, "no offloads; a plain device instead");
                build(false)
            }
            result => result,
        };
        let device = device.map_err(|source| explain(name, source))?;
        let offloads = TunOffloads {
            framed: device.tcp_gso(),
            tcp: device.tcp_gso(),
            udp: device.udp_gso(),
        };
        Ok(Self { device, offloads })
    }
}

/// Lets the kernel make up no address of its own and ask for no router: nobody on the other side would answer. And lets
/// it keep the address that it is given while the interface is down, as it does with IPv4. What cannot be written, in
/// a container or without IPv6, costs a few packets that the tunnel drops, and IPv6 after an interface was down.
fn set_up_ipv6(name: &str) {
    // `addr_gen_mode` 1 is "none".
    for (setting, value) in [
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
        ("router_solicitations", "0"),
        ("keep_addr_on_down", "1"),
    ] {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/{setting}");
        if let Err(error) = std::fs::write(&path, value) {
            tracing::debug!(%error, path, "not set");
        }
    }
}

/// Whether the kernel may only have refused the offloads.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOTTY | libc::EOPNOTSUPP | libc::ENOSYS)
    )
}

fn explain(name: &str, source: io::Error) -> Error {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::NotPermitted { name, source },
        Some(libc::EBUSY) => Error::Busy { name },
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::NoTun,
        _ => Error::Tun { name, source },
    }
}

impl Tun for TunDevice {
    async fn readable(&self) -> io::Result<()> {
        self.device.readable().await
    }

    fn try_recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.device.try_recv(buffer)
    }

    fn try_send(&self, frame: &[IoSlice<'_>]) -> io::Result<()> {
        match frame {
            [packet] => self.device.try_send(packet).map(|_| ()),
            parts => self.device.try_send_vectored(parts).map(|_| ()),
        }
    }

    fn offloads(&self) -> TunOffloads {
        self.offloads
    }

    fn readdress(&self, from: VirtualAddr, to: VirtualAddr, prefix: u8) -> io::Result<()> {
        let Some(v4) = to.v4() else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        // The other way round the new one would be the old one's secondary, which the kernel removes with it.
        self.device.remove_address(from.0)?;
        self.device.add_address_v4(v4, prefix)
    }

    fn set_ipv6(&self, from: Option<Ipv6Addr>, to: Ipv6Addr) -> io::Result<()> {
        self.device.add_address_v6(to, Ula::NODES_LEN)?;
        match from.map(|from| self.device.remove_address_v6(from, Ula::NODES_LEN)) {
            // Somebody else has removed it.
            Some(Err(error)) if error.raw_os_error() != Some(libc::EADDRNOTAVAIL) => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_the_kernel_says_what_to_do() {
        let message = |errno| explain("aerie-x", io::Error::from_raw_os_error(errno)).to_string();
        assert!(message(libc::EPERM).contains("CAP_NET_ADMIN"));
        assert!(message(libc::EBUSY).contains("stop it first"));
        assert!(message(libc::ENODEV).contains("modprobe tun"));
    }

    #[test]
    fn a_name_that_the_kernel_would_cut_is_refused() {
        let range = "100.96.0.0/11".parse().unwrap();
        let addr = std::net::Ipv4Addr::new(100, 96, 0, 1).into();
        for name in ["", "aerie-0123456789", "a/b"] {
            let refused = TunDevice::create(name, addr, range, 1420, true);
            assert!(matches!(refused, Err(Error::InterfaceName { .. })), "{name}");
        }
    }
}
