//! What can go wrong while packages and images are made.

/// Why a package or an image was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {}
