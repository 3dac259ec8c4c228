//! What only saves work.

use std::hash::{Hash, Hasher};

/// Something that follows from the rest of the state, kept so that it is not found out again: nodes that differ in it
/// alone are in the same state.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Saved<T>(pub(crate) T);

impl<T> PartialEq for Saved<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Saved<T> {}

impl<T> Hash for Saved<T> {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}
