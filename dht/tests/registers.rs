//! Several registers in one process, with real databases, real credentials and a network in memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant, SystemTime};

use aerie_dht::{Config, Dht, Handle, IdentityKeys, Kind, LeaseState, MemoryNetwork};
use aerie_identity::{EnrolRequest, GridCa, NodeKeys, Subject, Verifier};
use aerie_types::{NodeName, PeerId, Role, Roles, VirtualAddr, VirtualPrefix, VirtualRange, WallMillis};
use tokio::sync::watch;

const RANGE: &str = "10.77.0.0/24";

/// The part that is leased in blocks of sixteen.
const ROUTED: &str = "10.77.0.128/25";

struct Grid {
    dir: tempfile::TempDir,
    ca: GridCa,
    verifier: Arc<RwLock<Verifier>>,
    network: MemoryNetwork,
}

struct Member {
    name: NodeName,
    keys: NodeKeys,
    der: Arc<Vec<u8>>,
    folder: PathBuf,
    founder: bool,
}

impl Grid {
    fn new() -> Self {
        let ca = GridCa::create("lab".parse().unwrap(), RANGE.parse().unwrap(), wall()).unwrap();
        let verifier = Arc::new(RwLock::new(ca.verifier().unwrap()));
        Self {
            dir: tempfile::tempdir().unwrap(),
            ca,
            verifier,
            network: MemoryNetwork::default(),
        }
    }

    fn member(&self, number: u64, roles: Roles) -> Member {
        let name: NodeName = format!("n{number}").parse().unwrap();
        let keys = NodeKeys::generate().unwrap();
        let request = EnrolRequest::create(&keys, self.ca.grid_id(), name.clone(), true).unwrap();
        let subject = Subject {
            node: name.clone(),
            user: "ada".parse().unwrap(),
            group: "chem".parse().unwrap(),
            roles,
        };
        let lifetime = Duration::from_secs(3600);
        let issued = self
            .ca
            .issue(&request, &subject, number + 1, wall(), lifetime)
            .unwrap();
        let folder = self.dir.path().join(name.as_str());
        std::fs::create_dir(&folder).unwrap();
        Member {
            name,
            keys,
            der: Arc::new(issued.overlay_der),
            folder,
            founder: number == 0,
        }
    }

    fn start_in(&self, member: &Member, folder: &Path) -> Handle {
        let (_, own) = watch::channel(Arc::clone(&member.der));
        let keys = IdentityKeys::new(member.keys.overlay_signer(), Arc::clone(&self.verifier), own);
        let mut config = Config::new(
            self.ca.grid_id(),
            range(),
            member.name.clone(),
            member.founder,
            folder.join("register.sqlite"),
        );
        config.pool = config.pool.with_routed(ROUTED.parse().unwrap(), 28).unwrap();
        config.timings.probation = Duration::from_millis(500);
        config.timings.set_renew = Duration::from_millis(500);
        config.timings.set_ttl = Duration::from_secs(2);
        Dht::start(config, self.network.transport(member.peer()), keys).unwrap()
    }

    async fn start(&self, member: &Member) -> Handle {
        let handle = self.start_in(member, &member.folder);
        self.network.connect(member.peer(), &handle).await;
        handle
    }

    /// A grid of so many workers, the founder first, each with an address.
    async fn with_members(count: u64) -> (Self, Vec<Member>, Vec<Handle>) {
        let grid = Self::new();
        let members: Vec<_> = (0..count)
            .map(|number| grid.member(number, Role::Worker.into()))
            .collect();
        let mut handles = Vec::new();
        for member in &members {
            handles.push(grid.start(member).await);
        }
        for handle in &handles {
            handle.acquire().await;
        }
        for handle in &handles {
            held(handle).await;
        }
        (grid, members, handles)
    }
}

impl Member {
    fn peer(&self) -> PeerId {
        self.keys.peer_id()
    }
}

fn range() -> VirtualRange {
    RANGE.parse().unwrap()
}

fn wall() -> WallMillis {
    SystemTime::now().into()
}

/// Waits until an address is held, and says which.
async fn held(handle: &Handle) -> VirtualAddr {
    until(handle, |state| match state {
        LeaseState::Held { leased, .. } => Some(*leased),
        _ => None,
    })
    .await
}

async fn until<T>(handle: &Handle, wanted: impl Fn(&LeaseState) -> Option<T>) -> T {
    let mut lease = handle.lease();
    let waited = tokio::time::timeout(
        Duration::from_secs(20),
        lease.wait_for(|state| wanted(state).is_some()),
    )
    .await;
    match waited {
        Ok(state) => wanted(&state.unwrap()).unwrap(),
        Err(_) => panic!("the lease stays {:?}", handle.lease().borrow()),
    }
}

#[tokio::test]
async fn a_race_of_eight_for_one_fixed_address_gives_exactly_one_holder() {
    let grid = Grid::new();
    let members: Vec<_> = (0..8)
        .map(|number| grid.member(number, Role::Worker.into()))
        .collect();
    let mut handles = Vec::new();
    for member in &members {
        handles.push(grid.start(member).await);
    }
    let fixed = range().nth(41);
    let claims = members
        .iter()
        .zip(&handles)
        .map(|(member, handle)| handle.acquire_as(member.name.clone(), Some(fixed)));
    let results = futures::future::join_all(claims).await;
    let winners = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(winners, 1, "{results:#?}");
    for refused in results.into_iter().filter_map(Result::err) {
        let message = refused.to_string();
        assert!(message.contains("10.77.0.42 is leased to"), "{message}");
    }
}

#[tokio::test]
async fn a_restarted_node_has_the_same_address_within_seconds() {
    let (grid, members, mut handles) = Grid::with_members(3).await;
    let before = held(&handles[2]).await;
    grid.network.disconnect(members[2].peer()).await;
    handles.pop().unwrap().shutdown().await;
    let started = Instant::now();
    let again = grid.start(&members[2]).await;
    again.acquire().await;
    assert_eq!(held(&again).await, before);
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn of_two_running_copies_only_the_first_holds_the_address() {
    let (grid, members, handles) = Grid::with_members(4).await;
    let addr = held(&handles[3]).await;
    let folder = grid.dir.path().join("copy");
    std::fs::create_dir(&folder).unwrap();
    for file in std::fs::read_dir(&members[3].folder).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    let copy = grid.start_in(&members[3], &folder);
    grid.network.connect(members[3].peer(), &copy).await;
    copy.acquire().await;
    let reason = until(&copy, |state| match state {
        LeaseState::Lost {
            reason,
            is_copy: true,
        } => Some(reason.clone()),
        LeaseState::Held { .. } => panic!("two hold {addr}"),
        _ => None,
    })
    .await;
    assert!(reason.contains("its disk was copied"), "{reason}");
    assert_eq!(held(&handles[3]).await, addr);
}

#[tokio::test]
async fn names_and_addresses_are_found_by_every_member() {
    let (_grid, members, handles) = Grid::with_members(4).await;
    for (member, handle) in members.iter().zip(&handles) {
        let addr = held(handle).await;
        for asker in &handles {
            let found = asker.look_up_name(member.name.clone()).await.unwrap();
            assert_eq!((found.holder, found.leased), (member.peer(), addr.into()));
            let found = asker.look_up_addr(addr).await.unwrap();
            assert_eq!((found.holder, &found.name), (member.peer(), &member.name));
            assert!(
                found.remaining > Duration::from_secs(1200),
                "{:?}",
                found.remaining
            );
        }
    }
    assert!(handles[0].look_up_name("nobody".parse().unwrap()).await.is_none());
}

#[tokio::test]
async fn a_change_of_a_set_is_seen_by_all_and_a_worker_cannot_pose_as_a_manager() {
    let grid = Grid::new();
    let worker = grid.member(0, Role::Worker.into());
    let manager = grid.member(1, Role::Manager.into());
    let late = grid.member(2, Role::Client.into());
    let (first, second) = (grid.start(&worker).await, grid.start(&manager).await);
    let refused = first
        .publish_set("managers", b"10.77.0.1".to_vec())
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("takes the role manager"),
        "{refused}"
    );

    let mut seen = first.watch_set("managers");
    second
        .publish_set("managers", b"10.77.0.2".to_vec())
        .await
        .unwrap();
    seen.wait_for(|set| set.iter().any(|entry| entry.value == b"10.77.0.2"))
        .await
        .unwrap();
    assert_eq!(seen.borrow()[0].node.as_str(), "n1");

    let third = grid.start(&late).await;
    let mut newcomers = third.watch_set("managers");
    newcomers.wait_for(|set| set.len() == 1).await.unwrap();

    second.withdraw_set("managers").await;
    seen.wait_for(Vec::is_empty).await.unwrap();
    newcomers.wait_for(Vec::is_empty).await.unwrap();

    second.publish_set("managers", b"back".to_vec()).await.unwrap();
    seen.wait_for(|set| set.len() == 1).await.unwrap();
    grid.network.disconnect(manager.peer()).await;
    drop(second);
    seen.wait_for(Vec::is_empty).await.unwrap();
}

#[tokio::test]
async fn an_address_given_back_can_be_claimed_by_another() {
    let (_grid, members, handles) = Grid::with_members(3).await;
    let addr = held(&handles[1]).await;
    handles[1].release_all().await;
    assert_eq!(*handles[1].lease().borrow(), LeaseState::Idle);
    let state = handles[2]
        .acquire_as(members[2].name.clone(), Some(addr))
        .await
        .unwrap();
    assert!(
        matches!(state, LeaseState::Held { leased: got, .. } if got == addr),
        "{state:?}"
    );
}

/// Waits until a prefix is held, and says which.
async fn routes(handle: &Handle) -> VirtualPrefix {
    let mut prefix = handle.prefix();
    let held = |state: &LeaseState<VirtualPrefix>| match state {
        LeaseState::Held { leased, .. } => Some(*leased),
        _ => None,
    };
    let waited = prefix.wait_for(|state| held(state).is_some());
    match tokio::time::timeout(Duration::from_secs(20), waited).await {
        Ok(state) => held(&state.unwrap()).unwrap(),
        Err(_) => panic!("the prefix stays {:?}", handle.prefix().borrow()),
    }
}

#[tokio::test]
async fn a_prefix_is_held_beside_the_address_found_by_all_kept_and_given_back() {
    let (grid, members, mut handles) = Grid::with_members(3).await;
    let addr = held(&handles[2]).await;
    assert_eq!(*handles[2].prefix().borrow(), LeaseState::Idle);
    handles[2].acquire_prefix(None).await;
    let prefix = routes(&handles[2]).await;
    assert_eq!(prefix.prefix_len(), 28);
    for asker in &handles {
        let found = asker.look_up_prefix(prefix).await.unwrap();
        assert_eq!(
            (found.holder, found.leased, &found.name),
            (members[2].peer(), prefix.into(), &members[2].name)
        );
    }

    grid.network.disconnect(members[2].peer()).await;
    handles.pop().unwrap().shutdown().await;
    let again = grid.start(&members[2]).await;
    again.acquire_prefix(None).await;
    again.acquire().await;
    assert_eq!((held(&again).await, routes(&again).await), (addr, prefix));

    let addr = held(&handles[1]).await;
    handles[1].acquire_prefix(Some(prefix)).await;
    let mut refused = handles[1].prefix();
    let failed = |state: &LeaseState<VirtualPrefix>| matches!(state, LeaseState::Failed { .. });
    let state = refused.wait_for(failed).await.unwrap().clone();
    let LeaseState::Failed { reason } = state else {
        panic!("{state:?}");
    };
    assert!(reason.contains(&format!("{prefix} is leased to")), "{reason}");
    assert_eq!(
        held(&handles[1]).await,
        addr,
        "the address has nothing to do with it"
    );

    again.release_all().await;
    assert_eq!(*again.prefix().borrow(), LeaseState::Idle);
    assert_eq!(*again.lease().borrow(), LeaseState::Idle);
    handles[1].acquire_prefix(Some(prefix)).await;
    assert_eq!(routes(&handles[1]).await, prefix);
}

#[tokio::test]
async fn who_gives_its_address_back_stays_a_member_and_can_claim_again() {
    let (_grid, members, handles) = Grid::with_members(3).await;
    let addr = held(&handles[1]).await;
    handles[1].acquire_prefix(None).await;
    let mut prefix = handles[1].prefix();
    let routes = |state: &LeaseState<VirtualPrefix>| matches!(state, LeaseState::Held { .. });
    prefix.wait_for(routes).await.unwrap();
    handles[1].release(Kind::Addr).await;
    assert_eq!(*handles[1].lease().borrow(), LeaseState::Idle);
    let taken = handles[2].acquire_as(members[2].name.clone(), Some(addr)).await;
    assert!(
        matches!(taken, Ok(LeaseState::Held { leased, receipts: 2.., .. }) if leased == addr),
        "{taken:?}"
    );
    assert!(routes(&prefix.borrow()), "only the address was given back");
    handles[1].acquire().await;
    assert_ne!(held(&handles[1]).await, addr);
    handles[1].release(Kind::Prefix).await;
    assert_eq!(*prefix.borrow(), LeaseState::Idle);
    assert_ne!(held(&handles[1]).await, addr, "only the prefix was given back");
}

#[tokio::test]
async fn a_second_daemon_on_the_same_state_is_refused() {
    let grid = Grid::new();
    let member = grid.member(0, Role::Worker.into());
    let _first = grid.start(&member).await;
    let (_, own) = watch::channel(Arc::clone(&member.der));
    let keys = IdentityKeys::new(member.keys.overlay_signer(), Arc::clone(&grid.verifier), own);
    let path = member.folder.join("register.sqlite");
    let config = Config::new(grid.ca.grid_id(), range(), member.name.clone(), true, path);
    let refused = Dht::start(config, grid.network.transport(member.peer()), keys)
        .map(|_| ())
        .unwrap_err();
    assert!(refused.to_string().contains("no other aerie runs"), "{refused}");
}

#[tokio::test]
async fn hostile_bytes_are_answered_and_counted() {
    let (_grid, members, handles) = Grid::with_members(2).await;
    let from = members[1].peer();
    for bytes in [Vec::new(), vec![1], vec![9; 100], vec![1; 300_000]] {
        assert!(!handles[0].serve(from, bytes.clone()).await.unwrap().is_empty());
        handles[0].gossip(from, bytes).await;
    }
    let stats = handles[0].stats().await.unwrap();
    assert!(stats.malformed >= 7, "{stats:?}");
}
