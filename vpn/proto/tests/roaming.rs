//! A node whose network changes under it, whether its host notices or not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::Duration;

use aerie_vpn_proto::PathKind;
use common::{NatKind, World};

const SOON: Duration = Duration::from_secs(10);
/// What is promised where the host notices, and where it does not.
const NOTICED: Duration = Duration::from_secs(2);
const SILENT: Duration = Duration::from_secs(15);

/// Two relays, and two nodes behind NATs of one kind that have talked for a while.
fn talking(kind: NatKind) -> (World, usize, usize) {
    let mut world = World::new(23);
    let relays = [world.relay(), world.relay()];
    let (a, b) = (world.behind(kind), world.behind(kind));
    world.announce_relays(&relays);
    world.send(a, b, b"ping");
    world.run_until(SOON, |world| !world.nodes[b].delivered.is_empty());
    world.echo(50, a, b, Duration::from_secs(20));
    (world, a, b)
}

fn is_direct(world: &World, a: usize, b: usize) -> bool {
    matches!(world.path(a, b), PathKind::Direct(_))
}

#[test]
fn a_direct_path_follows_a_node_to_another_network() {
    let (mut world, a, b) = talking(NatKind::PortRestricted);
    assert!(is_direct(&world, a, b));
    let sessions = world.nodes[a].core.counters().handshakes;
    let nat = world.nat(NatKind::PortRestricted);
    world.roam(a, nat);
    let outage = world.echo(50, a, b, Duration::from_secs(10));
    assert!(outage < NOTICED, "{outage:?}");
    assert!(is_direct(&world, a, b) && is_direct(&world, b, a));
    assert_eq!(
        world.nodes[a].core.counters().handshakes,
        sessions,
        "the session is the same"
    );
}

#[test]
fn a_relayed_path_follows_a_node_to_another_network() {
    let (mut world, a, b) = talking(NatKind::Symmetric);
    assert!(!is_direct(&world, a, b));
    for side in [a, b] {
        let nat = world.nat(NatKind::Symmetric);
        world.roam(side, nat);
        let outage = world.echo(50, a, b, Duration::from_secs(20));
        assert!(outage < NOTICED, "{side}: {outage:?}");
    }
}

#[test]
fn a_router_that_is_renumbered_silently_costs_a_few_seconds() {
    for kind in [NatKind::PortRestricted, NatKind::Symmetric] {
        let (mut world, a, b) = talking(kind);
        for side in [a, b] {
            let nat = world.nodes[side].nat.unwrap();
            world.renumber(nat);
            let outage = world.echo(50, a, b, Duration::from_secs(40));
            assert!(outage < SILENT, "{kind:?}, {side}: {outage:?}");
        }
        assert_eq!(is_direct(&world, a, b), kind == NatKind::PortRestricted);
    }
}

#[test]
fn a_node_that_comes_to_where_udp_does_not_pass_goes_on_over_tls() {
    let (mut world, a, b) = talking(NatKind::PortRestricted);
    let nat = world.nat(NatKind::PortRestricted);
    world.nodes[a].udp_blocked = true;
    world.roam(a, nat);
    let outage = world.echo(50, a, b, Duration::from_secs(20));
    assert!(outage < Duration::from_secs(5), "{outage:?}");
}

/// The overlay's connections break with the same change, and come back when their ends notice.
#[test]
fn a_path_follows_without_the_overlay() {
    for kind in [NatKind::PortRestricted, NatKind::Symmetric] {
        let (mut world, a, b) = talking(kind);
        for side in [a, b] {
            world.overlay_up = false;
            let nat = world.nat(kind);
            world.roam(side, nat);
            let outage = world.echo(50, a, b, Duration::from_secs(10));
            assert!(outage < Duration::from_secs(1), "{kind:?}, {side}: {outage:?}");
            world.overlay_up = true;
            world.echo(50, a, b, Duration::from_secs(40));
        }
    }
}
