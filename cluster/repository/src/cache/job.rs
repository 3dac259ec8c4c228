//! An image that is being fetched, as its driver and those who wait for it see it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Progress;
use crate::Error;
use crate::manifest::{Manifest, ManifestId};
use crate::swarm::Bitfield;

/// Over how long a rate is taken.
const WINDOW: Duration = Duration::from_secs(5);

/// Most points of that time that are kept.
const POINTS: usize = 64;

#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: ManifestId,
    pub(super) manifest: Arc<Manifest>,
    have: Mutex<Bitfield>,
    progress: watch::Sender<Progress>,
    done: watch::Sender<Option<Result<(), Arc<Error>>>>,
}

impl Job {
    pub(super) fn new(id: ManifestId, manifest: Manifest) -> Arc<Self> {
        let progress = Progress {
            size: manifest.size(),
            of: manifest.chunks(),
            ..Progress::default()
        };
        Arc::new(Self {
            id,
            have: Mutex::new(Bitfield::empty(manifest.chunks())),
            manifest: Arc::new(manifest),
            progress: watch::Sender::new(progress),
            done: watch::Sender::new(None),
        })
    }

    /// What can be given to others.
    pub(super) fn have(&self) -> MutexGuard<'_, Bitfield> {
        self.have.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(super) fn tell(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    pub(super) fn end(&self, result: Result<(), Error>) {
        self.done.send_replace(Some(result.map_err(Arc::new)));
    }

    pub(super) async fn wait(&self) -> Result<(), Error> {
        let mut done = self.done.subscribe();
        match done.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(Some(Err(error))) => Err(Error::Shared(Arc::clone(error))),
            _ => Err(Error::Ended),
        }
    }
}

/// How fast something grows.
#[derive(Debug, Default)]
pub(super) struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    /// Per second, given how much there is now.
    pub(super) fn at(&mut self, now: Instant, amount: u64) -> f64 {
        let spaced = |(last, _): &(Instant, u64)| now.duration_since(*last) >= WINDOW / POINTS as u32;
        if self.0.back().is_none_or(spaced) {
            self.0.push_back((now, amount));
        }
        while self.0.len() > 2
            && (self.0.len() > POINTS
                || self
                    .0
                    .front()
                    .is_some_and(|(first, _)| now.duration_since(*first) > WINDOW))
        {
            self.0.pop_front();
        }
        let Some((first, before)) = self.0.front() else {
            return 0.0;
        };
        let seconds = now.duration_since(*first).as_secs_f64();
        if seconds > 0.0 {
            amount.saturating_sub(*before) as f64 / seconds
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let (start, mut rate) = (Instant::now(), Rate::default());
        for second in 0..20 {
            let amount = if second < 10 { 0 } else { (second - 10) * 1000 };
            rate.at(start + Duration::from_secs(second), amount);
        }
        let now = rate.at(start + Duration::from_secs(20), 10_000);
        assert!((now - 1000.0).abs() < 1.0, "{now}");
    }
}
