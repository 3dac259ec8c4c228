//! File names that survive every carrier.

use super::{Form, MAX_NAME_BYTES, SPEC_FILE};
use crate::error::Error;

/// How many characters of a name are shown.
const MAX_SHOWN: usize = 80;

/// The name, checked. The spec's own name is accepted in any case, since FAT tools change it.
pub(super) fn checked(name: &str) -> Result<String, Error> {
    if name.eq_ignore_ascii_case(SPEC_FILE) {
        return Ok(SPEC_FILE.to_owned());
    }
    match fault(name) {
        None => Ok(name.to_owned()),
        Some(reason) => Err(Error::FileName {
            name: shown(name),
            reason,
        }),
    }
}

/// What operating systems leave behind in folders: never part of a bundle.
pub(super) fn is_clutter(name: &str) -> bool {
    let leads_elsewhere = name.contains(['/', '\\']);
    !leads_elsewhere && (name.is_empty() || name.starts_with(['.', '_']) || name.ends_with('~'))
}

/// Refuses a carrier without a spec before anything of it is read: it is somebody else's, whatever it holds.
pub(super) fn require_spec<'n>(
    form: Form,
    names: impl Iterator<Item = &'n str> + Clone,
) -> Result<(), Error> {
    const MAX_LISTED: usize = 4;
    if names.clone().any(|name| name.eq_ignore_ascii_case(SPEC_FILE)) {
        return Ok(());
    }
    let mut files = names.filter(|name| !is_clutter(name)).map(shown);
    let mut listed: Vec<String> = files.by_ref().take(MAX_LISTED).collect();
    if files.next().is_some() {
        listed.push("and others".to_owned());
    }
    Err(Error::NoSpec {
        form,
        holds: if listed.is_empty() {
            "it holds no files".to_owned()
        } else {
            format!("it holds {}", listed.join(", "))
        },
    })
}

/// A name fit for a message, whatever it is.
pub(super) fn shown(name: &str) -> String {
    name.escape_debug().take(MAX_SHOWN).collect()
}

fn fault(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Some("it is empty or too long");
    }
    if name.contains(['/', '\\']) {
        return Some("it names a place in another folder");
    }
    if !name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    {
        return Some("it has a character that is not allowed");
    }
    if !name.as_bytes()[0].is_ascii_alphanumeric() {
        return Some("it begins with a sign");
    }
    name.ends_with('.').then_some("it ends with a dot")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leaves_the_bundle_is_refused() {
        for bad in [
            "../etc/passwd",
            "/etc/passwd",
            "a/b",
            "a\\b",
            "",
            ".",
            "..",
            "a.",
            "-rf",
            "a b",
            "ä",
        ] {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_spec_is_known_in_any_case() {
        assert_eq!(checked("AERIE.TOML").unwrap(), SPEC_FILE);
    }
}
