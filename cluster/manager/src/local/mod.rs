//! A host that is this process's own: a node driver, with images, disks and networks beside it.

pub(crate) mod disks;
pub(crate) mod images;
pub(crate) mod networks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use aerie_cluster_manager_proto::{Facts, Failure, Found, GuestId, GuestState, Inventory, Spec, Work};
use aerie_cluster_node::{self as node, Definition, Mib, NodeDriver, State};
use aerie_cluster_proto::amount::Resources;
use aerie_cluster_proto::placement::{Accelerator, Connections};
use async_trait::async_trait;
use tokio::sync::{Mutex as AsyncMutex, broadcast};
use uuid::Uuid;

use self::disks::Disks;
use self::images::Images;
use self::networks::Networks;
use crate::link::{Console, HostLink};

/// How many guests that were destroyed are remembered, so that nothing that was begun for them before is done after.
/// Their numbers are never given again; what was begun is over long before so many others were destroyed.
const MAX_DESTROYED: usize = 65_536;

/// What a local host is made of.
#[derive(Debug, Clone)]
pub struct Local {
    /// What runs its guests.
    pub driver: Arc<dyn NodeDriver>,
    /// Where images come from, and which are here.
    pub images: Arc<dyn Images>,
    /// What makes disks.
    pub disks: Arc<dyn Disks>,
    /// What makes the ends of networks.
    pub networks: Arc<dyn Networks>,
    /// What the host has for members.
    pub capacity: Resources,
    /// What members' interfaces can be connected to.
    pub connections: Connections,
    /// How fast its guests run.
    pub accelerator: Accelerator,
}

/// A host that is this process's own.
#[derive(Debug)]
pub struct LocalHost {
    parts: Arc<Parts>,
    events: AsyncMutex<broadcast::Receiver<node::Event>>,
}

#[derive(Debug)]
struct Parts {
    local: Local,
    guests: Mutex<Guests>,
}

#[derive(Debug, Default)]
struct Guests {
    /// Held by whoever does something with the guest.
    locks: BTreeMap<GuestId, Arc<AsyncMutex<()>>>,
    destroyed: BTreeSet<GuestId>,
}

impl LocalHost {
    /// A host of these parts.
    #[must_use]
    pub fn new(local: Local) -> Self {
        let events = AsyncMutex::new(local.driver.events());
        let guests = Mutex::default();
        let parts = Arc::new(Parts { local, guests });
        Self { parts, events }
    }

    /// Does something that goes on if nobody waits for it any more.
    async fn run<T, F>(&self, work: impl FnOnce(Arc<Parts>) -> F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let done = tokio::spawn(work(Arc::clone(&self.parts))).await;
        done.map_err(Failure::failed)?
    }
}

#[async_trait]
impl HostLink for LocalHost {
    async fn inventory(&self) -> Result<Inventory, Failure> {
        self.run(|parts| async move { parts.inventory().await }).await
    }

    async fn perform(&self, work: Work) -> Result<Option<GuestState>, Failure> {
        self.run(|parts| async move { parts.perform(work).await }).await
    }

    async fn deliver(&self, guest: GuestId, user_data: &[u8]) -> Result<(), Failure> {
        let user_data = user_data.to_vec();
        self.run(|parts| async move {
            let lock = parts.lock(guest)?;
            let _held = lock.lock().await;
            parts.admit(guest)?;
            parts.local.disks.deliver(guest, user_data).await
        })
        .await
    }

    async fn console(&self, guest: GuestId, from: u64) -> Result<Console, Failure> {
        let console = self.parts.local.driver.console(node_id(guest), from).await;
        console.map_err(failure)
    }

    async fn changed(&self) {
        let mut events = self.events.lock().await;
        // Whoever is far behind has missed something, which is a change too.
        if let Err(broadcast::error::RecvError::Closed) = events.recv().await {
            std::future::pending::<()>().await;
        }
        while events.try_recv().is_ok() {}
    }
}

impl Parts {
    fn guests(&self) -> std::sync::MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held while something is done with a guest.
    fn lock(&self, guest: GuestId) -> Result<Arc<AsyncMutex<()>>, Failure> {
        self.admit(guest)?;
        Ok(Arc::clone(self.guests().locks.entry(guest).or_default()))
    }

    /// Nothing is done for a guest that was destroyed.
    fn admit(&self, guest: GuestId) -> Result<(), Failure> {
        if self.guests().destroyed.contains(&guest) {
            return Err(Failure::refused(format!(
                "guest {guest} was destroyed; make a new one"
            )));
        }
        Ok(())
    }

    async fn inventory(&self) -> Result<Inventory, Failure> {
        let images = self.local.images.present().await?;
        // Disks first: a guest that is defined meanwhile is then found as such, and not as one without disks.
        let prepared = self.local.disks.list().await?;
        let mut found: BTreeMap<GuestId, GuestState> = prepared
            .into_iter()
            .map(|guest| (guest, GuestState::Prepared))
            .collect();
        for status in self.local.driver.list() {
            found.insert(GuestId(*status.id.0.as_bytes()), state_of(status.state));
        }
        let found = found.into_iter().map(|(guest, state)| Found { guest, state });
        Ok(Inventory {
            facts: Facts {
                capacity: self.local.capacity,
                images,
                connections: self.local.connections.clone(),
                accelerator: self.local.accelerator,
            },
            guests: found.collect(),
        })
    }

    async fn perform(&self, work: Work) -> Result<Option<GuestState>, Failure> {
        let guest = match &work {
            Work::Stage { image } => {
                self.local.images.stage(image).await?;
                return Ok(None);
            }
            Work::Destroy(guest) => return self.destroy(*guest).await,
            Work::Prepare(spec) | Work::Attach(spec) | Work::Define(spec) => spec.guest,
            Work::Start(guest)
            | Work::Pause(guest)
            | Work::Resume(guest)
            | Work::Suspend(guest)
            | Work::Restore(guest)
            | Work::Stop { guest, .. }
            | Work::Save { guest, .. } => *guest,
        };
        let lock = self.lock(guest)?;
        let _held = lock.lock().await;
        self.admit(guest)?;
        let (driver, id) = (&self.local.driver, node_id(guest));
        match work {
            Work::Stage { .. } | Work::Destroy(_) => {}
            Work::Prepare(spec) => {
                let staged = self.local.images.stage(&spec.image).await?;
                self.local.disks.make(&spec, &staged).await?;
            }
            Work::Attach(spec) => drop(self.local.networks.attach(&spec).await?),
            Work::Define(spec) => {
                let definition = self.definition(&spec).await?;
                driver.define(definition).await.map_err(failure)?;
            }
            Work::Start(_) => {
                self.local.networks.connect(guest).await?;
                driver.start(id).await.map_err(failure)?;
            }
            Work::Pause(_) => driver.pause(id).await.map_err(failure)?,
            Work::Resume(_) => driver.resume(id).await.map_err(failure)?,
            Work::Suspend(_) => driver.suspend(id).await.map_err(failure)?,
            Work::Restore(_) => {
                self.local.networks.connect(guest).await?;
                // What was restored the time before is not restored again, and runs.
                let status = driver.status(id).map_err(failure)?;
                if status.state == State::Suspended {
                    driver.restore(id).await.map_err(failure)?;
                }
            }
            Work::Stop { grace, .. } => drop(driver.stop(id, grace).await.map_err(failure)?),
            Work::Save { image, .. } => {
                let disk = self.local.disks.disk(guest).await?;
                self.local.images.keep(&disk, &image).await?;
            }
        }
        Ok(driver.status(id).ok().map(|status| state_of(status.state)))
    }

    async fn destroy(&self, guest: GuestId) -> Result<Option<GuestState>, Failure> {
        let (driver, id) = (&self.local.driver, node_id(guest));
        // From here on nothing new is begun for it.
        let lock = {
            let mut guests = self.guests();
            guests.destroyed.insert(guest);
            while guests.destroyed.len() > MAX_DESTROYED {
                guests.destroyed.pop_first();
            }
            guests.locks.get(&guest).map(Arc::clone)
        };
        // It interrupts what is being done with the machine, and is then done once more when nothing is.
        driver.destroy(id).await.map_err(failure)?;
        if let Some(lock) = lock {
            let _held = lock.lock().await;
            driver.destroy(id).await.map_err(failure)?;
        }
        self.local.networks.detach(guest).await?;
        self.local.disks.remove(guest).await?;
        self.guests().locks.remove(&guest);
        Ok(None)
    }

    async fn definition(&self, spec: &Spec) -> Result<Definition, Failure> {
        let name = spec.member.as_str().parse().map_err(Failure::refused)?;
        let too_many = |_| Failure::refused(format!("{} CPUs are more than a guest can have", spec.cpus));
        Ok(Definition {
            id: node_id(spec.guest),
            name,
            memory: Mib::from_bytes(spec.memory.0),
            cpus: u16::try_from(spec.cpus).map_err(too_many)?,
            disks: self.local.disks.disks(spec).await?,
            nics: self.local.networks.attach(spec).await?,
        })
    }
}

fn node_id(guest: GuestId) -> node::GuestId {
    node::GuestId(Uuid::from_bytes(guest.0))
}

fn state_of(state: State) -> GuestState {
    match state {
        State::Defined => GuestState::Defined,
        State::Running => GuestState::Running,
        State::Paused => GuestState::Paused,
        State::Suspended => GuestState::Suspended,
        State::Stopped(_) => GuestState::Stopped,
        State::Crashed { why } => GuestState::Crashed { why },
        State::Unresponsive { why } => GuestState::Unresponsive { why },
        State::Damaged { why, .. } => GuestState::Damaged { why },
    }
}

/// What to make of a driver's error.
fn failure(error: node::Error) -> Failure {
    use node::Error as E;
    match error {
        E::Definition(_)
        | E::Exists(_)
        | E::NoHypervisor { .. }
        | E::Hypervisor { .. }
        | E::Destroyed { .. } => Failure::refused(error),
        _ => Failure::failed(error),
    }
}
