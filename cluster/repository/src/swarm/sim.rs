//! Hosts that fetch one image from each other on a virtual clock.
//!
//! Each has a line of the same rate up and one down; either carries one chunk after the other. A host says that it is busy
//! when too many wait. Hosts hear of each other's chunks twice a second. What fails is said by the seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::{Bitfield, Dropped, Event, Failure, Limits, Request, Role, SourceId, Swarm};
use crate::limits::MAX_SERVED_CHUNKS;

/// How long a line takes for a chunk: 1 MiB at 100 Mbit/s.
const CHUNK: Duration = Duration::from_millis(84);
/// From one host to any other.
const LATENCY: Duration = Duration::from_millis(1);
const NEWS: Duration = Duration::from_millis(500);
/// Whoever has not finished after so long never does.
const LIMIT: Duration = Duration::from_secs(3600);

const ORIGIN: SourceId = SourceId(0);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Honest,
    /// Ends at this time.
    Dies(Duration),
    /// Says that it has everything and sends something else.
    Lies,
    /// Says that it has everything and gives nothing.
    Silent,
    /// Says that it has everything and gives a byte a second.
    Trickles,
}

/// How often a byte comes of whoever gives one at a time.
const TRICKLE: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    News(SourceId),
    Arrives(SourceId, Request),
    Answered(SourceId, Request, Answer),
    Trickles(SourceId, Request),
    Wake(SourceId),
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    Chunk,
    Wrong,
    Busy,
    Absent,
    Broken,
}

struct Host {
    kind: Kind,
    swarm: Swarm<ChaCha8Rng>,
    cancelled: BTreeSet<Request>,
    done: Option<Duration>,
    /// When it wakes next.
    wakes: Option<Duration>,
    dropped: Vec<(SourceId, Dropped)>,
}

struct World {
    zero: Instant,
    now: Duration,
    chunks: u32,
    hosts: BTreeMap<SourceId, Host>,
    heap: BinaryHeap<Reverse<(Duration, u64, Happens)>>,
    number: u64,
    /// When each uplink and downlink is free, and how many wait for the uplink.
    up: BTreeMap<SourceId, Duration>,
    down: BTreeMap<SourceId, Duration>,
    waiting: BTreeMap<SourceId, usize>,
    from_origin: u32,
}

impl World {
    fn new(kinds: &[Kind], chunks: u32, seed: u64) -> Self {
        let hosts = kinds.iter().zip(1..).map(|(kind, id)| {
            let rng = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1000) + u64::from(id));
            let host = Host {
                kind: *kind,
                swarm: Swarm::new(Limits::default(), Bitfield::empty(chunks), rng),
                cancelled: BTreeSet::new(),
                done: None,
                wakes: None,
                dropped: Vec::new(),
            };
            (SourceId(id), host)
        });
        let mut world = Self {
            zero: Instant::now(),
            now: Duration::ZERO,
            chunks,
            hosts: hosts.collect(),
            heap: BinaryHeap::new(),
            number: 0,
            up: BTreeMap::new(),
            down: BTreeMap::new(),
            waiting: BTreeMap::new(),
            from_origin: 0,
        };
        let ids: Vec<_> = world.hosts.keys().copied().collect();
        for id in ids {
            world.at(LATENCY * id.0, Happens::News(id));
        }
        world
    }

    fn at(&mut self, time: Duration, what: Happens) {
        self.number += 1;
        self.heap.push(Reverse((time, self.number, what)));
    }

    fn instant(&self) -> Instant {
        self.zero + self.now
    }

    fn is_up(&self, id: SourceId) -> bool {
        let Some(host) = self.hosts.get(&id) else {
            return true;
        };
        !matches!(host.kind, Kind::Dies(at) if at <= self.now)
    }

    fn works(&self, id: SourceId) -> bool {
        self.is_up(id) && !matches!(self.hosts[&id].kind, Kind::Lies | Kind::Silent | Kind::Trickles)
    }

    fn run(&mut self) {
        while let Some(Reverse((time, _, what))) = self.heap.pop() {
            assert!(time < LIMIT, "not done after {LIMIT:?}");
            self.now = time;
            match what {
                Happens::News(id) => self.news(id),
                Happens::Arrives(at, request) => self.arrives(at, request),
                Happens::Answered(id, request, answer) => self.answered(id, request, &answer),
                Happens::Trickles(id, request) => self.trickles(id, request),
                Happens::Wake(id) => {
                    // Others were set earlier.
                    let host = self.hosts.get_mut(&id).unwrap();
                    if host.wakes == Some(time) {
                        host.wakes = None;
                        self.drive(id);
                    }
                }
            }
            let missing = |(id, host): (&SourceId, &Host)| self.works(*id) && host.done.is_none();
            if !self.hosts.iter().any(missing) {
                return;
            }
        }
        panic!("nothing happens any more");
    }

    fn news(&mut self, id: SourceId) {
        if !self.works(id) || self.hosts[&id].done.is_some() {
            return;
        }
        let mut news = vec![(ORIGIN, Role::Origin, Bitfield::full(self.chunks))];
        for (other, host) in self.hosts.iter().filter(|(other, _)| **other != id) {
            let dropped = self.hosts[&id]
                .dropped
                .iter()
                .any(|(dropped, _)| dropped == other);
            if dropped || !self.is_up(*other) {
                continue;
            }
            let have = match host.kind {
                Kind::Lies | Kind::Silent | Kind::Trickles => Bitfield::full(self.chunks),
                _ => host.swarm.have().clone(),
            };
            news.push((*other, Role::Host, have));
        }
        let swarm = &mut self.hosts.get_mut(&id).unwrap().swarm;
        for (other, role, have) in news {
            swarm.source_has(other, role, have);
        }
        self.at(self.now + NEWS, Happens::News(id));
        self.drive(id);
    }

    fn drive(&mut self, id: SourceId) {
        if !self.works(id) || self.hosts[&id].done.is_some() {
            return;
        }
        let (now, time) = (self.instant(), self.now);
        let host = self.hosts.get_mut(&id).unwrap();
        host.swarm.handle_timeout(now);
        let mut asks = Vec::new();
        while let Some(event) = host.swarm.poll_event() {
            match event {
                Event::Cancel(request) => {
                    host.cancelled.insert(request);
                }
                Event::Dropped(source, why) => host.dropped.push((source, why)),
                Event::Complete => host.done = Some(time),
            }
        }
        while let Some(request) = host.swarm.poll_request(now) {
            host.cancelled.remove(&request);
            asks.push(request);
        }
        let wake = host.swarm.poll_timeout(now).map(|wake| wake - self.zero);
        let wake = wake.filter(|wake| host.wakes.is_none_or(|set| *wake < set));
        host.wakes = wake.or(host.wakes);
        for request in asks {
            self.at(time + LATENCY, Happens::Arrives(id, request));
        }
        if let Some(wake) = wake {
            self.at(wake, Happens::Wake(id));
        }
    }

    fn arrives(&mut self, from: SourceId, request: Request) {
        let source = request.source;
        let soon = self.now + LATENCY;
        let answer = match self.hosts.get(&source) {
            _ if !self.is_up(source) => Some(Answer::Broken),
            Some(host) if host.kind == Kind::Silent => return,
            Some(host) if host.kind == Kind::Trickles => {
                self.at(self.now + TRICKLE, Happens::Trickles(from, request));
                return;
            }
            Some(host) if host.kind == Kind::Lies => Some(Answer::Wrong),
            Some(host) if !host.swarm.have().has(request.chunk) => Some(Answer::Absent),
            _ => None,
        };
        if let Some(answer) = answer {
            self.at(soon, Happens::Answered(from, request, answer));
            return;
        }
        let waiting = self.waiting.entry(source).or_default();
        if *waiting >= MAX_SERVED_CHUNKS {
            self.at(soon, Happens::Answered(from, request, Answer::Busy));
            return;
        }
        *waiting += 1;
        let up = self.up.get(&source).copied().unwrap_or_default();
        let down = self.down.get(&from).copied().unwrap_or_default();
        let sent = up.max(self.now) + CHUNK;
        // What two send to one at a time waits before its line, and not in theirs.
        let came = sent.max(down + CHUNK);
        self.up.insert(source, sent);
        self.down.insert(from, came);
        if source == ORIGIN {
            self.from_origin += 1;
        }
        self.at(came, Happens::Answered(from, request, Answer::Chunk));
    }

    fn trickles(&mut self, id: SourceId, request: Request) {
        let now = self.instant();
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.done.is_none()) else {
            return;
        };
        if host.cancelled.contains(&request) {
            return;
        }
        host.swarm.moved(request, now);
        self.at(self.now + TRICKLE, Happens::Trickles(id, request));
        self.drive(id);
    }

    fn answered(&mut self, id: SourceId, request: Request, answer: &Answer) {
        if *answer == Answer::Chunk {
            *self.waiting.get_mut(&request.source).unwrap() -= 1;
        }
        if !self.works(id) {
            return;
        }
        let now = self.instant();
        let up = self.is_up(request.source);
        let host = self.hosts.get_mut(&id).unwrap();
        if host.cancelled.remove(&request) {
            return;
        }
        match answer {
            Answer::Chunk if up => host.swarm.received(request, now),
            Answer::Wrong => host.swarm.wrong(request),
            Answer::Busy => host.swarm.failed(request, Failure::Busy, now),
            Answer::Absent => host.swarm.failed(request, Failure::Absent, now),
            Answer::Chunk | Answer::Broken => host.swarm.failed(request, Failure::Broken, now),
        }
        self.drive(id);
    }

    fn slowest(&self) -> Duration {
        self.hosts.values().filter_map(|host| host.done).max().unwrap()
    }

    /// In images.
    fn sent_by_origin(&self) -> f64 {
        f64::from(self.from_origin) / f64::from(self.chunks)
    }
}

fn honest(hosts: usize, chunks: u32, seed: u64) -> World {
    let mut world = World::new(&vec![Kind::Honest; hosts], chunks, seed);
    world.run();
    world
}

#[test]
fn ten_hosts_cost_little_more_than_one() {
    for seed in 0..5 {
        let one = honest(1, 600, seed);
        assert_eq!(one.sent_by_origin(), 1.0);
        let ten = honest(10, 600, seed);
        let slower = ten.slowest().as_secs_f64() / one.slowest().as_secs_f64();
        let sent = ten.sent_by_origin();
        println!("seed {seed}: {slower:.2} times the time, {sent:.2} images from the origin");
        assert!(slower < 1.6, "seed {seed}: {slower} times the time of one");
        assert!(sent < 1.6, "seed {seed}: the origin sent {sent} images");
    }
}

#[test]
fn the_origin_sends_the_same_to_sixty_four_hosts() {
    for (hosts, most) in [(2, 1.6), (32, 2.0), (64, 2.5)] {
        let world = honest(hosts, 256, 7);
        let sent = world.sent_by_origin();
        println!(
            "{hosts} hosts: {sent:.2} images from the origin, {:?}",
            world.slowest()
        );
        assert!(sent < most, "{hosts} hosts: the origin sent {sent} images");
    }
}

#[test]
fn hosts_that_trickle_cost_less_than_a_minute() {
    for (trickling, seed) in [(1, 1), (2, 2), (8, 3)] {
        let mut kinds = vec![Kind::Trickles; trickling];
        kinds.extend([Kind::Honest; 2]);
        let mut world = World::new(&kinds, 120, seed);
        world.run();
        println!("{trickling} that trickle: {:?}", world.slowest());
        assert!(world.slowest() < Duration::from_secs(60), "{:?}", world.slowest());
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        6 => Just(Kind::Honest),
        1 => (0_u64..20_000).prop_map(|at| Kind::Dies(Duration::from_millis(at))),
        1 => Just(Kind::Lies),
        1 => Just(Kind::Silent),
        1 => Just(Kind::Trickles),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_host_that_lives_gets_the_image_whoever_dies_or_lies(
        mut kinds in prop::collection::vec(kind(), 0..64), chunks in 1_u32..120, seed: u64,
    ) {
        kinds.push(Kind::Honest);
        let mut world = World::new(&kinds, chunks, seed);
        world.run();
        let mut bad = 0;
        for (id, host) in &world.hosts {
            prop_assert!(!world.works(*id) || host.done.is_some());
            for (source, why) in &host.dropped {
                let kind = world.hosts[source].kind;
                let fits = match why {
                    Dropped::WrongChunk(_) => kind == Kind::Lies,
                    Dropped::Silent => matches!(kind, Kind::Silent | Kind::Trickles | Kind::Dies(_)),
                    Dropped::Slow => kind == Kind::Trickles,
                    Dropped::Failing => matches!(kind, Kind::Dies(_)),
                };
                prop_assert!(fits, "{source:?}, which is {kind:?}, was dropped since it {why}");
            }
            bad += usize::from(host.kind != Kind::Honest);
        }
        // Whoever is silent is stepped in for by the origin, and a few chunks are asked twice at the end.
        let most = 3.0 + bad as f64 / 4.0 + 60.0 * kinds.len() as f64 / f64::from(chunks) / 8.0;
        prop_assert!(world.sent_by_origin() <= most, "the origin sent {}", world.sent_by_origin());
    }
}
