//! Copies that share what they have in common: a qcow2 image with nothing in it but the name of what it is built on.
//!
//! What such a file needs is a header, a table of reference counts and an empty L1 table, which are some hundred bytes
//! of numbers that have not changed in ten years (QEMU's docs/interop/qcow2.txt). It is written here, so that a host
//! needs no `qemu-img`, whose release would have to agree with that of its QEMU, and so that it is known which name
//! stands in it: an absolute one, of a file that is verified, with its format, so that nobody guesses at that.
//!
//! The guest that writes such a disk cannot reach its header. It could if the disk came back as an image; then the
//! name is in the way: [`crate::Store`] takes none that has one.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::error::BadContent;
use crate::limits::MAX_VIRTUAL;
use crate::{Error, Format, files};

const CLUSTER: u64 = 64 << 10;
const CLUSTER_BITS: u32 = 16;
const HEADER: u32 = 104;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const REFCOUNT_ORDER: u32 = 4;

/// The longest name that QEMU takes, in bytes.
const MAX_NAME: usize = 1023;

/// As much of a file as the name is within, in bytes.
const READ: u64 = 4096;

/// What an overlay is built on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The image's file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
}

/// Makes a disk that begins as the image it is built on, and keeps what is changed. It takes some 256 KiB.
///
/// # Errors
/// [`Error::Content`] if the disk is larger than there may be or the backing file's name too long, [`Error::File`] if
/// `path` is there already or cannot be made, [`Error::NoSpace`].
pub fn create(path: &Path, backing: &Backing, virtual_size: u64) -> Result<(), Error> {
    let name = backing.path.as_os_str().as_bytes();
    let what = || path.display().to_string();
    if virtual_size == 0 || virtual_size > MAX_VIRTUAL {
        return Err(Error::content(what())(BadContent::Disk(virtual_size)));
    }
    if name.len() > MAX_NAME || !backing.path.is_absolute() {
        return Err(Error::content(what())(BadContent::Header(
            "the image that it is built on needs an absolute path of at most 1,023 bytes",
        )));
    }
    let part = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{part}.new"));
    let (head, length) = image(name, backing.format, virtual_size);
    let made = files::new(&beside).and_then(|file| {
        file.set_len(length)
            .and_then(|()| {
                head.iter()
                    .try_for_each(|(at, bytes)| file.write_all_at(bytes, *at))
            })
            .and_then(|()| file.sync_all())
            .map_err(files::writing(&beside, length))?;
        crate::crash::point("overlay: written");
        // A link, and no renaming, since that would replace what is there.
        fs::hard_link(&beside, path).map_err(Error::file("make", path))?;
        files::sync_parent(path)
    });
    let removed = files::remove(&beside);
    made.and(removed)
}

/// The parts of the file that are not zero, with their places, and its length.
fn image(name: &[u8], format: Format, size: u64) -> (Vec<(u64, Vec<u8>)>, u64) {
    let entries = size.div_ceil(CLUSTER * (CLUSTER / 8));
    let clusters = 3 + (entries * 8).div_ceil(CLUSTER);
    let format = format.name().as_bytes();
    let mut extensions = Vec::new();
    extensions.extend_from_slice(&BACKING_FORMAT.to_be_bytes());
    extensions.extend_from_slice(&u32::try_from(format.len()).unwrap_or(0).to_be_bytes());
    extensions.extend_from_slice(format);
    extensions.resize(extensions.len().next_multiple_of(8) + 8, 0);
    let name_at = u64::from(HEADER) + extensions.len() as u64;

    let mut header = Vec::new();
    header.extend_from_slice(b"QFI\xfb");
    header.extend_from_slice(&3_u32.to_be_bytes());
    header.extend_from_slice(&name_at.to_be_bytes());
    header.extend_from_slice(&u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
    header.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
    header.extend_from_slice(&size.to_be_bytes());
    // Not encrypted.
    header.extend_from_slice(&0_u32.to_be_bytes());
    header.extend_from_slice(&u32::try_from(entries).unwrap_or(0).to_be_bytes());
    // The L1 table, the table of reference counts with its one cluster, no snapshots, no features.
    header.extend_from_slice(&(3 * CLUSTER).to_be_bytes());
    header.extend_from_slice(&CLUSTER.to_be_bytes());
    header.extend_from_slice(&1_u32.to_be_bytes());
    header.extend_from_slice(&[0; 4 + 8 + 3 * 8]);
    header.extend_from_slice(&REFCOUNT_ORDER.to_be_bytes());
    header.extend_from_slice(&HEADER.to_be_bytes());
    header.extend_from_slice(&extensions);
    header.extend_from_slice(name);

    let counts = (0..clusters).flat_map(|_| 1_u16.to_be_bytes()).collect();
    let parts = vec![
        (0, header),
        (CLUSTER, (2 * CLUSTER).to_be_bytes().to_vec()),
        (2 * CLUSTER, counts),
    ];
    (parts, clusters * CLUSTER)
}

/// What a qcow2 file is built on by its own words. `None` if nothing, or if it is no such file.
///
/// # Errors
/// [`Error::File`].
pub fn backing_of(path: &Path) -> Result<Option<Backing>, Error> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(READ).read_to_end(&mut head))
        .map_err(Error::file("read", path))?;
    Ok(read_backing(&head))
}

fn read_backing(head: &[u8]) -> Option<Backing> {
    let number = |at: usize, bytes: usize| {
        let bytes = head.get(at..at + bytes)?;
        bytes.iter().try_fold(0_usize, |sum, byte| {
            Some(sum.checked_mul(256)? + usize::from(*byte))
        })
    };
    if !head.starts_with(b"QFI\xfb") || number(8, 8)? == 0 {
        return None;
    }
    let start = number(8, 8)?;
    let name = head.get(start..start.checked_add(number(16, 4)?)?)?;
    let mut at = number(100, 4)?;
    let format = loop {
        let (kind, length) = (number(at, 4)?, number(at + 4, 4)?);
        if u32::try_from(kind).ok()? == BACKING_FORMAT {
            let name = head.get(at + 8..at.checked_add(8 + length)?)?;
            break std::str::from_utf8(name).ok().and_then(Format::of_name)?;
        }
        if kind == 0 {
            return None;
        }
        at = at.checked_add(8 + length.next_multiple_of(8))?;
    };
    Some(Backing {
        path: Path::new(std::ffi::OsStr::from_bytes(name)).to_owned(),
        format,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    #[test]
    #[ignore = "needs QEMU"]
    fn qemu_finds_the_disk_and_what_it_is_built_on() {
        let dir = tempfile::tempdir().unwrap();
        let (image, disk) = (dir.path().join("image"), dir.path().join("disk"));
        File::create(&image).unwrap().set_len(1 << 20).unwrap();
        let backing = Backing {
            path: image.clone(),
            format: Format::Raw,
        };
        create(&disk, &backing, 3 << 30).unwrap();
        let mut qemu = Command::new("qemu-system-x86_64")
            .args([
                "-machine",
                "none",
                "-display",
                "none",
                "-nodefaults",
                "-qmp",
                "stdio",
                "-blockdev",
            ])
            .arg(format!(
                "driver=qcow2,node-name=d,file.driver=file,file.filename={}",
                disk.display()
            ))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let asks = [
            r#"{"execute":"qmp_capabilities"}"#,
            r#"{"execute":"query-named-block-nodes"}"#,
            r#"{"execute":"quit"}"#,
        ];
        qemu.stdin
            .take()
            .unwrap()
            .write_all(asks.join("\n").as_bytes())
            .unwrap();
        let output = qemu.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        for part in [
            "\"virtual-size\": 3221225472",
            "\"backing-filename-format\": \"raw\"",
        ] {
            assert!(said.contains(part), "{said}");
        }
        assert!(
            said.contains(&format!("\"backing-filename\": \"{}\"", image.display())),
            "{said}"
        );
    }
}
