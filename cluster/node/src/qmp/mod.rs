//! QMP, QEMU's machine protocol, as far as a driver of guests needs it.
//!
//! QEMU greets, is told that it may take commands, and from then on takes one JSON object a line and gives one a line:
//! the answer to a command, by the id that the command had, or an event. [`Session`] is that protocol without a
//! socket; [`Client`] moves its bytes.
//!
//! The crate `qapi` speaks the whole protocol with types generated from one QEMU's schema. It is not used here: it
//! reads lines of any length, an event that a later QEMU adds is an error to it, it passes no file descriptors, which
//! is how the memory of a guest leaves QEMU, and of its thousand types this driver has a use for twenty.

mod client;
mod wire;

use std::time::Duration;

pub(crate) use client::Client;
pub(crate) use wire::{Event, RunState};

/// Why QEMU did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// It refused.
    #[error("QEMU refused '{command}': {why}")]
    Refused {
        /// What it was told.
        command: &'static str,
        /// Its own words.
        why: String,
    },
    /// It said nothing for too long.
    #[error("QEMU did not answer '{command}' within {} s", limit.as_secs_f32())]
    Silent {
        /// What it was told.
        command: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// It is gone, or the connection is.
    #[error("the connection to QEMU ended during '{command}': {source}")]
    Gone {
        /// What it was told.
        command: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// What it said is not QMP.
    #[error("QEMU said what is not QMP ({0})")]
    Garbage(&'static str),
}

impl QmpError {
    /// Whether QEMU may still be doing it: it neither refused nor agreed.
    pub(crate) fn is_silence(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }
}
