//! Who this machine is: addresses by interface, host name, SSH host key.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use aerie_context_proto::{HostKey, HostName, Identity, Interface, Provided, Workspace};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrLike as _;

use crate::error::Error;
use crate::files;
use crate::source::under;

/// How often interfaces are looked at while they have no address yet.
const LOOK: Duration = Duration::from_millis(500);

/// Kinds of host keys, the best first.
const HOST_KEYS: [&str; 3] = [
    "/etc/ssh/ssh_host_ed25519_key.pub",
    "/etc/ssh/ssh_host_ecdsa_key.pub",
    "/etc/ssh/ssh_host_rsa_key.pub",
];

/// What the command line says in place of what would be found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    /// Identities, in place of the interfaces'.
    pub(crate) identities: Vec<(Option<Interface>, IpAddr)>,
    pub(crate) hostname: Option<HostName>,
}

/// What this machine reports as a member of a set.
pub(crate) fn gather(
    set: &Workspace,
    overrides: &Overrides,
    root: &Path,
    data: &Path,
    patience: Duration,
) -> Result<Provided, Error> {
    let hostname = overrides.hostname.clone().or_else(own_name);
    let pubkey = host_key(root)?;
    let addresses = if overrides.identities.is_empty() {
        wait_for_addresses(set, patience)?
    } else {
        overrides.identities.clone()
    };
    let identities = addresses.into_iter().map(|(interface, ip)| Identity {
        interface,
        ip,
        hostname: hostname.clone(),
        pubkey: pubkey.clone(),
    });
    let mut blobs = BTreeMap::new();
    for name in &set.provides.data {
        let path = data.join(name.as_str());
        let content = files::read(&path)?
            .ok_or_else(|| Error::io("read", &path)(std::io::ErrorKind::NotFound.into()))?;
        blobs.insert(name.clone(), content);
    }
    Ok(Provided {
        identities: identities.collect(),
        data: blobs,
    })
}

fn own_name() -> Option<HostName> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    name.parse()
        .ok()
        .filter(|name: &HostName| name.as_str() != "localhost")
}

fn host_key(root: &Path) -> Result<Option<HostKey>, Error> {
    for file in HOST_KEYS {
        if let Some(text) = files::read(&under(root, file))?
            && let Ok(key) = text.trim().parse()
        {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// The addresses to report: those of the interfaces that the document names, else of the first that has one.
fn wait_for_addresses(
    set: &Workspace,
    patience: Duration,
) -> Result<Vec<(Option<Interface>, IpAddr)>, Error> {
    let until = Instant::now() + patience;
    loop {
        let present = present();
        let named: Vec<&Interface> = set
            .provides
            .identities
            .iter()
            .filter_map(|identity| identity.interface.as_ref())
            .collect();
        let missing = if named.is_empty() {
            if let Some((interface, ip)) = present.first() {
                return Ok(vec![(Some(interface.clone()), *ip)]);
            }
            Error::NoAddresses
        } else {
            let address = |name: &Interface| present.iter().find(|(interface, _)| interface == name);
            match named.iter().find(|name| address(name).is_none()) {
                None => {
                    let found = named.into_iter().filter_map(address).cloned();
                    return Ok(found.map(|(interface, ip)| (Some(interface), ip)).collect());
                }
                Some(name) => Error::NoAddress((*name).clone()),
            }
        };
        if Instant::now() >= until {
            return Err(missing);
        }
        std::thread::sleep(LOOK);
    }
}

/// The usable address of each interface that is up: the first IPv4, or where there is none the first IPv6 that is
/// not of the link alone.
fn present() -> Vec<(Interface, IpAddr)> {
    let mut found: Vec<(Interface, IpAddr)> = Vec::new();
    let Ok(addresses) = getifaddrs() else {
        return found;
    };
    for address in addresses {
        let up = InterfaceFlags::IFF_UP;
        if !address.flags.contains(up) || address.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            continue;
        }
        let (Ok(interface), Some(ip)) = (
            address.interface_name.parse::<Interface>(),
            address.address.as_ref().and_then(ip_of),
        ) else {
            continue;
        };
        match found.iter_mut().find(|(name, _)| *name == interface) {
            Some((_, known)) if known.is_ipv6() && ip.is_ipv4() => *known = ip,
            Some(_) => {}
            None => found.push((interface, ip)),
        }
    }
    found
}

fn ip_of(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    address.family()?;
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(v4.ip().into());
    }
    let v6 = address.as_sockaddr_in6()?.ip();
    (!v6.is_unicast_link_local()).then_some(v6.into())
}
