//! What the swarm reports, handed to whom it concerns.

use std::time::Instant;

use libp2p::core::transport::TransportError;
use libp2p::gossipsub::{self, MessageAcceptance};
use libp2p::swarm::{ListenError, SwarmEvent};
use libp2p::{Multiaddr, mdns, relay};

use aerie_types::PeerId;

use super::Driver;
use crate::admission::{Refusal, find_rejection};
use crate::behaviour::BehaviourEvent;
use crate::config::{MAX_UNPUBLISHED, OUTBOX, UNPUBLISHED_TTL};
use crate::handle::{Event, Protocol, Topic};
use crate::liveness;
use crate::peer::from_libp2p;
use crate::stats::Counters;

impl Driver {
    pub(super) fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                self.wake();
                self.unnamed_ended(connection_id, from_libp2p(&peer_id), Instant::now());
                self.on_established(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                ..
            } => {
                self.wake();
                self.on_closed(&peer_id, connection_id);
            }
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error,
                ..
            } => self.on_incoming_error(send_back_addr, &error),
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                peer_id,
                error,
            } => self.on_dial_error(connection_id, peer_id, &error),
            SwarmEvent::NewListenAddr { address, .. } => self.on_new_listen_addr(address),
            SwarmEvent::ExpiredListenAddr { address, .. } => self.on_listen_addr_gone(&address),
            SwarmEvent::ListenerClosed {
                listener_id, reason, ..
            } => {
                if let Err(error) = reason {
                    tracing::debug!(%error, "a listener closed");
                }
                self.place_lost(listener_id, Instant::now());
            }
            SwarmEvent::ListenerError { error, .. } => tracing::debug!(%error, "a listener reports an error"),
            SwarmEvent::ExternalAddrConfirmed { address } => self.on_confirmed(address),
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Guard(never) | BehaviourEvent::Limits(never) => match never {},
            BehaviourEvent::Liveness(liveness::Event::Alive { peer, rtt }) => {
                if let Some(live) = from_libp2p(&peer).and_then(|peer| self.live.get_mut(&peer)) {
                    live.rtt = Some(rtt);
                }
            }
            BehaviourEvent::Liveness(liveness::Event::Dead {
                peer,
                connection,
                suspect,
            }) => {
                self.on_dead(&peer, connection, suspect);
            }
            BehaviourEvent::Identify(event) => self.on_identify(event),
            BehaviourEvent::Kad(event) => self.on_kad(event),
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Dht(event) => self.on_requests(Protocol::Dht, event),
            BehaviourEvent::Signal(event) => self.on_requests(Protocol::Signal, event),
            BehaviourEvent::Control(event) => self.on_requests(Protocol::Control, event),
            BehaviourEvent::Mesh(event) => self.on_mesh(event),
            BehaviourEvent::RelayClient(relay::client::Event::ReservationReqAccepted {
                relay_peer_id,
                ..
            }) => self.place_held(&relay_peer_id),
            BehaviourEvent::Dcutr(event) => {
                tracing::debug!(peer = %event.remote_peer_id, result = ?event.result, "hole punching");
                Counters::add(match event.result {
                    Ok(_) => &self.counters().punched,
                    Err(_) => &self.counters().punch_failures,
                });
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.on_mdns(found),
            BehaviourEvent::RelayClient(_)
            | BehaviourEvent::RelayServer(_)
            | BehaviourEvent::AutonatClient(_)
            | BehaviourEvent::AutonatServer(_)
            | BehaviourEvent::Mdns(_) => {}
        }
    }

    fn on_incoming_error(&mut self, remote: Multiaddr, error: &ListenError) {
        let (peer, reason) = match error {
            ListenError::Transport(TransportError::Other(error)) => match find_rejection(error) {
                Some(rejected) => (rejected.peer, rejected.reason.clone()),
                None => {
                    let reason = Refusal::Handshake(error.to_string());
                    self.counters().refused(&reason);
                    (None, reason)
                }
            },
            ListenError::Denied { cause } => match cause.downcast_ref::<Refusal>() {
                Some(reason) => (None, reason.clone()),
                None => return,
            },
            _ => return,
        };
        self.refused(Some(remote), peer, reason);
    }

    /// Reports a refusal, as long as the caller keeps up: these are the cheapest events for a stranger to cause.
    pub(super) fn refused(&mut self, remote: Option<Multiaddr>, peer: Option<PeerId>, reason: Refusal) {
        tracing::debug!(?remote, ?peer, %reason, "refused");
        if self.outbox.len() < OUTBOX / 4 {
            self.report(Event::Refused { remote, peer, reason });
        }
    }

    fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            } => {
                let acceptance = self.judge_message(message);
                self.swarm
                    .behaviour_mut()
                    .gossip
                    .report_message_validation_result(&message_id, &propagation_source, acceptance);
            }
            gossipsub::Event::Subscribed { .. } => self.publish_waiting(Instant::now()),
            _ => {}
        }
    }

    /// The signature is verified already. An author known to this node must still belong; one that is not known is
    /// let through, since its message has to prove itself anyway.
    fn judge_message(&mut self, message: gossipsub::Message) -> MessageAcceptance {
        let Some(author) = message.source.as_ref().and_then(from_libp2p) else {
            Counters::add(&self.counters().malformed);
            return MessageAcceptance::Reject;
        };
        if self.gate.credential(author).is_some() && self.gate.check(author).is_err() {
            return MessageAcceptance::Reject;
        }
        let name = message.topic.as_str();
        if name == self.suspects {
            self.on_suspicion(&message.data);
            return MessageAcceptance::Accept;
        }
        let Some(topic) = Topic::ALL
            .into_iter()
            .find(|topic| topic.name(self.config.grid) == name)
        else {
            return MessageAcceptance::Ignore;
        };
        let event = Event::Gossip {
            topic,
            from: author,
            bytes: message.data,
        };
        if self.offer(event) {
            Counters::add(&self.counters().gossip_received);
        }
        MessageAcceptance::Accept
    }

    pub(super) fn publish(&mut self, topic: String, bytes: Vec<u8>) {
        self.publish_until(Instant::now() + UNPUBLISHED_TTL, topic, bytes);
    }

    pub(super) fn publish_waiting(&mut self, now: Instant) {
        for (until, topic, bytes) in std::mem::take(&mut self.unpublished) {
            if until > now {
                self.publish_until(until, topic, bytes);
            }
        }
    }

    fn publish_until(&mut self, until: Instant, topic: String, bytes: Vec<u8>) {
        use gossipsub::PublishError::{AllQueuesFull, Duplicate, NoPeersSubscribedToTopic};
        let hash = gossipsub::IdentTopic::new(topic.clone());
        match self.swarm.behaviour_mut().gossip.publish(hash, bytes.clone()) {
            Ok(_) | Err(Duplicate) => {}
            Err(NoPeersSubscribedToTopic | AllQueuesFull(_)) if self.unpublished.len() < MAX_UNPUBLISHED => {
                self.unpublished.push_back((until, topic, bytes));
            }
            Err(error) => {
                Counters::add(&self.counters().dropped);
                tracing::debug!(%error, "a message was not published");
            }
        }
    }
}
