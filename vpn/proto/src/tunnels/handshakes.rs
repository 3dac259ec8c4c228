//! Handshakes: beginning, answering and finishing them.
//!
//! What is costly, the Noise message, is looked at last: after the MAC, whose key only the one member has; after the
//! timestamp, which no init has twice; and at that member's own rate. Nothing is shared by members that one of them
//! could use up for the others, and no source address counts: see `docs/decisions`, "handshakes need no cookies".

use std::time::Instant;

use aerie_types::PeerId;
use rand::Rng;

use super::{Hop, RemoteIdentity, Tunnels};
use crate::Now;
use crate::handshake::{self, Context};
use crate::limits::REKEY_TIMEOUT;
use crate::path::Route;
use crate::peer::{self, Attempt};
use crate::session::Session;
use crate::wire::{self, Mac};

impl Tunnels {
    /// Sends an init over the way in use, the first or one more. Nothing happens while there is no way.
    pub(super) fn initiate(&mut self, id: PeerId, now: Now) {
        let timestamp = self.next_timestamp(now);
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let jitter = self.rng.next_u32();
        let Some(peer) = self.peers.get(&id) else { return };
        let agent = &peer.agent;
        let hop = agent.route().and_then(|route| Hop::of(route, &self.links));
        let (Some(hop), Some(key), Some(remote), Some(responder_tag)) =
            (hop, agent.key(), peer.noise_public, agent.remote_tag())
        else {
            return;
        };
        let context = Context {
            initiator_tag: agent.tag(),
            responder_tag,
            timestamp,
        };
        let started = handshake::initiate(&self.identity, &remote, context, &self.config.suites, seed);
        let (state, noise) = match started {
            Ok(started) => started,
            Err(error) => {
                tracing::debug!(%error, peer = %id.short(), "no handshake with this key");
                return;
            }
        };
        let key = key.clone();
        let index = self.new_index(id);
        let datagram = wire::init(index, responder_tag, timestamp, &noise, &key);
        hop.push_bytes(&mut self.outbox, &datagram);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let last = peer.attempt.take();
        let (began, tries) = last
            .as_ref()
            .map_or((now.instant, 0), |last| (last.began, last.tries));
        let retry_at = Attempt::retry_after(tries, jitter, now.instant);
        peer.attempt = Some(Attempt {
            state,
            index,
            context,
            began,
            retry_at,
            tries: tries + 1,
        });
        if let Some(last) = last {
            self.indices.remove(&last.index);
        }
    }

    pub(super) fn handle_init(
        &mut self,
        route: Route,
        (sender, tag, timestamp): (u32, u64, u64),
        noise: &[u8],
        mac: Mac<'_>,
        now: Now,
    ) {
        let Some(id) = self.peer_of_tag(tag, mac, now.instant) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if timestamp <= peer.newest_init {
            self.counters.replayed += 1;
            return;
        }
        peer.newest_init = timestamp;
        if peer.keeps_own_attempt(self.identity.peer) {
            return;
        }
        if !peer.handshakes.take(1, now.instant) {
            self.counters.handshakes_limited += 1;
            return;
        }
        let (Some(initiator_tag), Some(key)) = (peer.agent.remote_tag(), peer.agent.key().cloned()) else {
            return;
        };
        let context = Context {
            initiator_tag,
            responder_tag: tag,
            timestamp,
        };
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let Ok(received) = handshake::receive(&self.identity, context, noise, seed) else {
            self.counters.forged += 1;
            return;
        };
        let Some(remote) = self.check_credential(id, &received.credential, received.noise_public, now) else {
            return;
        };
        let Ok((keys, answer)) = received.answer(&self.identity, &self.config.suites) else {
            self.refuse(id, "there is no cipher that both sides allow".to_owned());
            return;
        };
        let Some(hop) = Hop::of(route, &self.links) else {
            return;
        };
        let index = self.new_index(id);
        hop.push_bytes(&mut self.outbox, &wire::response(index, sender, &answer, &key));
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.name = Some(remote.node);
        peer.noise_public = Some(remote.noise_public);
        let session = Session::new(index, sender, &keys, false, now.instant);
        let freed: Vec<u32> = [
            peer.next.replace(session).map(|old| old.local),
            peer.attempt.take().map(|attempt| attempt.index),
        ]
        .into_iter()
        .flatten()
        .collect();
        self.free(freed);
    }

    pub(super) fn handle_response(
        &mut self,
        route: Route,
        (sender, receiver): (u32, u32),
        noise: &[u8],
        mac: Mac<'_>,
        now: Now,
    ) {
        let Some(peer) = self.indices.get(&receiver).and_then(|id| self.peers.get_mut(id)) else {
            self.counters.unknown += 1;
            return;
        };
        let id = peer.id;
        let Some(key) = peer.agent.key() else { return };
        if !mac.verify(key) {
            self.counters.forged += 1;
            return;
        }
        let Some(attempt) = peer.attempt.as_mut().filter(|attempt| attempt.index == receiver) else {
            self.counters.unknown += 1;
            return;
        };
        if !peer.handshakes.take(1, now.instant) {
            self.counters.handshakes_limited += 1;
            return;
        }
        let Ok(finished) = attempt.state.finish(noise, &self.config.suites) else {
            self.counters.forged += 1;
            return;
        };
        let Some(remote) = self.check_credential(id, &finished.credential, finished.noise_public, now) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Some(attempt) = peer.attempt.take() else {
            return;
        };
        tracing::trace!(peer = %id.short(), timestamp = attempt.context.timestamp, "handshake done");
        peer.name = Some(remote.node);
        let session = peer::session_of(&finished, &attempt, sender, now.instant);
        let freed = peer.install(session, now.instant);
        peer.agent.heard(route, now.instant);
        self.counters.handshakes += 1;
        self.free(freed);
        self.peers.look_at(id, now.instant);
        if self.flush_queue(id, now.instant) == 0 {
            // The responder may send only after it has heard something in the session.
            self.send_keepalive(id, now.instant);
        }
    }

    /// The credential must be valid and be that of the peer and of the key that Noise has proved.
    fn check_credential(
        &mut self,
        id: PeerId,
        der: &[u8],
        noise_public: [u8; 32],
        now: Now,
    ) -> Option<RemoteIdentity> {
        match self.check.check(der, now.wall) {
            Ok(remote) if remote.peer == id && remote.noise_public == noise_public => Some(remote),
            Ok(_) => {
                self.refuse(id, "it showed the credential of another member".to_owned());
                None
            }
            Err(reason) => {
                self.refuse(id, format!("its credential was refused: {reason}"));
                None
            }
        }
    }

    fn refuse(&mut self, id: PeerId, reason: String) {
        self.counters.credential_refused += 1;
        tracing::debug!(peer = %id.short(), reason, "handshake refused");
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.refusal = Some(reason);
        }
    }

    /// Never the same twice, and rising while this core lives, whatever the clock does.
    fn next_timestamp(&mut self, now: Now) -> u64 {
        self.last_timestamp = now.wall.0.max(self.last_timestamp + 1);
        self.last_timestamp
    }

    /// Begins, repeats or gives up a handshake.
    pub(super) fn drive_handshake(&mut self, id: PeerId, now: Now) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        match &peer.attempt {
            Some(attempt)
                if now.instant.saturating_duration_since(attempt.began) >= crate::limits::REKEY_ATTEMPT =>
            {
                let index = attempt.index;
                peer.attempt = None;
                peer.wants_session = false;
                self.indices.remove(&index);
                self.give_up_queue(id, now.instant);
            }
            Some(attempt) if now.instant >= attempt.retry_at => self.initiate(id, now),
            Some(_) => {}
            None if peer.wants_session && !is_confirming(peer.next.as_ref(), now.instant) => {
                self.initiate(id, now);
            }
            None => {}
        }
    }
}

/// Whether the peer has just got keys from this side, and will use them any moment.
fn is_confirming(next: Option<&Session>, now: Instant) -> bool {
    next.is_some_and(|next| now.saturating_duration_since(next.created) < REKEY_TIMEOUT)
}
