//! The crate as its users see it.

mod bundle;
mod common;
mod explain;
mod hostile;
mod metadata;
mod search;
mod spec;
