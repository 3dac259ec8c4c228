//! Small files, replaced whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::error::Error;

/// Longest file read in bytes: user-data, and `/etc/hosts` of a large cluster.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// Reads a file; `None` if it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<String>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let mut text = String::new();
    file.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(Error::io("read", path))?;
    if text.len() as u64 > MAX_FILE {
        return Err(Error::io("read", path)(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(Some(text))
}

/// Makes a folder and those above it.
pub(crate) fn folder(path: &Path, mode: u32) -> Result<(), Error> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(Error::io("make", path))
}

/// Replaces a file, or leaves the old one untouched: the bytes reach the disk before the name does.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&beside)
        .and_then(|mut file| {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path))
        .and_then(|()| sync_parent(path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written.map_err(Error::io("write", path))
}

/// Makes the names in a file's folder durable.
pub(crate) fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Puts a block into a file between marks of its own, in place of the last one. The rest of the file is somebody
/// else's.
pub(crate) fn put_block(path: &Path, block: &str) -> Result<(), Error> {
    const BEGIN: &str = "# begin of what aerie-context-agent writes; changes in here are lost";
    const END: &str = "# end of what aerie-context-agent writes";
    let old = read(path)?.unwrap_or_default();
    let mut kept = String::new();
    let mut inside = false;
    for (number, line) in old.lines().enumerate() {
        match line {
            // One whose end somebody has removed is no block: nothing after it is lost.
            BEGIN => inside = old.lines().skip(number).any(|line| line == END),
            END => inside = false,
            _ if inside => {}
            line => {
                kept.push_str(line);
                kept.push('\n');
            }
        }
    }
    let new = if block.is_empty() {
        kept
    } else {
        format!("{kept}{BEGIN}\n{block}{END}\n")
    };
    if new == old {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("make", parent))?;
    }
    let mode = fs::metadata(path).map_or(0o644, |meta| meta.permissions().mode() & 0o777);
    replace(path, new.as_bytes(), mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_block_without_its_end_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        put_block(&path, "10.0.0.1 a\n").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let (without, _) = text.split_once("# end").unwrap();
        fs::write(&path, format!("{without}192.0.2.1 mine\n")).unwrap();
        put_block(&path, "10.0.0.2 b\n").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("192.0.2.1 mine\n") && text.contains("10.0.0.2 b\n"),
            "{text}"
        );
    }

    #[test]
    fn a_block_is_replaced_and_the_rest_of_the_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/hosts");
        put_block(&path, "10.0.0.1 a\n").unwrap();
        let with_mine = format!(
            "127.0.0.1 localhost\n{}# mine\n",
            fs::read_to_string(&path).unwrap()
        );
        fs::write(&path, with_mine).unwrap();
        put_block(&path, "10.0.0.2 b\n").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("127.0.0.1 localhost\n# mine\n# begin"), "{text}");
        assert!(text.contains("10.0.0.2 b\n") && !text.contains("10.0.0.1"));
        put_block(&path, "").unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "127.0.0.1 localhost\n# mine\n"
        );
    }
}
