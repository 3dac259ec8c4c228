//! What `aerie doctor` makes of the machine and of what the daemon says: numbered checks, each with its fix.
//!
//! [`examine`] judges [`Facts`] and does nothing else, so that every judgement can be tested.

use std::path::PathBuf;

use serde::Serialize;

use crate::diagnosis::NetcheckReport;
use crate::status::{PeerReport, Report, Stage, State};

/// Less free space than this on the file system of keys and leases stops a node from keeping its promises soon.
const LITTLE_SPACE: u64 = 200 << 20;
/// And less than this does so now: a witness that cannot write abstains.
const NO_SPACE: u64 = 4 << 20;

/// A credential is renewed long before; one that has so few seconds left was not.
const OLD_CREDENTIAL: u64 = 24 * 3600;

/// How good a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Health {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Warning,
    /// It does not work.
    Failed,
    /// It could not be looked at, for a reason that another check tells.
    Skipped,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) number: usize,
    pub(crate) name: &'static str,
    pub(crate) health: Health,
    /// What was found.
    pub(crate) found: String,
    /// What a person can do; empty if nothing.
    pub(crate) fix: String,
}

/// What was found on the machine and heard of the daemon.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Whether there is a TUN device, or why not.
    pub(crate) tun: Result<(), String>,
    /// Free bytes where keys and leases are kept, and where that is.
    pub(crate) space: (PathBuf, Result<u64, String>),
    /// What the daemon says, or why it does not.
    pub(crate) report: Result<Report, String>,
    pub(crate) peers: Result<Vec<PeerReport>, String>,
    pub(crate) network: Result<NetcheckReport, String>,
}

struct Checks(Vec<Check>);

impl Checks {
    fn add(&mut self, name: &'static str, health: Health, found: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Check {
            number: self.0.len() + 1,
            name,
            health,
            found: found.into(),
            fix: fix.into(),
        });
    }
}

/// Judges what was found. The numbers of the checks are always the same.
pub(crate) fn examine(facts: &Facts) -> Vec<Check> {
    let mut checks = Checks(Vec::new());
    machine(facts, &mut checks);
    match &facts.report {
        Ok(report) => {
            checks.add(
                "daemon",
                Health::Ok,
                format!("version {}, process {}", report.version, report.pid),
                "",
            );
            stages(report, &mut checks);
            credential(report, &mut checks);
        }
        Err(why) => {
            let fix = "start it: 'systemctl start aerie', or 'aerie up' in a terminal to see what it says";
            checks.add("daemon", Health::Failed, why.clone(), fix);
            for stage in Stage::ALL {
                checks.add(stage.as_str(), Health::Skipped, "the daemon says nothing", "");
            }
            checks.add("credential", Health::Skipped, "the daemon says nothing", "");
        }
    }
    members(facts, &mut checks);
    network(facts, &mut checks);
    paths(facts, &mut checks);
    checks.0
}

fn machine(facts: &Facts, checks: &mut Checks) {
    match &facts.tun {
        Ok(()) => checks.add("tun device", Health::Ok, "/dev/net/tun is there", ""),
        Err(why) => checks.add(
            "tun device",
            Health::Failed,
            why.clone(),
            "load it: 'modprobe tun'; a container has to be given /dev/net/tun and the right NET_ADMIN",
        ),
    }
    let (path, space) = &facts.space;
    let path = path.display();
    let fix = format!("make room on the file system of {path}");
    match space {
        Ok(free) if *free < NO_SPACE => checks.add("disk", Health::Failed, format!("{path} is full"), fix),
        Ok(free) if *free < LITTLE_SPACE => {
            let found = format!("only {} MiB are free at {path}", free >> 20);
            checks.add("disk", Health::Warning, found, fix);
        }
        Ok(free) => {
            let found = format!("{} MiB are free at {path}", free >> 20);
            checks.add("disk", Health::Ok, found, "");
        }
        Err(why) => checks.add(
            "disk",
            Health::Skipped,
            format!("{path} cannot be looked at: {why}"),
            "",
        ),
    }
}

/// One check for each stage of joining. What comes after one that is not done waits for it.
fn stages(report: &Report, checks: &mut Checks) {
    for stage in &report.stages {
        let health = match stage.state {
            State::Done | State::Off if stage.hint.is_empty() => Health::Ok,
            State::Done | State::Off => Health::Warning,
            State::Waiting if stage.reason == "not begun" => Health::Skipped,
            State::Waiting | State::Failed => Health::Failed,
        };
        checks.add(
            stage.stage.as_str(),
            health,
            stage.reason.clone(),
            stage.hint.clone(),
        );
    }
}

fn credential(report: &Report, checks: &mut Checks) {
    let fix = "see that the enrolment service of the grid can be reached from here; without renewal this node has to \
               be given a new blob";
    match report.credential_secs {
        Some(0) => checks.add("credential", Health::Failed, "it has expired", fix),
        Some(left) if left < OLD_CREDENTIAL => checks.add(
            "credential",
            Health::Warning,
            format!("it ends in {}, and has not been renewed", hours(left)),
            fix,
        ),
        Some(left) => checks.add("credential", Health::Ok, format!("good for {}", hours(left)), ""),
        None => checks.add("credential", Health::Skipped, "there is none yet", ""),
    }
}

fn members(facts: &Facts, checks: &mut Checks) {
    match &facts.peers {
        Ok(peers) if peers.is_empty() => checks.add(
            "members",
            Health::Warning,
            "no other member is connected",
            "see that the bootstrap addresses of the configuration are right and that their TCP or UDP port is open",
        ),
        Ok(peers) => {
            let relayed = peers.iter().filter(|peer| peer.overlay == "relayed").count();
            let found = format!("{} connected, of these {relayed} through a relay", peers.len());
            checks.add("members", Health::Ok, found, "");
        }
        Err(_) => checks.add("members", Health::Skipped, "the daemon says nothing", ""),
    }
}

fn network(facts: &Facts, checks: &mut Checks) {
    let network = match &facts.network {
        Ok(network) => network,
        Err(why) => {
            for name in ["network", "relays", "offloads"] {
                checks.add(name, Health::Skipped, why.clone(), "");
            }
            return;
        }
    };
    let health = match (network.good, network.udp) {
        (true, _) => Health::Ok,
        (false, Some(false)) if network.tls.is_empty() => Health::Failed,
        (false, _) => Health::Warning,
    };
    checks.add("network", health, network.verdict.clone(), network.hint.clone());
    let answering = network
        .relays
        .iter()
        .filter(|relay| relay.rtt_ms.is_some())
        .count();
    let known = network.relays.len();
    let found = format!("{answering} of {known} answer");
    // A relay itself needs one less.
    let relays = facts
        .report
        .as_ref()
        .is_ok_and(|report| report.roles.contains("relay"));
    match answering + usize::from(relays) {
        0 => checks.add(
            "relays",
            Health::Warning,
            found,
            "give a member that others can reach the role 'relay'; without one, pairs that cannot be direct have no \
             path",
        ),
        1 => checks.add(
            "relays",
            Health::Warning,
            found,
            "give a second member that others can reach the role 'relay': if the only one goes, relayed paths end",
        ),
        _ if !network.tls_problem.is_empty() => checks.add(
            "relays",
            Health::Warning,
            format!("{found}; this one takes no members over TLS: {}", network.tls_problem),
            "members that UDP does not reach need it; free the port, or choose another with [vpn] tls_port",
        ),
        _ => checks.add("relays", Health::Ok, found, ""),
    }
    if network.offloads_off.is_empty() {
        checks.add(
            "offloads",
            Health::Ok,
            "the kernel does all that speeds the tunnel up",
            "",
        );
    } else {
        checks.add(
            "offloads",
            Health::Warning,
            format!("the kernel does not do: {}", network.offloads_off.join(", ")),
            "the tunnel is slower for it; Linux 6.2 has all, unless [vpn] offload in aerie.toml is false",
        );
    }
}

fn paths(facts: &Facts, checks: &mut Checks) {
    let Ok(peers) = &facts.peers else {
        checks.add("paths", Health::Skipped, "the daemon says nothing", "");
        return;
    };
    let names = |path: &str| -> Vec<&str> {
        let such = peers.iter().filter(|peer| peer.path == path);
        such.map(|peer| peer.node.as_str()).collect()
    };
    let (relayed, direct) = (names("relayed"), names("direct").len() + names("lan").len());
    // Their tunnels want a path: there is a reason why they have none.
    let without: Vec<_> = peers
        .iter()
        .filter(|peer| peer.lacks_path())
        .map(|peer| peer.node.as_str())
        .collect();
    let example = without.first().or(relayed.first());
    let fix = example.map_or_else(String::new, |node| format!("'aerie path {node} --why' tells why"));
    let mut found = format!("{direct} direct, {} relayed", relayed.len());
    if !relayed.is_empty() {
        found = format!("{found} ({})", relayed.join(", "));
    }
    let health = match (without.is_empty(), relayed.is_empty()) {
        (true, true) => Health::Ok,
        (true, false) => Health::Warning,
        (false, _) => {
            found = format!("{found}; none to {}", without.join(", "));
            Health::Failed
        }
    };
    checks.add("paths", health, found, fix);
}

fn hours(seconds: u64) -> String {
    match seconds {
        0..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::RelayReport;
    use crate::status::StageReport;

    fn relay(rtt_ms: Option<f64>) -> RelayReport {
        RelayReport {
            node: "hub".to_owned(),
            addr: "198.51.100.2:4242".to_owned(),
            seen_as: None,
            rtt_ms,
        }
    }

    fn healthy() -> Facts {
        let stages = Stage::ALL.map(|stage| StageReport {
            stage,
            state: State::Done,
            ms: Some(1),
            reason: "fine".to_owned(),
            hint: String::new(),
        });
        Facts {
            tun: Ok(()),
            space: (PathBuf::from("/var/lib/aerie"), Ok(5 << 30)),
            report: Ok(Report {
                ready: true,
                stages: stages.to_vec(),
                credential_secs: Some(30 * 86_400),
                ..Report::default()
            }),
            peers: Ok(vec![peer("w1", "direct")]),
            network: Ok(NetcheckReport {
                udp: Some(true),
                good: true,
                verdict: "no NAT".to_owned(),
                relays: vec![relay(Some(1.0)), relay(Some(2.0))],
                ..NetcheckReport::default()
            }),
        }
    }

    fn peer(node: &str, path: &str) -> PeerReport {
        PeerReport {
            node: node.to_owned(),
            group: "chem".to_owned(),
            roles: "worker".to_owned(),
            peer: String::new(),
            addr: None,
            addr6: None,
            overlay: "direct".to_owned(),
            path: path.to_owned(),
            through: "somewhere".to_owned(),
            cipher: String::new(),
            rtt_ms: None,
            mtu: None,
            why: String::new(),
            active: path != "idle",
            tx_bytes: 0,
            rx_bytes: 0,
        }
    }

    fn health(checks: &[Check], name: &str) -> Health {
        checks.iter().find(|check| check.name == name).unwrap().health
    }

    #[test]
    fn a_healthy_node_has_no_fault_and_nothing_to_fix() {
        let checks = examine(&healthy());
        for check in &checks {
            assert_eq!((check.health, check.fix.as_str()), (Health::Ok, ""), "{check:?}");
        }
    }

    #[test]
    fn every_fault_has_a_fix_and_numbers_stay_the_same() {
        let mut facts = healthy();
        facts.tun = Err("no such file".to_owned());
        facts.space.1 = Ok(1 << 20);
        facts.report = Err("no daemon answers".to_owned());
        facts.peers = Err("no daemon answers".to_owned());
        facts.network = Err("no daemon answers".to_owned());
        let broken = examine(&facts);
        let names = |checks: &[Check]| {
            checks
                .iter()
                .map(|check| (check.number, check.name))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&broken), names(&examine(&healthy())));
        let failed: Vec<_> = broken
            .iter()
            .filter(|check| check.health == Health::Failed)
            .inspect(|check| assert!(!check.fix.is_empty(), "{check:?}"))
            .map(|check| check.name)
            .collect();
        assert_eq!(failed, ["tun device", "disk", "daemon"]);
    }

    #[test]
    fn a_stage_that_waits_for_another_is_no_fault_of_its_own() {
        let mut facts = healthy();
        let report = facts.report.as_mut().unwrap();
        report.stages[3].state = State::Waiting;
        report.stages[3].reason = "no member answers".to_owned();
        report.stages[3].hint = "check the address".to_owned();
        report.stages[4].state = State::Waiting;
        report.stages[4].reason = "not begun".to_owned();
        let checks = examine(&facts);
        assert_eq!(health(&checks, "overlay"), Health::Failed);
        assert_eq!(health(&checks, "address"), Health::Skipped);
    }

    #[test]
    fn relayed_paths_are_told_with_how_to_learn_why() {
        let mut facts = healthy();
        let mut lost = peer("w3", "idle");
        lost.active = true;
        facts.peers = Ok(vec![peer("w1", "direct"), peer("w2", "relayed")]);
        let paths = examine(&facts).pop().unwrap();
        assert_eq!(paths.health, Health::Warning);
        assert_eq!(paths.found, "1 direct, 1 relayed (w2)");
        assert_eq!(paths.fix, "'aerie path w2 --why' tells why");
        facts.peers.as_mut().unwrap().push(lost);
        let paths = examine(&facts).pop().unwrap();
        assert_eq!(paths.health, Health::Failed);
        assert_eq!(paths.fix, "'aerie path w3 --why' tells why");
    }

    #[test]
    fn the_only_relay_and_missing_udp_are_seen() {
        let mut facts = healthy();
        let network = facts.network.as_mut().unwrap();
        network.relays = vec![relay(Some(1.0)), relay(None)];
        assert_eq!(health(&examine(&facts), "relays"), Health::Warning);
        let network = facts.network.as_mut().unwrap();
        (network.udp, network.good) = (Some(false), false);
        network.offloads_off = vec!["tun USO".to_owned()];
        let checks = examine(&facts);
        assert_eq!(health(&checks, "network"), Health::Failed);
        assert_eq!(health(&checks, "offloads"), Health::Warning);
    }

    #[test]
    fn a_credential_that_was_not_renewed_is_seen_before_it_ends() {
        let mut facts = healthy();
        for (left, wanted) in [(0, Health::Failed), (7000, Health::Warning), (90_000, Health::Ok)] {
            facts.report.as_mut().unwrap().credential_secs = Some(left);
            assert_eq!(health(&examine(&facts), "credential"), wanted, "{left}");
        }
    }
}
