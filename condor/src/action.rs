//! The least disturbing way from one plan to the next.

use serde::Serialize;

use crate::plan::Plan;

/// What has to happen to HTCondor's daemons once a plan's files are in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Nothing: the same plan, or no daemons before and after.
    None,
    /// Nothing, and the new plan's files must not be written: it waits for a manager, while the plan in force
    /// still has daemons and perhaps jobs. The managers set may be empty for a moment; jobs need not suffer.
    Keep,
    /// `condor_master` reads its configuration again and tells its daemons. Jobs go on.
    Reconfig,
    /// All daemons end and start again: a change that HTCondor reads at its start only. Jobs on this node are
    /// evicted and queued again; jobs that this node submitted go on and are reconnected.
    Restart,
    /// `condor_master` is to be started.
    Start,
    /// `condor_master` is to be ended.
    Stop,
}

/// Knobs that HTCondor reads at its start only.
const READ_AT_START: &[&str] = &[
    "NETWORK_HOSTNAME",
    "NETWORK_INTERFACE",
    "BIND_ALL_INTERFACES",
    "ENABLE_IPV4",
    "ENABLE_IPV6",
    "USE_SHARED_PORT",
    "SHARED_PORT_PORT",
    "COLLECTOR_PORT",
    "WANT_UDP_COMMAND_SOCKET",
    "UID_DOMAIN",
    "FILESYSTEM_DOMAIN",
    "RUN",
    "LOCK",
    "LOG",
    "SPOOL",
    "EXECUTE",
    "NUM_SLOTS",
    "NUM_SLOTS_TYPE_1",
    "SLOT_TYPE_1",
    "SLOT_TYPE_1_PARTITIONABLE",
];

/// The least that brings HTCondor from `old` to `new`. `None` for `old` means that nothing of ours runs.
#[must_use]
pub fn lightest_action(old: Option<&Plan>, new: &Plan) -> Action {
    let running = old.filter(|plan| plan.runs());
    match (running, new.runs()) {
        (None, false) => Action::None,
        (None, true) => Action::Start,
        (Some(_), false) if new.waiting.is_some() => Action::Keep,
        (Some(_), false) => Action::Stop,
        (Some(old), true) if old == new => Action::None,
        (Some(old), true) => {
            let changed = new.knobs.changed(&old.knobs);
            if changed.iter().any(|knob| READ_AT_START.contains(knob)) {
                Action::Restart
            } else {
                Action::Reconfig
            }
        }
    }
}
