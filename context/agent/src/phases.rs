//! The phases of a member's configuration, in Nimbus's order.
//!
//! | phase | script | once for | arguments |
//! |---|---|---|---|
//! | `0-etchosts` | `0-etchosts` | all | the file with the lines for `/etc/hosts` |
//! | `1-ipandhost` | `1-ipandhost/ROLE` | each that plays a required role | address, short name, full name |
//! | `2-thishost` | `2-thishost` | each own identity | address, short name, full name, interface |
//! | `3-data` | `3-data/NAME` | each required data blob or role | the file with the blob, or with those that play it |
//! | `4-restarts` | `4-restarts/NAME` | each role or blob, provided or required | |
//! | `5-finalize` | `5-finalize` | each own identity | as 2 |
//! | on failure | `problem` | | what failed |
//!
//! A script is an executable file of that name, with or without `.sh`; one that is not there is passed over. The
//! first that fails ends the attempt. All calls of one script are one step, with one time limit and one log. Scripts
//! may be run again, at the next attempt, for the next version, or because the machine was started anew: they have to
//! bring about a state and not to add to one.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aerie_context_proto::limits::{MAX_LOGS, MAX_MESSAGE, MAX_STEPS};
use aerie_context_proto::{Exit, HostName, Identity, Step, StepName, View};

use crate::source::under;
use crate::step::{self, Ended, Tail, end_of};
use crate::{files, render};

/// How the phases are run.
#[derive(Debug, Clone)]
pub(crate) struct Phases {
    /// Folder of the scripts.
    pub(crate) scripts: PathBuf,
    /// What stands before the paths of files outside of the agent's own folder.
    pub(crate) root: PathBuf,
    /// How long all calls of one script may take.
    pub(crate) limit: Duration,
    /// Whether `/etc` is left to the scripts.
    pub(crate) leave_etc: bool,
}

/// What a run of all phases is for.
pub(crate) struct Run<'a> {
    pub(crate) view: &'a View,
    /// The folder of the version.
    pub(crate) dir: &'a Path,
    pub(crate) own: &'a [Identity],
    pub(crate) attempt: u32,
}

/// What ended an attempt.
struct Broken(String);

impl Phases {
    /// Runs all phases, and on a failure the script for problems.
    pub(crate) fn run(&self, run: &Run<'_>) -> Exit {
        let mut steps = Vec::new();
        let message = match self.all(run, &mut steps) {
            Ok(()) => String::new(),
            Err(Broken(message)) => {
                self.problem(run, &message, &mut steps);
                message
            }
        };
        Exit {
            version: run.view.version,
            attempt: run.attempt,
            ok: message.is_empty(),
            message: end_of(&message, MAX_MESSAGE).to_owned(),
            steps: fit(steps),
        }
    }

    /// Runs the script for problems alone: what is required is missing.
    pub(crate) fn run_problem(&self, run: &Run<'_>, message: &str) {
        self.problem(run, message, &mut Vec::new());
    }

    fn all(&self, run: &Run<'_>, steps: &mut Vec<Step>) -> Result<(), Broken> {
        let view = run.view;
        if !self.leave_etc {
            self.write_etc(view, steps)?;
        }
        let hosts = path_text(&run.dir.join("hosts"));
        self.phase(run, steps, "0-etchosts", "", &[vec![hosts]])?;
        for (role, players) in &view.roles {
            let calls: Vec<_> = players
                .iter()
                .map(|player| host_args(&player.ip.to_string(), player.hostname.as_ref()))
                .collect();
            self.phase(run, steps, "1-ipandhost", role.as_str(), &calls)?;
        }
        let this: Vec<_> = run.own.iter().map(own_args).collect();
        self.phase(run, steps, "2-thishost", "", &this)?;
        for role in view.roles.keys() {
            let file = path_text(&run.dir.join("roles").join(role.as_str()));
            self.phase(run, steps, "3-data", role.as_str(), &[vec![file]])?;
        }
        for (name, blobs) in &view.data {
            let base = run.dir.join("data");
            let file = match blobs.as_slice() {
                [_] => base.join(name.as_str()),
                _ => base.join(format!("{name}.d")),
            };
            self.phase(run, steps, "3-data", name.as_str(), &[vec![path_text(&file)]])?;
        }
        let restarts: BTreeSet<&str> = view
            .provides
            .iter()
            .chain(view.roles.keys())
            .map(|role| role.as_str())
            .chain(view.data.keys().map(|name| name.as_str()))
            .collect();
        for name in restarts {
            self.phase(run, steps, "4-restarts", name, &[Vec::new()])?;
        }
        self.phase(run, steps, "5-finalize", "", &this)
    }

    /// What every cluster wants, so that no script has to.
    fn write_etc(&self, view: &View, steps: &mut Vec<Step>) -> Result<(), Broken> {
        let started = Instant::now();
        let (hosts, known) = render::blocks(view);
        let written = files::put_block(&under(&self.root, "/etc/hosts"), &hosts)
            .and_then(|()| files::put_block(&under(&self.root, "/etc/ssh/ssh_known_hosts"), &known));
        let log = written
            .as_ref()
            .err()
            .map(ToString::to_string)
            .unwrap_or_default();
        let code = i32::from(written.is_err());
        steps.push(step("etc", Some(code), started, log));
        written.map_err(|error| Broken(error.to_string()))
    }

    /// One script, called with each of these lists of arguments.
    fn phase(
        &self,
        run: &Run<'_>,
        steps: &mut Vec<Step>,
        phase: &str,
        name: &str,
        calls: &[Vec<String>],
    ) -> Result<(), Broken> {
        let path = self.scripts.join(phase).join(name);
        let shown = if name.is_empty() {
            phase.to_owned()
        } else {
            format!("{phase}/{name}")
        };
        let Some(script) =
            find(path.components().as_path()).map_err(|why| Broken(format!("{shown} {why}")))?
        else {
            return Ok(());
        };
        let started = Instant::now();
        let until = started + self.limit;
        let mut log = Tail::default();
        let env = self.env(run);
        let mut code = Some(0);
        let mut failure = None;
        for args in calls {
            let ended = step::run(&script, args, &env, until, &mut log);
            let args: Vec<_> = args
                .iter()
                .filter(|arg| !arg.is_empty())
                .map(String::as_str)
                .collect();
            let call = format!("{shown} {}", args.join(" "));
            let call = call.trim_end();
            let why = match ended {
                Ok(Ended { code: Some(0), .. }) => continue,
                Ok(ended) => {
                    code = ended.code;
                    match ended {
                        Ended { timed_out: true, .. } => {
                            format!("{call} took more than {} s", self.limit.as_secs())
                        }
                        Ended { code: Some(code), .. } => format!("{call} ended with code {code}"),
                        Ended { code: None, .. } => format!("{call} was ended by a signal"),
                    }
                }
                Err(error) => {
                    code = None;
                    error.to_string()
                }
            };
            log.push(format!("{why}\n").as_bytes());
            failure = Some(why);
            break;
        }
        steps.push(step(&shown.replace('/', "."), code, started, log.text()));
        failure.map_or(Ok(()), |why| Err(Broken(why)))
    }

    fn problem(&self, run: &Run<'_>, message: &str, steps: &mut Vec<Step>) {
        eprintln!("aerie-context-agent: {message}");
        let ran = self.phase(run, steps, "problem", "", &[vec![message.to_owned()]]);
        if let Err(Broken(why)) = ran {
            eprintln!("aerie-context-agent: {why}");
        }
    }

    fn env(&self, run: &Run<'_>) -> Vec<(&'static str, String)> {
        let view = run.view;
        let roles: Vec<_> = view.provides.iter().map(ToString::to_string).collect();
        vec![
            ("AERIE_CONTEXT_DIR", path_text(run.dir)),
            ("AERIE_CONTEXT_ROOT", path_text(&self.root)),
            ("AERIE_CONTEXT_ID", view.context.to_string()),
            ("AERIE_CONTEXT_MEMBER", view.member.to_string()),
            ("AERIE_CONTEXT_VERSION", view.version.to_string()),
            ("AERIE_CONTEXT_ATTEMPT", run.attempt.to_string()),
            ("AERIE_ROLES", roles.join(" ")),
        ]
    }
}

fn find(path: &Path) -> Result<Option<PathBuf>, String> {
    let with_sh = PathBuf::from(format!("{}.sh", path.display()));
    for path in [path.to_owned(), with_sh] {
        let Ok(meta) = std::fs::metadata(&path) else {
            continue;
        };
        if !meta.is_file() {
            return Err(format!("is no file: {}", path.display()));
        }
        if meta.permissions().mode() & 0o111 == 0 {
            return Err(format!("cannot be run: 'chmod +x {}'", path.display()));
        }
        return Ok(Some(path));
    }
    Ok(None)
}

fn host_args(ip: &str, hostname: Option<&HostName>) -> Vec<String> {
    let short = hostname.map(render::short).unwrap_or_default();
    let full = hostname.map(HostName::as_str).unwrap_or_default();
    vec![ip.to_owned(), short.to_owned(), full.to_owned()]
}

fn own_args(identity: &Identity) -> Vec<String> {
    let mut args = host_args(&identity.ip.to_string(), identity.hostname.as_ref());
    args.push(
        identity
            .interface
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    );
    args
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

fn step(name: &str, code: Option<i32>, started: Instant, log: String) -> Step {
    let name = name.get(..63).unwrap_or(name);
    #[expect(
        clippy::expect_used,
        reason = "phases are names, and a dot and a role's name may follow in any name"
    )]
    let name: StepName = name.parse().expect("a phase and a role make a name");
    Step {
        name,
        code,
        millis: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        log,
    }
}

/// Keeps a report within the broker's limits: the last steps, and of their logs the ends, the last step's first.
fn fit(mut steps: Vec<Step>) -> Vec<Step> {
    let from = steps.len().saturating_sub(MAX_STEPS);
    steps.drain(..from);
    let mut left = MAX_LOGS;
    for step in steps.iter_mut().rev() {
        step.log = end_of(&step.log, left).to_owned();
        left -= step.log.len();
    }
    steps
}

/// The path of a machine's own state below a root.
pub(crate) fn state_dir(root: &Path) -> PathBuf {
    under(root, "/var/lib/aerie-context-agent")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_stays_within_the_brokers_limits_and_keeps_its_end() {
        let steps: Vec<_> = (0..50)
            .map(|number| {
                step(
                    &format!("3-data.d{number}"),
                    Some(0),
                    Instant::now(),
                    "ä".repeat(2000),
                )
            })
            .collect();
        let fitted = fit(steps);
        assert_eq!(fitted.len(), MAX_STEPS);
        assert_eq!(fitted.last().unwrap().name.as_str(), "3-data.d49");
        assert_eq!(fitted.last().unwrap().log.len(), 4000);
        assert!(fitted.iter().map(|step| step.log.len()).sum::<usize>() <= MAX_LOGS);
        assert_eq!(
            step(&"x".repeat(80), None, Instant::now(), String::new())
                .name
                .as_str()
                .len(),
            63
        );
    }
}
