/// A text or a byte string that is not a valid value of its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A name that breaks the rule for DNS labels.
    #[error(
        "{kind} '{text}' is not valid: use 1 to {max} lower-case letters, digits and hyphens, \
         beginning with a letter and not ending with a hyphen"
    )]
    Name {
        /// What kind of name was read ("node name", "group name", ...).
        kind: &'static str,
        /// The text that was refused.
        text: String,
        /// The longest length allowed, in bytes.
        max: usize,
    },
    /// An identifier of the wrong length or alphabet.
    #[error("'{text}' is not a {kind}: {expected}")]
    Id {
        /// What kind of identifier was read.
        kind: &'static str,
        /// The text that was refused.
        text: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A word that is none of the roles.
    #[error("'{0}' is not a role: use manager, submit, worker, client or relay")]
    Role(String),
    /// A virtual range that cannot carry a grid.
    #[error("virtual range '{range}' is not usable: {reason}")]
    Range {
        /// The range as it was written.
        range: String,
        /// Why it was refused.
        reason: &'static str,
    },
    /// A block of addresses that cannot be leased.
    #[error("prefix '{prefix}' is not usable: {reason}")]
    Prefix {
        /// The block as it was written.
        prefix: String,
        /// Why it was refused.
        reason: &'static str,
    },
}
