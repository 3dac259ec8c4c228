//! Places at which tests end the process, as a kill or a power cut does.
//!
//! A test numbers them in the order in which its process comes by, and ends it at each in turn: so none is left out.

/// In the environment of a process that is to end: at which place, counted from 1.
#[cfg(test)]
pub(crate) const NUMBER: &str = "AERIE_REPOSITORY_CRASH";

/// Ends the process if its test wants it to end here.
#[cfg(test)]
pub(crate) fn point(place: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let Ok(wanted) = std::env::var(NUMBER) else {
        return;
    };
    let number = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    if wanted == number.to_string() {
        eprintln!("ends at {place}");
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL);
        std::thread::park();
    }
}

/// Nothing.
#[cfg(not(test))]
#[inline]
pub(crate) fn point(_place: &str) {}
