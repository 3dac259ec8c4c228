//! The network of this host: what the caller says of it, and what a person asks about it and about ways.

use std::time::{Duration, Instant};

use aerie_types::{PeerId, UnderlayAddr};
use rand::Rng;

use super::{Event, Tunnels};
use crate::netcheck::{Check, Finding, NetworkStatus, Todo};
use crate::path::{Route, Seen};
use crate::signal::{MAX_CANDIDATES, Signal, is_usable};
use crate::status::{Change, PairStatus, PathStatus};
use crate::wire;
use crate::{Mapping, Now};

/// Whoever this host has sent something to is let in by its NAT for a while, and is no stranger.
const REMEMBERED: Duration = Duration::from_secs(300);
/// A member is obeyed so often.
const EACH: Duration = Duration::from_millis(300);
/// So many of these are remembered.
const MAX_REMEMBERED: usize = 1024;

impl Tunnels {
    /// This host's own addresses with the data socket's port: candidates for members of the same network.
    /// Whether they are new or not, say so whenever the network may have changed.
    pub fn set_hosts(&mut self, hosts: Vec<UnderlayAddr>, now: Now) {
        let net = self.net;
        let loopback = self.config.loopback;
        let mut hosts: Vec<_> = hosts
            .into_iter()
            .filter(|addr| is_usable(*addr, net, loopback))
            .take(MAX_CANDIDATES - 2)
            .collect();
        hosts.sort_unstable();
        if hosts == self.hosts {
            return;
        }
        let first = self.hosts.is_empty();
        self.hosts = hosts;
        if !first {
            self.network_changed(now);
        }
        self.wake_at(now.instant);
    }

    /// The port of the router in front of this host that leads to the data socket, if there is one. Members try it as
    /// they do any other address.
    pub fn set_mapped(&mut self, addr: Option<UnderlayAddr>, now: Now) {
        let usable = addr.filter(|addr| is_usable(*addr, self.net, self.config.loopback));
        if usable == self.mapped {
            return;
        }
        self.mapped = usable;
        let at = now.instant;
        self.peers.change(at, |peer| {
            peer.agent.local_changed(at);
            true
        });
        self.wake_at(at);
    }

    /// This host's way to the outside is another one, though its addresses may be the same. What is known of it is
    /// asked for anew, and every way is in doubt until it answers.
    pub fn network_changed(&mut self, now: Now) {
        let at = now.instant;
        self.reflexive.reset(at);
        self.peers.change(at, |peer| {
            peer.agent.network_changed(at);
            peer.mtu.recheck(at);
            true
        });
        self.links.values_mut().for_each(|link| link.rebind(at));
        self.renew_streams(at);
        self.wake_at(at);
    }

    /// Everything about the way to one peer; `None` if there is no state of it, since nothing has gone to it lately.
    #[must_use]
    pub fn path(&self, id: PeerId, now: Now) -> Option<PathStatus> {
        let at = now.instant;
        let peer = self.peers.get(&id)?;
        let mapping = self.mapping(at);
        let changes = peer.changes.iter().map(|(then, path)| Change {
            ago: at.saturating_duration_since(*then),
            path: *path,
        });
        Some(PathStatus {
            reason: peer.agent.reason(mapping, self.reflexive.is_heard()),
            since: peer.agent.selected_for(at),
            pairs: peer
                .agent
                .seen(at)
                .iter()
                .filter_map(|seen| self.pair_of(seen))
                .collect(),
            candidates: self.candidates(at),
            mapping,
            peer_symmetric: peer.agent.peer_symmetric(),
            next_offer: peer.agent.next_offer(at),
            changes: changes.collect(),
            peer: self.status_of(peer, mapping == Mapping::Dependent, at),
        })
    }

    fn pair_of(&self, seen: &Seen) -> Option<PairStatus> {
        let (addr, via) = match seen.route {
            Route::Direct(addr) => (addr, None),
            Route::Stream(stream) => (self.streams.far(stream).unwrap_or(stream), None),
            Route::Relayed(session) => {
                let link = self.links.get(&session)?;
                (self.streams.far(link.addr).unwrap_or(link.addr), Some(link.relay))
            }
        };
        Some(PairStatus {
            kind: seen.kind,
            addr,
            via,
            state: seen.state,
            selected: seen.selected,
            rtt: seen.rtt,
            answered: seen.answered,
        })
    }

    /// Looks at the network anew, unless that was begun some seconds ago. `strangers`: members of whom the first few are asked to send something here; they
    /// should be such as this host has not spoken to for minutes.
    pub fn check_network(&mut self, strangers: Vec<PeerId>, now: Now) {
        if self
            .network_check
            .as_ref()
            .is_some_and(|check| !check.is_over(now.instant))
        {
            // Its result is everybody's: a check makes work for others, and must not be asked for at will.
            return;
        }
        self.reflexive.ask_again(now.instant);
        self.knocked.retain(|_, at| now.instant < *at + REMEMBERED);
        let mut strangers = strangers;
        strangers.retain(|peer| !self.knocked.contains_key(peer));
        let rng = &mut self.rng;
        self.network_check = Some(Check::new(strangers, || rng.next_u64(), now.instant));
        self.wake_at(now.instant);
    }

    /// How the network looks, as far as it is known.
    #[must_use]
    pub fn network(&self, now: Now) -> NetworkStatus {
        let at = now.instant;
        let untried = (Finding::Untried, Finding::Untried);
        let check = self.network_check.as_ref();
        let complete = check.is_none_or(|check| {
            let told = self.reflexive.is_told_since(check.began());
            check.is_complete(self.outside(check), told, at)
        });
        let began = check.map(Check::began);
        let (hairpin, admits_strangers) = check.map_or(untried, |check| check.findings(complete));
        NetworkStatus {
            hosts: self.hosts.clone(),
            mapped: self.mapped,
            observers: self.reflexive.observers(began.unwrap_or(at)),
            mapping: began.map_or_else(|| self.mapping(at), |began| self.mapping_since(began, at)),
            hairpin,
            admits_strangers,
            tls: self.streams.relays(),
            complete,
        }
    }

    /// Does what a check wants. The next time to look.
    pub(super) fn drive_check(&mut self, now: Instant) -> Option<Instant> {
        let outside = self.outside(self.network_check.as_ref()?);
        let check = self.network_check.as_mut()?;
        let todo = check.poll(outside, now);
        let next = check.poll_timeout(now);
        for todo in todo {
            match todo {
                Todo::Query { to, transaction } => {
                    self.outbox.push(to, &wire::reflexive_query(transaction));
                }
                Todo::Knock {
                    members,
                    addr,
                    transaction,
                } => {
                    let bytes = Signal::Knock { addr, transaction }.encode();
                    for to in members {
                        let bytes = bytes.clone();
                        self.emit(Event::Signal { to, bytes });
                    }
                }
            }
        }
        next
    }

    /// Where others have seen this host since a check began, and whether that is the outside of a NAT.
    fn outside(&self, check: &Check) -> Option<(UnderlayAddr, bool)> {
        let addr = self.reflexive.seen_since(check.began())?;
        Some((addr, !self.hosts.contains(&addr)))
    }

    /// A member has sent what this node asked it for.
    pub(super) fn handle_knocked(&mut self, from: PeerId, transaction: u64) {
        if let Some(check) = &mut self.network_check {
            check.knocked(from, transaction);
        }
    }

    /// Sends what a member asked for: one small datagram, which is no more than its message was.
    pub(super) fn handle_knock(&mut self, from: PeerId, addr: UnderlayAddr, transaction: u64, now: Instant) {
        let soon = |at: &Instant| now < *at + EACH;
        let usable = is_usable(addr, self.net, self.config.loopback);
        if usable && !self.knocked.get(&from).is_some_and(soon) && self.knock_rate.take(1, now) {
            self.signal_to(from, &Signal::Knocked { transaction });
            if self.knocked.len() >= MAX_REMEMBERED {
                self.knocked.retain(|_, at| now < *at + REMEMBERED);
            }
            if self.knocked.len() < MAX_REMEMBERED {
                self.knocked.insert(from, now);
            }
            self.outbox.push(addr, &wire::reflexive_answer(transaction, addr));
        } else {
            self.counters.queries_limited += 1;
        }
    }
}
