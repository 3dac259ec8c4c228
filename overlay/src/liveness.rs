//! Notices that a member has vanished without a word.
//!
//! Every connection carries two long-lived substreams, one opened by each side. On its own a side sends eight bytes
//! and expects them back:
//!
//! ```text
//!            interval over                     echo
//!   Idle ───────────────────► Waiting ─────────────────────► Idle   (round-trip time reported)
//!     ▲      or asked to         │ timeout          │ 2 x timeout
//!     │                          ▼                  ▼
//!     └── echo ──────────────── Late ────────────► Dead             (the driver closes the connection)
//! ```
//!
//! On an overloaded machine, or towards one, the times stretch: a member that answers slowly is not declared dead, for
//! the handshakes of its return would only add to the load.
//!
//! A probe that *arrives* proves as much as an echo, so whoever receives one puts its own off, at most four times in
//! a row: in a quiet grid one side of each connection probes. With many connections the interval grows in steps, so
//! that a node sends the same number of probes in any grid; a member that declares somebody dead tells the others,
//! and they probe at once. Two kinds of connections are probed seldom: those through a relay, since the relay probes
//! both ends and closes what it carried for one that has vanished, and all but the oldest to a member, since they are
//! probed at once when that one falls silent.
//!
//! When something has happened that may have ended connections, they are in doubt: the network of this host has changed,
//! or the member has opened another one, as it does when its own has. They are probed at once, and have a second or
//! four round trips to answer, whatever the timeout is; four times as long where no round trip is known yet, since whoever
//! is killed in the first second of a connection comes back as well.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt};
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
    NetworkBehaviour, NotifyHandler, Stream, StreamUpgradeError, SubstreamProtocol, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{PeerId, StreamProtocol};
use tokio::time::{Instant, Sleep};

use crate::peer::is_relayed;

/// Up to this many connections are probed at the configured interval.
const FULL_RATE_CONNECTIONS: usize = 5;

/// How many intervals pass between two probes of a connection that another one speaks for.
const SELDOM: u32 = 6;

/// How often in a row a side lets the other's probe stand for its own.
const MAX_PUT_OFF: u8 = 4;

/// The first probe of a connection falls somewhere in this time, so that a busy start is not made busier.
const FIRST_PROBE: Duration = Duration::from_secs(1);

/// How long a connection in doubt has to answer, and how many round trips at least.
const DOUBT: Duration = Duration::from_secs(1);

/// What counts as the round trip of a connection in doubt that has never answered.
const UNKNOWN_RTT: Duration = Duration::from_secs(1);

/// A probe answered less than this ago is not repeated on somebody's suspicion.
const FRESH: Duration = Duration::from_secs(1);

/// A probe may take this many round trips of late before the timeout counts, and this many timeouts at most.
const SLOW_FACTOR: u32 = 4;

/// A timer that comes this late speaks of an overloaded machine; where the time was short, this late.
const LATE: Duration = Duration::from_millis(500);
const LATE_IN_DOUBT: Duration = Duration::from_millis(50);

/// The bytes of a probe and of its echo.
const PROBE: usize = 8;

#[derive(Debug)]
pub(crate) enum Event {
    Alive {
        peer: PeerId,
        rtt: Duration,
    },
    /// `suspect`: whether the member may have vanished, and not only the way to it changed.
    Dead {
        peer: PeerId,
        connection: ConnectionId,
        suspect: bool,
    },
}

pub(crate) struct Behaviour {
    protocol: StreamProtocol,
    interval: Duration,
    timeout: Duration,
    connections: BTreeMap<ConnectionId, Probed>,
    actions: VecDeque<ToSwarm<Event, Ask>>,
}

struct Probed {
    peer: PeerId,
    relayed: bool,
    interval: Duration,
}

/// What the behaviour asks of a connection's handler.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask {
    Probe,
    Doubt,
    Interval(Duration),
}

impl Behaviour {
    pub(crate) fn new(protocol: StreamProtocol, interval: Duration, timeout: Duration) -> Self {
        Self {
            protocol,
            interval,
            timeout,
            connections: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// Probes all connections of the peer at once.
    pub(crate) fn probe(&mut self, peer: PeerId) {
        for (connection, of) in &self.connections {
            if of.peer == peer {
                self.actions.push_back(ask(peer, *connection, Ask::Probe));
            }
        }
    }

    /// The network of this host has changed: puts all connections in doubt.
    pub(crate) fn doubt_all(&mut self) {
        let all = self.connections.iter();
        self.actions
            .extend(all.map(|(connection, of)| ask(of.peer, *connection, Ask::Doubt)));
    }

    /// The member has opened another connection: puts those before it in doubt.
    pub(crate) fn doubt_others(&mut self, peer: PeerId, newest: ConnectionId) {
        let others = self.connections.iter();
        let others = others.filter(|(connection, of)| of.peer == peer && **connection != newest);
        self.actions
            .extend(others.map(|(connection, _)| ask(peer, *connection, Ask::Doubt)));
    }

    fn begin(&mut self, connection: ConnectionId, peer: PeerId, relayed: bool) -> Handler {
        let probed = Probed {
            peer,
            relayed,
            interval: self.interval,
        };
        self.connections.insert(connection, probed);
        self.adapt();
        let interval = self
            .connections
            .get(&connection)
            .map_or(self.interval, |of| of.interval);
        Handler::new(self.protocol.clone(), interval, self.timeout)
    }

    fn end(&mut self, connection: ConnectionId) {
        self.connections.remove(&connection);
        self.adapt();
    }

    /// Tells each connection its interval where that has changed.
    fn adapt(&mut self) {
        let mut oldest = BTreeMap::new();
        for (connection, of) in &self.connections {
            if !of.relayed {
                oldest.entry(of.peer).or_insert(*connection);
            }
        }
        let step = step(oldest.len());
        for (connection, of) in &mut self.connections {
            let speaks = oldest.get(&of.peer) == Some(connection);
            let interval = self.interval * if speaks { step } else { step.max(SELDOM) };
            if of.interval != interval {
                of.interval = interval;
                self.actions
                    .push_back(ask(of.peer, *connection, Ask::Interval(interval)));
            }
        }
    }
}

fn ask(peer: PeerId, connection: ConnectionId, event: Ask) -> ToSwarm<Event, Ask> {
    ToSwarm::NotifyHandler {
        peer_id: peer,
        handler: NotifyHandler::One(connection),
        event,
    }
}

/// By how much the interval is stretched: the next power of two of the connections per full rate.
fn step(connections: usize) -> u32 {
    let step = connections
        .div_ceil(FULL_RATE_CONNECTIONS)
        .max(1)
        .next_power_of_two();
    u32::try_from(step).unwrap_or(u32::MAX)
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.begin(connection, peer, is_relayed(local)))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.begin(connection, peer, is_relayed(addr)))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) => {
                self.end(connection_id);
            }
            // A behaviour behind this one denied the connection that this one had counted.
            FromSwarm::ListenFailure(failure) => {
                self.end(failure.connection_id);
            }
            FromSwarm::DialFailure(failure) => {
                self.end(failure.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        let event = match event {
            Found::Alive(rtt) => Event::Alive { peer, rtt },
            Found::Dead { suspect } => {
                self.probe(peer);
                Event::Dead {
                    peer,
                    connection,
                    suspect,
                }
            }
        };
        self.actions.push_back(ToSwarm::GenerateEvent(event));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.actions.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// What a handler found out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found {
    Alive(Duration),
    Dead { suspect: bool },
}

pub(crate) struct Handler {
    protocol: StreamProtocol,
    interval: Duration,
    timeout: Duration,
    /// When idle: the next probe. While one is under way: when the connection counts as dead.
    timer: Pin<Box<Sleep>>,
    outbound: Outbound,
    inbound: Option<BoxFuture<'static, io::Result<Stream>>>,
    answered: Option<Instant>,
    rtt: Option<Duration>,
    put_off: u8,
    /// Whether the deadline of this probe was put off because this machine is slow.
    excused: bool,
    /// Whether something has happened that may have ended the connection.
    doubted: bool,
    dead: bool,
}

enum Outbound {
    None,
    Opening,
    /// Nothing was heard of the request for a stream; the deadline runs on.
    Unopened,
    Idle(Stream),
    Waiting(BoxFuture<'static, io::Result<(Stream, Duration)>>),
}

impl Handler {
    fn new(protocol: StreamProtocol, interval: Duration, timeout: Duration) -> Self {
        Self {
            protocol,
            interval,
            timeout,
            timer: Box::pin(tokio::time::sleep(FIRST_PROBE.mul_f64(rand::random::<f64>()))),
            outbound: Outbound::None,
            inbound: None,
            answered: None,
            rtt: None,
            put_off: 0,
            excused: false,
            doubted: false,
            dead: false,
        }
    }

    fn set_timer(&mut self, from_now: Duration) {
        self.timer.as_mut().reset(Instant::now() + from_now);
    }

    /// Has a new stream opened in a while.
    fn open_later(&mut self) {
        self.outbound = Outbound::None;
        self.set_timer(self.interval.min(self.timeout));
    }

    fn is_idle(&self) -> bool {
        matches!(self.outbound, Outbound::None | Outbound::Idle(_))
    }

    fn poll_inbound(&mut self, cx: &mut Context<'_>) {
        while let Some(echo) = &mut self.inbound {
            match echo.poll_unpin(cx) {
                Poll::Pending => return,
                Poll::Ready(Err(_)) => self.inbound = None,
                Poll::Ready(Ok(stream)) => {
                    self.inbound = Some(echo_one(stream).boxed());
                    self.doubted = false;
                    if matches!(self.outbound, Outbound::Unopened) {
                        self.open_later();
                    } else if !self.is_idle() {
                        // Slow, but there.
                        self.set_deadline();
                    } else if self.answered.is_some() && self.put_off < MAX_PUT_OFF {
                        self.put_off += 1;
                        self.set_timer(self.interval + self.interval / 4);
                    }
                }
            }
        }
    }
}

type HandlerPoll = Poll<ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, (), Found>>;

impl ConnectionHandler for Handler {
    type FromBehaviour = Ask;
    type ToBehaviour = Found;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<ReadyUpgrade<StreamProtocol>> {
        SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), ())
    }

    fn on_behaviour_event(&mut self, ask: Ask) {
        match ask {
            Ask::Interval(interval) => {
                self.interval = interval;
                let soonest = Instant::now() + interval;
                if self.is_idle() && self.timer.deadline() > soonest {
                    self.timer.as_mut().reset(soonest);
                }
            }
            Ask::Probe => {
                if self.is_idle() && self.answered.is_none_or(|at| at.elapsed() > FRESH) {
                    self.set_timer(Duration::ZERO);
                }
            }
            // It has been asked, and has so long to answer.
            Ask::Doubt if self.doubted => {}
            Ask::Doubt => {
                self.doubted = true;
                if self.is_idle() {
                    self.set_timer(Duration::ZERO);
                } else {
                    self.set_deadline();
                }
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> HandlerPoll {
        self.poll_inbound(cx);
        loop {
            match std::mem::replace(&mut self.outbound, Outbound::None) {
                Outbound::Waiting(mut probe) => match probe.poll_unpin(cx) {
                    Poll::Ready(Ok((stream, rtt))) => {
                        self.outbound = Outbound::Idle(stream);
                        self.answered = Some(Instant::now());
                        // Follows a rise at once and a fall slowly.
                        self.rtt = Some(self.rtt.map_or(rtt, |known| rtt.max((known * 3 + rtt) / 4)));
                        self.put_off = 0;
                        self.excused = false;
                        self.doubted = false;
                        self.dead = false;
                        self.set_timer(self.interval);
                        return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Found::Alive(rtt)));
                    }
                    // The stream broke, not the connection: a new one is opened at the next interval.
                    Poll::Ready(Err(_)) => self.open_later(),
                    Poll::Pending => {
                        self.outbound = Outbound::Waiting(probe);
                        return self.poll_deadline(cx);
                    }
                },
                waiting @ (Outbound::Opening | Outbound::Unopened) => {
                    self.outbound = waiting;
                    return self.poll_deadline(cx);
                }
                Outbound::Idle(stream) => {
                    if self.timer.as_mut().poll(cx).is_pending() {
                        self.outbound = Outbound::Idle(stream);
                        return Poll::Pending;
                    }
                    self.set_deadline();
                    self.outbound = Outbound::Waiting(probe_once(stream).boxed());
                }
                Outbound::None => {
                    if self.timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.set_deadline();
                    self.outbound = Outbound::Opening;
                    return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                        protocol: SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), ()),
                    });
                }
            }
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: mut stream, ..
            }) => {
                stream.ignore_for_keep_alive();
                self.inbound = Some(echo_one(stream).boxed());
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: mut stream,
                ..
            }) => {
                stream.ignore_for_keep_alive();
                self.outbound = Outbound::Waiting(probe_once(stream).boxed());
            }
            // The swarm gives up before the deadline comes. To begin anew would put it off for ever.
            ConnectionEvent::DialUpgradeError(DialUpgradeError {
                error: StreamUpgradeError::Timeout,
                ..
            }) => self.outbound = Outbound::Unopened,
            ConnectionEvent::DialUpgradeError(_) => {
                self.open_later();
            }
            _ => {}
        }
    }
}

impl Handler {
    /// Sets the time after which the connection counts as dead: twice the timeout, longer where answers take long,
    /// and twice as long while there never was one, since connections begin when much else does. Less where it is in
    /// doubt.
    fn set_deadline(&mut self) {
        let timeout = match self.rtt {
            Some(rtt) => self
                .timeout
                .max(rtt * SLOW_FACTOR)
                .min(self.timeout * SLOW_FACTOR),
            None => self.timeout * 2,
        };
        let limit = match self.in_doubt() {
            Some(rtt) => DOUBT.max(rtt * SLOW_FACTOR).min(timeout * 2),
            None => timeout * 2,
        };
        self.set_timer(limit);
    }

    /// The round trip by which a connection in doubt is judged.
    fn in_doubt(&self) -> Option<Duration> {
        self.doubted.then(|| self.rtt.unwrap_or(UNKNOWN_RTT))
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> HandlerPoll {
        let deadline = self.timer.deadline();
        while !self.dead && self.timer.as_mut().poll(cx).is_ready() {
            // If even this timer comes late, it is this machine that is slow, and says nothing about the other.
            let late = if self.in_doubt().is_some() {
                LATE_IN_DOUBT
            } else {
                LATE
            };
            if deadline.elapsed() > late && !self.excused {
                self.excused = true;
                self.set_deadline();
            } else {
                self.dead = true;
                let suspect = self.in_doubt().is_none();
                return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Found::Dead { suspect }));
            }
        }
        Poll::Pending
    }
}

async fn probe_once(mut stream: Stream) -> io::Result<(Stream, Duration)> {
    let begun = Instant::now();
    let sent: [u8; PROBE] = rand::random();
    stream.write_all(&sent).await?;
    stream.flush().await?;
    let mut echo = [0; PROBE];
    stream.read_exact(&mut echo).await?;
    if echo != sent {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((stream, begun.elapsed()))
}

async fn echo_one(mut stream: Stream) -> io::Result<Stream> {
    let mut probe = [0; PROBE];
    stream.read_exact(&mut probe).await?;
    stream.write_all(&probe).await?;
    stream.flush().await?;
    Ok(stream)
}

#[cfg(test)]
mod tests;
