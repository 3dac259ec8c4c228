//! libp2p's Kademlia, watched: how many questions, each prompted by the answer before it, a look-up takes, and how
//! many members have to be dialled for it.
//!
//! Only one look-up of a member is watched at a time.

use std::collections::BTreeMap;
use std::task::{Context, Poll};

use libp2p::PeerId;
use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, QueryId};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};

type Inner = kad::Behaviour<MemoryStore>;
type In = THandlerInEvent<Inner>;
type Out = THandlerOutEvent<Inner>;

pub(crate) struct Watched {
    pub(crate) kad: Inner,
    trace: Option<Trace>,
}

/// What was seen of one look-up.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) rounds: u32,
    pub(crate) dials: u32,
    /// Who was asked, in which round.
    asked: BTreeMap<PeerId, u32>,
    /// The round of the latest answer or failure.
    latest: u32,
}

impl Watched {
    pub(crate) fn new(kad: Inner) -> Self {
        Self { kad, trace: None }
    }

    /// Begins to look up whom a key is closest to.
    pub(crate) fn locate(&mut self, key: Vec<u8>) -> QueryId {
        self.trace = Some(Trace::default());
        self.kad.get_closest_peers(key)
    }

    /// What was seen of the latest look-up.
    pub(crate) fn take_trace(&mut self) -> Trace {
        self.trace.take().unwrap_or_default()
    }

    fn settled(&mut self, peer: &PeerId) {
        if let Some(trace) = &mut self.trace
            && let Some(round) = trace.asked.get(peer)
        {
            trace.latest = *round;
        }
    }

    fn asks(&mut self, peer: PeerId, dials: bool) {
        if let Some(trace) = &mut self.trace
            && !trace.asked.contains_key(&peer)
        {
            let round = trace.latest + 1;
            trace.asked.insert(peer, round);
            trace.rounds = trace.rounds.max(round);
            trace.dials += u32::from(dials);
        }
    }
}

impl NetworkBehaviour for Watched {
    type ConnectionHandler = <Inner as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = kad::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad
            .handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addrs: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.kad.handle_pending_outbound_connection(id, peer, addrs, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad
            .handle_established_outbound_connection(id, peer, addr, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match &event {
            FromSwarm::DialFailure(failure) => {
                if let Some(peer) = failure.peer_id {
                    self.settled(&peer);
                }
            }
            FromSwarm::ConnectionClosed(closed) if closed.remaining_established == 0 => {
                self.settled(&closed.peer_id);
            }
            _ => {}
        }
        self.kad.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        if matches!(event, Out::FindNodeRes { .. } | Out::QueryError { .. }) {
            self.settled(&peer);
        }
        self.kad.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        let polled = self.kad.poll(cx);
        match &polled {
            Poll::Ready(ToSwarm::NotifyHandler {
                peer_id,
                event: In::FindNodeReq { .. },
                ..
            }) => self.asks(*peer_id, false),
            Poll::Ready(ToSwarm::Dial { opts }) => {
                if let Some(peer) = opts.get_peer_id() {
                    self.asks(peer, true);
                }
            }
            _ => {}
        }
        polled
    }
}
