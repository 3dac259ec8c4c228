//! Looks for open doors in the configuration that is really in force.
//!
//! A plan never allows everybody. But HTCondor reads other files too: those of its package before ours, those of
//! a local administrator after it, and knobs for single daemons (`ALLOW_WRITE_COLLECTOR`) that no plan sets. So
//! the sum of all files is asked for (`condor_config_val -dump`) and searched.

use std::fmt;

use serde::Serialize;

/// A permission that lets everybody in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wildcard {
    /// The knob, for example `ALLOW_WRITE`.
    pub knob: String,
    /// Its value.
    pub value: String,
}

impl fmt::Display for Wildcard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} = {} lets everybody in: find its file with 'condor_config_val -v {}' and remove the line",
            self.knob, self.value, self.knob
        )
    }
}

/// The knobs of a configuration (lines of `NAME = value`) that allow every identity or every host.
///
/// An identity pattern is a door only if nothing fixed follows its `@`: `*@worker.lab.grid` names the holders of
/// certificates, while `*`, `*/*`, `*@*` and `condor@*` name anybody.
#[must_use]
pub fn wildcards(dump: &str) -> Vec<Wildcard> {
    dump.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(knob, value)| (knob.trim(), value.trim()))
        .filter(|(knob, value)| is_permission(knob) && value.split([',', ' ', '\t']).any(is_open))
        .map(|(knob, value)| Wildcard {
            knob: knob.to_owned(),
            value: value.to_owned(),
        })
        .collect()
}

fn is_permission(knob: &str) -> bool {
    let name = knob.rsplit('.').next().unwrap_or(knob).to_ascii_uppercase();
    name.strip_prefix("HOST").unwrap_or(&name).starts_with("ALLOW_")
}

fn is_open(entry: &str) -> bool {
    // An entry is `identity`, `host` or `identity/host`.
    let identity = entry.split('/').next().unwrap_or(entry);
    if identity.is_empty() {
        return entry.starts_with('/');
    }
    let domain = identity.rsplit('@').next().unwrap_or(identity);
    domain.chars().all(|c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_in_any_spelling_is_found() {
        for open in [
            "ALLOW_WRITE = *",
            "ALLOW_READ = */*",
            "ALLOW_DAEMON = condor@*  condor_pool@*",
            "SCHEDD.ALLOW_WRITE = a@b, *",
            "ALLOW_WRITE_COLLECTOR = *@*",
            "HOSTALLOW_READ = *",
            "allow_read = */10.0.0.0/8",
        ] {
            assert_eq!(wildcards(open).len(), 1, "{open}");
        }
    }

    #[test]
    fn identities_bound_to_certificates_are_no_wildcard() {
        for closed in [
            "ALLOW_READ = *@worker.lab.grid, root@w1.lab.grid",
            "ALLOW_CONFIG =",
            "NETWORK_INTERFACE = *",
            "DENY_READ = *",
        ] {
            assert!(wildcards(closed).is_empty(), "{closed}");
        }
    }

    #[test]
    fn a_finding_says_how_to_close_the_door() {
        let message = wildcards("ALLOW_WRITE = *")[0].to_string();
        assert!(message.contains("condor_config_val -v ALLOW_WRITE"), "{message}");
    }
}
