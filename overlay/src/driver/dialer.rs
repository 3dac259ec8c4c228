//! Dials members that are due, in stages:
//!
//! ```text
//!   due ──► TCP ──── 300 ms, or failed ────► QUIC ──── 400 ms, or failed ────► through relays  (longer when busy)
//!            │                                │         (as stated by the member, and a guess
//!            ▼ reached                        ▼          through each connected relay)
//!          done                             done               │ reached      │ failed
//!                                                              ▼              ▼
//!                                             done; upgraded when possible    pause, doubled each time
//! ```
//!
//! TCP comes first because the kernel tells at once when a process on the other side dies, and because an idle
//! connection costs less. A member that is reached through a relay only is dialled directly again now and then, beside
//! the hole punching that libp2p does: it may be on the same network, or have got an open port.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use aerie_types::{PeerId, Role};
use libp2p::Multiaddr;
use libp2p::core::transport::TransportError;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};

use super::{Driver, is_direct};
use crate::admission::{Refusal, find_rejection};
use crate::config::CLOSEST;
use crate::peer::{from_libp2p, is_dialable, is_quic, is_relayed, is_tcp, relay_of, to_libp2p};
use crate::stats::Counters;

/// New members are dialled within this time, so that not all are dialled at once; lost ones within that.
const LEARN_SPREAD: Duration = Duration::from_millis(100);
pub(super) const LOST_SPREAD: Duration = Duration::from_millis(500);

/// How much longer the higher id of two waits, and how much for each member that it is dialling already.
const GIVE_WAY: Duration = Duration::from_millis(300);
const GIVE_WAY_BUSY: Duration = Duration::from_millis(400);

/// The head start of TCP over QUIC, and of both over relayed addresses, when nothing else is being dialled. With
/// every two members dialled at once they grow by as much again, since then slowness says less about the path.
const TCP_HEAD_START: Duration = Duration::from_millis(300);
const DIRECT_HEAD_START: Duration = Duration::from_millis(700);

/// The first pause before a member reached through a relay is dialled directly, and the longest one.
pub(super) const FIRST_UPGRADE: Duration = Duration::from_secs(1);
const LAST_UPGRADE: Duration = Duration::from_secs(600);

/// Members dialled at once. More would only contend for the line.
const MAX_ATTEMPTS: usize = 12;

/// Connected relays through which an unreachable member is looked for without being told.
const MAX_GUESSES: usize = 3;

/// Bootstrap addresses without a peer id, and the longest pause between dials of one.
const MAX_UNNAMED: usize = 32;
const UNNAMED_PAUSE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Dials {
    connections: BTreeMap<ConnectionId, PeerId>,
    attempts: BTreeMap<PeerId, Attempt>,
    unnamed: Vec<Unnamed>,
}

impl Dials {
    /// Whether nobody is being dialled, nor is there an address of which it is not known who is there.
    pub(super) fn is_idle(&self) -> bool {
        self.attempts.is_empty() && self.unnamed.iter().all(|unnamed| unnamed.leads_to.is_some())
    }
}

struct Attempt {
    pending: usize,
    /// The stages still to come, each at its time, or as soon as nothing is pending.
    stages: VecDeque<(Instant, Stage)>,
    refused: bool,
}

#[derive(Clone, Copy)]
enum Stage {
    Tcp,
    Quic,
    Relayed,
}

/// A bootstrap address that does not say who is there.
struct Unnamed {
    addr: Multiaddr,
    dialling: Option<ConnectionId>,
    leads_to: Option<PeerId>,
    pause: Duration,
    next: Instant,
}

impl Dials {
    pub(super) fn add_unnamed(&mut self, addr: Multiaddr, now: Instant, jitter: f64) {
        if self.unnamed.len() < MAX_UNNAMED && self.unnamed.iter().all(|known| known.addr != addr) {
            self.unnamed.push(Unnamed {
                addr,
                dialling: None,
                leads_to: None,
                pause: Duration::from_millis(500),
                next: now + Duration::from_millis(150).mul_f64(jitter),
            });
        }
    }

    pub(super) fn hurry(&mut self, now: Instant, jitter: f64) {
        for unnamed in &mut self.unnamed {
            unnamed.pause = Duration::from_millis(500);
            unnamed.next = unnamed.next.min(now + Duration::from_millis(500).mul_f64(jitter));
        }
    }

    pub(super) fn is_dialling(&self, peer: PeerId) -> bool {
        self.attempts.contains_key(&peer)
    }
}

impl Driver {
    /// Notes an address that somebody stated. `locally` says that whoever did is on this machine.
    pub(super) fn learn(&mut self, peer: PeerId, addr: Multiaddr, locally: bool) -> bool {
        let through_self = relay_of(&addr) == Some(self.local);
        if peer == self.local || through_self || !is_dialable(&addr, locally, self.config.virtual_net) {
            return false;
        }
        let wait = self.wait_for(peer, LEARN_SPREAD);
        self.wake();
        self.book.learn(peer, addr, Instant::now(), wait)
    }

    /// How long to wait before dialling a member that is likely to dial this node too: the lower id goes first.
    pub(super) fn wait_for(&self, peer: PeerId, spread: Duration) -> Duration {
        let jitter = spread.mul_f64(rand::random());
        if self.local < peer {
            jitter
        } else {
            jitter + GIVE_WAY
        }
    }

    /// Whether to leave it to a member yet to dial this node.
    ///
    /// The higher id waits the longer the more it is doing already: when a whole grid starts at once, or a switch
    /// comes back, two handshakes for each pair would make it take twice as long.
    fn gives_way(&self, peer: PeerId, now: Instant) -> bool {
        let busy = u32::try_from(self.dials.attempts.len()).unwrap_or(u32::MAX);
        let wait = GIVE_WAY_BUSY * busy;
        self.local > peer
            && self
                .book
                .get(peer)
                .is_some_and(|entry| !entry.pinned && !entry.is_due(now, wait))
    }

    /// Dials who is due, as far as there is room, and moves attempts on to their second stage.
    pub(super) fn dial_due(&mut self, now: Instant) {
        self.dial_unnamed(now);
        let mut nearby = None;
        for peer in self.book.due(now) {
            if self.dials.attempts.len() >= MAX_ATTEMPTS {
                break;
            }
            if self.live.contains_key(&peer) || self.dials.is_dialling(peer) || self.gives_way(peer, now) {
                continue;
            }
            let pinned = self.book.get(peer).is_some_and(|entry| entry.pinned);
            if !pinned && self.live.len() + self.dials.attempts.len() >= self.config.max_members {
                let nearby = nearby.get_or_insert_with(|| self.nearby());
                if !nearby.contains(&peer) {
                    continue;
                }
            }
            self.dial(peer, now);
        }
        let due = |attempt: &Attempt| attempt.stages.front().is_some_and(|(at, _)| *at <= now);
        let further: Vec<_> = self
            .dials
            .attempts
            .iter()
            .filter(|(_, attempt)| due(attempt))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in further {
            self.next_stage(peer);
            self.conclude(peer, now);
        }
    }

    /// The nearest members known to be there, connected or not.
    pub(super) fn neighbours(&self) -> BTreeSet<PeerId> {
        let there = self.by_distance().into_iter().filter(|(_, there)| *there);
        there.take(CLOSEST).map(|(peer, _)| peer).collect()
    }

    /// The neighbours, and those that would be if they were there: a partition takes half of them away, and would for
    /// ever if whoever has found others in their place did not look for them.
    pub(super) fn nearby(&self) -> BTreeSet<PeerId> {
        let mut found = 0;
        let within = |(_, there): &(PeerId, bool)| {
            let wanted = found < CLOSEST;
            found += usize::from(*there);
            wanted
        };
        let nearby = self.by_distance().into_iter().take_while(within);
        nearby.map(|(peer, _)| peer).collect()
    }

    /// All members in the book, nearest to this node first, and whether they are known to be there.
    fn by_distance(&self) -> Vec<(PeerId, bool)> {
        let here = self.local.position();
        let mut known: Vec<_> = self
            .book
            .iter()
            .map(|(peer, entry)| {
                let there = entry.is_fresh() || self.live.contains_key(&peer);
                (here.distance(&peer.position()), peer, there)
            })
            .collect();
        known.sort_unstable();
        known.into_iter().map(|(_, peer, there)| (peer, there)).collect()
    }

    /// Begins to dial a member.
    pub(super) fn dial(&mut self, peer: PeerId, now: Instant) {
        if self.live.contains_key(&peer) || self.dials.is_dialling(peer) {
            return;
        }
        let load = 1 + u32::try_from(self.dials.attempts.len() / 2).unwrap_or(u32::MAX - 1);
        let stages = [
            (now, Stage::Tcp),
            (now + TCP_HEAD_START * load, Stage::Quic),
            (now + DIRECT_HEAD_START * load, Stage::Relayed),
        ];
        let attempt = Attempt {
            pending: 0,
            stages: stages.into(),
            refused: false,
        };
        self.dials.attempts.insert(peer, attempt);
        self.conclude(peer, now);
    }

    /// Begins the next stage of an attempt, if it has an address to dial.
    fn next_stage(&mut self, peer: PeerId) {
        let Some(attempt) = self.dials.attempts.get_mut(&peer) else {
            return;
        };
        let Some((_, stage)) = attempt.stages.pop_front() else {
            return;
        };
        let addrs = match stage {
            Stage::Tcp => self.direct_addrs(peer, is_tcp),
            Stage::Quic => self.direct_addrs(peer, |addr| !is_tcp(addr)),
            Stage::Relayed => self.relayed_addrs(peer),
        };
        if !addrs.is_empty() && !self.live.contains_key(&peer) {
            self.start(peer, addrs);
        }
    }

    fn direct_addrs(&self, peer: PeerId, wanted: impl Fn(&Multiaddr) -> bool) -> Vec<Multiaddr> {
        let addrs = self
            .book
            .get(peer)
            .map(|entry| entry.addrs.as_slice())
            .unwrap_or_default();
        addrs
            .iter()
            .filter(|addr| is_direct(addr) && wanted(addr))
            .cloned()
            .collect()
    }

    /// Dials members directly that are connected through relays only.
    pub(super) fn upgrade_relayed(&mut self, now: Instant) {
        let mut due = Vec::new();
        for (peer, live) in &mut self.live {
            if live.upgrade_at <= now && !live.has_direct() {
                live.upgrade_pause = (live.upgrade_pause * 2).min(LAST_UPGRADE);
                live.upgrade_at = now + live.upgrade_pause.mul_f64(0.5 + rand::random::<f64>());
                due.push(*peer);
            }
        }
        for peer in due {
            let addrs = self.direct_addrs(peer, |_| true);
            self.dial_also(peer, addrs);
        }
    }

    /// Dials a connected member at further addresses.
    pub(super) fn dial_also(&mut self, peer: PeerId, addrs: Vec<Multiaddr>) {
        if addrs.is_empty() {
            return;
        }
        let opts = DialOpts::peer_id(to_libp2p(peer))
            .addresses(addrs)
            .condition(PeerCondition::Always)
            .build();
        match self.swarm.dial(opts) {
            Ok(()) => Counters::add(&self.counters().dials),
            Err(error) => tracing::debug!(peer = %peer.short(), %error, "not dialled"),
        }
    }

    /// QUIC addresses at which a member can be dialled directly.
    pub(super) fn quic_addrs(&self, peer: PeerId) -> Vec<Multiaddr> {
        self.direct_addrs(peer, is_quic)
    }

    fn start(&mut self, peer: PeerId, addrs: Vec<Multiaddr>) {
        // The second stage begins while the first is under way, and Kademlia may be dialling the same member.
        let condition = PeerCondition::Disconnected;
        let opts = DialOpts::peer_id(to_libp2p(peer))
            .addresses(addrs)
            .condition(condition)
            .build();
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                Counters::add(&self.counters().dials);
                self.dials.connections.insert(id, peer);
                if let Some(attempt) = self.dials.attempts.get_mut(&peer) {
                    attempt.pending += 1;
                }
            }
            Err(error) => tracing::debug!(peer = %peer.short(), %error, "not dialled"),
        }
    }

    /// Relayed addresses of the member: those it stated, and a guess through each connected relay.
    fn relayed_addrs(&self, peer: PeerId) -> Vec<Multiaddr> {
        let mut addrs: Vec<Multiaddr> = self
            .book
            .get(peer)
            .map(|entry| {
                entry
                    .addrs
                    .iter()
                    .filter(|addr| is_relayed(addr))
                    .cloned()
                    .collect()
            })
            .unwrap_or_default();
        let named: Vec<_> = addrs.iter().filter_map(relay_of).collect();
        let guesses = self
            .live
            .iter()
            .filter(|(relay, live)| {
                **relay != peer
                    && !named.contains(relay)
                    && live.has_direct()
                    && live.credential.roles.contains(Role::Relay)
            })
            .filter_map(|(relay, _)| self.circuit_through(*relay))
            .take(MAX_GUESSES);
        addrs.extend(guesses);
        addrs
    }

    /// `<relay's address>/p2p/<relay>/p2p-circuit`, by an address at which this node reaches the relay directly.
    pub(super) fn circuit_through(&self, relay: PeerId) -> Option<Multiaddr> {
        let live = self.live.get(&relay)?;
        let dialled = live
            .connections
            .values()
            .find(|link| link.dialled && !link.relayed);
        let base = match dialled {
            Some(link) => link.remote.clone(),
            None => self
                .book
                .get(relay)?
                .addrs
                .iter()
                .find(|addr| is_direct(addr))?
                .clone(),
        };
        let base = crate::peer::without_target(base);
        Some(
            base.with(Protocol::P2p(to_libp2p(relay)))
                .with(Protocol::P2pCircuit),
        )
    }

    /// A dial was established or failed; its attempt may be over.
    pub(super) fn dial_ended(&mut self, id: ConnectionId, now: Instant) {
        if let Some(peer) = self.dials.connections.remove(&id) {
            if let Some(attempt) = self.dials.attempts.get_mut(&peer) {
                attempt.pending = attempt.pending.saturating_sub(1);
            }
            self.conclude(peer, now);
        }
    }

    /// Ends an attempt that reached its member or has nothing left to try.
    fn conclude(&mut self, peer: PeerId, now: Instant) {
        let refused = loop {
            if self.live.contains_key(&peer) {
                self.dials.attempts.remove(&peer);
                return;
            }
            match self.dials.attempts.get(&peer) {
                None => return,
                Some(attempt) if attempt.pending > 0 => return,
                Some(attempt) if attempt.refused || attempt.stages.is_empty() => break attempt.refused,
                Some(_) => self.next_stage(peer),
            }
        };
        self.dials.attempts.remove(&peer);
        Counters::add(&self.counters().dial_failures);
        if refused {
            self.book.refused(peer, now, rand::random());
        } else {
            self.book.failed(peer, now, rand::random());
        }
        self.swarm.behaviour_mut().kad.remove_peer(&to_libp2p(peer));
        self.not_reached(peer, refused);
    }

    pub(super) fn on_dial_error(
        &mut self,
        id: ConnectionId,
        peer: Option<libp2p::PeerId>,
        error: &DialError,
    ) {
        let now = Instant::now();
        let peer = peer.as_ref().and_then(from_libp2p);
        let mut refused = false;
        match error {
            DialError::Transport(errors) => {
                for (addr, error) in errors {
                    let TransportError::Other(error) = error else {
                        continue;
                    };
                    if let Some(rejected) = find_rejection(error) {
                        refused |= !matches!(rejected.reason, Refusal::Broken(_) | Refusal::Stalled);
                        let (who, reason) = (rejected.peer.or(peer), rejected.reason.clone());
                        self.refused(Some(addr.clone()), who, reason);
                    }
                }
                tracing::debug!(?peer, %error, "not reached");
            }
            DialError::WrongPeerId { address, .. } => {
                if let Some(peer) = peer {
                    self.wrong_peer(peer, address.clone(), now);
                }
            }
            DialError::LocalPeerId { address } => {
                if let Some(peer) = peer {
                    self.book.strike(peer, address);
                }
                self.dials.unnamed.retain(|unnamed| unnamed.dialling != Some(id));
            }
            DialError::Denied { cause } => {
                if let Some(reason) = cause.downcast_ref::<Refusal>() {
                    refused = true;
                    self.refused(None, peer, reason.clone());
                }
            }
            DialError::NoAddresses | DialError::DialPeerConditionFalse(_) | DialError::Aborted => {}
        }
        if refused && let Some(attempt) = peer.and_then(|peer| self.dials.attempts.get_mut(&peer)) {
            attempt.refused = true;
        }
        self.dial_ended(id, now);
        self.unnamed_ended(id, None, now);
    }

    /// Somebody else is at the address. Behind a bootstrap address that may well be a member, enrolled anew.
    fn wrong_peer(&mut self, peer: PeerId, addr: Multiaddr, now: Instant) {
        let pinned = self.book.get(peer).is_some_and(|entry| entry.pinned);
        if pinned {
            self.dials
                .add_unnamed(crate::peer::without_target(addr), now, rand::random());
        } else {
            self.book.strike(peer, &addr);
        }
    }

    fn dial_unnamed(&mut self, now: Instant) {
        let live = &self.live;
        let mut due = Vec::new();
        for (index, unnamed) in self.dials.unnamed.iter().enumerate() {
            let connected = unnamed.leads_to.is_some_and(|peer| live.contains_key(&peer));
            if !connected && unnamed.dialling.is_none() && unnamed.next <= now {
                due.push(index);
            }
        }
        for index in due {
            let unnamed = &mut self.dials.unnamed[index];
            let opts = DialOpts::unknown_peer_id().address(unnamed.addr.clone()).build();
            unnamed.next = now + unnamed.pause.mul_f64(0.5 + rand::random::<f64>());
            unnamed.pause = (unnamed.pause * 2).min(UNNAMED_PAUSE);
            let id = opts.connection_id();
            match self.swarm.dial(opts) {
                Ok(()) => {
                    unnamed.dialling = Some(id);
                    Counters::add(&self.counters().dials);
                }
                Err(error) => tracing::debug!(%error, "a bootstrap address was not dialled"),
            }
        }
    }

    /// A dial of a bootstrap address ended, at this member if it was established.
    pub(super) fn unnamed_ended(&mut self, id: ConnectionId, at: Option<PeerId>, now: Instant) {
        if let Some(unnamed) = self
            .dials
            .unnamed
            .iter_mut()
            .find(|unnamed| unnamed.dialling == Some(id))
        {
            unnamed.dialling = None;
            if at.is_some() {
                unnamed.leads_to = at;
                unnamed.pause = Duration::from_millis(500);
                unnamed.next = now + UNNAMED_PAUSE;
            }
        }
    }
}
