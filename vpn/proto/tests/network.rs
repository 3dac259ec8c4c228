//! What a person is told of a way and of the network, with every NAT that matters.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::Duration;

use aerie_types::{PeerId, UnderlayAddr};
use aerie_vpn_proto::{
    CandidateKind, Finding, Mapping, NetworkStatus, PairState, PathKind, PathStatus, Reason,
};
use common::{NatKind, World};

const SOON: Duration = Duration::from_secs(10);

/// Two relays, a node behind such a NAT, and a member that it has never spoken to.
fn world(nat: Option<NatKind>) -> (World, usize, usize) {
    let mut world = World::new(7);
    let (relay, other) = (world.relay(), world.relay());
    let stranger = world.public();
    let node = match nat {
        Some(kind) => world.behind(kind),
        None => world.public(),
    };
    world.announce_relays(&[relay, other]);
    (world, node, stranger)
}

fn check(world: &mut World, node: usize, strangers: &[usize]) -> NetworkStatus {
    let strangers: Vec<PeerId> = strangers.iter().map(|n| world.nodes[*n].peer).collect();
    let now = world.moment();
    world.nodes[node].core.check_network(strangers, now);
    assert!(!world.nodes[node].core.network(now).complete);
    world.run_until(SOON, |world| {
        world.nodes[node].core.network(world.moment()).complete
    });
    world.nodes[node].core.network(world.moment())
}

#[test]
fn each_nat_is_told_from_the_others() {
    for (nat, mapping, strangers, hairpin) in [
        (None, Mapping::Open, Finding::Yes, Finding::Untried),
        (
            Some(NatKind::FullCone),
            Mapping::Independent,
            Finding::Yes,
            Finding::Yes,
        ),
        (
            Some(NatKind::PortRestricted),
            Mapping::Independent,
            Finding::No,
            Finding::Yes,
        ),
        (
            Some(NatKind::Symmetric),
            Mapping::Dependent,
            Finding::No,
            Finding::No,
        ),
    ] {
        let (mut world, node, stranger) = world(nat);
        let network = check(&mut world, node, &[stranger]);
        let found = (network.mapping, network.admits_strangers, network.hairpin);
        assert_eq!(found, (mapping, strangers, hairpin), "{nat:?}");
        assert_eq!(network.observers.len(), 2);
        for observer in &network.observers {
            assert_eq!(observer.rtt, Some(Duration::from_millis(20)), "{nat:?}");
        }
    }
}

#[test]
fn a_nat_without_hairpin_is_seen() {
    let (mut world, node, stranger) = world(Some(NatKind::FullCone));
    world.drop_if = Some(Box::new(|seen| seen.from.ip() == seen.to.ip()));
    let network = check(&mut world, node, &[stranger]);
    assert_eq!(network.hairpin, Finding::No);
    assert_eq!(network.admits_strangers, Finding::Yes);
}

/// One relay shows nothing; what peers see of this host does.
#[test]
fn peers_show_what_a_nat_does_where_there_is_one_relay_alone() {
    use NatKind::{FullCone, PortRestricted, Symmetric};
    for (a, b, wanted) in [
        (PortRestricted, PortRestricted, Mapping::Independent),
        (FullCone, PortRestricted, Mapping::Independent),
        (Symmetric, FullCone, Mapping::Dependent),
    ] {
        let mut world = World::new(4);
        let relay = world.relay();
        let (a, b) = (world.behind(a), world.behind(b));
        world.announce_relays(&[relay]);
        assert_eq!(world.nodes[a].core.nat(world.moment()).0, Mapping::Unknown);
        world.send(a, b, b"ping");
        world.run_until(SOON, |world| matches!(world.path(a, b), PathKind::Direct(_)));
        world.run(Duration::from_millis(100));
        assert_eq!(world.nodes[a].core.nat(world.moment()).0, wanted);
        let outside = world.nodes[a].core.nat(world.moment()).1;
        assert_eq!(outside.len(), 1, "what peers see is no candidate: {outside:?}");
    }
}

#[test]
fn a_relay_that_is_dead_is_not_said_to_answer() {
    let (mut world, node, stranger) = world(Some(NatKind::PortRestricted));
    world.nodes[1].online = false;
    world.run(Duration::from_secs(2));
    let network = check(&mut world, node, &[stranger]);
    let answers = |n: usize| {
        let addr = world.nodes[n].host;
        let of = |observer: &&aerie_vpn_proto::Observer| observer.addr.0 == addr;
        network.observers.iter().find(of).unwrap().rtt.is_some()
    };
    assert!(answers(0) && !answers(1), "{:?}", network.observers);
    assert_eq!(network.mapping, Mapping::Unknown, "one does not show it");
}

#[test]
fn a_relay_far_away_is_waited_for() {
    let (mut world, node, stranger) = world(None);
    let far = world.nodes[1].host;
    world.delay(far, Duration::from_millis(500));
    let network = check(&mut world, node, &[stranger]);
    assert!(
        network.observers.iter().all(|observer| observer.rtt.is_some()),
        "{:?}",
        network.observers
    );
}

#[test]
fn checks_that_are_asked_for_at_once_are_one() {
    let (mut world, node, stranger) = world(Some(NatKind::FullCone));
    let peer = world.nodes[stranger].peer;
    world.wire.clear();
    for _ in 0..500 {
        let now = world.moment();
        world.nodes[node].core.check_network(vec![peer], now);
        world.run(Duration::from_millis(2));
    }
    let own = world.nodes[node].core.nat(world.moment()).1;
    let sent = world
        .wire
        .iter()
        .filter(|seen| own.iter().any(|own| own.0 == seen.from));
    assert!(sent.clone().count() < 20, "{}", sent.count());
}

#[test]
fn that_nobody_is_let_in_is_only_said_when_somebody_has_tried() {
    let (mut world, node, stranger) = world(Some(NatKind::PortRestricted));
    world.nodes[stranger].online = false;
    let network = check(&mut world, node, &[stranger]);
    assert_eq!(network.admits_strangers, Finding::Untried);
}

#[test]
fn without_members_to_ask_nothing_is_claimed() {
    let mut world = World::new(7);
    let node = world.behind(NatKind::FullCone);
    let network = check(&mut world, node, &[]);
    assert_eq!(network.mapping, Mapping::Unknown);
    assert_eq!(
        (network.admits_strangers, network.hairpin),
        (Finding::Untried, Finding::Untried)
    );
}

#[test]
fn a_member_that_was_asked_is_no_stranger() {
    let (mut world, node, _) = world(Some(NatKind::PortRestricted));
    // The relay was queried, so that its datagram comes in; that must not pass for an open door.
    let network = check(&mut world, node, &[0]);
    assert_eq!(network.admits_strangers, Finding::No);
}

#[test]
fn a_member_that_this_one_has_knocked_at_is_no_stranger_for_a_while() {
    let mut world = World::new(9);
    let (relay, other) = (world.relay(), world.relay());
    let (a, b) = (
        world.behind(NatKind::PortRestricted),
        world.behind(NatKind::FullCone),
    );
    world.announce_relays(&[relay, other]);
    // On its way to the other's outside the datagram opens the NAT that it leaves by.
    assert_eq!(check(&mut world, b, &[a]).admits_strangers, Finding::Yes);
    assert_eq!(check(&mut world, a, &[b]).admits_strangers, Finding::Untried);
    let c = world.behind(NatKind::FullCone);
    world.announce_relays(&[relay, other]);
    world.run(Duration::from_secs(5));
    assert_eq!(check(&mut world, a, &[b, c]).admits_strangers, Finding::No);
}

#[test]
fn a_member_sends_few_datagrams_to_addresses_that_others_name() {
    let (mut world, node, stranger) = world(None);
    let victim: UnderlayAddr = UnderlayAddr("203.0.113.99:53".parse().unwrap());
    let asked = 1000;
    // What a check sends: a version, a variant, an address and a number.
    world.nodes[node].events.clear();
    let now = world.moment();
    let strangers = vec![world.nodes[stranger].peer];
    world.nodes[node].core.check_network(strangers, now);
    world.run(Duration::from_millis(450));
    let knock = world.nodes[node].events.iter().find_map(|event| match event {
        aerie_vpn_proto::Event::Signal { bytes, .. } => Some(bytes.clone()),
        _ => None,
    });
    let own = world.nodes[node].host;
    let mut knock = knock.unwrap();
    let at = knock
        .windows(4)
        .position(|bytes| {
            bytes
                == [
                    192,
                    0,
                    2,
                    own.ip().to_string().rsplit('.').next().unwrap().parse().unwrap(),
                ]
        })
        .unwrap();
    knock[at..at + 4].copy_from_slice(&[203, 0, 113, 99]);
    let from = world.nodes[node].peer;
    for _ in 0..asked {
        world.signal(from, stranger, &knock);
    }
    world.run(Duration::from_secs(1));
    let sent = world
        .wire
        .iter()
        .filter(|seen| seen.to.ip() == victim.0.ip())
        .inspect(|seen| assert!(seen.bytes.len() <= knock.len() + 16, "{}", seen.bytes.len()))
        .count();
    assert!((1..=10).contains(&sent), "{sent}");
}

/// What two nodes that have just talked know of their way.
fn talked(a: NatKind, b: NatKind) -> (World, usize, usize) {
    let mut world = World::new(1);
    let (relay, other) = (world.relay(), world.relay());
    let (a, b) = (world.behind(a), world.behind(b));
    world.announce_relays(&[relay, other]);
    world.send(a, b, b"ping");
    world.run_until(SOON, |world| !world.nodes[b].delivered.is_empty());
    world.run(Duration::from_secs(8));
    (world, a, b)
}

fn path(world: &World, from: usize, to: usize) -> PathStatus {
    let peer = world.nodes[to].peer;
    world.nodes[from].core.path(peer, world.moment()).unwrap()
}

#[test]
fn a_way_is_told_with_its_reason() {
    use NatKind::{FullCone, PortRestricted, Symmetric};
    for (a, b, wanted) in [
        (PortRestricted, PortRestricted, Reason::Punched),
        (Symmetric, Symmetric, Reason::BothSymmetric),
        (Symmetric, PortRestricted, Reason::OwnSymmetric),
        (PortRestricted, Symmetric, Reason::PeerSymmetric),
        (FullCone, Symmetric, Reason::Unannounced),
    ] {
        let (world, a, b) = talked(a, b);
        let path = path(&world, a, b);
        assert_eq!(path.reason, wanted, "{path:?}");
        let selected: Vec<_> = path.pairs.iter().filter(|pair| pair.selected).collect();
        assert_eq!(selected.len(), 1);
        assert_eq!(selected[0], &path.pairs[0], "the way in use is the first");
        assert_eq!(selected[0].state, PairState::Alive);
        assert!(path.since.is_some() && !path.changes.is_empty(), "{path:?}");
        assert_eq!(path.changes.last().unwrap().path, path.peer.path);
        let relayed = matches!(path.peer.path, PathKind::Relayed { .. });
        assert_eq!(relayed, selected[0].kind == CandidateKind::Relayed);
        assert_eq!(relayed, path.next_offer.is_some(), "a better one is looked for");
    }
}

#[test]
fn each_pair_that_was_tried_is_listed_with_its_result() {
    let (world, a, b) = talked(NatKind::Symmetric, NatKind::Symmetric);
    let path = path(&world, a, b);
    let host = path
        .pairs
        .iter()
        .find(|pair| pair.kind == CandidateKind::Host)
        .unwrap();
    assert_eq!(host.addr.0, world.nodes[b].host);
    assert!(
        matches!(host.state, PairState::NoAnswer { probes } if probes >= 8),
        "{host:?}"
    );
    assert_eq!(path.peer_symmetric, Some(true));
    assert!(
        path.candidates
            .iter()
            .any(|candidate| candidate.addr.0 == world.nodes[a].host)
    );
}

#[test]
fn a_way_that_is_lost_stays_in_the_history() {
    let (mut world, a, b) = talked(NatKind::PortRestricted, NatKind::PortRestricted);
    let before = path(&world, a, b).peer.path;
    world.nodes[b].online = false;
    world.send(a, b, b"lost");
    world.run_until(SOON * 3, |world| world.path(a, b) == PathKind::None);
    let path = path(&world, a, b);
    assert_eq!(path.reason, Reason::NoAnswer);
    let paths: Vec<PathKind> = path.changes.iter().map(|change| change.path).collect();
    assert!(paths.contains(&before), "{paths:?}");
    assert_eq!(paths.last(), Some(&PathKind::None));
    assert!(path.changes.is_sorted_by(|one, next| one.ago >= next.ago));
    assert!(
        path.pairs
            .iter()
            .any(|pair| pair.answered.is_some() && pair.state != PairState::Alive),
        "{:?}",
        path.pairs
    );
}

#[test]
fn nothing_is_told_of_a_member_that_nothing_was_sent_to() {
    let (world, a, _) = talked(NatKind::FullCone, NatKind::FullCone);
    assert!(
        world.nodes[a]
            .core
            .path(PeerId([77; 32]), world.moment())
            .is_none()
    );
}
