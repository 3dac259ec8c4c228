//! What a tunnel takes of memory. A binary of its own: it counts every allocation.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::alloc::System;
use std::time::Duration;

use common::World;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const TUNNELS: usize = 200;
const PROMISED: usize = 64 << 10;

/// What is in use, without what the world itself has recorded.
fn in_use(world: &mut World) -> usize {
    world.wire = Vec::new();
    for node in &mut world.nodes {
        node.events = Vec::new();
        node.delivered = Vec::new();
    }
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Both ends of each tunnel, with its keys, its way and what is known of it; not the batches, of which a node has one
/// however many tunnels it has.
#[test]
fn a_tunnel_takes_less_than_64_kib_at_its_two_ends() {
    let mut world = World::new(1);
    let (hub, other) = (world.public(), world.public());
    let members: Vec<_> = (0..TUNNELS).map(|_| world.public()).collect();
    let connect = |world: &mut World, to: usize| {
        for member in &members {
            world.send(*member, to, b"hello");
            world.run(Duration::from_millis(50));
        }
        world.run(Duration::from_secs(2));
        assert_eq!(world.nodes[to].delivered.len(), TUNNELS);
        in_use(world)
    };
    let before = connect(&mut world, other);
    let after = connect(&mut world, hub);
    let each = (after - before) / TUNNELS;
    eprintln!("{each} bytes for each of {TUNNELS} tunnels");
    assert!((1000..PROMISED).contains(&each), "{each} bytes");
}
