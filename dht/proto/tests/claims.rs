//! A claim that comes to no good end at a witness: what it says, how often it tries, and what it leaves behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use std::time::Duration;

use aerie_dht_proto::{
    AcquireRequest, Event, Input, Keys, Kind, MemoryStore, Now, Output, Receipt, Signature, Want, name_key,
};
use aerie_types::PeerId;

#[path = "common/honest.rs"]
mod honest;
#[path = "common/wire.rs"]
mod wire;

use honest::{Hashed, Node, after, credential, grid, name, node, peer, start};
use wire::{Answer, Claim, Refusal, Request, State};

const SELF: u8 = 5;
const WITNESS: u8 = 1;
const OTHER: u8 = 9;

/// A member and the grid's one other, whose every answer to a claim is given by the test.
struct Pair {
    node: Node,
    now: Now,
    sent: Vec<Request>,
    told: Vec<String>,
}

impl Pair {
    fn new() -> Self {
        let now = start();
        let mut node = node(SELF, MemoryStore::default(), now);
        node.handle_input(Input::MemberUp { peer: peer(WITNESS) }, now);
        let want = AcquireRequest {
            want: Want::Any(Kind::Addr),
            name: name(SELF),
        };
        node.acquire(want, now);
        Self {
            node,
            now,
            sent: Vec::new(),
            told: Vec::new(),
        }
    }

    fn pass(&mut self, seconds: u64, answer: impl Fn(&Claim) -> Answer) {
        for _ in 0..seconds * 10 {
            self.now = after(self.now, Duration::from_millis(100));
            self.node.handle_timeout(self.now);
            self.answer(&answer);
        }
    }

    fn answer(&mut self, answer: impl Fn(&Claim) -> Answer) {
        while let Some(output) = self.node.poll_output() {
            let input = match output {
                Output::Locate { query, .. } => Input::Located {
                    query,
                    peers: vec![peer(WITNESS)],
                },
                Output::Send { to, id, bytes } => {
                    assert_eq!(to, peer(WITNESS));
                    let request: Request = wire::from_bytes(&bytes).unwrap();
                    let answer = match &request {
                        Request::Claim(claim) => answer(claim),
                        Request::Merge { .. } => Answer::State(State {
                            whole: true,
                            credential: credential(peer(WITNESS)),
                            members: Vec::new(),
                            summaries: Vec::new(),
                            next: None,
                        }),
                        _ => Answer::Done,
                    };
                    self.sent.push(request);
                    let result = Ok(wire::to_bytes(&answer));
                    Input::Reply { id, result }
                }
                _ => continue,
            };
            self.node.handle_input(input, self.now);
        }
        while let Some(event) = self.node.poll_event() {
            if let Event::Waiting { reason, .. } = event {
                self.told.push(reason);
            }
        }
    }

    fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.sent.iter().filter_map(|request| match request {
            Request::Claim(claim) => Some(claim),
            _ => None,
        })
    }
}

fn is_of_name(claim: &Claim) -> bool {
    claim.terms.key == name_key(grid(), &name(SELF))
}

fn granted(claim: &Claim, now: Now) -> Answer {
    let mut receipt = Receipt {
        witness: peer(WITNESS),
        number: now.wall.0,
        time: now.wall,
        ttl_ms: claim.ttl_ms,
        members: 2,
        signature: Signature::from([0; 64]),
    };
    let message = wire::receipt_message(&receipt, &claim.terms);
    receipt.signature = Hashed(peer(WITNESS)).sign(&message);
    Answer::Granted {
        receipt,
        credential: Some(credential(peer(WITNESS))),
        clone: None,
    }
}

fn promised_to(holder: PeerId, remaining_ms: u32) -> Answer {
    Answer::Refused(Refusal::Taken {
        holder,
        remaining_ms,
        certified: false,
        proof: None,
    })
}

#[test]
fn who_waits_for_a_name_that_was_promised_for_long_is_told_to_whom() {
    let mut pair = Pair::new();
    let now = pair.now;
    pair.pass(20, |claim| match is_of_name(claim) {
        true => promised_to(peer(OTHER), 1_500_000),
        false => granted(claim, now),
    });
    let said = format!("the name {} is leased to {}", name(SELF), peer(OTHER));
    assert!(
        pair.told.iter().any(|reason| reason.starts_with(&said)),
        "{:?}",
        pair.told
    );

    let mut pair = Pair::new();
    let now = pair.now;
    pair.pass(20, |claim| match is_of_name(claim) {
        true => promised_to(peer(OTHER), 8_000),
        false => granted(claim, now),
    });
    let race = |reason: &String| reason == "the name is being claimed elsewhere too";
    assert!(pair.told.iter().any(race), "{:?}", pair.told);
}

#[test]
fn a_claim_whose_proof_is_refused_again_and_again_is_not_made_without_a_pause() {
    let mut pair = Pair::new();
    pair.pass(60, |_| Answer::Refused(Refusal::BadProof));
    let claims = pair.claims().count();
    assert!((2..=60).contains(&claims), "{claims} claims in a minute");
}

#[test]
fn what_was_granted_to_a_claim_that_is_to_be_made_again_is_given_back_by_a_member_that_gives_up() {
    let mut pair = Pair::new();
    let now = pair.now;
    let restarting = |claim: &Claim| match is_of_name(claim) {
        true => Answer::Refused(Refusal::Restarting { wait_ms: 2_000 }),
        false => granted(claim, now),
    };
    for _ in 0..600 {
        pair.pass(1, restarting);
        if pair
            .told
            .iter()
            .any(|reason| reason.starts_with("asking whether an earlier run"))
        {
            break;
        }
    }
    let own = pair.claims().find(|claim| !is_of_name(claim)).expect("a claim");
    let own = own.terms.key;
    pair.sent.clear();
    pair.node.release(Kind::Addr, pair.now);
    pair.answer(restarting);
    let given_back = |request: &Request| matches!(request, Request::Release { key, .. } if *key == own);
    assert!(pair.sent.iter().any(given_back), "{:?}", pair.sent);
}
