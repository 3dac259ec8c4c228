//! Places at which tests end the process, as a kill or a power cut does.

#[cfg(test)]
static ARMED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// From now on the process ends where its test wants it to: what it passes before is not meant.
#[cfg(test)]
pub(crate) fn arm() {
    ARMED.store(true, std::sync::atomic::Ordering::SeqCst);
}

/// Ends the process if its test wants it to end here.
#[cfg(test)]
pub(crate) fn point(place: &'static str) {
    if !ARMED.load(std::sync::atomic::Ordering::SeqCst) {
        return;
    }
    if std::env::var("AERIE_NODE_CRASH").is_ok_and(|wanted| wanted == place) {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL);
        std::thread::park();
    }
}

/// Nothing.
#[cfg(not(test))]
#[inline]
pub(crate) fn point(_place: &'static str) {}
