//! What can be wrong with a blob, and what to do about it.

use std::fmt;
use std::io;

use crate::bundle::{Form, MAX_FILES, MAX_NAME_BYTES, MAX_USER_DATA_BYTES, SPEC_FILE};
use crate::spec::VERSION;

/// Why a bundle or a spec could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spec has mistakes; each is listed with its line.
    #[error("{0}")]
    Spec(Problems),
    /// The spec is of a version that this program does not know.
    #[error(
        "aerie.toml has version {found}, but this program reads version {VERSION}: \
         install the release of aerie that the blob was made for, or have the blob made anew"
    )]
    Version {
        /// The version that the spec states.
        found: i64,
    },
    /// The spec is not UTF-8 text.
    #[error("aerie.toml is not UTF-8 text: save it as plain text in UTF-8")]
    NotText,
    /// A carrier that is well formed but holds no spec.
    #[error("the {form} has no file {SPEC_FILE}: {holds}; put the blob's files at its top level")]
    NoSpec {
        /// What was read.
        form: Form,
        /// What it holds instead.
        holds: String,
    },
    /// There are no bytes at all.
    #[error("the {form} is empty (0 bytes): write the blob to it again")]
    Empty {
        /// What was read.
        form: Form,
    },
    /// A disk or image without a FAT file system.
    #[error(
        "the floppy has no FAT file system: {reason}; make it with 'aerie grid blob --as floppy' or 'mformat'"
    )]
    NotFat {
        /// What stands there instead.
        reason: String,
    },
    /// A carrier that ends before it should.
    #[error("the {form} is cut off: it has {have} bytes and should have {want}; copy it again in full")]
    Truncated {
        /// What was read.
        form: Form,
        /// How many bytes there are.
        have: u64,
        /// How many bytes it says it has.
        want: u64,
    },
    /// A carrier whose structure does not hold together.
    #[error("the {form} is damaged: {reason}; copy or make it again")]
    Damaged {
        /// What was read.
        form: Form,
        /// What does not fit.
        reason: String,
    },
    /// Something grows beyond its limit.
    #[error("{what} is larger than {limit} bytes: {advice}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The limit in bytes.
        limit: u64,
        /// What to do.
        advice: &'static str,
    },
    /// User-data that no cloud would carry.
    #[error(
        "the user-data is {size} bytes and the limit is {MAX_USER_DATA_BYTES}: leave out extra files, or carry \
         the blob as a floppy image or a directory instead"
    )]
    UserDataTooLarge {
        /// Its size in bytes; when it was read from a service, at least so many.
        size: usize,
    },
    /// A file name that not every carrier can carry.
    #[error(
        "the file name '{name}' cannot be carried: {reason}; use 1 to {MAX_NAME_BYTES} letters, digits, dots, \
         hyphens and underscores, beginning with a letter or digit and not ending with a dot"
    )]
    FileName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More files than a bundle may have.
    #[error("the bundle has more than {MAX_FILES} files: leave some out")]
    TooManyFiles,
    /// Bytes in none of the known forms.
    #[error(
        "these {size} bytes are no Aerie blob: they are neither a floppy image, a zip archive, gzip'd or \
         base64 user-data nor an aerie.toml; hand over the blob as 'aerie grid blob' made it"
    )]
    Unrecognised {
        /// How many bytes there are.
        size: usize,
    },
    /// User-data that is meant for somebody else.
    #[error("this is {what}, no Aerie blob: give the blob alone as the user-data")]
    Foreign {
        /// What it is.
        what: &'static str,
    },
    /// Wrappings within wrappings beyond any sensible number.
    #[error("the blob is wrapped more than {limit} times: hand it over as 'aerie grid blob' made it")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// A file, folder or device could not be read or written.
    #[error("cannot {action}: {cause}; check the path, the permissions and the medium")]
    Io {
        /// What was tried, with the path.
        action: String,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
    /// Any of the above, with the place where the blob was found.
    #[error("{place}: {cause}")]
    At {
        /// The path or address.
        place: String,
        /// What is wrong there.
        #[source]
        cause: Box<Error>,
    },
}

impl Error {
    /// Whether what was read was simply not meant for Aerie, so that a search may go on to its next place.
    ///
    /// A floppy for something else, a cloud-init script, a folder without a spec. Not so a blob that is ours but
    /// broken: to go on would join some other grid, or wait for ever without a word.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        match self {
            Self::NoSpec { .. } | Self::NotFat { .. } | Self::Unrecognised { .. } | Self::Foreign { .. } => {
                true
            }
            Self::At { cause, .. } => cause.is_foreign(),
            _ => false,
        }
    }

    pub(crate) fn at(self, place: impl fmt::Display) -> Self {
        Self::At {
            place: place.to_string(),
            cause: Box::new(self),
        }
    }

    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |cause| Self::Io { action, cause }
    }
}

/// One mistake in a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line it stands in, from 1.
    pub line: usize,
    /// The key with its table, as `overlay.listen_port`; empty where there is none.
    pub key: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if !self.key.is_empty() {
            write!(f, "{} ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Every mistake found in a spec, in the order of the lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "{SPEC_FILE}, {one}"),
            many => {
                write!(f, "{SPEC_FILE} has {} mistakes:", many.len())?;
                for problem in many {
                    write!(f, "\n  {problem}")?;
                }
                Ok(())
            }
        }
    }
}
