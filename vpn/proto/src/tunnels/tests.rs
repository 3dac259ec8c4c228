//! What a member may send that runs another program: its packets pass through no checks of its own.

mod floods;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aerie_types::{GridId, WallMillis};
use proptest::prelude::*;

use super::*;

struct NoCheck;

impl CredentialCheck for NoCheck {
    fn check(&self, _der: &[u8], _wall: WallMillis) -> Result<RemoteIdentity, String> {
        Err("nobody shakes hands here".to_owned())
    }
}

fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

fn addr(n: u8) -> VirtualAddr {
    Ipv4Addr::new(100, 96, 0, n).into()
}

#[expect(clippy::disallowed_methods, reason = "a test's clock starts somewhere")]
fn moment() -> Now {
    Now {
        instant: Instant::now(),
        wall: WallMillis(0),
    }
}

/// Node 2, which knows that node 1 holds the address 1 and node 3 the address 3.
fn node(now: Now) -> Tunnels {
    let config = Config {
        range: "100.96.0.0/11".parse().unwrap(),
        addr: addr(2),
        mtu: 1420,
        suites: vec![Suite::Aes256Gcm],
        relay: None,
        loopback: false,
    };
    let identity = Identity {
        grid: GridId([9; 16]),
        peer: peer(2),
        noise_secret: [2; 32].into(),
        credential: vec![2],
    };
    let mut rng = StdRng::from_seed([7; 32]);
    let mut core = Tunnels::new(config, identity, Box::new(NoCheck), &mut rng, now).unwrap();
    for n in [1, 3] {
        let remote = RemotePeer {
            peer: peer(n),
            noise_public: [n; 32],
        };
        core.resolved(addr(n), Some(remote), now);
    }
    while core.poll_event().is_some() {}
    core
}

fn packet(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, 59, 64];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet
}

fn changed(addr: Ipv6Addr, byte: usize) -> Ipv6Addr {
    let mut octets = addr.octets();
    octets[byte] ^= 1;
    octets.into()
}

#[test]
fn a_packet_whose_ipv6_source_is_not_its_senders_is_spoofed() {
    let now = moment();
    let mut core = node(now);
    let v6 = |v4: VirtualAddr| core.net.ula.addr(v4).unwrap();
    let (one, own, three) = (v6(addr(1)), v6(addr(2)), v6(addr(3)));
    let elsewhere = v6(Ipv4Addr::new(192, 0, 2, 1).into());
    assert!(core.accept_inner(peer(1), &packet(one, own), now.instant));
    let sources = [
        three,
        own,
        changed(one, 0),
        changed(one, 5),
        changed(one, 7),
        changed(one, 11),
        elsewhere,
        "fe80::1".parse().unwrap(),
        "ff02::1".parse().unwrap(),
        "2001:db8::1".parse().unwrap(),
        "::ffff:100.96.0.1".parse().unwrap(),
        Ipv6Addr::UNSPECIFIED,
    ];
    for (n, source) in sources.into_iter().enumerate() {
        assert!(
            !core.accept_inner(peer(1), &packet(source, own), now.instant),
            "{source}"
        );
        assert_eq!(core.counters().spoofed_source, n as u64 + 1, "{source}");
    }
    assert_eq!(core.poll_event(), None, "nobody is asked");
    assert_eq!(core.poll_inner(), None);
}

#[test]
fn a_packet_for_another_ipv6_address_is_not_delivered() {
    let now = moment();
    let mut core = node(now);
    let v6 = |v4: VirtualAddr| core.net.ula.addr(v4).unwrap();
    let (one, own, three) = (v6(addr(1)), v6(addr(2)), v6(addr(3)));
    let destinations = [
        three,
        changed(own, 5),
        changed(own, 7),
        changed(own, 11),
        "ff02::1".parse().unwrap(),
    ];
    for (n, destination) in destinations.into_iter().enumerate() {
        assert!(!core.accept_inner(peer(1), &packet(one, destination), now.instant));
        assert_eq!(core.counters().misdirected, n as u64 + 1, "{destination}");
    }
}

proptest! {
    /// Of all packets with addresses near those of nodes, those are taken that go from the sender's address of one
    /// family to the node's own of the same.
    #[test]
    fn a_packet_is_taken_from_its_senders_own_address_to_this_nodes_alone(
        v6: bool,
        (from, to) in (0..4u8, 1..3u8),
        source_byte in prop_oneof![Just(usize::MAX), 0..16usize],
        destination_byte in prop_oneof![Just(usize::MAX), 0..16usize],
    ) {
        let now = moment();
        let mut core = node(now);
        let ula = core.net.ula;
        let flipped = |n: u8, byte: usize| -> IpAddr {
            let v4 = addr(n).v4().unwrap();
            if v6 {
                let addr = ula.addr(v4.into()).unwrap();
                if byte < 16 { changed(addr, byte).into() } else { addr.into() }
            } else {
                let mut octets = v4.octets();
                if let Some(octet) = octets.get_mut(byte) {
                    *octet ^= 1;
                }
                octets.into()
            }
        };
        let (source, destination) = (flipped(from, source_byte), flipped(to, destination_byte));
        let bytes = match (source, destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => packet(source, destination),
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut bytes = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0];
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes
            }
            _ => unreachable!("one packet has one family"),
        };
        let own = |n: u8| flipped(n, usize::MAX);
        let expected = source == own(1) && destination == own(2);
        prop_assert_eq!(core.accept_inner(peer(1), &bytes, now.instant), expected, "{} {}", source, destination);
    }
}
