//! The crate as its users see it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at what is not as it should be"
)]

mod bundle;
mod common;
mod explain;
mod hostile;
mod metadata;
mod search;
mod spec;
