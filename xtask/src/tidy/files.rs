//! Lengths of files, and files that have to be there.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::Finding;

/// Beyond this a file is probably about two things.
const LONG: usize = 600;

/// Beyond this it needs a reason.
const TOO_LONG: usize = 1000;

/// How a file of more than [`TOO_LONG`] lines gives its reason, within its first lines.
const REASON: &str = "// Long:";
const REASON_WITHIN: usize = 5;

/// The most lines of ARCHITECTURE.md: a map, not a manual.
const MAP_LINES: usize = 200;

/// What a crate that is given its time must not call.
const CLOCKS: [&str; 2] = ["std::time::Instant::now", "std::time::SystemTime::now"];

/// The length of a Rust file.
pub(super) fn length(path: &str, text: &str) -> Option<Finding> {
    let lines = text.lines().count();
    let reason = text
        .lines()
        .take(REASON_WITHIN)
        .any(|line| line.trim_start().starts_with(REASON));
    match lines {
        0..=LONG => None,
        _ if lines <= TOO_LONG || reason => {
            (!reason).then(|| Finding::Warning(format!("{path} has {lines} lines; split it by meaning")))
        }
        _ => Some(Finding::Error(format!(
            "{path} has {lines} lines; split it by meaning, or give the reason in its first lines: {REASON} ..."
        ))),
    }
}

/// The architecture's map.
pub(super) fn map(text: Option<&str>) -> Option<Finding> {
    match text.map(|text| text.lines().count()) {
        None => Some(Finding::Error("there is no ARCHITECTURE.md".to_owned())),
        Some(lines) if lines > MAP_LINES => Some(Finding::Error(format!(
            "ARCHITECTURE.md has {lines} lines; keep the map within {MAP_LINES} and move details to the modules"
        ))),
        Some(_) => None,
    }
}

/// A protocol crate's `clippy.toml` replaces the root's: it has to ban the clocks and repeat the root's entries.
pub(super) fn clippy_bans(package: &str, root: &str, own: Option<&str>) -> Result<Vec<Finding>> {
    let Some(own) = own else {
        return Ok(vec![Finding::Error(format!(
            "{package} has no clippy.toml; it has to ban {} and repeat the root's entries",
            CLOCKS.join(" and ")
        ))]);
    };
    let root: Table = root.parse().context("the root's clippy.toml is not TOML")?;
    let own: Table = own
        .parse()
        .with_context(|| format!("the clippy.toml of {package} is not TOML"))?;
    let mut findings = Vec::new();
    let banned = paths(own.get("disallowed-methods"));
    let wanted = paths(root.get("disallowed-methods"));
    for path in CLOCKS
        .iter()
        .map(|clock| (*clock).to_owned())
        .chain(wanted)
        .filter(|path| !banned.contains(path))
    {
        findings.push(Finding::Error(format!(
            "the clippy.toml of {package} does not ban {path}; add it to disallowed-methods"
        )));
    }
    for (key, value) in root.iter().filter(|(key, _)| *key != "disallowed-methods") {
        if own.get(key) != Some(value) {
            findings.push(Finding::Error(format!(
                "the clippy.toml of {package} does not repeat the root's entry: {key} = {value}"
            )));
        }
    }
    Ok(findings)
}

/// The paths of a list whose entries are texts or tables with a `path`.
fn paths(list: Option<&Value>) -> BTreeSet<String> {
    let entries = list.and_then(Value::as_array).into_iter().flatten();
    entries
        .filter_map(|entry| {
            entry
                .as_str()
                .or_else(|| entry.get("path").and_then(Value::as_str))
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_a_warning_and_a_longer_one_an_error() {
        assert_eq!(length("a.rs", &"x\n".repeat(600)), None);
        assert!(matches!(
            length("a.rs", &"x\n".repeat(601)),
            Some(Finding::Warning(_))
        ));
        assert!(matches!(
            length("a.rs", &"x\n".repeat(1001)),
            Some(Finding::Error(_))
        ));
    }

    #[test]
    fn a_reason_excuses_a_long_file_only_at_its_head() {
        let body = "x\n".repeat(1200);
        assert_eq!(length("a.rs", &format!("// Long: one table.\n{body}")), None);
        assert!(matches!(
            length("a.rs", &format!("{body}// Long: late.\n")),
            Some(Finding::Error(_))
        ));
    }

    #[test]
    fn the_map_has_to_exist_and_to_stay_short() {
        assert!(map(None).is_some());
        assert!(map(Some(&"line\n".repeat(201))).is_some());
        assert_eq!(map(Some("# Architecture\n")), None);
    }

    const ROOT: &str = "allow-unwrap-in-tests = true\ndisallowed-methods = [\"std::env::set_var\"]\n";

    #[test]
    fn a_protocol_crate_without_the_bans_is_an_error() {
        assert_eq!(clippy_bans("p", ROOT, None).unwrap().len(), 1);
        let own = "disallowed-methods = [{ path = \"std::time::Instant::now\" }]\n";
        let findings = format!("{:?}", clippy_bans("p", ROOT, Some(own)).unwrap());
        assert!(findings.contains("SystemTime::now"), "{findings}");
        assert!(!findings.contains("Instant::now"), "{findings}");
        assert!(
            findings.contains("set_var") && findings.contains("allow-unwrap-in-tests"),
            "{findings}"
        );
    }

    #[test]
    fn the_bans_may_be_written_as_texts_or_tables() {
        let own = "allow-unwrap-in-tests = true\ndisallowed-methods = [\"std::env::set_var\", \
                   { path = \"std::time::Instant::now\", reason = \"now is an argument\" }, \
                   \"std::time::SystemTime::now\"]\n";
        assert_eq!(clippy_bans("p", ROOT, Some(own)).unwrap(), []);
    }
}
