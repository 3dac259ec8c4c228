//! The bundle: a few named files, the same whatever carries them.
//!
//! A bundle has `aerie.toml` and perhaps extras (a site's certificate, a note to the user). It travels as
//!
//! | form | written by | for |
//! |---|---|---|
//! | floppy image, 1.44 MB FAT12 | [`Bundle::to_floppy`] | virtual machines, USB sticks |
//! | zip archive | [`Bundle::to_zip`] | download from the portal |
//! | gzip'd user-data, at most 16,384 bytes | [`Bundle::to_user_data`] | clouds |
//! | directory | [`Bundle::to_dir`] | bare metal |
//!
//! and [`Bundle::open`] reads any of them from bytes, wrapped in base64, gzip or zip as clouds and people do, up
//! to a fixed depth. The limits are chosen so that every bundle fits a floppy, the narrowest carrier but one:
//! user-data is narrower still, and says so.

mod dir;
mod fat;
mod floppy;
mod form;
mod gzip;
mod names;
mod zip;

pub use form::Form;

pub(crate) use fat::Volume;
pub(crate) use floppy::LABEL as FLOPPY_LABEL;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use zeroize::Zeroizing;

use crate::error::Error;
use crate::spec::Spec;

/// The name of the spec within a bundle.
pub const SPEC_FILE: &str = "aerie.toml";

/// How many files a bundle may have. With the longest names they fill 193 of a floppy's 224 root entries.
pub const MAX_FILES: usize = 32;

/// The longest file name in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// The largest spec in bytes: hundreds of times what one needs.
pub const MAX_SPEC_BYTES: usize = 64 << 10;

/// The largest file in bytes.
pub const MAX_FILE_BYTES: usize = 512 << 10;

/// The largest sum of all files in bytes: leaves room on a floppy for partly filled sectors.
pub const MAX_TOTAL_BYTES: usize = 1 << 20;

/// The largest user-data in bytes: EC2's limit, before base64.
pub const MAX_USER_DATA_BYTES: usize = 16_384;

/// The most bytes read of any carrier, and the most that one layer may unpack to: a floppy image and some more.
pub const MAX_CARRIER_BYTES: usize = 2 << 20;

/// How many wrappings are taken off. The Grid Appliance's clouds had three: base64, zip, floppy image.
const MAX_DEPTH: usize = 4;

/// The files of one blob, wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bundle {
    files: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

impl Bundle {
    /// The bundle of a spec alone.
    #[must_use]
    pub fn of_spec(spec: &Spec) -> Self {
        let mut files = BTreeMap::new();
        let text = spec.to_toml();
        files.insert(SPEC_FILE.to_owned(), Zeroizing::new(text.as_bytes().to_vec()));
        Self { files }
    }

    /// Reads a bundle from bytes in any form but a directory. [`Form::sniff`] says which.
    ///
    /// # Errors
    /// By form; see [`Error`]. [`Error::Unrecognised`] and [`Error::Foreign`] for what is none of ours.
    pub fn open(bytes: &[u8]) -> Result<Self, Error> {
        Self::open_at(bytes, 0)
    }

    /// The spec, parsed.
    ///
    /// # Errors
    /// [`Error::NotText`], and those of [`Spec::parse`].
    pub fn spec(&self) -> Result<Spec, Error> {
        self.require_spec(Form::Directory)?;
        let bytes = self.get(SPEC_FILE).unwrap_or_default();
        Spec::parse(std::str::from_utf8(bytes).map_err(|_| Error::NotText)?)
    }

    /// Adds a file, or replaces one of the same name.
    ///
    /// Names must survive every carrier, so that two that differ only in case are refused (FAT knows no case).
    ///
    /// # Errors
    /// [`Error::FileName`], [`Error::TooLarge`], [`Error::TooManyFiles`].
    pub fn insert(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), Error> {
        self.put(name, Zeroizing::new(bytes))
    }

    /// A file's bytes.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(|bytes| bytes.as_slice())
    }

    /// The files in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }

    /// How many files there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is no file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The sum of the files' sizes in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.files.values().map(|bytes| bytes.len()).sum()
    }

    fn open_at(bytes: &[u8], depth: usize) -> Result<Self, Error> {
        if bytes.len() > MAX_CARRIER_BYTES {
            return Err(carrier_too_large());
        }
        if depth > MAX_DEPTH {
            return Err(Error::TooDeep { limit: MAX_DEPTH });
        }
        match Form::sniff(bytes) {
            Some(Form::Floppy) => Self::from_floppy(bytes),
            Some(Form::Zip) => Self::from_zip_at(bytes, depth),
            Some(Form::Gzip) => Self::open_at(&gzip::unpack(bytes)?, depth + 1),
            Some(Form::Base64) => Self::open_at(&form::decode_base64(bytes)?, depth + 1),
            Some(Form::Toml) => {
                let mut bundle = Self::default();
                bundle.put(SPEC_FILE, Zeroizing::new(bytes.to_vec()))?;
                Ok(bundle)
            }
            Some(Form::Directory) | None => Err(form::why_unrecognised(bytes)),
        }
    }

    fn put(&mut self, name: &str, bytes: Zeroizing<Vec<u8>>) -> Result<(), Error> {
        let name = names::checked(name)?;
        let others = |files: &BTreeMap<String, _>| {
            files
                .keys()
                .any(|other| *other != name && other.eq_ignore_ascii_case(&name))
        };
        if others(&self.files) {
            return Err(Error::FileName {
                name,
                reason: "another file's name differs from it in case only",
            });
        }
        let (limit, advice) = if name == SPEC_FILE {
            (MAX_SPEC_BYTES, "put whatever is no setting into files beside it")
        } else {
            (
                MAX_FILE_BYTES,
                "leave it out, or have the node fetch it after it has joined",
            )
        };
        if bytes.len() > limit {
            return Err(Error::TooLarge {
                what: format!("the file '{name}'"),
                limit: limit as u64,
                advice,
            });
        }
        let before = self.files.get(&name).map_or(0, |bytes| bytes.len());
        if self.total_bytes() - before + bytes.len() > MAX_TOTAL_BYTES {
            return Err(Error::TooLarge {
                what: "the sum of the bundle's files".to_owned(),
                limit: MAX_TOTAL_BYTES as u64,
                advice: "leave some out",
            });
        }
        if self.files.len() == MAX_FILES && !self.files.contains_key(&name) {
            return Err(Error::TooManyFiles);
        }
        self.files.insert(name, bytes);
        Ok(())
    }

    /// Adds a file that a carrier holds: two of one name are one too many.
    fn add(&mut self, name: &str, bytes: Zeroizing<Vec<u8>>) -> Result<(), Error> {
        if self.files.contains_key(&names::checked(name)?) {
            return Err(Error::FileName {
                name: names::shown(name),
                reason: "another file has the same name",
            });
        }
        self.put(name, bytes)
    }

    /// Refuses to write a bundle that no reader would take.
    fn require_spec(&self, form: Form) -> Result<(), Error> {
        names::require_spec(form, self.files.keys().map(String::as_str))
    }
}

/// Shows names and sizes only: files may be secret.
impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (name, bytes) in &self.files {
            map.entry(name, &format_args!("{} bytes", bytes.len()));
        }
        map.finish()
    }
}

fn carrier_too_large() -> Error {
    Error::TooLarge {
        what: "the blob".to_owned(),
        limit: MAX_CARRIER_BYTES as u64,
        advice: "hand it over as 'aerie grid blob' made it",
    }
}

/// Reads to the end, but at most `limit` bytes. `Ok(None)` if there is more.
pub(crate) fn read_bounded(source: impl Read, limit: usize) -> std::io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    source.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= limit).then_some(bytes))
}
