//! Everything that happens because time passes.

use std::time::{Duration, Instant};

use aerie_types::PeerId;
use rand::Rng;

use super::{Event, Tunnels};
use crate::Now;
use crate::limits::{FORGET_AFTER, IDLE_AFTER, PING_TIMEOUT};
use crate::peer::Peer;

/// A relayed way is kept beside a direct one for so long, in case the direct one is short-lived.
const STANDBY: Duration = Duration::from_secs(60);
/// What waits for a peer without any way is answered after this long.
const PATHLESS: Duration = Duration::from_secs(10);
/// The shortest sleep: nothing in the protocol is finer.
const GRAIN: Duration = Duration::from_millis(1);

impl Tunnels {
    /// Does what is due. To be called when [`Tunnels::poll_timeout`] says so; calling it early does no harm.
    pub fn handle_timeout(&mut self, now: Now) {
        let at = now.instant;
        self.wake = None;
        // Before the peers: a ping may want a session of one.
        let pings = self.drive_pings(at);
        let due = self.peers.take_due(at);
        self.peers.look_no_earlier(Some(at + GRAIN));
        for id in due {
            self.drive_peer(id, now);
            if let Some(next) = self.peers.get(&id).and_then(|peer| next_look(peer, at)) {
                self.peers.look_at(id, next);
            }
        }
        let check = self.drive_check(at);
        let rng = &mut self.rng;
        for (to, query) in self.reflexive.poll(at, || rng.next_u64()) {
            self.outbox.push(to, &query);
        }
        if let Some(relay) = &mut self.relay {
            relay.handle_timeout(at);
        }
        let lookups = self.drive_lookups(at);
        let streams = self.drive_streams(at);
        let links = self.drive_links(at);
        let relay = self.relay.as_ref().and_then(|relay| relay.poll_timeout());
        self.wake = [
            self.wake,
            lookups,
            links,
            streams,
            check,
            pings,
            relay,
            self.reflexive.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|next| next.max(at + GRAIN));
        self.peers.look_no_earlier(None);
    }

    fn drive_peer(&mut self, id: PeerId, now: Now) {
        let at = now.instant;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let idle = at.saturating_duration_since(peer.active);
        if idle >= FORGET_AFTER {
            self.forget(id);
            return;
        }
        if idle >= IDLE_AFTER && peer.agent.is_awake() {
            peer.agent.sleep();
            peer.wants_session = false;
            self.drop_links_older_than(Duration::ZERO, id, at);
            self.give_up_queue(id, at);
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let rng = &mut self.rng;
        peer.agent.handle_timeout(at, || rng.next_u64());
        let freed = peer.expire(at);
        if peer.silence_at.is_some_and(|silence| at >= silence) {
            peer.silence_at = None;
            peer.wants_session = true;
        }
        let keepalive = peer.keepalive_at.is_some_and(|due| at >= due);
        if peer.agent.is_awake() && peer.agent.route().is_none() {
            peer.pathless_since.get_or_insert(at);
        }
        let pathless = peer
            .pathless_since
            .is_some_and(|since| at.saturating_duration_since(since) >= PATHLESS);
        let standby_over = peer.agent.is_direct_for(STANDBY, at);
        self.free(freed);
        if keepalive {
            self.send_keepalive(id, at);
        }
        self.drive_agent(id, now);
        self.drive_handshake(id, now);
        if pathless {
            self.give_up_queue(id, at);
        }
        if standby_over {
            // A younger one was asked for by the peer, which may have lost the direct way already.
            self.drop_links_older_than(STANDBY, id, at);
        }
        self.drive_agent(id, now);
        self.drive_lengths(id, at);
    }

    fn drive_pings(&mut self, now: Instant) -> Option<Instant> {
        let late = self
            .pings
            .iter()
            .filter(|(_, ping)| now >= ping.asked + PING_TIMEOUT);
        let late: Vec<_> = late.map(|(id, ping)| (*id, ping.addr)).collect();
        for (id, addr) in late {
            self.pings.remove(&id);
            let why = match self
                .bindings
                .get(&addr)
                .and_then(|binding| self.peers.get(&binding.peer))
            {
                None => {
                    format!("no member holds {addr}, or the register is out of reach; see 'aerie status'")
                }
                Some(peer) => match peer.refusal.clone().or_else(|| peer.agent.why(false)) {
                    Some(reason) => format!("no way to {addr}: {reason}"),
                    None => format!("{addr} did not answer within {} s", PING_TIMEOUT.as_secs()),
                },
            };
            self.emit(Event::PingFailed { id, why });
        }
        self.send_pings(now);
        self.pings.values().map(super::packets::Ping::next).min()
    }
}

/// When something is due for a peer, if nothing happens meanwhile.
fn next_look(peer: &Peer, now: Instant) -> Option<Instant> {
    let idle = if peer.agent.is_awake() {
        IDLE_AFTER
    } else {
        FORGET_AFTER
    };
    let pathless = peer
        .pathless_since
        .filter(|_| !peer.queue.is_empty())
        .map(|since| since + PATHLESS);
    [peer.poll_timeout(now), pathless, Some(peer.active + idle)]
        .into_iter()
        .flatten()
        .min()
}
