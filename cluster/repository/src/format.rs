//! What an image is made of, and whether it may be kept.
//!
//! Images come from whoever may put them, and some were written by guests. A qcow2 image can name other files of the
//! host that opens it: one to build upon, one that has its data. Such an image would hand any file of any host to its
//! guest, so it is refused, whatever it names. Its tables are looked at as far as their sizes go, so that nobody
//! allocates what an image says that it has. A raw image that begins as a qcow2 image is refused as well: whoever
//! guesses at the format later would be led to the same place.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::error::BadContent;
use crate::limits::MAX_VIRTUAL;

/// The format of an image as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Sector after sector.
    Raw,
    /// QEMU's, with neither backing file nor external data file.
    Qcow2,
}

impl Format {
    /// Its name, which is QEMU's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    pub(crate) fn of_name(name: &str) -> Option<Self> {
        [Self::Raw, Self::Qcow2]
            .into_iter()
            .find(|format| format.name() == name)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A disk of a guest has whole sectors.
const SECTOR: u64 = 512;

/// As much of a file as tells what it is, in bytes.
const HEAD: usize = 512;

const QCOW2: &[u8] = b"QFI\xfb";
pub(crate) const GZIP: &[u8] = b"\x1f\x8b";

/// The least and the most that QEMU takes as log2 of a cluster's bytes.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// QEMU's own bounds of the tables, in bytes.
const MAX_L1: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;

/// QEMU's own bound.
const MAX_SNAPSHOTS: u32 = 65_536;

/// The part of an L1 entry that is an offset.
const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Features that have to be known (QEMU's docs/interop/qcow2.txt).
mod feature {
    pub(super) const DIRTY: u64 = 1;
    pub(super) const CORRUPT: u64 = 2;
    pub(super) const EXTERNAL_DATA: u64 = 4;
    pub(super) const COMPRESSION: u64 = 8;
    pub(super) const EXTENDED_L2: u64 = 16;
    pub(super) const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2;
}

/// The header extension that names the file with the data.
const EXTERNAL_DATA_NAME: u32 = 0x4441_5441;

/// What a file was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inspected {
    pub(crate) format: Format,
    /// The size of the disk in bytes.
    pub(crate) virtual_size: u64,
}

/// Looks at a file that is to be kept as an image.
///
/// # Errors
/// [`Error::Content`] under this name, or [`Error::File`].
pub(crate) fn inspect(file: &File, what: &str, said: Option<Format>) -> Result<Inspected, Error> {
    let read_error = |source| Error::File {
        what: "read",
        path: what.into(),
        source,
    };
    let length = file.metadata().map_err(read_error)?.len();
    let mut head = vec![0; HEAD];
    let read = crate::files::fill(&mut At(file, 0), &mut head).map_err(read_error)?;
    head.truncate(read);
    judge(file, length, &head, said).map_err(|refused| match refused {
        Refused::Content(why) => Error::Content {
            what: what.to_owned(),
            why,
        },
        Refused::Read(source) => read_error(source),
    })
}

enum Refused {
    Content(BadContent),
    Read(std::io::Error),
}

impl From<BadContent> for Refused {
    fn from(why: BadContent) -> Self {
        Self::Content(why)
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Self::Read(error)
    }
}

fn judge(file: &File, length: u64, head: &[u8], said: Option<Format>) -> Result<Inspected, Refused> {
    if length == 0 {
        return Err(BadContent::Empty.into());
    }
    let found = if head.starts_with(QCOW2) {
        Format::Qcow2
    } else {
        Format::Raw
    };
    if let Some(said) = said.filter(|said| *said != found) {
        return Err(BadContent::NotAsSaid { said, found }.into());
    }
    let virtual_size = match found {
        Format::Qcow2 => qcow2(file, length, head)?,
        Format::Raw => {
            // Where it is said to be raw, its first bytes are the guest's affair.
            if let Some(kind) = other_kind(head).filter(|_| said.is_none()) {
                return Err(BadContent::Kind(kind).into());
            }
            if !length.is_multiple_of(SECTOR) {
                return Err(BadContent::NoDisk(length).into());
            }
            length
        }
    };
    if virtual_size > MAX_VIRTUAL {
        return Err(BadContent::Disk(virtual_size).into());
    }
    Ok(Inspected {
        format: found,
        virtual_size,
    })
}

/// What people have that is no image of ours.
fn other_kind(head: &[u8]) -> Option<&'static str> {
    let kinds: [(usize, &[u8], &str); 13] = [
        (0, b"KDMV", "a VMDK image"),
        (0, b"COWD", "a VMDK image"),
        (0, b"# Disk DescriptorFile", "a VMDK descriptor"),
        (0, b"conectix", "a VHD image"),
        (0, b"vhdxfile", "a VHDX image"),
        (0, b"QED\0", "a QED image"),
        (64, b"\x7f\x10\xda\xbe", "a VDI image"),
        (257, b"ustar", "a tar archive or OVA"),
        (0, b"\xfd7zXZ\0", "packed by xz"),
        (0, b"\x28\xb5\x2f\xfd", "packed by zstd"),
        (0, b"BZh", "packed by bzip2"),
        (0, b"PK\x03\x04", "a zip archive"),
        (0, GZIP, "packed by gzip twice"),
    ];
    kinds
        .iter()
        .find(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map(|(_, _, kind)| *kind)
}

/// Reads a file on from a place, whatever its own position is.
pub(crate) struct At<'a>(pub(crate) &'a File, pub(crate) u64);

impl std::io::Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read_at(buffer, self.1)?;
        self.1 += read as u64;
        Ok(read)
    }
}

/// The size of a qcow2 image's disk, if all that its header says is possible.
fn qcow2(file: &File, length: u64, head: &[u8]) -> Result<u64, Refused> {
    let bad = |why| Refused::Content(BadContent::Header(why));
    let u32_at = |at: usize| {
        let bytes = head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(u32::from_be_bytes)
            .ok_or_else(|| bad("it is cut short"))
    };
    let u64_at = |at: usize| {
        let bytes = head.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(u64::from_be_bytes)
            .ok_or_else(|| bad("it is cut short"))
    };
    let version = u32_at(4)?;
    if u64_at(8)? != 0 || u32_at(16)? != 0 {
        return Err(BadContent::Backing.into());
    }
    let (features, header) = match version {
        2 => (0, 72),
        3 => (u64_at(72)?, u64::from(u32_at(100)?)),
        _ => return Err(bad("its version is neither 2 nor 3")),
    };
    if features & feature::EXTERNAL_DATA != 0 {
        return Err(BadContent::ExternalData.into());
    }
    if features & !feature::KNOWN != 0 {
        return Err(bad("it has features that are not known"));
    }
    if features & (feature::DIRTY | feature::CORRUPT) != 0 {
        return Err(bad(
            "it was not closed or is damaged, repair it with `qemu-img check -r all`",
        ));
    }
    let bits = u32_at(20)?;
    if !CLUSTER_BITS.contains(&bits) {
        return Err(bad("its clusters are of no possible size"));
    }
    let cluster = 1_u64 << bits;
    if version == 3 && !(104..=cluster).contains(&header) {
        return Err(bad("its length makes no sense"));
    }
    if u32_at(32)? != 0 {
        return Err(bad("it is encrypted, and nobody here would have the key"));
    }
    let size = u64_at(24)?;
    if size == 0 {
        return Err(BadContent::Empty.into());
    }
    if size > MAX_VIRTUAL {
        return Err(BadContent::Disk(size).into());
    }
    let table = |at: u64, bytes: u64, most: u64| {
        let inside = at.checked_add(bytes).is_some_and(|end| end <= length);
        at != 0 && at.is_multiple_of(cluster) && bytes <= most && inside
    };
    let entry = if features & feature::EXTENDED_L2 == 0 {
        8
    } else {
        16
    };
    let entries = u64::from(u32_at(36)?);
    let l1 = u64_at(40)?;
    if !table(l1, entries * 8, MAX_L1) || size.div_ceil(cluster * (cluster / entry)) > entries {
        return Err(bad("its L1 table is not within the file or too small"));
    }
    let refcounts = u64::from(u32_at(56)?).saturating_mul(cluster);
    if !table(u64_at(48)?, refcounts, MAX_REFCOUNT_TABLE) {
        return Err(bad("its table of reference counts is not within the file"));
    }
    if u32_at(60)? > MAX_SNAPSHOTS || u64_at(64)? > length {
        return Err(bad("its snapshots are not within the file"));
    }
    extensions(file, header, cluster.min(length))?;
    let mut bytes = vec![0; usize::try_from(entries * 8).unwrap_or(0)];
    file.read_exact_at(&mut bytes, l1)?;
    let (tables, _) = bytes.as_chunks::<8>();
    let outside = |table: &[u8; 8]| {
        let at = u64::from_be_bytes(*table) & L1_OFFSET;
        at != 0 && !(at.is_multiple_of(cluster) && at < length)
    };
    if tables.iter().any(outside) {
        return Err(bad("its L1 table points outside of the file"));
    }
    Ok(size)
}

/// Refuses what names a file in the extensions of a header, which end with the first cluster.
fn extensions(file: &File, mut at: u64, end: u64) -> Result<(), Refused> {
    while at + 8 <= end {
        let mut head = [0; 8];
        file.read_exact_at(&mut head, at)?;
        let [a, b, c, d, lengths @ ..] = head;
        let kind = u32::from_be_bytes([a, b, c, d]);
        let length = u64::from(u32::from_be_bytes(lengths));
        match kind {
            0 => return Ok(()),
            EXTERNAL_DATA_NAME => return Err(BadContent::ExternalData.into()),
            _ => at += 8 + length.next_multiple_of(8),
        }
    }
    Ok(())
}
