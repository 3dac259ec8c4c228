//! Commands that ask the daemon and print what it says.

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use comfy_table::{Table, presets};

use super::join::{self, confirmed};
use super::{LeaveArgs, QueryArgs, StatusArgs};
use crate::client::ask;
use crate::control::{Reply, Request};
use crate::status::{Report, State};

/// How long `aerie leave` waits for the daemon to end: jobs may save themselves for half a minute.
const LEAVE_LIMIT: Duration = Duration::from_secs(90);

/// How often a waiting `aerie status` asks again.
const POLL: Duration = Duration::from_millis(250);

pub(crate) fn status(args: &StatusArgs) -> Result<ExitCode> {
    let deadline = args
        .wait
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        let answer = ask(
            &args.query.daemon.run_dir,
            args.query.daemon.grid.as_deref(),
            &Request::Status,
        );
        let last = deadline.is_none_or(|deadline| Instant::now() >= deadline);
        match answer {
            Ok(Reply::Status(report)) if report.ready || last => {
                if args.query.json {
                    println!("{}", serde_json::to_string_pretty(&report)?);
                } else {
                    print_report(&report);
                }
                let failed = args.wait.is_some() && !report.ready;
                return Ok(if failed {
                    ExitCode::FAILURE
                } else {
                    ExitCode::SUCCESS
                });
            }
            Ok(Reply::Status(_)) => {}
            Ok(other) => return unexpected(other),
            Err(error) if last => return Err(error),
            Err(_) => {}
        }
        thread::sleep(POLL);
    }
}

fn print_report(report: &Report) {
    if report.grid.is_empty() {
        println!("No grid yet.");
    } else {
        let addr = match (&report.addr, &report.addr6) {
            (Some(addr), Some(addr6)) => format!("{addr}, {addr6}"),
            (Some(addr), None) => addr.clone(),
            (None, _) => "no address yet".to_owned(),
        };
        println!(
            "{} of grid {} ({}), group {}, {}",
            report.node, report.grid, addr, report.group, report.roles
        );
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for stage in &report.stages {
        let mark = match stage.state {
            State::Done => "done",
            State::Waiting => "waiting",
            State::Failed => "FAILED",
            State::Off => "off",
        };
        let time = stage
            .ms
            .map(|ms| format!("{:.2} s", ms as f64 / 1000.0))
            .unwrap_or_default();
        table.add_row([stage.stage.as_str(), mark, &time, &stage.reason]);
    }
    println!("{table}");
    for stage in report.stages.iter().filter(|stage| !stage.hint.is_empty()) {
        println!("{}: {}", stage.stage.as_str(), stage.hint);
    }
    for manager in &report.managers {
        println!(
            "manager {} ({}, group {}){}{}",
            manager.node,
            manager.addr,
            manager.group,
            if manager.primary { ", primary" } else { "" },
            if manager.alive { "" } else { ", does not answer" },
        );
    }
    let paths: Vec<_> = report
        .paths
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    if !paths.is_empty() {
        println!("paths: {} ({} members)", paths.join(", "), report.members);
    }
    match report.ready_ms {
        Some(ms) if report.ready => println!("Ready, {:.1} s after the start.", ms as f64 / 1000.0),
        _ => println!("Not ready."),
    }
}

pub(crate) fn peers(args: &QueryArgs) -> Result<ExitCode> {
    let peers = match ask(&args.daemon.run_dir, args.daemon.grid.as_deref(), &Request::Peers)? {
        Reply::Peers { peers } => peers,
        other => return unexpected(other),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&peers)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "node",
        "group",
        "roles",
        "address",
        "IPv6 address",
        "overlay",
        "path",
        "rtt",
        "why not direct",
    ]);
    for peer in &peers {
        let rtt = peer.rtt_ms.map(|ms| format!("{ms:.1} ms")).unwrap_or_default();
        let addr = peer.addr.as_deref().unwrap_or("-");
        let addr6 = peer.addr6.as_deref().unwrap_or("-");
        table.add_row([
            &peer.node,
            &peer.group,
            &peer.roles,
            addr,
            addr6,
            &peer.overlay,
            &peer.path,
            &rtt,
            &peer.why,
        ]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn leave(args: &LeaveArgs) -> Result<ExitCode> {
    if !args.yes && !confirmed("Give the address back, stop HTCondor and end the daemon? [y/N] ")? {
        println!("Nothing was changed.");
        return Ok(ExitCode::FAILURE);
    }
    let (grid, by_service) = match ask(
        &args.daemon.run_dir,
        args.daemon.grid.as_deref(),
        &Request::Status,
    ) {
        // Asked now: while it ends, the service may be active still.
        Ok(Reply::Status(report)) => (report.grid_id, join::serves(Some(report.pid))),
        Ok(other) => return unexpected(other),
        Err(error) => {
            // It was stopped, or leaving was cut off when it had ended.
            let Some(grid) = join::noted(&args.state, args.daemon.grid.as_deref()) else {
                return Err(error);
            };
            println!(
                "No daemon runs: its address is free for others when its lease ends, within half an hour."
            );
            join::undo(&args.state, &grid, join::serves(None))?;
            println!("Left.");
            return Ok(ExitCode::SUCCESS);
        }
    };
    match ask(&args.daemon.run_dir, args.daemon.grid.as_deref(), &Request::Leave)? {
        Reply::Ok { message } => println!("{message}"),
        other => return unexpected(other),
    }
    let run_dir = &args.daemon.run_dir;
    if gone(run_dir, args.daemon.grid.as_deref()) {
        join::undo(&args.state, &grid, by_service)?;
        println!("Left.");
        return Ok(ExitCode::SUCCESS);
    }
    bail!(
        "the daemon is still busy leaving after {} s; 'aerie status' and its log say with what",
        LEAVE_LIMIT.as_secs()
    )
}

/// Waits until the daemon has ended.
fn gone(run_dir: &Path, grid: Option<&str>) -> bool {
    let start = Instant::now();
    while start.elapsed() < LEAVE_LIMIT {
        if ask(run_dir, grid, &Request::Status).is_err() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    false
}

pub(super) fn unexpected(reply: Reply) -> Result<ExitCode> {
    match reply {
        Reply::Error { message } => bail!("{message}"),
        _ => bail!("the daemon gave an answer of another kind; daemon and command may differ in version"),
    }
}
