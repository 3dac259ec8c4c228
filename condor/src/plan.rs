//! From an intent to files: what HTCondor reads, and which daemons it runs.
//!
//! A plan is complete and self-contained: one file of `config.d` that sets every knob that matters here, whatever
//! the packaged files before it say (the file with the highest number wins for each knob), and the maps that it
//! names. Files of a local administrator that sort after it can still add to it; [`crate::wildcards`] finds out
//! whether they opened a door.
//!
//! A member other than a manager is not started before a manager is known: without one a startd would report to
//! nobody and a schedd would be matched by nobody, and both would look healthy. The plan is then *waiting*, its
//! file describes the tools only, and the next event of the managers set brings a plan that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use aerie_types::{Role, VirtualAddr};

use crate::Error;
use crate::identity;
use crate::intent::{Intent, MAX_PROGRAMS, Manager, config_path};
use crate::knobs::Knobs;
use crate::security;

/// The port of HTCondor's shared port daemon, on which all daemons of a node are reached.
pub(crate) const PORT: u16 = 9618;

/// A submit node flocks to at most so many managers besides its primary: it reports to, and is polled by, each.
pub(crate) const MAX_FLOCK: usize = 16;

/// What a file of a plan holds and how it is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The permission bits.
    pub mode: u32,
    /// The owner of the file and, by its group of the same name, its group.
    pub owner: Owner,
}

/// An owner of files or folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The superuser.
    Root,
    /// The account of HTCondor's daemons.
    Condor,
}

/// Why a member that wants daemons runs none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// No manager is known, or none is chosen as primary.
    NoManager,
}

/// How HTCondor is to be on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The files, by absolute path; empty for a node that has nothing to do with HTCondor.
    pub files: BTreeMap<PathBuf, FileContent>,
    /// The daemons, as HTCondor's `DAEMON_LIST` names them; empty if none is to run.
    pub daemons: Vec<&'static str>,
    /// Why none runs although the roles want some.
    pub waiting: Option<Waiting>,
    /// The knobs of the configuration file.
    pub knobs: Knobs,
    /// The folders that the daemons need.
    pub folders: BTreeMap<PathBuf, Owner>,
    /// `condor_master`'s log.
    pub master_log: PathBuf,
}

impl Plan {
    /// Plans for an intent.
    ///
    /// # Errors
    /// Paths or programs that could be read as more than themselves, an address outside the range, a node named
    /// like a role.
    pub fn new(intent: &Intent) -> Result<Self, Error> {
        check(intent)?;
        let mut plan = Self {
            files: BTreeMap::new(),
            daemons: Vec::new(),
            waiting: None,
            knobs: Knobs::default(),
            folders: BTreeMap::new(),
            master_log: intent.layout.log.join("MasterLog"),
        };
        if !intent.wants_daemons() && !intent.roles.contains(Role::Client) {
            return Ok(plan);
        }
        let pool = Pool::of(intent);
        if intent.wants_daemons() && pool.primary.is_none() {
            plan.waiting = Some(Waiting::NoManager);
        } else {
            plan.daemons = daemons(intent);
        }
        plan.knobs = knobs(intent, &pool, &plan.daemons)?;
        plan.folders = folders(intent)?;
        let header = format!(
            "# Written by aerie for the grid '{}' ({}); changes made here are lost.\n\
             # Put knobs of your own into a file of this folder that sorts after this one.\n",
            intent.grid, intent.grid_id
        );
        let layout = &intent.layout;
        let text = |text: String| FileContent {
            bytes: text.into_bytes(),
            mode: 0o644,
            owner: Owner::Root,
        };
        plan.files.insert(
            layout.config_file(intent.grid_id),
            text(plan.knobs.render(&header)),
        );
        plan.files.insert(
            layout.identity_map(intent.grid_id),
            text(identity::map_file(&intent.grid)),
        );
        if intent.roles.contains(Role::Submit) {
            plan.files
                .insert(layout.group_map(intent.grid_id), text(group_map(intent)));
        }
        Ok(plan)
    }

    /// Whether `condor_master` is to run.
    #[must_use]
    pub fn runs(&self) -> bool {
        !self.daemons.is_empty()
    }
}

fn check(intent: &Intent) -> Result<(), Error> {
    if identity::reserved(&intent.node) {
        return Err(Error::ReservedName {
            node: intent.node.to_string(),
        });
    }
    for addr in intent
        .managers
        .iter()
        .map(|manager| manager.addr)
        .chain([intent.addr])
    {
        if !intent.range.contains(addr) {
            return Err(Error::Address {
                addr: addr.to_string(),
                range: intent.range.to_string(),
            });
        }
    }
    if intent.programs.len() > MAX_PROGRAMS {
        return Err(Error::TooManyPrograms {
            count: intent.programs.len(),
            max: MAX_PROGRAMS,
        });
    }
    Ok(())
}

/// The managers as this node uses them.
struct Pool<'a> {
    /// The full name of the manager that this node reports to.
    primary: Option<String>,
    /// The others that a submit node sends its overflow to: its own group's first.
    flock: Vec<&'a Manager>,
    /// Those whose negotiators may give this node's jobs a machine.
    negotiators: Vec<&'a Manager>,
}

impl<'a> Pool<'a> {
    fn of(intent: &'a Intent) -> Self {
        let itself = intent.roles.contains(Role::Manager).then_some(&intent.node);
        let primary = itself.or_else(|| {
            let chosen = intent.primary.as_ref()?;
            intent
                .managers
                .iter()
                .map(|manager| &manager.node)
                .find(|node| *node == chosen)
        });
        let known: BTreeMap<_, _> = intent
            .managers
            .iter()
            .map(|manager| (&manager.node, manager))
            .collect();
        let mut flock: Vec<_> = known
            .values()
            .filter(|manager| Some(&manager.node) != primary)
            .copied()
            .collect();
        flock.sort_by_key(|manager| (manager.group != intent.group, &manager.node));
        flock.truncate(MAX_FLOCK);
        let negotiators = known
            .values()
            .filter(|manager| Some(&manager.node) == primary || flock.contains(manager))
            .copied()
            .collect();
        Self {
            primary: primary.map(|node| node.fqdn(&intent.grid)),
            flock,
            negotiators,
        }
    }
}

fn daemons(intent: &Intent) -> Vec<&'static str> {
    let has = |role| intent.roles.contains(role);
    let mut list = Vec::new();
    if has(Role::Manager) {
        list.extend(["COLLECTOR", "NEGOTIATOR"]);
    }
    if has(Role::Submit) {
        list.push("SCHEDD");
    }
    if has(Role::Submit) || has(Role::Worker) {
        list.push("STARTD");
    }
    if !list.is_empty() {
        list.insert(0, "MASTER");
    }
    list
}

fn folders(intent: &Intent) -> Result<BTreeMap<PathBuf, Owner>, Error> {
    let layout = &intent.layout;
    [
        (&layout.run, Owner::Condor),
        (&layout.lock, Owner::Condor),
        (&layout.log, Owner::Condor),
        (&layout.spool, Owner::Condor),
        (&layout.execute, Owner::Condor),
        (&layout.config_dir, Owner::Root),
        (&layout.maps_dir, Owner::Root),
    ]
    .into_iter()
    .map(|(path, owner)| config_path(path).map(|_| (path.clone(), owner)))
    .collect()
}

fn knobs(intent: &Intent, pool: &Pool<'_>, daemons: &[&str]) -> Result<Knobs, Error> {
    let mut knobs = Knobs::default();
    node(&mut knobs, intent)?;
    knobs.heading("The daemons of this node's roles, and the manager it reports to.");
    knobs.set("DAEMON_LIST", daemons.join(", "));
    // A name that cannot exist, where no manager is known: an empty one would make the tools ask this node.
    let none = format!("no-manager-known.{}.grid", intent.grid);
    knobs.set("CONDOR_HOST", pool.primary.as_ref().unwrap_or(&none));
    knobs.set("COLLECTOR_HOST", "$(CONDOR_HOST)");
    if intent.roles.contains(Role::Manager) {
        knobs.set("COLLECTOR_NAME", format!("grid {}", intent.grid));
    }
    if intent.roles.contains(Role::Submit) {
        flocking(&mut knobs, intent, pool);
    }
    intervals(&mut knobs);
    security::credentials(&mut knobs, intent)?;
    security::permissions(&mut knobs, intent, &pool.negotiators);
    machine_ads(&mut knobs, intent);
    if intent.roles.contains(Role::Submit) {
        job_identity(&mut knobs, intent)?;
    }
    if daemons.contains(&"STARTD") {
        execution(&mut knobs, intent);
    }
    Ok(knobs)
}

fn node(knobs: &mut Knobs, intent: &Intent) -> Result<(), Error> {
    let fqdn = intent.fqdn();
    knobs.heading(
        "The node inside the grid: its own name and address, whatever the machine is called outside.\n\
         Nothing listens on another address.",
    );
    let VirtualAddr(addr) = intent.addr;
    knobs.set("NETWORK_HOSTNAME", &fqdn);
    knobs.set("NETWORK_INTERFACE", addr.to_string());
    knobs.set_all(&[
        ("BIND_ALL_INTERFACES", "False"),
        ("ENABLE_IPV4", "True"),
        ("ENABLE_IPV6", "False"),
        ("USE_SHARED_PORT", "True"),
        ("WANT_UDP_COMMAND_SOCKET", "False"),
    ]);
    knobs.set("SHARED_PORT_PORT", PORT.to_string());
    knobs.set("COLLECTOR_PORT", PORT.to_string());
    knobs.heading("Accounts and files of this node mean nothing on another one.");
    knobs.set("UID_DOMAIN", &fqdn);
    knobs.set("FILESYSTEM_DOMAIN", &fqdn);
    knobs.set("TRUST_UID_DOMAIN", "False");
    let layout = &intent.layout;
    knobs.heading("Files.");
    for (knob, path) in [
        ("RUN", &layout.run),
        ("LOCK", &layout.lock),
        ("LOG", &layout.log),
        ("SPOOL", &layout.spool),
        ("EXECUTE", &layout.execute),
    ] {
        knobs.set(knob, config_path(path)?);
    }
    knobs.heading("This machine has an owner: no mail, and the kernel keeps its settings.");
    knobs.set_all(&[("MAIL", "/bin/true"), ("ENABLE_KERNEL_TUNING", "False")]);
    Ok(())
}

fn flocking(knobs: &mut Knobs, intent: &Intent, pool: &Pool<'_>) {
    let hosts: Vec<_> = pool
        .flock
        .iter()
        .map(|manager| manager.fqdn(&intent.grid))
        .collect();
    knobs.heading("Jobs that the primary finds no machine for go to all other managers at once.");
    knobs.set("FLOCK_TO", hosts.join(", "));
    knobs.set("FLOCK_INCREMENT", hosts.len().max(1).to_string());
}

/// Intervals that keep the promise of a new match within 30 s of a manager's loss.
///
/// The longest chain is a collector that died and was restarted on the same node, which nobody is told of: 1 s
/// until its master restarts it, up to two UPDATE_INTERVALs until machines and submitters are listed again (the
/// first update is refused, since the new collector does not know the old one's sessions, and is not repeated), and
/// one NEGOTIATOR_INTERVAL until the next cycle.
fn intervals(knobs: &mut Knobs) {
    knobs.heading("A lost or restarted manager costs at most 30 s until the next match.");
    knobs.set_all(&[
        ("UPDATE_INTERVAL", "10"),
        ("SCHEDD_INTERVAL", "10"),
        ("SCHEDD_MIN_INTERVAL", "2"),
        ("MASTER_UPDATE_INTERVAL", "60"),
        ("NEGOTIATOR_INTERVAL", "5"),
        ("NEGOTIATOR_MIN_INTERVAL", "2"),
        ("NEGOTIATOR_CYCLE_DELAY", "2"),
        ("NEGOTIATOR_UPDATE_INTERVAL", "60"),
        ("COLLECTOR_UPDATE_INTERVAL", "60"),
        // Several updates may be lost before a machine is taken for gone. Longer than the masters' interval.
        ("CLASSAD_LIFETIME", "150"),
        ("MASTER_BACKOFF_CONSTANT", "1"),
        ("MASTER_BACKOFF_CEILING", "60"),
    ]);
    knobs.heading(
        "Nothing waits for a manager that is silent. The schedd would block for 40 s to ask a lost negotiator for a\n\
         cycle, which is due within seconds anyway; one that failed is tried again soon after it is back.",
    );
    knobs.set_all(&[
        ("SCHEDD_SEND_RESCHEDULE", "False"),
        ("DEAD_COLLECTOR_MAX_AVOIDANCE_TIME", "20"),
        ("QUERY_TIMEOUT", "10"),
    ]);
    knobs.heading("Frequent ads are kept small: one ad per slot says all, without the daemons' statistics.");
    knobs.set_all(&[
        ("ENABLE_STARTD_DAEMON_AD", "False"),
        ("STATISTICS_TO_PUBLISH", "NONE"),
    ]);
}

fn machine_ads(knobs: &mut Knobs, intent: &Intent) {
    knobs.heading("What the ads tell of this node.");
    let programs: BTreeSet<_> = intent.programs.iter().collect();
    let programs: Vec<_> = programs
        .into_iter()
        .map(|program| format!("\"{program}\""))
        .collect();
    knobs.set("AerieVersion", format!("\"{}\"", intent.version));
    knobs.set("AeriePrograms", format!("{{ {} }}", programs.join(", ")));
    let mut attributes = "AerieVersion";
    let mut machine = "AerieVersion, AeriePrograms".to_owned();
    if let Some(group) = &intent.group {
        knobs.set("GridGroup", format!("\"{group}\""));
        attributes = "AerieVersion, GridGroup";
        machine.push_str(", GridGroup");
    }
    if let Some(user) = &intent.user {
        knobs.set("GridOwner", format!("\"{user}\""));
        machine.push_str(", GridOwner");
    }
    for subsystem in ["MASTER", "SCHEDD", "COLLECTOR", "NEGOTIATOR"] {
        knobs.set(format!("{subsystem}_ATTRS"), attributes);
    }
    knobs.set("STARTD_ATTRS", machine);
}

/// Stamps each job with who submitted it, beyond the reach of the submitter.
fn job_identity(knobs: &mut Knobs, intent: &Intent) -> Result<(), Error> {
    let map = intent.layout.group_map(intent.grid_id);
    knobs.heading("Every job names its submitter and that person's group; neither can be forged or changed.");
    knobs.set("SCHEDD_CLASSAD_USER_MAP_NAMES", "AerieGroups");
    knobs.set("CLASSAD_USER_MAPFILE_AerieGroups", config_path(&map)?);
    knobs.set("JOB_TRANSFORM_NAMES", "AerieIdentity");
    knobs.set(
        "JOB_TRANSFORM_AerieIdentity",
        "EVALSET GridUser = User\nEVALSET GridGroup = userMap(\"AerieGroups\", Owner, undefined, \"nogroup\")",
    );
    knobs.set("IMMUTABLE_JOB_ATTRS", "GridUser GridGroup");
    knobs.heading("Files travel with the job unless its author says otherwise: nodes share no file system.");
    knobs.set("SUBMIT_DEFAULT_SHOULD_TRANSFER_FILES", "YES");
    Ok(())
}

fn execution(knobs: &mut Knobs, intent: &Intent) {
    knobs.heading(
        "Jobs run in slots cut to their size, under an account that owns nothing, even those of local users.",
    );
    knobs.set_all(&[
        ("NUM_SLOTS", "1"),
        ("NUM_SLOTS_TYPE_1", "1"),
        ("SLOT_TYPE_1", "100%"),
        ("SLOT_TYPE_1_PARTITIONABLE", "True"),
        ("STARTER_ALLOW_RUNAS_OWNER", "False"),
        ("START", "True"),
    ]);
    // A domain of its own, so that a job of this very node transfers its files too: its account could not read
    // them in place.
    knobs.set("STARTD.FILESYSTEM_DOMAIN", format!("execute.{}", intent.fqdn()));
    knobs.set("STARTER.FILESYSTEM_DOMAIN", format!("execute.{}", intent.fqdn()));
}

/// The groups of local accounts: those named, then everybody else's, the node's own.
fn group_map(intent: &Intent) -> String {
    let mut text = String::from("# Written by aerie. The user group of each local account.\n");
    for (user, group) in &intent.account_groups {
        text.push_str(&format!("* {user} {group}\n"));
    }
    if let Some(group) = &intent.group {
        text.push_str(&format!("* /.*/ {group}\n"));
    }
    text
}
