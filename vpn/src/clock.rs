//! The clocks of this host, which the core is told.

use std::time::{Instant, SystemTime};

use aerie_types::WallMillis;
use aerie_vpn_proto::Now;

/// The moment.
pub(crate) fn now() -> Now {
    Now {
        instant: Instant::now(),
        wall: WallMillis::from(SystemTime::now()),
    }
}
