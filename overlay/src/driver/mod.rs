//! The one task that owns the swarm and everything known about the grid.
//!
//! The loop waits for the first of: an event of the swarm, a command of a handle, an answer that the caller gives to
//! a member's request, room in the caller's event channel, a renewal of the own credential, and the tick. Nothing in
//! it waits for anything else: what the caller does not take up is kept in a bounded outbox, and beyond that dropped
//! and counted. Reports of members coming and going are never dropped.

mod book;
mod closest;
mod connections;
mod dialer;
mod events;
mod mesh;
mod reach;
mod requests;

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aerie_identity::Credential;
use aerie_types::PeerId;
use futures::StreamExt;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, Swarm};
use tokio::sync::{mpsc, oneshot, watch};

use crate::admission::Gate;
use crate::behaviour::{Behaviour, suspects};
use crate::config::{Config, OUTBOX};
use crate::error::Error;
use crate::handle::{Command, ConnectionInfo, Event, Member};
use crate::peer::{ip_of, is_relayed, target_of, to_libp2p};
use crate::stats::Counters;

use book::Book;
use closest::Queries;
use dialer::Dials;
use mesh::Mesh;
use reach::Reach;
use requests::Requests;

/// How often what is due is looked at: dials, relays, time limits.
const TICK: Duration = Duration::from_millis(200);

/// The same while nothing is being waited for, so that a quiet grid wakes its machines seldom.
const QUIET_TICK: Duration = Duration::from_secs(1);

/// How often the slower chores are done: duplicates, reservations, messages that waited.
const CHORES_EVERY: Duration = Duration::from_secs(1);

/// How often expired credentials and too many connections are looked for.
const RECHECK_EVERY: Duration = Duration::from_secs(30);

/// How long a shutdown waits for connections to close in order.
const FAREWELL: Duration = Duration::from_secs(1);

pub(crate) struct Driver {
    config: Config,
    local: PeerId,
    swarm: Swarm<Behaviour>,
    gate: Arc<Gate>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    outbox: VecDeque<Event>,
    renewed: Option<watch::Receiver<Arc<Vec<u8>>>>,
    live: BTreeMap<PeerId, Live>,
    book: Book,
    dials: Dials,
    queries: Queries,
    requests: Requests,
    mesh: Mesh,
    reach: Reach,
    unpublished: VecDeque<(Instant, String, Vec<u8>)>,
    suspects: String,
    ticked: Instant,
    chores_at: Instant,
    recheck_at: Instant,
    is_quiet: bool,
}

/// A connected member.
struct Live {
    credential: Arc<Credential>,
    connections: BTreeMap<ConnectionId, Link>,
    rtt: Option<Duration>,
    /// When to dial it directly, as long as it is connected through relays only, and the pause after that.
    upgrade_at: Instant,
    upgrade_pause: Duration,
}

struct Link {
    remote: Multiaddr,
    relayed: bool,
    quic: bool,
    /// Whether this node dialled it, so that `remote` is an address at which the member listens.
    dialled: bool,
    since: Instant,
}

impl Live {
    fn has_direct(&self) -> bool {
        self.connections.values().any(|link| !link.relayed)
    }
}

impl Driver {
    pub(crate) fn new(
        config: Config,
        local: PeerId,
        mut swarm: Swarm<Behaviour>,
        gate: Arc<Gate>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
        renewed: Option<watch::Receiver<Arc<Vec<u8>>>>,
    ) -> Result<Self, Error> {
        listen(&mut swarm, &config.listen)?;
        for addr in &config.external {
            swarm.add_external_address(addr.clone());
        }
        let mut driver = Self {
            suspects: suspects(&config),
            config,
            local,
            swarm,
            gate,
            commands,
            events,
            outbox: VecDeque::new(),
            renewed,
            live: BTreeMap::new(),
            book: Book::default(),
            dials: Dials::default(),
            queries: Queries::default(),
            requests: Requests::default(),
            mesh: Mesh::new(),
            reach: Reach::default(),
            unpublished: VecDeque::new(),
            ticked: Instant::now(),
            chores_at: Instant::now(),
            recheck_at: Instant::now() + RECHECK_EVERY,
            is_quiet: false,
        };
        driver.remember_configured();
        Ok(driver)
    }

    fn remember_configured(&mut self) {
        for addr in std::mem::take(&mut self.config.bootstrap) {
            self.bootstrap(addr);
        }
        for (peer, addrs) in std::mem::take(&mut self.config.known) {
            for addr in addrs {
                self.learn(peer, addr, true);
            }
        }
    }

    /// Notes a bootstrap address and dials it soon.
    fn bootstrap(&mut self, addr: Multiaddr) {
        match target_of(&addr) {
            Some(peer) if peer == self.local => {}
            Some(peer) => {
                let now = Instant::now();
                self.book.learn(
                    peer,
                    addr,
                    now,
                    Duration::from_millis(150).mul_f64(rand::random()),
                );
                self.book.pin(peer);
            }
            None => self.dials.add_unnamed(addr, Instant::now(), rand::random()),
        }
    }

    pub(crate) async fn run(mut self) {
        let events = self.events.clone();
        let farewell = loop {
            let tick = self.ticked + if self.is_quiet { QUIET_TICK } else { TICK };
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown(reply)) => break Some(reply),
                    Some(command) => self.on_command(command),
                    None => break None,
                },
                Some(answer) = self.requests.answers.next(), if !self.requests.answers.is_empty() => {
                    self.send_answer(answer);
                }
                room = events.reserve(), if !self.outbox.is_empty() => match room {
                    Ok(room) => {
                        if let Some(event) = self.outbox.pop_front() {
                            room.send(event);
                        }
                    }
                    // Nobody listens any more; the handles may still be in use.
                    Err(_) => self.outbox.clear(),
                },
                () = renewal(&mut self.renewed) => self.announce_renewal(),
                () = tokio::time::sleep_until(tick.into()) => self.on_tick(),
            }
        };
        self.close(farewell).await;
    }

    fn on_command(&mut self, command: Command) {
        if !matches!(
            command,
            Command::Members(_) | Command::ListenAddrs(_) | Command::KnownAddrs(_)
        ) {
            self.wake();
        }
        match command {
            Command::Closest(key, reply) => self.closest(key, reply),
            Command::Request {
                to,
                protocol,
                bytes,
                reply,
            } => self.request(to, protocol, bytes, reply),
            Command::Publish(topic, bytes) => {
                Counters::add(&self.counters().gossip_sent);
                self.publish(topic.name(self.config.grid), bytes);
            }
            Command::Members(reply) => {
                let _ = reply.send(self.members());
            }
            Command::Disconnect(peer) => {
                let _ = self.swarm.disconnect_peer_id(to_libp2p(peer));
            }
            Command::Recheck(reply) => {
                let _ = reply.send(self.recheck());
            }
            Command::Dial(addr) => self.bootstrap(addr),
            Command::Mapped(addrs) => self.on_mapped(addrs),
            Command::ListenAddrs(reply) => {
                let _ = reply.send(self.listen_addrs());
            }
            Command::KnownAddrs(reply) => {
                let _ = reply.send(self.known_addrs());
            }
            // Handled by the loop itself.
            Command::Shutdown(_) => {}
        }
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        self.ticked = now;
        self.dial_due(now);
        self.expire_waiting(now);
        self.begin_deferred(now);
        self.finish_slow_queries(now);
        self.gossip_peers(now);
        self.tell_due(now);
        if now >= self.chores_at {
            self.chores_at = now + CHORES_EVERY;
            self.settle_duplicates(now);
            self.upgrade_relayed(now);
            self.reserve(now);
            self.publish_waiting(now);
        }
        if now >= self.recheck_at {
            self.recheck_at = now + RECHECK_EVERY;
            self.recheck();
            self.prune(now);
        }
        self.gauge();
        self.is_quiet = self.waits_for_nothing(now);
    }

    /// Whether the next tick may come later: what ends this state is new work, which says so.
    fn waits_for_nothing(&self, now: Instant) -> bool {
        let soon = now + QUIET_TICK;
        !self.live.is_empty()
            && self.dials.is_idle()
            && self.queries.is_idle()
            && self.requests.is_idle()
            && self.reach.is_idle()
            && self.unpublished.is_empty()
            && !self
                .book
                .due(soon)
                .iter()
                .any(|peer| !self.live.contains_key(peer))
    }

    /// There is something to do at the next tick.
    fn wake(&mut self) {
        self.is_quiet = false;
    }

    fn members(&self) -> Vec<Member> {
        let member = |(peer, live): (&PeerId, &Live)| {
            let mut connections: Vec<_> = live
                .connections
                .values()
                .map(|link| ConnectionInfo {
                    remote: link.remote.clone(),
                    relayed: link.relayed,
                    since: link.since,
                })
                .collect();
            connections.sort_by_key(|connection| connection.since);
            Member {
                peer: *peer,
                credential: Arc::clone(&live.credential),
                connections,
                rtt: live.rtt,
            }
        };
        self.live.iter().map(member).collect()
    }

    fn listen_addrs(&self) -> Vec<Multiaddr> {
        let mut addrs: Vec<_> = self
            .swarm
            .listeners()
            .chain(self.swarm.external_addresses())
            .cloned()
            .collect();
        addrs.sort_unstable();
        addrs.dedup();
        addrs
    }

    fn known_addrs(&self) -> Vec<(PeerId, Vec<Multiaddr>)> {
        self.book
            .iter()
            .filter(|(peer, entry)| !entry.addrs.is_empty() && (entry.met || self.live.contains_key(peer)))
            .map(|(peer, entry)| (peer, entry.addrs.clone()))
            .collect()
    }

    /// Queues a report that must arrive.
    fn report(&mut self, event: Event) {
        self.outbox.push_back(event);
    }

    /// Queues what may be lost when the caller does not keep up. `false` if it was.
    fn offer(&mut self, event: Event) -> bool {
        if self.outbox.len() >= OUTBOX {
            Counters::add(&self.counters().dropped);
            return false;
        }
        self.outbox.push_back(event);
        true
    }

    fn counters(&self) -> &Counters {
        self.gate.counters()
    }

    fn gauge(&self) {
        let counters = self.counters();
        let links = || self.live.values().flat_map(|live| live.connections.values());
        Counters::set(&counters.members_now, self.live.len());
        Counters::set(&counters.connections_now, links().count());
        Counters::set(&counters.relayed_now, links().filter(|link| link.relayed).count());
        Counters::set(&counters.reservations_now, self.reach.held());
    }

    async fn close(mut self, reply: Option<oneshot::Sender<()>>) {
        for peer in self.live.keys() {
            let _ = self.swarm.disconnect_peer_id(to_libp2p(*peer));
        }
        let drained = async {
            while self.swarm.network_info().num_peers() > 0 {
                self.swarm.select_next_some().await;
            }
        };
        if tokio::time::timeout(FAREWELL, drained).await.is_err() {
            tracing::debug!("not all connections closed in order");
        }
        drop(self.swarm);
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
    }
}

/// Listens on all addresses. A machine without IPv6 does not listen on `::`, which is no error while others work.
fn listen(swarm: &mut Swarm<Behaviour>, addrs: &[Multiaddr]) -> Result<(), Error> {
    let mut listening = 0;
    let mut excused = None;
    for addr in addrs {
        match swarm.listen_on(addr.clone()) {
            Ok(_) => listening += 1,
            Err(error) => {
                let error = Error::Listen {
                    addr: addr.clone(),
                    reason: error.to_string(),
                };
                if ip_of(addr) != Some(Ipv6Addr::UNSPECIFIED.into()) {
                    return Err(error);
                }
                tracing::warn!(%error, "this machine seems to have no IPv6");
                excused = Some(error);
            }
        }
    }
    excused.filter(|_| listening == 0).map_or(Ok(()), Err)
}

/// Waits for the next renewal of the own credential; for ever if none can come.
async fn renewal(renewed: &mut Option<watch::Receiver<Arc<Vec<u8>>>>) {
    if let Some(watch) = renewed {
        if watch.changed().await.is_ok() {
            return;
        }
        *renewed = None;
    }
    std::future::pending().await
}

/// Whether an address can be dialled without a relay.
fn is_direct(addr: &Multiaddr) -> bool {
    !is_relayed(addr)
}
