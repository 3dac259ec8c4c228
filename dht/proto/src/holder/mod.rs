//! The holder: claims an address and its name, or a prefix, and keeps them.
//!
//! ```text
//!           acquire            votes on the address        the name, then the address, with certificates
//!  ┌──────┐ ──────► ┌─────────┐ ───────► ┌───────────────┐ ───────► ┌──────────────┐ ───────► ┌──────┐
//!  │ idle │         │ waiting │          │ first (10 s)  │          │ long (30 min)│          │ held │◄─┐ renewal
//!  └──────┘         └─────────┘ ◄─────── └───────────────┘ ◄─────── └──────────────┘          └──────┘──┘ each 5 min
//!                     ▲   ▲     no quorum, split, taken: release both,                           │
//!                     │   │     next candidate                                                   │
//!                     │   └──────────────────────── an older certificate of another holder: lost ┤
//!                     └─ failed (fixed one taken, none free)                                     │
//!                                                             another instance is alive: cloned ◄┘
//! ```
//!
//! This is walked once for the node's address and, where one is asked for, once more for a prefix: each kind has a
//! state of its own, and neither waits for the other or is lost with it. Only a copy of the node ends both, and leaving
//! gives both back. What is said of an address below holds for a prefix too, with the key of the router of the node's
//! name in the place of that of its name.
//!
//! The address key is won for ten seconds first, and then for long together with the name key; both are released
//! together when either fails, so that both have the same holder or none. In the long claim the name comes first, and
//! the address shows its certificate: the witnesses of a name count with how many addresses it is leased, so that a
//! member that means no good holds no more than a few. The first candidate is likely to be free: for that one the name
//! is asked for at once, and a claim that nobody contends is two round trips. A lost race costs one round trip: the next
//! candidate is another address. The candidates are the address held last, then H(peer, attempt) in the range, then a
//! scan; when that has found nothing free, the range is full and the claim says so. After a restart with valid
//! certificates in the store the long claim is made at once.
//!
//! A holder whose renewals find no quorum keeps its address: nobody else can have it while that lasts. It yields to a
//! valid certificate of another holder that survives against its own, and claims anew. First it asks that holder, since
//! a certificate outlasts the lease that was given back: a live lease is not lost to one that nobody holds any more.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Index, IndexMut};
use std::time::{Duration, Instant};

use aerie_types::{AddressPool, Instance, Key, NodeName, PeerId};
use serde::{Deserialize, Serialize};

use crate::lease::{Certificate, Proof};
use crate::leased::{Kind, Leased};
use crate::limits::{RANDOM_ATTEMPTS, SCAN};
use crate::store::Store;
use crate::{Error, Event, Keys, Now, Register};

mod claim;
mod interface;
mod release;
mod renew;
mod rival;
mod rounds;

pub use interface::{AcquireRequest, Failure, HeldLease, LostReason, Want};
use release::GivenBack;
use rival::Rival;
use rounds::Rounds;

/// The row that holds the own lease of a kind.
fn lease_row(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Addr => b"lease",
        Kind::Prefix => b"lease of a prefix",
    }
}

/// The longest wait between two renewals that fail.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The longest wait, about, between two claims that find no quorum. News of members cut it short.
const MAX_CLAIM_BACKOFF: Duration = Duration::from_secs(8);

/// How long the name may be another holder's before it is asked for again.
const NAME_RETRY: Duration = Duration::from_secs(5);

/// How long a full range is left alone, and how long at most a name that has been leased with too much.
const FULL_RETRY: Duration = Duration::from_secs(60);

/// Witnesses remembered for a release.
const MAX_TO_RELEASE: usize = 64;

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
    /// Split votes on a fixed one.
    splits: u32,
    /// Whether the pass through all that there are met a vote that was split, so that one may be free after all.
    unsure: bool,
}

/// What this node holds of one kind, or is about to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Holding {
    phase: Phase,
    plan: Option<Plan>,
    lease: Option<Lease>,
    rounds: Option<Box<Rounds>>,
    /// Those of before, which are made again soon: what was granted in them is not given back yet.
    parked: Option<Box<Rounds>>,
    /// Who may have granted, by key.
    asked: [BTreeSet<PeerId>; 2],
    seq: u64,
    backoff: Duration,
    waiting_for: String,
    /// The lease of before the restart, or the last that was held.
    last: Option<LeaseRow>,
    /// An earlier assertion has to be repeated after the round under way.
    assert: bool,
    /// The candidate that was asked for together with the name.
    bet: Option<Leased>,
}

/// The holder's state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Holdings {
    addr: Holding,
    prefix: Holding,
    /// Who has this node's credential and those of its witnesses.
    informed: BTreeSet<PeerId>,
    /// Holders of certificates that survive this node's own, who are being asked whether they hold the key yet.
    rivals: BTreeMap<Key, Rival>,
    /// Leases that were given back lately.
    given_back: BTreeMap<Key, GivenBack>,
    leaving: Option<usize>,
    clone_told: Option<Instance>,
}

impl Index<Kind> for Holdings {
    type Output = Holding;

    fn index(&self, kind: Kind) -> &Holding {
        match kind {
            Kind::Addr => &self.addr,
            Kind::Prefix => &self.prefix,
        }
    }
}

impl IndexMut<Kind> for Holdings {
    fn index_mut(&mut self, kind: Kind) -> &mut Holding {
        match kind {
            Kind::Addr => &mut self.addr,
            Kind::Prefix => &mut self.prefix,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Lease {
    leased: Leased,
    name: NodeName,
    certificates: [Certificate; 2],
    until: [Instant; 2],
    /// The witnesses do not accept the certificate any more, since the grid has grown.
    refused: [bool; 2],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct LeaseRow {
    leased: Leased,
    proofs: [Option<Proof>; 2],
}

impl Holdings {
    pub(crate) fn at_start(meta: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Self, Error> {
        Ok(Self {
            addr: Holding::at_start(Kind::Addr, meta)?,
            prefix: Holding::at_start(Kind::Prefix, meta)?,
            informed: BTreeSet::new(),
            rivals: BTreeMap::new(),
            given_back: BTreeMap::new(),
            leaving: None,
            clone_told: None,
        })
    }

    /// A member lost its connection: what it was told while it was away may not have come.
    pub(crate) fn untold(&mut self, peer: PeerId) {
        for given_back in self.given_back.values_mut() {
            given_back.told.remove(&peer);
        }
    }

    /// The kind of which this round is.
    fn kind_of(&self, round: u64) -> Option<Kind> {
        let of = |holding: &Holding| {
            let rounds = holding.rounds.as_ref();
            rounds.is_some_and(|rounds| rounds.iter().any(|one| one.id == round))
        };
        Kind::ALL.into_iter().find(|kind| of(&self[*kind]))
    }
}

impl Holding {
    fn at_start(kind: Kind, meta: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Self, Error> {
        let last = meta.get(lease_row(kind));
        let last: Option<Result<LeaseRow, _>> = last.map(|bytes| postcard::from_bytes(bytes));
        let last = last
            .transpose()
            .ok()
            .filter(|last| last.as_ref().is_none_or(|last| last.leased.kind() == kind))
            .ok_or(Error::Row { table: "meta" })?;
        Ok(Self {
            phase: Phase::Idle,
            plan: None,
            lease: None,
            rounds: None,
            parked: None,
            asked: [BTreeSet::new(), BTreeSet::new()],
            seq: 0,
            backoff: Duration::ZERO,
            waiting_for: String::new(),
            last,
            assert: false,
            bet: None,
        })
    }

    fn note_asked(&mut self, rounds: &Rounds) {
        for (asked, round) in self.asked.iter_mut().zip(rounds.iter()) {
            for peer in round.asked() {
                if asked.len() < MAX_TO_RELEASE {
                    asked.insert(peer);
                }
            }
        }
    }

    /// When something is due, apart from what is asked of rivals.
    fn timeout(&self) -> Option<Instant> {
        let round = self.rounds.as_ref().and_then(|rounds| {
            let open = rounds.iter().filter(|round| round.outcome.is_none());
            open.map(|round| round.started + crate::round::ROUND_TIMEOUT)
                .min()
        });
        let phase = match &self.phase {
            Phase::Waiting { until } => Some(*until),
            Phase::Held { renew_at } if self.rounds.is_none() => Some(*renew_at),
            Phase::Failed { retry } => *retry,
            _ => None,
        };
        round.into_iter().chain(phase).min()
    }
}

impl Plan {
    /// What to try; `None` where the pool has none of the kind.
    fn candidate(&self, pool: &AddressPool, me: PeerId, last: Option<Leased>) -> Option<Leased> {
        let last = last.filter(|last| self.attempt == 0 && last.is_of(pool));
        let drawn = || {
            let kind = self.request.want.kind();
            kind.candidate(pool, me, self.attempt, RANDOM_ATTEMPTS)
        };
        self.request.want.fixed().or(last).or_else(drawn)
    }

    /// Whether all candidates were tried. A scan begins where the hash points, each node's elsewhere.
    fn exhausted(&self, pool: &AddressPool) -> bool {
        let count = self.request.want.kind().count(pool);
        self.attempt > RANDOM_ATTEMPTS + SCAN.min(count)
    }
}

/// Why what was asked for is leased to nobody.
fn refusal(pool: &AddressPool, leased: Leased) -> Failure {
    let range = pool.range();
    match (leased, pool.routed()) {
        (Leased::Addr(addr), _) if !range.contains(addr) => Failure::FixedOutside { addr, range },
        (Leased::Addr(addr), Some(routed)) if pool.routes(addr) => Failure::FixedRouted { addr, routed },
        (Leased::Addr(addr), _) => Failure::FixedExcluded { addr },
        (Leased::Prefix(_), None) => Failure::NoPrefixes,
        (Leased::Prefix(prefix), Some(routed)) if routed.has(prefix) => Failure::PrefixClosed { prefix },
        (Leased::Prefix(prefix), Some(routed)) => Failure::NoSuchPrefix { prefix, routed },
    }
}

impl<S: Store, K: Keys> Register<S, K> {
    /// Claims an address and the name, or a prefix, in the place of the one of the kind that was claimed before, and
    /// keeps it renewed. Progress comes as events.
    pub fn acquire(&mut self, request: AcquireRequest, now: Now) {
        let kind = request.want.kind();
        if self.is_cloned() {
            let reason = LostReason::Cloned;
            return self.event(Event::Lost { kind, reason });
        }
        self.give_back(kind, now);
        let pool = &self.config.pool;
        let failure = match request.want.fixed() {
            Some(leased) if !leased.is_of(pool) => Some(refusal(pool, leased)),
            None if kind.count(pool) == 0 => Some(Failure::NoPrefixes),
            _ => None,
        };
        let holding = &mut self.holdings[kind];
        if let Some(failure) = failure {
            holding.phase = Phase::Failed { retry: None };
            self.event(Event::Failed { kind, failure });
            return self.settle(now);
        }
        holding.plan = Some(Plan {
            request,
            since: now.instant,
            attempt: 0,
            splits: 0,
            unsure: false,
        });
        holding.phase = Phase::Waiting { until: now.instant };
        self.holder_due(now);
        self.settle(now);
    }

    /// The lease of this kind that is held.
    #[must_use]
    pub fn lease(&self, kind: Kind) -> Option<HeldLease> {
        let lease = self.holdings[kind].lease.as_ref()?;
        let [certificate, name_certificate] = lease.certificates.clone();
        Some(HeldLease {
            leased: lease.leased,
            name: lease.name.clone(),
            until: lease.until[0].min(lease.until[1]),
            certificate,
            name_certificate,
        })
    }

    /// Whether this instance has stopped since another one is alive.
    #[must_use]
    pub fn is_cloned(&self) -> bool {
        matches!(self.holdings[Kind::Addr].phase, Phase::Cloned)
    }

    /// The certificate of what is held of this kind, with its witnesses' credentials.
    #[must_use]
    pub fn proof(&self, kind: Kind) -> Option<Proof> {
        let lease = self.holdings[kind].lease.as_ref()?;
        Some(self.proof_of(lease.certificates[0].clone()))
    }

    /// This node's own certificate of a key, if it is valid.
    pub(crate) fn own_certificate(&self, key: Key, now: Instant) -> Option<(Certificate, Instant)> {
        let leases = Kind::ALL
            .iter()
            .filter_map(|kind| self.holdings[*kind].lease.as_ref());
        let mut own = leases.flat_map(|lease| lease.certificates.iter().zip(lease.until));
        let (certificate, until) = own.find(|(own, _)| own.terms.key == key)?;
        (until > now).then(|| (certificate.clone(), until))
    }

    /// Whether it is not known yet if this node holds a key: it is about to claim it again, or is one of two copies.
    pub(crate) fn may_hold(&self, key: Key) -> bool {
        let grid = self.config.grid;
        Kind::ALL.into_iter().any(|kind| {
            let holding = &self.holdings[kind];
            match holding.phase {
                Phase::Cloned => true,
                Phase::Waiting { .. } | Phase::Claiming(_) => {
                    let home = |plan: &Plan| kind.home_key(grid, &plan.request.name) == key;
                    let last = |last: &LeaseRow| last.leased.key(grid) == key;
                    holding.plan.as_ref().is_some_and(home) || holding.last.as_ref().is_some_and(last)
                }
                _ => false,
            }
        })
    }

    pub(crate) fn holder_timeout(&self) -> Option<Instant> {
        let kinds = Kind::ALL.iter().filter_map(|kind| self.holdings[*kind].timeout());
        let rivals = self.holdings.rivals.values().filter_map(|rival| rival.again);
        kinds.chain(rivals).min()
    }

    pub(crate) fn holder_due(&mut self, now: Now) {
        self.rivals_due(now);
        for kind in Kind::ALL {
            self.kind_due(kind, now);
        }
    }

    fn kind_due(&mut self, kind: Kind, now: Now) {
        let holding = &mut self.holdings[kind];
        match holding.phase {
            Phase::Waiting { until } if until <= now.instant => self.claim_candidate(kind, now),
            Phase::Failed { retry: Some(retry) } if retry <= now.instant => {
                if let Some(plan) = &mut holding.plan {
                    plan.attempt = 0;
                    plan.unsure = false;
                }
                self.claim_candidate(kind, now);
            }
            Phase::Held { renew_at } if renew_at <= now.instant && holding.rounds.is_none() => {
                self.renew(kind, now);
            }
            _ => {}
        }
        if self.holdings[kind].rounds.is_some() {
            self.pump(kind, now);
        }
    }

    /// Something has changed that may let a waiting claim, or a renewal that lacks receipts, succeed now.
    pub(crate) fn holder_nudged(&mut self, now: Now) {
        let mut due = false;
        for kind in Kind::ALL {
            let lacking = self.lacks_receipts(kind, now);
            let soon = now.instant + self.config.timings.retry / 4;
            let holding = &mut self.holdings[kind];
            match &mut holding.phase {
                Phase::Waiting { until } => {
                    holding.backoff = Duration::ZERO;
                    *until = (*until).min(now.instant);
                }
                Phase::Held { renew_at } => {
                    if lacking {
                        holding.backoff = Duration::ZERO;
                        *renew_at = (*renew_at).min(soon);
                    }
                }
                _ => continue,
            }
            due = true;
        }
        if due {
            self.holder_due(now);
        }
    }

    /// Whether the grid has outgrown a certificate of the lease.
    fn lacks_receipts(&self, kind: Kind, now: Now) -> bool {
        let lease = self.holdings[kind].lease.as_ref();
        lease.is_some_and(|lease| lease.certificates.iter().any(|own| self.outgrown(own, now)))
    }

    pub(crate) fn is_informed(&self, peer: PeerId) -> bool {
        self.holdings.informed.contains(&peer)
    }

    pub(crate) fn set_informed(&mut self, peer: PeerId) {
        if self.holdings.informed.len() < MAX_TO_RELEASE {
            self.holdings.informed.insert(peer);
        }
    }

    fn save_lease(&mut self, kind: Kind) {
        let Some(lease) = &self.holdings[kind].lease else {
            return;
        };
        let proofs = lease
            .certificates
            .clone()
            .map(|certificate| Some(self.proof_of(certificate)));
        let row = LeaseRow {
            leased: lease.leased,
            proofs,
        };
        self.persist_meta(lease_row(kind), Some(&row));
        self.holdings[kind].last = Some(row);
    }

    fn wait(&mut self, kind: Kind, reason: String, wait: Duration, now: Now) {
        let holding = &mut self.holdings[kind];
        holding.phase = Phase::Waiting {
            until: now.instant + wait,
        };
        if holding.waiting_for != reason {
            holding.waiting_for.clone_from(&reason);
            self.event(Event::Waiting { kind, reason });
        }
    }
}

/// Until when the holder itself may rely on a certificate: counted from before the first witness was asked, and a
/// little less, for clocks that run at different speeds.
fn valid_until(started: Instant, certificate: &Certificate) -> Instant {
    let ttl = certificate.ttl();
    started + (ttl - ttl / 64)
}
