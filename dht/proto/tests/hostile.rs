//! Bytes of members that mean no good.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

mod common;

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::time::Duration;

use aerie_dht_proto::{AcquireRequest, Input, Kind, MemoryStore, Now, Output, Register};
use aerie_types::PeerId;
use common::{Credulous, now, register};
use proptest::collection::vec;
use proptest::prelude::*;

/// Requests with their sender's number, answers, gossip.
type Honest = (Vec<(usize, Vec<u8>)>, Vec<Vec<u8>>, Vec<Vec<u8>>);

/// Messages that honest registers exchange: seeds for damage. Requests, answers and gossip.
fn honest(now: Now) -> Honest {
    let mut nodes = [register(1, true, now), register(2, false, now)];
    let ids = [PeerId([1; 32]), PeerId([2; 32])];
    let (mut requests, mut answers, mut gossip) = (Vec::new(), Vec::new(), Vec::new());
    for (at, node) in nodes.iter_mut().enumerate() {
        node.handle_input(Input::MemberUp { peer: ids[1 - at] }, now);
        let request = AcquireRequest::addr("w1".parse().unwrap(), None);
        node.acquire(request, now);
        node.publish("anything", vec![1, 2, 3], now).unwrap();
        node.watch("anything", now);
    }
    let mut waiting: [VecDeque<Output>; 2] = Default::default();
    for turn in 0..100 {
        let at = turn % 2;
        let now = Now {
            instant: now.instant + Duration::from_millis(100) * turn as u32,
            ..now
        };
        nodes[at].handle_timeout(now);
        loop {
            while let Some(output) = nodes[at].poll_output() {
                waiting[at].push_back(output);
            }
            match waiting[at].pop_front() {
                None => break,
                Some(Output::Send { id, bytes, .. }) => {
                    requests.push((at, bytes.clone()));
                    nodes[1 - at].handle_input(
                        Input::Request {
                            from: ids[at],
                            id: u64::MAX,
                            bytes,
                        },
                        now,
                    );
                    while let Some(output) = nodes[1 - at].poll_output() {
                        if let Output::Answer { id: u64::MAX, bytes } = output {
                            answers.push(bytes.clone());
                            nodes[at].handle_input(
                                Input::Reply {
                                    id,
                                    result: Ok(bytes),
                                },
                                now,
                            );
                        } else {
                            waiting[1 - at].push_back(output);
                        }
                    }
                }
                Some(Output::Locate { query, .. }) => {
                    let peers = vec![ids[1 - at]];
                    nodes[at].handle_input(Input::Located { query, peers }, now);
                }
                Some(Output::Gossip(bytes)) => {
                    gossip.push(bytes.clone());
                    nodes[1 - at].handle_input(Input::Gossip { from: ids[at], bytes }, now);
                }
                Some(Output::Answer { .. }) => {}
            }
        }
    }
    assert!(
        nodes.iter().any(|node| node.lease(Kind::Addr).is_some()),
        "somebody got a lease"
    );
    assert!(requests.len() > 10 && answers.len() > 10 && !gossip.is_empty());
    (requests, answers, gossip)
}

static ALL: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let (requests, answers, gossip) = honest(now());
    let requests = requests.into_iter().map(|(_, bytes)| bytes);
    requests.chain(answers).chain(gossip).collect()
});

/// Gives bytes to a register in every role that bytes can have.
fn give(register: &mut Register<MemoryStore, Credulous>, bytes: &[u8], now: Now) {
    let from = PeerId([2; 32]);
    let bytes = bytes.to_vec();
    register.handle_input(
        Input::Request {
            from,
            id: 7,
            bytes: bytes.clone(),
        },
        now,
    );
    register.handle_input(
        Input::Gossip {
            from,
            bytes: bytes.clone(),
        },
        now,
    );
    for id in 0..30 {
        register.handle_input(
            Input::Reply {
                id,
                result: Ok(bytes.clone()),
            },
            now,
        );
    }
    register.handle_timeout(now);
    while register.poll_output().is_some() {}
    while register.poll_event().is_some() {}
}

fn target(now: Now) -> Register<MemoryStore, Credulous> {
    let mut register = register(1, true, now);
    register.handle_input(
        Input::MemberUp {
            peer: PeerId([2; 32]),
        },
        now,
    );
    register
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in vec(any::<u8>(), 0..400), versioned in any::<bool>()) {
        if versioned && let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        let now = now();
        give(&mut target(now), &bytes, now);
    }

    #[test]
    fn damaged_messages_never_panic(
        which in any::<prop::sample::Index>(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let now = now();
        let mut bytes = which.get(&ALL).clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        give(&mut target(now), &bytes, now);
    }
}

#[test]
fn honest_messages_are_understood() {
    let now = now();
    let (requests, _, _) = honest(now);
    let mut register = target(now);
    let from = PeerId([2; 32]);
    for (_, bytes) in requests.into_iter().filter(|(at, _)| *at == 1) {
        register.handle_input(Input::Request { from, id: 1, bytes }, now);
    }
    assert_eq!(register.stats().malformed, 0, "{:?}", register.stats());
}

#[test]
fn a_message_of_another_version_or_above_the_bound_is_counted_and_answered() {
    let now = now();
    let mut register = target(now);
    while register.poll_output().is_some() {}
    let from = PeerId([2; 32]);
    let long = vec![1; aerie_dht_proto::limits::MAX_MESSAGE + 1];
    for (id, bytes) in [(1, vec![]), (2, vec![2, 0]), (3, long)] {
        register.handle_input(Input::Request { from, id, bytes }, now);
        assert!(matches!(register.poll_output(), Some(Output::Answer { id: of, .. }) if of == id));
    }
    assert_eq!(register.stats().malformed, 3);
}
