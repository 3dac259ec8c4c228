//! Four honest registers that claim, renew, look up, publish, restart and leave: where honest messages come from.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    reason = "shared by test binaries, each of which uses a part; helpers of tests fail the test"
)]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use aerie_dht_proto::{
    AcquireRequest, Config, Input, Keys, Member, MemoryStore, NotMember, Now, Output, Register, Signature,
    name_key, router_key,
};
use aerie_types::{AddressPool, GridId, NodeName, PeerId, Role, VirtualRange, WallMillis};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest, Sha256};

use super::wire::{self, Answer, Gossip, Handed, ReadEntry, Refusal, Request};

/// Keys that sign by hashing. Anybody could forge; damage never does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashed(pub PeerId);

pub fn peer(number: u8) -> PeerId {
    PeerId([number; 32])
}

pub fn name(number: u8) -> NodeName {
    format!("n{number}").parse().unwrap()
}

/// A credential of this member, as long as nobody changes a byte.
pub fn credential(peer: PeerId) -> Vec<u8> {
    let mut credential = Sha256::digest([b"credential".as_slice(), &peer.0].concat()).to_vec();
    credential.extend(peer.0);
    credential
}

impl Keys for Hashed {
    fn me(&self) -> PeerId {
        self.0
    }

    fn credential(&self) -> Vec<u8> {
        credential(self.0)
    }

    fn sign(&self, message: &[u8]) -> Signature {
        signature(self.0, message)
    }

    fn verify(&self, peer: PeerId, message: &[u8], given: &Signature) -> bool {
        signature(peer, message) == *given
    }

    fn member(&self, given: &[u8], _wall: WallMillis) -> Result<Member, NotMember> {
        let id = given.get(32..).and_then(|id| id.try_into().ok()).map(PeerId);
        let id = id.filter(|id| credential(*id) == given);
        let id = id.ok_or_else(|| NotMember("a damaged credential".to_owned()))?;
        Ok(Member {
            peer: id,
            node: name(id.0[0]),
            group: "chem".parse().unwrap(),
            roles: Role::Manager.into(),
        })
    }
}

fn signature(peer: PeerId, message: &[u8]) -> Signature {
    let half = Sha256::digest([&peer.0, message].concat());
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&half);
    bytes[32..].copy_from_slice(&half);
    bytes.into()
}

pub type Node = Register<MemoryStore, Hashed>;

pub fn grid() -> GridId {
    GridId([1; 16])
}

pub fn start() -> Now {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test needs some instant to count from"
    )]
    let instant = Instant::now();
    Now {
        instant,
        wall: WallMillis(1_800_000_000_000),
    }
}

pub fn after(now: Now, time: Duration) -> Now {
    Now {
        instant: now.instant + time,
        wall: now.wall.plus(time),
    }
}

pub fn node(number: u8, store: MemoryStore, now: Now) -> Node {
    try_node(number, store, now).unwrap()
}

/// The range, of which the last 64 addresses are leased in blocks of eight.
pub fn pool() -> AddressPool {
    let range: VirtualRange = "10.0.0.0/24".parse().unwrap();
    let part = "10.0.0.192/26".parse().unwrap();
    AddressPool::from(range).with_routed(part, 29).unwrap()
}

pub fn try_node(number: u8, store: MemoryStore, now: Now) -> Result<Node, aerie_dht_proto::Error> {
    let mut config = Config::new(grid(), "10.0.0.0/24".parse().unwrap());
    config.pool = pool();
    config.founder = number == 1;
    let mut rng = ChaCha8Rng::seed_from_u64(now.wall.0 + u64::from(number));
    Register::new(config, Hashed(peer(number)), store, &mut rng, now)
}

/// One message of each kind, by its name.
pub type Corpus = BTreeMap<String, Vec<u8>>;

pub struct Honest {
    pub nodes: BTreeMap<u8, Node>,
    pub now: Now,
    pub corpus: Corpus,
}

impl Honest {
    /// Runs it all. Afterwards number 1 votes, and 1, 2 and 4 have leases of addresses, 1 and 2 of prefixes.
    pub fn run() -> Self {
        let now = start();
        let mut honest = Self {
            nodes: BTreeMap::new(),
            now,
            corpus: Corpus::new(),
        };
        for number in 1..=3 {
            honest.join(number, MemoryStore::default());
        }
        for number in 1..=3 {
            honest.acquire(number, Some(10 + u32::from(number)));
        }
        let now = honest.now;
        for number in [1, 2] {
            honest.on(number, |node| {
                node.publish("managers", vec![number; 20], now).unwrap();
                node.watch("managers", now);
            });
        }
        honest.pass(30);
        // A newcomer, which wants an address that is taken.
        honest.join(4, MemoryStore::default());
        honest.acquire(4, Some(12));
        honest.pass(20);
        honest.acquire(4, None);
        honest.look_up(4, 2);
        honest.look_up(4, 9);
        honest.pass(400);
        // A restart, and a copy beside the one that runs.
        let store = honest.nodes.remove(&3).unwrap().into_store();
        let copy = store.clone();
        honest.pass(2);
        honest.join(3, store);
        honest.acquire(3, None);
        honest.pass(20);
        let original = honest.nodes.remove(&3).unwrap();
        honest.join(3, copy);
        honest.acquire(3, None);
        honest.pass(1);
        honest.nodes.insert(3, original);
        honest.pass(30);
        let now = honest.now;
        honest.on(2, |node| node.withdraw("managers", now));
        honest.on(3, |node| node.release_all(now));
        honest.pass(10);
        honest.nodes.remove(&3);
        honest.rare();
        for number in [1, 2] {
            honest.acquire_prefix(number, u32::from(number));
        }
        let (now, key) = (honest.now, router_key(grid(), &name(2)));
        honest.on(4, |node| {
            node.look_up(key, now);
        });
        honest
    }

    fn join(&mut self, number: u8, store: MemoryStore) {
        self.now = after(self.now, Duration::from_millis(7));
        self.nodes.insert(number, node(number, store, self.now));
        let others: Vec<u8> = self
            .nodes
            .keys()
            .copied()
            .filter(|other| *other != number)
            .collect();
        let now = self.now;
        for other in others {
            self.on(other, |node| {
                node.handle_input(Input::MemberUp { peer: peer(number) }, now)
            });
            self.on(number, |node| {
                node.handle_input(Input::MemberUp { peer: peer(other) }, now)
            });
        }
        self.pass(8);
    }

    fn acquire(&mut self, number: u8, index: Option<u32>) {
        let range: aerie_types::VirtualRange = "10.0.0.0/24".parse().unwrap();
        let request = AcquireRequest::addr(name(number), index.map(|index| range.nth(index)));
        let now = self.now;
        self.on(number, |node| node.acquire(request, now));
        self.pass(3);
    }

    fn acquire_prefix(&mut self, number: u8, index: u32) {
        let request = AcquireRequest::prefix(name(number), pool().block(index));
        let now = self.now;
        self.on(number, |node| node.acquire(request, now));
        self.pass(3);
    }

    fn look_up(&mut self, asker: u8, whose: u8) {
        let (now, key) = (self.now, name_key(grid(), &name(whose)));
        self.on(asker, |node| {
            node.look_up(key, now);
        });
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.now = after(self.now, Duration::from_millis(250));
            let (now, numbers) = (self.now, self.nodes.keys().copied().collect::<Vec<_>>());
            for number in numbers {
                self.on(number, |node| node.handle_timeout(now));
            }
        }
    }

    /// Does something at a node, and carries what comes of it until nothing moves.
    fn on(&mut self, number: u8, act: impl FnOnce(&mut Node)) {
        let Some(node) = self.nodes.get_mut(&number) else {
            return;
        };
        act(node);
        let mut moving = VecDeque::new();
        self.drain(number, &mut moving);
        while let Some((from, output)) = moving.pop_front() {
            match output {
                Output::Send { to, id, bytes } => {
                    self.keep::<Request>("request", &bytes);
                    let result = self.carry(from, to.0[0], bytes, &mut moving);
                    self.give(from, Input::Reply { id, result }, &mut moving);
                }
                Output::Locate { query, .. } => {
                    let others = self.nodes.keys().filter(|other| **other != from);
                    let peers = others.map(|other| peer(*other)).collect();
                    self.give(from, Input::Located { query, peers }, &mut moving);
                }
                Output::Gossip(bytes) => {
                    self.keep::<Gossip>("gossip", &bytes);
                    let others: Vec<u8> = self.nodes.keys().copied().filter(|to| *to != from).collect();
                    for to in others {
                        let (from, bytes) = (peer(from), bytes.clone());
                        self.give(to, Input::Gossip { from, bytes }, &mut moving);
                    }
                }
                Output::Answer { .. } => {}
            }
        }
    }

    fn carry(
        &mut self,
        from: u8,
        to: u8,
        bytes: Vec<u8>,
        moving: &mut VecDeque<(u8, Output)>,
    ) -> Result<Vec<u8>, aerie_dht_proto::SendError> {
        let node = self
            .nodes
            .get_mut(&to)
            .ok_or(aerie_dht_proto::SendError::Unreachable)?;
        let (from, id) = (peer(from), u64::MAX);
        node.handle_input(Input::Request { from, id, bytes }, self.now);
        let mut answer = None;
        let mut rest = VecDeque::new();
        self.drain(to, &mut rest);
        for (at, output) in rest {
            match output {
                Output::Answer { id: u64::MAX, bytes } => answer = Some(bytes),
                output => moving.push_back((at, output)),
            }
        }
        let answer = answer.unwrap();
        self.keep::<Answer>("answer", &answer);
        Ok(answer)
    }

    fn give(&mut self, to: u8, input: Input, moving: &mut VecDeque<(u8, Output)>) {
        if let Some(node) = self.nodes.get_mut(&to) {
            node.handle_input(input, self.now);
        }
        self.drain(to, moving);
    }

    fn drain(&mut self, number: u8, moving: &mut VecDeque<(u8, Output)>) {
        if let Some(node) = self.nodes.get_mut(&number) {
            while let Some(output) = node.poll_output() {
                moving.push_back((number, output));
            }
            while node.poll_event().is_some() {}
        }
    }

    /// The longest of each kind, which says the most.
    fn keep<T: serde::de::DeserializeOwned + std::fmt::Debug>(&mut self, role: &str, bytes: &[u8]) {
        let message: T = wire::from_bytes(bytes).unwrap();
        self.longest(kind(role, &message), bytes.to_vec());
    }

    fn longest(&mut self, kind: String, bytes: Vec<u8>) {
        let kept = self.corpus.entry(kind).or_default();
        if kept.len() < bytes.len() {
            *kept = bytes;
        }
    }

    /// What four members on good terms do not say to each other, made of what they do.
    fn rare(&mut self) {
        let handed: Handed = match wire::from_bytes(&self.corpus["request-handover"]) {
            Some(Request::HandOver(mut handed)) => handed.remove(0),
            other => panic!("{other:?}"),
        };
        let proof = Some(handed.proof.clone());
        let key = handed.proof.certificate.terms.key;
        let leased = handed.proof.certificate.terms.leased;
        let instance = handed.proof.certificate.terms.instance;
        let taken = Refusal::Taken {
            holder: peer(2),
            remaining_ms: 9000,
            certified: true,
            proof,
        };
        let refusals = [
            taken,
            Refusal::Cloned { current: instance },
            Refusal::Restarting { wait_ms: 1500 },
            Refusal::Moved { wait_ms: 1500 },
            Refusal::BadProof,
            Refusal::BadCredential,
            Refusal::TooFar,
            Refusal::Busy,
            Refusal::Late,
            Refusal::OutOfRange { leased },
        ];
        let Some(Gossip::Entry { entry, credential }) = wire::from_bytes(&self.corpus["gossip-entry"]) else {
            panic!("no entry");
        };
        let read = ReadEntry {
            entry,
            credential,
            remaining_ms: 9000,
        };
        let mut answers: Vec<Answer> = refusals.into_iter().map(Answer::Refused).collect();
        answers.extend([
            Answer::Unready,
            Answer::NeedCredentials,
            Answer::NotFound,
            Answer::Found(handed.clone()),
            Answer::Want(vec![key]),
            Answer::Certificates(vec![handed.clone()]),
            Answer::Alive { instance },
            Answer::Stale { seq: 7 },
            Answer::Entries(vec![read]),
            Answer::Malformed,
        ]);
        for answer in answers {
            self.longest(kind("answer", &answer), wire::to_bytes(&answer));
        }
        let requests = [
            Request::Conflict(handed.clone()),
            Request::Fetch(vec![key]),
            Request::HandOver(vec![handed]),
            Request::Challenge { instance },
        ];
        for request in requests {
            self.longest(kind("request", &request), wire::to_bytes(&request));
        }
        let gossip = Gossip::Restarting {
            holder: peer(1),
            instance,
        };
        self.longest(kind("gossip", &gossip), wire::to_bytes(&gossip));
    }
}

/// The name of a kind of message, such as `answer-refused-taken`, or `request-claim-prefix` for one about a prefix.
pub fn kind(role: &str, message: &impl std::fmt::Debug) -> String {
    let text = format!("{message:?}").to_lowercase();
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let kind = match words.as_slice() {
        ["refused", why, ..] => format!("{role}-refused-{why}"),
        [word, ..] => format!("{role}-{word}"),
        [] => role.to_owned(),
    };
    if text.contains("leased: prefix(") {
        format!("{kind}-prefix")
    } else {
        kind
    }
}
