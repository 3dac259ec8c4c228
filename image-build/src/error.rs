//! What can go wrong while packages and images are made.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why a package or an image was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {what} {path}: {source}; check its owner and the space left on its disk")]
    File {
        /// What was to be done, as in "cannot read".
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A manifest names a path that begins at no root.
    #[error("{path} in the manifest of {package} is not an absolute path; write it as it is on the machine")]
    Relative {
        /// The path.
        path: PathBuf,
        /// The package.
        package: &'static str,
    },
    /// A program is absent.
    #[error("cannot run {program}: {source}; as root: apt-get install {package}")]
    Program {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{program} ended with {status}: {said}")]
    Refused {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote about it.
        said: String,
    },
    /// A version that Debian does not take.
    #[error(
        "'{version}' is no version of a Debian package: it begins with a digit and has only letters, digits and .+~"
    )]
    Version {
        /// The text.
        version: String,
    },
    /// A program printed something else than was expected of it.
    #[error("{program} printed '{said}', which is not what was expected; is it of Debian 12 or later?")]
    Answer {
        /// The program.
        program: &'static str,
        /// What it printed.
        said: String,
    },
    /// Programs that an image needs are absent.
    #[error("not installed: {programs}; as root: apt-get install {packages}")]
    Tools {
        /// The programs, parted by commas.
        programs: String,
        /// The Debian packages that have them, parted by spaces.
        packages: String,
    },
    /// No folder for what is kept between builds.
    #[error("no place for the cache: set AERIE_CACHE to a folder, or name one with --cache")]
    Cache,
    /// A manifest or a lock file cannot be understood.
    #[error("{path}: {reason}")]
    Manifest {
        /// The file, or the name of a built-in manifest.
        path: PathBuf,
        /// What is wrong in it, and where.
        reason: String,
    },
    /// No built-in manifest has this name.
    #[error("there is no manifest '{name}': neither a file nor built in; built in are {known}")]
    NoManifest {
        /// The name.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// A lock file and what is asked for do not belong together.
    #[error("the lock does not fit: {reason}; write another one with 'aerie image lock'")]
    Lock {
        /// What differs.
        reason: String,
    },
    /// A package cannot be fetched as it is locked.
    #[error(
        "cannot fetch {package} from {uri}: {said}; if the archive has a newer version by now, write another lock \
         with 'aerie image lock', or name an archive that keeps old ones with --mirror"
    )]
    Fetch {
        /// Name and version.
        package: String,
        /// Where it was looked for.
        uri: String,
        /// What was said about it.
        said: String,
    },
    /// The partition table or the EFI system partition cannot be written.
    #[error("cannot write the {part} of {path}: {reason}")]
    Disk {
        /// The part of the disk.
        part: &'static str,
        /// The disk.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Two builds of the same inputs differ.
    #[error("two builds of the same inputs differ: {difference}")]
    Differs {
        /// The first differences.
        difference: String,
    },
}

impl Error {
    /// For `map_err`: what could not be done with which file.
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            what,
            path: path.to_owned(),
            source,
        }
    }
}
