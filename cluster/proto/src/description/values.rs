//! The values of a description that are parsed from texts: images, addresses, labels, mount points.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::BadValue;
use crate::limits::{MAX_IMAGE_NAME, MAX_MOUNT};

/// What a workspace starts from: an image by its name and, optionally, version, `debian@13.2`, or one by the hash of
/// its content, `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Image {
    /// By name; the newest version where none is given.
    Named {
        /// Parts of letters, digits and `.-_`, separated by `/`.
        name: String,
        /// Letters, digits and `.-_+`.
        version: Option<String>,
    },
    /// By the SHA-256 of its content, which no repository can change.
    Digest([u8; 32]),
}

const DIGEST: &str = "sha256:";

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named { name, version: None } => f.write_str(name),
            Self::Named {
                name,
                version: Some(version),
            } => write!(f, "{name}@{version}"),
            Self::Digest(digest) => {
                f.write_str(DIGEST)?;
                digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl FromStr for Image {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bad = || {
            let rule = "write a name such as \"lab/nfs\", with its version \"lab/nfs@2\", or sha256: and 64 \
                        hexadecimal digits";
            BadValue::new(text, "an image", rule)
        };
        if let Some(hex) = text.strip_prefix(DIGEST) {
            return digest(hex).map(Self::Digest).ok_or_else(bad);
        }
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        let part = |part: &str, more: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let good_name = name.len() <= MAX_IMAGE_NAME && name.split('/').all(|name| part(name, ".-_"));
        let good_version =
            version.is_none_or(|version| version.len() <= MAX_IMAGE_NAME && part(version, ".-_+"));
        if !good_name || !good_version {
            return Err(bad());
        }
        Ok(Self::Named {
            name: name.to_owned(),
            version: version.map(str::to_owned),
        })
    }
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    let nibble = |digit: u8| char::from(digit).to_digit(16);
    let mut bytes = [0; 32];
    let digits = hex.as_bytes();
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, low) = (nibble(*pair.first()?)?, nibble(*pair.last()?)?);
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

impl TryFrom<String> for Image {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
        text.parse()
    }
}

impl From<Image> for String {
    fn from(image: Image) -> Self {
        image.to_string()
    }
}

/// A hardware address of one interface, `52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// The six bytes.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bad = || {
            let rule = "write six bytes such as \"52:54:00:12:34:56\", of which the first is even: an odd one is of \
                        a group";
            BadValue::new(text, "the hardware address of an interface", rule)
        };
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() || octets[0] & 1 == 1 || octets == [0; 6] {
            return Err(bad());
        }
        Ok(Self(octets))
    }
}

impl TryFrom<String> for Mac {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// What a blank partition is formatted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSystem {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// FAT.
    Vfat,
    /// Space for swapping.
    Swap,
    /// Nothing: zeros.
    Raw,
}

impl FromStr for FileSystem {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        Ok(match text {
            "ext4" => Self::Ext4,
            "xfs" => Self::Xfs,
            "vfat" => Self::Vfat,
            "swap" => Self::Swap,
            "raw" => Self::Raw,
            _ => {
                let rule = "write \"ext4\", \"xfs\", \"vfat\", \"swap\" or \"raw\"";
                return Err(BadValue::new(text, "a file system", rule));
            }
        })
    }
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $good:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadValue;

            fn from_str(text: &str) -> Result<Self, BadValue> {
                let good: fn(&str) -> bool = $good;
                if good(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(BadValue::new(text, $what, $rule))
                }
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }
    };
}

text!(
    /// A label of a file system.
    Label,
    "the name of a partition",
    "up to 11 letters, digits, '-' and '_' are allowed, and the first is a letter or digit",
    |text| {
        text.len() <= 11
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    }
);

text!(
    /// A folder of a guest in which something is mounted.
    MountPoint,
    "a mount point",
    "write an absolute path such as \"/scratch\", of letters, digits and '.-_', without '.' and '..'",
    |text| {
        let part = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && part.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
        };
        // The root itself is the image's.
        text.len() <= MAX_MOUNT && text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(part))
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_or_known_by_its_content() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for text in ["debian", "lab/nfs@2.1+b1", "nfs.gz", digest.as_str()] {
            assert_eq!(text.parse::<Image>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "@1",
            "a@",
            "../a",
            "a//b",
            "/a",
            "a@b@c",
            "a b",
            "sha256:00",
            "sha256:+a",
            "http://x/y",
            &"x".repeat(129),
        ] {
            assert!(text.parse::<Image>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_group_has_no_hardware_address_of_its_own() {
        assert_eq!(
            "52:54:00:AB:cd:01".parse::<Mac>().unwrap().to_string(),
            "52:54:00:ab:cd:01"
        );
        for text in [
            "53:54:00:00:00:01",
            "00:00:00:00:00:00",
            "52:54:00:00:00",
            "52:54:00:00:00:01:02",
            "+2:54:00:00:00:01",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_mount_point_leaves_no_folder_and_is_not_the_root() {
        assert!("/srv/data.1".parse::<MountPoint>().is_ok());
        for text in ["", "/", "srv", "/srv/", "/a/../b", "/a b", "/a,b"] {
            assert!(text.parse::<MountPoint>().is_err(), "{text}");
        }
    }
}
