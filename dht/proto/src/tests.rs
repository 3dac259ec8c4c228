//! Several registers on one virtual clock, with messages carried by hand.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aerie_types::{GridId, Key, NodeName, PeerId, Role, Roles, VirtualAddr, WallMillis};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::*;

mod cases;

const GRID: GridId = GridId([1; 16]);

fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

fn name(n: u8) -> NodeName {
    format!("n{n}").parse().unwrap()
}

/// Keys whose signatures are keyed hashes: the register never looks into them.
struct TestKeys(PeerId);

fn tag(peer: &PeerId, message: &[u8]) -> Vec<u8> {
    Key::of("test signature", &[&peer.0, message]).0.repeat(2)
}

impl Keys for TestKeys {
    fn me(&self) -> PeerId {
        self.0
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        tag(&self.0, message)
    }

    fn verify(&self, peer: &PeerId, message: &[u8], signature: &[u8]) -> bool {
        tag(peer, message) == signature
    }

    fn credential(&self) -> Vec<u8> {
        self.0.0.to_vec()
    }

    fn credential_peer(&self, der: &[u8], _wall: WallMillis) -> Option<Member> {
        let peer = PeerId(der.try_into().ok()?);
        let role = if peer.0[0] == 1 {
            Role::Manager
        } else {
            Role::Worker
        };
        Some(Member {
            peer,
            node: name(peer.0[0]),
            group: "physics".parse().unwrap(),
            roles: Roles::from(role),
        })
    }
}

#[derive(Debug, Default, Clone)]
struct MemStore {
    leases: BTreeMap<Key, StoredLease>,
    members: Option<Vec<(PeerId, WallMillis)>>,
    own: Option<OwnState>,
    broken: bool,
}

impl Store for MemStore {
    fn save(&mut self, key: &Key, lease: &StoredLease) -> Result<(), StoreError> {
        if self.broken {
            return Err(StoreError("disk full".to_owned()));
        }
        self.leases.insert(*key, lease.clone());
        Ok(())
    }

    fn remove(&mut self, key: &Key) -> Result<(), StoreError> {
        self.leases.remove(key);
        Ok(())
    }

    fn load(&mut self) -> Result<Vec<(Key, StoredLease)>, StoreError> {
        Ok(self.leases.clone().into_iter().collect())
    }

    fn save_members(&mut self, members: &[(PeerId, WallMillis)]) -> Result<(), StoreError> {
        self.members = Some(members.to_vec());
        Ok(())
    }

    fn load_members(&mut self) -> Result<Option<Vec<(PeerId, WallMillis)>>, StoreError> {
        Ok(self.members.clone())
    }

    fn save_own(&mut self, own: &OwnState) -> Result<(), StoreError> {
        self.own = Some(own.clone());
        Ok(())
    }

    fn load_own(&mut self) -> Result<Option<OwnState>, StoreError> {
        Ok(self.own.clone())
    }
}

/// Registers by a label; a clone has its original's peer id and another label.
struct World {
    nodes: BTreeMap<u8, Register<MemStore>>,
    peers: BTreeMap<u8, PeerId>,
    fixed: Option<VirtualAddr>,
    range: &'static str,
    now: Instant,
    wall: WallMillis,
    found: BTreeMap<(u8, u64), Option<Found>>,
}

impl World {
    #[expect(
        clippy::disallowed_methods,
        reason = "any instant serves as the origin of virtual time"
    )]
    fn new() -> Self {
        Self {
            nodes: BTreeMap::new(),
            peers: BTreeMap::new(),
            fixed: None,
            range: "10.9.0.0/24",
            now: Instant::now(),
            wall: WallMillis(1_900_000_000_000),
            found: BTreeMap::new(),
        }
    }

    fn time(&self) -> Time {
        Time {
            now: self.now,
            wall: self.wall,
        }
    }

    fn start(&mut self, label: u8, who: u8, store: MemStore) {
        let config = Config {
            grid: GRID,
            me: peer(who),
            name: name(who),
            range: self.range.parse().unwrap(),
            fixed: self.fixed,
            founder: label == 1,
        };
        let rng = Box::new(ChaCha8Rng::seed_from_u64(u64::from(label) + self.wall.0));
        let node = Register::new(config, Box::new(TestKeys(peer(who))), store, rng, self.time()).unwrap();
        self.nodes.insert(label, node);
        self.peers.insert(label, peer(who));
        for other in self.nodes.keys().copied().collect::<Vec<_>>() {
            if self.peers[&other] != peer(who) {
                self.input(
                    label,
                    Input::MemberUp {
                        peer: self.peers[&other],
                    },
                );
                self.input(other, Input::MemberUp { peer: peer(who) });
            }
        }
        self.settle();
    }

    fn stop(&mut self, label: u8) -> MemStore {
        let node = self.nodes.remove(&label).unwrap();
        let gone = self.peers.remove(&label).unwrap();
        for other in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.input(other, Input::MemberDown { peer: gone });
        }
        node.into_store()
    }

    fn input(&mut self, label: u8, input: Input) {
        let time = self.time();
        self.nodes.get_mut(&label).unwrap().handle(input, time);
    }

    /// Carries messages until nobody has one.
    fn settle(&mut self) {
        loop {
            let mut quiet = true;
            for label in self.nodes.keys().copied().collect::<Vec<_>>() {
                while let Some(output) = self.nodes.get_mut(&label).unwrap().poll_output() {
                    quiet = false;
                    self.carry(label, output);
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn carry(&mut self, label: u8, output: Output) {
        let from = self.peers[&label];
        let time = self.time();
        match output {
            Output::Send { to, id, bytes } => {
                let target = self
                    .peers
                    .iter()
                    .find(|(_, peer)| **peer == to)
                    .map(|(label, _)| *label);
                let result = target.map_or(Err(SendError), |target| Ok(self.ask(target, from, bytes)));
                self.input(label, Input::Reply { id, result });
            }
            Output::Locate { query, .. } => {
                let peers = self
                    .peers
                    .values()
                    .copied()
                    .filter(|peer| *peer != from)
                    .collect();
                self.input(label, Input::Located { query, peers });
            }
            Output::Gossip(bytes) => {
                for (other, node) in &mut self.nodes {
                    if *other != label {
                        node.handle(
                            Input::Gossip {
                                from,
                                bytes: bytes.clone(),
                            },
                            time,
                        );
                    }
                }
            }
            Output::Event(Event::LookedUp { id, found }) => {
                self.found.insert((label, id), found);
            }
            Output::Event(_) => {}
            Output::Answer { .. } => panic!("an answer that nobody waits for"),
        }
    }

    fn ask(&mut self, target: u8, from: PeerId, bytes: Vec<u8>) -> Vec<u8> {
        self.input(target, Input::Request { from, id: 0, bytes });
        let node = self.nodes.get_mut(&target).unwrap();
        let mut later = Vec::new();
        let mut answer = None;
        while let Some(output) = node.poll_output() {
            match output {
                Output::Answer { bytes, .. } => answer = Some(bytes),
                other => later.push(other),
            }
        }
        for output in later {
            self.carry(target, output);
        }
        answer.unwrap()
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.settle();
            let next = self
                .nodes
                .values()
                .filter_map(Register::poll_timeout)
                .min()
                .unwrap_or(end)
                .min(end);
            let step = next
                .saturating_duration_since(self.now)
                .max(Duration::from_millis(1));
            self.now += step;
            self.wall = self.wall.plus(step);
            if self.now >= end {
                return self.settle();
            }
            let time = self.time();
            for node in self.nodes.values_mut() {
                node.handle_timeout(time);
            }
        }
    }

    fn acquire(&mut self, label: u8) {
        let time = self.time();
        self.nodes.get_mut(&label).unwrap().acquire(time);
        self.settle();
    }

    fn grid(size: u8) -> Self {
        let mut world = Self::new();
        for label in 1..=size {
            world.start(label, label, MemStore::default());
        }
        world.run(Duration::from_secs(3));
        assert!(world.nodes.values().all(Register::is_ready));
        world
    }

    fn addr(&self, label: u8) -> Option<VirtualAddr> {
        match self.nodes[&label].lease() {
            LeaseState::Held { addr, .. } => Some(*addr),
            _ => None,
        }
    }
}
