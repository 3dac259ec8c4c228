use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aerie_types::WallMillis;

/// 9999-12-31 23:59:59 UTC: the last second that X.509 and the printer of times can express.
pub(crate) const LAST_SECOND: u64 = 253_402_300_799;

/// A time as a person reads it: `2031-05-06T07:08:09Z`.
#[must_use]
pub fn time_text(time: WallMillis) -> String {
    let shown: SystemTime = UNIX_EPOCH + Duration::from_secs(time.secs().min(LAST_SECOND));
    humantime::format_rfc3339_seconds(shown).to_string()
}

/// The time between two points as a person reads it: `23h 55m`.
pub(crate) fn ago(later: WallMillis, earlier: WallMillis) -> String {
    let secs = later.since(earlier).as_secs();
    // Beyond an hour the seconds, and beyond a day the minutes, only hide the figure that matters.
    let rounded = match secs {
        86_400.. => secs - secs % 3600,
        3600.. => secs - secs % 60,
        _ => secs,
    };
    humantime::format_duration(Duration::from_secs(rounded)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_beyond_the_calendar_is_still_printed() {
        assert_eq!(time_text(WallMillis(u64::MAX)), "9999-12-31T23:59:59Z");
        assert_eq!(time_text(WallMillis(0)), "1970-01-01T00:00:00Z");
    }
}
