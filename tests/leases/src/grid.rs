//! Members of a grid in one process, each with the overlay and the register as a daemon has them: sockets on the
//! loopback interface, credentials of a real CA, a database of its own that is synced at every grant.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant, SystemTime};

use aerie_dht::{Dht, IdentityKeys, Kind, LeaseState, Transport, TransportError};
use aerie_dht_proto::addr_key;
use aerie_identity::{DEFAULT_LIFETIME, EnrolRequest, GridCa, NodeKeys, Subject, Verifier};
use aerie_overlay::{Event, Multiaddr, Overlay, Protocol, Topic};
use aerie_types::{GridId, Key, NodeName, PeerId, Role, VirtualAddr, VirtualRange, WallMillis};
use anyhow::{Context, Result, bail, ensure};
use futures::future::{BoxFuture, join_all};
use tokio::sync::{mpsc, watch};

/// How long newcomers may take to be connected with everybody.
const ASSEMBLY: Duration = Duration::from_secs(60);

/// Members that join at the same time: all of them share the cores of this machine.
const AT_ONCE: usize = 5;

/// Between two looks at something that is not told.
const LOOK: Duration = Duration::from_millis(50);

/// Members that keep a key's certificate, and answer for it without asking.
const WITNESSES: usize = 9;

/// A grid whose members are all connected. Of them only the founder holds an address at first.
pub(crate) struct Grid {
    id: GridId,
    range: VirtualRange,
    members: Vec<Member>,
    /// From the start of the first until all were connected.
    pub(crate) assembled: Duration,
}

struct Member {
    name: NodeName,
    peer: PeerId,
    overlay: aerie_overlay::Handle,
    dht: aerie_dht::Handle,
    /// The register shows the newest of its watched credentials for as long as this is there.
    _own: watch::Sender<Arc<Vec<u8>>>,
}

/// What became of one address that several claimed at once.
pub(crate) struct Contest {
    /// The numbers of those that were told that they hold it.
    pub(crate) winners: Vec<usize>,
    /// Until the first of them was told.
    pub(crate) first: Option<Duration>,
}

impl Grid {
    /// Starts so many members, a few at once, the first as the founder and the others' way in, with their databases in a
    /// folder.
    pub(crate) async fn start(count: usize, stores: &Path) -> Result<Self> {
        let range: VirtualRange = "10.96.0.0/16".parse()?;
        let ca = GridCa::create("bench".parse()?, range, now())?;
        let verifier = Arc::new(RwLock::new(ca.verifier()?));
        let begun = Instant::now();
        let founder = start(&ca, &verifier, 0, &[], stores)?;
        let entries = listening(&founder).await?;
        founder.dht.acquire().await;
        let mut grid = Self {
            id: ca.grid_id(),
            range,
            members: vec![founder],
            assembled: Duration::ZERO,
        };
        for number in 1..count {
            let member = start(&ca, &verifier, number, &entries, stores)?;
            grid.members.push(member);
            if number % AT_ONCE == 0 || number + 1 == count {
                tokio::time::timeout(ASSEMBLY, grid.assembled())
                    .await
                    .with_context(|| format!("{} members did not all find each other", number + 1))??;
            }
        }
        grid.assembled = begun.elapsed();
        Ok(grid)
    }

    async fn assembled(&self) -> Result<()> {
        let mut founded = self.member(0)?.dht.lease();
        founded
            .wait_for(|state| matches!(state, LeaseState::Held { .. }))
            .await?;
        for member in &self.members {
            while member.overlay.members().await?.len() + 1 < self.members.len() {
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    fn member(&self, number: usize) -> Result<&Member> {
        let wrapped = number % self.members.len();
        self.members.get(wrapped).context("a grid has a member")
    }

    /// The time in which a member that has just come gets an address, as a daemon does at its first start.
    pub(crate) async fn newcomer(&self, number: usize) -> Result<Duration> {
        let member = self.member(number)?;
        let begun = Instant::now();
        member.dht.acquire_as(member.name.clone(), None).await?;
        Ok(begun.elapsed())
    }

    /// Lets a member give its address back.
    pub(crate) async fn release(&self, number: usize) -> Result<()> {
        self.member(number)?.dht.release(Kind::Addr).await;
        Ok(())
    }

    /// The time in which a member that has had an address gets another one, which nobody else wants.
    pub(crate) async fn claim(&self, number: usize, addr: u32) -> Result<Duration> {
        let member = self.member(number)?;
        let begun = Instant::now();
        self.acquire(member, addr).await?;
        Ok(begun.elapsed())
    }

    /// Lets the members of these numbers claim one address at once.
    pub(crate) async fn contest(&self, claimants: &[usize], addr: u32) -> Result<Contest> {
        let begun = Instant::now();
        let claims = claimants.iter().map(|number| async move {
            let claimed = self.acquire(self.member(*number)?, addr).await;
            Ok(claimed.is_ok().then(|| (*number, begun.elapsed())))
        });
        let told: Vec<_> = join_all(claims).await.into_iter().collect::<Result<_>>()?;
        let won = || told.iter().flatten();
        Ok(Contest {
            winners: won().map(|(number, _)| *number).collect(),
            first: won().map(|(_, took)| *took).min(),
        })
    }

    /// The time in which a member finds the holder of another one's address, which it does not keep a certificate of.
    pub(crate) async fn look_up(&self, number: usize) -> Result<Duration> {
        let holder = self.member(number)?;
        let LeaseState::Held { leased: addr, .. } = holder.dht.lease().borrow().clone() else {
            bail!("{} holds no address", holder.name);
        };
        let asker = self.stranger(addr, number)?;
        let begun = Instant::now();
        let found = asker.dht.look_up_addr(addr).await;
        let took = begun.elapsed();
        let found = found.with_context(|| format!("{} did not find {addr}", asker.name))?;
        ensure!(found.holder == holder.peer, "{addr} was found at another holder");
        Ok(took)
    }

    /// The time in which a member locates the members closest to an address.
    pub(crate) async fn locate(&self, number: usize) -> Result<Duration> {
        let member = self.member(number)?;
        let key = addr_key(self.id, self.range.nth(u32::try_from(number)?));
        let begun = Instant::now();
        let closest = member.overlay.closest(key).await?;
        ensure!(!closest.is_empty(), "no member is close to anything");
        Ok(begun.elapsed())
    }

    /// The time of one request that is answered without a look at the disk.
    pub(crate) async fn ask(&self, number: usize) -> Result<Duration> {
        let (from, to) = (self.member(number)?, self.member(number + 1)?);
        let begun = Instant::now();
        from.overlay
            .request(to.peer, Protocol::Control, vec![0; 512])
            .await?;
        Ok(begun.elapsed())
    }

    /// Ends every member.
    pub(crate) async fn stop(self) {
        join_all(self.members.iter().map(|member| async {
            member.dht.shutdown().await;
            member.overlay.shutdown().await;
        }))
        .await;
    }

    async fn acquire(&self, member: &Member, addr: u32) -> Result<LeaseState, aerie_dht::Error> {
        let addr = self.range.nth(addr);
        member.dht.acquire_as(member.name.clone(), Some(addr)).await
    }

    /// A member that keeps no certificate of an address, each number another one.
    fn stranger(&self, addr: VirtualAddr, number: usize) -> Result<&Member> {
        let position = addr_key(self.id, addr).position();
        let mut by_distance: Vec<_> = self.members.iter().collect();
        by_distance.sort_by_key(|member| position.distance(&member.peer.position()));
        let far = by_distance.get(WITNESSES..).unwrap_or_default();
        let strangers: Vec<_> = far
            .iter()
            .filter(|member| !matches!(&*member.dht.lease().borrow(), LeaseState::Held { leased: own, .. } if *own == addr))
            .collect();
        ensure!(!strangers.is_empty(), "every member keeps every certificate");
        strangers
            .get(number.wrapping_mul(7) % strangers.len())
            .map(|member| **member)
            .context("no stranger")
    }
}

fn start(
    ca: &GridCa,
    verifier: &Arc<RwLock<Verifier>>,
    number: usize,
    entries: &[Multiaddr],
    stores: &Path,
) -> Result<Member> {
    let founder = number == 0;
    let name: NodeName = format!("n{number}").parse()?;
    let keys = NodeKeys::generate()?;
    let request = EnrolRequest::create(&keys, ca.grid_id(), name.clone(), false)?;
    let subject = Subject {
        node: name.clone(),
        user: "ada".parse()?,
        group: "bench".parse()?,
        roles: if founder { Role::Relay } else { Role::Worker }.into(),
    };
    let serial = u64::try_from(number)? + 1;
    let issued = ca.issue(&request, &subject, serial, now(), DEFAULT_LIFETIME)?;
    let (own, shown) = watch::channel(Arc::new(issued.overlay_der));
    let mut config = aerie_overlay::Config::new(ca.grid_id(), &keys)?;
    config.listen = vec![
        "/ip4/127.0.0.1/tcp/0".parse()?,
        "/ip4/127.0.0.1/udp/0/quic-v1".parse()?,
    ];
    config.bootstrap = entries.to_vec();
    config.relay = founder;
    // Everybody is reached at its own address.
    config.reserve = false;
    let (overlay, events) = Overlay::spawn(config, shown.clone(), Arc::clone(verifier))?;
    let store: PathBuf = stores.join(format!("{name}.sqlite"));
    let dht = Dht::start(
        aerie_dht::Config::new(ca.grid_id(), ca.range(), name.clone(), founder, store),
        Arc::new(Carried(overlay.clone())),
        IdentityKeys::new(keys.overlay_signer(), Arc::clone(verifier), shown),
    )?;
    tokio::spawn(carry(dht.clone(), events));
    Ok(Member {
        name,
        peer: keys.peer_id(),
        overlay,
        dht,
        _own: own,
    })
}

/// The addresses at which a member can be dialled, once it listens at both.
async fn listening(member: &Member) -> Result<Vec<Multiaddr>> {
    loop {
        let addrs = member.overlay.listen_addrs().await?;
        if addrs.len() >= 2 {
            return Ok(addrs);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The register's messages over the overlay, as in the daemon.
struct Carried(aerie_overlay::Handle);

impl Transport for Carried {
    fn closest(&self, key: Key) -> BoxFuture<'_, Vec<PeerId>> {
        Box::pin(async move { self.0.closest(key).await.unwrap_or_default() })
    }

    fn request(&self, to: PeerId, bytes: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        Box::pin(async move {
            let answer = self.0.request(to, Protocol::Dht, bytes).await;
            answer.map_err(|error| TransportError::new(error.to_string()))
        })
    }

    fn publish(&self, bytes: Vec<u8>) {
        // What was not passed on is repeated by its publisher.
        let _ = self.0.publish(Topic::Sets, bytes);
    }
}

/// The overlay's events to the register, as in the daemon. Other protocols are answered with nothing.
async fn carry(dht: aerie_dht::Handle, mut events: mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        match event {
            Event::MemberUp { peer, .. } => dht.member_up(peer).await,
            Event::MemberDown { peer } => dht.member_down(peer).await,
            Event::Request {
                from,
                protocol: Protocol::Dht,
                bytes,
                reply,
            } => {
                let dht = dht.clone();
                tokio::spawn(async move {
                    if let Ok(answer) = dht.serve(from, bytes).await {
                        // The asker may have given up meanwhile.
                        let _ = reply.send(answer);
                    }
                });
            }
            Event::Request { reply, .. } => drop(reply.send(Vec::new())),
            Event::Gossip {
                topic: Topic::Sets,
                from,
                bytes,
            } => dht.gossip(from, bytes).await,
            _ => {}
        }
    }
}

fn now() -> WallMillis {
    SystemTime::now().into()
}
