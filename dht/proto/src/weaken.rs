//! Deliberate faults, to show that the checkers of this protocol would find them. Not part of what ships.

/// A rule of the register that is left out. Each is consulted at one point alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Weaken {
    /// A witness without a store votes at once.
    NoReadinessRule,
    /// A witness counts its own grants alone, not what others granted or proved.
    NewWitnessIgnoresCertificates,
    /// A look-up takes every valid certificate.
    NoFencing,
}
