//! A managed block in a hosts file.
//!
//! Lines between two markers with the grid's short id are ours; every other line stays as it is. The file is
//! replaced atomically. Where it cannot be replaced, because it is a bind mount as in containers, it is rewritten
//! in place.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use aerie_types::VirtualAddr;

use crate::Error;

/// The largest hosts file that is touched: beyond it something else is wrong.
const MAX_FILE: u64 = 4 << 20;

/// One line: an address and its names, the full name first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostsLine {
    /// The address.
    pub addr: VirtualAddr,
    /// Its names.
    pub names: Vec<String>,
}

/// The block of one grid in a hosts file. Dropping it removes the block.
#[derive(Debug)]
pub struct HostsFile {
    path: PathBuf,
    begin: String,
    end: String,
    written: bool,
}

impl HostsFile {
    /// The block of the grid with this short id ([`aerie_types::GridId::short`]). Nothing is written yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, grid: &str) -> Self {
        Self {
            path: path.into(),
            begin: format!("# BEGIN aerie {grid}: written by the aerie daemon, removed when it ends"),
            end: format!("# END aerie {grid}"),
            written: false,
        }
    }

    /// Replaces the block. Nothing is written if it stands there already.
    ///
    /// # Errors
    /// [`Error::Hosts`].
    pub fn write(&mut self, lines: &[HostsLine]) -> Result<(), Error> {
        let mut block = format!("{}\n", self.begin);
        for line in lines {
            block.push_str(&format!("{}\t{}\n", line.addr, line.names.join(" ")));
        }
        block.push_str(&format!("{}\n", self.end));
        self.replace(&block)?;
        self.written = true;
        Ok(())
    }

    /// Removes the block, also one that a crash has left.
    ///
    /// # Errors
    /// [`Error::Hosts`].
    pub fn remove(&mut self) -> Result<(), Error> {
        self.replace("")?;
        self.written = false;
        Ok(())
    }

    fn replace(&self, block: &str) -> Result<(), Error> {
        let fail = |action| {
            move |source| Error::Hosts {
                path: self.path.clone(),
                action,
                source,
            }
        };
        let old = read(&self.path).map_err(fail("read"))?;
        let mut new = self.without_block(&old);
        if !block.is_empty() {
            if !new.is_empty() && !new.ends_with('\n') {
                new.push('\n');
            }
            new.push_str(block);
        }
        if new == old {
            return Ok(());
        }
        write(&self.path, &new).map_err(fail("written"))
    }

    /// The file without our block. A begin without its end is only a line: what follows it is not ours to take.
    fn without_block(&self, text: &str) -> String {
        let mut kept = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, inside)) = split_at_line(rest, &self.begin) {
            kept.push_str(before);
            let Some((_, after)) = split_at_line(inside, &self.end) else {
                rest = inside;
                continue;
            };
            rest = after;
        }
        kept.push_str(rest);
        kept
    }
}

impl Drop for HostsFile {
    fn drop(&mut self) {
        if self.written
            && let Err(error) = self.remove()
        {
            tracing::warn!(%error, "the names of the grid stay in the hosts file");
        }
    }
}

/// Splits a text around the first line that is `line`.
fn split_at_line<'a>(text: &'a str, line: &str) -> Option<(&'a str, &'a str)> {
    let mut at = 0;
    for candidate in text.split_inclusive('\n') {
        let end = at + candidate.len();
        if candidate.trim_end() == line {
            return Some((&text[..at], &text[end..]));
        }
        at = end;
    }
    None
}

fn read(path: &Path) -> io::Result<String> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_FILE => Err(io::Error::new(ErrorKind::FileTooLarge, "it is over 4 MiB")),
        Ok(_) => fs::read_to_string(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // A link stays a link: its target is what is replaced.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut temporary = path.clone().into_os_string();
    temporary.push(".aerie-new");
    let temporary = PathBuf::from(temporary);
    let replaced = stage(&temporary, &path, text).and_then(|()| fs::rename(&temporary, &path));
    let Err(error) = replaced else {
        return Ok(());
    };
    // What is left of a try that failed; it may not exist.
    let _ = fs::remove_file(&temporary);
    if !only_in_place(&error) {
        return Err(error);
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Whether a file may still be written in place where it cannot be replaced: it is a mount of its own, or its folder
/// is not writable. Anything else, such as a full disk, would empty the file.
fn only_in_place(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ResourceBusy
            | ErrorKind::CrossesDevices
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::PermissionDenied
    )
}

fn stage(temporary: &Path, path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::File::create(temporary)?;
    match fs::metadata(path) {
        Ok(meta) => {
            file.set_permissions(meta.permissions())?;
            let (user, group) = (
                std::os::unix::fs::MetadataExt::uid(&meta),
                std::os::unix::fs::MetadataExt::gid(&meta),
            );
            std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
        }
        Err(_) => file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?,
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_full_disk_leaves_the_file_as_it_is() {
        assert!(
            only_in_place(&io::Error::from_raw_os_error(16)),
            "a mount of its own"
        );
        assert!(
            only_in_place(&io::Error::from_raw_os_error(30)),
            "a read-only folder"
        );
        for other in [28, 122, 5] {
            assert!(!only_in_place(&io::Error::from_raw_os_error(other)), "{other}");
        }
    }

    fn line(last: u8, name: &str) -> HostsLine {
        HostsLine {
            addr: Ipv4Addr::new(100, 96, 0, last).into(),
            names: vec![format!("{name}.lab.grid"), name.into()],
        }
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    const OTHERS: &str = "127.0.0.1\tlocalhost\n# mine\n10.0.0.1 printer";

    #[test]
    fn a_block_is_written_replaced_and_removed_while_other_lines_stay() {
        let (_dir, path) = file(OTHERS);
        let mut hosts = HostsFile::new(&path, "ab12cd34");
        hosts.write(&[line(1, "a")]).unwrap();
        hosts.write(&[line(1, "a"), line(2, "b")]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(OTHERS), "{text}");
        assert_eq!(text.matches("BEGIN").count(), 1);
        assert!(text.contains("100.96.0.2\tb.lab.grid b\n"), "{text}");
        drop(hosts);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{OTHERS}\n"));
    }

    #[test]
    fn two_grids_have_a_block_each() {
        let (_dir, path) = file(OTHERS);
        let mut one = HostsFile::new(&path, "11111111");
        let mut two = HostsFile::new(&path, "22222222");
        one.write(&[line(1, "a")]).unwrap();
        two.write(&[line(2, "b")]).unwrap();
        one.write(&[line(3, "c")]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("100.96.0.2") && text.contains("100.96.0.3") && !text.contains("100.96.0.1\t"));
        one.remove().unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("100.96.0.2"));
    }

    #[test]
    fn a_block_without_its_end_takes_no_other_line_with_it() {
        let damaged = "127.0.0.1 localhost\n# BEGIN aerie ab12cd34: written by the aerie daemon, removed when it ends\n10.0.0.1 printer\n";
        let (_dir, path) = file(damaged);
        let mut hosts = HostsFile::new(&path, "ab12cd34");
        hosts.write(&[line(1, "a")]).unwrap();
        hosts.remove().unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "127.0.0.1 localhost\n10.0.0.1 printer\n"
        );
    }

    #[test]
    fn the_mode_stays_and_nothing_is_left_beside_the_file() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, path) = file(OTHERS);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let mut hosts = HostsFile::new(&path, "ab12cd34");
        hosts.write(&[line(1, "a")]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
