//! HTCondor on this node: which manager it reports to, its configuration, and whether the pool lists it.
//!
//! One task owns HTCondor. It wakes when the managers set changes, when the address changes, when a member goes
//! away, and when a probe or a look at the pool is due, and then does what is needed and no more:
//!
//! ```text
//!  managers set ─┐                         ┌─ plan differs: apply with the lightest action
//!  address      ─┼─► keeper ─► intent ─► plan
//!  probe        ─┘                         └─ same: nothing
//!  look due ──► ask the collector whether this node is listed ──► stage `pool`
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use aerie_condor::{
    Action, Condor, Credentials, Host, Intent, Layout, Manager, Pair, Plan, PrimaryKeeper, SystemConfig,
    SystemHost,
};
use aerie_types::{NodeName, Role, VirtualAddr};
use tokio::sync::watch;

use super::node::Node;
use super::shared::Shared;
use crate::paths::GridPaths;
use crate::status::{ManagerReport, Stage};

/// How often the collector is asked while this node is not listed yet: each look runs a tool.
const LOOK_SOON: Duration = Duration::from_millis(500);
/// The same after [`LOOKS_SOON`] looks in vain.
const LOOK_PATIENTLY: Duration = Duration::from_secs(10);
/// A start takes a few seconds, and half a minute on a slow machine.
const LOOKS_SOON: u32 = 40;
/// How often it is asked once this node is listed.
const LOOK_LATER: Duration = Duration::from_secs(60);
/// The paper's poll, as the fallback beside events (seed 004, III-B); without any manager it is 60 s there.
const POLL: Duration = Duration::from_secs(60);
/// How often it is seen to that the plan in force is still in force.
const CHECK: Duration = Duration::from_secs(30);
/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How long jobs may take to save themselves when the node leaves.
const LEAVE: Duration = Duration::from_secs(30);

/// Whether roles have anything to do with HTCondor.
pub(crate) fn wanted(roles: aerie_types::Roles) -> bool {
    [Role::Manager, Role::Submit, Role::Worker, Role::Client]
        .into_iter()
        .any(|role| roles.contains(role))
}

/// Runs until somebody asks the daemon to leave; HTCondor is ended then. When the daemon merely ends, HTCondor
/// goes on, so that jobs outlive a restart.
pub(crate) async fn run(
    node: Arc<Node>,
    shared: Arc<Shared>,
    mut addr: watch::Receiver<Option<VirtualAddr>>,
    mut managers: watch::Receiver<Vec<Manager>>,
) {
    let host = tokio::select! {
        host = host(&node.paths, &shared) => host,
        () = shared.leave_asked() => return,
    };
    let mut reloads = shared.reloads();
    let mut pool = Pool::new(node, shared, host);
    loop {
        let known = managers.borrow_and_update().clone();
        pool.own = *addr.borrow_and_update();
        pool.step(known).await;
        let until = tokio::time::Instant::from_std(pool.next_wake());
        tokio::select! {
            biased;
            () = pool.shared.leave_asked() => return pool.leave().await,
            changed = managers.changed() => if changed.is_err() { return pool.ended().await },
            changed = addr.changed() => if changed.is_err() { return pool.ended().await },
            () = pool.node.member_gone.notified() => pool.probe().await,
            _ = reloads.changed() => pool.look_again(),
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

/// The edge to HTCondor; tried until it is there.
async fn host(paths: &GridPaths, shared: &Shared) -> SystemHost {
    loop {
        match system_host(paths) {
            Ok(host) => return host,
            Err(error) => shared.failed(
                Stage::Pool,
                error.to_string(),
                format!("tried again every {} s", RETRY.as_secs()),
            ),
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn system_host(paths: &GridPaths) -> Result<SystemHost, aerie_condor::Error> {
    SystemHost::new(SystemConfig::new(paths.root().join("condor-state")))
}

/// Ends an HTCondor of an earlier start, on a node that leaves before it came as far as to use it.
pub(crate) async fn end_left_over(paths: &GridPaths) {
    let ended = match system_host(paths) {
        Ok(host) => Condor::new(host).leave(LEAVE).await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::warn!(%error, "HTCondor did not end");
    }
}

struct Pool {
    node: Arc<Node>,
    shared: Arc<Shared>,
    condor: Condor<SystemHost>,
    keeper: PrimaryKeeper,
    own: Option<VirtualAddr>,
    known: Vec<Manager>,
    /// Managers whose last probe failed.
    silent: BTreeMap<NodeName, Instant>,
    /// The plan that was applied last, and when that was.
    settled: Option<(Plan, Instant)>,
    next_look: Instant,
    /// Looks in vain since something changed.
    looks: u32,
    retry: Option<Instant>,
    listed: bool,
}

impl Pool {
    fn new(node: Arc<Node>, shared: Arc<Shared>, host: SystemHost) -> Self {
        let before = std::fs::read_to_string(node.paths.primary())
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let now = Instant::now();
        let group = node
            .spec
            .condor
            .prefer_group
            .then(|| node.credential.borrow().group.clone());
        Self {
            keeper: PrimaryKeeper::new(group, before, now),
            condor: Condor::new(host),
            node,
            shared,
            own: None,
            known: Vec::new(),
            silent: BTreeMap::new(),
            settled: None,
            next_look: now,
            looks: 0,
            retry: None,
            listed: false,
        }
    }

    fn next_wake(&self) -> Instant {
        // Without an address there is nothing to apply and nothing to look for.
        let checked = self.settled.as_ref().map(|(_, at)| *at + CHECK);
        let own = self.own.and_then(|_| {
            [Some(self.next_look), self.retry, checked]
                .into_iter()
                .flatten()
                .min()
        });
        [own, self.keeper.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| Instant::now() + POLL)
            .min(Instant::now() + POLL)
    }

    async fn step(&mut self, known: Vec<Manager>) {
        if known != self.known {
            self.known.clone_from(&known);
            self.keeper.managers(known, Instant::now(), &mut rand::rng());
        }
        if self
            .keeper
            .poll_timeout()
            .is_some_and(|due| due <= Instant::now())
        {
            self.probe().await;
        }
        self.report_managers();
        let Some(own) = self.own else { return };
        self.apply(own).await;
        // What keeps a plan from being applied is the reason to show.
        if self.retry.is_none() && self.next_look <= Instant::now() {
            self.look().await;
        }
    }

    /// Asks the primary whether it lives, if it is time; a member that went away makes it time at once.
    async fn probe(&mut self) {
        let now = Instant::now();
        let due = self.keeper.due(now).or_else(|| {
            let primary = self.keeper.primary()?;
            self.known
                .iter()
                .find(|manager| manager.node == *primary)
                .cloned()
        });
        let Some(manager) = due else { return };
        let alive = self.condor.host().port_open(&manager).await;
        if alive {
            self.silent.remove(&manager.node);
        } else {
            self.silent.insert(manager.node.clone(), now);
        }
        self.keeper
            .probed(&manager.node, alive, Instant::now(), &mut rand::rng());
    }

    /// Makes everything due that would be in a while.
    fn look_again(&mut self) {
        self.settled = None;
        self.retry = None;
        self.next_look = Instant::now();
    }

    fn report_managers(&mut self) {
        let primary = self.keeper.primary();
        let reports: Vec<_> = self
            .known
            .iter()
            .map(|manager| ManagerReport {
                node: manager.node.to_string(),
                addr: manager.addr.to_string(),
                group: manager
                    .group
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                primary: Some(&manager.node) == primary,
                alive: !self.silent.contains_key(&manager.node),
            })
            .collect();
        *self.node.managers.lock().unwrap_or_else(PoisonError::into_inner) = reports;
        let known = primary.filter(|primary| self.known.iter().any(|manager| manager.node == **primary));
        match known {
            Some(primary) if self.silent.contains_key(primary) => self.shared.waiting(
                Stage::Managers,
                format!("{primary} does not answer"),
                "another manager is taken if there is one; look after that node",
            ),
            Some(primary) => {
                let others = self.known.len().saturating_sub(1);
                self.shared.done(
                    Stage::Managers,
                    format!("{primary} is primary, {others} more to flock to"),
                );
            }
            None => self.shared.waiting(
                Stage::Managers,
                "no manager has announced itself yet",
                "start a node with the role manager; this node goes on as soon as there is one",
            ),
        }
    }

    async fn apply(&mut self, own: VirtualAddr) {
        let now = Instant::now();
        if self.retry.is_some_and(|retry| retry > now) {
            return;
        }
        let plan = match Plan::new(&self.intent(own)) {
            Ok(plan) => plan,
            Err(error) => {
                self.retry = Some(now + RETRY);
                return self.shared.failed(
                    Stage::Pool,
                    error.to_string(),
                    "what this node was given does not make a pool; mend the blob or the machine",
                );
            }
        };
        let same = self.settled.as_ref().is_some_and(|(settled, _)| *settled == plan);
        let checked = self.settled.as_ref().is_some_and(|(_, at)| *at + CHECK > now);
        if same && checked && self.retry.is_none() {
            return;
        }
        self.retry = None;
        match self.condor.apply(plan.clone()).await {
            Ok(applied) => {
                self.settled = Some((plan, Instant::now()));
                if same && matches!(applied.action, Action::None | Action::Keep) {
                    return;
                }
                tracing::info!(action = ?applied.action, adopted = applied.adopted, "HTCondor configured");
                if let Some(primary) = self.keeper.primary() {
                    // Only a preference: without it the next start draws a manager anew.
                    let _ = std::fs::write(self.node.paths.primary(), primary.as_str());
                }
                self.listed = false;
                self.looks = 0;
                self.next_look = Instant::now() + LOOK_SOON;
            }
            Err(error) => {
                self.shared.failed(
                    Stage::Pool,
                    error.to_string(),
                    "this is tried again every few seconds; 'condor_master' and its log say more",
                );
                self.retry = Some(Instant::now() + RETRY);
            }
        }
    }

    fn intent(&self, own: VirtualAddr) -> Intent {
        let credential = self.node.credential.borrow().clone();
        let condor = self.node.paths.condor();
        Intent {
            grid: credential.grid_name.clone(),
            grid_id: credential.grid,
            node: credential.node.clone(),
            addr: own,
            range: self.node.spec.grid.pool.range(),
            roles: credential.roles,
            group: Some(credential.group.clone()),
            user: Some(credential.user.clone()),
            managers: self.known.clone(),
            primary: self.keeper.primary().cloned(),
            account_groups: BTreeMap::new(),
            version: self.node.version.clone(),
            programs: self.node.programs.clone(),
            credentials: Credentials {
                ca: condor.join("ca.pem"),
                node: Pair {
                    certificate: condor.join("node.pem"),
                    key: condor.join("node.key"),
                },
                user: self.node.has_user_credential().then(|| Pair {
                    certificate: condor.join("user.pem"),
                    key: condor.join("user.key"),
                }),
            },
            layout: Layout::default(),
        }
    }

    /// Looks whether the pool knows this node.
    async fn look(&mut self) {
        let credential = self.node.credential.borrow().clone();
        let fqdn = credential.fqdn();
        let is_manager = credential.roles.contains(Role::Manager);
        let primary = match self.keeper.primary() {
            _ if is_manager => fqdn.clone(),
            Some(primary) => primary.fqdn(&credential.grid_name),
            None => {
                self.shared.waiting(Stage::Pool, "waits for a manager", "");
                self.next_look = Instant::now() + LOOK_LATER;
                return;
            }
        };
        let runs_jobs = credential.roles.contains(Role::Worker) || credential.roles.contains(Role::Submit);
        let (listed, trouble) = if runs_jobs {
            match self.condor.host().is_slot_listed(&fqdn, Some(&primary)).await {
                Ok(listed) => (listed, None),
                Err(error) => (false, Some(error.to_string())),
            }
        } else {
            (self.condor.host().collector_alive(&primary).await, None)
        };
        if listed {
            let what = if runs_jobs { "lists this node" } else { "answers" };
            self.shared.done(Stage::Pool, format!("{primary} {what}"));
        } else {
            let what = match (runs_jobs, self.listed) {
                (true, true) => "does not list this node any more",
                (true, false) => "does not list this node yet",
                (false, true) => "does not answer any more",
                (false, false) => "does not answer yet",
            };
            let hint = match trouble {
                Some(trouble) => trouble,
                None if self.looks < LOOKS_SOON => String::new(),
                None => "look at MasterLog and StartLog below /var/log/condor, here and on that manager"
                    .to_owned(),
            };
            self.shared
                .waiting(Stage::Pool, format!("{primary} {what}"), hint);
        }
        self.looks = if listed { 0 } else { self.looks.saturating_add(1) };
        let pause = match (listed, self.looks) {
            (true, _) => LOOK_LATER,
            (false, ..=LOOKS_SOON) => LOOK_SOON,
            (false, _) => LOOK_PATIENTLY,
        };
        self.listed = listed;
        self.next_look = Instant::now() + pause;
    }

    /// The rest of the daemon has ended: because the node leaves, or without HTCondor's being ended.
    async fn ended(&mut self) {
        if self.shared.is_leaving() {
            self.leave().await;
        }
    }

    async fn leave(&mut self) {
        if let Err(error) = self.condor.leave(LEAVE).await {
            tracing::warn!(%error, "HTCondor did not end");
        }
        self.shared.waiting(Stage::Pool, "left", "");
    }
}
