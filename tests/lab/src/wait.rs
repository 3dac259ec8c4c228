//! Waiting for something to become true, with a message that tells why it did not.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Looks again and again until `look` returns a value, at most for `limit`. An error of `look` is not the end: it
/// is looked again, and the last error is part of the message if the time runs out.
///
/// # Errors
/// When the time ran out: what was waited for, for how long, and what the last look found.
pub fn wait_until<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match look() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() >= limit {
            let seen = last.map_or_else(
                || "not yet so at the last look".to_owned(),
                |error| format!("{error:#}"),
            );
            return Err(anyhow!(
                "waited {:.1} s for {what}: {seen}",
                start.elapsed().as_secs_f64()
            ));
        }
        std::thread::sleep(PAUSE);
    }
}

/// The last lines of a text file; what hinders reading it, if something does.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<_> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("(cannot read {}: {error})", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_first_value() {
        let mut looks = 0;
        let value = wait_until(Duration::from_secs(5), "the second look", || {
            looks += 1;
            Ok((looks == 2).then_some(looks))
        });
        assert_eq!(value.unwrap(), 2);
    }

    #[test]
    fn a_wait_in_vain_says_what_the_last_look_found() {
        let result: Result<()> = wait_until(Duration::ZERO, "the moon", || Err(anyhow!("it is day")));
        let message = result.unwrap_err().to_string();
        assert!(
            message.contains("for the moon") && message.contains("it is day"),
            "{message}"
        );
    }

    #[test]
    fn a_tail_is_the_end_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a\nb\nc\n").unwrap();
        assert_eq!(tail(file.path(), 2), "b\nc");
    }
}
