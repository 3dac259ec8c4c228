//! Writing ISO 9660 volumes with Joliet names (ECMA-119; Joliet Specification, May 1995).
//!
//! ```text
//!  sector  16        17      18   19, 20    21, 22    23 ...                        ...
//!          primary   Joliet  end  path      path      folders, by ISO's names,      files
//!          volume    volume       tables    tables    then again by Joliet's
//! ```
//!
//! The tree is written twice with the same files: who knows Joliet sees names as they are, others see them in capitals,
//! which Linux makes small again. The same files give the same bytes.

use crate::BadDisc;

const SECTOR: usize = 2048;

/// The longest name in bytes: what both forms take.
const MAX_NAME: usize = 30;

const TABLES: usize = 19;
const FIRST_FOLDER: usize = 23;

/// 2000-01-01 00:00:00 UTC, as folders have it and as volumes do: whoever writes the same has the same bytes.
const FOLDER_DATE: [u8; 7] = [100, 1, 1, 0, 0, 0, 0];
const VOLUME_DATE: &[u8; 17] = b"2000010100000000\0";
const NO_DATE: &[u8; 17] = b"0000000000000000\0";

/// Joliet's third level: all of UCS-2.
const JOLIET: &[u8; 3] = b"%/E";

/// A folder while it is laid out. The root is the first, and each comes after its parent.
struct Folder<'a> {
    name: &'a str,
    parent: usize,
    files: Vec<(&'a str, &'a [u8])>,
}

/// How names are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Iso,
    Joliet,
}

impl Form {
    fn text(self, text: &str) -> Vec<u8> {
        match self {
            Self::Iso => text.as_bytes().to_vec(),
            Self::Joliet => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        }
    }

    fn folder(self, name: &str) -> Vec<u8> {
        match self {
            Self::Iso => name.to_ascii_uppercase().into_bytes(),
            Self::Joliet => self.text(name),
        }
    }

    fn file(self, name: &str) -> Vec<u8> {
        match self {
            // A name without a dot has one all the same.
            Self::Iso if name.contains('.') => format!("{};1", name.to_ascii_uppercase()).into_bytes(),
            Self::Iso => format!("{}.;1", name.to_ascii_uppercase()).into_bytes(),
            Self::Joliet => self.text(&format!("{name};1")),
        }
    }
}

/// A volume with files by their paths: folders and names of ASCII letters, digits, dots, hyphens and underscores.
///
/// # Errors
/// [`BadDisc`] where a name or a folder does not fit.
pub(super) fn volume(label: &str, files: &[(&str, &[u8])]) -> Result<Vec<u8>, BadDisc> {
    let folders = folders(files)?;
    let forms = [Form::Iso, Form::Joliet];
    // Each folder has one sector in each form, each file begins a sector.
    let first_file = FIRST_FOLDER + 2 * folders.len();
    let mut next = first_file;
    let mut places = Vec::new();
    for (_, bytes) in folders.iter().flat_map(|folder| &folder.files) {
        places.push(next);
        next += bytes.len().div_ceil(SECTOR).max(1);
    }
    let mut image = vec![0; next * SECTOR];
    let mut put = |sector: usize, bytes: &[u8]| {
        let at = sector * SECTOR;
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    for (n, form) in forms.into_iter().enumerate() {
        let first = FIRST_FOLDER + n * folders.len();
        let little = path_table(&folders, form, first, u32::to_le_bytes, u16::to_le_bytes);
        let big = path_table(&folders, form, first, u32::to_be_bytes, u16::to_be_bytes);
        let tables = TABLES + 2 * n;
        if little.len() > SECTOR {
            return Err(BadDisc::TooMany);
        }
        put(
            16 + n,
            &descriptor(label, form, next, little.len(), tables, first),
        );
        put(tables, &little);
        put(tables + 1, &big);
        for (number, bytes) in folder_sectors(&folders, form, first, &places)?
            .into_iter()
            .enumerate()
        {
            put(first + number, &bytes);
        }
    }
    put(18, b"\xffCD001\x01");
    let all = folders.iter().flat_map(|folder| &folder.files);
    for ((_, bytes), place) in all.zip(&places) {
        put(*place, bytes);
    }
    Ok(image)
}

/// The folders of all paths, sorted as volumes have them: by depth, and by name within a parent.
fn folders<'a>(files: &[(&'a str, &'a [u8])]) -> Result<Vec<Folder<'a>>, BadDisc> {
    let root = Folder {
        name: "",
        parent: 0,
        files: Vec::new(),
    };
    let mut folders = vec![root];
    let mut sorted: Vec<_> = files
        .iter()
        .map(|(path, bytes)| (path.split('/').collect::<Vec<_>>(), *bytes))
        .collect();
    sorted.sort();
    let deepest = sorted.iter().map(|(path, _)| path.len()).max().unwrap_or(0);
    // One depth after the other: the folders of a depth stand before all that are deeper.
    let mut at = vec![0; sorted.len()];
    for depth in 0..deepest {
        for ((path, bytes), at) in sorted.iter().zip(&mut at) {
            let Some(name) = path.get(depth) else { continue };
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
                return Err(BadDisc::Name((*name).to_owned()));
            }
            if depth + 1 == path.len() {
                folders[*at].files.push((name, bytes));
                continue;
            }
            let parent = *at;
            let known = folders
                .iter()
                .enumerate()
                .skip(1)
                .find(|(_, folder)| folder.parent == parent && folder.name == *name);
            *at = match known {
                Some((number, _)) => number,
                None => {
                    folders.push(Folder {
                        name,
                        parent,
                        files: Vec::new(),
                    });
                    folders.len() - 1
                }
            };
        }
    }
    Ok(folders)
}

fn path_table(
    folders: &[Folder<'_>],
    form: Form,
    first: usize,
    four: fn(u32) -> [u8; 4],
    two: fn(u16) -> [u8; 2],
) -> Vec<u8> {
    let mut table = Vec::new();
    for (number, folder) in folders.iter().enumerate() {
        let name = if number == 0 {
            vec![0]
        } else {
            form.folder(folder.name)
        };
        table.extend([name.len() as u8, 0]);
        table.extend(four((first + number) as u32));
        table.extend(two(folder.parent as u16 + 1));
        table.extend(&name);
        table.resize(table.len().next_multiple_of(2), 0);
    }
    table
}

fn folder_sectors(
    folders: &[Folder<'_>],
    form: Form,
    first: usize,
    places: &[usize],
) -> Result<Vec<Vec<u8>>, BadDisc> {
    let mut places = places.iter();
    let mut sectors = Vec::new();
    for (number, folder) in folders.iter().enumerate() {
        let mut entries = Vec::new();
        for (file, bytes) in &folder.files {
            let place = places.next().copied().unwrap_or_default();
            let name = form.file(file);
            entries.push((name.clone(), record(&name, place, bytes.len(), 0)));
        }
        for (child, folder) in folders.iter().enumerate().skip(1) {
            if folder.parent == number {
                let name = form.folder(folder.name);
                entries.push((name.clone(), record(&name, first + child, SECTOR, 2)));
            }
        }
        entries.sort();
        let mut bytes = record(&[0], first + number, SECTOR, 2);
        bytes.extend(record(&[1], first + folder.parent, SECTOR, 2));
        bytes.extend(entries.into_iter().flat_map(|(_, record)| record));
        if bytes.len() > SECTOR {
            return Err(BadDisc::TooMany);
        }
        sectors.push(bytes);
    }
    Ok(sectors)
}

/// An entry of a folder; its kind is 2 for a folder.
fn record(name: &[u8], sector: usize, length: usize, kind: u8) -> Vec<u8> {
    let size = (33 + name.len()).next_multiple_of(2);
    let mut bytes = vec![size as u8, 0];
    bytes.extend(both(sector as u32));
    bytes.extend(both(length as u32));
    bytes.extend(FOLDER_DATE);
    bytes.extend([kind, 0, 0, 1, 0, 0, 1, name.len() as u8]);
    bytes.extend(name);
    bytes.resize(size, 0);
    bytes
}

fn descriptor(label: &str, form: Form, sectors: usize, table: usize, tables: usize, root: usize) -> Vec<u8> {
    // What nobody filled in is spaces.
    let field = |text: &str, size: usize| {
        let mut bytes = form.text(text);
        let blank: &[u8] = match form {
            Form::Iso => b" ",
            Form::Joliet => b"\0 ",
        };
        while bytes.len() < size {
            bytes.extend(blank);
        }
        bytes.truncate(size);
        bytes
    };
    let mut bytes = vec![if form == Form::Iso { 1 } else { 2 }];
    bytes.extend(b"CD001\x01\0");
    bytes.extend(field("", 32));
    bytes.extend(field(label, 32));
    bytes.extend([0; 8]);
    bytes.extend(both(sectors as u32));
    let mut escape = [0; 32];
    if form == Form::Joliet {
        escape[..3].copy_from_slice(JOLIET);
    }
    bytes.extend(escape);
    // One volume, the first of one, in blocks of a sector.
    bytes.extend([1, 0, 0, 1, 1, 0, 0, 1, 0, 8, 8, 0]);
    bytes.extend(both(table as u32));
    bytes.extend((tables as u32).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend((tables as u32 + 1).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(record(&[0], root, SECTOR, 2));
    for size in [128, 128, 128, 128, 37, 37, 37] {
        bytes.extend(field("", size));
    }
    bytes.extend(VOLUME_DATE);
    bytes.extend(VOLUME_DATE);
    bytes.extend(NO_DATE);
    bytes.extend(NO_DATE);
    bytes.push(1);
    bytes
}

/// A number in both orders of bytes.
fn both(number: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    /// Every file below a folder, read as a kernel would: by the records alone.
    fn walk(image: &[u8], record: &[u8], path: &str, joliet: bool, found: &mut Vec<(String, Vec<u8>)>) {
        let (sector, length) = (word(record, 2), word(record, 10));
        let bytes = &image[sector * SECTOR..sector * SECTOR + length];
        if record[25] & 2 == 0 {
            found.push((path.to_owned(), bytes.to_vec()));
            return;
        }
        let mut at = 0;
        let mut number = 0;
        while bytes[at] != 0 {
            let entry = &bytes[at..at + usize::from(bytes[at])];
            let name = &entry[33..33 + usize::from(entry[32])];
            if number >= 2 {
                let name: String = if joliet {
                    name.chunks(2).map(|pair| char::from(pair[1])).collect()
                } else {
                    String::from_utf8(name.to_ascii_lowercase()).unwrap()
                };
                let name = name.trim_end_matches(";1").trim_end_matches('.');
                walk(image, entry, &format!("{path}/{name}"), joliet, found);
            }
            number += 1;
            at += entry.len();
        }
    }

    const FILES: [(&str, &[u8]); 4] = [
        ("openstack/latest/meta_data.json", b"{}"),
        ("openstack/latest/user_data", &[7; 5000]),
        ("openstack/2015-10-15/user_data", b""),
        ("user-data", b"x"),
    ];

    #[test]
    fn every_file_is_found_by_both_kinds_of_names() {
        let image = volume("config-2", &FILES).unwrap();
        assert_eq!(image.len() % SECTOR, 0);
        for (n, joliet) in [(16, false), (17, true)] {
            let descriptor = &image[n * SECTOR..(n + 1) * SECTOR];
            assert_eq!(&descriptor[1..6], b"CD001");
            assert_eq!(word(descriptor, 80) * SECTOR, image.len());
            let mut found = Vec::new();
            walk(&image, &descriptor[156..190], "", joliet, &mut found);
            found.sort();
            let mut wanted: Vec<_> = FILES
                .map(|(path, bytes)| (format!("/{path}"), bytes.to_vec()))
                .to_vec();
            wanted.sort();
            assert_eq!(found, wanted);
        }
        assert_eq!(&image[16 * SECTOR + 40..16 * SECTOR + 49], b"config-2 ");
    }

    #[test]
    fn the_same_files_give_the_same_bytes_in_any_order() {
        let mut turned = FILES;
        turned.reverse();
        assert_eq!(volume("x", &FILES).unwrap(), volume("x", &turned).unwrap());
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        for path in ["a//b", "", "ä", "a b", &"x".repeat(31)] {
            assert!(
                matches!(volume("x", &[(path, b"")]), Err(BadDisc::Name(_))),
                "{path}"
            );
        }
        let many: Vec<_> = (0..100).map(|n| format!("file-{n:03}")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
        assert!(matches!(volume("x", &many), Err(BadDisc::TooMany)));
    }
}
