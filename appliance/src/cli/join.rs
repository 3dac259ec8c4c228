//! `aerie join`: from a blob to a node that is ready, on a machine with the package installed; and what `aerie leave`
//! undoes of it.
//!
//! The blob goes to `/etc/aerie/blob`, where the service looks for one at each start, and a note of it to the grid's
//! folder: only what this command has put there does [`undo`] remove.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aerie_condor::Layout;
use aerie_config::{Bundle, MAX_CARRIER_BYTES, SPEC_FILE, Spec};
use aerie_identity::files::write_atomic;
use aerie_types::GridId;
use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use zeroize::Zeroizing;

use super::JoinArgs;
use crate::client::{ask, ask_all};
use crate::control::{Reply, Request};
use crate::paths::{self, GridPaths};
use crate::status::{Report, StageReport, State};

/// What a blob in one line begins with.
const LINE: &str = "aerie-blob:";

/// The service of a node.
const UNIT: &str = "aerie.service";

/// How often the daemon is asked how far it is.
const POLL: Duration = Duration::from_millis(250);

/// How long a service that starts may take to answer.
const START_LIMIT: Duration = Duration::from_secs(20);

pub(super) fn run(args: &JoinArgs) -> Result<ExitCode> {
    ensure!(
        geteuid().is_root(),
        "joining writes {} and starts a service: run it as root, such as 'sudo aerie join'",
        args.place.display()
    );
    let bundle = read(&args.blob)?;
    let spec = bundle.spec()?;
    let grid = spec.grid.id();
    refuse_members(args, &spec)?;
    let systemd = Path::new("/run/systemd/system").is_dir();
    println!("{}", aerie_config::explain(&spec, Some(&bundle)));
    tell_plan(args, &spec, systemd);
    if !args.yes && !confirmed("Join this grid? [y/N] ")? {
        println!("Nothing was changed.");
        return Ok(ExitCode::FAILURE);
    }
    put(args, &bundle, grid)?;
    if args.no_start {
        println!("The service takes it at its next start.");
        return Ok(ExitCode::SUCCESS);
    }
    if systemd {
        systemctl(&["enable", "--quiet", UNIT])?;
        systemctl(&["start", UNIT])?;
    }
    let woken = wake(&args.run_dir);
    if !systemd && !woken {
        println!(
            "No systemd runs here: start the daemon yourself, now and at each boot, by 'aerie up'. 'aerie status \
             --wait 120' tells how far it is."
        );
        return Ok(ExitCode::SUCCESS);
    }
    follow(args, grid)
}

/// A blob as one line of text, for a person to paste.
pub(super) fn line(bundle: &Bundle) -> Result<String> {
    Ok(format!(
        "{LINE}{}\n",
        URL_SAFE_NO_PAD.encode(bundle.to_user_data()?)
    ))
}

/// The blob that a person means: the line itself, what standard input gives, or a file or folder.
fn read(blob: &str) -> Result<Bundle> {
    if blob.starts_with(LINE) {
        eprintln!(
            "aerie: a blob on the command line is seen by every user of this machine, and kept in histories and logs; \
             'aerie join -' reads it from standard input"
        );
        return open(blob.as_bytes()).context("the blob on the command line is not usable");
    }
    if blob == "-" {
        let mut bytes = Zeroizing::new(Vec::new());
        let limit = MAX_CARRIER_BYTES as u64 + 1;
        std::io::stdin()
            .take(limit)
            .read_to_end(&mut bytes)
            .context("cannot read standard input")?;
        ensure!(
            bytes.len() <= MAX_CARRIER_BYTES,
            "standard input gives more than {MAX_CARRIER_BYTES} bytes, which no blob has"
        );
        return open(&bytes).context("the blob on standard input is not usable");
    }
    let path = Path::new(blob);
    if blob.starts_with(aerie_identity::TOKEN_PREFIX) && !path.exists() {
        bail!(
            "'{}…' is a join token alone, which does not say where its grid is: ask for the blob that it is in \
             ('aerie grid blob --as line' prints one to paste)",
            blob.chars().take(14).collect::<String>()
        );
    }
    if let Some(line) = saved_line(path) {
        return open(line.as_bytes()).with_context(|| format!("{blob} is not usable"));
    }
    Ok(aerie_config::load(path)?.bundle)
}

/// The line, where it was saved to a file, as from a mail. Of disks and of other files nothing is read but their begin.
fn saved_line(path: &Path) -> Option<Zeroizing<String>> {
    let mut file = std::fs::File::open(path).ok()?;
    let mut text = Zeroizing::new(String::new());
    let mut begin = [0; LINE.len()];
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    file.read_exact(&mut begin).ok()?;
    (begin == LINE.as_bytes()).then_some(())?;
    text.push_str(LINE);
    file.take(MAX_CARRIER_BYTES as u64)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}

fn open(bytes: &[u8]) -> Result<Bundle> {
    let text = std::str::from_utf8(bytes).unwrap_or_default().trim();
    let Some(body) = text.strip_prefix(LINE) else {
        return Ok(Bundle::open(bytes)?);
    };
    // Mail breaks long lines.
    let body: Zeroizing<String> = Zeroizing::new(body.split_whitespace().collect());
    let inner = URL_SAFE_NO_PAD
        .decode(body.as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| anyhow::anyhow!("the line is not whole: copy all of it, from '{LINE}' to its end"))?;
    Ok(Bundle::open(&inner)?)
}

/// A machine is in one grid by its service.
fn refuse_members(args: &JoinArgs, spec: &Spec) -> Result<()> {
    let grid = spec.grid.id();
    let running = ask_all(&args.run_dir, &Request::Status);
    let running = running.into_iter().flatten().find_map(|reply| match reply {
        Reply::Status(report) if !report.grid_id.is_empty() => {
            Some((report.grid.clone(), report.grid_id.clone()))
        }
        _ => None,
    });
    let Some((name, id)) = running.or_else(|| joined(&args.state)) else {
        return Ok(());
    };
    if id == grid.to_string() {
        bail!(
            "this machine has joined grid {name} already: 'aerie status' says how it is, and 'aerie leave' takes it \
             out again"
        );
    }
    bail!(
        "this machine is a member of grid {name} (id {id}), and its service serves one grid: 'aerie leave' takes it out \
         of that one first"
    )
}

/// The grid that this command has joined before: its name and id.
fn joined(state: &Path) -> Option<(String, String)> {
    let entries = std::fs::read_dir(paths::grids_dir(state)).ok()?;
    entries.flatten().find_map(|entry| {
        let id = entry.file_name().into_string().ok()?;
        let blob = std::fs::read_to_string(entry.path().join(paths::JOINED)).ok()?;
        let spec = aerie_config::load(Path::new(blob.trim())).ok()?.spec;
        (spec.grid.id().to_string() == id).then(|| (spec.grid.name.to_string(), id))
    })
}

fn tell_plan(args: &JoinArgs, spec: &Spec, systemd: bool) {
    let folder = GridPaths::new(&args.state, spec.grid.id());
    println!("This machine is to join the grid {}. It", spec.grid.name);
    println!(
        "  keeps the configuration in {} (for root's eyes)",
        args.place.display()
    );
    println!(
        "  keeps its keys, its credentials and its address in {}",
        folder.root().display()
    );
    println!(
        "  takes an address of {} on the interface aerie-{}",
        spec.grid.pool.range(),
        spec.grid.id().short()
    );
    if spec
        .node
        .roles
        .iter()
        .any(|role| role != aerie_types::Role::Relay)
    {
        println!("  configures HTCondor in /etc/condor and starts it");
    }
    if systemd && !args.no_start {
        println!("  enables and starts {UNIT}, now and at each boot");
    }
    println!("'aerie leave' undoes it.");
}

/// Asks on the terminal. Without one nothing is confirmed.
pub(super) fn confirmed(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to ask at; say --yes to go on without being asked");
    }
    print!("{question}");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Puts the blob where the service finds it, and the note of it beside the grid's keys.
fn put(args: &JoinArgs, bundle: &Bundle, grid: GridId) -> Result<()> {
    let bytes = if bundle.len() == 1 {
        Zeroizing::new(bundle.get(SPEC_FILE).unwrap_or_default().to_vec())
    } else {
        Zeroizing::new(bundle.to_zip()?)
    };
    if let Some(folder) = args.place.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let folder = GridPaths::new(&args.state, grid);
    folder
        .prepare()
        .with_context(|| format!("cannot make the folder {}", folder.root().display()))?;
    // The note first: a blob without one would be nobody's to remove.
    let note = format!("{}\n", args.place.display());
    write_atomic(&folder.joined(), note.as_bytes(), 0o600)?;
    write_atomic(&args.place, &bytes, 0o600)?;
    Ok(())
}

/// Whether the service runs this process, or none.
pub(super) fn serves(pid: Option<u32>) -> bool {
    let shown = Command::new("systemctl")
        .args(["show", "--property", "MainPID", "--value", UNIT])
        .stdin(Stdio::null())
        .output();
    let main = shown
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok()?.trim().parse::<u32>().ok());
    main.is_some_and(|main| main == pid.unwrap_or(0))
}

fn systemctl(args: &[&str]) -> Result<()> {
    let output = Command::new("systemctl")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("cannot run systemctl")?;
    ensure!(
        output.status.success(),
        "'systemctl {}' failed: {}; 'systemctl status {UNIT}' says more",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Tells daemons that wait for a configuration to look now. Whether there was one.
fn wake(run_dir: &Path) -> bool {
    let mut woken = false;
    for reply in ask_all(run_dir, &Request::Status).into_iter().flatten() {
        if let Reply::Status(report) = reply
            && report.grid_id.is_empty()
            && let Ok(pid) = i32::try_from(report.pid)
        {
            woken |= kill(Pid::from_raw(pid), Signal::SIGHUP).is_ok();
        }
    }
    woken
}

/// Shows each stage as it changes, until the node is ready or the time is over.
fn follow(args: &JoinArgs, grid: GridId) -> Result<ExitCode> {
    let start = Instant::now();
    let limit = Duration::from_secs(args.wait);
    let id = grid.to_string();
    let mut shown: Vec<StageReport> = Vec::new();
    loop {
        let report = match ask(&args.run_dir, Some(&id), &Request::Status) {
            Ok(Reply::Status(report)) => Some(report),
            Ok(_) => None,
            Err(error) if start.elapsed() > START_LIMIT.min(limit) && shown.is_empty() => {
                return Err(error.context(format!(
                    "the service was started and does not answer; 'journalctl -u {UNIT}' says why"
                )));
            }
            Err(_) => None,
        };
        if let Some(report) = &report {
            show_changes(&report.stages, &mut shown);
            if report.ready {
                println!("{}", ready(report));
                return Ok(ExitCode::SUCCESS);
            }
        }
        if start.elapsed() > limit {
            return stuck(report.as_deref(), args.wait);
        }
        thread::sleep(POLL);
    }
}

fn show_changes(now: &[StageReport], shown: &mut Vec<StageReport>) {
    for stage in now {
        let before = shown.iter().find(|before| before.stage == stage.stage);
        if before == Some(stage) || (before.is_none() && stage.reason == "not begun") {
            continue;
        }
        let name = stage.stage.as_str();
        match stage.state {
            State::Done => {
                let seconds = stage.ms.unwrap_or_default() as f64 / 1000.0;
                println!("{name:<12} done ({seconds:.1} s): {}", stage.reason);
            }
            State::Off => println!("{name:<12} off: {}", stage.reason),
            State::Waiting => println!("{name:<12} waiting: {}", stage.reason),
            State::Failed => println!("{name:<12} FAILED: {}", stage.reason),
        }
    }
    *shown = now.to_vec();
}

fn ready(report: &Report) -> String {
    let addr = report.addr.as_deref().unwrap_or("no address");
    format!(
        "{} is a member of grid {} ({addr}), and ready.",
        report.node, report.grid
    )
}

fn stuck(report: Option<&Report>, seconds: u64) -> Result<ExitCode> {
    let pending = report.and_then(|report| {
        let mut stages = report.stages.iter();
        stages.find(|stage| !matches!(stage.state, State::Done | State::Off))
    });
    let Some(stage) = pending else {
        bail!("the daemon does not answer; 'journalctl -u {UNIT}' says why");
    };
    eprintln!(
        "aerie: not ready after {seconds} s: {}: {}",
        stage.stage.as_str(),
        stage.reason
    );
    if !stage.hint.is_empty() {
        eprintln!("aerie: {}", stage.hint);
    }
    eprintln!("aerie: the service goes on trying; 'aerie status' says how far it is");
    Ok(ExitCode::FAILURE)
}

/// Removes what joining a grid has put in place: the blob that `aerie join` wrote, unless it is another grid's meanwhile,
/// the grid's configuration of this node and of HTCondor, and the service's start at each boot. The node's keys stay.
///
/// A machine that found its blob by itself, on a floppy or as user-data, would be back at its next start otherwise:
/// `by_service` says that its daemon was the service's, or that neither runs. A daemon beside the service has left alone.
pub(super) fn undo(state: &Path, grid: &str, by_service: bool) -> Result<()> {
    let Ok(grid) = grid.parse::<GridId>() else {
        return Ok(());
    };
    let folder = GridPaths::new(state, grid);
    let noted = match std::fs::read_to_string(folder.joined()) {
        Ok(note) => Some(PathBuf::from(note.trim())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", folder.joined().display()));
        }
    };
    if let Some(place) = &noted
        && aerie_config::load(place).is_ok_and(|found| found.spec.grid.id() == grid)
    {
        remove(place)?;
        println!("Removed {}.", place.display());
    }
    remove(&folder.spec())?;
    // HTCondor would start with it at the next boot, and look for an address that is gone.
    let condor = Layout::default();
    for path in [
        condor.config_file(grid),
        condor.identity_map(grid),
        condor.group_map(grid),
    ] {
        remove(&path)?;
        // Of the folders of maps those that are empty now.
        if let Some(folder) = path
            .parent()
            .filter(|folder| folder.starts_with(&condor.maps_dir))
        {
            let _ = std::fs::remove_dir(folder).and_then(|()| std::fs::remove_dir(&condor.maps_dir));
        }
    }
    if Path::new("/run/systemd/system").is_dir()
        && (noted.is_some() || by_service)
        && systemctl(&["is-enabled", "--quiet", UNIT]).is_ok()
    {
        systemctl(&["disable", "--quiet", UNIT])?;
        println!(
            "{UNIT} does not start at boot any more; 'systemctl enable --now {UNIT}' has it look for a configuration again."
        );
    }
    remove(&folder.joined())?;
    println!(
        "This node's keys stay in {}: with them it may come back under its name.",
        folder.root().display()
    );
    Ok(())
}

/// The grid of which a note of a join is still there, or a configuration that was found; of several none, unless the
/// beginning of its id is given.
pub(super) fn noted(state: &Path, wanted: Option<&str>) -> Option<String> {
    let entries = std::fs::read_dir(paths::grids_dir(state)).ok()?;
    let noted = entries.flatten().filter(|entry| {
        [paths::JOINED, paths::SPEC]
            .iter()
            .any(|note| entry.path().join(note).exists())
    });
    let ids = noted.filter_map(|entry| entry.file_name().into_string().ok());
    let mut ids = ids.filter(|id| wanted.is_none_or(|wanted| id.starts_with(wanted)));
    let first = ids.next()?;
    ids.next().is_none().then_some(first)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_joined_is_known_without_a_daemon() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(noted(state.path(), None), None);
        let grids = paths::grids_dir(state.path());
        for (id, joined) in [("aa11", true), ("bb22", false)] {
            std::fs::create_dir_all(grids.join(id)).unwrap();
            if joined {
                std::fs::write(grids.join(id).join(paths::JOINED), "/etc/aerie/blob\n").unwrap();
            }
        }
        assert_eq!(noted(state.path(), None).as_deref(), Some("aa11"));
        assert_eq!(noted(state.path(), Some("bb")), None);
        std::fs::write(grids.join("bb22").join(paths::JOINED), "/etc/aerie/blob\n").unwrap();
        assert_eq!(noted(state.path(), None), None, "which of two?");
        assert_eq!(noted(state.path(), Some("bb")).as_deref(), Some("bb22"));
        // What was found on a floppy was not joined by the command.
        std::fs::create_dir_all(grids.join("cc33")).unwrap();
        std::fs::write(grids.join("cc33").join(paths::SPEC), "version = 1\n").unwrap();
        assert_eq!(noted(state.path(), Some("cc")).as_deref(), Some("cc33"));
    }

    fn bundle() -> Bundle {
        let spec = Spec::parse(&format!(
            "version = 1\n[grid]\nname = \"lab\"\nca_hash = \"{}\"\nrange = \"100.96.0.0/11\"\n\
             [enrol]\nurls = [\"https://192.0.2.1:8443\"]\ntoken = \"secret\"\n\
             [node]\nroles = [\"worker\"]\ngroup = \"physics\"\n",
            "ab".repeat(32)
        ));
        Bundle::of_spec(&spec.unwrap())
    }

    #[test]
    fn a_line_that_mail_has_broken_is_a_blob_all_the_same() {
        let line = line(&bundle()).unwrap();
        let broken: Vec<_> = line
            .trim()
            .as_bytes()
            .chunks(72)
            .map(String::from_utf8_lossy)
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mail");
        std::fs::write(&path, broken.join("\r\n") + "\n").unwrap();
        let read = read(path.to_str().unwrap()).unwrap();
        assert!(read == bundle());
    }

    #[test]
    fn a_line_that_was_cut_is_told_apart_from_none() {
        let line = line(&bundle()).unwrap();
        for cut in [LINE.len(), LINE.len() + 9, line.len() / 2, line.len() - 3] {
            assert!(read(&line[..cut]).is_err(), "{cut}");
        }
        assert!(read("/absent").unwrap_err().to_string().contains("/absent"));
    }
}
