//! What the simulated network and the simulated clocks are like.

use std::time::Duration;

/// What the network does to messages.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// The chance that a message is lost.
    pub loss: f64,
    /// The chance that a request arrives twice.
    pub duplicate: f64,
    /// The shortest and the longest delay; messages overtake each other within it.
    pub delay: (Duration, Duration),
    /// How old the view of the members may be by which closest members are located.
    pub staleness: Duration,
    /// How far wall clocks are off, at most, either way.
    pub skew: Duration,
    /// How much faster or slower monotonic clocks run, in millionths, at most.
    pub drift_ppm: i64,
    /// How long it takes at most until others notice that a connection is dead. Until then what is sent over it is
    /// swallowed.
    pub detection: Duration,
}

impl Conditions {
    /// A bad network and wrong clocks: a message of twenty is lost, as many arrive twice, and all overtake each other.
    #[must_use]
    pub fn rough() -> Self {
        Self {
            loss: 0.05,
            duplicate: 0.05,
            delay: (Duration::from_millis(2), Duration::from_millis(300)),
            staleness: Duration::from_secs(1),
            skew: Duration::from_secs(120),
            drift_ppm: 2000,
            ..Self::default()
        }
    }
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            loss: 0.0,
            duplicate: 0.0,
            delay: (Duration::from_millis(2), Duration::from_millis(40)),
            staleness: Duration::ZERO,
            skew: Duration::ZERO,
            drift_ppm: 0,
            detection: Duration::ZERO,
        }
    }
}

/// In which directions a partition lets nothing through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// In both: connections break.
    Both,
    /// From a side with a higher number to one with a lower: connections stay, and answers do not arrive.
    Upward,
}
