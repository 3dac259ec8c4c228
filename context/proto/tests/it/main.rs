//! Tests of contexts and their documents, through the crate's public face.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at what is not as it should be"
)]

mod common;
mod documents;
mod hostile;
mod lifecycle;
mod recontext;
mod simulated;
