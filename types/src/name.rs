//! Names of grids, groups, users and nodes: DNS labels, checked once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ParseError;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The longest name allowed, in bytes.
            pub const MAX: usize = $max;

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                if is_label(text, $max) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(ParseError::Name { kind: $kind, text: text.to_owned(), max: $max })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseError;

            fn try_from(text: String) -> Result<Self, ParseError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// The name of a grid. It is the label below `.grid` in the names of its nodes.
    GridName, "grid name", 32
);
name_type!(
    /// The name of a user group within a grid.
    GroupName, "group name", 32
);
name_type!(
    /// The name of a person known to a grid.
    UserName, "user name", 32
);
name_type!(
    /// The name of a node, unique within its grid.
    NodeName, "node name", 40
);

impl NodeName {
    /// The node's full name in the grid's domain: `<node>.<grid>.grid`.
    #[must_use]
    pub fn fqdn(&self, grid: &GridName) -> String {
        format!("{self}.{grid}.grid")
    }
}

fn is_label(text: &str, max: usize) -> bool {
    let bytes = text.as_bytes();
    (1..=max).contains(&bytes.len())
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last() != Some(&b'-')
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "chem", "w1", "node-7"] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "1a", "ä", &"a".repeat(41)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_refused_name_says_what_would_be_right() {
        let message = "Node 7".parse::<NodeName>().unwrap_err().to_string();
        assert!(
            message.contains("node name 'Node 7'") && message.contains("lower-case"),
            "{message}"
        );
    }
}
