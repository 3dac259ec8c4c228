//! What differs between two root file systems that should be the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::Error;

/// How many differing files are named.
const SHOWN: usize = 20;

/// The differing files of two tar archives, in words.
pub(crate) fn difference(one: &Path, other: &Path) -> Result<String, Error> {
    let (left, right) = (entries(one)?, entries(other)?);
    let mut told = Vec::new();
    for (path, entry) in &left {
        match right.get(path) {
            None => told.push(format!("{path} is in the first alone")),
            Some(twin) if twin.hash != entry.hash => told.push(format!("{path} has other bytes")),
            Some(twin) if twin != entry => {
                told.push(format!("{path} has another owner, mode, time or place"))
            }
            Some(_) => {}
        }
    }
    told.extend(
        right
            .keys()
            .filter(|path| !left.contains_key(*path))
            .map(|path| format!("{path} is in the second alone")),
    );
    let more = told.len().saturating_sub(SHOWN);
    told.truncate(SHOWN);
    Ok(match (told.is_empty(), more) {
        (true, _) => "the root file systems are the same, the disks around them are not".to_owned(),
        (false, 0) => told.join("; "),
        (false, more) => format!("{}; and {more} more", told.join("; ")),
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    place: usize,
    header: Vec<u8>,
    hash: [u8; 32],
}

fn entries(path: &Path) -> Result<BTreeMap<String, Entry>, Error> {
    let read = || -> io::Result<_> {
        let mut archive = tar::Archive::new(File::open(path)?);
        let mut entries = BTreeMap::new();
        for (place, entry) in archive.entries()?.enumerate() {
            let mut entry = entry?;
            let name = entry.path()?.display().to_string();
            let header = entry.header().as_bytes().to_vec();
            let mut hash = Sha256::new();
            let mut buffer = vec![0; 1 << 16];
            loop {
                let read = entry.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                hash.update(&buffer[..read]);
            }
            let hash = hash.finalize().into();
            entries.insert(name, Entry { place, header, hash });
        }
        Ok(entries)
    };
    read().map_err(Error::file("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &str, u32)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut builder = tar::Builder::new(file.reopen().unwrap());
        for (path, text, mode) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(*mode);
            header.set_size(text.len() as u64);
            builder.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        builder.finish().unwrap();
        file
    }

    #[test]
    fn each_kind_of_difference_is_named_with_its_file() {
        let one = archive(&[
            ("a", "1", 0o644),
            ("b", "1", 0o644),
            ("c", "1", 0o644),
            ("d", "1", 0o644),
        ]);
        let other = archive(&[
            ("a", "1", 0o644),
            ("b", "2", 0o644),
            ("c", "1", 0o600),
            ("e", "1", 0o644),
        ]);
        assert_eq!(
            difference(one.path(), other.path()).unwrap(),
            "b has other bytes; c has another owner, mode, time or place; d is in the first alone; \
             e is in the second alone"
        );
        assert!(
            difference(one.path(), one.path())
                .unwrap()
                .contains("the disks around them")
        );
    }
}
