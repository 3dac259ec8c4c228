//! Leases of prefixes at a witness with real keys: what is none is refused, what is held is kept, and nobody collects.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use aerie_dht_proto::limits::{MAX_LEASES_PER_HOLDER, MAX_PREFIX_KEYS_PER_HOLDER};
use aerie_dht_proto::{Leased, Terms, addr_key, name_key, prefix_key, router_key};
use aerie_types::{VirtualAddr, VirtualPrefix, WallMillis};

mod common;

use common::wire::{Answer, Refusal, Request};
use common::{HOLDER, LIAR, LONG, OTHERS, World, pool, unmoved};

#[test]
fn a_prefix_that_is_no_block_of_the_grid_and_an_address_in_one_are_refused_by_their_names() {
    let mut world = World::new();
    let block = pool().block(0).unwrap();
    let longer: VirtualPrefix = "10.77.7.192/30".parse().unwrap();
    let shorter: VirtualPrefix = "10.77.7.192/28".parse().unwrap();
    let beside: VirtualPrefix = "10.77.0.0/29".parse().unwrap();
    let strange = [longer, shorter, beside].map(Leased::from);
    let inside = Leased::from(VirtualAddr::from(block.first()));
    for leased in strange.into_iter().chain([inside]) {
        for terms in [world.terms(LIAR, leased), world.name_terms(LIAR, leased)] {
            let answer = world.claim(LIAR, &terms, 1, None);
            assert_eq!(answer, Answer::Refused(Refusal::OutOfRange { leased }));
        }
    }
    let answer = world.claim(LIAR, &world.terms(LIAR, block), 1, None);
    assert!(matches!(answer, Answer::Granted { .. }), "{answer:?}");
}

/// The witnesses of a name count addresses, those of a router prefixes: neither key is leased with the other's.
#[test]
fn an_address_under_a_routers_key_and_a_prefix_under_a_names_are_malformed() {
    let (mut world, lease) = World::with_lease();
    let block = pool().block(0).unwrap();
    let (addr, name) = (world.addr(9), world.members[LIAR].name.clone());
    let grid = world.grid();
    let crossed = [
        (Leased::from(addr), router_key(grid, &name)),
        (Leased::from(addr), prefix_key(grid, block)),
        (Leased::from(block), name_key(grid, &name)),
        (Leased::from(block), addr_key(grid, addr)),
    ];
    unmoved(&mut world, &lease, |world| {
        let counted = world.stats().malformed;
        for (leased, key) in crossed {
            let terms = Terms {
                key,
                ..world.terms(LIAR, leased)
            };
            assert_eq!(world.claim(LIAR, &terms, 1, None), Answer::Malformed);
        }
        assert_eq!(world.stats().malformed, counted + 4);
    });
}

#[test]
fn a_held_prefix_is_not_given_to_another_and_its_long_lease_takes_the_routers_certificate() {
    let (mut world, lease) = World::with_lease();
    let [block, other] = [0, 1].map(|index| Leased::from(pool().block(index).unwrap()));
    let terms = world.terms(HOLDER, block);
    let right = world.certify(&terms, &OTHERS, |_| {});
    let since = Terms {
        since: Some(right.since()),
        ..terms.clone()
    };
    // The certificate of the name, with an address; that of another router; that with another prefix.
    let homes = [
        None,
        Some(world.home(HOLDER, &lease.terms)),
        Some(world.home(LIAR, &terms)),
        Some(world.home(HOLDER, &world.terms(HOLDER, other))),
        Some(world.proof(&right)),
    ];
    unmoved(&mut world, &lease, |world| {
        for home in homes {
            let mut claim = world.claim_of(HOLDER, &since, 1, Some(world.proof(&right)));
            claim.home = home;
            let answer = world.ask(HOLDER, &Request::Claim(claim));
            assert_eq!(answer, Answer::Refused(Refusal::BadProof));
        }
        let answer = world.claim(HOLDER, &since, 2, Some(world.proof(&right)));
        assert!(
            matches!(&answer, Answer::Granted { receipt, .. } if receipt.ttl_ms == LONG),
            "{answer:?}"
        );
    });
    let older = Terms {
        since: Some(WallMillis(1)),
        ..world.terms(LIAR, block)
    };
    let forged = world.certify(&older, &OTHERS[..2], |_| {});
    unmoved(&mut world, &right, |world| {
        assert_eq!(world.hand_over(LIAR, &forged, LONG), Answer::Done);
        world.claim(LIAR, &older, 1, Some(world.proof(&forged)));
    });
}

#[test]
fn a_router_is_leased_with_no_more_than_a_few_prefixes_beside_as_many_addresses() {
    let mut world = World::new();
    let blocks = [0, 1, 2, 3, 4].map(|index| Leased::from(pool().block(index).unwrap()));
    let addrs = [0, 1, 2, 3, 4].map(|index| Leased::from(world.addr(index)));
    for (kind, several) in [("prefixes", blocks), ("addresses", addrs)] {
        let mut refused = Vec::new();
        for (seq, leased) in (1..).zip(several) {
            let terms = world.name_terms(LIAR, leased);
            let right = world.certify(&terms, &OTHERS, |_| {});
            let since = Terms {
                since: Some(right.since()),
                ..terms
            };
            match world.claim(LIAR, &since, seq, Some(world.proof(&right))) {
                Answer::Granted { .. } => {}
                Answer::Refused(Refusal::Moved { .. }) => refused.push(leased),
                other => panic!("{kind}: {other:?}"),
            }
        }
        assert_eq!(refused, [several[MAX_LEASES_PER_HOLDER]], "{kind}");
    }
    assert_eq!(world.stats().over_quota, 2);
}

#[test]
fn one_member_is_granted_few_of_the_prefixes_however_often_it_claims() {
    let mut world = World::new();
    for index in 0..pool().blocks() {
        let terms = world.terms(LIAR, pool().block(index).unwrap());
        let answer = world.claim(LIAR, &terms, u64::from(index), None);
        if (index as usize) < MAX_PREFIX_KEYS_PER_HOLDER {
            assert!(matches!(answer, Answer::Granted { .. }), "{answer:?}");
        } else {
            assert_eq!(answer, Answer::Refused(Refusal::Busy));
        }
    }
    let addr = world.terms(LIAR, world.addr(7));
    let answer = world.claim(LIAR, &addr, 100, None);
    assert!(matches!(answer, Answer::Granted { .. }), "{answer:?}");
    let last = pool().block(pool().blocks() - 1).unwrap();
    let answer = world.claim(HOLDER, &world.terms(HOLDER, last), 1, None);
    assert!(matches!(answer, Answer::Granted { .. }), "{answer:?}");
}
