//! Telling the forms apart by their first bytes.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use super::{Bundle, fat};
use crate::error::Error;

/// A form in which a bundle travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// A FAT file system: a floppy, its image, or another small disk.
    Floppy,
    /// A zip archive.
    Zip,
    /// Something gzip'd; the form of user-data.
    Gzip,
    /// Something in base64: a cloud's way with bytes.
    Base64,
    /// The bare text of an `aerie.toml`.
    Toml,
    /// A folder of files.
    Directory,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Floppy => "floppy",
            Self::Zip => "zip archive",
            Self::Gzip => "gzip data",
            Self::Base64 => "base64 text",
            Self::Toml => "aerie.toml",
            Self::Directory => "directory",
        })
    }
}

/// How a compressed or zipped blob begins in base64: such a text is ours to read even where it is torn.
const BASE64_HEADS: [&[u8]; 3] = [b"H4sI", b"UEsD", b"6zyQ"];

/// The shortest text taken for base64: shorter ones are words.
const MIN_BASE64_BYTES: usize = 16;

impl Form {
    /// The form of some bytes, by their first ones. `None` if it is none of ours.
    #[must_use]
    pub fn sniff(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(&[0x1f, 0x8b]) {
            return Some(Self::Gzip);
        }
        if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
            return Some(Self::Zip);
        }
        if fat::looks_like_one(bytes) {
            return Some(Self::Floppy);
        }
        if is_base64(bytes) {
            return Some(Self::Base64);
        }
        is_spec(bytes).then_some(Self::Toml)
    }
}

impl Bundle {
    /// The form of some bytes; see [`Form::sniff`].
    #[must_use]
    pub fn sniff(bytes: &[u8]) -> Option<Form> {
        Form::sniff(bytes)
    }
}

/// Decodes base64 with any white space, of the standard or the URL alphabet, padded or not.
pub(super) fn decode_base64(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut packed = Zeroizing::new(Vec::with_capacity(text.len()));
    packed.extend(text.iter().filter(|b| !b.is_ascii_whitespace()).map(|b| match b {
        b'-' => b'+',
        b'_' => b'/',
        other => *other,
    }));
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&alphabet::STANDARD, config)
        .decode(&*packed)
        .map(Zeroizing::new)
        .map_err(|error| Error::Damaged {
            form: Form::Base64,
            reason: format!("it does not decode ({error})"),
        })
}

/// The error for bytes that are none of ours: names what they are where that is known.
pub(super) fn why_unrecognised(bytes: &[u8]) -> Error {
    if bytes.is_empty() {
        return Error::Empty { form: Form::Toml };
    }
    match foreign(bytes) {
        Some(what) => Error::Foreign { what },
        None => Error::Unrecognised { size: bytes.len() },
    }
}

/// What some bytes are by their head, where that is known and not ours.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 7] = [
        (b"#cloud-config", "a cloud-init configuration"),
        (b"#include", "a cloud-init include list"),
        (b"#!", "a script"),
        (b"Content-Type:", "a MIME message for cloud-init"),
        (b"MIME-Version:", "a MIME message for cloud-init"),
        (b"-----BEGIN", "a PEM file"),
        (b"<", "a web page or XML document"),
    ];
    let start = bytes.trim_ascii_start();
    let known = KNOWN.iter().find(|(head, _)| start.starts_with(head));
    known.map(|(_, what)| *what)
}

fn is_base64(bytes: &[u8]) -> bool {
    let bytes = bytes.trim_ascii_start();
    let symbol = |b: &u8| {
        b.is_ascii_alphanumeric() || b.is_ascii_whitespace() || matches!(b, b'+' | b'/' | b'-' | b'_' | b'=')
    };
    // A text of another kind, such as a few plain words, seldom decodes; what does is judged by its content.
    BASE64_HEADS.iter().any(|head| bytes.starts_with(head))
        || (bytes.len() >= MIN_BASE64_BYTES && bytes.iter().all(symbol) && decode_base64(bytes).is_ok())
}

/// Whether some text has a line that only an `aerie.toml` has. Broken ones must be told apart from foreign ones.
fn is_spec(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let sets = |line: &str, key: &str| {
        line.strip_prefix(key)
            .is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    foreign(bytes).is_none()
        && text.lines().map(str::trim).any(|line| {
            sets(line, "version")
                || ["[grid]", "[enrol]", "[node]", "[overlay]"]
                    .iter()
                    .any(|head| line.starts_with(head))
        })
}
