//! What came from the broker, as files.
//!
//! ```text
//!  STATE/current -> versions/N/
//!    context member version       a line each
//!    environment                  the same as assignments of the shell
//!    requires.xml  view.json      the filled template
//!    hosts                        lines for /etc/hosts: address, full name, short name
//!    known_hosts                  lines for ssh: names and address, key
//!    hosts.equiv                  a host name a line
//!    roles/ROLE                   a line for each that plays it: address, and host name where it is required
//!    data/NAME                    the blob, where there is one of the name
//!    data/NAME.d/MEMBER           the blob of each member that brought one
//! ```
//!
//! A version is complete before `current` leads to it, and `current` leads to one or the other at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aerie_context_proto::{HostKey, HostName, View, xml};

use crate::error::Error;
use crate::files;

/// How many versions are kept: the last one beside the current helps whoever looks for a fault.
const KEEP: usize = 2;

/// Writes a version, if it is not there, and makes it the current one. Gives its folder.
pub(crate) fn write(state: &Path, view: &View) -> Result<PathBuf, Error> {
    let versions = state.join("versions");
    files::folder(&versions, 0o700)?;
    let dir = versions.join(view.version.to_string());
    // What a version has for a member never changes.
    if !dir.exists() {
        let beside = versions.join(".new");
        if beside.exists() {
            fs::remove_dir_all(&beside).map_err(Error::io("remove", &beside))?;
        }
        fill(&beside, view)?;
        fs::rename(&beside, &dir)
            .and_then(|()| files::sync_parent(&dir))
            .map_err(Error::io("write", &dir))?;
    }
    let link = state.join("current");
    let beside = state.join(".current");
    let _ = fs::remove_file(&beside);
    std::os::unix::fs::symlink(Path::new("versions").join(view.version.to_string()), &beside)
        .and_then(|()| fs::rename(&beside, &link))
        .and_then(|()| files::sync_parent(&link))
        .map_err(Error::io("write", &link))?;
    forget(&versions)?;
    Ok(dir)
}

/// The lines for `/etc/hosts` and for ssh's known hosts.
pub(crate) fn blocks(view: &View) -> (String, String) {
    let hosts = hosts(view);
    let shared = shared_short_names(&hosts);
    let names = |hostname: &HostName| names(hostname, &shared);
    let mut lines = String::new();
    let mut known = String::new();
    for (ip, (hostname, pubkey)) in &hosts {
        if let Some(hostname) = hostname {
            let _ = writeln!(lines, "{ip} {}", names(hostname).join(" "));
        }
        if let Some(pubkey) = pubkey {
            let mut all = hostname.as_ref().map(&names).unwrap_or_default();
            all.push(ip.to_string());
            let _ = writeln!(known, "{} {pubkey}", all.join(","));
        }
    }
    (lines, known)
}

type Hosts = BTreeMap<IpAddr, (Option<HostName>, Option<HostKey>)>;

/// Everybody that the view tells of, by address.
fn hosts(view: &View) -> Hosts {
    let identities = view
        .identities
        .iter()
        .map(|(_, identity)| (identity.ip, identity.hostname.clone(), identity.pubkey.clone()));
    let players = view
        .roles
        .values()
        .flatten()
        .map(|player| (player.ip, player.hostname.clone(), player.pubkey.clone()));
    let mut hosts = Hosts::new();
    for (ip, hostname, pubkey) in identities.chain(players) {
        let known = hosts.entry(ip).or_default();
        known.0 = known.0.take().or(hostname);
        known.1 = known.1.take().or(pubkey);
    }
    hosts
}

/// The short names that more than one host has: they are nobody's, so that none passes for another.
fn shared_short_names(hosts: &Hosts) -> BTreeSet<String> {
    let all: BTreeSet<&HostName> = hosts
        .values()
        .filter_map(|(hostname, _)| hostname.as_ref())
        .collect();
    let mut seen = BTreeSet::new();
    let again = all.into_iter().filter(|hostname| !seen.insert(short(hostname)));
    again.map(|hostname| short(hostname).to_owned()).collect()
}

/// The full name, and the short one where that is another, and nobody else's.
fn names(hostname: &HostName, shared: &BTreeSet<String>) -> Vec<String> {
    let full = hostname.as_str();
    let mut names = vec![full.to_owned()];
    if let Some((short, _)) = full.split_once('.')
        && !shared.contains(short)
    {
        names.push(short.to_owned());
    }
    names
}

/// The short name of a host.
pub(crate) fn short(hostname: &HostName) -> &str {
    hostname.as_str().split('.').next().unwrap_or_default()
}

fn fill(dir: &Path, view: &View) -> Result<(), Error> {
    for folder in ["", "roles", "data"] {
        files::folder(&dir.join(folder), 0o700)?;
    }
    let put = |name: &str, text: &str| files::replace(&dir.join(name), text.as_bytes(), 0o600);
    put("context", &format!("{}\n", view.context))?;
    put("member", &format!("{}\n", view.member))?;
    put("version", &format!("{}\n", view.version))?;
    put("environment", &environment(view))?;
    put("requires.xml", &xml::write_view(view))?;
    let json = serde_json::to_string_pretty(view).map_err(|error| Error::State {
        path: dir.join("view.json"),
        why: error.to_string(),
    })?;
    put("view.json", &json)?;
    let (hosts, known) = blocks(view);
    put("hosts", &hosts)?;
    put("known_hosts", &known)?;
    let equivalent: BTreeSet<String> = self::hosts(view)
        .into_values()
        .filter_map(|(hostname, _)| hostname)
        .map(|hostname| format!("{hostname}\n"))
        .collect();
    put("hosts.equiv", &equivalent.into_iter().collect::<String>())?;
    for (role, players) in &view.roles {
        let mut lines = String::new();
        for player in players {
            match &player.hostname {
                Some(hostname) => {
                    let _ = writeln!(lines, "{} {hostname}", player.ip);
                }
                None => {
                    let _ = writeln!(lines, "{}", player.ip);
                }
            }
        }
        put(&format!("roles/{role}"), &lines)?;
    }
    for (name, blobs) in &view.data {
        if let [blob] = blobs.as_slice() {
            put(&format!("data/{name}"), &blob.content)?;
        }
        for blob in blobs {
            let from = match &blob.from {
                Some(from) => from.as_str(),
                None if blobs.len() == 1 => continue,
                // No member has such a name.
                None => "_creator",
            };
            files::folder(&dir.join(format!("data/{name}.d")), 0o700)?;
            put(&format!("data/{name}.d/{from}"), &blob.content)?;
        }
    }
    Ok(())
}

/// Names and ids have no character that the shell would take for its own.
fn environment(view: &View) -> String {
    let roles: Vec<_> = view.provides.iter().map(ToString::to_string).collect();
    format!(
        "AERIE_CONTEXT_ID='{}'\nAERIE_CONTEXT_MEMBER='{}'\nAERIE_CONTEXT_VERSION='{}'\nAERIE_ROLES='{}'\n",
        view.context,
        view.member,
        view.version,
        roles.join(" ")
    )
}

fn forget(versions: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(versions).map_err(Error::io("list", versions))?;
    let mut numbers: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    let old = numbers.len().saturating_sub(KEEP);
    for number in numbers.into_iter().take(old) {
        let dir = versions.join(number.to_string());
        fs::remove_dir_all(&dir).map_err(Error::io("remove", &dir))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_that_two_hosts_have_is_neither_ones() {
        let host = |name: &str| (Some(name.parse().unwrap()), None);
        let hosts = Hosts::from([
            ("10.0.0.1".parse().unwrap(), host("head.evil")),
            ("10.0.0.2".parse().unwrap(), host("head.lab")),
            ("10.0.0.3".parse().unwrap(), host("w1.lab")),
        ]);
        let shared = shared_short_names(&hosts);
        let names = |name: &str| names(&name.parse().unwrap(), &shared);
        assert_eq!(names("head.lab"), ["head.lab"]);
        assert_eq!(names("w1.lab"), ["w1.lab", "w1"]);
    }
}
