//! Two holders of one address, each with several certificates: which of them yields.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use std::time::Duration;

use aerie_dht_proto::{
    AcquireRequest, Certificate, Event, Input, Keys, Kind, MemoryStore, Now, Output, Proof, Receipt, Want,
};
use aerie_types::{Instance, WallMillis};

#[path = "common/honest.rs"]
mod honest;
#[path = "common/wire.rs"]
mod wire;

use honest::{Hashed, Node, after, credential, grid, name, node, peer, pool, start};
use wire::{Answer, Handed, Request};

const SELF: u8 = 1;
const RIVAL: u8 = 2;
const OTHER: u8 = 3;

/// A grid of one, which holds an address.
fn holder() -> (Node, Certificate, Now) {
    let mut now = start();
    let mut node = node(SELF, MemoryStore::default(), now);
    node.acquire(
        AcquireRequest {
            want: Want::Any(Kind::Addr),
            name: name(SELF),
        },
        now,
    );
    for _ in 0..20 {
        now = after(now, Duration::from_secs(1));
        node.handle_timeout(now);
    }
    drain(&mut node);
    let certificate = node.lease(Kind::Addr).expect("a founder is served").certificate;
    (node, certificate, now)
}

fn drain(node: &mut Node) -> (Vec<(u64, Request)>, Vec<Event>) {
    let mut sent = Vec::new();
    while let Some(output) = node.poll_output() {
        if let Output::Send { id, bytes, .. } = output {
            sent.push((id, wire::from_bytes(&bytes).unwrap()));
        }
    }
    (sent, std::iter::from_fn(|| node.poll_event()).collect())
}

/// A certificate of the rival for what this node holds, signed by one witness.
fn of_rival(own: &Certificate, witness: u8, number: u64, time: WallMillis) -> Handed {
    of(RIVAL, own, witness, number, time)
}

fn of(holder: u8, own: &Certificate, witness: u8, number: u64, time: WallMillis) -> Handed {
    let mut terms = own.terms.clone();
    terms.holder = peer(holder);
    terms.name = name(holder);
    terms.instance = Instance(7);
    terms.since = None;
    let mut receipt = Receipt {
        witness: peer(witness),
        number,
        time,
        ..own.receipts[0].clone()
    };
    receipt.signature = Hashed(peer(witness)).sign(&wire::receipt_message(&receipt, &terms));
    Handed {
        proof: Proof {
            certificate: Certificate {
                terms,
                receipts: vec![receipt],
            },
            credentials: vec![credential(peer(witness))],
        },
        remaining_ms: 600_000,
    }
}

/// One that this node's own witness signed after this node's, so that it survives.
fn earlier(own: &Certificate, now: Now) -> Handed {
    of_rival(own, SELF, own.receipts[0].number + 1, now.wall)
}

/// Its renewal, by another witness: between this and the node's own the older lease decides.
fn current(own: &Certificate, now: Now) -> Handed {
    of_rival(own, RIVAL, 1, now.wall)
}

/// The node hears of the rival's certificate, and asks the rival itself. Returns that question.
fn asked(node: &mut Node, shown: Handed, now: Now) -> u64 {
    let bytes = wire::to_bytes(&Request::HandOver(vec![shown]));
    let from = peer(RIVAL);
    node.handle_input(Input::Request { from, id: 1, bytes }, now);
    let (sent, events) = drain(node);
    assert!(events.is_empty(), "{events:?}");
    let question = sent
        .iter()
        .find(|(_, sent)| matches!(sent, Request::LookUp { .. }));
    question.expect("the rival is asked").0
}

fn answer(node: &mut Node, id: u64, answer: Answer, now: Now) {
    let result = Ok(wire::to_bytes(&answer));
    node.handle_input(Input::Reply { id, result }, now);
}

#[test]
fn a_holder_whose_lease_survives_what_the_rival_holds_now_keeps_it_and_shows_it() {
    let (mut node, own, now) = holder();
    let question = asked(&mut node, earlier(&own, now), now);
    answer(&mut node, question, Answer::Found(current(&own, now)), now);
    let (sent, events) = drain(&mut node);
    assert!(events.is_empty(), "{events:?}");
    assert!(node.lease(Kind::Addr).is_some());
    let shown = sent
        .iter()
        .any(|(_, sent)| matches!(sent, Request::Conflict(handed) if handed.proof.certificate == own));
    assert!(shown, "{sent:?}");
}

#[test]
fn a_holder_yields_to_what_the_rival_holds_now() {
    let (mut node, own, now) = holder();
    let question = asked(&mut node, earlier(&own, now), now);
    answer(&mut node, question, Answer::Found(earlier(&own, now)), now);
    let (_, events) = drain(&mut node);
    assert!(
        matches!(events.first(), Some(Event::Lost { kind: Kind::Addr, .. })),
        "{events:?}"
    );
}

#[test]
fn a_forged_answer_does_not_save_a_holder_from_what_it_has_seen() {
    let (mut node, own, now) = holder();
    let question = asked(&mut node, earlier(&own, now), now);
    let mut forged = current(&own, now);
    forged.proof.certificate.receipts[0].number += 1;
    answer(&mut node, question, Answer::Found(forged), now);
    let (_, events) = drain(&mut node);
    assert!(
        matches!(events.first(), Some(Event::Lost { kind: Kind::Addr, .. })),
        "{events:?}"
    );
}

#[test]
fn a_witness_offers_the_winner_to_those_that_it_offered_the_loser() {
    let (mut node, own, now) = holder();
    let mut other = own.clone();
    other.terms.leased = pool().range().nth(77).into();
    other.terms.key = other.terms.leased.key(grid());
    node.handle_input(Input::MemberUp { peer: peer(OTHER) }, now);
    let offered = |node: &mut Node, handed: Handed, now: Now| {
        let bytes = wire::to_bytes(&Request::HandOver(vec![handed]));
        let from = peer(RIVAL);
        node.handle_input(Input::Request { from, id: 1, bytes }, now);
        node.handle_timeout(after(now, Duration::from_secs(2)));
        let (sent, _) = drain(node);
        let offers = sent.into_iter().filter_map(|(_, sent)| match sent {
            Request::Offer(summaries) => Some(summaries),
            _ => None,
        });
        let mut holders = offers.flatten().filter(|summary| summary.key == other.terms.key);
        holders.next().map(|summary| summary.holder)
    };
    let loser = of(RIVAL, &other, RIVAL, 1, now.wall);
    assert_eq!(offered(&mut node, loser.clone(), now), Some(peer(RIVAL)));
    let now = after(now, Duration::from_secs(3));
    assert_eq!(offered(&mut node, loser, now), None);
    let winner = of(OTHER, &other, RIVAL, 2, now.wall);
    assert_eq!(offered(&mut node, winner, now), Some(peer(OTHER)));
}
