//! Gzip'd user-data: the form for clouds.
//!
//! A bundle of the spec alone is the gzip'd text itself, so that `gunzip` shows it; with extras it is a gzip'd
//! zip archive of stored files. The bytes depend on the bundle only: no name and no time is written.

use std::io::{self, Read as _, Write as _};

use flate2::Compression;
use flate2::GzBuilder;
use flate2::read::GzDecoder;
use zeroize::Zeroizing;

use super::{Bundle, Form, MAX_CARRIER_BYTES, MAX_USER_DATA_BYTES, SPEC_FILE, read_bounded};
use crate::error::Error;

impl Bundle {
    /// The bundle as user-data.
    ///
    /// # Errors
    /// [`Error::UserDataTooLarge`] above [`MAX_USER_DATA_BYTES`]; [`Error::NoSpec`] without a spec.
    pub fn to_user_data(&self) -> Result<Vec<u8>, Error> {
        let inner = match self.get(SPEC_FILE) {
            Some(spec) if self.len() == 1 => Zeroizing::new(spec.to_vec()),
            _ => Zeroizing::new(self.to_stored_zip()?),
        };
        let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        let packed = encoder
            .write_all(&inner)
            .and_then(|()| encoder.finish())
            .map_err(Error::io("compress the bundle"))?;
        if packed.len() > MAX_USER_DATA_BYTES {
            return Err(Error::UserDataTooLarge { size: packed.len() });
        }
        Ok(packed)
    }

    /// Reads user-data: our blob, as it is or in base64 as some clouds hand it out, or the Grid Appliance's way
    /// (a zip'd floppy image).
    ///
    /// # Errors
    /// [`Error::UserDataTooLarge`] above [`MAX_USER_DATA_BYTES`], and those of [`Bundle::open`].
    pub fn from_user_data(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_USER_DATA_BYTES {
            return Err(Error::UserDataTooLarge { size: bytes.len() });
        }
        if bytes.is_empty() {
            return Err(Error::Empty { form: Form::Gzip });
        }
        Self::open(bytes)
    }
}

/// Unpacks gzip to at most [`MAX_CARRIER_BYTES`].
pub(super) fn unpack(bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut decoder = GzDecoder::new(bytes);
    match read_bounded(decoder.by_ref(), MAX_CARRIER_BYTES) {
        Ok(Some(unpacked)) => Ok(unpacked),
        Ok(None) => Err(super::carrier_too_large()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Error::Damaged {
            form: Form::Gzip,
            reason: format!("it is cut off after {} bytes", bytes.len()),
        }),
        Err(error) => Err(Error::Damaged {
            form: Form::Gzip,
            reason: format!("it does not unpack ({error})"),
        }),
    }
}
