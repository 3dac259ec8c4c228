//! Which chunk to ask of whom, so that ten hosts cost the repository little more than one.
//!
//! The planner of one image on one host. It has no socket and no clock: it is told what others have and what came of
//! each request, with the time, and gives requests and events.
//!
//! ```text
//!             picked              received
//!   wanted ───────────► asked ───────────────► had
//!      ▲                  │ failed, bad, silent,
//!      └──────────────────┘ its source gone
//! ```
//!
//! - **Rarest first.** Of what a source has the chunk is asked that the fewest hosts have; among equals each host has an
//!   order of its own, by chance. So hosts that begin together ask the repository for different chunks, and then each
//!   other.
//! - **The origin last.** The repository has everything, and its line is what all hosts share. It is asked for what no
//!   other host has, and for what others say they have only when hardly anything moves.
//! - **Bounds.** A source has few requests at a time, and all together are bounded: what is asked early is asked by old
//!   news. What the origin is asked counts apart, so that hosts cannot take its places.
//! - **Creeping.** While nothing comes of what hosts are asked, though bytes may, the origin is asked whatever hosts say
//!   they have. A host's request that takes many times as long as others is given up, and the host is dropped when that
//!   comes again.
//! - **Silence.** A request without a byte for some time is asked of another. A host that is silent, broken or wrong
//!   about what it has several times in a row is dropped; one that sends a wrong chunk, at once. The origin is dropped
//!   for wrong chunks alone: otherwise it is waited for.
//! - **The end.** When everything is asked and something is late, another source is asked as well; who comes second is
//!   cancelled.
//!
//! Order of calls: any inputs, then [`Swarm::handle_timeout`] where [`Swarm::poll_timeout`] has passed, then
//! [`Swarm::poll_event`] and [`Swarm::poll_request`] until they give nothing.

mod bitfield;
mod rarity;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rand::Rng;

pub use bitfield::Bitfield;
use rarity::Wanted;

/// Somebody who has chunks, as numbered by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32);

/// What a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The repository, which has everything.
    Origin,
    /// Another host.
    Host,
}

/// How much is asked at a time, and how long it is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most requests to hosts at a time.
    pub in_flight: usize,
    /// Most of these to one host.
    pub per_host: usize,
    /// Most to the origin.
    pub per_origin: usize,
    /// A request without a byte for so long is given up.
    pub stall: Duration,
    /// A request that takes so long is given up. Less than a fetch waits for a chunk, or one creeping source ends it.
    pub chunk: Duration,
    /// A host's request that takes so many times as long as is usual is given up, though not before `stall`.
    pub far: u32,
    /// A request without a byte for so long does not count as one that moves.
    pub quiet: Duration,
    /// With fewer requests that move the origin is asked for what hosts say they have.
    pub moving: usize,
    /// How many failures in a row a host may have.
    pub strikes: u32,
    /// What takes so long at the end is asked of another host as well; of the origin, after four times that.
    pub late: Duration,
}

impl Default for Limits {
    /// For chunks of 1 to 4 MiB and lines of 10 Mbit/s and more.
    fn default() -> Self {
        Self {
            in_flight: 12,
            per_host: 2,
            per_origin: 2,
            stall: Duration::from_secs(10),
            chunk: Duration::from_secs(45),
            far: 8,
            quiet: Duration::from_secs(2),
            moving: 2,
            strikes: 3,
            late: Duration::from_secs(1),
        }
    }
}

/// A chunk, asked of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// Whom.
    pub source: SourceId,
    /// The chunk.
    pub chunk: u32,
}

/// How a request failed, other than by silence or a wrong chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The source has too much to do now.
    Busy,
    /// It does not have the chunk.
    Absent,
    /// It cannot be reached, or broke off.
    Broken,
}

/// Why a source is asked no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// It sent something else than the chunk.
    WrongChunk(u32),
    /// It gave nothing, several times.
    Silent,
    /// It took far longer than others, several times.
    Slow,
    /// It failed, several times.
    Failing,
}

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::WrongChunk(chunk) => write!(f, "sent something else as chunk {chunk}"),
            Self::Silent => f.write_str("gave nothing"),
            Self::Slow => f.write_str("took far longer than others"),
            Self::Failing => f.write_str("failed again and again"),
        }
    }
}

/// What the driver has to do or know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The request is not needed any more; nothing more is to be said of it.
    Cancel(Request),
    /// The source is asked no more and forgotten. Its requests were cancelled.
    Dropped(SourceId, Dropped),
    /// Every chunk is here.
    Complete,
}

/// How long a source is left alone after a failure, and at most.
const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// While hosts give nothing for so many times `late`, the origin is asked what they say they have.
const STARVING: u32 = 4;

#[derive(Debug, Clone, Copy)]
struct Asked {
    since: Instant,
    moved: Instant,
}

#[derive(Debug)]
struct Source {
    role: Role,
    have: Bitfield,
    /// How many chunks it has that are wanted.
    useful: u32,
    asked: BTreeMap<u32, Asked>,
    strikes: u32,
    pauses: u32,
    not_before: Option<Instant>,
}

impl Source {
    fn pause(&mut self, now: Instant) {
        let pause = PAUSE.saturating_mul(1 << self.pauses.min(16)).min(MAX_PAUSE);
        self.pauses = self.pauses.saturating_add(1);
        self.not_before = Some(now + pause);
    }

    fn is_ready(&self, limits: &Limits, now: Instant) -> bool {
        let most = match self.role {
            Role::Origin => limits.per_origin,
            Role::Host => limits.per_host,
        };
        self.asked.len() < most && self.not_before.is_none_or(|time| time <= now)
    }
}

/// The planner.
#[derive(Debug)]
pub struct Swarm<R> {
    limits: Limits,
    rng: R,
    have: Bitfield,
    wanted: Wanted,
    sources: BTreeMap<SourceId, Source>,
    /// Of each chunk that is asked, how often.
    asked: BTreeMap<u32, usize>,
    /// When a host last gave a chunk.
    gave: Option<Instant>,
    usual: Usual,
    events: VecDeque<Event>,
}

/// How long a chunk took of late, by whose it was.
#[derive(Debug, Default)]
struct Usual {
    hosts: Option<Duration>,
    origin: Option<Duration>,
}

impl Usual {
    fn took(&mut self, role: Role, time: Duration) {
        let of = match role {
            Role::Host => &mut self.hosts,
            Role::Origin => &mut self.origin,
        };
        *of = Some(of.map_or(time, |before| (before * 3 + time) / 4));
    }

    /// Hosts are compared with each other while any gives something: the origin's line may be far better.
    fn time(&self) -> Option<Duration> {
        self.hosts.or(self.origin)
    }
}

impl<R: Rng> Swarm<R> {
    /// Wants what is not had.
    pub fn new(limits: Limits, have: Bitfield, mut rng: R) -> Self {
        let wanted = Wanted::new(&have, &mut rng);
        let mut swarm = Self {
            limits,
            rng,
            have,
            wanted,
            sources: BTreeMap::new(),
            asked: BTreeMap::new(),
            gave: None,
            usual: Usual::default(),
            events: VecDeque::new(),
        };
        swarm.note_complete();
        swarm
    }

    /// What is had.
    #[must_use]
    pub fn have(&self) -> &Bitfield {
        &self.have
    }

    /// How many sources may be asked.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    /// How many requests are under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.asked.values().sum()
    }

    /// A source is there, or has other chunks than before.
    pub fn source_has(&mut self, id: SourceId, role: Role, have: Bitfield) {
        if have.len() != self.have.len() {
            return;
        }
        let source = self.sources.entry(id).or_insert_with(|| Source {
            role,
            have: Bitfield::empty(have.len()),
            useful: 0,
            asked: BTreeMap::new(),
            strikes: 0,
            pauses: 0,
            not_before: None,
        });
        let before = std::mem::replace(&mut source.have, have);
        if source.role == Role::Host {
            self.wanted.changed(&before, &source.have);
        }
        source.useful = self.wanted.useful(&source.have);
    }

    /// A source is gone.
    pub fn source_left(&mut self, id: SourceId) {
        let Some(source) = self.sources.remove(&id) else {
            return;
        };
        if source.role == Role::Host {
            let nothing = Bitfield::empty(source.have.len());
            self.wanted.changed(&source.have, &nothing);
        }
        for chunk in source.asked.into_keys() {
            self.events
                .push_back(Event::Cancel(Request { source: id, chunk }));
            self.unasked(chunk);
        }
    }

    /// Bytes of a chunk came.
    pub fn moved(&mut self, request: Request, now: Instant) {
        let source = self.sources.get_mut(&request.source);
        if let Some(asked) = source.and_then(|source| source.asked.get_mut(&request.chunk)) {
            asked.moved = now;
        }
    }

    /// A chunk came, was compared with its digest and is kept.
    pub fn received(&mut self, request: Request, now: Instant) {
        let Request { source: id, chunk } = request;
        if let Some(source) = self.sources.get_mut(&id) {
            (source.strikes, source.pauses, source.not_before) = (0, 0, None);
            if source.role == Role::Host {
                self.gave = Some(now);
            }
            if let Some(asked) = source.asked.remove(&chunk) {
                let time = now.saturating_duration_since(asked.since);
                self.usual.took(source.role, time);
            }
        }
        if !self.have.insert(chunk) {
            return;
        }
        self.asked.remove(&chunk);
        self.unwant(chunk);
        for (id, source) in &mut self.sources {
            if source.asked.remove(&chunk).is_some() {
                let late = Request { source: *id, chunk };
                self.events.push_back(Event::Cancel(late));
            }
        }
        self.note_complete();
    }

    /// A chunk came that is another than it should be. Its source is dropped.
    pub fn wrong(&mut self, request: Request) {
        self.drop_source(request.source, Dropped::WrongChunk(request.chunk));
    }

    /// A request failed.
    pub fn failed(&mut self, request: Request, failure: Failure, now: Instant) {
        let Request { source: id, chunk } = request;
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        if source.asked.remove(&chunk).is_none() {
            return;
        }
        source.pause(now);
        // The origin has everything, or is to have it again.
        if failure == Failure::Absent && source.role == Role::Host && source.have.has(chunk) {
            let before = source.have.clone();
            source.have.remove(chunk);
            self.wanted.changed(&before, &source.have);
        }
        if failure != Failure::Busy {
            source.strikes += 1;
        }
        let drop = source.strikes >= self.limits.strikes && source.role == Role::Host;
        self.unasked(chunk);
        if drop {
            self.drop_source(id, Dropped::Failing);
        }
    }

    /// Gives up what stands still or creeps.
    pub fn handle_timeout(&mut self, now: Instant) {
        let (limits, slow) = (self.limits, self.slow());
        let mut given_up = Vec::new();
        for (id, source) in &mut self.sources {
            let why = |asked: &Asked| {
                if now >= asked.moved + limits.stall || now >= asked.since + limits.chunk {
                    Some(Dropped::Silent)
                } else {
                    (source.role == Role::Host && now >= asked.since + slow).then_some(Dropped::Slow)
                }
            };
            let ended: Vec<_> = source
                .asked
                .iter()
                .filter_map(|(chunk, asked)| Some((*chunk, why(asked)?)))
                .collect();
            for (chunk, why) in ended {
                source.asked.remove(&chunk);
                source.strikes += 1;
                given_up.push((Request { source: *id, chunk }, why));
            }
        }
        for (request, why) in given_up {
            self.events.push_back(Event::Cancel(request));
            self.unasked(request.chunk);
            let Some(source) = self.sources.get_mut(&request.source) else {
                continue;
            };
            source.pause(now);
            let most = match why {
                Dropped::Silent => limits.strikes.min(2),
                _ => limits.strikes,
            };
            if source.strikes >= most && source.role == Role::Host {
                self.drop_source(request.source, why);
            }
        }
    }

    /// After how long a host's request is far slower than others.
    fn slow(&self) -> Duration {
        let Limits {
            far, stall, chunk, ..
        } = self.limits;
        let slow = self
            .usual
            .time()
            .map(|usual| usual.saturating_mul(far).max(stall));
        slow.unwrap_or(chunk)
    }

    /// When [`Self::handle_timeout`] or [`Self::poll_request`] may have something to do though nothing comes.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let (limits, slow) = (&self.limits, self.slow());
        let starving = STARVING * limits.late;
        let of_request = |asked: &Asked| {
            [
                asked.moved + limits.stall,
                asked.since + limits.chunk,
                asked.since + slow,
                asked.moved + limits.quiet,
                asked.since + limits.late,
                asked.since + 4 * limits.late,
                asked.since + starving,
            ]
        };
        let of_source = |source: &Source| {
            let requests: Vec<_> = source.asked.values().flat_map(of_request).collect();
            requests.into_iter().chain(source.not_before)
        };
        let times = self.sources.values().flat_map(of_source);
        let times = times.chain(self.gave.map(|gave| gave + starving));
        // What has passed was seen to when it was polled.
        times.filter(|time| *time > now).min()
    }

    /// What the driver has to do or know next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What to ask next.
    pub fn poll_request(&mut self, now: Instant) -> Option<Request> {
        if self.have.is_full() {
            return None;
        }
        let hosts = self.sources.values().filter(|source| source.role == Role::Host);
        let room = hosts.map(|source| source.asked.len()).sum::<usize>() < self.limits.in_flight;
        let of_host = if room { self.ask_host(now) } else { None };
        let request = of_host
            .or_else(|| self.ask_origin(now))
            .or_else(|| self.again(now, room))?;
        self.unwant(request.chunk);
        *self.asked.entry(request.chunk).or_default() += 1;
        let source = self.sources.get_mut(&request.source)?;
        let asked = Asked {
            since: now,
            moved: now,
        };
        source.asked.insert(request.chunk, asked);
        Some(request)
    }

    /// The rarest that the host has which is asked the least.
    fn ask_host(&mut self, now: Instant) -> Option<Request> {
        let limits = &self.limits;
        let ready =
            |source: &&Source| source.role == Role::Host && source.useful > 0 && source.is_ready(limits, now);
        let least = self
            .sources
            .values()
            .filter(ready)
            .map(|source| source.asked.len())
            .min()?;
        let ready: Vec<_> = self
            .sources
            .iter()
            .filter(|(_, source)| ready(source) && source.asked.len() == least)
            .collect();
        let at = usize::try_from(self.rng.next_u64() % ready.len() as u64).ok()?;
        let (id, source) = ready.get(at)?;
        let chunk = self.wanted.rarest_of(&source.have)?;
        Some(Request { source: **id, chunk })
    }

    fn ask_origin(&mut self, now: Instant) -> Option<Request> {
        let ready = |source: &Source| {
            source.role == Role::Origin && source.useful > 0 && source.is_ready(&self.limits, now)
        };
        let (id, source) = self.sources.iter().find(|(_, source)| ready(source))?;
        let chunk = self.wanted.rarest_of(&source.have)?;
        let moving = || {
            let all = self.sources.values().flat_map(|source| source.asked.values());
            all.filter(|asked| now < asked.moved + self.limits.quiet).count()
        };
        (self.wanted.rarity(chunk) == 0 || moving() < self.limits.moving || self.is_starving(now))
            .then_some(Request { source: *id, chunk })
    }

    /// Whether hosts are asked and none gives a chunk.
    fn is_starving(&self, now: Instant) -> bool {
        let patience = STARVING * self.limits.late;
        let hosts = self.sources.values().filter(|source| source.role == Role::Host);
        let mut asked = hosts.flat_map(|source| source.asked.values());
        asked.any(|asked| now >= asked.since + patience)
            && self.gave.is_none_or(|gave| now >= gave + patience)
    }

    /// At the end: what is late, of one more.
    fn again(&self, now: Instant, room: bool) -> Option<Request> {
        if !self.wanted.is_empty() {
            return None;
        }
        let mut late: Vec<_> = self
            .sources
            .values()
            .flat_map(|source| &source.asked)
            .filter(|(chunk, _)| self.asked.get(chunk) == Some(&1))
            .map(|(chunk, asked)| (asked.since, *chunk))
            .collect();
        late.sort_unstable();
        late.iter().find_map(|(since, chunk)| {
            let patience = |role| match role {
                Role::Host => self.limits.late,
                Role::Origin => 4 * self.limits.late,
            };
            let other = self.sources.iter().find(|(_, source)| {
                (room || source.role == Role::Origin)
                    && source.have.has(*chunk)
                    && !source.asked.contains_key(chunk)
                    && source.is_ready(&self.limits, now)
                    && now >= *since + patience(source.role)
            });
            other.map(|(id, _)| Request {
                source: *id,
                chunk: *chunk,
            })
        })
    }

    fn drop_source(&mut self, id: SourceId, why: Dropped) {
        if self.sources.contains_key(&id) {
            self.source_left(id);
            self.events.push_back(Event::Dropped(id, why));
        }
    }

    /// A request for a chunk has ended without it.
    fn unasked(&mut self, chunk: u32) {
        let Some(times) = self.asked.get_mut(&chunk) else {
            return;
        };
        *times -= 1;
        if *times > 0 {
            return;
        }
        self.asked.remove(&chunk);
        if !self.have.has(chunk) && self.wanted.insert(chunk) {
            for source in self.sources.values_mut().filter(|source| source.have.has(chunk)) {
                source.useful += 1;
            }
        }
    }

    fn unwant(&mut self, chunk: u32) {
        if self.wanted.remove(chunk) {
            for source in self.sources.values_mut().filter(|source| source.have.has(chunk)) {
                source.useful = source.useful.saturating_sub(1);
            }
        }
    }

    fn note_complete(&mut self) {
        if self.have.is_full() {
            self.events.push_back(Event::Complete);
        }
    }
}
