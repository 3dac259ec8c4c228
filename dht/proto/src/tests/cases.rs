//! What the register promises, each as one test.

use std::collections::BTreeMap;
use std::time::Duration;

use aerie_types::{GridId, Instance, VirtualAddr, WallMillis};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::receipt::ReceiptBody;
use crate::wire::{decode, encode};

fn claim(who: u8, instance: u64, previous: &[u64], addr: VirtualAddr) -> Request {
    Request::Claim(ClaimReq {
        holder: peer(who),
        name: name(who),
        addr,
        instance: Instance(instance),
        previous: previous.iter().map(|n| Instance(*n)).collect(),
        round: 1,
        ttl_ms: 10_000,
        keys: vec![addr_key(&GRID, addr)],
        credential: peer(who).0.to_vec(),
    })
}

fn witness() -> World {
    let mut world = World::new();
    world.start(1, 1, MemStore::default());
    world
}

fn asked(world: &mut World, who: u8, request: &Request) -> Answer {
    decode(&world.ask(1, peer(who), encode(request).unwrap())).unwrap()
}

fn some_addr() -> VirtualAddr {
    "10.9.0.7".parse::<std::net::Ipv4Addr>().unwrap().into()
}

fn certificate(witnesses: &[u8], members: u16, holder: u8, at: WallMillis) -> Certificate {
    let receipts = witnesses.iter().map(|witness| {
        let body = ReceiptBody {
            grid: GRID,
            key: addr_key(&GRID, some_addr()),
            holder: peer(holder),
            name: name(holder),
            addr: some_addr(),
            instance: Instance(1),
            number: 1,
            witness: peer(*witness),
            witness_time: at,
            ttl_ms: 1_800_000,
            members_known: members,
        };
        Receipt::sign(body, &TestKeys(peer(*witness))).unwrap()
    });
    Certificate {
        receipts: receipts.collect(),
    }
}

#[test]
fn a_witness_refuses_a_second_holder() {
    let mut world = witness();
    assert!(matches!(
        asked(&mut world, 2, &claim(2, 5, &[], some_addr())),
        Answer::Receipts(_)
    ));
    let answer = asked(&mut world, 3, &claim(3, 6, &[], some_addr()));
    let Answer::Refused(Refusal::Held { holder, .. }) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(holder, peer(2));
}

#[test]
fn an_expired_grant_frees_the_key() {
    let mut world = witness();
    asked(&mut world, 2, &claim(2, 5, &[], some_addr()));
    world.run(Duration::from_secs(11));
    assert!(matches!(
        asked(&mut world, 3, &claim(3, 6, &[], some_addr())),
        Answer::Receipts(_)
    ));
}

#[test]
fn a_claim_in_another_members_name_is_refused() {
    let mut world = witness();
    let answer = asked(&mut world, 3, &claim(2, 5, &[], some_addr()));
    assert_eq!(answer, Answer::Refused(Refusal::NotYours));
}

#[test]
fn a_late_release_does_not_undo_a_newer_claim() {
    let mut world = witness();
    let Request::Claim(mut newer) = claim(2, 5, &[], some_addr()) else {
        unreachable!()
    };
    newer.round = 7;
    asked(&mut world, 2, &Request::Claim(newer));
    let release = Request::Release {
        keys: vec![addr_key(&GRID, some_addr())],
        instance: Instance(5),
        round: 6,
    };
    asked(&mut world, 2, &release);
    assert!(matches!(
        asked(&mut world, 3, &claim(3, 6, &[], some_addr())),
        Answer::Refused(_)
    ));
}

#[test]
fn a_grant_that_cannot_be_stored_is_not_given() {
    let mut world = World::new();
    world.start(
        1,
        1,
        MemStore {
            broken: true,
            ..MemStore::default()
        },
    );
    let answer = asked(&mut world, 2, &claim(2, 5, &[], some_addr()));
    assert_eq!(answer, Answer::Refused(Refusal::StoreFailed));
}

#[test]
fn a_superseded_start_is_told_that_it_is_a_clone() {
    let mut world = witness();
    asked(&mut world, 2, &claim(2, 5, &[], some_addr()));
    assert!(matches!(
        asked(&mut world, 2, &claim(2, 6, &[5], some_addr())),
        Answer::Receipts(_)
    ));
    for (instance, previous) in [(5, vec![]), (7, vec![5])] {
        let answer = asked(&mut world, 2, &claim(2, instance, &previous, some_addr()));
        assert_eq!(answer, Answer::Refused(Refusal::Cloned));
    }
}

#[test]
fn a_certificate_below_the_quorum_is_not_valid() {
    let wall = WallMillis(1_900_000_000_000);
    let keys = TestKeys(peer(1));
    let valid = |certificate: &Certificate| certificate.check(&GRID, &keys, wall).is_ok();
    assert!(valid(&certificate(&[1, 2, 3], 5, 4, wall)));
    assert!(!valid(&certificate(&[1, 2], 5, 4, wall)));
    assert!(!valid(&certificate(&[1, 2, 2], 5, 4, wall)));
    assert!(!valid(&certificate(&[1, 2, 3, 4, 5, 6], 200, 4, wall)));
    assert!(valid(&certificate(&[1, 2, 3, 4, 5, 6, 7], 200, 4, wall)));
    assert!(!valid(&Certificate { receipts: Vec::new() }));
}

#[test]
fn a_forged_or_expired_certificate_is_not_valid() {
    let wall = WallMillis(1_900_000_000_000);
    let keys = TestKeys(peer(1));
    let good = certificate(&[1, 2, 3], 5, 4, wall);
    let mut forged = good.clone();
    forged.receipts[1].signature[0] ^= 1;
    assert!(forged.check(&GRID, &keys, wall).is_err());
    let mut changed = good.clone();
    changed.receipts[0].body.ttl_ms += 1;
    assert!(changed.check(&GRID, &keys, wall).is_err());
    assert!(good.check(&GRID, &keys, wall.plus(LEASE_TTL)).is_err());
    assert!(good.check(&GridId([2; 16]), &keys, wall).is_err());
}

#[test]
fn the_founder_alone_holds_an_address_at_once() {
    let mut world = witness();
    world.acquire(1);
    assert!(world.addr(1).is_some());
}

#[test]
fn every_member_gets_an_address_of_its_own_and_is_found_by_it() {
    for size in [2, 5, 12] {
        let mut world = World::grid(size);
        for label in 1..=size {
            world.acquire(label);
        }
        world.run(Duration::from_secs(60));
        let addrs: std::collections::BTreeSet<_> =
            (1..=size).map(|label| world.addr(label).unwrap()).collect();
        assert_eq!(addrs.len(), usize::from(size));
        let time = world.time();
        for label in 1..=size {
            let addr = world.addr(label).unwrap();
            let asker = world.nodes.get_mut(&(label % size + 1)).unwrap();
            let by_addr = asker.look_up_addr(addr, time);
            let by_name = asker.look_up_name(&name(label), time);
            world.settle();
            for id in [by_addr, by_name] {
                let found = world.found[&(label % size + 1, id)].as_ref().unwrap();
                assert_eq!((found.holder, found.addr), (peer(label), addr));
            }
        }
    }
}

#[test]
fn a_full_range_is_reported() {
    let mut world = World::new();
    world.range = "10.9.0.0/29";
    for label in 1..=7 {
        world.start(label, label, MemStore::default());
    }
    world.run(Duration::from_secs(3));
    for label in 1..=7 {
        world.acquire(label);
        world.run(Duration::from_secs(5));
    }
    assert_eq!((1..=7).filter(|label| world.addr(*label).is_some()).count(), 6);
    let LeaseState::Failed { reason } = world.nodes[&7].lease() else {
        panic!()
    };
    assert!(reason.contains("larger range"), "{reason}");
}

#[test]
fn without_a_quorum_a_claim_waits_and_a_lease_is_kept() {
    let mut world = World::grid(5);
    world.acquire(1);
    world.run(Duration::from_secs(5));
    let addr = world.addr(1);
    assert!(addr.is_some());
    for label in 3..=5 {
        world.stop(label);
    }
    world.acquire(2);
    world.run(Duration::from_secs(3600));
    assert_eq!(world.addr(1), addr);
    let LeaseState::Waiting { reason } = world.nodes[&2].lease() else {
        panic!()
    };
    assert!(reason.contains("2 of 3 witnesses"), "{reason}");
}

#[test]
fn a_restart_with_the_same_store_renews_at_once() {
    let mut world = World::grid(4);
    for round in 0..3 {
        world.acquire(3);
        world.run(Duration::from_secs(if round == 0 { 400 } else { 5 }));
        let addr = world.addr(3);
        assert!(addr.is_some(), "{:?}", world.nodes[&3].lease());
        let store = world.stop(3);
        assert_eq!(store.own.as_ref().and_then(|own| own.addr), addr);
        world.start(3, 3, store);
    }
}

#[test]
fn a_clone_never_gives_two_holders() {
    let mut world = World::grid(5);
    world.acquire(3);
    world.run(Duration::from_secs(10));
    assert!(world.addr(3).is_some());
    let copy = MemStore {
        leases: BTreeMap::new(),
        members: world.nodes.get(&3).map(|_| Vec::new()),
        own: Some(OwnState {
            addr: world.addr(3),
            instances: vec![claimant_instance(&world, 3)],
        }),
        broken: false,
    };
    world.start(33, 3, copy);
    world.acquire(33);
    // The original notices at its next renewal at the latest.
    world.run(Duration::from_secs(330));
    assert!(world.addr(33).is_some(), "{:?}", world.nodes[&33].lease());
    let LeaseState::Lost { reason } = world.nodes[&3].lease() else {
        panic!("{:?}", world.nodes[&3].lease())
    };
    assert!(reason.contains("enrol this node anew"), "{reason}");
    world.run(Duration::from_secs(7200));
    assert!(world.addr(33).is_some() && world.addr(3).is_none());
}

fn claimant_instance(world: &World, label: u8) -> Instance {
    world.nodes[&label].certificates()[0].first().unwrap().instance
}

#[test]
fn a_released_address_is_free_at_once() {
    let mut world = World::grid(4);
    world.fixed = Some(some_addr());
    world.start(5, 5, MemStore::default());
    world.start(6, 6, MemStore::default());
    world.run(Duration::from_secs(3));
    world.acquire(5);
    world.run(Duration::from_secs(5));
    assert_eq!(world.addr(5), Some(some_addr()));
    world.acquire(6);
    let LeaseState::Failed { reason } = world.nodes[&6].lease() else {
        panic!()
    };
    assert!(reason.contains("held by node n5"), "{reason}");
    let time = world.time();
    world.nodes.get_mut(&5).unwrap().release_all(time);
    world.run(Duration::from_secs(60));
    assert_eq!(world.addr(6), Some(some_addr()));
}

#[test]
fn the_younger_of_two_conflicting_leases_gives_way() {
    let mut world = World::grid(3);
    world.fixed = Some(some_addr());
    world.start(4, 4, MemStore::default());
    world.run(Duration::from_secs(3));
    world.acquire(4);
    assert!(world.addr(4).is_some());
    let older = certificate(&[1, 2, 3], 4, 9, WallMillis(world.wall.0 - 60_000));
    let hand_over = encode(&Request::HandOver {
        certificates: vec![older],
    })
    .unwrap();
    world.ask(2, peer(3), hand_over);
    world.settle();
    assert!(
        matches!(world.nodes[&4].lease(), LeaseState::Lost { .. }),
        "{:?}",
        world.nodes[&4].lease()
    );
}

#[test]
fn a_set_entry_is_seen_by_all_until_it_is_withdrawn() {
    let mut world = World::grid(4);
    let time = world.time();
    world
        .nodes
        .get_mut(&1)
        .unwrap()
        .publish_set("managers", b"here".to_vec(), time)
        .unwrap();
    assert!(
        world
            .nodes
            .get_mut(&2)
            .unwrap()
            .publish_set("managers", b"me too".to_vec(), time)
            .is_err()
    );
    world.run(Duration::from_secs(300));
    world.start(5, 5, MemStore::default());
    for label in 1..=5 {
        let seen = world.nodes[&label].set("managers");
        assert_eq!(seen.len(), 1, "node {label}");
        assert_eq!(
            (seen[0].publisher, seen[0].value.as_slice()),
            (peer(1), &b"here"[..])
        );
    }
    let time = world.time();
    world
        .nodes
        .get_mut(&1)
        .unwrap()
        .withdraw_set("managers", time)
        .unwrap();
    world.settle();
    assert!((1..=5).all(|label| world.nodes[&label].set("managers").is_empty()));
}

#[test]
fn a_set_entry_runs_out_when_its_publisher_is_gone() {
    let mut world = World::grid(3);
    let time = world.time();
    world
        .nodes
        .get_mut(&1)
        .unwrap()
        .publish_set("managers", Vec::new(), time)
        .unwrap();
    world.settle();
    world.stop(1);
    world.run(Duration::from_secs(30));
    assert_eq!(world.nodes[&2].set("managers").len(), 1);
    world.run(Duration::from_secs(600));
    assert!(world.nodes[&2].set("managers").is_empty() && world.nodes[&3].set("managers").is_empty());
}

#[test]
fn arbitrary_bytes_never_panic() {
    let mut world = World::grid(2);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let good = [
        encode(&claim(2, 5, &[4], some_addr())).unwrap(),
        encode(&Request::HandOver {
            certificates: vec![certificate(&[1, 2], 2, 2, world.wall)],
        })
        .unwrap(),
        encode(&Request::Sync { after: None }).unwrap(),
    ];
    for round in 0..3000_usize {
        let mut bytes = good[round % good.len()].clone();
        if round % 2 == 0 {
            bytes = vec![0; usize::try_from(rng.next_u32() % 200).unwrap()];
            rng.fill_bytes(&mut bytes);
            if let Some(version) = bytes.first_mut() {
                *version = 1;
            }
        } else {
            let index = usize::try_from(rng.next_u32()).unwrap() % bytes.len();
            bytes[index] = rng.next_u32().to_le_bytes()[0];
        }
        world.ask(1, peer(2), bytes.clone());
        world.input(
            1,
            Input::Gossip {
                from: peer(2),
                bytes: bytes.clone(),
            },
        );
        world.input(
            1,
            Input::Reply {
                id: u64::from(rng.next_u32() % 50),
                result: Ok(bytes),
            },
        );
        world.settle();
    }
    assert!(world.nodes[&1].counters().malformed > 0);
}

#[test]
fn readers_ignore_a_workers_entry_among_the_managers() {
    let mut world = World::grid(3);
    let sign = |who: u8| {
        let entry = SetEntry {
            set: "managers".to_owned(),
            publisher: peer(who),
            value: b"trust me".to_vec(),
            seq: world.wall.0,
            ttl_ms: 60_000,
            withdrawn: false,
            credential: Vec::new(),
            signature: Vec::new(),
        };
        encode(&Request::Publish(
            entry.sign(&GRID, &TestKeys(peer(who))).unwrap(),
        ))
        .unwrap()
    };
    let (of_worker, of_manager) = (sign(2), sign(1));
    world.input(
        3,
        Input::Gossip {
            from: peer(2),
            bytes: of_worker.clone(),
        },
    );
    world.ask(3, peer(2), of_worker);
    assert!(world.nodes[&3].set("managers").is_empty());
    assert_eq!(world.nodes[&3].counters().bad_entries, 2);
    world.input(
        3,
        Input::Gossip {
            from: peer(2),
            bytes: of_manager,
        },
    );
    assert_eq!(world.nodes[&3].set("managers").len(), 1);
}

#[test]
fn a_certificate_that_arrives_after_its_release_does_not_block_the_key() {
    let mut world = witness();
    let granted = world.wall;
    let Request::Claim(mut confirm) = claim(2, 1, &[], some_addr()) else {
        unreachable!()
    };
    confirm.ttl_ms = 1_800_000;
    let release = Request::Release {
        keys: confirm.keys.clone(),
        instance: Instance(1),
        round: 1,
    };
    let late = Request::HandOver {
        certificates: vec![certificate(&[1, 3], 2, 2, granted)],
    };
    // To a witness that granted the key, and to one that was never asked.
    for asked_before in [true, false] {
        if asked_before {
            asked(&mut world, 2, &Request::Claim(confirm.clone()));
        }
        asked(&mut world, 2, &release);
        asked(&mut world, 2, &late);
        let answer = asked(&mut world, 3, &claim(3, 6, &[], some_addr()));
        assert!(matches!(answer, Answer::Receipts(_)), "{answer:?}");
        world = witness();
    }
}
