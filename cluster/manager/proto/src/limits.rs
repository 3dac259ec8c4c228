//! Every bound of the manager, by name.

use std::time::Duration;

/// Most clusters that live at a time.
pub const MAX_CLUSTERS: usize = 4096;

/// Most clusters that have ended and can still be asked for.
pub const MAX_ENDED: usize = 1024;

/// Most events that a late listener finds. Whoever is further behind is told so, and asks for the states.
pub const MAX_EVENTS: usize = 8192;

/// Most events in one answer.
pub const MAX_EVENTS_PAGE: usize = 1024;

/// Most images of a host that are taken notice of; members that need others have theirs copied once more.
pub const MAX_IMAGES: usize = 4096;

/// Most guests of this manager's in a host's inventory: as many as a driver has, and as many again half made. One that
/// has so many is taken for none, since others may be missing from it.
pub const MAX_FOUND: usize = 4096;

/// Most steps under way on one host: it copies and starts so many at a time.
pub const MAX_STEPS: usize = 32;

/// Most ranges of guests' numbers that were given by a journal that is lost: one for each time that an old copy of it
/// was put in its place, and a guest of its future was found.
pub const MAX_PASSED: usize = 64;

/// The highest number of a guest that is taken for one: half of what 56 bits hold, which nobody ever gives. What is
/// beyond is an error of its host's, and would leave no numbers.
pub const MAX_NUMBER: u64 = 1 << 55;

/// How often a step is tried before it has failed.
pub const MAX_ATTEMPTS: u32 = 5;

/// How long is waited after the first failure of a step; twice as long after each further one.
pub const BACK_OFF: Duration = Duration::from_secs(1);

/// The longest that is waited between two attempts. What has to succeed, as taking a guest away, is tried for ever.
pub const MAX_BACK_OFF: Duration = Duration::from_secs(60);

/// Most characters of a reason that are kept.
pub const MAX_REASON: usize = 512;
