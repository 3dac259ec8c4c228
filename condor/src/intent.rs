//! What this node should be in its grid's pool: the input of a plan.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aerie_types::{GridId, GridName, GroupName, NodeName, Role, Roles, UserName, VirtualAddr, VirtualRange};

use crate::Error;

/// Names of nodes that would collide with the domains of identities (see [`crate::identity`]).
pub(crate) const RESERVED_NODE_NAMES: [&str; 6] = ["manager", "submit", "worker", "client", "relay", "user"];

/// At most so many programs are advertised: each ad is sent every few seconds and kept by every manager.
pub(crate) const MAX_PROGRAMS: usize = 256;

/// Everything that decides how HTCondor is configured on this node.
///
/// Two equal intents give equal plans, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The grid's name: the label below `.grid` in every node's full name.
    pub grid: GridName,
    /// The grid's id; its short form names this grid's files.
    pub grid_id: GridId,
    /// This node's name.
    pub node: NodeName,
    /// The virtual address leased to this node.
    pub addr: VirtualAddr,
    /// The grid's virtual range.
    pub range: VirtualRange,
    /// What this node does.
    pub roles: Roles,
    /// The user group that this node belongs to.
    pub group: Option<GroupName>,
    /// The person that this node belongs to.
    pub user: Option<UserName>,
    /// Every manager known, in any order; may hold this node itself.
    pub managers: Vec<Manager>,
    /// The manager that this node reports to (see [`crate::choose_primary`]). A node that is a manager itself
    /// reports to itself, whatever stands here.
    pub primary: Option<NodeName>,
    /// Groups of local accounts that differ from the node's own group (submit nodes only).
    pub account_groups: BTreeMap<UserName, GroupName>,
    /// The version of the appliance, advertised by every daemon.
    pub version: Program,
    /// Programs installed on this machine, advertised to whoever looks for one.
    pub programs: Vec<Program>,
    /// Where the credentials lie.
    pub credentials: Credentials,
    /// Where HTCondor's files lie.
    pub layout: Layout,
}

impl Intent {
    /// This node's full name, `<node>.<grid>.grid`.
    #[must_use]
    pub fn fqdn(&self) -> String {
        self.node.fqdn(&self.grid)
    }

    /// The role word of this node's certificate: its highest role. `None` for a node without any.
    #[must_use]
    pub fn certificate_role(&self) -> Option<Role> {
        Role::ALL.into_iter().find(|role| self.roles.contains(*role))
    }

    /// Whether this node runs HTCondor's daemons at all.
    #[must_use]
    pub fn wants_daemons(&self) -> bool {
        [Role::Manager, Role::Submit, Role::Worker]
            .into_iter()
            .any(|role| self.roles.contains(role))
    }
}

/// A manager of the grid, as its signed entry in the managers set tells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Manager {
    /// Its name.
    pub node: NodeName,
    /// Its virtual address.
    pub addr: VirtualAddr,
    /// The user group that it belongs to.
    pub group: Option<GroupName>,
}

impl Manager {
    /// Its full name, `<node>.<grid>.grid`: the only form in which HTCondor can check its certificate.
    #[must_use]
    pub fn fqdn(&self, grid: &GridName) -> String {
        self.node.fqdn(grid)
    }
}

/// Files of the credentials that HTCondor uses. The plan names them; whoever enrols the node writes them.
///
/// They may be replaced at any time (atomically, by rename): HTCondor reads them at each handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The grid's CA certificate (PEM, readable by everybody).
    pub ca: PathBuf,
    /// This node's certificate and key (PEM; key owned by root with mode 0600).
    pub node: Pair,
    /// The short-lived certificate and key of ordinary users (PEM; key readable by those who may use the grid).
    /// Without it only root can ask a manager on another node.
    pub user: Option<Pair>,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate (PEM).
    pub certificate: PathBuf,
    /// The key (PEM).
    pub key: PathBuf,
}

/// Where HTCondor's files lie. The default is what Debian's package uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The folder whose files HTCondor reads in the order of their names.
    pub config_dir: PathBuf,
    /// The folder of Aerie's maps; below it a folder per grid.
    pub maps_dir: PathBuf,
    /// Sockets and addresses of running daemons.
    pub run: PathBuf,
    /// Lock files.
    pub lock: PathBuf,
    /// Logs.
    pub log: PathBuf,
    /// The job queue.
    pub spool: PathBuf,
    /// Scratch folders of running jobs.
    pub execute: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            config_dir: "/etc/condor/config.d".into(),
            maps_dir: "/etc/condor/aerie".into(),
            run: "/run/condor".into(),
            lock: "/run/lock/condor".into(),
            log: "/var/log/condor".into(),
            spool: "/var/spool/condor".into(),
            execute: "/var/lib/condor/execute".into(),
        }
    }
}

impl Layout {
    /// The file of `config.d` that holds this grid's whole configuration.
    #[must_use]
    pub fn config_file(&self, grid: GridId) -> PathBuf {
        self.config_dir.join(format!("50-aerie-{}.conf", grid.short()))
    }

    /// The map from certificates to identities.
    #[must_use]
    pub fn identity_map(&self, grid: GridId) -> PathBuf {
        self.maps_dir.join(grid.short()).join("condor.map")
    }

    /// The map from local accounts to user groups.
    #[must_use]
    pub fn group_map(&self, grid: GridId) -> PathBuf {
        self.maps_dir.join(grid.short()).join("groups.map")
    }
}

/// The name of an installed program, or a version: letters, digits, `.`, `_`, `-` and `+`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Program(String);

impl Program {
    /// The longest text allowed, in bytes.
    pub const MAX: usize = 64;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Program {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let right = (1..=Self::MAX).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b));
        if right {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::Program {
                text: text.chars().take(80).collect(),
                max: Self::MAX,
            })
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The path as text, if it can stand in a configuration file: absolute, and no sign that HTCondor reads as a
/// macro, a comment, a list or a new line.
pub(crate) fn config_path(path: &Path) -> Result<&str, Error> {
    path.to_str()
        .filter(|text| {
            text.starts_with('/')
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"/._-+@".contains(&b))
        })
        .ok_or_else(|| Error::Path {
            path: path.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_could_break_out_of_its_line_is_refused() {
        for bad in [
            "/a\nALLOW_WRITE = *",
            "/a $(LOG)",
            "relative/key.pem",
            "/a#b",
            "/a,b",
            "/a\\",
            "/a\"b",
            "",
        ] {
            assert!(config_path(Path::new(bad)).is_err(), "{bad:?}");
        }
        assert!(config_path(Path::new("/var/lib/aerie/0a1b/condor@1.key")).is_ok());
    }

    #[test]
    fn a_program_that_could_break_out_of_its_quotes_is_refused() {
        for bad in ["", "a\"b", "a b", "a,b", "-x", "a\n", "$(LOG)", &"a".repeat(65)] {
            assert!(bad.parse::<Program>().is_err(), "{bad:?}");
        }
        for good in ["gcc", "python3.13", "g++", "R", "0.1.0+git", "libstdc++6"] {
            assert!(good.parse::<Program>().is_ok(), "{good}");
        }
    }

    #[test]
    fn the_certificate_names_the_highest_role() {
        let roles: Roles = "relay,worker,submit".parse().unwrap();
        let highest = Role::ALL.into_iter().find(|role| roles.contains(*role));
        assert_eq!(highest, Some(Role::Submit));
    }
}
