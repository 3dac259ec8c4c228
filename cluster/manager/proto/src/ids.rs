//! Who a guest is, and whose.

use std::fmt;
use std::str::FromStr;

use aerie_context_proto::ContextId;
use serde::{Deserialize, Serialize};

/// A manager: 56 bits, drawn when its journal begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ManagerId(pub [u8; 7]);

/// A guest, for ever: a UUID of version 8 (RFC 9562) that carries its manager and a number that is given once. A
/// manager thus knows its own guests on a host, and leaves all others alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestId(pub [u8; 16]);

/// Something that was begun and whose end is waited for. Numbers begin anew with each start of the manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("that is no id of a {0}: {1} hexadecimal digits are expected")]
pub struct BadId(&'static str, usize);

const VERSION: u8 = 0x80;
const VARIANT: u8 = 0x80;

impl GuestId {
    /// The guest of a manager with this number, of which 56 bits count.
    #[must_use]
    pub fn new(manager: ManagerId, number: u64) -> Self {
        let mut id = [0; 16];
        let [first @ .., last] = manager.0;
        let [_, number @ ..] = number.to_be_bytes();
        id[..6].copy_from_slice(&first);
        id[6] = VERSION;
        id[7] = last;
        id[8] = VARIANT;
        id[9..].copy_from_slice(&number);
        Self(id)
    }

    /// Whether it is a guest of this manager.
    #[must_use]
    pub fn is_of(self, manager: ManagerId) -> bool {
        let [a, b, c, d, e, f, version, last, variant, ..] = self.0;
        version == VERSION && variant == VARIANT && [a, b, c, d, e, f, last] == manager.0
    }

    /// The number that its manager gave it.
    #[must_use]
    pub(crate) fn number(self) -> u64 {
        let digits = self.0[9..].iter();
        digits.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// The context that goes by the same number.
    #[must_use]
    pub(crate) fn context(self) -> ContextId {
        ContextId(self.0)
    }
}

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for GuestId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let mut id = [0; 16];
        let digits = text.replace('-', "");
        hex::decode_to_slice(digits, &mut id).map_err(|_| BadId("guest", 32))?;
        Ok(Self(id))
    }
}

impl TryFrom<String> for GuestId {
    type Error = BadId;

    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl From<GuestId> for String {
    fn from(id: GuestId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ManagerId {
    type Error = BadId;

    fn try_from(text: String) -> Result<Self, BadId> {
        let mut id = [0; 7];
        hex::decode_to_slice(text, &mut id).map_err(|_| BadId("manager", 14))?;
        Ok(Self(id))
    }
}

impl From<ManagerId> for String {
    fn from(id: ManagerId) -> Self {
        hex::encode(id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_carries_its_manager_and_no_other() {
        let (mine, other) = (ManagerId([1, 2, 3, 4, 5, 6, 7]), ManagerId([1, 2, 3, 4, 5, 6, 8]));
        let guest = GuestId::new(mine, 0x01_0203);
        assert_eq!(guest.to_string(), "01020304-0506-8007-8000-000000010203");
        assert_eq!(guest.to_string().parse(), Ok(guest));
        assert!(guest.is_of(mine) && !guest.is_of(other));
        assert_ne!(guest, GuestId::new(mine, 0x01_0204));
        // A UUID of anybody else's is nobody's of ours, whatever it begins with.
        let mut foreign = guest;
        foreign.0[6] = 0x40;
        assert!(!foreign.is_of(mine));
    }
}
