//! A grid's block in the hosts file: for machines whose resolver has no hook for ours.
//!
//! ```text
//! 127.0.0.1 localhost                 everything outside of the block is left as it is
//! # aerie 1b2c3d4e begin
//! 100.96.0.7 w1.lab.grid w1 C096000007
//! # aerie 1b2c3d4e end
//! ```

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;

use aerie_types::GridId;

/// Writes a grid's block, in place of the one before. Nothing is written where nothing changes.
///
/// # Errors
/// What the system refuses.
pub fn write_block(path: &Path, grid: GridId, lines: &[(IpAddr, Vec<String>)]) -> io::Result<()> {
    let mut block = String::new();
    for (addr, names) in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(block, "{addr} {}", names.join(" "));
    }
    replace(path, grid, &block)
}

/// Removes a grid's block.
///
/// # Errors
/// What the system refuses.
pub fn remove_block(path: &Path, grid: GridId) -> io::Result<()> {
    replace(path, grid, "")
}

fn replace(path: &Path, grid: GridId, block: &str) -> io::Result<()> {
    let old = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let new = with_block(&old, grid, block);
    if new == old { Ok(()) } else { put(path, &new) }
}

fn with_block(old: &str, grid: GridId, block: &str) -> String {
    let (begin, end) = (format!("# aerie {} begin", grid.short()), format!("# aerie {} end", grid.short()));
    let mut text = String::new();
    let mut inside = false;
    for line in old.lines() {
        if line == begin {
            inside = true;
        } else if line == end {
            inside = false;
        } else if !inside {
            text.push_str(line);
            text.push('\n');
        }
    }
    if !block.is_empty() {
        text.push_str(&format!("{begin}\n{block}{end}\n"));
    }
    text
}

/// Replaces the file at once. Where it is a mount of its own, as in a container, it can only be written in place.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let next = path.with_extension("aerie-new");
    let replaced = fs::metadata(path).map(|meta| meta.permissions()).map_or(Ok(()), |permissions| {
        fs::File::create(&next).and_then(|file| file.set_permissions(permissions))
    });
    let replaced = replaced
        .and_then(|()| {
            let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).open(&next)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&next, path));
    if replaced.is_ok() {
        return Ok(());
    }
    let _ = fs::remove_file(&next);
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: GridId = GridId([0xab; 16]);

    fn lines() -> Vec<(IpAddr, Vec<String>)> {
        vec![([100, 96, 0, 7].into(), vec!["w1.lab.grid".to_owned(), "w1".to_owned()])]
    }

    #[test]
    fn a_block_is_written_replaced_and_removed_and_other_lines_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        let other = "127.0.0.1 localhost\n# mine\n";
        fs::write(&path, other).unwrap();
        write_block(&path, GRID, &lines()).unwrap();
        write_block(&path, GRID, &lines()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            format!("{other}# aerie abababab begin\n100.96.0.7 w1.lab.grid w1\n# aerie abababab end\n")
        );
        remove_block(&path, GRID).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), other);
    }

    #[test]
    fn the_block_of_another_grid_stays() {
        let theirs = "# aerie 01010101 begin\n1.2.3.4 x\n# aerie 01010101 end\n";
        let text = with_block(theirs, GRID, "5.6.7.8 y\n");
        assert!(text.starts_with(theirs) && text.contains("5.6.7.8 y"), "{text}");
    }

    #[test]
    fn a_hosts_file_that_is_not_there_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        write_block(&path, GRID, &lines()).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("w1.lab.grid"));
    }
}
