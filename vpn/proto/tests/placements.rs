//! Pairs of members at thousands of random places: behind any NAT, behind two, behind the same, near and far, with and
//! without UDP, on lines that lose datagrams. Each finds the way that there is, in the time that is promised.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use aerie_types::WallMillis;
use aerie_vpn_proto::PathKind;
use common::{NatKind, World};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

const RUNS: u64 = 2000;
/// The first packet arrives, by a relay if need be, and a way that is possible is taken.
const FIRST_WITHIN: Duration = Duration::from_secs(2);
const DIRECT_WITHIN: Duration = Duration::from_secs(5);
/// On lines that lose datagrams the first packet may be one of them.
const LOSSY_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Public,
    Behind(NatKind),
    /// The inner one, and the provider's.
    Double(NatKind, NatKind),
    /// Behind the first member's NAT, which sends nothing back in.
    Shared,
    WithoutUdp,
}

/// What is possible between two places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Lan,
    Direct,
    Through,
}

const KINDS: [NatKind; 4] = [
    NatKind::FullCone,
    NatKind::AddressRestricted,
    NatKind::PortRestricted,
    NatKind::Symmetric,
];

impl Place {
    fn random(rng: &mut StdRng, first: bool) -> Self {
        let kind = |rng: &mut StdRng| *KINDS.choose(rng).unwrap();
        match rng.random_range(0..10) {
            0 => Self::Public,
            1 => Self::WithoutUdp,
            2 if !first => Self::Shared,
            3 | 4 => Self::Double(kind(rng), kind(rng)),
            _ => Self::Behind(kind(rng)),
        }
    }

    fn nats(self) -> Vec<NatKind> {
        match self {
            Self::Behind(kind) => vec![kind],
            Self::Double(inner, outer) => vec![inner, outer],
            Self::Public | Self::WithoutUdp | Self::Shared => Vec::new(),
        }
    }

    /// Whether each destination sees another port.
    fn is_symmetric(self) -> bool {
        self.nats().contains(&NatKind::Symmetric)
    }

    /// Whether only the very port is let in to which something was sent.
    fn is_strict(self) -> bool {
        let strict = [NatKind::PortRestricted, NatKind::Symmetric];
        self.nats().iter().any(|kind| strict.contains(kind))
    }
}

/// A hole can be punched if the mapping that one side shows to the other is the one that it showed to others before, or
/// if the other side admits a port that it never saw.
fn expected(a: Place, b: Place) -> Way {
    if a == Place::WithoutUdp || b == Place::WithoutUdp {
        return Way::Through;
    }
    if b == Place::Shared {
        return Way::Lan;
    }
    let one = |own: Place, other: Place| !own.is_symmetric() || !other.is_strict();
    if one(a, b) && one(b, a) {
        Way::Direct
    } else {
        Way::Through
    }
}

struct Run {
    world: World,
    nodes: [usize; 2],
    places: [Place; 2],
}

impl Run {
    fn new(seed: u64, lossy: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new(seed);
        let relays: Vec<_> = (0..rng.random_range(2..=3)).map(|_| world.relay()).collect();
        let first = Place::random(&mut rng, true);
        let mut second = Place::random(&mut rng, false);
        if second == Place::Shared && first.nats().is_empty() {
            second = Place::Public;
        }
        let a = place(&mut world, first, None);
        let b = place(&mut world, second, Some(a));
        let mut far: BTreeMap<SocketAddr, Duration> = BTreeMap::new();
        for relay in &relays {
            let host = world.nodes[*relay].host;
            far.insert(host, Duration::from_millis(rng.random_range(0..60)));
        }
        for (addr, more) in far {
            world.delay(addr, more);
        }
        world.announce_relays(&relays);
        // Long enough for a network without UDP to be known as one.
        world.run(Duration::from_secs(rng.random_range(0..20)));
        if [first, second].contains(&Place::WithoutUdp) {
            world.run(Duration::from_secs(20));
        }
        if lossy {
            let loss = rng.random_range(0.005..0.05);
            world.drop_if = Some(Box::new(move |_| rng.random::<f64>() < loss));
        }
        Self {
            world,
            nodes: [a, b],
            places: [first, second],
        }
    }

    fn is_as_expected(&self) -> bool {
        let [a, b] = self.nodes;
        let good = |path: PathKind| match expected(self.places[0], self.places[1]) {
            Way::Lan => matches!(path, PathKind::Lan(_)),
            Way::Direct => matches!(path, PathKind::Direct(_) | PathKind::Lan(_)),
            Way::Through => matches!(path, PathKind::Relayed { .. } | PathKind::Stream { .. }),
        };
        good(self.world.path(a, b)) && good(self.world.path(b, a))
    }
}

fn place(world: &mut World, place: Place, other: Option<usize>) -> usize {
    match place {
        Place::Public => world.public(),
        Place::WithoutUdp => {
            let node = world.behind(NatKind::PortRestricted);
            world.nodes[node].udp_blocked = true;
            node
        }
        Place::Behind(kind) => world.behind(kind),
        Place::Double(inner, outer) => {
            let outer = world.nat(outer);
            let inner = world.nat_behind(outer, inner);
            world.add(Some(inner), None, WallMillis(u64::MAX))
        }
        Place::Shared => {
            let nat = world.nodes[other.unwrap()].nat.unwrap();
            world.without_hairpin(nat);
            world.add(Some(nat), None, WallMillis(u64::MAX))
        }
    }
}

#[test]
fn every_pair_finds_the_way_that_there_is() {
    let mut late = Vec::new();
    for seed in 0..RUNS {
        let lossy = seed % 3 == 0;
        let mut run = Run::new(seed, lossy);
        let [a, b] = run.nodes;
        let begun = run.world.now;
        // Who speaks first, or whether both do at once.
        if seed % 5 != 0 {
            run.world.send(a, b, b"first");
        }
        if seed % 5 < 2 {
            run.world.send(b, a, b"first");
        }
        let heard = [a, b].map(|n| usize::from(n == b && seed % 5 != 0 || n == a && seed % 5 < 2));
        let has_first = |world: &World| {
            let got = |(n, least): (&usize, &usize)| world.nodes[*n].delivered.len() >= *least;
            [a, b].iter().zip(&heard).all(got)
        };
        if !lossy {
            let took = run.world.run_until(FIRST_WITHIN, has_first);
            assert!(
                has_first(&run.world),
                "seed {seed}: {:?}, after {took:?}",
                run.places
            );
        }
        let limit = if lossy { LOSSY_WITHIN } else { DIRECT_WITHIN };
        let both = |world: &World| [a, b].iter().all(|n| !world.nodes[*n].delivered.is_empty());
        while !run.is_as_expected() || !both(&run.world) {
            run.world.send(a, b, b"on");
            run.world.send(b, a, b"on");
            run.world.run(Duration::from_millis(50));
            assert!(
                run.world.now - begun < limit,
                "seed {seed}: {:?}: {:?} and {:?}",
                run.places,
                run.world.path(a, b),
                run.world.path(b, a)
            );
        }
        if run.world.now - begun > Duration::from_secs(1) {
            late.push(seed);
        }
    }
    // What took longer than a second was not found by the first round of probes.
    let share = 1.0 - late.len() as f64 / RUNS as f64;
    println!("{:.2}% at the first round", 100.0 * share);
    assert!(share >= 0.97, "{share}: {late:?}");
}
