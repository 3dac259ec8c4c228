//! Places at which tests end the process, as a kill or a power cut does.

/// Ends the process if its test wants it to end here: `AERIE_MANAGER_CRASH` is `PLACE` or, for the n-th time that it
/// comes by, `PLACE:N`.
#[cfg(test)]
pub(crate) fn point(place: &'static str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static TIMES: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("AERIE_MANAGER_CRASH") else {
        return;
    };
    let (wanted, time) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if wanted == place && TIMES.fetch_add(1, Ordering::SeqCst) + 1 == time.parse().unwrap_or(1) {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL);
        std::thread::park();
    }
}

/// Nothing.
#[cfg(not(test))]
#[inline]
pub(crate) fn point(_place: &'static str) {}
