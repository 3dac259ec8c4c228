//! The TUN device.

use std::io;

use aerie_types::{VirtualAddr, VirtualRange};
use tun_rs::{AsyncDevice, DeviceBuilder};

use crate::Error;

/// Makes the interface, gives it its address, and brings it up. The range becomes its route.
pub(crate) fn open(interface: &str, addr: VirtualAddr, range: VirtualRange, mtu: u16) -> Result<AsyncDevice, Error> {
    let v4 = addr.v4().ok_or(Error::NotIpv4(addr))?;
    DeviceBuilder::new()
        .name(interface)
        .ipv4(v4, range.prefix_len(), None)
        .mtu(mtu)
        .build_async()
        .map_err(|source| Error::Tun { hint: hint(&source), interface: interface.to_owned(), source })
}

/// Gives the interface another address.
pub(crate) fn readdress(device: &AsyncDevice, addr: VirtualAddr, range: VirtualRange) -> Result<(), Error> {
    let v4 = addr.v4().ok_or(Error::NotIpv4(addr))?;
    device.set_network_address(v4, range.prefix_len(), None).map_err(|source| Error::Tun {
        interface: device.name().unwrap_or_default(),
        hint: "check that nothing else manages this interface",
        source,
    })
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "load the driver with 'modprobe tun', or in a container add --device=/dev/net/tun",
        io::ErrorKind::PermissionDenied => "run the daemon as root or with CAP_NET_ADMIN",
        io::ErrorKind::ResourceBusy => "another program has an interface of this name; stop it first",
        _ => "check /dev/net/tun and the daemon's rights (CAP_NET_ADMIN)",
    }
}
