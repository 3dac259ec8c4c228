//! The Debian mirror that this host already uses, read from apt's own lists.
//!
//! Both forms are read: one-line `*.list` and deb822 `*.sources`. The archive wanted is the one that serves the
//! host's own release (or Debian's `stable`) with the component `main`; the same archive serves other releases too.
//! `AERIE_DEBIAN_MIRROR` overrides what is found.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The URI of the archive.
///
/// # Errors
/// When apt's lists name no Debian archive; the message says how to name one.
pub fn debian_mirror() -> Result<String> {
    if let Some(mirror) = std::env::var("AERIE_DEBIAN_MIRROR")
        .ok()
        .filter(|text| !text.is_empty())
    {
        return Ok(mirror);
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = codename(&release).unwrap_or("stable").to_owned();
    let mut texts = Vec::new();
    texts.extend(
        fs::read_to_string("/etc/apt/sources.list")
            .ok()
            .map(|text| (false, text)),
    );
    let mut entries: Vec<_> = fs::read_dir("/etc/apt/sources.list.d")
        .map(|dir| dir.filter_map(Result::ok).map(|entry| entry.path()).collect())
        .unwrap_or_default();
    entries.sort();
    for path in entries {
        let deb822 = match path.extension().and_then(|ext| ext.to_str()) {
            Some("sources") => true,
            Some("list") => false,
            _ => continue,
        };
        texts.extend(read(&path).map(|text| (deb822, text)));
    }
    texts
        .iter()
        .find_map(|(deb822, text)| {
            if *deb822 {
                from_deb822(text, &codename)
            } else {
                from_list(text, &codename)
            }
        })
        .with_context(|| {
            format!(
                "apt's lists in /etc/apt name no Debian archive for '{codename}'; \
                 set AERIE_DEBIAN_MIRROR to the URI of one"
            )
        })
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn codename(os_release: &str) -> Option<&str> {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"'))
}

/// Reads lines such as `deb [signed-by=...] URI SUITE COMPONENT...`.
fn from_list(text: &str, codename: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let line = line.trim().strip_prefix("deb")?;
        let line = line.strip_prefix([' ', '\t'])?.trim_start();
        let line = match line.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => line,
        };
        let mut words = line.split_whitespace();
        let uri = words.next()?;
        let suite = words.next()?;
        (suite == codename && words.any(|component| component == "main")).then(|| uri.to_owned())
    })
}

/// Reads stanzas of `Key: value` lines parted by empty lines.
fn from_deb822(text: &str, codename: &str) -> Option<String> {
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).find_map(|stanza| {
        let field = |name: &str| {
            let mut values = stanza.iter().filter_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            });
            values.next().unwrap_or_default()
        };
        let has = |name: &str, word: &str| field(name).split_whitespace().any(|other| other == word);
        let off = field("Enabled").eq_ignore_ascii_case("no");
        (!off && has("Types", "deb") && has("Suites", codename) && has("Components", "main"))
            .then(|| field("URIs").split_whitespace().next().map(str::to_owned))
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_of_the_hosts_release_is_found_in_deb822() {
        let text = "Types: deb\n# a remark\nURIs: http://other.example/tools\nSuites: nodistro\nComponents: main\n\n\
                    Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main\n";
        assert_eq!(
            from_deb822(text, "bookworm").as_deref(),
            Some("http://mirror.example/debian")
        );
        assert_eq!(from_deb822(text, "sid"), None);
    }

    #[test]
    fn a_stanza_that_is_off_is_not_used() {
        let text = "Enabled: no\nTypes: deb\nURIs: http://a.example\nSuites: bookworm\nComponents: main\n";
        assert_eq!(from_deb822(text, "bookworm"), None);
    }

    #[test]
    fn the_archive_of_the_hosts_release_is_found_in_a_list_with_options() {
        let text = "# deb http://no.example bookworm main\n\
                    deb-src http://no.example bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib\n";
        assert_eq!(
            from_list(text, "bookworm").as_deref(),
            Some("http://mirror.example/debian")
        );
    }
}
