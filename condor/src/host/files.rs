//! Files and folders below a root, which is `/` but for tests.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};

use crate::Error;
use crate::plan::{FileContent, Owner};

/// The account of HTCondor's daemons.
const ACCOUNT: &str = "condor";

/// The path below the root.
pub(super) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path, source)),
    }
}

/// Writes a neighbour, makes it durable, and renames it over the file; then makes the name durable.
pub(super) fn write(path: &Path, content: &FileContent) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let fail = |source| failed("write", path, source);
    fs::create_dir_all(folder).map_err(fail)?;
    let mut file = tempfile::Builder::new()
        // HTCondor skips names that begin with a dot, should the power fail before the rename.
        .prefix(".aerie-")
        .tempfile_in(folder)
        .map_err(fail)?;
    file.write_all(&content.bytes).map_err(fail)?;
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(content.mode))
        .map_err(fail)?;
    own(file.path(), content.owner)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|error| fail(error.error))?;
    fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(fail)
}

pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(failed("remove", path, source)),
    }
}

/// Creates a folder if it is missing. One that is there keeps its permissions, but gets its owner: a startd ends
/// at once if it does not own its scratch folder.
pub(super) fn folder(path: &Path, owner: Owner) -> Result<(), Error> {
    let fail = |source| failed("create the folder", path, source);
    if !path.is_dir() {
        fs::create_dir_all(path).map_err(fail)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(fail)?;
    }
    own(path, owner)
}

fn own(path: &Path, owner: Owner) -> Result<(), Error> {
    // Without root's power everything belongs to whoever runs this, who has no other account to give it to.
    if !geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = match owner {
        Owner::Root => (0, 0),
        Owner::Condor => {
            let user = User::from_name(ACCOUNT)
                .ok()
                .flatten()
                .ok_or(Error::NoAccount { name: ACCOUNT })?;
            (user.uid.as_raw(), user.gid.as_raw())
        }
    };
    chown(path, Some(uid), Some(gid)).map_err(|source| failed("give an owner to", path, source))
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_permissions_and_leaves_no_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etc/condor/config.d/50.conf");
        for text in ["one", "two"] {
            let content = FileContent {
                bytes: text.into(),
                mode: 0o644,
                owner: Owner::Root,
            };
            write(&path, &content).unwrap();
            assert_eq!(read(&path).unwrap().unwrap(), text.as_bytes());
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }

    #[test]
    fn a_plans_paths_stay_below_the_root() {
        assert_eq!(
            below(Path::new("/tmp/x"), Path::new("/etc/condor")),
            Path::new("/tmp/x/etc/condor")
        );
        assert_eq!(
            below(Path::new("/"), Path::new("/etc/condor")),
            Path::new("/etc/condor")
        );
    }
}
