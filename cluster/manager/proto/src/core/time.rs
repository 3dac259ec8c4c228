//! What the time brings: silences, limits, life-times, and questions that are asked again.

use std::time::Duration;

use aerie_cluster_proto::ledger::{HoldState, RequestId};
use aerie_context_proto::HostName;
use aerie_types::WallMillis;

use super::{Core, Doing, Effect, Hearing, Now, Outcome};
use crate::events::What;
use crate::host::Failure;
use crate::records::Record;
use crate::state::{Cluster, ContextReport, Phase, Step, Why};

/// How long a host or the context broker has to answer a question.
const ANSWER: Duration = Duration::from_secs(15);

/// How seldom the context broker is asked about members that are all configured.
const SELDOM: u32 = 12;

/// The longest that nothing is looked at: wall clocks jump, and life-times go by them. It is less where hosts are asked
/// more often, so that a manager that stood still is told from one that had nothing to do.
const LONGEST: Duration = Duration::from_secs(30);

impl Core {
    /// Time has passed.
    pub fn tick(&mut self, now: Now) {
        self.end_limits(now);
        self.stood_still(now);
        self.listen(now);
        self.ask(now);
        self.end_lifetimes(now);
        self.look(now);
        self.retry(now);
    }

    /// What failed is tried again. Whose turn it is follows from the state, so that all clusters are looked at.
    fn retry(&mut self, now: Now) {
        let is_due = |retry: &super::Retry| !retry.until.is_zero() && retry.until <= now.mono;
        let mut due = false;
        for retry in self.run.retries.values_mut().filter(|retry| is_due(retry)) {
            retry.until = Duration::ZERO;
            due = true;
        }
        if due {
            self.run.dirty.extend(self.world.clusters.keys().cloned());
        }
    }

    /// After how much time there is something to do, from the manager's begin on: at most half a minute after `now`, or
    /// the time between two questions to a host.
    #[must_use]
    pub fn next(&self, now: Now) -> Duration {
        let ops = self.run.ops.values().map(|op| op.deadline);
        let retries = self.run.retries.values().map(|retry| retry.until);
        let retries = retries.filter(|until| !until.is_zero());
        let asks = self
            .run
            .hosts
            .values()
            .filter(|watch| watch.connected && watch.asking.is_none());
        let looks = self.run.looks.iter().filter(|(id, look)| {
            let cluster = self.world.clusters.get(*id);
            !look.asking && cluster.is_some_and(|cluster| looks_at(cluster))
        });
        let silences = self.run.hosts.values().filter_map(|watch| match watch.hearing {
            Hearing::Heard => Some(watch.heard + self.settings.suspect_after),
            Hearing::Suspected => Some(watch.heard + self.settings.lose_after),
            Hearing::Lost => None,
        });
        let wall = self
            .world
            .clusters()
            .filter_map(|(id, cluster)| self.wall_due(id, cluster));
        let wall = wall.min().map(|due| now.mono + due.since(now.wall));
        let next = ops
            .chain(retries)
            .chain(asks.map(|watch| watch.next))
            .chain(looks.map(|(_, look)| look.next))
            .chain(silences)
            .chain(wall)
            .min();
        let longest = now.mono + LONGEST.min(self.settings.ask_every);
        next.map_or(longest, |next| next.min(longest))
    }

    /// When a cluster has to be looked at for its life-time.
    fn wall_due(&self, id: &RequestId, cluster: &Cluster) -> Option<WallMillis> {
        if cluster.is_ending() {
            return None;
        }
        let hold = self.world.ledger.hold(id)?;
        match hold.state {
            HoldState::Committed { until, .. } if cluster.warned != Some(until) => {
                Some(self.warn_at(hold.lifetime.duration(), until))
            }
            _ => Some(hold.until()),
        }
    }

    fn warn_at(&self, lifetime: Duration, until: WallMillis) -> WallMillis {
        let before = self.settings.warn_before.min(lifetime / 10);
        let before = u64::try_from(before.as_millis()).unwrap_or(u64::MAX);
        WallMillis(until.0.saturating_sub(before))
    }

    fn end_limits(&mut self, now: Now) {
        let late = self.run.ops.iter().filter(|(_, op)| op.deadline <= now.mono);
        let late: Vec<_> = late.map(|(id, op)| (*id, op.doing.clone())).collect();
        for (op, doing) in late {
            let limit = match &doing {
                Doing::Member { step: Step::Stop, .. } => Step::Stop.limit() + self.settings.grace,
                Doing::Member { step, .. } => step.limit(),
                Doing::Stage { .. } => Step::Stage.limit(),
                Doing::Orphan { .. } => Step::Destroy.limit(),
                _ => ANSWER,
            };
            let limit = humantime::format_duration(limit);
            let failure = Failure::unreachable(format!("there was no answer within {limit}"));
            let outcome = match doing {
                Doing::Ask { .. } => Outcome::Inventory(Err(failure)),
                Doing::Member { .. } | Doing::Stage { .. } | Doing::Orphan { .. } => {
                    Outcome::Performed(Err(failure))
                }
                Doing::MakeContext(_) | Doing::RemoveContext(_) => Outcome::Context(Err(failure)),
                Doing::Look(_) => Outcome::Looked(Err(failure)),
            };
            self.outcome(op, outcome, now);
            self.effects.push(Effect::Forget(op));
        }
    }

    /// A manager that stood still, or could not write anything down, has heard nobody: that is no silence of its hosts.
    fn stood_still(&mut self, now: Now) {
        let before = self.run.ticked.replace(now.mono).unwrap_or(now.mono);
        let gap = now.mono.saturating_sub(before);
        if gap <= self.settings.ask_every + ANSWER {
            return;
        }
        for watch in self.run.hosts.values_mut() {
            watch.heard = (watch.heard + gap).min(now.mono);
        }
    }

    /// Hosts that are silent.
    fn listen(&mut self, now: Now) {
        let mut changes: Vec<(HostName, Hearing)> = Vec::new();
        for (host, watch) in &mut self.run.hosts {
            let silence = now.mono.saturating_sub(watch.heard);
            let hearing = watch.silent(silence, &self.settings);
            if hearing > watch.hearing {
                watch.hearing = hearing;
                changes.push((host.clone(), hearing));
            }
        }
        for (host, hearing) in changes {
            let lost = hearing == Hearing::Lost;
            if lost {
                self.lose(&host);
            }
            if self.world.hosts.contains_key(&host) {
                let what = if lost {
                    What::HostLost { host }
                } else {
                    What::HostSuspected { host }
                };
                self.record(Record::Told(what), now);
            }
        }
    }

    /// Nobody waits any more for a host that is lost.
    fn lose(&mut self, host: &HostName) {
        let on_it = |doing: &Doing| match doing {
            Doing::Member { host: on, .. }
            | Doing::Stage { host: on, .. }
            | Doing::Orphan { host: on, .. } => on == host,
            _ => false,
        };
        let ops = self.run.ops.iter().filter(|(_, op)| on_it(&op.doing));
        let ops: Vec<_> = ops.map(|(id, _)| *id).collect();
        for op in ops {
            self.forget_op(op);
        }
        if let Some(watch) = self.run.hosts.get_mut(host) {
            watch.seen = false;
        }
        self.dirty_host(host);
    }

    fn ask(&mut self, now: Now) {
        let due = |watch: &super::Watch| watch.connected && watch.asking.is_none() && watch.next <= now.mono;
        let due = self.run.hosts.iter().filter(|(_, watch)| due(watch));
        let due: Vec<_> = due.map(|(host, _)| host.clone()).collect();
        for host in due {
            let op = self.begin_op(Doing::Ask { host: host.clone() }, ANSWER, now);
            if let Some(watch) = self.run.hosts.get_mut(&host) {
                watch.asking = Some(op);
                watch.next = now.mono;
            }
            self.effects.push(Effect::Ask { op, host });
        }
    }

    fn end_lifetimes(&mut self, now: Now) {
        let due = self.world.clusters().filter(|(id, cluster)| {
            let due = self.wall_due(id, cluster);
            due.is_some_and(|due| due <= now.wall)
        });
        let due: Vec<RequestId> = due.map(|(id, _)| id.clone()).collect();
        for id in due {
            let Some(until) = self.world.ledger.hold(&id).map(|hold| hold.until()) else {
                continue;
            };
            if until > now.wall {
                self.record(Record::Warned { id, until }, now);
                continue;
            }
            let deployed = self
                .world
                .clusters
                .get(&id)
                .is_some_and(|cluster| cluster.phase == Phase::Deployed);
            let why = if deployed {
                Why::Expired
            } else {
                Why::Failed(self.too_late())
            };
            self.run.dirty.insert(id.clone());
            self.record(Record::Ending { id, why }, now);
        }
    }

    /// Contexts whose members are not all configured, and the others from time to time.
    fn look(&mut self, now: Now) {
        let with_context = self.world.clusters().filter(|(_, cluster)| looks_at(cluster));
        let with_context: Vec<_> = with_context
            .map(|(id, cluster)| (id.clone(), cluster.context.context()))
            .collect();
        for (id, context) in with_context {
            let look = self.run.looks.entry(id.clone()).or_default();
            if look.asking || look.next > now.mono {
                continue;
            }
            look.asking = true;
            let op = self.begin_op(Doing::Look(id), ANSWER, now);
            self.effects.push(Effect::Look { op, context });
        }
    }
}

fn looks_at(cluster: &Cluster) -> bool {
    cluster.has_context && !cluster.is_ending()
}

/// How long after one look at a context comes the next.
pub(super) fn look_again(cluster: &Cluster, every: Duration) -> Duration {
    if is_configured(cluster) {
        every * SELDOM
    } else {
        every
    }
}

fn is_configured(cluster: &Cluster) -> bool {
    let done = |report: &Option<ContextReport>| {
        matches!(report, Some(ContextReport::Configured | ContextReport::Failed(_)))
    };
    cluster.members.values().all(|member| done(&member.report))
}
