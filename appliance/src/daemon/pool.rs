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
    Condor, Credentials, Host, Intent, Layout, Manager, Pair, Plan, PrimaryKeeper, SystemConfig, SystemHost,
};
use aerie_types::{NodeName, Role, VirtualAddr};
use tokio::sync::watch;

use super::node::Node;
use super::shared::Shared;
use crate::status::{ManagerReport, Stage};

/// How often the collector is asked while this node is not listed yet.
const LOOK_SOON: Duration = Duration::from_millis(500);
/// How often it is asked afterwards: each look runs a tool.
const LOOK_LATER: Duration = Duration::from_secs(60);
/// The paper's poll, as the fallback beside events (seed 004, III-B); without any manager it is 60 s there.
const POLL: Duration = Duration::from_secs(60);
/// How soon a plan that could not be applied is tried again.
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
    let host = match SystemHost::new(SystemConfig::new(node.paths.root().join("condor-state"))) {
        Ok(host) => host,
        Err(error) => {
            shared.failed(Stage::Pool, error.to_string(), "");
            return;
        }
    };
    let before = std::fs::read_to_string(node.paths.primary())
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let now = Instant::now();
    let group = node
        .spec
        .condor
        .prefer_group
        .then(|| node.credential.borrow().group.clone());
    let mut pool = Pool {
        keeper: PrimaryKeeper::new(group, before, now),
        condor: Condor::new(host),
        node,
        shared,
        known: Vec::new(),
        silent: BTreeMap::new(),
        next_look: now,
        retry: None,
        listed: false,
    };
    loop {
        let known = managers.borrow_and_update().clone();
        let own = *addr.borrow_and_update();
        pool.step(own, known).await;
        let until = tokio::time::Instant::from_std(pool.next_wake());
        tokio::select! {
            changed = managers.changed() => if changed.is_err() { return },
            changed = addr.changed() => if changed.is_err() { return },
            () = pool.node.member_gone.notified() => pool.probe().await,
            () = pool.shared.leave_asked() => return pool.leave().await,
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

struct Pool {
    node: Arc<Node>,
    shared: Arc<Shared>,
    condor: Condor<SystemHost>,
    keeper: PrimaryKeeper,
    known: Vec<Manager>,
    /// Managers whose last probe failed.
    silent: BTreeMap<NodeName, Instant>,
    next_look: Instant,
    retry: Option<Instant>,
    listed: bool,
}

impl Pool {
    fn next_wake(&self) -> Instant {
        [Some(self.next_look), self.retry, self.keeper.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.next_look)
            .min(Instant::now() + POLL)
    }

    async fn step(&mut self, own: Option<VirtualAddr>, known: Vec<Manager>) {
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
        let Some(own) = own else { return };
        self.apply(own).await;
        if self.next_look <= Instant::now() {
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
        match primary {
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
        if self.retry.is_some_and(|retry| retry > Instant::now()) {
            return;
        }
        let plan = match Plan::new(&self.intent(own)) {
            Ok(plan) => plan,
            Err(error) => return self.shared.failed(Stage::Pool, error.to_string(), ""),
        };
        self.retry = None;
        let same = self.condor.applied() == Some(&plan);
        match self.condor.apply(plan).await {
            Ok(applied) if !same => {
                tracing::info!(action = ?applied.action, adopted = applied.adopted, "HTCondor configured");
                if let Some(primary) = self.keeper.primary() {
                    // Only a preference: without it the next start draws a manager anew.
                    let _ = std::fs::write(self.node.paths.primary(), primary.as_str());
                }
                self.listed = false;
                self.next_look = Instant::now() + LOOK_SOON;
            }
            Ok(_) => {}
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
            range: self.node.spec.grid.range,
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
                self.next_look = Instant::now() + LOOK_SOON;
                return;
            }
        };
        if self.retry.is_some() {
            self.next_look = Instant::now() + RETRY;
            return;
        }
        let runs_jobs = credential.roles.contains(Role::Worker) || credential.roles.contains(Role::Submit);
        let listed = if runs_jobs {
            self.condor
                .host()
                .is_slot_listed(&fqdn, Some(&primary))
                .await
                .unwrap_or(false)
        } else {
            self.condor.host().collector_alive(&primary).await
        };
        if listed {
            let what = if runs_jobs {
                format!("{primary} lists this node")
            } else {
                format!("{primary} answers")
            };
            self.shared.done(Stage::Pool, what);
        } else if self.listed {
            self.shared.waiting(
                Stage::Pool,
                format!("{primary} does not list this node any more"),
                "",
            );
        } else {
            let what = if runs_jobs {
                "does not list this node yet"
            } else {
                "does not answer yet"
            };
            self.shared.waiting(Stage::Pool, format!("{primary} {what}"), "");
        }
        self.listed = listed;
        self.next_look = Instant::now() + if listed { LOOK_LATER } else { LOOK_SOON };
    }

    async fn leave(&mut self) {
        if let Err(error) = self.condor.leave(LEAVE).await {
            tracing::warn!(%error, "HTCondor did not end");
        }
        self.shared.waiting(Stage::Pool, "left", "");
    }
}
