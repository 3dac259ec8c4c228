//! What a member is told at its start: where its broker is, and how the two know each other.
//!
//! The paper's generic context information: the broker's address, the context's id, and credentials for both
//! directions. The *secret* is the context's private key; a member proves it in the TLS handshake with the
//! context's certificate, and it never travels to the broker. The *fingerprint* is of the broker's certificate.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::cluster::{Cluster, Workspace};
use crate::names::{ContextId, MemberName};

/// Longest certificate or key in bytes. Those of a context have less than 500.
const MAX_DER: usize = 8 * 1024;

/// Longest URL of a broker in bytes.
const MAX_URL: usize = 512;

/// How a member reaches its context's broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contact {
    /// The broker's address, such as `https://192.0.2.1:8446`.
    pub broker_url: String,
    /// The context.
    pub context: ContextId,
    /// The SHA-256 of the broker's certificate.
    pub fingerprint: Fingerprint,
    /// The context's certificate (DER), public.
    #[serde(with = "der")]
    pub certificate: Vec<u8>,
    /// The context's private key (PKCS#8).
    pub secret: Secret,
}

/// What a machine gets as its user-data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserData {
    /// Where to report.
    pub contact: Contact,
    /// The member that this machine is, where whoever started it decided that. Otherwise the broker gives it the
    /// first free place of its set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberName>,
    /// The cluster, in which this machine's set is marked as active.
    pub cluster: Cluster,
}

impl UserData {
    /// The set that this machine is of.
    #[must_use]
    pub fn active(&self) -> Option<&Workspace> {
        let mut active = self.cluster.workspaces.iter().filter(|set| set.active);
        match (active.next(), self.cluster.workspaces.as_slice()) {
            (Some(set), _) | (None, [set]) => Some(set),
            (None, _) => None,
        }
    }
}

/// A SHA-256 of a certificate, in hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// A fingerprint that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hexadecimal digits, colons between them allowed")]
pub struct BadFingerprint;

impl std::str::FromStr for Fingerprint {
    type Err = BadFingerprint;

    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let mut hash = [0; 32];
        hex::decode_to_slice(text.replace(':', ""), &mut hash).map_err(|_| BadFingerprint)?;
        Ok(Self(hash))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = BadFingerprint;

    fn try_from(text: String) -> Result<Self, BadFingerprint> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

/// A context's private key: wiped when dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes a key over.
    #[must_use]
    pub fn new(der: Vec<u8>) -> Self {
        Self(Zeroizing::new(der))
    }

    /// The key itself. Do not log it.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The key as it stands in documents. Do not log it.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.as_slice()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// What a creator shows. Who has it may create, see and destroy every context of the broker.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Takes a token over.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text that travels. Do not log it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// How a creator reaches a broker: the file `broker.json` in the broker's folder, or a copy of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerFile {
    /// Its address.
    pub url: String,
    /// The fingerprint of its certificate.
    pub fingerprint: Fingerprint,
    /// Its token.
    pub token: Token,
}

/// A key or certificate that is not base64, or too long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("base64 of at most 8192 bytes is expected")]
pub struct BadDer;

pub(crate) fn decode(text: &str) -> Result<Vec<u8>, BadDer> {
    if text.len() > MAX_DER * 2 {
        return Err(BadDer);
    }
    let packed: Zeroizing<String> = Zeroizing::new(text.split_ascii_whitespace().collect());
    let bytes = STANDARD.decode(packed.as_bytes()).map_err(|_| BadDer)?;
    if bytes.is_empty() || bytes.len() > MAX_DER {
        return Err(BadDer);
    }
    Ok(bytes)
}

impl std::str::FromStr for Secret {
    type Err = BadDer;

    fn from_str(text: &str) -> Result<Self, BadDer> {
        decode(text).map(Self::new)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        text.parse().map_err(serde::de::Error::custom)
    }
}

mod der {
    use serde::{Deserialize, Deserializer, Serializer};

    use base64::Engine as _;

    use super::{STANDARD, decode};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        decode(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Checks a broker's URL: HTTPS, and no path, so that the paths of requests can be added.
///
/// # Errors
/// [`BadUrl`] says what is expected.
pub fn check_url(text: &str) -> Result<(), BadUrl> {
    let rest = text.strip_prefix("https://").ok_or(BadUrl)?;
    let host = rest.strip_suffix('/').unwrap_or(rest);
    let good = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    if text.len() > MAX_URL || host.is_empty() || !host.chars().all(good) {
        return Err(BadUrl);
    }
    Ok(())
}

/// A URL of a broker that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a broker's URL is https://HOST or https://HOST:PORT, without a path")]
pub struct BadUrl;
