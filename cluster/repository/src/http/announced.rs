//! Who fetches or has an image, as hosts say it of themselves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use crate::limits::{ANNOUNCED_KEPT, MAX_ANNOUNCED_IMAGES, MAX_PEERS, MAX_PORTS_OF_ONE};
use crate::manifest::ManifestId;

/// The hosts of each image, and when each was heard last.
#[derive(Debug, Default)]
pub(super) struct Announced(BTreeMap<ManifestId, BTreeMap<SocketAddr, Instant>>);

impl Announced {
    /// Notes a host, unless its port is 0; who the others are.
    pub(super) fn heard(&mut self, id: ManifestId, own: SocketAddr, now: Instant) -> Vec<SocketAddr> {
        self.0.retain(|_, hosts| {
            hosts.retain(|_, at| now.duration_since(*at) < ANNOUNCED_KEPT);
            !hosts.is_empty()
        });
        if !self.0.contains_key(&id) && self.0.len() >= MAX_ANNOUNCED_IMAGES {
            return Vec::new();
        }
        let hosts = self.0.entry(id).or_default();
        let others = hosts.keys().filter(|other| **other != own).copied().collect();
        if own.port() == 0 {
            return others;
        }
        // One address cannot take the places of all.
        let same = hosts.iter().filter(|(other, _)| other.ip() == own.ip());
        if !hosts.contains_key(&own) && same.clone().count() >= MAX_PORTS_OF_ONE {
            let oldest = same.min_by_key(|(_, at)| **at).map(|(other, _)| *other);
            oldest.and_then(|oldest| hosts.remove(&oldest));
        }
        // Beyond the bound a host takes part with those that are known and is not known itself.
        if hosts.contains_key(&own) || hosts.len() < MAX_PEERS {
            hosts.insert(own, now);
        }
        others
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Digest;

    const ID: ManifestId = ManifestId(Digest([1; 32]));
    const ASKS: u16 = 0;

    fn at(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], port))
    }

    #[test]
    fn one_address_takes_two_places_however_many_ports_it_says() {
        let (mut announced, start) = (Announced::default(), Instant::now());
        for port in 1..1000 {
            announced.heard(ID, at(1, port), start + Duration::from_millis(port.into()));
        }
        let now = start + Duration::from_secs(1);
        announced.heard(ID, at(2, 7000), now);
        let known = announced.heard(ID, at(3, ASKS), now);
        // Of one that began anew it is the last that counts.
        assert_eq!(known, [at(1, 998), at(1, 999), at(2, 7000)]);
    }

    #[test]
    fn a_host_is_forgotten_that_is_not_heard_of() {
        let (mut announced, start) = (Announced::default(), Instant::now());
        announced.heard(ID, at(1, 7000), start);
        assert_eq!(announced.heard(ID, at(1, 7000), start), []);
        assert_eq!(announced.heard(ID, at(2, ASKS), start), [at(1, 7000)]);
        assert_eq!(announced.heard(ID, at(2, ASKS), start + ANNOUNCED_KEPT), []);
    }
}
