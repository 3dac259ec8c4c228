//! Brings a host to a plan and remembers which one is in force.

use std::time::Duration;

use serde::Serialize;

use crate::Error;
use crate::action::{Action, lightest_action};
use crate::host::{CondorVersion, Host, MasterState, Shutdown};
use crate::knobs::Knobs;
use crate::plan::Plan;

/// How long jobs of this node may take to save themselves when the node no longer runs daemons.
const VACATE: Duration = Duration::from_secs(60);

/// HTCondor on one host, with the plan that is in force.
///
/// One task should own it: applying takes turns.
pub struct Condor<H> {
    host: H,
    /// The plan whose files are in place and whose action succeeded.
    applied: Option<Plan>,
    /// Something failed after files were written: the next attempt does at least a reconfig.
    unfinished: bool,
    version: Option<CondorVersion>,
}

/// What [`Condor::apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// The action taken.
    pub action: Action,
    /// Whether `condor_master` was running before, left by an earlier start of the daemon.
    pub adopted: bool,
}

impl<H: Host> Condor<H> {
    /// HTCondor on this host; nothing is done to it yet.
    pub fn new(host: H) -> Self {
        Self {
            host,
            applied: None,
            unfinished: false,
            version: None,
        }
    }

    /// The host, for questions to the pool.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// The plan in force.
    pub fn applied(&self) -> Option<&Plan> {
        self.applied.as_ref()
    }

    /// Brings the host to the plan with the lightest action that suffices. May be repeated after any failure, and
    /// at any time: with the same plan it starts a `condor_master` that has gone, and does nothing else.
    ///
    /// # Errors
    /// No HTCondor or too old a one, where the plan has daemons; files that cannot be written; a `condor_master`
    /// that does not start or end.
    pub async fn apply(&mut self, plan: Plan) -> Result<Applied, Error> {
        let running = self.host.state().await?.is_up();
        let adopted = running && self.applied.is_none() && !self.unfinished;
        // After a start of the daemon, and after a failure, the files tell what the running daemons have read.
        let old = match &self.applied {
            Some(applied) => Some(applied.clone()),
            None if running => self.on_disk(&plan)?,
            None => None,
        };
        let mut action = lightest_action(old.as_ref(), &plan);
        if running && old.is_none() {
            // Somebody else's configuration: only a restart brings it surely to ours.
            action = if plan.runs() {
                Action::Restart
            } else if plan.waiting.is_some() {
                Action::Keep
            } else {
                Action::Stop
            };
        }
        if (adopted || self.unfinished) && action == Action::None && plan.runs() {
            action = Action::Reconfig;
        }
        if !running && plan.runs() {
            action = Action::Start;
        }
        if action == Action::Keep {
            return Ok(Applied { action, adopted });
        }
        if plan.runs() && self.version.is_none() {
            self.version = Some(self.host.probe().await?);
        }
        if action == Action::Restart {
            // Before the files change: whatever fails from here on, the daemons never run with files that they
            // have not read, and the next attempt finds out what is missing.
            self.host.stop(Shutdown::Fast).await?;
        }
        self.unfinished = true;
        let before = self.applied.take();
        self.put_files(before.as_ref(), &plan)?;
        self.act(action).await?;
        self.applied = Some(plan);
        self.unfinished = false;
        Ok(Applied { action, adopted })
    }

    /// Ends HTCondor when the node leaves the grid. The files stay: they hold no secret.
    ///
    /// # Errors
    /// [`Error::Master`] if it does not end.
    pub async fn leave(&mut self, limit: Duration) -> Result<(), Error> {
        self.host.stop(Shutdown::Graceful(limit)).await?;
        self.applied = None;
        Ok(())
    }

    /// Whether `condor_master` runs.
    ///
    /// # Errors
    /// As [`Host::state`].
    pub async fn state(&self) -> Result<MasterState, Error> {
        self.host.state().await
    }

    /// The plan that the files in place amount to, as far as a comparison needs it.
    fn on_disk(&self, like: &Plan) -> Result<Option<Plan>, Error> {
        let mut found = like.clone();
        found.knobs = Knobs::default();
        found.files.clear();
        for (path, content) in &like.files {
            let Some(bytes) = self.host.read(path)? else {
                return Ok(None);
            };
            if path.extension().is_some_and(|extension| extension == "conf") {
                found.knobs = Knobs::parse(&String::from_utf8_lossy(&bytes));
            }
            let mut content = content.clone();
            content.bytes = bytes;
            found.files.insert(path.clone(), content);
        }
        found.waiting = None;
        if found.daemons.is_empty() {
            found.daemons = vec!["MASTER"];
        }
        Ok(Some(found).filter(|plan| !plan.files.is_empty()))
    }

    fn put_files(&self, before: Option<&Plan>, plan: &Plan) -> Result<(), Error> {
        if plan.runs() {
            self.host.prepare(&plan.folders)?;
        }
        // The file of config.d sorts before the maps that it names, so it is written last.
        for (path, content) in plan.files.iter().rev() {
            if self.host.read(path)?.as_ref() != Some(&content.bytes) {
                self.host.write(path, content)?;
            }
        }
        let gone = before
            .iter()
            .flat_map(|plan| plan.files.keys())
            .filter(|path| !plan.files.contains_key(*path));
        for path in gone {
            self.host.remove(path)?;
        }
        Ok(())
    }

    async fn act(&self, action: Action) -> Result<(), Error> {
        match action {
            Action::None | Action::Keep => Ok(()),
            Action::Reconfig => self.host.reconfig().await,
            Action::Start | Action::Restart => self.host.start().await,
            Action::Stop => self.host.stop(Shutdown::Graceful(VACATE)).await,
        }
    }
}
