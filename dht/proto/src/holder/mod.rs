//! The holder: claims an address and its name, and keeps both.
//!
//! ```text
//!           acquire            votes on both keys            the name, then the address, with certificates
//!  ┌──────┐ ──────► ┌─────────┐ ───────► ┌───────────────┐ ───────► ┌──────────────┐ ───────► ┌──────┐
//!  │ idle │         │ waiting │          │ first (10 s)  │          │ long (30 min)│          │ held │◄─┐ renewal
//!  └──────┘         └─────────┘ ◄─────── └───────────────┘ ◄─────── └──────────────┘          └──────┘──┘ each 5 min
//!                     ▲   ▲     no quorum, split, taken: release both,                           │
//!                     │   │     next candidate                                                   │
//!                     │   └──────────────────────── an older certificate of another holder: lost ┤
//!                     └─ failed (fixed address taken, range full)                                │
//!                                                             another instance is alive: cloned ◄┘
//! ```
//!
//! The address key and the name key are claimed at the same time, and released together when either fails, so that
//! both have the same holder or none. In the long claim the name comes first, and the address shows its certificate:
//! the witnesses of a name count with how many addresses it is leased, so that a member that means no good holds no more
//! than a few. A lost race costs one round trip: the next candidate is another address. The
//! candidates are the address held last, then H(peer, attempt) in the range, then a scan; when that has found
//! nothing free, the range is full and the claim says so. After a restart with valid certificates in the store the
//! long claim is made at once.
//!
//! A holder whose renewals find no quorum keeps its address: nobody else can have it while that lasts. It yields to a
//! valid certificate of another holder that survives against its own, and claims anew. First it asks that holder, since
//! a certificate outlasts the lease that was given back: a live lease is not lost to one that nobody holds any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aerie_types::{AddressPool, Instance, Key, NodeName, PeerId, VirtualAddr, VirtualRange};
use serde::{Deserialize, Serialize};

use crate::lease::{Certificate, Proof, Terms, addr_key, name_key};
use crate::limits::{RANDOM_ATTEMPTS, SCAN};
use crate::round::{Outcome, Round};
use crate::store::Store;
use crate::{Error, Event, Keys, Now, Register};

mod claim;
mod release;
mod renew;

/// The row that holds the own lease.
const LEASE_ROW: &[u8] = b"lease";

/// The longest wait between two renewals that fail.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The longest wait, about, between two claims that find no quorum. News of members cut it short.
const MAX_CLAIM_BACKOFF: Duration = Duration::from_secs(8);

/// How long the name may be another holder's before it is asked for again.
const NAME_RETRY: Duration = Duration::from_secs(5);

/// How long a full range is left alone.
const FULL_RETRY: Duration = Duration::from_secs(60);

/// Witnesses remembered for a release.
const MAX_TO_RELEASE: usize = 64;

/// What to claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AcquireRequest {
    /// The node's name, as its credential has it.
    pub name: NodeName,
    /// This address and no other.
    pub fixed: Option<VirtualAddr>,
}

/// A lease that this node holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HeldLease {
    /// The address.
    pub addr: VirtualAddr,
    /// The name.
    pub name: NodeName,
    /// Until when the certificates are valid. The address is kept beyond that while no other holder shows up.
    pub until: Instant,
    /// The certificate of the address.
    pub certificate: Certificate,
    /// The certificate of the name.
    pub name_certificate: Certificate,
}

/// Why an address was lost.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum LostReason {
    /// Another holder has an older certificate; a new address is being claimed.
    #[error(
        "{addr} was also leased to {winner} while the grid was torn apart, and its lease is older; this node is \
         taking a new address"
    )]
    Conflict {
        /// The address that was lost.
        addr: VirtualAddr,
        /// Who keeps it.
        winner: PeerId,
    },
    /// Another instance of this node is alive. This one stops.
    #[error(
        "another running copy of this node holds its lease: its disk was copied, or it runs twice; stop one of \
         the two, or enrol this one anew with keys of its own"
    )]
    Cloned,
}

/// Why a claim failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// The fixed address is another node's.
    #[error(
        "{addr} is leased to {holder} for {} s yet; ask for another address or none, or stop that node",
        remaining.as_secs()
    )]
    FixedTaken {
        /// The address.
        addr: VirtualAddr,
        /// Who has it.
        holder: PeerId,
        /// For how long at least.
        remaining: Duration,
    },
    /// Others want the fixed address at the same time, again and again.
    #[error("{addr} is being claimed by several nodes at once; give each of them an address of its own")]
    FixedContended {
        /// The address.
        addr: VirtualAddr,
    },
    /// The fixed address is not of the grid.
    #[error("{addr} is not in the grid's range {range}; ask for an address within it, or for none")]
    FixedOutside {
        /// The address.
        addr: VirtualAddr,
        /// The range.
        range: VirtualRange,
    },
    /// The fixed address is leased to nobody.
    #[error("{addr} is excluded from the addresses of the grid; ask for another, or for none")]
    FixedExcluded {
        /// The address.
        addr: VirtualAddr,
    },
    /// Nothing free was found.
    #[error(
        "no address of {range} is free ({tried} tried); remove nodes that are not needed, or give the grid a \
         larger range. This is tried again every {} s",
        FULL_RETRY.as_secs()
    )]
    Full {
        /// The range.
        range: VirtualRange,
        /// How many addresses were tried.
        tried: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    First,
    Long,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    Waiting { until: Instant },
    Claiming(Stage),
    Held { renew_at: Instant },
    Failed { retry: Option<Instant> },
    Cloned,
}

/// The course of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Plan {
    request: AcquireRequest,
    since: Instant,
    /// The number of the candidate.
    attempt: u32,
    /// Split votes on a fixed address.
    splits: u32,
    /// Whether the pass through the range met a vote that was split, so that it may not be full after all.
    unsure: bool,
}

/// The holder's state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Holding {
    phase: Phase,
    plan: Option<Plan>,
    lease: Option<Lease>,
    rounds: Option<Box<[Round; 2]>>,
    /// Who may have granted, by key.
    asked: [BTreeSet<PeerId>; 2],
    /// Who has this node's credential and those of its witnesses.
    informed: BTreeSet<PeerId>,
    /// Holders of certificates that survive this node's own, who are being asked whether they hold the key yet.
    rivals: BTreeMap<Key, Rival>,
    /// Leases that were given back lately.
    given_back: BTreeMap<Key, GivenBack>,
    seq: u64,
    backoff: Duration,
    waiting_for: String,
    /// The lease of before the restart, or the last that was held.
    last: Option<LeaseRow>,
    leaving: Option<usize>,
    clone_told: Option<Instance>,
    /// An earlier assertion has to be repeated after the round under way.
    assert: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Rival {
    other: Certificate,
    tries: u8,
    /// When to ask again, if no answer is waited for.
    again: Option<Instant>,
}

/// A lease that this instance gave back, and who was told. Those that become witnesses of its key while certificates of
/// it may be about have to be told too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct GivenBack {
    seq: u64,
    until: Instant,
    told: BTreeSet<PeerId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Lease {
    addr: VirtualAddr,
    name: NodeName,
    certificates: [Certificate; 2],
    until: [Instant; 2],
    /// The witnesses do not accept the certificate any more, since the grid has grown.
    refused: [bool; 2],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct LeaseRow {
    addr: VirtualAddr,
    proofs: [Option<Proof>; 2],
}

impl Holding {
    pub(crate) fn at_start(meta: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Self, Error> {
        let last = meta.get(LEASE_ROW).map(|bytes| postcard::from_bytes(bytes));
        let last = last.transpose().map_err(|_| Error::Row { table: "meta" })?;
        Ok(Self {
            phase: Phase::Idle,
            plan: None,
            lease: None,
            rounds: None,
            asked: [BTreeSet::new(), BTreeSet::new()],
            informed: BTreeSet::new(),
            rivals: BTreeMap::new(),
            given_back: BTreeMap::new(),
            seq: 0,
            backoff: Duration::ZERO,
            waiting_for: String::new(),
            last,
            leaving: None,
            clone_told: None,
            assert: false,
        })
    }
}

impl Holding {
    /// A member lost its connection: what it was told while it was away may not have come.
    pub(crate) fn untold(&mut self, peer: PeerId) {
        for given_back in self.given_back.values_mut() {
            given_back.told.remove(&peer);
        }
    }
}

impl Plan {
    /// The address to try.
    fn candidate(&self, pool: &AddressPool, me: PeerId, last: Option<VirtualAddr>) -> VirtualAddr {
        if let Some(fixed) = self.request.fixed {
            return fixed;
        }
        let last = last.filter(|last| pool.leases(*last));
        match (self.attempt, last) {
            (0, Some(last)) => last,
            (attempt, _) => pool.nth(index(me, attempt)),
        }
    }

    /// Whether all candidates were tried. A scan begins where the hash points, each node's elsewhere.
    fn exhausted(&self, pool: &AddressPool) -> bool {
        self.attempt > RANDOM_ATTEMPTS + SCAN.min(pool.capacity())
    }
}

fn index(me: PeerId, attempt: u32) -> u32 {
    let hashed = attempt.min(RANDOM_ATTEMPTS);
    let key = aerie_types::Key::of("aerie/candidate", &[&me.0, &hashed.to_be_bytes()]);
    let [a, b, c, d, ..] = key.0;
    u32::from_be_bytes([a, b, c, d]).wrapping_add(attempt - hashed)
}

impl<S: Store, K: Keys> Register<S, K> {
    /// Claims an address and the name, and keeps them renewed. Progress comes as events.
    pub fn acquire(&mut self, request: AcquireRequest, now: Now) {
        if matches!(self.holding.phase, Phase::Cloned) {
            self.event(Event::Lost(LostReason::Cloned));
            return;
        }
        self.give_back(now);
        if let Some(addr) = request.fixed
            && !self.config.pool.leases(addr)
        {
            let range = self.config.pool.range();
            let failure = if range.contains(addr) {
                Failure::FixedExcluded { addr }
            } else {
                Failure::FixedOutside { addr, range }
            };
            self.holding.phase = Phase::Failed { retry: None };
            return self.event(Event::Failed(failure));
        }
        self.holding.plan = Some(Plan {
            request,
            since: now.instant,
            attempt: 0,
            splits: 0,
            unsure: false,
        });
        self.holding.phase = Phase::Waiting { until: now.instant };
        self.holder_due(now);
        self.settle(now);
    }

    /// The lease that is held.
    #[must_use]
    pub fn lease(&self) -> Option<HeldLease> {
        let lease = self.holding.lease.as_ref()?;
        let [certificate, name_certificate] = lease.certificates.clone();
        Some(HeldLease {
            addr: lease.addr,
            name: lease.name.clone(),
            until: lease.until[0].min(lease.until[1]),
            certificate,
            name_certificate,
        })
    }

    /// Whether this instance has stopped since another one is alive.
    #[must_use]
    pub fn is_cloned(&self) -> bool {
        matches!(self.holding.phase, Phase::Cloned)
    }

    /// The certificate of the address that is held, with its witnesses' credentials.
    #[must_use]
    pub fn proof(&self) -> Option<Proof> {
        let lease = self.holding.lease.as_ref()?;
        Some(self.proof_of(lease.certificates[0].clone()))
    }

    /// This node's own certificate of a key, if it is valid.
    pub(crate) fn own_certificate(&self, key: Key, now: Instant) -> Option<(Certificate, Instant)> {
        let lease = self.holding.lease.as_ref()?;
        let slot = lease.certificates.iter().position(|own| own.terms.key == key)?;
        (lease.until[slot] > now).then(|| (lease.certificates[slot].clone(), lease.until[slot]))
    }

    /// Whether it is not known yet if this node holds a key: it is about to claim it again, or is one of two copies.
    pub(crate) fn may_hold(&self, key: Key) -> bool {
        match self.holding.phase {
            Phase::Cloned => true,
            Phase::Waiting { .. } | Phase::Claiming(_) => {
                let grid = self.config.grid;
                let name = |plan: &Plan| name_key(grid, &plan.request.name) == key;
                let last = |last: &LeaseRow| addr_key(grid, last.addr) == key;
                self.holding.plan.as_ref().is_some_and(name) || self.holding.last.as_ref().is_some_and(last)
            }
            _ => false,
        }
    }

    pub(crate) fn holder_timeout(&self) -> Option<Instant> {
        let round = self.holding.rounds.as_ref().and_then(|rounds| {
            let open = rounds.iter().filter(|round| round.outcome.is_none());
            open.map(|round| round.started + crate::round::ROUND_TIMEOUT)
                .min()
        });
        let phase = match &self.holding.phase {
            Phase::Waiting { until } => Some(*until),
            Phase::Held { renew_at } if self.holding.rounds.is_none() => Some(*renew_at),
            Phase::Failed { retry } => *retry,
            _ => None,
        };
        let rivals = self.holding.rivals.values().filter_map(|rival| rival.again);
        round.into_iter().chain(phase).chain(rivals).min()
    }

    pub(crate) fn holder_due(&mut self, now: Now) {
        self.rivals_due(now);
        match self.holding.phase {
            Phase::Waiting { until } if until <= now.instant => self.claim_candidate(now),
            Phase::Failed { retry: Some(retry) } if retry <= now.instant => {
                if let Some(plan) = &mut self.holding.plan {
                    plan.attempt = 0;
                    plan.unsure = false;
                }
                self.claim_candidate(now);
            }
            Phase::Held { renew_at } if renew_at <= now.instant && self.holding.rounds.is_none() => {
                self.renew(now);
            }
            _ => {}
        }
        if self.holding.rounds.is_some() {
            self.pump(now);
        }
    }

    /// Something has changed that may let a waiting claim, or a renewal that lacks receipts, succeed now.
    pub(crate) fn holder_nudged(&mut self, now: Now) {
        let lacking = self.lacks_receipts(now);
        match &mut self.holding.phase {
            Phase::Waiting { until } => {
                self.holding.backoff = Duration::ZERO;
                *until = (*until).min(now.instant);
            }
            Phase::Held { renew_at } => {
                if lacking {
                    self.holding.backoff = Duration::ZERO;
                    *renew_at = (*renew_at).min(now.instant + self.config.timings.retry / 4);
                }
            }
            _ => return,
        }
        self.holder_due(now);
    }

    /// Whether the grid has outgrown a certificate of the lease.
    fn lacks_receipts(&self, now: Now) -> bool {
        let lease = self.holding.lease.as_ref();
        lease.is_some_and(|lease| lease.certificates.iter().any(|own| self.outgrown(own, now)))
    }

    fn start_rounds(
        &mut self,
        addr: VirtualAddr,
        name: &NodeName,
        ttl: Duration,
        proofs: [Option<Proof>; 2],
        now: Now,
    ) {
        let grid = self.config.grid;
        let keys = [addr_key(grid, addr), name_key(grid, name)];
        self.holding.seq += 1;
        let seq = self.holding.seq;
        let rule = self.config.quorum;
        let first_ttl = self.config.timings.first_ttl;
        let leased = |proof: &Proof| proof.certificate.ttl() > first_ttl;
        let home = proofs[1].clone().filter(leased);
        let mut rounds = Vec::with_capacity(2);
        for (key, proof) in keys.into_iter().zip(proofs) {
            let terms = Terms {
                grid,
                key,
                holder: self.me,
                addr,
                name: name.clone(),
                instance: self.instance,
                since: proof.as_ref().map(|proof| proof.certificate.since()),
            };
            let id = self.fresh_id();
            let mut round = Round::new(id, terms, seq, ttl, proof, rule, now.instant);
            round.named = self.named.is_on().then(|| self.named.quorum());
            rounds.push(round);
        }
        if let Some(addr) = rounds.first_mut()
            && ttl > first_ttl
        {
            addr.held_back = home.is_none();
            addr.home = home;
        }
        let begin = rounds.iter().filter(|round| !round.held_back);
        let ids: Vec<_> = begin.map(|round| (round.id, round.key())).collect();
        self.holding.rounds = rounds.try_into().ok().map(Box::new);
        for (id, key) in ids {
            self.locate_round(id, key, now);
        }
    }

    /// Begins the round of the address when that of the name, for which it waited, is won.
    fn begin_held_back(&mut self, now: Now) {
        let Some(rounds) = &self.holding.rounds else {
            return;
        };
        let [addr, name] = rounds.as_ref();
        if !addr.held_back || addr.home.is_some() {
            return;
        }
        let home = match &name.outcome {
            None => return,
            Some(Outcome::Lost(_)) => None,
            Some(Outcome::Won(certificate)) => Some(self.proof_of(certificate.clone())),
        };
        let (id, key) = (addr.id, addr.key());
        let Some(addr) = self.round_mut(id) else {
            return;
        };
        if home.is_some() {
            addr.home = home;
            addr.started = now.instant;
            self.locate_round(id, key, now);
        } else {
            addr.outcome = Some(Outcome::Lost(crate::round::Loss::default()));
            self.pump(now);
        }
    }

    /// Works on the rounds under way, and draws the conclusion when they are decided.
    pub(crate) fn pump(&mut self, now: Now) {
        let Some(mut rounds) = self.holding.rounds.take() else {
            return;
        };
        for (slot, round) in rounds.iter_mut().enumerate() {
            self.pump_round(round, slot, now);
        }
        let lost = |round: &Round| matches!(round.outcome, Some(Outcome::Lost(_)));
        let all = rounds.iter().all(|round| round.outcome.is_some());
        let claiming = matches!(self.holding.phase, Phase::Claiming(_));
        if !(all || claiming && rounds.iter().any(lost)) {
            self.holding.rounds = Some(rounds);
            return self.begin_held_back(now);
        }
        match self.holding.phase.clone() {
            Phase::Claiming(stage) => self.claimed(stage, *rounds, now),
            Phase::Held { .. } => self.renewed(*rounds, now),
            _ => {}
        }
    }

    pub(crate) fn note_asked(&mut self, rounds: &[Round; 2]) {
        for (asked, round) in self.holding.asked.iter_mut().zip(rounds) {
            for peer in round.asked() {
                if asked.len() < MAX_TO_RELEASE {
                    asked.insert(peer);
                }
            }
        }
    }

    pub(crate) fn is_informed(&self, peer: PeerId) -> bool {
        self.holding.informed.contains(&peer)
    }

    pub(crate) fn set_informed(&mut self, peer: PeerId) {
        if self.holding.informed.len() < MAX_TO_RELEASE {
            self.holding.informed.insert(peer);
        }
    }

    pub(crate) fn round_mut(&mut self, id: u64) -> Option<&mut Round> {
        let rounds = self.holding.rounds.as_mut()?;
        rounds.iter_mut().find(|round| round.id == id)
    }

    fn save_lease(&mut self) {
        let Some(lease) = &self.holding.lease else {
            return;
        };
        let proofs = lease
            .certificates
            .clone()
            .map(|certificate| Some(self.proof_of(certificate)));
        let row = LeaseRow {
            addr: lease.addr,
            proofs,
        };
        self.persist_meta(LEASE_ROW, Some(&row));
        self.holding.last = Some(row);
    }

    fn wait(&mut self, reason: String, wait: Duration, now: Now) {
        self.holding.phase = Phase::Waiting {
            until: now.instant + wait,
        };
        if self.holding.waiting_for != reason {
            self.holding.waiting_for.clone_from(&reason);
            self.event(Event::Waiting { reason });
        }
    }
}

/// Until when the holder itself may rely on a certificate: counted from before the first witness was asked, and a
/// little less, for clocks that run at different speeds.
fn valid_until(started: Instant, certificate: &Certificate) -> Instant {
    let ttl = certificate.ttl();
    started + (ttl - ttl / 64)
}
