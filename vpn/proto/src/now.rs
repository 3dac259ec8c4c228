//! The time, as callers give it.

use std::time::Instant;

use aerie_types::WallMillis;

/// The moment of a call: monotonic time for timers, wall time for credentials and handshake timestamps.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic time.
    pub instant: Instant,
    /// This node's idea of the wall time, which may be wrong.
    pub wall: WallMillis,
}
