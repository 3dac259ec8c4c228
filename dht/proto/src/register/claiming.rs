//! Drives the node's own claim: rounds of questions, what follows from their verdicts, and conflicts.

use std::collections::BTreeMap;
use std::time::Duration;

use aerie_types::{Key, PeerId, VirtualAddr};

use super::{Event, Purpose, Register, Task, Time};
use crate::claimant::{
    FIRST_TTL, Holding, Kind, LEASE_TTL, LeaseState, Obstacle, RENEW_EVERY, Round, Slot, Verdict,
};
use crate::wire::{Answer, ClaimReq, Request};
use crate::{Certificate, Store, addr_key, name_key};

/// How long a round lasts at most.
const ROUND: Duration = Duration::from_secs(3);

/// The first and the longest pause before another try; the actual one is drawn from half to one and a half of it.
const BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// The pause before something is tried again that failed for a lasting reason.
const LASTING: Duration = Duration::from_secs(30);

impl<S: Store> Register<S> {
    /// Begins to claim an address and the name. Again: no effect.
    pub fn acquire(&mut self, time: Time) {
        if self.claimant.wanted {
            return;
        }
        self.claimant.wanted = true;
        if let Some(addr) = self
            .claimant
            .fixed
            .filter(|addr| !self.config.range.contains(*addr))
        {
            let range = self.config.range;
            return self.set_state(LeaseState::Failed {
                reason: format!(
                    "the fixed address {addr} is outside the grid's range {range}; choose one within it"
                ),
            });
        }
        self.claimant.wake = Some(time.now);
        self.drive_claim(time);
    }

    /// Gives the lease back, for a clean leave. The witnesses free both keys at once.
    pub fn release_all(&mut self, time: Time) {
        self.claimant.wanted = false;
        self.claimant.wake = None;
        let round = self.claimant.round.take();
        let addr = self
            .claimant
            .holding
            .take()
            .map(|holding| holding.addr)
            .or(round.map(|round| round.addr));
        if let Some(addr) = addr {
            self.give_back(addr, time);
        }
        self.set_state(LeaseState::Idle);
    }

    /// The certificates of the lease held: of the address, then of the name.
    #[must_use]
    pub fn certificates(&self) -> &[Certificate] {
        self.claimant
            .holding
            .as_ref()
            .map_or(&[], |holding| &holding.certificates)
    }

    /// Does what is due for the claim.
    pub(super) fn drive_claim(&mut self, time: Time) {
        if self
            .claimant
            .round
            .as_ref()
            .is_some_and(|round| round.deadline <= time.now)
        {
            self.judge_round(true, time);
        }
        let due = self.claimant.wake.is_some_and(|wake| wake <= time.now);
        if !due || self.claimant.round.is_some() || !self.claimant.wanted {
            return;
        }
        if self.members.live().is_empty() && !self.config.founder && self.claimant.holding.is_none() {
            self.wait("no other member is connected yet".to_owned());
            self.claimant.wake = Some(time.now + self.pause(Duration::from_secs(2)));
            return;
        }
        if !self.claimant.start_saved {
            if let Err(error) = self.save_own(self.claimant.fixed.or(Some(self.claimant.candidate()))) {
                self.counters.store_failures += 1;
                self.wait(error.to_string());
                self.claimant.wake = Some(time.now + self.pause(MAX_BACKOFF));
                return;
            }
            self.claimant.start_saved = true;
        }
        match &self.claimant.holding {
            Some(holding) => self.begin_round(Kind::Renew, holding.addr, time),
            None => {
                if self.claimant.state == LeaseState::Idle {
                    self.wait("asking the witnesses".to_owned());
                }
                self.begin_round(Kind::First, self.claimant.candidate(), time);
            }
        }
    }

    fn begin_round(&mut self, kind: Kind, addr: VirtualAddr, time: Time) {
        self.claimant.wake = None;
        self.claimant.last_round += 1;
        let number = self.claimant.last_round;
        let grid = self.config.grid;
        let keys = [addr_key(&grid, addr), name_key(&grid, &self.claimant.name)];
        self.claimant.round = Some(Round {
            number,
            kind,
            addr,
            sent: time.now,
            deadline: time.now + ROUND,
            slots: keys.map(Slot::new),
        });
        for (slot, key) in keys.into_iter().enumerate() {
            self.with_witnesses(key, Task::Claim { round: number, slot }, time);
        }
    }

    /// Notes the witnesses of one key; once both keys have theirs, each witness is asked once, for all its keys.
    pub(super) fn ask_witnesses(&mut self, number: u64, slot: usize, witnesses: Vec<PeerId>, time: Time) {
        let Some(round) = self
            .claimant
            .round
            .as_mut()
            .filter(|round| round.number == number)
        else {
            return;
        };
        if let Some(slot) = round.slots.get_mut(slot) {
            slot.asked = Some(witnesses);
        }
        let mut questions: BTreeMap<PeerId, Vec<Key>> = BTreeMap::new();
        for slot in &round.slots {
            let Some(asked) = &slot.asked else {
                return;
            };
            for peer in asked {
                questions.entry(*peer).or_default().push(slot.key);
            }
        }
        let ttl = if round.kind == Kind::First {
            FIRST_TTL
        } else {
            LEASE_TTL
        };
        let claim = ClaimReq {
            holder: self.config.me,
            name: self.claimant.name.clone(),
            addr: round.addr,
            instance: self.claimant.instance,
            previous: self.claimant.previous.clone(),
            round: number,
            ttl_ms: u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX),
            keys: Vec::new(),
            credential: self.keys.credential(),
        };
        for (peer, keys) in questions {
            let request = Request::Claim(ClaimReq {
                keys: keys.clone(),
                ..claim.clone()
            });
            if peer == self.config.me {
                let answer = self.answer(peer, request, time);
                self.note_answer((peer, number, &keys), Some(answer), time);
            } else if !self.send(
                peer,
                &request,
                Purpose::Claim {
                    round: number,
                    keys: keys.clone(),
                },
                time,
            ) {
                self.note_answer((peer, number, &keys), None, time);
            }
        }
        self.judge_round(false, time);
    }

    pub(super) fn on_claim_answer(
        &mut self,
        asked: (PeerId, u64, &[Key]),
        answer: Option<Answer>,
        time: Time,
    ) {
        self.note_answer(asked, answer, time);
        self.judge_round(false, time);
    }

    fn note_answer(
        &mut self,
        (from, number, keys): (PeerId, u64, &[Key]),
        answer: Option<Answer>,
        time: Time,
    ) {
        let Some(round) = self
            .claimant
            .round
            .as_mut()
            .filter(|round| round.number == number)
        else {
            return;
        };
        let refusal = match answer {
            Some(Answer::Receipts(receipts)) => {
                for receipt in receipts {
                    let body = &receipt.body;
                    let fits = body.grid == self.config.grid
                        && keys.contains(&body.key)
                        && body.holder == self.config.me
                        && body.name == self.claimant.name
                        && body.addr == round.addr
                        && body.instance == self.claimant.instance
                        && body.witness == from;
                    if fits && receipt.check(&*self.keys, time.wall).is_ok() {
                        round.receipt(from, receipt);
                    } else {
                        self.counters.bad_certificates += 1;
                    }
                }
                None
            }
            Some(Answer::Refused(refusal)) => Some(refusal),
            _ => None,
        };
        // Keys without a receipt by now will get none from this witness.
        round.refused(from, keys, refusal);
    }

    fn judge_round(&mut self, over: bool, time: Time) {
        let Some(verdict) = self.claimant.round.as_ref().map(|round| round.verdict(over)) else {
            return;
        };
        if matches!(verdict, Verdict::Open) {
            return;
        }
        let Some(round) = self.claimant.round.take() else {
            return;
        };
        match verdict {
            Verdict::Open => {}
            Verdict::Won(_) if round.kind == Kind::First => self.begin_round(Kind::Confirm, round.addr, time),
            Verdict::Won(certificates) => self.hold(&round, certificates, time),
            Verdict::Cloned => self.lose_to_clone(),
            Verdict::Short { obstacle, .. } if round.kind == Kind::Renew => {
                self.renewal_failed(&round, obstacle, time);
            }
            Verdict::Short { got, need, obstacle } => {
                self.give_back(round.addr, time);
                self.claim_failed(&round, (got, need), obstacle, time);
            }
        }
    }

    fn hold(&mut self, round: &Round, certificates: Vec<Certificate>, time: Time) {
        let claimant = &mut self.claimant;
        claimant.failures = 0;
        let receipts = certificates
            .first()
            .map_or(0, |certificate| certificate.receipts.len());
        let until = round.sent + LEASE_TTL;
        claimant.holding = Some(Holding {
            addr: round.addr,
            certificates: certificates.clone(),
        });
        let name = claimant.name.clone();
        let wake = time.now + RENEW_EVERY.mul_f64(0.9 + 0.1 * self.draw());
        self.claimant.wake = Some(wake);
        if round.kind == Kind::Confirm && self.save_own(Some(round.addr)).is_err() {
            self.counters.store_failures += 1;
        }
        self.set_state(LeaseState::Held {
            addr: round.addr,
            name,
            receipts,
            until,
        });
        for (slot, certificate) in round.slots.iter().zip(certificates) {
            let witnesses = slot.asked.clone().unwrap_or_default();
            self.run(
                Task::Tell(Request::HandOver {
                    certificates: vec![certificate],
                }),
                witnesses,
                time,
            );
        }
    }

    fn lose_to_clone(&mut self) {
        self.claimant.holding = None;
        self.claimant.wake = None;
        self.set_state(LeaseState::Lost {
            reason: "another node started from a copy of this node's disk and has taken over its identity; \
                     enrol this node anew, with keys of its own"
                .to_owned(),
        });
    }

    fn renewal_failed(&mut self, round: &Round, obstacle: Option<Obstacle>, time: Time) {
        match obstacle.filter(|obstacle| obstacle.blocking) {
            Some(Obstacle { is_name, name, .. }) => {
                let what = if is_name {
                    format!("the name {}", self.claimant.name)
                } else {
                    round.addr.to_string()
                };
                self.lose(format!("{what} is held by node {name} now"), time);
            }
            None => {
                self.claimant.failures += 1;
                self.claimant.wake = Some(time.now + self.backoff());
            }
        }
    }

    fn claim_failed(
        &mut self,
        round: &Round,
        (got, need): (usize, usize),
        obstacle: Option<Obstacle>,
        time: Time,
    ) {
        let wake = match obstacle {
            Some(Obstacle {
                is_name,
                name,
                remaining,
                ..
            }) if is_name || self.claimant.fixed.is_some() => {
                let what = if is_name {
                    format!("the name {}", self.claimant.name)
                } else {
                    format!("the address {}", round.addr)
                };
                if remaining > FIRST_TTL {
                    let secs = remaining.as_secs();
                    let advice = if is_name {
                        "choose another name"
                    } else {
                        "choose another address or none"
                    };
                    self.set_state(LeaseState::Failed {
                        reason: format!(
                            "{what} is held by node {name} for {secs} s yet; {advice}, or release it there"
                        ),
                    });
                    self.pause(LASTING.min(remaining))
                } else {
                    self.claimant.failures += 1;
                    self.wait(format!("{what} is being claimed by node {name} too"));
                    self.backoff()
                }
            }
            Some(_) => {
                if self.claimant.advance() {
                    self.wait(format!("{} is taken; trying another address", round.addr));
                    Duration::ZERO
                } else {
                    let range = self.config.range;
                    self.set_state(LeaseState::Failed {
                        reason: format!(
                            "all addresses of {range} are taken; create the grid with a larger range"
                        ),
                    });
                    self.pause(LASTING * 2)
                }
            }
            None => {
                self.claimant.failures += 1;
                self.wait(format!(
                    "{got} of {need} witnesses answered; check that the other members are connected"
                ));
                self.backoff()
            }
        };
        self.claimant.wake = Some(time.now + wake);
    }

    /// Gives up the lease if this valid certificate of somebody else beats the node's own.
    pub(super) fn settle_conflict(&mut self, theirs: &Certificate, time: Time) {
        let Ok(body) = theirs.first() else {
            return;
        };
        let Some(holding) = &self.claimant.holding else {
            return;
        };
        let own = holding
            .certificates
            .iter()
            .find(|own| own.first().is_ok_and(|own| own.key == body.key));
        let Some(own) = own else {
            return;
        };
        if body.holder == self.config.me {
            let is_newer = matches!((theirs.granted(), own.granted()), (Ok(theirs), Ok(own)) if theirs > own);
            let is_older_start = self.claimant.previous.contains(&body.instance);
            if body.instance != self.claimant.instance && is_newer && !is_older_start {
                self.claimant.round = None;
                self.lose_to_clone();
            }
        } else if theirs.beats(own) {
            let reason = format!("node {} has an older lease of {} ", body.name, body.addr);
            self.claimant.round = None;
            self.lose(reason.trim_end().to_owned(), time);
        }
    }

    fn lose(&mut self, reason: String, time: Time) {
        let addr = self.claimant.holding.take().map(|holding| holding.addr);
        if let Some(addr) = addr {
            self.give_back(addr, time);
        }
        self.claimant.advance();
        self.claimant.wake = Some(time.now + self.pause(Duration::from_secs(1)));
        self.set_state(LeaseState::Lost {
            reason: format!("{reason}; another one is being claimed"),
        });
    }

    /// Tells the witnesses of both keys that they are free, as far as this start holds them.
    fn give_back(&mut self, addr: VirtualAddr, time: Time) {
        let grid = self.config.grid;
        let (instance, round) = (self.claimant.instance, self.claimant.last_round);
        for key in [addr_key(&grid, addr), name_key(&grid, &self.claimant.name)] {
            let request = Request::Release {
                keys: vec![key],
                instance,
                round,
            };
            self.with_witnesses(key, Task::Tell(request), time);
        }
    }

    fn wait(&mut self, reason: String) {
        self.set_state(LeaseState::Waiting { reason });
    }

    fn set_state(&mut self, state: LeaseState) {
        if self.claimant.state != state {
            self.claimant.state = state.clone();
            self.event(Event::Lease(state));
        }
    }

    fn backoff(&mut self) -> Duration {
        let doubled = BACKOFF * 2_u32.saturating_pow(self.claimant.failures.min(6));
        self.pause(doubled.min(MAX_BACKOFF))
    }

    /// Half to one and a half of a pause.
    fn pause(&mut self, pause: Duration) -> Duration {
        pause.mul_f64(0.5 + self.draw())
    }

    /// A number from 0 to 1.
    fn draw(&mut self) -> f64 {
        f64::from(self.rng.next_u32()) / f64::from(u32::MAX)
    }
}
