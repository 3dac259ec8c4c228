//! Grids in miniature: a real CA, and members in this process on loopback.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use std::future::Future;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use aerie_identity::{
    Credential, DEFAULT_LIFETIME, EnrolRequest, GridCa, NodeKeys, RevocationList, Subject, Verifier,
};
use aerie_overlay::admission::Gatekeeper;
use aerie_overlay::{Config, Event, Handle, IdentityGate, Multiaddr, Overlay, Protocol, Refusal};
use aerie_types::{GridId, PeerId, Role, Roles, WallMillis};
use libp2p::multiaddr;
use tokio::sync::{mpsc, watch};

/// Nothing here takes this long on a machine that is not overloaded.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub const TCP: &str = "/ip4/127.0.0.1/tcp/0";
pub const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

pub struct Grid {
    pub ca: GridCa,
}

/// What a node has after enrolment.
pub struct Enrolled {
    pub keys: NodeKeys,
    pub der: Vec<u8>,
}

impl Grid {
    pub fn new(name: &str) -> Self {
        let range = "100.96.0.0/11".parse().unwrap();
        Self {
            ca: GridCa::create(name.parse().unwrap(), range, days_ago(100)).unwrap(),
        }
    }

    pub fn id(&self) -> GridId {
        self.ca.grid_id()
    }

    pub fn enrol(&self, node: &str, roles: impl Into<Roles>) -> Enrolled {
        self.enrol_at(NodeKeys::generate().unwrap(), node, roles, 1, now())
    }

    pub fn enrol_at(
        &self,
        keys: NodeKeys,
        node: &str,
        roles: impl Into<Roles>,
        serial: u64,
        at: WallMillis,
    ) -> Enrolled {
        let request = EnrolRequest::create(&keys, self.id(), node.parse().unwrap(), false).unwrap();
        let subject = Subject {
            node: node.parse().unwrap(),
            user: "alice".parse().unwrap(),
            group: "physics".parse().unwrap(),
            roles: roles.into(),
        };
        let issued = self
            .ca
            .issue(&request, &subject, serial, at, DEFAULT_LIFETIME)
            .unwrap();
        Enrolled {
            keys,
            der: issued.overlay_der,
        }
    }

    pub fn config(&self, enrolled: &Enrolled, listen: &[&str]) -> Config {
        let mut config = Config::new(self.id(), &enrolled.keys).unwrap();
        config.listen = listen.iter().map(|addr| addr.parse().unwrap()).collect();
        config
    }

    /// A worker that listens and knows where to begin.
    pub async fn worker(&self, name: &str, listen: &[&str], bootstrap: &[Multiaddr]) -> Node {
        let enrolled = self.enrol(name, Role::Worker);
        let mut config = self.config(&enrolled, listen);
        config.bootstrap = bootstrap.to_vec();
        self.start(config, &enrolled).await
    }

    /// A relay that listens on TCP and QUIC.
    pub async fn relay(&self, name: &str) -> Node {
        let enrolled = self.enrol(name, Role::Relay);
        let mut config = self.config(&enrolled, &[TCP, QUIC]);
        config.relay = true;
        self.start(config, &enrolled).await
    }

    pub async fn start(&self, config: Config, enrolled: &Enrolled) -> Node {
        let verifier = Arc::new(RwLock::new(self.ca.verifier().unwrap()));
        let (own, shown) = watch::channel(Arc::new(enrolled.der.clone()));
        let listens = config.listen.len();
        let (handle, events) = Overlay::spawn(config, shown, Arc::clone(&verifier)).unwrap();
        Node::new(handle, events, verifier, own, listens).await
    }

    /// A node whose gatekeeper admits the members of all these grids.
    pub async fn start_tolerant(&self, config: Config, enrolled: &Enrolled, grids: &[&Self]) -> Node {
        let verifier = Arc::new(RwLock::new(self.ca.verifier().unwrap()));
        let (own, _) = watch::channel(Arc::new(enrolled.der.clone()));
        let keeper = Arc::new(Tolerant::new(grids, &enrolled.der));
        let listens = config.listen.len();
        let (handle, events) = Overlay::spawn_with(config, keeper, None).unwrap();
        Node::new(handle, events, verifier, own, listens).await
    }

    /// A list that revokes one credential by its serial.
    pub fn revoke(&self, serial: u64) -> aerie_identity::SignedRevocations {
        let mut list = RevocationList::empty(self.id(), 1, now());
        list.serials.insert(serial);
        self.ca.sign_revocations(&list).unwrap()
    }
}

/// Admits the members of several grids: what a dishonest or misconfigured node might do.
pub struct Tolerant {
    verifiers: Vec<Verifier>,
    own: Arc<[u8]>,
}

impl Tolerant {
    pub fn new(grids: &[&Grid], own: &[u8]) -> Self {
        Self {
            verifiers: grids.iter().map(|grid| grid.ca.verifier().unwrap()).collect(),
            own: Arc::from(own),
        }
    }
}

impl Gatekeeper for Tolerant {
    fn admit(&self, der: &[u8]) -> Result<Arc<Credential>, Refusal> {
        let mut last = Refusal::NotAdmitted;
        for verifier in &self.verifiers {
            match verifier.verify(der, now()) {
                Ok(credential) => return Ok(Arc::new(credential)),
                Err(rejection) => last = rejection.into(),
            }
        }
        Err(last)
    }

    fn own(&self) -> Arc<[u8]> {
        Arc::clone(&self.own)
    }
}

/// A running member. Requests that it receives are answered by their own bytes, reversed.
pub struct Node {
    pub handle: Handle,
    pub verifier: Arc<RwLock<Verifier>>,
    pub own: watch::Sender<Arc<Vec<u8>>>,
    pub seen: watch::Receiver<Vec<Seen>>,
    pub addrs: Vec<Multiaddr>,
}

/// An event in a form that can be kept and compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Up(PeerId),
    Down(PeerId),
    Renewed(PeerId, u64),
    Request(PeerId, Protocol),
    Gossip(PeerId, Vec<u8>),
    Refused(Option<PeerId>, Refusal),
}

impl Node {
    async fn new(
        handle: Handle,
        events: mpsc::Receiver<Event>,
        verifier: Arc<RwLock<Verifier>>,
        own: watch::Sender<Arc<Vec<u8>>>,
        listens: usize,
    ) -> Self {
        let (log, seen) = watch::channel(Vec::new());
        tokio::spawn(serve(events, log));
        let addrs = eventually("listening", || async {
            let addrs = handle.listen_addrs().await.unwrap();
            (addrs.len() >= listens).then_some(addrs)
        })
        .await;
        Self {
            handle,
            verifier,
            own,
            seen,
            addrs,
        }
    }

    pub fn peer(&self) -> PeerId {
        self.handle.local_peer()
    }

    /// The node's addresses with its id, for the bootstrap of others.
    pub fn full_addrs(&self) -> Vec<Multiaddr> {
        let id = libp2p::PeerId::from_bytes(&self.peer().to_multihash()).unwrap();
        self.addrs
            .iter()
            .map(|addr| addr.clone().with(multiaddr::Protocol::P2p(id)))
            .collect()
    }

    /// Waits until an event like this has been seen.
    pub async fn sees(&mut self, what: &str, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let mut watch = self.seen.clone();
        let waiting = watch.wait_for(|seen| seen.iter().any(&wanted));
        match tokio::time::timeout(DEADLINE, waiting).await {
            Ok(seen) => seen.unwrap().iter().find(|seen| wanted(seen)).unwrap().clone(),
            Err(_) => panic!("not seen: {what}; seen: {:?}", self.seen.borrow()),
        }
    }

    pub async fn sees_up(&mut self, peer: PeerId) {
        self.sees("up", |seen| *seen == Seen::Up(peer)).await;
    }

    pub async fn sees_down(&mut self, peer: PeerId) {
        self.sees("down", |seen| *seen == Seen::Down(peer)).await;
    }

    /// Whether the peer was ever a connection: the first one reports it.
    pub fn ever_up(&self, peer: PeerId) -> bool {
        self.seen.borrow().contains(&Seen::Up(peer))
    }

    pub async fn member_ids(&self) -> Vec<PeerId> {
        self.handle
            .members()
            .await
            .unwrap()
            .into_iter()
            .map(|member| member.peer)
            .collect()
    }
}

async fn serve(mut events: mpsc::Receiver<Event>, log: watch::Sender<Vec<Seen>>) {
    while let Some(event) = events.recv().await {
        let seen = match event {
            Event::MemberUp { peer, credential } => {
                assert_eq!(credential.peer, peer);
                Seen::Up(peer)
            }
            Event::MemberDown { peer } => Seen::Down(peer),
            Event::MemberRenewed { peer, credential } => Seen::Renewed(peer, credential.serial),
            Event::Request {
                from,
                protocol,
                mut bytes,
                reply,
            } => {
                bytes.reverse();
                let _ = reply.send(bytes);
                Seen::Request(from, protocol)
            }
            Event::Gossip { from, bytes, .. } => Seen::Gossip(from, bytes),
            Event::Refused { peer, reason, .. } => Seen::Refused(peer, reason),
            Event::Listening { .. } => continue,
        };
        log.send_modify(|all| all.push(seen));
    }
}

/// Asks again and again until there is an answer.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        loop {
            pause.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    };
    match tokio::time::timeout(DEADLINE, asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("never true: {what}"),
    }
}

pub fn now() -> WallMillis {
    SystemTime::now().into()
}

pub fn days_ago(days: u64) -> WallMillis {
    WallMillis(now().0 - days * 24 * 3600 * 1000)
}

/// The gate of a real grid with a credential of the caller's choice.
pub fn gate_showing(grid: &Grid, der: &[u8]) -> Arc<dyn Gatekeeper> {
    let verifier = Arc::new(RwLock::new(grid.ca.verifier().unwrap()));
    let (_, own) = watch::channel(Arc::new(der.to_vec()));
    Arc::new(IdentityGate::new(verifier, own))
}

/// Forwards TCP to the address until told to swallow everything without closing anything.
pub async fn proxy(to: &Multiaddr) -> (Multiaddr, watch::Sender<bool>) {
    use libp2p::multiaddr::Protocol::Tcp;
    let port = to
        .iter()
        .find_map(|part| if let Tcp(port) = part { Some(port) } else { None })
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = format!("/ip4/127.0.0.1/tcp/{}", listener.local_addr().unwrap().port())
        .parse()
        .unwrap();
    let (silence, silent) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut inner, _)) = listener.accept().await {
            let mut silent = silent.clone();
            tokio::spawn(async move {
                let mut outer = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let told = async { silent.wait_for(|silent| *silent).await.is_ok() };
                let silenced = tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut inner, &mut outer) => false,
                    told = told => told,
                };
                if silenced {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    (addr, silence)
}
