//! The grid of the demonstration: two groups, three sites behind NATs, eight nodes and a hub.
//!
//! ```text
//!                         hub (enrolment, founder, relay)
//!                          │
//!        ┌─────────────────┼──────────────────────┐            internet
//!   port-restricted   port-restricted          symmetric
//!     physics            chemistry               dorm
//!   m1  s1  w1         m2  w2  w3              w4  w5
//! ```
//!
//! `m` are managers, `s` is the submit node, `w` are workers. w4 belongs to physics, w5 to chemistry. The nodes get
//! their blobs in every form there is. A larger campus ([`Campus::enlarge`]) has more workers, at each site in turn.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::grid::{Delivery, Grid, Join, Member, READY_LIMIT, Status};
use crate::lab::{Lab, Site};
use crate::nat::Nat;
use crate::pool::{Done, Job, JobSpec};

/// The grid's name.
pub const NAME: &str = "campus";

/// The submit node.
pub const SUBMITTER: &str = "s1";

/// The sites, with what their routers do.
const SITES: [(&str, Nat); 3] = [
    ("physics", Nat::PortRestricted),
    ("chemistry", Nat::PortRestricted),
    ("dorm", Nat::Symmetric),
];

/// Nodes that boot and join at a time: more would only wait for each other's processor.
const AT_ONCE: usize = 10;

/// A node of the usual campus: name, site, group, role and how it gets its blob.
const NODES: [(&str, &str, &str, &str, Delivery); 8] = [
    ("m1", "physics", "physics", "manager", Delivery::File),
    ("m2", "chemistry", "chemistry", "manager", Delivery::Zip),
    ("s1", "physics", "physics", "submit", Delivery::Dir),
    ("w1", "physics", "physics", "worker", Delivery::Floppy),
    ("w2", "chemistry", "chemistry", "worker", Delivery::UserData),
    ("w3", "chemistry", "chemistry", "worker", Delivery::File),
    ("w4", "dorm", "physics", "worker", Delivery::File),
    ("w5", "dorm", "chemistry", "worker", Delivery::File),
];

#[derive(Debug, Clone)]
struct Plan {
    name: String,
    site: &'static str,
    group: &'static str,
    role: &'static str,
    delivery: Delivery,
}

fn plans() -> Vec<Plan> {
    let plan = |(name, site, group, role, delivery): (&str, _, _, _, _)| Plan {
        name: name.to_owned(),
        site,
        group,
        role,
        delivery,
    };
    NODES.map(plan).into()
}

/// How far a node is.
#[derive(Debug, Clone)]
pub enum Progress {
    /// The machine boots and is given its blob.
    Booting,
    /// The daemon runs; this is the stage at which it is, and why it is not further.
    Joining(String),
    /// Every stage is done, so long after the daemon's start.
    Ready(Duration),
}

/// The grid with its members.
#[derive(Debug)]
pub struct Campus<'a> {
    /// The grid.
    pub grid: Grid<'a>,
    /// Its sites by name.
    pub sites: BTreeMap<&'static str, Site>,
    /// Its members by name, without the hub.
    pub members: BTreeMap<String, Member>,
    plans: Vec<Plan>,
}

impl<'a> Campus<'a> {
    /// Founds the grid: the hub and the sites.
    ///
    /// # Errors
    /// As [`Grid::found`].
    pub fn found(lab: &'a Lab) -> Result<Self> {
        let grid = Grid::found(lab, NAME, None, &["physics", "chemistry"])?;
        let mut sites = BTreeMap::new();
        for (name, nat) in SITES {
            sites.insert(name, lab.site(name, nat)?);
        }
        Ok(Self {
            grid,
            sites,
            members: BTreeMap::new(),
            plans: plans(),
        })
    }

    /// Adds workers until there are so many machines in all, the hub among them.
    pub fn enlarge(&mut self, machines: usize) {
        let mut sites = SITES.iter().map(|(site, _)| *site).cycle();
        let mut groups = ["physics", "chemistry"].into_iter().cycle();
        while self.plans.len() + 1 < machines
            && let (Some(site), Some(group)) = (sites.next(), groups.next())
        {
            let number = self.workers().count() + 1;
            self.plans.push(Plan {
                name: format!("w{number}"),
                site,
                group,
                role: "worker",
                delivery: Delivery::File,
            });
        }
    }

    /// The names of the nodes with their sites, in the order in which they are shown; the hub is not among them.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.plans.iter().map(|plan| (plan.name.as_str(), plan.site))
    }

    /// The workers.
    pub fn workers(&self) -> impl Iterator<Item = &str> {
        let workers = self.plans.iter().filter(|plan| plan.role == "worker");
        workers.map(|plan| plan.name.as_str())
    }

    /// Lets every node join, ten at once, and waits until all are ready. `progress` is told by several threads.
    ///
    /// # Errors
    /// When a node does not become ready in time; the message holds its stages and the ends of all logs.
    pub fn assemble(&mut self, progress: &(dyn Fn(&str, Progress) + Sync)) -> Result<()> {
        let (grid, sites) = (&self.grid, &self.sites);
        for wave in self.plans.chunks(AT_ONCE) {
            let joined: Result<Vec<_>> = std::thread::scope(|scope| {
                let threads: Vec<_> = wave
                    .iter()
                    .map(|plan| scope.spawn(move || join(grid, sites, plan, progress)))
                    .collect();
                let threads = threads.into_iter().zip(wave);
                threads
                    .map(|(thread, plan)| {
                        let joined = thread
                            .join()
                            .map_err(|_| anyhow!("the thread of a node panicked"))?;
                        Ok((plan.name.clone(), joined?))
                    })
                    .collect()
            });
            self.members.extend(joined?);
        }
        Ok(())
    }

    /// A member by name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn member(&self, name: &str) -> Result<&Member> {
        self.members
            .get(name)
            .with_context(|| format!("there is no member '{name}'"))
    }

    /// Submits, as alice, one job pinned to each worker, and waits for all. Returns what each left, by worker.
    ///
    /// # Errors
    /// When a job cannot be submitted or does not end in time.
    pub fn run_pinned_jobs(&self, round: &str, limit: Duration) -> Result<Vec<(String, Done)>> {
        let submitter = &self.member(SUBMITTER)?.node;
        let start = Instant::now();
        let mut jobs = Vec::new();
        for worker in self.workers() {
            let spec = JobSpec::whereabouts(&format!("{round}-{worker}"), Some(&self.grid.fqdn(worker)));
            jobs.push((worker, Job::submit(submitter, "alice", &spec)?));
        }
        // Side by side, so that each one's time is its own.
        std::thread::scope(|scope| {
            let waits: Vec<_> = jobs
                .iter()
                .map(|(worker, job)| {
                    scope.spawn(move || {
                        Ok((
                            (*worker).to_owned(),
                            job.wait(limit.saturating_sub(start.elapsed()))?,
                        ))
                    })
                })
                .collect();
            waits
                .into_iter()
                .map(|wait| {
                    wait.join()
                        .map_err(|_| anyhow!("a thread that waits for a job panicked"))?
                })
                .collect()
        })
    }
}

fn join(
    grid: &Grid<'_>,
    sites: &BTreeMap<&'static str, Site>,
    plan: &Plan,
    progress: &(dyn Fn(&str, Progress) + Sync),
) -> Result<Member> {
    let name = plan.name.as_str();
    progress(name, Progress::Booting);
    let site = sites
        .get(plan.site)
        .with_context(|| format!("there is no site '{}'", plan.site))?;
    let member = grid.join(&Join::new(name, site, plan.group, plan.role).by(plan.delivery))?;
    let start = Instant::now();
    let ready = |status: &Status| {
        if let Some(stage) = status.pending() {
            progress(
                name,
                Progress::Joining(format!("{} {}", stage.stage, stage.reason)),
            );
        }
        status.ready
    };
    let status = grid.wait_for(&member, READY_LIMIT, "every stage done", ready)?;
    let took = status
        .ready_ms
        .map_or_else(|| start.elapsed(), Duration::from_millis);
    progress(name, Progress::Ready(took));
    Ok(member)
}
