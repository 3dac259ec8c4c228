//! Tests of descriptions, placement and the ledger, through the crate's public face.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at what is not as it should be"
)]

mod common;
mod documents;
mod faults;
mod hostile;
mod imported;
mod ledger;
mod placement;
mod quotas;
mod searched;
