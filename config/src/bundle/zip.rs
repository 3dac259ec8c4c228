//! Zip archives: what the portal offers for download, and what people make by hand.

use std::borrow::Cow;
use std::io::{Cursor, Write as _};

use zeroize::Zeroizing;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::{Bundle, Form, MAX_CARRIER_BYTES, MAX_FILE_BYTES, names, read_bounded};
use crate::error::Error;

/// How many entries are looked at, clutter included. A bundle has at most a quarter of it.
const MAX_ENTRIES: usize = 128;

/// The access rights of the files within the archive: they may hold secrets.
const FILE_MODE: u32 = 0o600;

type Archive<'b> = ZipArchive<Cursor<&'b [u8]>>;

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
        let listed: Vec<String> = archive
            .file_names()
            .filter_map(Result::ok)
            .map(Cow::into_owned)
            .collect();
        if let Err(no_spec) = names::require_spec(Form::Zip, listed.iter().map(String::as_str)) {
            let image = archive
                .file_names()
                .position(|name| name.is_ok_and(|name| is_image(&name)));
            let index = image.ok_or(no_spec)?;
            return Self::open_at(
                &entry_contents(&mut archive, index, MAX_CARRIER_BYTES)?,
                depth + 1,
            );
        }
        if archive.len() > MAX_ENTRIES {
            return Err(Error::TooManyFiles);
        }
        let mut bundle = Self::default();
        for index in 0..archive.len() {
            let entry = archive.by_index(index).map_err(damaged)?;
            let name = entry.name().map_err(damaged)?.into_owned();
            if entry.is_dir() || name.starts_with("__MACOSX/") || names::is_clutter(&name) {
                continue;
            }
            drop(entry);
            let contents = entry_contents(&mut archive, index, MAX_FILE_BYTES)?;
            bundle.add(&name, contents)?;
        }
        Ok(bundle)
    }

    fn write_zip(&self, method: CompressionMethod) -> Result<Vec<u8>, Error> {
        self.require_spec(Form::Zip)?;
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

/// Unpacks one entry to at most `limit` bytes.
fn entry_contents(
    archive: &mut Archive<'_>,
    index: usize,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let entry = archive.by_index(index).map_err(damaged)?;
    let name = names::shown(&entry.name().map_err(damaged)?);
    read_bounded(entry, limit)
        .map_err(|error| damaged(ZipError::Io(error)))?
        .ok_or_else(|| Error::TooLarge {
            what: format!("the file '{name}' in the zip archive"),
            limit: limit as u64,
            advice: "leave it out",
        })
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
