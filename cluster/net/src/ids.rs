//! Who is who: instances, networks, NICs, and the names of their interfaces.
//!
//! An interface's name has room for 15 characters. It is made of what the interface is, of the instance, and of a
//! digest of the network's or the NIC's id: `aetxxxxyyyyyyyy` for a TAP, `aebxxxxyyyyyyyy` for a bridge. All filters
//! go by the first seven, so that an interface of ours which they know nothing of reaches nobody. The whole ids stand in
//! the interface's alias, by which a driver knows its own again.

use std::fmt;

use aerie_cluster_node::{GuestId, MAX_NICS, Mac};
use sha2::{Digest, Sha256};

use crate::BadPlan;

/// The longest name of a network interface, as the kernel has it.
const MAX_INTERFACE: usize = 15;

const MAX_INSTANCE: usize = 16;

/// An alias has room for 255 characters.
const MAX_NETWORK: usize = 128;

/// Whose networks these are. Several instances on one host, of several grids or of tests, leave each other alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InstanceId(String);

impl InstanceId {
    /// An instance.
    ///
    /// # Errors
    /// [`BadPlan::Instance`] unless these are 1 to 16 lower-case letters and digits.
    pub fn new(id: &str) -> Result<Self, BadPlan> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if id.is_empty() || id.len() > MAX_INSTANCE || !id.bytes().all(allowed) {
            return Err(BadPlan::Instance(id.to_owned()));
        }
        Ok(Self(id.to_owned()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How the names of all its TAPs begin.
    #[must_use]
    pub fn tap_prefix(&self) -> String {
        format!("aet{}", digest::<4>(&[self.0.as_bytes()]))
    }

    /// How the names of all its bridges begin.
    #[must_use]
    pub fn bridge_prefix(&self) -> String {
        format!("aeb{}", digest::<4>(&[self.0.as_bytes()]))
    }

    /// How the aliases of all its interfaces begin.
    pub(crate) fn mark(&self) -> String {
        format!("aerie:{}:", self.0)
    }

    /// The name of its table in each family of the packet filter.
    pub(crate) fn table(&self) -> String {
        format!("aerie_net_{}", self.0)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which network: all guests on it hear each other, and nobody else. Its first part is best a cluster's id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkId(String);

impl NetworkId {
    /// A network.
    ///
    /// # Errors
    /// [`BadPlan::Network`] unless these are 1 to 128 letters, digits, hyphens, dots and underscores.
    pub fn new(id: &str) -> Result<Self, BadPlan> {
        if id.is_empty() || id.len() > MAX_NETWORK || !id.chars().all(plain) {
            return Err(BadPlan::Network(id.to_owned()));
        }
        Ok(Self(id.to_owned()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of its bridge.
    #[must_use]
    pub fn bridge(&self, instance: &InstanceId) -> InterfaceName {
        let digest = digest::<8>(&[instance.0.as_bytes(), b"net", self.0.as_bytes()]);
        InterfaceName(format!("{}{digest}", instance.bridge_prefix()))
    }

    /// The address of its bridge. It is fixed, since a bridge without one takes the lowest of its ports.
    pub(crate) fn bridge_mac(&self, instance: &InstanceId) -> Mac {
        mac(&[instance.0.as_bytes(), b"net", self.0.as_bytes()])
    }

    pub(crate) fn alias(&self, instance: &InstanceId) -> String {
        format!("{}net:{}", instance.mark(), self.0)
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A NIC of a guest, and the port of a bridge that it is plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortId {
    /// Whose.
    pub guest: GuestId,
    /// Which of its NICs, from 0.
    pub index: u8,
}

impl PortId {
    /// The name of its TAP.
    #[must_use]
    pub fn tap(&self, instance: &InstanceId) -> InterfaceName {
        let digest = digest::<8>(&[
            instance.0.as_bytes(),
            b"nic",
            self.guest.0.as_bytes(),
            &[self.index],
        ]);
        InterfaceName(format!("{}{digest}", instance.tap_prefix()))
    }

    /// The Ethernet address of a NIC that is given none: locally administered, and always the same.
    #[must_use]
    pub fn mac(&self) -> Mac {
        mac(&[b"nic", self.guest.0.as_bytes(), &[self.index]])
    }

    pub(crate) fn alias(&self, instance: &InstanceId) -> String {
        format!("{}nic:{}:{}", instance.mark(), self.guest, self.index)
    }

    pub(crate) fn check(&self) -> Result<(), BadPlan> {
        if usize::from(self.index) >= MAX_NICS {
            return Err(BadPlan::Index(*self));
        }
        Ok(())
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of guest {}", self.index, self.guest)
    }
}

/// The name of a network interface: nothing in it means anything to a packet filter or a command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// A name.
    ///
    /// # Errors
    /// [`BadPlan::Interface`] unless these are 1 to 15 letters, digits, hyphens, dots and underscores.
    pub fn new(name: &str) -> Result<Self, BadPlan> {
        if name.is_empty()
            || name.len() > MAX_INTERFACE
            || !name.chars().all(plain)
            || matches!(name, "." | "..")
        {
            return Err(BadPlan::Interface(name.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// So many characters of a digest: five bits in each.
fn digest<const CHARACTERS: usize>(parts: &[&[u8]]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let hash = hash(parts);
    hash.iter()
        .take(CHARACTERS)
        .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]))
        .collect()
}

fn mac(parts: &[&[u8]]) -> Mac {
    let hash = hash(parts);
    // The second-lowest bit says that no vendor gave it, the lowest would make it a group's.
    Mac([
        (hash[0] & 0xfc) | 0x02,
        hash[1],
        hash[2],
        hash[3],
        hash[4],
        hash[5],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn port(n: u128, index: u8) -> PortId {
        PortId {
            guest: GuestId(Uuid::from_u128(n)),
            index,
        }
    }

    #[test]
    fn names_fit_and_differ_by_instance_guest_and_index() {
        let (one, two) = (InstanceId::new("a").unwrap(), InstanceId::new("b").unwrap());
        let names = [
            port(1, 0).tap(&one),
            port(1, 1).tap(&one),
            port(2, 0).tap(&one),
            port(1, 0).tap(&two),
            NetworkId::new("n").unwrap().bridge(&one),
        ];
        for (n, name) in names.iter().enumerate() {
            assert_eq!(name.as_str().len(), MAX_INTERFACE);
            assert_eq!(&InterfaceName::new(name.as_str()).unwrap(), name);
            assert!(names[..n].iter().all(|other| other != name), "{names:?}");
        }
        assert!(names[0].as_str().starts_with(&one.tap_prefix()));
        assert!(!names[3].as_str().starts_with(&one.tap_prefix()));
    }

    #[test]
    fn a_derived_address_is_one_hosts_and_no_vendors() {
        for n in 0..200 {
            let Mac(bytes) = port(n, 0).mac();
            assert_eq!(bytes[0] & 3, 2);
            assert_ne!(port(n, 1).mac(), port(n, 0).mac());
        }
    }

    #[test]
    fn what_could_mean_something_elsewhere_is_no_name() {
        for text in [
            "",
            "a b",
            "a\"",
            "a;b",
            "a\n",
            "0123456789abcdefg",
            "..",
            "a/b",
            "a*",
        ] {
            assert!(InterfaceName::new(text).is_err(), "{text}");
        }
        for text in ["", "A", "a-b", "aerie_x", "01234567890123456"] {
            assert!(InstanceId::new(text).is_err(), "{text}");
        }
        assert!(NetworkId::new("7f/1").is_err());
        assert!(NetworkId::new("7d444840-9dc0-11d1-b245-5ffdce74fad2.private").is_ok());
    }

    #[test]
    fn a_ninth_nic_is_refused() {
        let error = port(1, 8).check().unwrap_err().to_string();
        assert!(error.contains("0 to 7"), "{error}");
    }
}
