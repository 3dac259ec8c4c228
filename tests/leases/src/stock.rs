//! Stock libp2p nodes with Kademlia as it comes: TCP, Noise, Yamux, a store in memory, and records put to the twenty
//! closest with a majority as the quorum.
//!
//! Kademlia has no create. What comes nearest is to look first and to put where nothing was found; who is told that
//! its put has a majority believes that the record is its own.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use futures::future::join_all;
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, GetRecordOk, QueryId, QueryResult, Quorum, Record, RecordKey};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, noise, tcp, yamux};
use tokio::sync::{mpsc, oneshot};

/// Connections are kept, so that no figure has a dial in it.
const NEVER_IDLE: Duration = Duration::from_secs(3600);

/// How long the nodes may take to connect to each other.
const ASSEMBLY: Duration = Duration::from_secs(120);

/// Commands that wait for a node: each of a few callers has one under way.
const COMMANDS: usize = 64;

/// Nodes that are all connected and know each other.
pub(crate) struct Stock(Vec<mpsc::Sender<Command>>);

enum Command {
    Get(Vec<u8>, oneshot::Sender<bool>),
    Put(Vec<u8>, oneshot::Sender<bool>),
    Connected(oneshot::Sender<usize>),
}

impl Stock {
    /// Starts so many nodes, and connects each with every other.
    pub(crate) async fn start(count: usize) -> Result<Self> {
        let mut swarms = Vec::with_capacity(count);
        let mut known: Vec<(PeerId, Multiaddr)> = Vec::with_capacity(count);
        for _ in 0..count {
            let mut swarm = swarm()?;
            swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
            let addr = loop {
                if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                    break address;
                }
            };
            for (peer, addr) in &known {
                swarm.dial(
                    addr.clone()
                        .with_p2p(*peer)
                        .map_err(|_| anyhow::anyhow!("no address of a peer"))?,
                )?;
            }
            known.push((*swarm.local_peer_id(), addr));
            swarms.push(swarm);
        }
        let mut nodes = Vec::with_capacity(count);
        for mut swarm in swarms {
            let me = *swarm.local_peer_id();
            for (peer, addr) in known.iter().filter(|(peer, _)| *peer != me) {
                swarm.behaviour_mut().add_address(peer, addr.clone());
            }
            let (commands, commands_in) = mpsc::channel(COMMANDS);
            tokio::spawn(run(swarm, commands_in));
            nodes.push(commands);
        }
        let stock = Self(nodes);
        tokio::time::timeout(ASSEMBLY, stock.connected())
            .await
            .context("the stock nodes did not all connect")??;
        Ok(stock)
    }

    async fn connected(&self) -> Result<()> {
        for number in 0..self.0.len() {
            while self.ask(number, Command::Connected).await? + 1 < self.0.len() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    async fn ask<T>(&self, number: usize, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let node = self.0.get(number % self.0.len()).context("there is a node")?;
        let (reply, answer) = oneshot::channel();
        node.send(command(reply))
            .await
            .ok()
            .context("a stock node has ended")?;
        answer.await.context("a stock node gave no answer")
    }

    /// Looks, and puts where nothing was found. Whether the node was told that the record is there by its put.
    async fn create(&self, number: usize, key: &[u8]) -> Result<bool> {
        if self
            .ask(number, |reply| Command::Get(key.to_vec(), reply))
            .await?
        {
            return Ok(false);
        }
        self.ask(number, |reply| Command::Put(key.to_vec(), reply)).await
    }

    /// The time in which a node creates a record that nobody else wants.
    pub(crate) async fn claim(&self, number: usize, key: &[u8]) -> Result<Duration> {
        let begun = Instant::now();
        ensure!(
            self.create(number, key).await?,
            "a record of nobody was not created"
        );
        Ok(begun.elapsed())
    }

    /// Lets the first so many nodes create one record at once; how many were told that it is theirs.
    pub(crate) async fn contest(&self, claimants: usize, key: &[u8]) -> Result<usize> {
        let claims = (0..claimants).map(|number| self.create(number, key));
        let told: Result<Vec<bool>> = join_all(claims).await.into_iter().collect();
        Ok(told?.into_iter().filter(|told| *told).count())
    }

    /// The time in which a node finds a record.
    pub(crate) async fn look_up(&self, number: usize, key: &[u8]) -> Result<Duration> {
        let begun = Instant::now();
        let found = self
            .ask(number, |reply| Command::Get(key.to_vec(), reply))
            .await?;
        ensure!(found, "a record that was put was not found");
        Ok(begun.elapsed())
    }
}

fn swarm() -> Result<Swarm<kad::Behaviour<MemoryStore>>> {
    let swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            noise::Config::new,
            yamux::Config::default,
        )?
        .with_behaviour(|keypair| {
            let me = keypair.public().to_peer_id();
            let mut kad = kad::Behaviour::new(me, MemoryStore::new(me));
            kad.set_mode(Some(kad::Mode::Server));
            kad
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER_IDLE))
        .build();
    Ok(swarm)
}

async fn run(mut swarm: Swarm<kad::Behaviour<MemoryStore>>, mut commands: mpsc::Receiver<Command>) {
    let mut waiting: HashMap<QueryId, oneshot::Sender<bool>> = HashMap::new();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(Command::Connected(reply)) => drop(reply.send(swarm.connected_peers().count())),
                Some(Command::Get(key, reply)) => {
                    let query = swarm.behaviour_mut().get_record(RecordKey::new(&key));
                    waiting.insert(query, reply);
                }
                Some(Command::Put(key, reply)) => {
                    let holder = swarm.local_peer_id().to_bytes();
                    let record = Record::new(key, holder);
                    match swarm.behaviour_mut().put_record(record, Quorum::Majority) {
                        Ok(query) => drop(waiting.insert(query, reply)),
                        Err(_) => drop(reply.send(false)),
                    }
                }
            },
            event = swarm.select_next_some() => {
                let SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed { id, result, step, .. }) = event else {
                    continue;
                };
                let outcome = match result {
                    QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(_))) => Some(true),
                    QueryResult::PutRecord(result) => Some(result.is_ok()),
                    QueryResult::GetRecord(_) => step.last.then_some(false),
                    _ => None,
                };
                if let Some(outcome) = outcome
                    && let Some(reply) = waiting.remove(&id)
                {
                    // The first record found is the answer; the others would only be compared with it.
                    if let Some(mut query) = swarm.behaviour_mut().query_mut(&id) {
                        query.finish();
                    }
                    let _ = reply.send(outcome);
                }
            }
        }
    }
}
