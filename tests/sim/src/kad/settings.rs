//! What is the same for all members of a network.

use std::time::Duration;

/// What the network and its members are like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The delay of a message, one way.
    pub delay: Duration,
    /// By how much more of itself the delay may be, by chance.
    pub jitter: f64,
    /// To how many members connections are kept.
    pub limit: usize,
    /// Whether a member whose last connection closed is taken out of the table, as the overlay does.
    pub forget_closed: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(20),
            jitter: 0.1,
            limit: 64,
            forget_closed: true,
        }
    }
}
