//! Reading FAT volumes of which nothing is trusted.
//!
//! A floppy is handed over by strangers, and may be torn. General FAT libraries take the boot sector's numbers
//! and the cluster chains at their word; here every number is checked against the size of the disk before it is
//! used, every chain has an end, and only the root directory is read, since a bundle has no folders.
//!
//! ```text
//!  boot sector ──► layout ──► root directory ──► per file: cluster chain ──► bytes
//!      │             │             │                          │
//!   not FAT,      cut off      too many entries     leads outside, or ends early
//!   blank
//! ```
//!
//! FAT12, FAT16 and FAT32 are read, so that a USB stick does as well as a floppy. Source of the layout:
//! Microsoft's "FAT: General Overview of On-Disk Format", version 1.03.

use std::io::{self, Read, Seek, SeekFrom};

use zeroize::Zeroizing;

use super::{Bundle, Form, MAX_FILE_BYTES, names};
use crate::error::Error;

/// How many entries of the root directory are looked at; long names take up to six each.
const MAX_ROOT_ENTRIES: usize = 4096;

/// The largest cluster that the format allows, in bytes.
const MAX_CLUSTER_BYTES: u32 = 64 << 10;

const SECTOR: usize = 512;
const ENTRY: usize = 32;

/// Whether some bytes begin like a FAT volume or like a floppy that is none.
///
/// A blank image of a floppy's size counts: what is wrong with it is best said by who reads floppies.
pub(super) fn looks_like_one(bytes: &[u8]) -> bool {
    const FLOPPY_SIZES: [usize; 3] = [737_280, 1_474_560, 1_720_320];
    FLOPPY_SIZES.contains(&bytes.len()) || bytes.first_chunk().is_some_and(Layout::is_boot_sector)
}

/// A FAT volume being read.
pub(crate) struct Volume<'r, R> {
    disk: &'r mut R,
    layout: Layout,
}

impl<'r, R: Read + Seek> Volume<'r, R> {
    /// Reads and checks the boot sector.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::NotFat`], [`Error::Truncated`], [`Error::Damaged`], [`Error::Io`].
    pub(crate) fn open(disk: &'r mut R) -> Result<Self, Error> {
        let size = disk
            .seek(SeekFrom::End(0))
            .map_err(Error::io("measure the floppy"))?;
        if size == 0 {
            return Err(Error::Empty { form: Form::Floppy });
        }
        if size < SECTOR as u64 {
            return Err(Error::Truncated {
                form: Form::Floppy,
                have: size,
                want: 1_474_560,
            });
        }
        let mut boot = [0; SECTOR];
        read_at(disk, 0, &mut boot)?;
        let layout = Layout::read(&boot)?;
        if layout.total_bytes > size {
            return Err(Error::Truncated {
                form: Form::Floppy,
                have: size,
                want: layout.total_bytes,
            });
        }
        Ok(Self { disk, layout })
    }

    /// The volume's label, from the boot sector or the root directory, in upper case as FAT keeps it.
    pub(crate) fn label(&mut self) -> Result<String, Error> {
        let in_root = self.root_entries()?.into_iter().find_map(|entry| match entry {
            Entry::Label(label) => Some(label),
            Entry::File(_) => None,
        });
        Ok(in_root.unwrap_or_else(|| self.layout.label.clone()))
    }

    /// The files of the root directory as a bundle.
    pub(crate) fn bundle(&mut self) -> Result<Bundle, Error> {
        let mut files = Vec::new();
        for entry in self.root_entries()? {
            match entry {
                Entry::File(file) if !names::is_clutter(&file.name) => files.push(file),
                _ => {}
            }
        }
        names::require_spec(Form::Floppy, files.iter().map(|file| file.name.as_str()))?;
        let mut bundle = Bundle::default();
        for file in files {
            let contents = self.contents(&file)?;
            bundle.add(&file.name, contents)?;
        }
        Ok(bundle)
    }

    fn contents(&mut self, file: &FileEntry) -> Result<Zeroizing<Vec<u8>>, Error> {
        let size = file.size as usize;
        if size > MAX_FILE_BYTES {
            return Err(Error::TooLarge {
                what: format!("the file '{}' on the floppy", names::checked(&file.name)?),
                limit: MAX_FILE_BYTES as u64,
                advice: "take it off the floppy",
            });
        }
        let mut bytes = Zeroizing::new(vec![0; size]);
        let mut cluster = file.first_cluster;
        let mut pieces = bytes.chunks_mut(self.layout.cluster_bytes as usize).peekable();
        while let Some(piece) = pieces.next() {
            let at = self.layout.cluster_at(cluster).ok_or_else(|| {
                damaged(format!(
                    "the file '{}' leads to cluster {cluster}, which does not exist",
                    names::shown(&file.name)
                ))
            })?;
            read_at(self.disk, at, piece)?;
            if pieces.peek().is_some() {
                cluster = self.next_cluster(cluster)?;
            }
        }
        Ok(bytes)
    }

    fn root_entries(&mut self) -> Result<Vec<Entry>, Error> {
        let mut reader = EntryReader::default();
        match self.layout.root {
            Root::Fixed { at, entries } => {
                let mut table = vec![0; entries.min(MAX_ROOT_ENTRIES) * ENTRY];
                read_at(self.disk, at, &mut table)?;
                reader.take(&table);
            }
            Root::Chain { first } => {
                let mut cluster = first;
                let mut read = 0;
                let mut table = vec![0; self.layout.cluster_bytes as usize];
                // A chain in a circle ends at the limit.
                while let Some(at) = self.layout.cluster_at(cluster) {
                    read_at(self.disk, at, &mut table)?;
                    read += table.len() / ENTRY;
                    if !reader.take(&table) || read >= MAX_ROOT_ENTRIES {
                        break;
                    }
                    cluster = self.next_cluster(cluster)?;
                }
            }
        }
        Ok(reader.entries)
    }

    /// What the allocation table says comes after a cluster. The end mark is a number beyond every cluster.
    fn next_cluster(&mut self, cluster: u32) -> Result<u32, Error> {
        let index = u64::from(cluster);
        let at = |offset: u64| self.layout.fat_at + offset;
        Ok(match self.layout.kind {
            Kind::Fat12 => {
                let pair = u16::from_le_bytes(read_array(self.disk, at(index + index / 2))?);
                u32::from(if cluster.is_multiple_of(2) {
                    pair & 0xfff
                } else {
                    pair >> 4
                })
            }
            Kind::Fat16 => u32::from(u16::from_le_bytes(read_array(self.disk, at(index * 2))?)),
            Kind::Fat32 => u32::from_le_bytes(read_array(self.disk, at(index * 4))?) & 0x0fff_ffff,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fat12,
    Fat16,
    Fat32,
}

enum Root {
    /// FAT12 and FAT16: a table of its own.
    Fixed { at: u64, entries: usize },
    /// FAT32: a chain of clusters.
    Chain { first: u32 },
}

/// Where everything is, in bytes from the start of the volume. All places lie within `total_bytes`.
struct Layout {
    kind: Kind,
    total_bytes: u64,
    cluster_bytes: u32,
    clusters: u32,
    fat_at: u64,
    root: Root,
    data_at: u64,
    label: String,
}

impl Layout {
    fn read(boot: &[u8; SECTOR]) -> Result<Self, Error> {
        if boot.iter().all(|b| *b == 0) {
            return Err(not_fat("it is blank"));
        }
        if !Self::is_boot_sector(boot) {
            return Err(not_fat("its first sector is no boot sector"));
        }
        let half = |at: usize| u16::from_le_bytes([boot[at], boot[at + 1]]);
        let word = |at: usize| u32::from_le_bytes([boot[at], boot[at + 1], boot[at + 2], boot[at + 3]]);
        let either = |short: u16, long: u32| if short == 0 { long } else { u32::from(short) };

        let sector_bytes = u64::from(half(11));
        let cluster_sectors = u32::from(boot[13]);
        if !(512..=4096).contains(&sector_bytes)
            || !sector_bytes.is_power_of_two()
            || !cluster_sectors.is_power_of_two()
        {
            return Err(not_fat("its boot sector has no sensible sector or cluster size"));
        }
        let (reserved, fats, root_entries) = (u64::from(half(14)), u64::from(boot[16]), half(17));
        let total = u64::from(either(half(19), word(32)));
        let fat_sectors = u64::from(either(half(22), word(36)));
        // FAT32 has its root directory in clusters and its fat size in 32 bits; the count of clusters decides.
        let root_sectors = (u64::from(root_entries) * ENTRY as u64).div_ceil(sector_bytes);
        let data_sector = reserved + fats * fat_sectors + root_sectors;
        if reserved == 0 || fats == 0 || fat_sectors == 0 || total <= data_sector {
            return Err(not_fat("the sizes in its boot sector contradict each other"));
        }
        // `total` comes from 32 bits and a cluster has a sector at least, so that this fits.
        let clusters = u32::try_from((total - data_sector) / u64::from(cluster_sectors)).unwrap_or(u32::MAX);
        let kind = match clusters {
            0..4085 => Kind::Fat12,
            4085..65525 => Kind::Fat16,
            _ => Kind::Fat32,
        };
        let is_32 = half(22) == 0;
        if is_32 != (kind == Kind::Fat32) || is_32 != (root_entries == 0) {
            return Err(not_fat("the sizes in its boot sector contradict each other"));
        }
        let fat_bits = match kind {
            Kind::Fat12 => 12,
            Kind::Fat16 => 16,
            Kind::Fat32 => 32,
        };
        if (u64::from(clusters) + 2) * fat_bits > fat_sectors * sector_bytes * 8 {
            return Err(damaged("its allocation table is smaller than its clusters need"));
        }
        let cluster_bytes = cluster_sectors * u32::from(half(11));
        if cluster_bytes > MAX_CLUSTER_BYTES {
            return Err(not_fat("its boot sector has no sensible sector or cluster size"));
        }
        let label_at = if is_32 { 71 } else { 43 };
        let has_label = boot[label_at - 5] == 0x29;
        Ok(Self {
            kind,
            total_bytes: total * sector_bytes,
            cluster_bytes,
            clusters,
            fat_at: reserved * sector_bytes,
            root: if is_32 {
                Root::Chain { first: word(44) }
            } else {
                Root::Fixed {
                    at: (reserved + fats * fat_sectors) * sector_bytes,
                    entries: usize::from(root_entries),
                }
            },
            data_at: data_sector * sector_bytes,
            label: if has_label {
                padded(&boot[label_at..label_at + 11])
            } else {
                String::new()
            },
        })
    }

    /// Whether a sector begins with the jump over its parameters, and ends with the mark of a boot sector.
    fn is_boot_sector(boot: &[u8; SECTOR]) -> bool {
        ((boot[0] == 0xeb && boot[2] == 0x90) || boot[0] == 0xe9) && boot[510..] == [0x55, 0xaa]
    }

    /// Where a cluster's bytes are. `None` for numbers that are no cluster, such as the end mark.
    fn cluster_at(&self, cluster: u32) -> Option<u64> {
        let index = cluster.checked_sub(2)?;
        (index < self.clusters).then(|| self.data_at + u64::from(index) * u64::from(self.cluster_bytes))
    }
}

struct FileEntry {
    name: String,
    first_cluster: u32,
    size: u32,
}

enum Entry {
    File(FileEntry),
    Label(String),
}

/// Assembles directory entries: a long name comes in pieces, last piece first, before the entry it belongs to.
#[derive(Default)]
struct EntryReader {
    entries: Vec<Entry>,
    long: Option<LongName>,
}

struct LongName {
    checksum: u8,
    /// The number of the piece that must come next; 0 when the name is complete.
    next: u8,
    units: Vec<u16>,
}

impl EntryReader {
    /// Reads one stretch of the directory. Gives false at its end.
    fn take(&mut self, table: &[u8]) -> bool {
        const HIDDEN_OR_SYSTEM: u8 = 0x02 | 0x04;
        const LABEL: u8 = 0x08;
        const FOLDER: u8 = 0x10;
        const LONG_NAME: u8 = 0x0f;
        for raw in table.chunks_exact(ENTRY) {
            let attributes = raw[11] & 0x3f;
            match raw[0] {
                0 => return false,
                0xe5 => self.long = None,
                _ if attributes == LONG_NAME => self.take_long(raw),
                _ if attributes & LABEL != 0 => {
                    self.long = None;
                    self.entries.push(Entry::Label(padded(&raw[..11])));
                }
                _ if attributes & (FOLDER | HIDDEN_OR_SYSTEM) != 0 => self.long = None,
                _ => {
                    let name = self.long_name(raw).unwrap_or_else(|| short_name(raw));
                    let half = |at: usize| u32::from(u16::from_le_bytes([raw[at], raw[at + 1]]));
                    self.entries.push(Entry::File(FileEntry {
                        name,
                        first_cluster: half(20) << 16 | half(26),
                        size: half(30) << 16 | half(28),
                    }));
                }
            }
        }
        true
    }

    fn take_long(&mut self, raw: &[u8]) {
        const LAST_PIECE: u8 = 0x40;
        /// 255 characters in pieces of 13.
        const MAX_PIECES: u8 = 20;
        let number = raw[0] & 0x1f;
        if raw[0] & LAST_PIECE != 0 && (1..=MAX_PIECES).contains(&number) {
            self.long = Some(LongName {
                checksum: raw[13],
                next: number,
                units: Vec::new(),
            });
        }
        let Some(long) = &mut self.long else { return };
        if long.next != number || long.checksum != raw[13] || number == 0 {
            self.long = None;
            return;
        }
        long.next -= 1;
        let units = [1..11, 14..26, 28..32]
            .into_iter()
            .flat_map(|part| raw[part].chunks_exact(2));
        let piece = units.map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
        long.units.splice(0..0, piece);
    }

    fn long_name(&mut self, raw: &[u8]) -> Option<String> {
        let long = self.long.take()?;
        let sum = raw[..11]
            .iter()
            .fold(0_u8, |sum, b| sum.rotate_right(1).wrapping_add(*b));
        if long.next != 0 || long.checksum != sum {
            return None;
        }
        let units = long.units.split(|unit| *unit == 0).next().unwrap_or_default();
        String::from_utf16(units).ok()
    }
}

/// The name in 8.3 form. Windows and Linux mark parts that are all lower case by two bits.
fn short_name(raw: &[u8]) -> String {
    const LOWER_BASE: u8 = 0x08;
    const LOWER_EXTENSION: u8 = 0x10;
    let part = |bytes: &[u8], lower: u8| {
        let text = padded(bytes);
        if raw[12] & lower != 0 {
            text.to_ascii_lowercase()
        } else {
            text
        }
    };
    let base = part(&raw[..8], LOWER_BASE);
    let extension = part(&raw[8..11], LOWER_EXTENSION);
    if extension.is_empty() {
        base
    } else {
        format!("{base}.{extension}")
    }
}

/// A name or label as text, without the blanks that fill it up. What is not ASCII becomes a sign no name may have.
fn padded(bytes: &[u8]) -> String {
    let text: String = bytes
        .iter()
        .map(|b| {
            if b.is_ascii_graphic() || *b == b' ' {
                char::from(*b)
            } else {
                '\u{fffd}'
            }
        })
        .collect();
    text.trim_end().to_owned()
}

fn read_at(disk: &mut (impl Read + Seek), at: u64, into: &mut [u8]) -> Result<(), Error> {
    disk.seek(SeekFrom::Start(at))
        .and_then(|_| disk.read_exact(into))
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged(format!("byte {at} and after cannot be read")),
            _ => Error::io(format!("read the floppy at byte {at}"))(error),
        })
}

fn read_array<const N: usize>(disk: &mut (impl Read + Seek), at: u64) -> Result<[u8; N], Error> {
    let mut array = [0; N];
    read_at(disk, at, &mut array)?;
    Ok(array)
}

fn not_fat(reason: &str) -> Error {
    Error::NotFat {
        reason: reason.to_owned(),
    }
}

fn damaged(reason: impl Into<String>) -> Error {
    Error::Damaged {
        form: Form::Floppy,
        reason: reason.into(),
    }
}
