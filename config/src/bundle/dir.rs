//! Directories: the form for bare metal.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use super::{Bundle, Form, MAX_FILE_BYTES, MAX_FILES, SPEC_FILE, names, read_bounded};
use crate::error::Error;

/// How many entries of a directory are looked at: one with more is no blob.
const MAX_ENTRIES: usize = 256;

impl Bundle {
    /// Writes the files into a directory, which is made if need be (mode 0700; files 0600).
    ///
    /// Each file is replaced atomically and the spec last, so that a reader never sees half a bundle.
    ///
    /// # Errors
    /// [`Error::Io`] naming the path; [`Error::NoSpec`] without a spec.
    pub fn to_dir(&self, dir: &Path) -> Result<(), Error> {
        self.require_spec(Form::Directory)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(Error::io(format!("make the folder {}", dir.display())))?;
        let (spec, extras): (Vec<_>, Vec<_>) = self.files().partition(|(name, _)| *name == SPEC_FILE);
        for (name, bytes) in extras.into_iter().chain(spec) {
            let path = dir.join(name);
            write_atomically(dir, &path, bytes).map_err(Error::io(format!("write {}", path.display())))?;
        }
        Ok(())
    }

    /// Reads the files of a directory. Sub-folders, hidden files and whatever is no regular file are left out.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::FileName`], [`Error::TooLarge`], [`Error::NoSpec`].
    pub fn from_dir(dir: &Path) -> Result<Self, Error> {
        let reading = || Error::io(format!("read the folder {}", dir.display()));
        let mut files = Vec::new();
        // One more than are looked at, so that too many can be told from enough.
        for entry in fs::read_dir(dir).map_err(reading())?.take(MAX_ENTRIES + 1) {
            let entry = entry.map_err(reading())?.file_name();
            let name = entry.to_string_lossy().into_owned();
            let path = dir.join(entry);
            if !names::is_clutter(&name) && fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
                files.push((name, path));
            }
        }
        files.sort();
        names::require_spec(Form::Directory, files.iter().map(|(name, _)| name.as_str()))?;
        if files.len() > MAX_FILES {
            return Err(Error::TooManyFiles);
        }
        let mut bundle = Self::default();
        for (name, path) in files {
            let contents = File::open(&path)
                .and_then(|file| read_bounded(file, MAX_FILE_BYTES))
                .map_err(Error::io(format!("read {}", path.display())))?;
            let contents = contents.ok_or_else(|| Error::TooLarge {
                what: format!("the file {}", path.display()),
                limit: MAX_FILE_BYTES as u64,
                advice: "take it out of the folder",
            })?;
            bundle.add(&name, contents)?;
        }
        Ok(bundle)
    }
}

fn write_atomically(dir: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // Hidden, so that a reader leaves out what a crash left behind.
    let mut file = tempfile::Builder::new()
        .prefix(".aerie-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}
