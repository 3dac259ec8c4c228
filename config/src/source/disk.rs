//! Blobs on disks: floppies, images, files, directories.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::{Answer, Read, Scan};
use crate::bundle::{Bundle, FLOPPY_LABEL, Form, MAX_CARRIER_BYTES, Volume, read_bounded};
use crate::error::Error;

/// How many block devices are looked at: a machine with more is no appliance.
const MAX_DEVICES: usize = 128;

/// The errors by which the kernel says that a drive has no medium.
const NO_MEDIUM: [i32; 3] = [6 /* ENXIO */, 5 /* EIO */, 123 /* ENOMEDIUM */];

/// What a search finds at a path: absence is no error here.
pub(super) fn answer(path: &Path) -> Answer {
    match read(path) {
        Ok(read) => Answer::Read(read),
        Err(Error::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
            Answer::Absent("it does not exist".to_owned())
        }
        Err(Error::Io { cause, .. })
            if is_device(path) && cause.raw_os_error().is_some_and(|code| NO_MEDIUM.contains(&code)) =>
        {
            Answer::Absent("there is no medium in the drive".to_owned())
        }
        Err(error) => Answer::Refused(error),
    }
}

/// Reads the bundle at a path, whatever it is.
pub(super) fn read(path: &Path) -> Result<Read, Error> {
    let action = || format!("read {}", path.display());
    let meta = fs::metadata(path).map_err(Error::io(action()))?;
    if meta.is_dir() {
        return Ok(Read {
            bundle: Bundle::from_dir(path)?,
            warnings: open_to_all(&path.join(crate::SPEC_FILE)),
        });
    }
    if !meta.is_file() && !meta.file_type().is_block_device() {
        return Err(Error::Io {
            action: action(),
            cause: io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is neither a file, a folder nor a disk",
            ),
        });
    }
    let mut file = File::open(path).map_err(Error::io(action()))?;
    // Devices have no length in their metadata.
    let size = file.seek(SeekFrom::End(0)).map_err(Error::io(action()))?;
    file.seek(SeekFrom::Start(0)).map_err(Error::io(action()))?;
    if size > MAX_CARRIER_BYTES as u64 || meta.file_type().is_block_device() {
        // Only a disk may be larger than a blob; of it no more is read than its files need.
        return Ok(Read {
            bundle: Volume::open(&mut file)?.bundle()?,
            warnings: Vec::new(),
        });
    }
    let bytes = read_bounded(&mut file, MAX_CARRIER_BYTES)
        .map_err(Error::io(action()))?
        .ok_or_else(|| Error::TooLarge {
            what: path.display().to_string(),
            limit: MAX_CARRIER_BYTES as u64,
            advice: "it grew while it was read; try again",
        })?;
    if bytes.is_empty() {
        let is_image = path.extension().is_some_and(|extension| extension == "img");
        return Err(Error::Empty {
            form: if is_image { Form::Floppy } else { Form::Toml },
        });
    }
    Ok(Read {
        bundle: Bundle::open(&bytes)?,
        warnings: open_to_all(path),
    })
}

/// The devices whose FAT volume is labelled `AERIE`. What cannot be read is left out.
pub(super) fn labelled(scan: &Scan) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(&scan.sys) else {
        return Vec::new();
    };
    let mut devices: Vec<PathBuf> = entries
        .take(MAX_DEVICES)
        .filter_map(Result::ok)
        .filter(|entry| has_medium(&entry.path()))
        .map(|entry| scan.dev.join(entry.file_name()))
        .collect();
    devices.sort();
    devices.retain(|device| {
        File::open(device).is_ok_and(|mut disk| {
            Volume::open(&mut disk)
                .and_then(|mut volume| volume.label())
                .is_ok_and(|label| label == FLOPPY_LABEL)
        })
    });
    devices
}

/// Whether two paths lead to one device.
pub(super) fn same(one: &Path, other: &Path) -> bool {
    one == other
        || fs::canonicalize(one).is_ok_and(|one| fs::canonicalize(other).is_ok_and(|other| one == other))
}

/// Whether the kernel's entry has a size: an empty drive has none, and opening it would wait for its motor.
fn has_medium(entry: &Path) -> bool {
    fs::read_to_string(entry.join("size"))
        .is_ok_and(|size| size.trim().parse().is_ok_and(|sectors: u64| sectors > 0))
}

fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

fn open_to_all(path: &Path) -> Vec<String> {
    let readable = fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0);
    if readable {
        vec![format!(
            "{} may hold secrets and everybody on this machine can read it: run 'chmod 600 {}'",
            path.display(),
            path.display()
        )]
    } else {
        Vec::new()
    }
}
