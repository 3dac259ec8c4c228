//! The same course of events with libp2p's own behaviours: in memory, in one process, in real time.
//!
//! One task owns each member: its swarm and its [`Mesh`]. What the overlay's mesh protocol asks and answers goes
//! through the members' mailboxes, since it is not what is compared; dials, connections, identify and `FIND_NODE`
//! are libp2p's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aerie_sim::kad::{Begin, Contact, Figures, Found, Mesh, Outcome, PATIENCE, Plan, Settings, Stats, Wish};
use aerie_types::{Key, PeerId};
use anyhow::{Context, Result};
use futures::StreamExt;
use libp2p::core::transport::MemoryTransport;
use libp2p::core::{Multiaddr, Transport, upgrade};
use libp2p::identity::Keypair;
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, GetClosestPeersError, GetClosestPeersOk, QueryId, QueryResult};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{StreamProtocol, Swarm, SwarmBuilder, identify, noise, yamux};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::watched::Watched;

/// Messages that wait for one member: questions of all whom it is connected to, twice.
const MAILBOX: usize = 256;

/// A connection is never closed for being idle, as in the overlay.
const NEVER_IDLE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

#[derive(NetworkBehaviour)]
struct Behaviour {
    kad: Watched,
    identify: identify::Behaviour,
}

enum Command {
    Whom {
        from: PeerId,
        known: std::collections::BTreeSet<PeerId>,
    },
    Named(Vec<Contact>),
    Locate(Key),
    Tell(oneshot::Sender<State>),
    Die,
}

/// How a member stands.
struct State {
    links: usize,
    known: usize,
    refresh: u32,
}

/// How to reach a member.
struct Address {
    contact: Contact,
    libp2p: libp2p::PeerId,
    addr: Multiaddr,
    mailbox: mpsc::Sender<Command>,
}

#[derive(Default)]
struct Directory {
    by_peer: BTreeMap<PeerId, Address>,
    by_libp2p: BTreeMap<libp2p::PeerId, PeerId>,
}

impl Directory {
    fn contact(&self, peer: &libp2p::PeerId) -> Option<Contact> {
        let peer = self.by_libp2p.get(peer)?;
        Some(self.by_peer.get(peer)?.contact)
    }

    fn send(&self, to: &PeerId, command: Command) {
        if let Some(address) = self.by_peer.get(to) {
            // A member that is dead or overwhelmed does not hear it.
            let _ = address.mailbox.try_send(command);
        }
    }
}

struct Member {
    local: Contact,
    swarm: Swarm<Behaviour>,
    mesh: Mesh,
    mailbox: mpsc::Receiver<Command>,
    directory: Arc<Directory>,
    began: Instant,
    forget_closed: bool,
    seeking: BTreeMap<Instant, (QueryId, Key)>,
    found: mpsc::Sender<Found>,
    refresh: u32,
}

/// So many members, always the same ones.
///
/// # Errors
/// If a key is not usable.
pub fn members(count: usize) -> Result<Vec<PeerId>> {
    (0..count).map(|index| Ok(keypair(index)?.1)).collect()
}

fn keypair(index: usize) -> Result<(Keypair, PeerId)> {
    let mut seed = aerie_sim::peer(index).0;
    let keypair = Keypair::ed25519_from_bytes(&mut seed[..]).context("not a key")?;
    let peer = PeerId::from_multihash(&keypair.public().to_peer_id().to_bytes()).context("not Ed25519")?;
    Ok((keypair, peer))
}

/// Runs a plan, whose members are to be [`members`], in real time.
///
/// # Errors
/// If a member cannot be set up.
pub async fn run(plan: &Plan, settings: &Settings) -> Result<Outcome> {
    // Ports in memory are the process's: several runs in one process must not share them.
    let base: u64 = 1 + plan.seed * 1_000_000;
    let mut directory = Directory::default();
    let mut waiting = Vec::new();
    for index in 0..plan.members.len() {
        let (keypair, peer) = keypair(index)?;
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let libp2p = keypair.public().to_peer_id();
        let address = Address {
            contact: peer.into(),
            libp2p,
            addr: Multiaddr::from(Protocol::Memory(base + index as u64)),
            mailbox: sender,
        };
        directory.by_peer.insert(peer, address);
        directory.by_libp2p.insert(libp2p, peer);
        waiting.push((keypair, peer, mailbox));
    }
    let directory = Arc::new(directory);
    let (sender, mut found) = mpsc::channel(plan.lookups.max(1));
    let began = Instant::now();
    let mut pace = tokio::time::interval(plan.join_every);
    for ((keypair, peer, mailbox), first) in waiting.into_iter().zip(plan.firsts()) {
        pace.tick().await;
        let address = directory.by_peer.get(&peer).context("no address")?;
        let first = first
            .and_then(|first| plan.members.get(first))
            .copied()
            .map(Contact::from);
        let begin = Begin {
            bootstrap: first.into_iter().collect(),
            ..Begin::default()
        };
        let mut swarm = build(keypair)?;
        swarm.listen_on(address.addr.clone())?;
        let member = Member {
            local: address.contact,
            swarm,
            mesh: Mesh::new(
                address.contact,
                &begin,
                settings.limit,
                plan.seed,
                began.elapsed(),
            ),
            mailbox,
            directory: Arc::clone(&directory),
            began,
            forget_closed: settings.forget_closed,
            seeking: BTreeMap::new(),
            found: sender.clone(),
            refresh: 0,
        };
        tokio::spawn(member.run());
    }
    tokio::time::sleep(plan.join_every + plan.settle).await;
    let mut outcome = stand(plan, &directory).await;
    outcome.before = look_up(plan, &directory, &mut found, false).await;
    for index in plan.dead() {
        if let Some(peer) = plan.members.get(index) {
            directory.send(peer, Command::Die);
        }
    }
    tokio::time::sleep(plan.pause).await;
    outcome.after = look_up(plan, &directory, &mut found, true).await;
    for peer in &plan.members {
        directory.send(peer, Command::Die);
    }
    Ok(outcome)
}

async fn stand(plan: &Plan, directory: &Directory) -> Outcome {
    let mut states = Vec::new();
    for peer in &plan.members {
        let (sender, state) = oneshot::channel();
        directory.send(peer, Command::Tell(sender));
        states.extend(state.await.ok());
    }
    let mean = |of: &dyn Fn(&State) -> f64| states.iter().map(of).sum::<f64>() / states.len().max(1) as f64;
    Outcome {
        refresh: mean(&|state| f64::from(state.refresh)),
        links: mean(&|state| state.links as f64),
        known: mean(&|state| state.known as f64),
        ..Outcome::default()
    }
}

async fn look_up(
    plan: &Plan,
    directory: &Directory,
    found: &mut mpsc::Receiver<Found>,
    after: bool,
) -> Figures {
    let asks = plan.asks(after);
    let mut all = Vec::new();
    let mut pace = tokio::time::interval(plan.lookup_every);
    for (asker, key) in &asks {
        pace.tick().await;
        if let Some(peer) = plan.members.get(*asker) {
            directory.send(peer, Command::Locate(*key));
        }
    }
    while all.len() < asks.len() {
        match tokio::time::timeout(2 * PATIENCE, found.recv()).await {
            Ok(Some(one)) => all.push(one),
            _ => break,
        }
    }
    Figures::of(&all, &plan.living(after))
}

/// The overlay's settings of Kademlia (`overlay/src/behaviour.rs`), and a transport in memory.
fn build(keypair: Keypair) -> Result<Swarm<Behaviour>> {
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|keypair| {
            let noise = noise::Config::new(keypair)?;
            let upgraded = MemoryTransport::default()
                .upgrade(upgrade::Version::V1)
                .authenticate(noise)
                .multiplex(yamux::Config::default());
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(upgraded)
        })?
        .with_behaviour(|keypair| {
            let local = keypair.public().to_peer_id();
            let mut settings = kad::Config::new(StreamProtocol::new("/aerie/compare/kad/1"));
            settings
                .set_record_filtering(kad::StoreInserts::FilterBoth)
                .set_provider_publication_interval(None)
                .set_publication_interval(None)
                .set_replication_interval(None)
                .set_query_timeout(aerie_sim::kad::QUERY_TIMEOUT)
                .set_substreams_timeout(aerie_sim::kad::REQUEST_TIMEOUT)
                .set_periodic_bootstrap_interval(Some(aerie_sim::kad::BOOTSTRAP_EVERY));
            let mut kad = kad::Behaviour::with_config(local, MemoryStore::new(local), settings);
            kad.set_mode(Some(kad::Mode::Server));
            let identify = identify::Config::new("/aerie/compare/1".to_owned(), keypair.public())
                .with_push_listen_addr_updates(true)
                .with_interval(Duration::from_secs(3600))
                .with_cache_size(0);
            Behaviour {
                kad: Watched::new(kad),
                identify: identify::Behaviour::new(identify),
            }
        })?
        .with_swarm_config(|swarm| swarm.with_idle_connection_timeout(NEVER_IDLE))
        .build();
    Ok(swarm)
}

impl Member {
    async fn run(mut self) {
        loop {
            self.fulfil();
            let impatient = self.seeking.keys().next().map(|begun| *begun + PATIENCE);
            let mesh = self.mesh.poll_timeout().map(|due| self.began + due);
            let due = impatient.into_iter().chain(mesh).min();
            let sleep = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                command = self.mailbox.recv() => match command {
                    Some(Command::Die) | None => return,
                    Some(command) => self.on_command(command),
                },
                () = sleep => self.on_timeout(),
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn kad(&mut self) -> &mut Watched {
        &mut self.swarm.behaviour_mut().kad
    }

    fn on_timeout(&mut self) {
        let now = self.now();
        self.mesh.handle_timeout(now);
        let late = Instant::now().checked_sub(PATIENCE);
        let late: Vec<_> = self
            .seeking
            .iter()
            .filter(|(begun, _)| late.is_some_and(|late| **begun <= late))
            .map(|(_, (query, _))| *query)
            .collect();
        for query in late {
            if let Some(mut query) = self.kad().kad.query_mut(&query) {
                query.finish();
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Whom { from, known } => {
                let named = self.mesh.named(from, &known);
                self.directory.send(&from, Command::Named(named));
            }
            Command::Named(named) => {
                let now = self.now();
                self.mesh.answered(&named, now);
            }
            Command::Locate(key) => {
                let query = self.kad().locate(key.0.to_vec());
                self.seeking.insert(Instant::now(), (query, key));
            }
            Command::Tell(reply) => {
                let buckets = self.kad().kad.kbuckets();
                let known = buckets.map(|bucket| bucket.num_entries()).sum();
                let state = State {
                    links: self.mesh.live().count(),
                    known,
                    refresh: self.refresh,
                };
                let _ = reply.send(state);
            }
            // Ends the loop.
            Command::Die => {}
        }
    }

    /// Does what the mesh wants done.
    fn fulfil(&mut self) {
        while let Some(wish) = self.mesh.poll_wish() {
            match wish {
                Wish::Dial(contact) => {
                    if let Some(address) = self.directory.by_peer.get(&contact.peer) {
                        let opts = DialOpts::peer_id(address.libp2p)
                            .addresses(vec![address.addr.clone()])
                            .build();
                        // One that is being dialled already will be connected, or not, by that.
                        let _ = self.swarm.dial(opts);
                    }
                }
                Wish::Close(contact) => {
                    if let Some(address) = self.directory.by_peer.get(&contact.peer) {
                        let _ = self.swarm.disconnect_peer_id(address.libp2p);
                    }
                }
                Wish::Ask(contact) => {
                    let (from, known) = (self.local.peer, self.mesh.known());
                    self.directory.send(&contact.peer, Command::Whom { from, known });
                }
            }
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        let now = self.now();
        match event {
            SwarmEvent::ConnectionEstablished {
                peer_id,
                num_established,
                ..
            } if num_established.get() == 1 => {
                if let Some(contact) = self.directory.contact(&peer_id) {
                    self.mesh.connected(contact, now);
                }
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                num_established: 0,
                ..
            } => {
                if let Some(contact) = self.directory.contact(&peer_id) {
                    self.mesh.closed(contact, now);
                }
                if self.forget_closed {
                    self.kad().kad.remove_peer(&peer_id);
                }
            }
            SwarmEvent::OutgoingConnectionError {
                peer_id: Some(peer),
                error,
                ..
            } => {
                let over = !matches!(error, DialError::DialPeerConditionFalse(_));
                let contact = self.directory.contact(&peer).filter(|_| over);
                if let Some(contact) = contact.filter(|_| !self.swarm.is_connected(&peer))
                    && self.mesh.dial_failed(contact, now)
                {
                    self.kad().kad.remove_peer(&peer);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) if self.swarm.is_connected(&peer_id) => {
                for addr in info.listen_addrs {
                    self.kad().kad.add_address(&peer_id, addr);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.on_kad(event),
            _ => {}
        }
    }

    fn on_kad(&mut self, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed {
            id, result, stats, ..
        } = event
        else {
            return;
        };
        match result {
            QueryResult::Bootstrap(_) => self.refresh += stats.num_requests(),
            QueryResult::GetClosestPeers(
                Ok(GetClosestPeersOk { peers, .. }) | Err(GetClosestPeersError::Timeout { peers, .. }),
            ) => {
                let now = self.now();
                let trace = self.kad().take_trace();
                let closest: Vec<_> = peers
                    .iter()
                    .filter_map(|peer| self.directory.contact(&peer.peer_id))
                    .collect();
                for contact in &closest {
                    self.mesh.learn(*contact, now);
                }
                let sought = self.seeking.iter().find(|(_, (query, _))| *query == id);
                if let Some((begun, key)) = sought.map(|(begun, (_, key))| (*begun, *key)) {
                    self.seeking.remove(&begun);
                    let found = Found {
                        asker: self.local.peer,
                        place: key.position(),
                        closest: closest.into_iter().map(|contact| contact.peer).collect(),
                        stats: Stats {
                            requests: stats.num_requests(),
                            failures: stats.num_failures(),
                            dials: trace.dials,
                            rounds: trace.rounds,
                        },
                        took: begun.elapsed(),
                    };
                    // There is room for all that were asked for.
                    let _ = self.found.try_send(found);
                }
            }
            _ => {}
        }
    }
}
