//! Names and ids, parsed once at the door.
//!
//! All of them are safe as names of files and within a line of `/etc/hosts` or `known_hosts`: what one member
//! reports is written by all the others.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::limits::{MAX_HOST_KEY, MAX_HOST_NAME, MAX_NAME};

/// A text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{shown}' is not {what}: {rule}")]
pub struct BadName {
    shown: String,
    what: &'static str,
    rule: &'static str,
}

fn bad(text: &str, what: &'static str, rule: &'static str) -> BadName {
    BadName {
        shown: text.chars().take(80).flat_map(char::escape_debug).collect(),
        what,
        rule,
    }
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                let parse: fn(&str) -> Option<String> = $parse;
                parse(text).map(Self).ok_or_else(|| bad(text, $what, $rule))
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(text: String) -> Result<Self, BadName> {
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

text_type!(
    /// The name of a set of equal members: a DNS label.
    SetName,
    "the name of a workspace",
    "up to 50 letters, digits and inner hyphens are allowed",
    // Thirteen bytes are left for the number that makes it a member's name.
    |text| (text.len() <= 50 && is_label(text)).then(|| text.to_ascii_lowercase())
);

text_type!(
    /// The name of a member: its set's name, and its number where the set has several.
    MemberName,
    "the name of a member",
    "up to 63 letters, digits and inner hyphens are allowed",
    |text| is_label(text).then(|| text.to_ascii_lowercase())
);

text_type!(
    /// A role, such as `nfs-server`.
    RoleName,
    "the name of a role",
    "up to 63 letters, digits, '.', '_' and '-' are allowed, and the first is a letter or digit",
    |text| is_name(text).then(|| text.to_owned())
);

text_type!(
    /// The name of a data blob.
    DataName,
    "the name of a data blob",
    "up to 63 letters, digits, '.', '_' and '-' are allowed, the first is a letter or digit, and the end is not '.d'",
    // Beside a blob several members' of its name stand in a folder with this ending.
    |text| (is_name(text) && !text.ends_with(".d")).then(|| text.to_owned())
);

text_type!(
    /// The name of a phase or script in an exit report.
    StepName,
    "the name of a step",
    "up to 63 letters, digits, '.', '_' and '-' are allowed, and the first is a letter or digit",
    |text| is_name(text).then(|| text.to_owned())
);

text_type!(
    /// A network interface's name, such as `eth0`.
    Interface,
    "the name of a network interface",
    "up to 15 letters, digits, '.', '_', '-' and ':' are allowed",
    |text| {
        let good = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        let dots = text.bytes().all(|byte| byte == b'.');
        (!text.is_empty() && text.len() <= 15 && !dots && text.chars().all(good)).then(|| text.to_owned())
    }
);

text_type!(
    /// A host name, with or without a domain.
    HostName,
    "a host name",
    "labels of letters, digits and inner hyphens are allowed, 253 bytes at most",
    |text| {
        let text = text.strip_suffix('.').unwrap_or(text);
        let numeric = text.rsplit('.').next().is_none_or(|last| last.bytes().all(|b| b.is_ascii_digit()));
        let text = text.to_ascii_lowercase();
        // What every machine calls itself is nobody's name for others (RFC 6761); nor is a name whose short form is.
        let first = text.split('.').next().unwrap_or_default();
        let local = matches!(first, "localhost" | "ip6-localhost" | "ip6-loopback") || text.ends_with(".localhost");
        // With a last label of digits it would be read as an address.
        let good = text.len() <= MAX_HOST_NAME && !numeric && !local && text.split('.').all(is_label);
        good.then_some(text)
    }
);

text_type!(
    /// An SSH host's public key, as `ssh-keyscan` prints it without the host: the kind and the key. A comment is
    /// left out.
    HostKey,
    "an SSH host key",
    "the kind and the base64 of a key are expected, such as 'ssh-ed25519 AAAA...', 2048 bytes at most",
    host_key
);

/// A label of a DNS name.
fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_NAME
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// A name of a file that is hidden nowhere and is no option of a command.
fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
}

fn host_key(text: &str) -> Option<String> {
    let mut words = text.split_ascii_whitespace();
    let (kind, key) = (words.next()?, words.next()?);
    let good_kind = |c: char| c.is_ascii_alphanumeric() || "-.@".contains(c);
    let named = kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-");
    if text.len() > MAX_HOST_KEY || text.contains(['\n', '\r']) || !named || !kind.chars().all(good_kind) {
        return None;
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(key).ok()?;
    // The key's own bytes begin with its kind (RFC 4253, section 6.6).
    let length = u32::from_be_bytes(*bytes.first_chunk()?) as usize;
    (bytes.get(4..)?.get(..length)? == kind.as_bytes()).then(|| format!("{kind} {key}"))
}

/// A context's id, drawn by its broker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContextId(pub [u8; 16]);

impl fmt::Display for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContextId({self})")
    }
}

impl FromStr for ContextId {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id)
            .map_err(|_| bad(text, "the id of a context", "32 hexadecimal digits are expected"))?;
        Ok(Self(id))
    }
}

impl TryFrom<String> for ContextId {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<ContextId> for String {
    fn from(id: ContextId) -> Self {
        id.to_string()
    }
}

/// What a member draws when it first starts and shows with each request, so that nobody else speaks for it. The
/// broker keeps its hash alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Instance(Zeroizing<[u8; 32]>);

impl Instance {
    /// An instance of these random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// What the broker keeps of it.
    #[must_use]
    pub fn hash(&self) -> InstanceHash {
        InstanceHash(Sha256::digest(self.0.as_slice()).into())
    }

    /// The text that travels. Do not log it.
    #[must_use]
    pub fn expose(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.0.as_slice()))
    }
}

impl FromStr for Instance {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let mut bytes = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text, bytes.as_mut_slice()).map_err(|_| BadName {
            shown: "(redacted)".to_owned(),
            what: "an instance",
            rule: "64 hexadecimal digits are expected",
        })?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Instance(redacted)")
    }
}

/// The hash by which the broker knows a member's instance.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceHash([u8; 32]);

impl TryFrom<String> for InstanceHash {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        let mut hash = [0; 32];
        hex::decode_to_slice(&text, &mut hash).map_err(|_| {
            bad(
                &text,
                "the hash of an instance",
                "64 hexadecimal digits are expected",
            )
        })?;
        Ok(Self(hash))
    }
}

impl From<InstanceHash> for String {
    fn from(hash: InstanceHash) -> Self {
        hex::encode(hash.0)
    }
}

impl fmt::Debug for InstanceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceHash({}..)", hex::encode(&self.0[..4]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_would_break_a_line_or_leave_a_folder_is_a_name() {
        for text in [
            "",
            ".",
            "..",
            "a/b",
            "-rf",
            "a b",
            "a\nb",
            ".hidden",
            "a\0",
            &"x".repeat(64),
        ] {
            assert!(text.parse::<RoleName>().is_err(), "{text:?}");
            assert!(text.parse::<DataName>().is_err(), "{text:?}");
            assert!(text.parse::<StepName>().is_err(), "{text:?}");
            assert!(text.parse::<HostName>().is_err(), "{text:?}");
        }
        assert!("..".parse::<Interface>().is_err());
        assert_eq!("W1.Lab.".parse::<HostName>().unwrap().as_str(), "w1.lab");
        assert!("10.0.0.1".parse::<HostName>().is_err());
        assert!("LocalHost".parse::<HostName>().is_err());
        assert!(
            "localhost.evil".parse::<HostName>().is_err(),
            "its short name is everybody's"
        );
        assert!("motd.d".parse::<DataName>().is_err() && "motd".parse::<DataName>().is_ok());
    }

    #[test]
    fn a_host_key_is_one_key_and_its_comment_is_left_out() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
        assert_eq!(format!("{key} root@w1").parse::<HostKey>().unwrap().as_str(), key);
        for text in [
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
            "ssh-ed25519",
            "command=x AAAA",
            &format!("{key}\n* {key}"),
        ] {
            assert!(text.parse::<HostKey>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_instance_is_never_shown() {
        let instance = Instance::new([0xab; 32]);
        assert_eq!(format!("{instance:?}"), "Instance(redacted)");
        let error = "abab".parse::<Instance>().unwrap_err();
        assert!(!error.to_string().contains("abab"));
    }
}
