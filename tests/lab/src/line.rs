//! A long line in place of a wire: frames take their time over it, and some are lost. The kernels of small machines
//! have no traffic control that does this, so that a thread carries them between two TAP devices.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::netns::NetNs;

/// Frames on their way in one direction; beyond it they are dropped, as at a full queue.
const MOST: usize = 4096;
/// The longest frame: no offload makes longer ones of them.
const FRAME: usize = 2048;
/// Frames that are taken from one end at a time.
const BATCH: usize = 256;
/// How often a thread with nothing to do looks whether it is to end.
const LOOK: Duration = Duration::from_millis(200);

/// What a line does to frames, in each direction by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// How long a frame takes.
    pub delay: Duration,
    /// By how much more it takes at most, another time for each; frames do not overtake each other.
    pub jitter: Duration,
    /// How many of a hundred frames are lost.
    pub loss: f64,
}

/// The thread and its two devices. They go when it is dropped.
#[derive(Debug)]
pub(crate) struct Line {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// An end: an interface's name and where it is to be.
pub(crate) struct End<'a> {
    pub(crate) net: NetNs,
    pub(crate) name: &'a str,
    pub(crate) mac: Option<[u8; 6]>,
}

impl End<'_> {
    fn open(&self) -> Result<SyncDevice> {
        self.net.enter(|| {
            let builder = DeviceBuilder::new()
                .name(self.name)
                .layer(Layer::L2)
                .packet_information(false)
                .enable(false);
            let builder = match self.mac {
                Some(mac) => builder.mac_addr(mac),
                None => builder,
            };
            let device = builder.build_sync()?;
            device.set_nonblocking(true)?;
            Ok(device)
        })
    }
}

impl Line {
    /// Makes the line. Its ends are to be given addresses and brought up.
    /// What is lost, and what comes late, follows from the seed.
    pub(crate) fn start(ends: [End<'_>; 2], quality: Quality, seed: u64) -> Result<Self> {
        let [a, b] = ends.map(|end| end.open().with_context(|| format!("cannot make {}", end.name)));
        let devices = [a?, b?];
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut ways = [Way::new(seed, quality), Way::new(seed + 1, quality)];
            while !stopped.load(Ordering::Relaxed) && carry(&devices, &mut ways) {}
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for a frame, or until one has arrived at the other end, and carries what can be. Whether the line is whole.
fn carry(devices: &[SyncDevice; 2], ways: &mut [Way; 2]) -> bool {
    let now = Instant::now();
    for (way, to) in ways.iter_mut().zip([&devices[1], &devices[0]]) {
        while let Some(frame) = way.arrived(now) {
            // A device that is down takes nothing, as a wire that was pulled.
            let _ = to.send(&frame);
        }
    }
    let next = ways.iter().filter_map(Way::next).min();
    let wait = next.map_or(LOOK, |at| at.saturating_duration_since(now).min(LOOK));
    let mut fds = devices
        .each_ref()
        .map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN));
    let millis = PollTimeout::try_from(wait.as_millis() + 1).unwrap_or(PollTimeout::MAX);
    let _ = poll(&mut fds, millis);
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    if fds
        .iter()
        .any(|fd| fd.revents().is_some_and(|found| found.intersects(gone)))
    {
        // The namespace of an end has ended.
        return false;
    }
    let now = Instant::now();
    let mut buffer = [0; FRAME];
    for (way, from) in ways.iter_mut().zip(devices) {
        for _ in 0..BATCH {
            let Ok(len) = from.recv(&mut buffer) else { break };
            way.enter(&buffer[..len], now);
        }
    }
    true
}

/// One direction.
struct Way {
    quality: Quality,
    frames: VecDeque<(Instant, Vec<u8>)>,
    rng: StdRng,
    lost: u64,
}

impl Way {
    fn new(seed: u64, quality: Quality) -> Self {
        Self {
            quality,
            frames: VecDeque::new(),
            rng: StdRng::seed_from_u64(seed),
            lost: 0,
        }
    }

    fn enter(&mut self, frame: &[u8], now: Instant) {
        let Quality { delay, jitter, loss } = self.quality;
        if self.frames.len() >= MOST || self.rng.random::<f64>() * 100.0 < loss {
            self.lost += 1;
            return;
        }
        let at = now + delay + jitter.mul_f64(self.rng.random::<f64>());
        let before = self.frames.back().map_or(at, |(before, _)| *before);
        self.frames.push_back((at.max(before), frame.to_vec()));
    }

    fn next(&self) -> Option<Instant> {
        self.frames.front().map(|(at, _)| *at)
    }

    fn arrived(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.next().filter(|at| *at <= now)?;
        self.frames.pop_front().map(|(_, frame)| frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUALITY: Quality = Quality {
        delay: Duration::from_millis(50),
        jitter: Duration::from_millis(10),
        loss: 5.0,
    };

    #[test]
    fn frames_take_their_time_in_order_and_some_are_lost() {
        let mut way = Way::new(7, QUALITY);
        let begun = Instant::now();
        for number in 0..10_000_u32 {
            way.enter(
                &number.to_be_bytes(),
                begun + Duration::from_micros(number.into()),
            );
            if way.frames.len() == MOST {
                break;
            }
        }
        let entered = way.frames.len() as u64 + way.lost;
        let part = way.lost as f64 / entered as f64;
        assert!((0.04..0.06).contains(&part), "{part}");
        assert_eq!(way.arrived(begun + Duration::from_millis(49)), None);
        let mut last = None;
        while let Some(frame) = way.arrived(begun + Duration::from_secs(1)) {
            assert!(last < Some(frame.clone()), "in order");
            last = Some(frame);
        }
        assert_eq!(way.next(), None);
    }
}
