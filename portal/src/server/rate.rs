//! How many requests an address may make.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Requests that an address may make at once: a lab of nodes that boot together behind one NAT.
const BURST: u32 = 200;

/// How long it takes until one request more is allowed: 20 a second are what the disk can commit without effort.
const REFILL: Duration = Duration::from_millis(50);

/// Most addresses remembered. Beyond that the idle ones are forgotten, or where most are busy, all of them: too kind
/// for a moment, but cheap, and whoever owns that many addresses is not held by this limit anyway.
const MAX_ADDRESSES: usize = 4096;

/// A leaky bucket for each address.
pub(super) struct RateLimit {
    /// For each address, when its bucket will be empty again.
    empty_at: BTreeMap<IpAddr, Instant>,
}

impl RateLimit {
    pub(super) fn new() -> Self {
        Self {
            empty_at: BTreeMap::new(),
        }
    }

    /// Counts a request. If it is one too many, says how long to wait.
    pub(super) fn admit(&mut self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let address = network(address);
        if self.empty_at.len() >= MAX_ADDRESSES && !self.empty_at.contains_key(&address) {
            self.forget(now);
        }
        let empty_at = self.empty_at.entry(address).or_insert(now);
        let next = (*empty_at).max(now) + REFILL;
        let over = next.saturating_duration_since(now + REFILL * BURST);
        if !over.is_zero() {
            return Err(over);
        }
        *empty_at = next;
        Ok(())
    }

    fn forget(&mut self, now: Instant) {
        self.empty_at.retain(|_, empty_at| *empty_at > now);
        // Half of the room must be free afterwards, or every further address would cost a walk over the map.
        if self.empty_at.len() > MAX_ADDRESSES / 2 {
            self.empty_at.clear();
        }
    }
}

/// What counts as one address: an IPv4 address, or the /64 that one IPv6 host has for itself.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_its_burst_then_its_rate_and_others_are_not_affected() {
        let mut limit = RateLimit::new();
        let now = Instant::now();
        let [a, b]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        for i in 0..BURST {
            assert!(limit.admit(a, now).is_ok(), "request {i}");
        }
        let wait = limit.admit(a, now).unwrap_err();
        assert_eq!(wait, REFILL);
        assert!(limit.admit(b, now).is_ok());
        assert!(limit.admit(a, now + wait).is_ok());
        assert!(limit.admit(a, now + wait).is_err());
    }

    #[test]
    fn a_host_cannot_multiply_itself_within_its_own_ipv6_network() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    #[test]
    fn the_number_of_remembered_addresses_is_bounded() {
        let mut limit = RateLimit::new();
        let now = Instant::now();
        for i in 0..3 * MAX_ADDRESSES as u32 {
            assert!(limit.admit(std::net::Ipv4Addr::from(i).into(), now).is_ok());
        }
        assert!(limit.empty_at.len() <= MAX_ADDRESSES);
    }
}
