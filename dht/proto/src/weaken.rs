//! Deliberate faults, to show that the checkers of this protocol would find them. Not part of what ships.

/// A rule of the register that is left out. Each is consulted where the rule is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Weaken {
    /// A witness without a store votes at once.
    NoReadinessRule,
    /// A witness takes nothing over from those that voted before it: neither their certificates nor their word.
    NewWitnessIgnoresCertificates,
    /// A look-up takes every valid certificate.
    NoFencing,
}
