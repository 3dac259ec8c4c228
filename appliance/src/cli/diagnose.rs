//! `aerie path`, `aerie netcheck` and `aerie doctor`.

use std::io::{Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::query::unexpected;
use super::{DaemonArgs, DoctorArgs, PathArgs, QueryArgs};
use crate::client::ask;
use crate::control::{Reply, Request};
use crate::diagnosis::{MappingReport, NetcheckReport, PairReport, PathReport};
use crate::doctor::{Check, Facts, Health, examine};
use crate::status::PeerReport;

/// What of the journal goes into a bundle.
const LOG_LINES: &str = "5000";

/// What of the machine's network goes into a bundle: nothing of it is a secret.
const COMMANDS: [(&str, &[&str]); 6] = [
    ("uname.txt", &["uname", "-a"]),
    ("addresses.txt", &["ip", "-brief", "address"]),
    ("routes.txt", &["ip", "route", "show", "table", "all"]),
    ("rules.txt", &["ip", "rule"]),
    ("sockets.txt", &["ss", "-uanp"]),
    (
        "log.txt",
        &[
            "journalctl",
            "--unit",
            "aerie",
            "--lines",
            LOG_LINES,
            "--no-pager",
        ],
    ),
];

pub(super) fn path(args: &PathArgs) -> Result<ExitCode> {
    let target = args.target.clone();
    let daemon = &args.query.daemon;
    let report = match ask(&daemon.run_dir, daemon.grid.as_deref(), &Request::Path { target })? {
        Reply::Path(report) => report,
        other => return unexpected(other),
    };
    if args.query.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", path_text(&report, args.why));
    }
    Ok(ExitCode::from(u8::from(report.path == "none")))
}

fn path_text(report: &PathReport, why: bool) -> String {
    let mut lines = vec![match report.path.as_str() {
        "none" => format!("{} ({}): no path", report.node, report.addr),
        _ => {
            let rtt = report
                .rtt_ms
                .map(|ms| format!(", {ms:.1} ms"))
                .unwrap_or_default();
            let since = report
                .since_secs
                .map(|secs| format!(", for {}", ago(secs)))
                .unwrap_or_default();
            format!(
                "{} ({}): {}{rtt}{since}",
                report.node, report.addr, report.through
            )
        }
    }];
    lines.push(format!("because {}", report.reason));
    if !report.hint.is_empty() {
        lines.push(format!("to do: {}", report.hint));
    }
    if !report.failure.is_empty() {
        lines.push(format!("ping: {}", report.failure));
    }
    if why {
        lines.push(String::new());
        lines.push(pairs(&report.pairs).to_string());
        lines.push(String::new());
        lines.push(format!("our NAT: {}", report.own_nat));
        if !report.peer_nat.is_empty() {
            lines.push(format!("its NAT: {}", report.peer_nat));
        }
        let announced: Vec<_> = report
            .announced
            .iter()
            .map(|candidate| format!("{} ({})", candidate.addr, candidate.kind))
            .collect();
        if !announced.is_empty() {
            lines.push(format!("we announce: {}", announced.join(", ")));
        }
        if let Some(mtu) = report.mtu {
            lines.push(format!("packets of up to {mtu} bytes fit"));
        }
        if let Some(next) = report.next_exchange_secs {
            lines.push(format!("addresses are exchanged again in {next:.0} s"));
        }
        for change in &report.changes {
            lines.push(format!("{} ago: {}", ago(change.secs), change.path));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

fn pairs(pairs: &[PairReport]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "tried", "kind", "result", "rtt"]);
    for pair in pairs {
        let result = match (pair.state.as_str(), pair.answered_secs) {
            ("probing" | "lost", Some(secs)) if !pair.selected => format!(
                "answered {} ago, {} probes in vain since",
                ago(secs),
                pair.unanswered
            ),
            ("probing", _) => format!("being probed, {} unanswered", pair.unanswered),
            ("no-answer", _) => format!("no answer to {} probes", pair.unanswered),
            ("lost", _) => "answered before, then no more".to_owned(),
            (state, _) => state.to_owned(),
        };
        let addr = match &pair.via {
            Some(via) => format!("{via} {}", pair.addr),
            None => pair.addr.clone(),
        };
        let rtt = pair.rtt_ms.map(|ms| format!("{ms:.1} ms")).unwrap_or_default();
        let mark = if pair.selected { "*" } else { "" };
        table.add_row([mark, &addr, &pair.kind, &result, &rtt]);
    }
    table
}

fn ago(secs: f64) -> String {
    match secs {
        ..120.0 => format!("{secs:.0} s"),
        ..7200.0 => format!("{:.0} min", secs / 60.0),
        _ => format!("{:.0} h", secs / 3600.0),
    }
}

pub(super) fn netcheck(args: &QueryArgs) -> Result<ExitCode> {
    let daemon = &args.daemon;
    let report = match ask(&daemon.run_dir, daemon.grid.as_deref(), &Request::Netcheck)? {
        Reply::Netcheck(report) => report,
        other => return unexpected(other),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", netcheck_text(&report));
    }
    Ok(ExitCode::SUCCESS)
}

fn netcheck_text(report: &NetcheckReport) -> String {
    let yes_no = |known: Option<bool>| match known {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not known",
    };
    let or_none = |list: &[String]| {
        if list.is_empty() {
            "none".to_owned()
        } else {
            list.join(", ")
        }
    };
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.add_row(["UDP", &format!("{}, port {}", yes_no(report.udp), report.port)]);
    table.add_row(["addresses", &or_none(&report.addresses)]);
    table.add_row(["seen as", &or_none(&report.seen_as)]);
    table.add_row(["IPv6", if report.ipv6 { "yes" } else { "no" }]);
    table.add_row(["NAT mapping", &report.mapping]);
    table.add_row(["lets strangers in", yes_no(report.admits_strangers)]);
    table.add_row(["hairpin", yes_no(report.hairpin)]);
    table.add_row(["port mapping", &port_mapping(&report.port_mapping)]);
    let mtu = match report.path_mtu {
        Some((least, most)) if least < most => format!("{}, on paths {least} to {most}", report.mtu),
        Some((least, _)) => format!("{}, on paths {least}", report.mtu),
        None => report.mtu.to_string(),
    };
    table.add_row(["MTU", &mtu]);
    for relay in &report.relays {
        let rtt = match relay.rtt_ms {
            Some(ms) => format!("{} {}, {ms:.1} ms", relay.node, relay.addr),
            None => format!("{} {}, does not answer", relay.node, relay.addr),
        };
        table.add_row(["relay", &rtt]);
    }
    for relay in &report.tls {
        table.add_row(["over TLS", &format!("{} {}", relay.node, relay.addr)]);
    }
    if let Some(port) = report.tls_port {
        table.add_row([
            "members without UDP",
            &format!("taken over TLS at TCP port {port}"),
        ]);
    }
    if !report.tls_problem.is_empty() {
        table.add_row([
            "members without UDP",
            &format!("not taken: {}", report.tls_problem),
        ]);
    }
    let mut text = format!("{table}\n\n{}\n", report.verdict);
    if !report.hint.is_empty() {
        text = format!("{text}to do: {}\n", report.hint);
    }
    text
}

/// What `aerie doctor --json` prints.
#[derive(Debug, Serialize)]
struct Diagnosis<'a> {
    healthy: bool,
    checks: &'a [Check],
}

pub(super) fn doctor(args: &DoctorArgs) -> Result<ExitCode> {
    let facts = gather(args);
    let checks = examine(&facts);
    let healthy = checks.iter().all(|check| check.health != Health::Failed);
    let diagnosis = Diagnosis {
        healthy,
        checks: &checks,
    };
    if let Some(path) = &args.bundle {
        bundle(path, &facts, &diagnosis, &args.query.daemon)?;
        eprintln!(
            "Written: {}. It has no keys, tokens or configurations in it.",
            path.display()
        );
    }
    if args.query.json {
        println!("{}", serde_json::to_string_pretty(&diagnosis)?);
    } else {
        print!("{}", doctor_text(&checks));
    }
    Ok(ExitCode::from(u8::from(!healthy)))
}

fn port_mapping(report: &MappingReport) -> String {
    match (&report.addr, &report.by, &*report.state) {
        (Some(addr), Some(by), _) => format!("{addr}, by {by}"),
        (_, _, "asking") => "the router is being asked".to_owned(),
        (_, _, "none") => format!("none: {}", report.why),
        _ => "off".to_owned(),
    }
}

fn doctor_text(checks: &[Check]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for check in checks {
        let health = match check.health {
            Health::Ok => "ok",
            Health::Warning => "warning",
            Health::Failed => "FAILED",
            Health::Skipped => "-",
        };
        table.add_row([&check.number.to_string(), check.name, health, &check.found]);
    }
    let mut text = format!("{table}\n");
    for check in checks.iter().filter(|check| !check.fix.is_empty()) {
        text = format!("{text}\n{}. {}: {}", check.number, check.name, check.fix);
    }
    let count = |health| checks.iter().filter(|check| check.health == health).count();
    let (failed, warnings) = (count(Health::Failed), count(Health::Warning));
    let verdict = match (failed, warnings) {
        (0, 0) => "Nothing is wrong.".to_owned(),
        (0, warnings) => format!("Nothing has failed; {}.", number(warnings, "warning")),
        (failed, warnings) => format!(
            "{}, {}.",
            number(failed, "failed check"),
            number(warnings, "warning")
        ),
    };
    format!("{text}\n\n{verdict}\n")
}

fn number(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

fn gather(args: &DoctorArgs) -> Facts {
    let daemon = &args.query.daemon;
    let asked = |request: &Request| {
        ask(&daemon.run_dir, daemon.grid.as_deref(), request).map_err(|error| format!("{error:#}"))
    };
    let strange = |reply: Reply| match reply {
        Reply::Error { message } => message,
        _ => "the daemon gave an answer of another kind".to_owned(),
    };
    let tun = std::fs::metadata("/dev/net/tun").map(drop);
    let space = nix::sys::statvfs::statvfs(&args.state);
    Facts {
        tun: tun.map_err(|error| format!("/dev/net/tun: {error}")),
        space: (
            args.state.clone(),
            space
                .map(|space| space.blocks_available() * space.fragment_size())
                .map_err(|error| error.to_string()),
        ),
        report: asked(&Request::Status).and_then(|reply| match reply {
            Reply::Status(report) => Ok(*report),
            other => Err(strange(other)),
        }),
        peers: asked(&Request::Peers).and_then(|reply| match reply {
            Reply::Peers { peers } => Ok(peers),
            other => Err(strange(other)),
        }),
        network: asked(&Request::Netcheck).and_then(|reply| match reply {
            Reply::Netcheck(report) => Ok(*report),
            other => Err(strange(other)),
        }),
    }
}

/// Writes what somebody needs who is to find a fault from afar. Only what the daemon tells every user of the machine
/// goes into it, and the machine's own network: no file of the state folder.
fn bundle(path: &Path, facts: &Facts, diagnosis: &Diagnosis<'_>, daemon: &DaemonArgs) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(failed)?;
    let mut zip = ZipWriter::new(file);
    add(&mut zip, "doctor.json", &serde_json::to_vec_pretty(diagnosis)?).with_context(failed)?;
    if let Ok(report) = &facts.report {
        add(&mut zip, "status.json", &serde_json::to_vec_pretty(report)?).with_context(failed)?;
    }
    if let Ok(network) = &facts.network {
        add(&mut zip, "netcheck.json", &serde_json::to_vec_pretty(network)?).with_context(failed)?;
    }
    if let Ok(peers) = &facts.peers {
        add(&mut zip, "peers.json", &serde_json::to_vec_pretty(peers)?).with_context(failed)?;
        add(
            &mut zip,
            "paths.json",
            &serde_json::to_vec_pretty(&bad_paths(peers, daemon))?,
        )
        .with_context(failed)?;
    }
    for (name, command) in COMMANDS {
        add(&mut zip, name, &output(command)).with_context(failed)?;
    }
    zip.finish().with_context(failed)?.sync_all().with_context(failed)
}

fn add<W: Write + Seek>(zip: &mut ZipWriter<W>, name: &str, bytes: &[u8]) -> Result<()> {
    zip.start_file(name, SimpleFileOptions::default())?;
    zip.write_all(bytes)?;
    Ok(())
}

/// The ways of a few members to which they are not direct.
fn bad_paths(peers: &[PeerReport], daemon: &DaemonArgs) -> Vec<PathReport> {
    let bad = peers
        .iter()
        .filter(|peer| peer.path == "relayed" || peer.lacks_path());
    bad.take(8)
        .filter_map(|peer| {
            let target = peer.node.clone();
            match ask(&daemon.run_dir, daemon.grid.as_deref(), &Request::Path { target }) {
                Ok(Reply::Path(report)) => Some(*report),
                _ => None,
            }
        })
        .collect()
}

fn output(command: &[&str]) -> Vec<u8> {
    let Some((program, args)) = command.split_first() else {
        return Vec::new();
    };
    let ran = Command::new(program).args(args).stdin(Stdio::null()).output();
    match ran {
        Ok(mut output) => {
            output.stdout.extend(output.stderr);
            output.stdout
        }
        Err(error) => format!("{program}: {error}\n").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> PathReport {
        PathReport {
            node: "w1".to_owned(),
            addr: "100.96.0.7".to_owned(),
            path: "relayed".to_owned(),
            through: "relayed via hub 198.51.100.2:4242".to_owned(),
            rtt_ms: Some(12.34),
            since_secs: Some(75.0),
            reason: "both NATs are symmetric".to_owned(),
            hint: "forward UDP port 4242".to_owned(),
            pairs: vec![PairReport {
                kind: "reflexive".to_owned(),
                addr: "203.0.113.5:61000".to_owned(),
                via: None,
                state: "no-answer".to_owned(),
                unanswered: 14,
                selected: false,
                rtt_ms: None,
                answered_secs: None,
            }],
            ..PathReport::default()
        }
    }

    #[test]
    fn a_path_is_told_with_its_reason_and_what_to_do() {
        let short = path_text(&report(), false);
        assert_eq!(
            short,
            "w1 (100.96.0.7): relayed via hub 198.51.100.2:4242, 12.3 ms, for 75 s\nbecause both NATs are \
             symmetric\nto do: forward UDP port 4242\n"
        );
        let long = path_text(&report(), true);
        assert!(
            long.contains("203.0.113.5:61000") && long.contains("no answer to 14 probes"),
            "{long}"
        );
    }

    #[test]
    fn the_doctor_counts_what_it_found() {
        let check = |health| Check {
            number: 1,
            name: "disk",
            health,
            found: "x".to_owned(),
            fix: String::new(),
        };
        let verdict = |checks: &[Check]| doctor_text(checks).lines().last().unwrap().to_owned();
        assert_eq!(verdict(&[check(Health::Ok)]), "Nothing is wrong.");
        assert_eq!(
            verdict(&[
                check(Health::Failed),
                check(Health::Warning),
                check(Health::Warning)
            ]),
            "1 failed check, 2 warnings."
        );
    }

    #[test]
    fn a_bundle_is_not_written_over_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.zip");
        std::fs::write(&path, "mine").unwrap();
        let facts = Facts {
            tun: Ok(()),
            space: (dir.path().to_owned(), Ok(1 << 40)),
            report: Err("no daemon".to_owned()),
            peers: Err("no daemon".to_owned()),
            network: Err("no daemon".to_owned()),
        };
        let diagnosis = Diagnosis {
            healthy: false,
            checks: &examine(&facts),
        };
        let daemon = DaemonArgs {
            grid: None,
            run_dir: dir.path().to_owned(),
        };
        assert!(bundle(&path, &facts, &diagnosis, &daemon).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        let other = dir.path().join("other.zip");
        bundle(&other, &facts, &diagnosis, &daemon).unwrap();
        let zip = zip::ZipArchive::new(std::fs::File::open(&other).unwrap()).unwrap();
        let names: Vec<_> = zip.file_names().map(|name| name.unwrap().into_owned()).collect();
        assert!(names.contains(&"doctor.json".to_owned()), "{names:?}");
        assert!(names.contains(&"log.txt".to_owned()), "{names:?}");
    }
}
