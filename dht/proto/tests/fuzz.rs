//! Damaged messages and rows: one file of honest bytes for each kind, in `corpus/`, and a bounded number of damages
//! to each in every run of the tests. `PROPTEST_CASES=100000 cargo nextest run -p aerie-dht-proto --test fuzz` hunts
//! for longer; `cargo test -p aerie-dht-proto --test fuzz -- --ignored` writes the corpus anew after a change of the
//! format.
//!
//! The target votes, holds an address and a prefix, has seen another holder's, and waits for answers of every kind.
//! Whatever a member sends it: nothing panics, nothing grows beyond its bounds, all leases stay, nobody is granted what is not its to
//! have, and what cannot be read is counted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use aerie_dht_proto::limits::{MAX_KEYS, MAX_MEMBERS, MAX_PENDING, MAX_TOLD};
use aerie_dht_proto::{Change, Input, Kind, Leased, MemoryStore, Now, Output, Store, Table, model};
use aerie_types::Key;
use proptest::collection::vec;
use proptest::prelude::*;

#[path = "common/honest.rs"]
mod honest;
#[path = "common/wire.rs"]
mod wire;

use honest::{Corpus, Honest, Node, grid, name, peer, pool, try_node};
use wire::{Answer, Gossip, Refusal, Request};

/// Who holds the lease that must stay, and who sends the damaged bytes: a member with a lease of its own.
const HOLDER: u8 = 2;
const LIAR: u8 = 4;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn corpus() -> Corpus {
    let files = std::fs::read_dir(folder()).unwrap();
    files
        .map(|file| {
            let path = file.unwrap().path();
            let kind = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (kind, std::fs::read(path).unwrap())
        })
        .collect()
}

#[test]
#[ignore = "writes the files that the other tests read"]
fn write_the_corpus() {
    let _ = std::fs::remove_dir_all(folder());
    std::fs::create_dir(folder()).unwrap();
    for (kind, bytes) in Honest::run().corpus {
        std::fs::write(folder().join(format!("{kind}.bin")), bytes).unwrap();
    }
}

#[test]
fn the_corpus_has_every_kind_of_message_in_the_form_of_today() {
    let corpus = corpus();
    let honest: BTreeSet<_> = Honest::run().corpus.into_keys().collect();
    assert_eq!(
        corpus.keys().cloned().collect::<BTreeSet<_>>(),
        honest,
        "write the corpus anew"
    );
    // Requests, answers, refusals, gossip, and what differs about prefixes.
    assert_eq!(corpus.len(), 12 + 13 + 10 + 3 + 2);
    for (kind, bytes) in corpus {
        let again = match kind.split('-').next() {
            Some("request") => wire::from_bytes::<Request>(&bytes).map(|message| wire::to_bytes(&message)),
            Some("answer") => wire::from_bytes::<Answer>(&bytes).map(|message| wire::to_bytes(&message)),
            Some("gossip") => wire::from_bytes::<Gossip>(&bytes).map(|message| wire::to_bytes(&message)),
            _ => None,
        };
        assert_eq!(again.as_ref(), Some(&bytes), "{kind}: write the corpus anew");
    }
}

struct Target {
    node: Node,
    now: Now,
    /// Requests that wait for an answer.
    waiting: Vec<u64>,
    corpus: Vec<Vec<u8>>,
}

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let mut honest = Honest::run();
    let mut node = honest.nodes.remove(&1).unwrap();
    // So late that it renews, with a change of members that it passes on, and questions of its own.
    let (mut waiting, mut kinds) = (Vec::new(), BTreeSet::new());
    let now = honest::after(honest.now, Duration::from_secs(330));
    node.look_up(Key::of("anything", &[]), now);
    node.publish("anything", vec![1], now).unwrap();
    node.watch("anything", now);
    node.handle_input(Input::MemberUp { peer: peer(7) }, now);
    for later in [0, 2, 1500] {
        node.handle_timeout(honest::after(now, Duration::from_millis(later)));
        while let Some(output) = node.poll_output() {
            match output {
                Output::Send { id, bytes, .. } => {
                    kinds.extend(model::request_kind(&bytes).map(|(kind, _)| kind));
                    waiting.push(id);
                }
                Output::Locate { query, .. } => {
                    let peers = vec![peer(HOLDER), peer(LIAR)];
                    node.handle_input(Input::Located { query, peers }, now);
                }
                _ => {}
            }
        }
    }
    while node.poll_event().is_some() {}
    assert!(node.is_ready() && Kind::ALL.iter().all(|kind| node.lease(*kind).is_some()));
    for kind in ["claim", "look-up", "merge", "offer", "put", "read"] {
        assert!(kinds.contains(kind), "waits for {kinds:?}");
    }
    Target {
        node,
        now: honest::after(now, Duration::from_millis(1500)),
        waiting,
        corpus: corpus().into_values().collect(),
    }
});

/// One damage to bytes.
#[derive(Debug, Clone)]
enum Damage {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    Insert(prop::sample::Index, Vec<u8>),
    /// A part of another message.
    Splice(
        prop::sample::Index,
        prop::sample::Index,
        prop::sample::Index,
        usize,
    ),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    // The ends of integers and of lengths.
    let extreme = prop::sample::select(vec![
        vec![0xff; 9].into_iter().chain([1]).collect::<Vec<u8>>(),
        vec![0xff, 0xff, 0xff, 0xff, 0x0f],
        vec![0],
        vec![0x80, 0],
        vec![0x80; 12],
    ]);
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (at(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        at().prop_map(Damage::Cut),
        (at(), 1..40usize).prop_map(|(at, length)| Damage::Remove(at, length)),
        (at(), extreme).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at(), at(), at(), 1..200usize)
            .prop_map(|(at, of, from, length)| Damage::Splice(at, of, from, length)),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: Vec<Damage>, others: &[Vec<u8>]) -> Vec<u8> {
    for damage in damages {
        if bytes.is_empty() {
            return bytes;
        }
        match damage {
            Damage::Set(at, byte) => *at.get_mut(&mut bytes) = byte,
            Damage::Flip(at, bit) => *at.get_mut(&mut bytes) ^= 1 << bit,
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Damage::Remove(at, length) => {
                let from = at.index(bytes.len());
                let to = (from + length).min(bytes.len());
                bytes.drain(from..to);
            }
            Damage::Insert(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more);
            }
            Damage::Splice(at, of, from, length) => {
                let other = of.get(others);
                let from = from.index(other.len());
                let to = (from + length).min(other.len());
                let at = at.index(bytes.len());
                let end = (at + to - from).min(bytes.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
    bytes
}

fn answer(node: &mut Node, from: u8, bytes: Vec<u8>, now: Now) -> Answer {
    let id = u64::MAX;
    let from = peer(from);
    node.handle_input(Input::Request { from, id, bytes }, now);
    let mut answer = None;
    while let Some(output) = node.poll_output() {
        if let Output::Answer { id: u64::MAX, bytes } = output {
            answer = wire::from_bytes(&bytes);
        }
    }
    answer.expect("each request is answered at once")
}

/// Everything that must hold after whatever was sent.
fn intact(node: &mut Node, before: &Node, now: Now) {
    let (kept, kept_before) = (model::kept(node), model::kept(before));
    assert!(
        kept.keys <= kept_before.keys + 20 && kept.keys <= MAX_KEYS,
        "{kept:?}"
    );
    assert!(kept.members <= kept_before.members + MAX_TOLD && kept.members <= MAX_MEMBERS);
    assert!(kept.credentials <= 8, "{kept:?}");
    assert!(kept.pending <= kept_before.pending + 600 && kept.pending <= MAX_PENDING);
    for kind in Kind::ALL {
        let held = |node: &Node| node.lease(kind).map(|lease| lease.leased);
        assert_eq!(held(node), held(before), "the own {kind}");
    }
    let keys = holders().map(|leased| [leased.key(grid()), leased.home_key(grid(), &name(HOLDER))]);
    for key in keys.into_iter().flatten() {
        let bytes = wire::to_bytes(&Request::LookUp { key });
        match answer(node, LIAR, bytes, now) {
            Answer::Found(found) => assert_eq!(found.proof.certificate.terms.holder, peer(HOLDER)),
            other => panic!("the holder's lease: {other:?}"),
        }
    }
    node.handle_timeout(honest::after(now, Duration::from_secs(11)));
    while node.poll_output().is_some() {}
    while node.poll_event().is_some() {}
}

/// What the holder has.
fn holders() -> [Leased; 2] {
    let range = pool().range();
    [range.nth(12).into(), pool().block(2).unwrap().into()]
}

fn ask(bytes: &[u8]) {
    let Target {
        node: before, now, ..
    } = &*TARGET;
    let mut node = before.clone();
    let stats = node.stats().clone();
    let given = answer(&mut node, LIAR, bytes.to_vec(), *now);
    let request = wire::from_bytes::<Request>(bytes);
    match (&request, &given) {
        (None, given) => {
            assert_eq!(*given, Answer::Malformed);
            assert_eq!(node.stats().malformed, stats.malformed + 1);
        }
        (Some(Request::Claim(claim)), Answer::Granted { receipt, .. }) => {
            let terms = &claim.terms;
            assert_eq!((terms.holder, &terms.name), (peer(LIAR), &name(LIAR)));
            assert!(terms.consistent(grid()));
            assert!(!holders().contains(&terms.leased), "{terms:?}");
            let message = wire::receipt_message(receipt, terms);
            let signed = aerie_dht_proto::Keys::sign(&honest::Hashed(peer(1)), &message);
            assert_eq!(receipt.signature, signed);
        }
        (Some(_), Answer::Granted { .. }) => panic!("granted for {request:?}"),
        (Some(Request::Claim(claim)), Answer::Refused(Refusal::Taken { holder, .. })) => {
            assert_ne!(*holder, claim.terms.holder);
        }
        (Some(Request::Claim(claim)), Answer::Malformed) => {
            assert!(claim.terms.holder != peer(LIAR) || !claim.terms.consistent(grid()));
        }
        _ => {}
    }
    intact(&mut node, before, *now);
}

fn gossip(bytes: &[u8]) {
    let Target {
        node: before, now, ..
    } = &*TARGET;
    let mut node = before.clone();
    let (from, bytes) = (peer(LIAR), bytes.to_vec());
    let readable = wire::from_bytes::<Gossip>(&bytes).is_some();
    node.handle_input(Input::Gossip { from, bytes }, *now);
    let counted = node.stats().malformed - before.stats().malformed;
    assert_eq!(counted, u64::from(!readable));
    intact(&mut node, before, *now);
}

fn reply(bytes: &[u8]) {
    let Target {
        node: before,
        now,
        waiting,
        ..
    } = &*TARGET;
    let readable = wire::from_bytes::<Answer>(bytes).is_some();
    // Each alone: one member lies, not all at once.
    for id in waiting.iter().chain([&u64::MAX]) {
        let mut node = before.clone();
        let result = Ok(bytes.to_vec());
        node.handle_input(Input::Reply { id: *id, result }, *now);
        let known = *id != u64::MAX;
        let stats = node.stats();
        assert_eq!(
            stats.stray_answers - before.stats().stray_answers,
            u64::from(!known)
        );
        assert_eq!(
            stats.malformed - before.stats().malformed,
            u64::from(known && !readable)
        );
        intact(&mut node, before, *now);
    }
}

#[test]
fn honest_bytes_in_any_role_leave_the_leases_alone() {
    for bytes in &TARGET.corpus {
        ask(bytes);
        gossip(bytes);
        reply(bytes);
    }
}

proptest! {
    #[test]
    fn damaged_messages_are_dropped_and_counted_or_do_no_harm(
        which in any::<prop::sample::Index>(),
        damages in vec(damage(), 1..5),
    ) {
        let corpus = &TARGET.corpus;
        let bytes = damaged(which.get(corpus).clone(), damages, corpus);
        ask(&bytes);
        gossip(&bytes);
        reply(&bytes);
    }

    #[test]
    fn a_register_starts_or_says_why_not_over_damaged_rows(
        which in any::<prop::sample::Index>(),
        damages in vec(damage(), 1..4),
        of_key in any::<bool>(),
    ) {
        let mut store = TARGET.node.clone().into_store();
        let mut rows = Vec::new();
        for table in Table::ALL {
            rows.extend(store.load(table).unwrap().into_iter().map(|(key, value)| (table, key, value)));
        }
        let values: Vec<_> = rows.iter().map(|(_, _, value)| value.clone()).collect();
        let (table, key, value) = which.get(&rows).clone();
        let change = |key: &[u8], value: Option<Vec<u8>>| Change { table, key: key.to_vec(), value };
        if of_key {
            let new = damaged(key.clone(), damages, &values);
            store.persist(&[change(&key, None), change(&new, Some(value))]).unwrap();
        } else {
            store.persist(&[change(&key, Some(damaged(value, damages, &values)))]).unwrap();
        }
        over(store);
    }
}

#[test]
fn a_number_of_grants_at_its_end_is_a_damaged_row() {
    let mut store = TARGET.node.clone().into_store();
    let number = Change {
        table: Table::Meta,
        key: b"number".to_vec(),
        value: Some(u64::MAX.to_be_bytes().to_vec()),
    };
    store.persist(&[number]).unwrap();
    assert!(try_node(1, store, TARGET.now).is_err());
}

/// Starts over the rows, and lets it vote and expire.
fn over(store: MemoryStore) {
    let now = TARGET.now;
    match try_node(1, store, now) {
        Err(error) => assert!(error.to_string().contains("remove the file"), "{error}"),
        Ok(mut node) => {
            node.handle_input(Input::MemberUp { peer: peer(LIAR) }, now);
            for seconds in [6, 12] {
                node.handle_timeout(honest::after(now, Duration::from_secs(seconds)));
            }
            for bytes in &TARGET.corpus {
                answer(&mut node, LIAR, bytes.clone(), now);
            }
            node.handle_timeout(honest::after(now, Duration::from_secs(3600)));
        }
    }
}
