//! The claimant's side: how a node comes by its address and keeps it.
//!
//! ```text
//!            acquire                 quorum for 10 s          quorum for 30 min
//!   Idle ─────────────▶ First(candidate) ─────────▶ Confirm ───────────────▶ Held ──┐
//!             ▲             │ held by another: next candidate                ▲  │   │ every 5 min
//!             │             │ no quorum: give back, wait, try again          │  ▼   │
//!             └─────────────┴───────────────────────────────────────────── Renew ◀──┘
//!                    another holder has it: Lost, claim anew      no quorum: keep, try again
//!                    another start of this node has it: Lost for good
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aerie_types::{Instance, Key, NodeName, PeerId, VirtualAddr, VirtualRange};

use crate::receipt::{WITNESSES, quorum};
use crate::{Certificate, Receipt, Refusal};

/// How long the first grant stands: long enough to confirm it, short enough to free it soon if that fails.
pub const FIRST_TTL: Duration = Duration::from_secs(10);

/// How long a confirmed lease stands.
pub const LEASE_TTL: Duration = Duration::from_secs(30 * 60);

/// How often it is renewed.
pub const RENEW_EVERY: Duration = Duration::from_secs(5 * 60);

/// How many candidates are drawn by hash before the range is walked in order.
const HASHED_ATTEMPTS: u32 = 64;

/// How many of its own starts a node remembers.
pub(crate) const MAX_STARTS: usize = 8;

/// How a node's lease stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseState {
    /// None was asked for.
    Idle,
    /// It is being claimed; what it waits for.
    Waiting {
        /// Why it is not held yet.
        reason: String,
    },
    /// It is held.
    Held {
        /// The address.
        addr: VirtualAddr,
        /// The node's name.
        name: NodeName,
        /// How many witnesses signed for the address.
        receipts: usize,
        /// Until when without renewal. It is kept beyond that while nobody else has it.
        until: Instant,
    },
    /// It was held, and somebody else has it now.
    Lost {
        /// Who, and what happens next.
        reason: String,
    },
    /// It cannot be had as asked for. It is tried again now and then.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    First,
    Confirm,
    Renew,
}

/// One key within a round.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) key: Key,
    pub(crate) asked: Option<Vec<PeerId>>,
    receipts: BTreeMap<PeerId, Receipt>,
    held: BTreeMap<PeerId, (PeerId, NodeName, Duration)>,
    cloned: BTreeSet<PeerId>,
    failed: BTreeSet<PeerId>,
}

/// Another holder that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Obstacle {
    pub(crate) is_name: bool,
    pub(crate) name: NodeName,
    pub(crate) remaining: Duration,
    /// No quorum is possible because of it.
    pub(crate) blocking: bool,
}

/// How a round stands.
#[derive(Debug)]
pub(crate) enum Verdict {
    Open,
    Won(Vec<Certificate>),
    Cloned,
    Short {
        got: usize,
        need: usize,
        obstacle: Option<Obstacle>,
    },
}

/// One round of questions to the witnesses of both keys.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) number: u64,
    pub(crate) kind: Kind,
    pub(crate) addr: VirtualAddr,
    pub(crate) sent: Instant,
    pub(crate) deadline: Instant,
    /// The address's key, then the name's.
    pub(crate) slots: [Slot; 2],
}

impl Slot {
    pub(crate) fn new(key: Key) -> Self {
        Self {
            key,
            asked: None,
            receipts: BTreeMap::new(),
            held: BTreeMap::new(),
            cloned: BTreeSet::new(),
            failed: BTreeSet::new(),
        }
    }

    fn verdict(&self, is_name: bool, over: bool) -> Verdict {
        let asked = self.asked.as_ref().map_or(0, Vec::len);
        let seen = self
            .receipts
            .values()
            .map(|receipt| usize::from(receipt.body.members_known))
            .max();
        // Where all known members were asked because too few of more than nine are there, a majority of them must have
        // answered, so that two sides of a partition cannot both have a quorum.
        let of_all = if asked > WITNESSES { asked / 2 + 1 } else { 0 };
        let need = quorum(seen.unwrap_or(0).max(asked)).max(of_all);
        let got = self.receipts.len();
        let certificate = Certificate {
            receipts: self.receipts.values().take(WITNESSES).cloned().collect(),
        };
        if got > 0 && got >= certificate.needed().max(of_all) {
            return Verdict::Won(vec![certificate]);
        }
        // Only where the other answers could have made a quorum: too few witnesses prove nothing about clones.
        if asked >= need && self.cloned.len() > asked - need {
            return Verdict::Cloned;
        }
        let silent = self.held.len() + self.cloned.len() + self.failed.len();
        let possible = asked.saturating_sub(silent);
        if !over && (self.asked.is_none() || (possible >= need && possible > got)) {
            return Verdict::Open;
        }
        let longest = self.held.values().max_by_key(|(_, _, remaining)| *remaining);
        let obstacle = longest.map(|(_, name, remaining)| Obstacle {
            is_name,
            name: name.clone(),
            remaining: *remaining,
            blocking: self.held.len() + need > asked,
        });
        Verdict::Short { got, need, obstacle }
    }
}

impl Round {
    /// Notes a checked receipt.
    pub(crate) fn receipt(&mut self, from: PeerId, receipt: Receipt) {
        if let Some(slot) = self.slot(&receipt.body.key) {
            slot.receipts.insert(from, receipt);
        }
    }

    /// Notes that a witness grants nothing, and why.
    pub(crate) fn refused(&mut self, from: PeerId, asked: &[Key], refusal: Option<Refusal>) {
        let mut of_key = None;
        if let Some(Refusal::Held {
            key,
            holder,
            name,
            remaining_ms,
        }) = &refusal
            && let Some(slot) = self.slot(key)
        {
            slot.held.insert(
                from,
                (*holder, name.clone(), Duration::from_millis(*remaining_ms)),
            );
            of_key = Some(*key);
        }
        for key in asked.iter().filter(|key| Some(**key) != of_key) {
            if let Some(slot) = self.slot(key) {
                match refusal {
                    Some(Refusal::Cloned) => slot.cloned.insert(from),
                    _ if slot.receipts.contains_key(&from) => false,
                    _ => slot.failed.insert(from),
                };
            }
        }
    }

    /// How the round stands; `over` if nobody will answer any more.
    pub(crate) fn verdict(&self, over: bool) -> Verdict {
        let [addr, name] = &self.slots;
        match (addr.verdict(false, over), name.verdict(true, over)) {
            (Verdict::Cloned, _) | (_, Verdict::Cloned) => Verdict::Cloned,
            (Verdict::Won(mut certificates), Verdict::Won(of_name)) => {
                certificates.extend(of_name);
                Verdict::Won(certificates)
            }
            // A name that another node has is the graver finding: no other address would help.
            (
                _,
                short @ Verdict::Short {
                    obstacle: Some(_), ..
                },
            ) => short,
            (short @ Verdict::Short { .. }, _) | (_, short @ Verdict::Short { .. }) => short,
            _ => Verdict::Open,
        }
    }

    fn slot(&mut self, key: &Key) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.key == *key)
    }
}

/// A lease that is held.
#[derive(Debug, Clone)]
pub(crate) struct Holding {
    pub(crate) addr: VirtualAddr,
    pub(crate) certificates: Vec<Certificate>,
}

/// The node's own claim.
#[derive(Debug)]
pub(crate) struct Claimant {
    pub(crate) name: NodeName,
    pub(crate) fixed: Option<VirtualAddr>,
    pub(crate) instance: Instance,
    /// Earlier starts, from the disk.
    pub(crate) previous: Vec<Instance>,
    pub(crate) start_saved: bool,
    pub(crate) wanted: bool,
    pub(crate) state: LeaseState,
    pub(crate) holding: Option<Holding>,
    pub(crate) round: Option<Round>,
    pub(crate) last_round: u64,
    pub(crate) wake: Option<Instant>,
    pub(crate) failures: u32,
    me: PeerId,
    range: VirtualRange,
    saved: Option<VirtualAddr>,
    attempt: u32,
}

impl Claimant {
    pub(crate) fn new(
        (me, name): (PeerId, NodeName),
        (range, fixed): (VirtualRange, Option<VirtualAddr>),
        (instance, previous): (Instance, Vec<Instance>),
        saved: Option<VirtualAddr>,
    ) -> Self {
        Self {
            name,
            fixed,
            instance,
            previous,
            start_saved: false,
            wanted: false,
            state: LeaseState::Idle,
            holding: None,
            round: None,
            last_round: 0,
            wake: None,
            failures: 0,
            me,
            range,
            saved: saved.filter(|addr| range.contains(*addr)),
            attempt: 0,
        }
    }

    /// The address to ask for now.
    pub(crate) fn candidate(&self) -> VirtualAddr {
        if let Some(addr) = self.fixed.or(self.saved) {
            return addr;
        }
        let hashed = |attempt: u32| {
            let Key(bytes) = Key::of("candidate", &[&self.me.0, &attempt.to_be_bytes()]);
            u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        match self.attempt.checked_sub(HASHED_ATTEMPTS) {
            None => self.range.nth(hashed(self.attempt)),
            Some(step) => self
                .range
                .nth((hashed(0) % self.range.capacity()).wrapping_add(step)),
        }
    }

    /// Turns to the next address. `false` if all were tried; it then begins again.
    pub(crate) fn advance(&mut self) -> bool {
        if self.saved.take().is_some() {
            return true;
        }
        self.attempt += 1;
        let more = self.attempt < HASHED_ATTEMPTS.saturating_add(self.range.capacity());
        if !more {
            self.attempt = 0;
        }
        more
    }

    /// When to be woken.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.round.as_ref().map(|round| round.deadline).or(self.wake)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use aerie_types::{GridId, WallMillis};

    use super::*;
    use crate::receipt::ReceiptBody;

    fn receipt(witness: u8, members_known: u16) -> Receipt {
        let body = ReceiptBody {
            grid: GridId([1; 16]),
            key: Key([2; 32]),
            holder: PeerId([3; 32]),
            name: "w1".parse().unwrap(),
            addr: Ipv4Addr::new(100, 96, 0, 1).into(),
            instance: Instance(4),
            number: 1,
            witness: PeerId([witness; 32]),
            witness_time: WallMillis(5),
            ttl_ms: 10_000,
            members_known,
        };
        Receipt {
            body,
            witness_credential: Vec::new(),
            signature: Vec::new(),
        }
    }

    fn slot(asked: u8, answered: u8, members_known: u16) -> Slot {
        let mut slot = Slot::new(Key([2; 32]));
        slot.asked = Some((0..asked).map(|i| PeerId([i; 32])).collect());
        for witness in 0..answered {
            slot.receipts
                .insert(PeerId([witness; 32]), receipt(witness, members_known));
        }
        slot
    }

    #[test]
    fn a_newcomer_that_knows_too_few_witnesses_is_not_taken_for_a_clone() {
        let verdict = slot(2, 2, 5).verdict(false, true);
        assert!(
            matches!(verdict, Verdict::Short { got: 2, need: 3, .. }),
            "{verdict:?}"
        );
    }

    #[test]
    fn a_clone_is_told_so_once_no_quorum_is_left() {
        let mut slot = slot(5, 2, 5);
        slot.cloned.extend([PeerId([2; 32]), PeerId([3; 32])]);
        assert!(matches!(slot.verdict(false, false), Verdict::Open));
        slot.cloned.insert(PeerId([4; 32]));
        assert!(matches!(slot.verdict(false, false), Verdict::Cloned));
    }

    #[test]
    fn a_side_of_a_partition_with_less_than_half_of_the_members_gets_no_lease() {
        assert!(matches!(
            slot(20, 8, 20).verdict(false, true),
            Verdict::Short { need: 11, .. }
        ));
        assert!(matches!(slot(20, 11, 20).verdict(false, true), Verdict::Won(_)));
        assert!(matches!(slot(9, 7, 20).verdict(false, true), Verdict::Won(_)));
    }
}
