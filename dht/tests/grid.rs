//! Several registers in one process, each with its SQLite file and credentials of a real CA.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime};

use aerie_dht::{BoxFuture, Config, Dht, Handle, IdentityKeys, LeaseState, Transport, TransportError};
use aerie_identity::{EnrolRequest, GridCa, NodeKeys, Subject};
use aerie_types::{Key, PeerId, Role, Roles, VirtualAddr, WallMillis};
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(40);

type Nodes = Arc<Mutex<BTreeMap<PeerId, Handle>>>;

/// Carries messages by calling the other node's handle.
struct Local {
    me: PeerId,
    nodes: Nodes,
}

impl Transport for Local {
    fn closest(&self, key: Key) -> BoxFuture<'_, Vec<PeerId>> {
        let mut peers: Vec<_> = self
            .nodes
            .lock()
            .unwrap()
            .keys()
            .copied()
            .filter(|peer| *peer != self.me)
            .collect();
        peers.sort_by_key(|peer| peer.position().distance(&key.position()));
        Box::pin(async move { peers })
    }

    fn request(&self, to: PeerId, bytes: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        let target = self.nodes.lock().unwrap().get(&to).cloned();
        Box::pin(async move {
            let target = target.ok_or_else(|| TransportError("not connected".to_owned()))?;
            target
                .serve(self.me, bytes)
                .await
                .map_err(|error| TransportError(error.to_string()))
        })
    }

    fn publish(&self, bytes: Vec<u8>) {
        for (peer, node) in self.nodes.lock().unwrap().clone() {
            if peer != self.me {
                let (from, bytes) = (self.me, bytes.clone());
                tokio::spawn(async move { node.gossip(from, bytes).await });
            }
        }
    }
}

struct Grid {
    ca: GridCa,
    nodes: Nodes,
    keys: Vec<NodeKeys>,
    dir: tempfile::TempDir,
    fixed: Option<VirtualAddr>,
}

impl Grid {
    fn new(fixed: Option<VirtualAddr>) -> Self {
        let now = WallMillis::from(SystemTime::now());
        let ca = GridCa::create("chem".parse().unwrap(), "10.9.0.0/24".parse().unwrap(), now).unwrap();
        Self {
            ca,
            nodes: Nodes::default(),
            keys: Vec::new(),
            dir: tempfile::tempdir().unwrap(),
            fixed,
        }
    }

    async fn of(size: usize, fixed: Option<VirtualAddr>) -> Self {
        let mut grid = Self::new(fixed);
        for index in 0..size {
            grid.keys.push(NodeKeys::generate().unwrap());
            grid.start(index).await;
        }
        for index in 0..size {
            let deadline = tokio::time::Instant::now() + PATIENCE;
            while !grid.node(index).status().await.unwrap().ready {
                assert!(
                    tokio::time::Instant::now() < deadline,
                    "node {index} does not become ready"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        grid
    }

    async fn start(&self, index: usize) {
        let role = if index == 0 { Role::Manager } else { Role::Worker };
        let keys = &self.keys[index];
        let me = keys.peer_id();
        let subject = Subject {
            node: format!("n{index}").parse().unwrap(),
            user: "alice".parse().unwrap(),
            group: "physics".parse().unwrap(),
            roles: Roles::from(role),
        };
        let now = WallMillis::from(SystemTime::now());
        let request = EnrolRequest::create(keys, self.ca.grid_id(), subject.node.clone(), false).unwrap();
        let day = Duration::from_secs(86_400);
        let issued = self
            .ca
            .issue(&request, &subject, index as u64 + 1, now, day)
            .unwrap();
        let (_, credential) = watch::channel(Arc::new(issued.overlay_der));
        let verifier = Arc::new(RwLock::new(self.ca.verifier().unwrap()));
        let config = Config {
            grid: self.ca.grid_id(),
            range: "10.9.0.0/24".parse().unwrap(),
            name: subject.node,
            fixed: self.fixed,
            founder: index == 0,
            store_path: Path::join(self.dir.path(), format!("{index}.sqlite")),
        };
        let transport = Arc::new(Local {
            me,
            nodes: Arc::clone(&self.nodes),
        });
        let identity = IdentityKeys::new(keys.overlay_signer(), verifier, credential);
        let handle = Dht::start(config, transport, identity).unwrap();
        let others = self.nodes.lock().unwrap().clone();
        self.nodes.lock().unwrap().insert(me, handle.clone());
        for (peer, other) in others {
            other.member_up(me).await;
            handle.member_up(peer).await;
        }
    }

    async fn stop(&self, index: usize) {
        let peer = self.keys[index].peer_id();
        let gone = self.nodes.lock().unwrap().remove(&peer);
        drop(gone);
        let others = self.nodes.lock().unwrap().clone();
        for other in others.into_values() {
            other.member_down(peer).await;
        }
    }

    fn node(&self, index: usize) -> Handle {
        self.nodes.lock().unwrap()[&self.keys[index].peer_id()].clone()
    }

    async fn held(&self, index: usize) -> VirtualAddr {
        let mut lease = self.node(index).lease();
        let state = tokio::time::timeout(
            PATIENCE,
            lease.wait_for(|state| matches!(state, LeaseState::Held { .. })),
        );
        match &*state.await.expect("no lease in time").unwrap() {
            LeaseState::Held { addr, .. } => *addr,
            _ => unreachable!(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_nodes_that_race_for_one_address_exactly_one_gets_it() {
    let wish = "10.9.0.77".parse::<std::net::Ipv4Addr>().unwrap().into();
    let grid = Grid::of(8, Some(wish)).await;
    for index in 0..8 {
        grid.node(index).acquire().await.unwrap();
    }
    let mut holders = 0;
    for index in 0..8 {
        let mut lease = grid.node(index).lease();
        let settled =
            |state: &LeaseState| matches!(state, LeaseState::Held { .. } | LeaseState::Failed { .. });
        let state = tokio::time::timeout(PATIENCE, lease.wait_for(settled))
            .await
            .expect("not settled")
            .unwrap()
            .clone();
        match state {
            LeaseState::Held { addr, receipts, .. } => {
                assert_eq!(addr, wish);
                assert!(receipts >= 5);
                holders += 1;
            }
            LeaseState::Failed { reason } => assert!(reason.contains("is held by node n"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(holders, 1);
    let held = (0..8)
        .filter(|index| matches!(*grid.node(*index).lease().borrow(), LeaseState::Held { .. }))
        .count();
    assert_eq!(held, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_nodes_get_distinct_addresses_and_are_found_by_address_and_name() {
    let grid = Grid::of(8, None).await;
    for index in 0..8 {
        grid.node(index).acquire().await.unwrap();
    }
    let mut addrs = BTreeSet::new();
    for index in 0..8 {
        addrs.insert(grid.held(index).await);
    }
    assert_eq!(addrs.len(), 8);
    let addr = grid.held(3).await;
    let asker = grid.node(6);
    let by_addr = asker.look_up_addr(addr).await.unwrap().unwrap();
    let by_name = asker.look_up_name("n3".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(
        (by_addr.holder, by_addr.name.as_str()),
        (grid.keys[3].peer_id(), "n3")
    );
    assert_eq!((by_name.holder, by_name.addr), (grid.keys[3].peer_id(), addr));
    assert!(
        asker
            .look_up_name("nobody".parse().unwrap())
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_restarted_on_its_file_has_its_address_again() {
    let grid = Grid::of(4, None).await;
    grid.node(2).acquire().await.unwrap();
    let addr = grid.held(2).await;
    for _ in 0..2 {
        grid.stop(2).await;
        grid.start(2).await;
        grid.node(2).acquire().await.unwrap();
        assert_eq!(grid.held(2).await, addr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_leave_frees_the_address_for_another() {
    let wish = "10.9.0.77".parse::<std::net::Ipv4Addr>().unwrap().into();
    let grid = Grid::of(4, Some(wish)).await;
    grid.node(1).acquire().await.unwrap();
    assert_eq!(grid.held(1).await, wish);
    grid.node(1).release_all().await.unwrap();
    grid.stop(1).await;
    grid.node(2).acquire().await.unwrap();
    assert_eq!(grid.held(2).await, wish);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_managers_entry_is_seen_until_withdrawn_and_a_workers_is_not() {
    let grid = Grid::of(3, None).await;
    let mut seen = grid.node(2).watch_set("managers");
    assert!(
        grid.node(1)
            .publish_set("managers", b"worker".to_vec())
            .await
            .is_err()
    );
    grid.node(0)
        .publish_set("managers", b"manager".to_vec())
        .await
        .unwrap();
    let view = tokio::time::timeout(PATIENCE, seen.wait_for(|view| !view.is_empty()))
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert_eq!(view.len(), 1);
    assert_eq!(
        (view[0].node.as_str(), view[0].value.as_slice()),
        ("n0", &b"manager"[..])
    );
    assert!(view[0].roles.contains(Role::Manager));
    grid.node(0).withdraw_set("managers").await.unwrap();
    tokio::time::timeout(PATIENCE, seen.wait_for(Vec::is_empty))
        .await
        .unwrap()
        .unwrap();
}
