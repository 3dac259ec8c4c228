//! Grids that route by the overlay's messages: what a node does not hear it does not know.

#![allow(clippy::expect_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;
use std::time::Duration;

use aerie_sim::{Conditions, Cut, Routing, Told, World, peer};

const SECOND: Duration = Duration::from_secs(1);

fn grid(nodes: usize, conditions: Conditions) -> World {
    let range = "10.0.0.0/16".parse().expect("a range");
    let mut world = World::new(1, range, conditions).with_routing(Routing::Kademlia);
    for _ in 0..nodes {
        let index = world.add();
        world.start(index);
        world.run(SECOND / 20);
    }
    world.run(SECOND * 30);
    world
}

fn others(world: &World, index: usize) -> BTreeSet<usize> {
    let others = (0..world.nodes.len()).filter(|other| *other != index && world.nodes[*other].is_up());
    others.collect()
}

/// The nodes nearest to one of them.
fn nearest(nodes: usize, to: usize, count: usize) -> Vec<usize> {
    let here = peer(to).position();
    let mut others: Vec<_> = (0..nodes).filter(|other| *other != to).collect();
    others.sort_by_cached_key(|other| peer(*other).position().distance(&here));
    others.truncate(count);
    others
}

fn is_meshed(world: &World) -> bool {
    let up = world.nodes.iter().filter(|node| node.is_up());
    up.map(|node| node.index)
        .all(|index| *world.connected(index) == others(world, index))
}

#[test]
fn a_small_grid_connects_everybody_though_segments_are_lost() {
    for loss in [0.0, 0.2] {
        let conditions = Conditions {
            loss,
            ..Conditions::default()
        };
        assert!(is_meshed(&grid(25, conditions)), "with a loss of {loss}");
    }
}

#[test]
fn both_ends_of_a_connection_have_it_though_messages_overtake_each_other() {
    let conditions = Conditions {
        loss: 0.1,
        delay: (SECOND / 500, SECOND / 2),
        ..Conditions::default()
    };
    let mut world = grid(25, conditions);
    assert_eq!(world.one_sided(), None);
    world.kill(5, false);
    world.run(SECOND * 30);
    world.start(5);
    world.run(SECOND * 30);
    assert_eq!(world.one_sided(), None);
}

#[test]
fn that_a_process_died_is_noticed_when_its_connection_closes_and_not_before() {
    let conditions = Conditions {
        detection: SECOND * 10,
        ..Conditions::default()
    };
    let mut world = grid(12, conditions);
    world.kill(5, false);
    let know = |world: &World| (0..12).filter(|at| world.connected(*at).contains(&5)).count();
    assert_eq!(know(&world), 11);
    world.run(SECOND * 3);
    assert!((1..11).contains(&know(&world)), "{} know it", know(&world));
    world.run(SECOND * 9);
    assert_eq!(know(&world), 0);
}

#[test]
fn a_cut_in_one_direction_breaks_connections_and_the_healed_grid_connects_again() {
    for cut in [Cut::Both, Cut::Upward] {
        let conditions = Conditions {
            detection: SECOND * 2,
            ..Conditions::default()
        };
        let mut world = grid(16, conditions);
        world.tear(cut, |index| index % 2);
        world.run(SECOND * 5);
        let crosses =
            |world: &World| (0..16).any(|at| world.connected(at).iter().any(|to| (at + to) % 2 == 1));
        assert!(!crosses(&world), "{cut:?}");
        world.partition(|_| 0);
        let end = world.now() + SECOND * 60;
        assert!(world.run_until(end, is_meshed), "{cut:?}");
    }
}

#[test]
fn after_a_long_tear_a_small_grid_is_one_again_within_seconds() {
    let conditions = Conditions {
        detection: SECOND * 2,
        ..Conditions::default()
    };
    let mut world = grid(24, conditions);
    world.partition(|index| index % 2);
    // By then they dial each other every few minutes.
    world.run(SECOND * 1800);
    world.partition(|_| 0);
    let end = world.now() + SECOND * 20;
    assert!(world.run_until(end, is_meshed));
}

#[test]
fn the_neighbours_in_a_healed_grid_beyond_the_limit_are_connected_within_seconds() {
    let nodes = 150;
    let mut world = grid(
        nodes,
        Conditions {
            detection: SECOND * 2,
            ..Conditions::default()
        },
    );
    world.partition(|index| index % 2);
    // Long enough for both halves to fill the room that the others left.
    world.run(SECOND * 45);
    let pairs: Vec<_> = (0..nodes)
        .flat_map(|at| nearest(nodes, at, 20).into_iter().map(move |near| (at, near)))
        .collect();
    let missing = |world: &World| {
        let missing = pairs
            .iter()
            .filter(|(at, near)| !world.connected(*at).contains(near));
        missing.count()
    };
    let across = pairs.iter().filter(|(at, near)| (at + near) % 2 == 1).count();
    assert_eq!(missing(&world), across, "of {} pairs", pairs.len());
    world.partition(|_| 0);
    let end = world.now() + SECOND * 15;
    world.run_until(end, |world| missing(world) * 50 < across);
    let missing = missing(&world);
    assert!(
        missing * 50 < across,
        "{missing} of {across} pairs of neighbours are not connected"
    );
}

#[test]
fn a_tear_shorter_than_its_notice_breaks_nothing() {
    let conditions = Conditions {
        detection: SECOND * 3600,
        ..Conditions::default()
    };
    let mut world = grid(10, conditions);
    world.partition(|index| index % 2);
    world.run(SECOND);
    world.partition(|_| 0);
    let dials = world.tally.dials;
    world.run(SECOND * 7200);
    assert!(is_meshed(&world));
    assert!(
        world.tally.dials - dials < 90,
        "{} dials",
        world.tally.dials - dials
    );
}

#[test]
fn a_restarted_node_finds_the_grid_by_those_that_it_remembers_where_its_bootstrap_members_are_gone() {
    let mut world = grid(12, Conditions::default());
    world.run(SECOND * 60);
    // The second node has nobody but the first to begin at.
    world.kill(1, false);
    world.kill(0, true);
    world.run(SECOND * 5);
    world.start(1);
    world.run(SECOND * 30);
    assert_eq!(*world.connected(1), others(&world, 1));
}

#[test]
fn in_a_quiet_grid_beyond_the_limit_nobody_dials() {
    let mut world = grid(110, Conditions::default());
    world.run(SECOND * 300);
    let before = world.tally.dials;
    world.run(SECOND * 120);
    let dials = world.tally.dials - before;
    assert!(dials < 110, "{dials} dials of 110 nodes in two minutes");
    // The first three are relays, which drop nobody.
    let most = (3..110).map(|at| world.connected(at).len()).max();
    assert!(most <= Some(72 + 20), "one node has {most:?} connections");
}

#[test]
fn an_address_is_claimed_and_found_in_a_grid_beyond_the_limit() {
    let mut world = grid(90, Conditions::default());
    world.acquire(7, None);
    let end = world.now() + SECOND * 20;
    assert!(world.run_until(end, |world| matches!(world.nodes[7].told, Told::Held(_))));
    let lease = world.nodes[7].lease().expect("a lease");
    let key = lease.leased.key(World::grid());
    for asker in [1, 33, 80] {
        let id = world.look_up(asker, key).expect("a running node");
        let end = world.now() + SECOND * 10;
        assert!(world.run_until(end, |world| world.found.contains_key(&(asker, id))));
        let found = world.found[&(asker, id)].as_ref().expect("the holder");
        assert_eq!(found.leased, lease.leased);
    }
    assert!(world.tally.finds > 0);
}

#[test]
fn gossip_reaches_everybody_over_connections_alone() {
    let mut world = grid(80, Conditions::default());
    let far = others(&world, 3);
    assert!(
        far.len() > world.connected(3).len(),
        "everybody is connected to node 3"
    );
    for index in 0..80 {
        world.with(index, |core, now| core.watch("things", now));
    }
    world.acquire(3, None);
    world.run(SECOND * 10);
    world.with(3, |core, now| {
        core.publish("things", b"x".to_vec(), now).expect("a set for all");
    });
    world.run(SECOND * 5);
    let count = |world: &mut World, index: usize| {
        let mut entries = 0;
        world.with(index, |core, now| entries = core.set("things", now).len());
        entries
    };
    let heard = (0..80).filter(|index| count(&mut world, *index) > 0).count();
    assert!(heard > 70, "{heard} of 80 have heard");
}

#[test]
#[should_panic(expected = "copies need the oracle")]
fn copies_of_a_node_need_the_oracle() {
    let mut world = grid(3, Conditions::default());
    world.add_copy(1);
}

#[test]
#[should_panic(expected = "a wrong view needs the oracle")]
fn wrong_views_need_the_oracle() {
    let mut world = grid(3, Conditions::default());
    world.shun(1, BTreeSet::from([2]));
}
