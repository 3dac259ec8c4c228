//! Zip archives: what the portal offers for download, and what people make by hand.

use std::io::{Cursor, Write as _};

use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::{Bundle, Form, MAX_CARRIER_BYTES, MAX_FILE_BYTES, SPEC_FILE, names, read_bounded};
use crate::error::Error;

/// How many entries are looked at, clutter included. A bundle has at most a quarter of it.
const MAX_ENTRIES: usize = 128;

/// The access rights of the files within the archive: they may hold secrets.
const FILE_MODE: u32 = 0o600;

impl Bundle {
    /// The bundle as a zip archive. The bytes depend on the bundle only.
    ///
    /// # Errors
    /// [`Error::NoSpec`] without a spec.
    pub fn to_zip(&self) -> Result<Vec<u8>, Error> {
        self.write_zip(CompressionMethod::Deflated)
    }

    /// Reads a zip archive: the files at its top level, or one floppy image as the Grid Appliance's users zip it.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::FileName`] for a name that leads elsewhere, [`Error::TooLarge`] for a bomb,
    /// [`Error::NoSpec`].
    pub fn from_zip(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.is_empty() {
            return Err(Error::Empty { form: Form::Zip });
        }
        if bytes.len() > MAX_CARRIER_BYTES {
            return Err(super::carrier_too_large());
        }
        Self::from_zip_at(bytes, 0)
    }

    pub(super) fn to_stored_zip(&self) -> Result<Vec<u8>, Error> {
        self.write_zip(CompressionMethod::Stored)
    }

    pub(super) fn from_zip_at(bytes: &[u8], depth: usize) -> Result<Self, Error> {
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
        if archive.len() > MAX_ENTRIES {
            return Err(Error::TooManyFiles);
        }
        let mut bundle = Self::default();
        let mut image = None;
        for index in 0..archive.len() {
            let entry = archive.by_index(index).map_err(damaged)?;
            let name = entry.name().map_err(damaged)?.into_owned();
            if entry.is_dir() || name.starts_with("__MACOSX/") || names::is_clutter(&name) {
                continue;
            }
            if is_image(&name) {
                image = Some(index);
                continue;
            }
            let limit = MAX_FILE_BYTES;
            match read_bounded(entry, limit) {
                Ok(Some(contents)) => bundle.put(&name, contents)?,
                Ok(None) => {
                    return Err(Error::TooLarge {
                        what: format!("the file '{}' in the zip archive", names::checked(&name)?),
                        limit: limit as u64,
                        advice: "leave it out",
                    });
                }
                Err(error) => return Err(damaged(ZipError::Io(error))),
            }
        }
        match image {
            Some(index) if bundle.get(SPEC_FILE).is_none() => {
                let entry = archive.by_index(index).map_err(damaged)?;
                let contents = read_bounded(entry, MAX_CARRIER_BYTES)
                    .map_err(|error| damaged(ZipError::Io(error)))?
                    .ok_or_else(super::carrier_too_large)?;
                Self::open_at(&contents, depth + 1)
            }
            _ => bundle.with_spec(Form::Zip),
        }
    }

    fn write_zip(&self, method: CompressionMethod) -> Result<Vec<u8>, Error> {
        if self.get(SPEC_FILE).is_none() {
            return Err(Error::NoSpec {
                form: Form::Zip,
                holds: self.holds(),
            });
        }
        let options = SimpleFileOptions::default()
            .compression_method(method)
            .last_modified_time(zip::DateTime::DEFAULT)
            .unix_permissions(FILE_MODE);
        let write = || -> Result<Vec<u8>, ZipError> {
            let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
            for (name, bytes) in self.files() {
                writer.start_file(name, options)?;
                writer.write_all(bytes)?;
            }
            Ok(writer.finish()?.into_inner())
        };
        write().map_err(damaged)
    }
}

/// Whether an entry is a disk image that may hold the bundle, rather than a file of it.
fn is_image(name: &str) -> bool {
    !name.contains(['/', '\\']) && name.len() > 4 && name.to_ascii_lowercase().ends_with(".img")
}

fn damaged(error: ZipError) -> Error {
    Error::Damaged {
        form: Form::Zip,
        reason: match error {
            ZipError::UnsupportedArchive(ZipError::PASSWORD_REQUIRED) => {
                "it is locked with a password".to_owned()
            }
            other => other.to_string(),
        },
    }
}
