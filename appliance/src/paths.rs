//! Where things live on a machine. Everything below is keyed by grid, since a machine may belong to several.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aerie_types::GridId;

/// Default folder of what must survive a restart.
pub(crate) const STATE_DIR: &str = "/var/lib/aerie";
/// Default folder of control sockets.
pub(crate) const RUN_DIR: &str = "/run/aerie";
/// Default folder of a grid's CA and its enrolment database.
pub(crate) const PORTAL_DIR: &str = "/var/lib/aerie-portal";
/// Default folder of a context broker's keys and database.
pub(crate) const CONTEXT_DIR: &str = "/var/lib/aerie-context";
/// In it, what somebody needs who creates contexts.
pub(crate) const CONTEXT_BROKER: &str = "/var/lib/aerie-context/broker.json";

/// Where `aerie join` puts the blob.
pub(crate) const BLOB: &str = "/etc/aerie/blob";
/// The file in a grid's folder by which `aerie join` remembers where it put the blob.
pub(crate) const JOINED: &str = "joined";
/// The configuration of this node in a grid, as it was found.
pub(crate) const SPEC: &str = "aerie.toml";

/// The folders of one grid on this machine.
#[derive(Debug, Clone)]
pub(crate) struct GridPaths {
    root: PathBuf,
}

impl GridPaths {
    pub(crate) fn new(state_dir: &Path, grid: GridId) -> Self {
        Self {
            root: grids_dir(state_dir).join(grid.to_string()),
        }
    }

    /// Makes the grid's folder. HTCondor's daemons and tools run as other users and must reach what is theirs in it:
    /// the folder and the two above are passable, and nothing in them but [`Self::condor`] can be listed. A state
    /// folder that was there already keeps its mode: it may be somebody's home.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        let grids = self.root.parent().unwrap_or(&self.root);
        if let Some(state) = grids.parent()
            && !state.exists()
        {
            std::fs::create_dir_all(state)?;
            std::fs::set_permissions(state, Permissions::from_mode(0o711))?;
        }
        std::fs::create_dir_all(self.condor())?;
        std::fs::set_permissions(self.condor(), Permissions::from_mode(0o755))?;
        for folder in [grids, &self.root] {
            std::fs::set_permissions(folder, Permissions::from_mode(0o711))?;
        }
        Ok(())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The configuration that this node was given, kept so that a restart needs no blob.
    pub(crate) fn spec(&self) -> PathBuf {
        self.root.join(SPEC)
    }

    /// Where `aerie join` put the blob; absent where it did not.
    pub(crate) fn joined(&self) -> PathBuf {
        self.root.join(JOINED)
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// The overlay credential (DER).
    pub(crate) fn credential(&self) -> PathBuf {
        self.root.join("overlay.der")
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.root.join("ca.pem")
    }

    pub(crate) fn revocations(&self) -> PathBuf {
        self.root.join("revocations")
    }

    /// What HTCondor reads: certificate, key and CA.
    pub(crate) fn condor(&self) -> PathBuf {
        self.root.join("condor")
    }

    /// The lease register's database.
    pub(crate) fn register(&self) -> PathBuf {
        self.root.join("register.sqlite")
    }

    /// The manager that this node reported to last.
    pub(crate) fn primary(&self) -> PathBuf {
        self.root.join("primary")
    }

    /// Addresses at which members were reached before.
    pub(crate) fn peers(&self) -> PathBuf {
        self.root.join("peers")
    }
}

pub(crate) fn grids_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("grids")
}

/// The control socket of the daemon that serves a grid.
pub(crate) fn control_socket(run_dir: &Path, grid: GridId) -> PathBuf {
    run_dir.join(format!("{}.sock", grid.short()))
}

/// The control socket of a daemon that has no grid yet. Several may wait, each for its own.
pub(crate) fn waiting_socket(run_dir: &Path) -> PathBuf {
    run_dir.join(format!("waiting-{}.sock", std::process::id()))
}

/// Every control socket at which a daemon answers, in the order of their names. A daemon that was killed leaves its
/// socket's file behind.
pub(crate) fn control_sockets(run_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(run_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut sockets: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "sock"))
        .filter(|path| is_answered(path))
        .collect();
    sockets.sort();
    Ok(sockets)
}

/// Whether somebody listens; a daemon that this user may not speak to is there all the same.
fn is_answered(socket: &Path) -> bool {
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::ConnectionRefused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_users_reach_what_htcondor_reads_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let paths = GridPaths::new(&dir.path().join("aerie"), GridId([7; 16]));
        paths.prepare().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for folder in paths.root().ancestors().take(3) {
            assert_eq!(mode(folder), 0o711, "{}", folder.display());
        }
        assert_eq!(mode(&paths.condor()), 0o755);
    }

    #[test]
    fn a_state_folder_that_is_somebodys_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        GridPaths::new(dir.path(), GridId([7; 16])).prepare().unwrap();
        let mode = std::fs::metadata(dir.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
