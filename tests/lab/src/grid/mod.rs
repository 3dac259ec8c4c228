//! A grid in a lab, built through the `aerie` command alone, as a person would.
//!
//! One node on the internet, the *hub*, has the grid's CA, serves enrolment and is the grid's first member and
//! relay. Every other node gets a blob made there, in one of the forms in which a machine can be given one, and
//! runs the daemon. Nothing here knows more of Aerie than its command line and its JSON.

mod join;
mod member;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::{Lab, Place};
use crate::metadata::Metadata;
use crate::node::Node;
use crate::service::Service;

pub use join::{Delivery, Join};
pub use member::{Manager, Member, Peer, Stage, Status};

/// The path of the program in each node.
pub const AERIE: &str = "/usr/bin/aerie";

/// The hub's name.
pub const HUB: &str = "hub";

/// The folder of the grid's CA and database on the hub.
pub const PORTAL_DIR: &str = "/var/lib/aerie-portal";

/// The daemon's overlay port, as shipped.
const OVERLAY_PORT: u16 = 4001;

/// The enrolment service's port.
const PORTAL_PORT: u16 = 8443;

/// How long a join may take before a test gives it up; the promise is much shorter.
pub const READY_LIMIT: Duration = Duration::from_secs(90);

/// Where the `aerie` program under test is: `$AERIE_BIN`, else `debug/aerie` of the folder in which cargo built
/// the running program.
///
/// # Errors
/// When there is none.
pub fn aerie_binary() -> Result<PathBuf> {
    let path = match std::env::var_os("AERIE_BIN").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => {
            // <target>/<profile>/deps/<test> or <target>/<profile>/<program>
            let own = std::env::current_exe()?;
            let folders = own.ancestors().skip(1);
            let found = folders
                .take(2)
                .map(|folder| folder.join("aerie"))
                .find(|path| path.is_file());
            found.context("no aerie program is built; run 'cargo build -p aerie' or set AERIE_BIN")?
        }
    };
    ensure!(path.is_file(), "there is no aerie program at {}", path.display());
    Ok(path)
}

/// A grid.
#[derive(Debug)]
pub struct Grid<'a> {
    lab: &'a Lab,
    /// Its name.
    pub name: String,
    /// The member that serves enrolment, founder and relay.
    pub hub: Member,
    portal: Mutex<Service>,
    clouds: Mutex<BTreeMap<String, Metadata>>,
}

impl<'a> Grid<'a> {
    /// Boots the hub, creates the grid with its groups, serves enrolment, and starts the hub's daemon as founder.
    /// Returns when the hub has its address.
    ///
    /// # Errors
    /// When a command fails or the hub does not get so far; the message holds the ends of the logs.
    pub fn found(lab: &'a Lab, name: &str, range: Option<&str>, groups: &[&str]) -> Result<Self> {
        let options: Vec<&str> = range.into_iter().flat_map(|range| ["--range", range]).collect();
        let grid = Self::create(lab, name, &options, groups)?;
        grid.wait_for(&grid.hub, READY_LIMIT, "its address", |status| {
            status.addr.is_some()
        })?;
        Ok(grid)
    }

    /// As [`Grid::found`], with other options of `aerie grid create`. Does not wait for the hub.
    ///
    /// # Errors
    /// When a command fails; the message holds the ends of the logs.
    pub fn create(lab: &'a Lab, name: &str, options: &[&str], groups: &[&str]) -> Result<Self> {
        let node = lab.node(HUB, Place::Internet)?;
        let mut create = vec![AERIE, "grid", "create", name, "--dir", PORTAL_DIR];
        create.extend(options);
        node.run("root", &create)?;
        for group in groups {
            node.run(
                "root",
                &[AERIE, "grid", "group", "add", group, "--dir", PORTAL_DIR],
            )?;
        }
        let portal = serve_portal(&node)?;
        let group = groups.first().context("a grid needs a group for its hub")?;
        let blob = "/root/hub.toml";
        make_blob(&node, group, "relay", HUB, "toml", blob, false)?;
        let external = node.addr().to_string();
        let argv = [
            AERIE,
            "up",
            "--config",
            blob,
            "--founder",
            "--external",
            &external,
        ]
        .map(str::to_owned);
        let hub = Member::new(node, argv.into(), Vec::new());
        hub.start()?;
        Ok(Self {
            lab,
            name: name.to_owned(),
            hub,
            portal: Mutex::new(portal),
            clouds: Mutex::default(),
        })
    }

    /// A node's full name.
    #[must_use]
    pub fn fqdn(&self, node: &str) -> String {
        format!("{node}.{}.grid", self.name)
    }

    /// Boots a node, gives it a blob and starts its daemon. Does not wait for it.
    ///
    /// # Errors
    /// When a command fails.
    pub fn join(&self, join: &Join) -> Result<Member> {
        let member = self.prepare(join)?;
        member.start()?;
        Ok(member)
    }

    /// As [`Grid::join`], for a node that is booted already.
    ///
    /// # Errors
    /// When a command fails.
    pub fn join_node(&self, node: Node, join: &Join) -> Result<Member> {
        let member = self.prepare_node(node, join)?;
        member.start()?;
        Ok(member)
    }

    /// Boots a node and gives it a blob. Its daemon is left to be started, with many others at once or later.
    ///
    /// # Errors
    /// When a command fails.
    pub fn prepare(&self, join: &Join) -> Result<Member> {
        let node = self.lab.node(&join.name, join.place.clone())?;
        self.prepare_node(node, join)
    }

    fn prepare_node(&self, node: Node, join: &Join) -> Result<Member> {
        let form = match join.delivery {
            Delivery::File => "toml",
            Delivery::Zip => "zip",
            Delivery::Dir => "dir",
            Delivery::Floppy => "floppy",
            Delivery::UserData => "user-data",
        };
        let made = format!("/root/{}.{form}", join.name);
        make_blob(
            &self.hub.node,
            &join.group,
            &join.roles,
            &join.name,
            form,
            &made,
            true,
        )?;
        let mut argv = vec![AERIE.to_owned(), "up".to_owned()];
        match join.delivery {
            Delivery::File | Delivery::Zip => {
                node.put("/etc/aerie/blob", &self.hub.node.get(&made)?)?;
                argv.extend(["--config", "/etc/aerie/blob"].map(str::to_owned));
            }
            Delivery::Dir => {
                let names = self.hub.node.run("root", &["ls", &made])?;
                for name in names.lines() {
                    let bytes = self.hub.node.get(&format!("{made}/{name}"))?;
                    node.put(&format!("/etc/aerie/blob.d/{name}"), &bytes)?;
                }
                argv.extend(["--config", "/etc/aerie/blob.d"].map(str::to_owned));
            }
            Delivery::Floppy => {
                node.put("/var/lib/floppy.img", &self.hub.node.get(&made)?)?;
                argv.extend(["--floppy", "/var/lib/floppy.img"].map(str::to_owned));
            }
            Delivery::UserData => {
                let bytes = self.hub.node.get(&made)?;
                let mut clouds = self.clouds.lock().unwrap_or_else(PoisonError::into_inner);
                // One service a place: a place is told by its gateway.
                let key = join.place.key();
                if !clouds.contains_key(&key) {
                    clouds.insert(key.clone(), self.lab.metadata(join.place.clone())?);
                }
                if let Some(cloud) = clouds.get(&key) {
                    cloud.set_user_data(node.addr(), bytes);
                }
            }
        }
        argv.extend(join.options.iter().cloned());
        Ok(Member::new(node, argv, join.env.clone()))
    }

    /// Waits until a member's status is as wished. A failure tells the stages that are not done and the ends of
    /// all logs.
    ///
    /// # Errors
    /// When the time ran out, or the member's daemon ended.
    pub fn wait_for(
        &self,
        member: &Member,
        limit: Duration,
        what: &str,
        wished: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let name = member.node.name();
        self.lab.wait_until(limit, &format!("{name} to have {what}"), || {
            let status = member.status()?;
            if wished(&status) {
                return Ok(Some(status));
            }
            Err(anyhow::anyhow!("{}", status.summary()))
        })
    }

    /// Waits until every one of the members is ready.
    ///
    /// # Errors
    /// As [`Grid::wait_for`].
    pub fn wait_ready<'m>(&self, members: impl IntoIterator<Item = &'m Member>) -> Result<()> {
        for member in members {
            self.wait_for(member, READY_LIMIT, "every stage done", |status| status.ready)?;
        }
        Ok(())
    }

    /// Makes a blob, in a form of `aerie grid blob`, for a node that is to join by other means than [`Grid::join`].
    ///
    /// # Errors
    /// When the command fails.
    pub fn blob(&self, group: &str, roles: &str, name: &str, form: &str) -> Result<Vec<u8>> {
        let made = format!("/root/{name}.{form}");
        make_blob(&self.hub.node, group, roles, name, form, &made, true)?;
        self.hub.node.get(&made)
    }

    /// Revokes a node's credentials.
    ///
    /// # Errors
    /// When the command fails.
    pub fn revoke(&self, name: &str) -> Result<()> {
        self.hub.node.run(
            "root",
            &[AERIE, "grid", "revoke", "node", name, "--dir", PORTAL_DIR],
        )?;
        Ok(())
    }

    /// What the enrolment service has logged since its last start.
    #[must_use]
    pub fn portal_log(&self) -> String {
        self.portal.lock().unwrap_or_else(PoisonError::into_inner).log()
    }

    /// Ends the enrolment service.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_portal(&self) -> Result<()> {
        self.portal.lock().unwrap_or_else(PoisonError::into_inner).kill9()
    }

    /// Serves enrolment again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_portal(&self) -> Result<()> {
        let portal = serve_portal(&self.hub.node)?;
        *self.portal.lock().unwrap_or_else(PoisonError::into_inner) = portal;
        Ok(())
    }
}

fn serve_portal(hub: &Node) -> Result<Service> {
    let (listen, san) = (format!("0.0.0.0:{PORTAL_PORT}"), hub.addr().to_string());
    let argv = [
        AERIE, "portal", "serve", "--dir", PORTAL_DIR, "--listen", &listen, "--san", &san,
    ];
    hub.spawn("root", "portal", &argv, &[])
}

fn make_blob(
    hub: &Node,
    group: &str,
    roles: &str,
    name: &str,
    form: &str,
    out: &str,
    bootstrap: bool,
) -> Result<()> {
    let ip = hub.addr();
    let url = format!("https://{ip}:{PORTAL_PORT}");
    let entries = [
        format!("/ip4/{ip}/udp/{OVERLAY_PORT}/quic-v1"),
        format!("/ip4/{ip}/tcp/{OVERLAY_PORT}"),
    ];
    let mut argv = vec![
        AERIE, "grid", "blob", "--dir", PORTAL_DIR, "--group", group, "--role", roles,
    ];
    argv.extend([
        "--user", "alice", "--name", name, "--url", &url, "--as", form, "--out", out,
    ]);
    if bootstrap {
        argv.extend(entries.iter().flat_map(|entry| ["--bootstrap", entry]));
    }
    hub.run("root", &argv).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_names_the_stage_at_which_a_node_is() {
        let text = r#"{"node": "w1", "addr": null, "ready": false, "stages": [
            {"stage": "source", "state": "done", "ms": 12},
            {"stage": "tunnel", "state": "off", "ms": null},
            {"stage": "certificate", "state": "waiting", "ms": null, "reason": "no answer", "hint": "look"}]}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert_eq!(status.pending().unwrap().stage, "certificate");
        assert_eq!(status.summary(), "certificate waiting: no answer (look)");
    }

    #[test]
    fn a_wrong_clock_leaves_monotonic_time_alone() {
        let join = Join::new("w1", Place::Internet, "chem", "worker").clock("+1d");
        assert!(
            join.env
                .iter()
                .any(|(key, value)| key == "FAKETIME_DONT_FAKE_MONOTONIC" && value == "1")
        );
    }
}
