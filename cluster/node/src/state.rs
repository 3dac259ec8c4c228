//! The states of a guest, and what may be done in each.
//!
//! ```text
//!             define                 start                    pause
//!    (none) ─────────► defined ────────────────► running ◄──────────────► paused
//!                                                │  ▲  ▲      resume        │
//!                       start ┌──────────────────┼──┘  │                    │
//!                             │                  │     │ restore, as it was │
//!                          stopped ◄── stop, or ─┤     ▼                    │
//!                             ▲     by itself    ├── suspended ◄── suspend ─┤
//!                     start ┌─┘                  │                          │
//!                           crashed ◄────────────┴── died, or panicked ─────┘
//!
//!    running, paused ◄── it answers again, or does not ──► unresponsive
//!    found with notes that cannot be read ──► damaged
//!    and from every state: destroy ─► (none)
//! ```
//!
//! An operation is done; or it was done before, and nothing happens; or it is refused with the state in which the
//! guest is and what would be right. *Suspended* means that the guest's memory is in a file, that belongs to its disks
//! as they are. Restoring uses it up before the guest runs on: a memory that does not fit the disks any more is
//! never run, since a file system that finds other blocks below itself than it left destroys them. A guest that is
//! given time to stop is not suspended meanwhile: it would be both. *Unresponsive* is
//! a guest that lives, and whose hypervisor says nothing: it may only be stopped by force or destroyed. *Damaged* is a
//! guest of which a driver that begins cannot read what it has to know: it is left as it is, whether it runs or not, and
//! keeps its images, until somebody mends the file and opens the driver again, or destroys it.
//!
//! The host may end at any time too; whatever ran is then found crashed, and what was suspended is still suspended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a guest came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// It switched itself off, unasked.
    Itself,
    /// It was asked to, and did.
    Asked,
    /// It was switched off.
    Forced,
}

/// Where a guest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It has never run.
    Defined,
    /// It runs.
    Running,
    /// It is in memory and stands still.
    Paused,
    /// Its memory is in a file.
    Suspended,
    /// It is switched off.
    Stopped(End),
    /// It ended otherwise.
    Crashed {
        /// How, with the last that was heard of it.
        why: String,
    },
    /// It is there, and its hypervisor does not answer.
    Unresponsive {
        /// What was asked.
        why: String,
    },
    /// What is kept of it cannot be read.
    Damaged {
        /// What is wrong, and where.
        why: String,
        /// Whether its hypervisor is there all the same.
        live: bool,
    },
}

impl State {
    /// Whether it takes memory of the host.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(
            self,
            Self::Running | Self::Paused | Self::Unresponsive { .. } | Self::Damaged { live: true, .. }
        )
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Defined => "defined",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Stopped(_) => "stopped",
            Self::Crashed { .. } => "crashed",
            Self::Unresponsive { .. } => "unresponsive",
            Self::Damaged { .. } => "damaged",
        })
    }
}

/// What is done to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Switch it on.
    Start,
    /// Let it stand still.
    Pause,
    /// Let it run on.
    Resume,
    /// Write its memory to a file, and end it.
    Suspend,
    /// Take its memory from the file, and let it run on.
    Restore,
    /// Ask it to end, and end it if it does not.
    Stop,
    /// Change its memory.
    Balloon,
    /// End and forget it.
    Destroy,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Suspend => "suspend",
            Self::Restore => "restore",
            Self::Stop => "stop",
            Self::Balloon => "balloon",
            Self::Destroy => "destroy",
        })
    }
}

/// What becomes of an operation that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Do,
    /// There is nothing to do.
    Done,
    /// It is not done; what would be right.
    Refuse(&'static str),
}

/// Judges an operation.
#[must_use]
pub fn judge(state: &State, operation: Operation) -> Verdict {
    use Operation as O;
    use State as S;
    use Verdict::{Do, Done, Refuse};
    const SILENT: Verdict = Refuse("wait until it answers, stop it, or destroy it");
    const OFF: Verdict = Refuse("start it first");
    match (operation, state) {
        (O::Destroy, _) => Do,
        (_, S::Damaged { .. }) => {
            Refuse("mend the file that its state names and open the driver again, or destroy it")
        }
        (O::Stop, S::Unresponsive { .. }) => Do,
        (_, S::Unresponsive { .. }) => SILENT,

        (O::Start, S::Defined | S::Stopped(_) | S::Crashed { .. }) => Do,
        (O::Start, S::Running) => Done,
        (O::Start, S::Paused) => Refuse("resume it"),
        (O::Start, S::Suspended) => Refuse("restore it, or destroy it if its memory is not wanted"),

        (O::Pause, S::Running) | (O::Resume, S::Paused) => Do,
        (O::Pause, S::Paused) | (O::Resume, S::Running) => Done,
        (O::Suspend | O::Balloon, S::Running | S::Paused) => Do,
        (O::Suspend, S::Suspended) => Done,
        (O::Pause | O::Resume | O::Balloon, S::Suspended) => Refuse("restore it first"),
        (O::Pause | O::Resume | O::Suspend | O::Balloon, _) => OFF,

        (O::Restore, S::Suspended) => Do,
        (O::Restore, S::Running | S::Paused) => {
            Refuse("it has run on since it was suspended; its memory of then does not fit its disks any more")
        }
        (O::Restore, _) => Refuse("it was not suspended; start it"),

        (O::Stop, S::Running | S::Paused) => Do,
        (O::Stop, S::Defined | S::Stopped(_) | S::Crashed { .. }) => Done,
        (O::Stop, S::Suspended) => Refuse("it does not run; restore it, or destroy it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Operation::*;

    const ALL: [Operation; 8] = [Start, Pause, Resume, Suspend, Restore, Stop, Balloon, Destroy];

    fn allowed(state: &State) -> (Vec<Operation>, Vec<Operation>) {
        let of = |verdict| {
            ALL.into_iter()
                .filter(|operation| judge(state, *operation) == verdict)
                .collect()
        };
        (of(Verdict::Do), of(Verdict::Done))
    }

    #[test]
    fn each_state_allows_what_the_drawing_shows() {
        let why = String::new;
        let off = (vec![Start, Destroy], vec![Stop]);
        for (state, expected) in [
            (State::Defined, off.clone()),
            (State::Stopped(End::Asked), off.clone()),
            (State::Crashed { why: why() }, off),
            (
                State::Running,
                (vec![Pause, Suspend, Stop, Balloon, Destroy], vec![Start, Resume]),
            ),
            (
                State::Paused,
                (vec![Resume, Suspend, Stop, Balloon, Destroy], vec![Pause]),
            ),
            (State::Suspended, (vec![Restore, Destroy], vec![Suspend])),
            (State::Unresponsive { why: why() }, (vec![Stop, Destroy], vec![])),
            (
                State::Damaged {
                    why: why(),
                    live: true,
                },
                (vec![Destroy], vec![]),
            ),
            (
                State::Damaged {
                    why: why(),
                    live: false,
                },
                (vec![Destroy], vec![]),
            ),
        ] {
            assert_eq!(allowed(&state), expected, "{state}");
        }
    }
}
