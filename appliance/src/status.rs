//! What a daemon says of itself: one record per stage of joining, from the blob to the pool.
//!
//! Wire form of the control socket (JSON). The daemon writes it, the command prints it, scripts read it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The stages that a node passes through, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// A configuration was found.
    Source,
    /// The machine can carry the grid: TUN device, rights, free range, HTCondor.
    Host,
    /// The node has its credentials.
    Certificate,
    /// The node is connected to admitted members.
    Overlay,
    /// The node holds its virtual address.
    Address,
    /// The tunnel interface is up.
    Tunnel,
    /// Names of the grid resolve.
    Names,
    /// A manager is known and answers.
    Managers,
    /// HTCondor runs and the pool lists this node.
    Pool,
}

impl Stage {
    pub(crate) const ALL: [Self; 9] = [
        Self::Source,
        Self::Host,
        Self::Certificate,
        Self::Overlay,
        Self::Address,
        Self::Tunnel,
        Self::Names,
        Self::Managers,
        Self::Pool,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Host => "host",
            Self::Certificate => "certificate",
            Self::Overlay => "overlay",
            Self::Address => "address",
            Self::Tunnel => "tunnel",
            Self::Names => "names",
            Self::Managers => "managers",
            Self::Pool => "pool",
        }
    }
}

/// How far a stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Not begun, or begun and not yet done.
    #[default]
    Waiting,
    /// Done.
    Done,
    /// Cannot go on without somebody's help; it is tried again all the same.
    Failed,
    /// Not part of this node's roles.
    Off,
}

/// One stage as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StageReport {
    pub(crate) stage: Stage,
    pub(crate) state: State,
    /// Milliseconds from the end of the stage before to the end of this one, once done.
    pub(crate) ms: Option<u64>,
    /// What it found, or what it waits for.
    pub(crate) reason: String,
    /// What a person can do about it; empty if nothing is asked.
    pub(crate) hint: String,
}

/// One member as the tunnel and the overlay see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PeerReport {
    pub(crate) node: String,
    pub(crate) group: String,
    pub(crate) roles: String,
    pub(crate) peer: String,
    pub(crate) addr: Option<String>,
    /// The IPv6 address that follows from it, whether the member's machine takes IPv6 or not.
    #[serde(default)]
    pub(crate) addr6: Option<String>,
    /// `direct`, `relayed` or `none`: the overlay's connection.
    pub(crate) overlay: String,
    /// The tunnel's path: `direct`, `lan`, `relayed`, or `idle` while no packet asked for one.
    pub(crate) path: String,
    /// The path with its addresses; empty while there is none.
    pub(crate) through: String,
    /// The cipher of the tunnel's session, by its common name; empty while there is no session.
    #[serde(default)]
    pub(crate) cipher: String,
    pub(crate) rtt_ms: Option<f64>,
    /// The longest packet in bytes that was found to fit the tunnel's path without fragments.
    #[serde(default)]
    pub(crate) mtu: Option<usize>,
    /// Why the path is not direct; empty if it is.
    pub(crate) why: String,
    /// Whether packets have gone to it or come from it in the last minutes.
    #[serde(default)]
    pub(crate) active: bool,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_bytes: u64,
}

impl PeerReport {
    /// Whether packets want to go to it, or come from it, and there is no path.
    pub(crate) fn lacks_path(&self) -> bool {
        self.path == "idle" && self.active
    }
}

/// One manager as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ManagerReport {
    pub(crate) node: String,
    pub(crate) addr: String,
    pub(crate) group: String,
    pub(crate) primary: bool,
    pub(crate) alive: bool,
}

/// The whole report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// Known once the node has its credential.
    pub(crate) grid: String,
    /// Known once there is a configuration.
    pub(crate) grid_id: String,
    pub(crate) node: String,
    pub(crate) peer: String,
    pub(crate) group: String,
    pub(crate) roles: String,
    pub(crate) addr: Option<String>,
    /// The IPv6 address of the interface; none where this machine has IPv4 alone.
    #[serde(default)]
    pub(crate) addr6: Option<String>,
    pub(crate) range: String,
    /// Until when the lease is held, in seconds from now.
    pub(crate) lease_secs: Option<u64>,
    /// How many witnesses signed the lease that is held.
    pub(crate) lease_receipts: Option<usize>,
    /// The credential's end, in seconds from now.
    pub(crate) credential_secs: Option<u64>,
    pub(crate) ready: bool,
    /// Milliseconds from the daemon's start to readiness.
    pub(crate) ready_ms: Option<u64>,
    pub(crate) stages: Vec<StageReport>,
    pub(crate) managers: Vec<ManagerReport>,
    /// Paths to members that the tunnel uses, counted by kind.
    pub(crate) paths: BTreeMap<String, usize>,
    pub(crate) members: usize,
}

/// Follows the stages. The time of a stage is counted from the later of its predecessors' ends.
#[derive(Debug)]
pub(crate) struct Tracker {
    reports: BTreeMap<Stage, (StageReport, Option<Duration>)>,
    ready: Option<Duration>,
}

impl Tracker {
    pub(crate) fn new() -> Self {
        let reports = Stage::ALL
            .into_iter()
            .map(|stage| {
                let report = StageReport {
                    stage,
                    state: State::Waiting,
                    ms: None,
                    reason: "not begun".to_owned(),
                    hint: String::new(),
                };
                (stage, (report, None))
            })
            .collect();
        Self { reports, ready: None }
    }

    /// Records a stage's state. `elapsed` is the time since the daemon's start. Returns whether anything changed.
    pub(crate) fn set(
        &mut self,
        stage: Stage,
        state: State,
        reason: impl Into<String>,
        hint: impl Into<String>,
        elapsed: Duration,
    ) -> bool {
        let before = self
            .reports
            .range(..stage)
            .filter_map(|(_, (report, end))| (report.state == State::Done).then_some(*end).flatten())
            .max()
            .unwrap_or_default();
        let Some((report, end)) = self.reports.get_mut(&stage) else {
            return false;
        };
        let (reason, hint) = (reason.into(), hint.into());
        let changed = report.state != state || report.reason != reason || report.hint != hint;
        if state == State::Done && end.is_none() {
            *end = Some(elapsed);
            report.ms = Some(millis(elapsed.saturating_sub(before)));
        }
        report.state = state;
        report.reason = reason;
        report.hint = hint;
        if self.ready.is_none() && self.is_ready() {
            self.ready = Some(elapsed);
        }
        changed
    }

    /// Whether every stage is done or not part of this node.
    pub(crate) fn is_ready(&self) -> bool {
        self.reports
            .values()
            .all(|(report, _)| matches!(report.state, State::Done | State::Off))
    }

    /// When the node was ready for the first time, in milliseconds since the daemon's start.
    pub(crate) fn ready_ms(&self) -> Option<u64> {
        self.ready.map(millis)
    }

    pub(crate) fn reports(&self) -> Vec<StageReport> {
        self.reports.values().map(|(report, _)| report.clone()).collect()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stages_time_is_counted_from_the_stage_before() {
        let mut tracker = Tracker::new();
        tracker.set(Stage::Source, State::Done, "file", "", Duration::from_millis(200));
        tracker.set(Stage::Host, State::Done, "ok", "", Duration::from_millis(350));
        assert_eq!(tracker.reports()[1].ms, Some(150));
    }

    #[test]
    fn a_stage_that_falls_back_keeps_its_first_time() {
        let mut tracker = Tracker::new();
        tracker.set(Stage::Source, State::Done, "file", "", Duration::from_millis(200));
        tracker.set(
            Stage::Source,
            State::Waiting,
            "gone",
            "look",
            Duration::from_millis(900),
        );
        tracker.set(Stage::Source, State::Done, "file", "", Duration::from_millis(990));
        assert_eq!(tracker.reports()[0].ms, Some(200));
    }

    #[test]
    fn a_node_is_ready_when_each_stage_is_done_or_off() {
        let mut tracker = Tracker::new();
        for stage in Stage::ALL {
            assert!(!tracker.is_ready());
            let state = if stage == Stage::Pool {
                State::Off
            } else {
                State::Done
            };
            tracker.set(stage, state, "", "", Duration::from_millis(10));
        }
        assert!(tracker.is_ready());
        assert_eq!(tracker.ready_ms(), Some(10));
    }
}
