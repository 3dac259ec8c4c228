//! What a guest can make happen in a loop is told once, and then how often it happened again.
//!
//! All guests' events go one way, which holds so many and no more. A guest that resets itself a thousand times a second
//! would push out what happened to the others before anybody has heard it.

use std::time::Duration;

use tokio::time::Instant;

use crate::{Kind, MAX_DISKS};

/// How long what was told is only counted. All guests of a host that loop at once fill the way with less than what it
/// holds in so much time, over and over.
pub(super) const QUIET: Duration = Duration::from_secs(10);

/// Most that is counted at a time: a reset, and that each disk failed, with the guest standing still or not.
const MAX_COUNTED: usize = 1 + 2 * MAX_DISKS;

/// What was told of a guest, and how often it has happened since.
#[derive(Debug, Default)]
pub(super) struct Repeats(Vec<Counted>);

#[derive(Debug)]
struct Counted {
    kind: Kind,
    times: u64,
    since: Instant,
}

impl Repeats {
    /// Whether this is to be told now. It is counted otherwise.
    pub(super) fn admit(&mut self, kind: &Kind, now: Instant) -> bool {
        if let Some(counted) = self.0.iter_mut().find(|counted| counted.kind == *kind) {
            counted.times += 1;
            return false;
        }
        if self.0.len() == MAX_COUNTED {
            return false;
        }
        self.0.push(Counted {
            kind: kind.clone(),
            times: 0,
            since: now,
        });
        true
    }

    /// What was left out for long enough.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Kind> {
        let mut due = Vec::new();
        self.0.retain_mut(|counted| {
            if now < counted.since + QUIET {
                return true;
            }
            let times = std::mem::take(&mut counted.times);
            counted.since = now;
            due.extend(repeated(&counted.kind, times));
            // What has not happened again is told at once when it does.
            times > 0
        });
        due
    }

    /// All that was left out, before something else is told that ends it.
    pub(super) fn all(&mut self) -> Vec<Kind> {
        let counted = std::mem::take(&mut self.0);
        counted
            .into_iter()
            .filter_map(|counted| repeated(&counted.kind, counted.times))
            .collect()
    }
}

fn repeated(kind: &Kind, times: u64) -> Option<Kind> {
    (times > 0).then(|| Kind::Repeated {
        kind: Box::new(kind.clone()),
        times,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(path: &str) -> Kind {
        Kind::DiskFailed {
            path: path.to_owned(),
            stopped: false,
        }
    }

    #[test]
    fn what_happens_in_a_loop_is_told_once_and_then_how_often() {
        let (mut repeats, begin) = (Repeats::default(), Instant::now());
        let mut told = Vec::new();
        let mut happened = 0;
        for millisecond in 0..60_000 {
            let now = begin + Duration::from_millis(millisecond);
            for kind in [Kind::Reset, failed("/a")] {
                happened += 1;
                if repeats.admit(&kind, now) {
                    told.push(kind);
                }
            }
            told.extend(repeats.due(now));
        }
        told.extend(repeats.all());
        assert!(told.len() <= 14, "{told:?}");
        assert_eq!(told[..2], [Kind::Reset, failed("/a")]);
        let times = told.iter().map(|kind| match kind {
            Kind::Repeated { times, .. } => *times,
            _ => 1,
        });
        assert_eq!(times.sum::<u64>(), happened, "none is lost");
    }

    #[test]
    fn what_happens_seldom_is_told_each_time() {
        let (mut repeats, mut now) = (Repeats::default(), Instant::now());
        for _ in 0..3 {
            assert!(repeats.admit(&Kind::Reset, now));
            assert_eq!(repeats.due(now), []);
            now += QUIET;
            assert_eq!(repeats.due(now), []);
        }
        assert!(repeats.admit(&failed("/a"), now));
        assert!(repeats.admit(&failed("/b"), now), "it is another disk");
    }

    #[test]
    fn what_is_counted_is_bounded() {
        let mut repeats = Repeats::default();
        for disk in 0..10_000 {
            repeats.admit(&failed(&disk.to_string()), Instant::now());
        }
        assert_eq!(repeats.0.len(), MAX_COUNTED);
    }
}
