//! Values of the spec that no other part of Aerie defines.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use aerie_types::{GridId, PeerId};
use hyper::Uri;
use multiaddr::{Multiaddr, Protocol};

/// The SHA-256 of the grid CA's certificate (DER). Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CaHash(pub [u8; 32]);

impl CaHash {
    /// The id of the grid: the hash's first 16 bytes.
    #[must_use]
    pub fn grid_id(&self) -> GridId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0[..16]);
        GridId(id)
    }
}

impl fmt::Display for CaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for CaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaHash({self})")
    }
}

/// The error is a phrase that continues the key: "must be ...".
impl FromStr for CaHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut hash = [0; 32];
        hex::decode_to_slice(text, &mut hash).map_err(|_| {
            format!(
                "must be 64 hexadecimal digits, but it has {} characters; copy it from a blob that 'aerie grid blob' made",
                text.chars().count()
            )
        })?;
        Ok(Self(hash))
    }
}

/// A cipher of the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES-256-GCM.
    Aes,
    /// ChaCha20-Poly1305.
    ChaCha20,
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes => "aes-256-gcm",
            Self::ChaCha20 => "chacha20-poly1305",
        })
    }
}

/// The error is a phrase that continues the key: "must be ...".
impl FromStr for Cipher {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Aes, Self::ChaCha20];
        known
            .into_iter()
            .find(|cipher| cipher.to_string() == text)
            .ok_or_else(|| {
                format!(
                    "must be \"{}\" or \"{}\", or left out for what suits the processor",
                    known[0], known[1]
                )
            })
    }
}

/// The address of an enrolment portal: an `https` URL without user, query or fragment, and without final slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolUrl(String);

impl EnrolUrl {
    /// The longest URL allowed, in bytes.
    pub const MAX_BYTES: usize = 1024;

    /// The URL as text. A path such as `/enrol` can be appended.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host, without its port.
    #[must_use]
    pub fn host(&self) -> String {
        self.0
            .parse::<Uri>()
            .ok()
            .and_then(|uri| uri.host().map(str::to_owned))
            .unwrap_or_default()
    }
}

impl fmt::Display for EnrolUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The error is a phrase that continues the key.
impl FromStr for EnrolUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |why: &str| {
            Err(format!(
                "is no portal address: {why}; write for example \"https://portal.example.org:8443\""
            ))
        };
        if text.len() > Self::MAX_BYTES {
            return refuse("it is longer than 1024 bytes");
        }
        let Ok(uri) = text.parse::<Uri>() else {
            return refuse("it is not a URL");
        };
        if uri.scheme_str() != Some("https") {
            return refuse("it does not begin with https://");
        }
        let host = uri.host().unwrap_or_default();
        let authority = uri.authority().map(|a| a.as_str()).unwrap_or_default();
        if host.is_empty() || authority.contains('@') {
            return refuse("it needs a host and no user");
        }
        let port = authority.strip_prefix(host).unwrap_or_default().strip_prefix(':');
        if port.is_some_and(|port| port.parse::<NonZeroU16>().is_err()) {
            return refuse("its port is not a number from 1 to 65535");
        }
        if text.contains(['?', '#']) {
            return refuse("it may have no '?' or '#'");
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

/// The address of a member with an open port: a multiaddr that ends with `/p2p/` and its peer id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapAddr {
    text: String,
    peer: PeerId,
}

impl BootstrapAddr {
    /// The longest address allowed, in bytes.
    pub const MAX_BYTES: usize = 512;

    /// The multiaddr as text, `/p2p/` included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The member at the address.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }
}

impl fmt::Display for BootstrapAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The error is a phrase that continues the key.
impl FromStr for BootstrapAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |why: &str| {
            Err(format!(
                "is no bootstrap address: {why}; write for example \
                 \"/ip4/192.0.2.7/udp/4001/quic-v1/p2p/12D3KooW...\""
            ))
        };
        if text.len() > Self::MAX_BYTES {
            return refuse("it is longer than 512 bytes");
        }
        let Ok(addr) = text.parse::<Multiaddr>() else {
            return refuse("it is not a multiaddr");
        };
        let parts: Vec<Protocol<'_>> = addr.iter().collect();
        let Some(Protocol::P2p(peer)) = parts.last() else {
            return refuse("it does not end with /p2p/ and the member's peer id");
        };
        let Some(peer) = PeerId::from_multihash(&peer.to_bytes()) else {
            return refuse("its peer id is not that of an Ed25519 key");
        };
        let starts_at_a_host = matches!(
            parts.first(),
            Some(
                Protocol::Ip4(_)
                    | Protocol::Ip6(_)
                    | Protocol::Dns(_)
                    | Protocol::Dns4(_)
                    | Protocol::Dns6(_)
                    | Protocol::Dnsaddr(_)
            )
        );
        let names_a_port = matches!(parts.first(), Some(Protocol::Dnsaddr(_)))
            || matches!(parts.get(1), Some(Protocol::Tcp(port) | Protocol::Udp(port)) if *port != 0);
        if !starts_at_a_host || !names_a_port {
            return refuse("it does not begin with a host and a TCP or UDP port");
        }
        Ok(Self {
            text: addr.to_string(),
            peer,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    #[test]
    fn a_bootstrap_address_names_host_port_and_peer() {
        for good in [
            format!("/ip4/192.0.2.7/udp/4001/quic-v1/p2p/{PEER}"),
            format!("/ip6/2001:db8::1/tcp/443/p2p/{PEER}"),
            format!("/dns4/relay.example.org/tcp/443/tls/ws/p2p/{PEER}"),
            format!("/dnsaddr/relay.example.org/p2p/{PEER}"),
        ] {
            let addr: BootstrapAddr = good.parse().unwrap();
            assert_eq!(addr.as_str(), good);
            assert_eq!(addr.peer().to_string(), PEER);
        }
        for bad in [
            "",
            "relay.example.org:4001",
            "/ip4/192.0.2.7/udp/4001/quic-v1",
            "/ip4/192.0.2.7/udp/4001/quic-v1/p2p/12D3KooW",
            "/ip4/300.0.2.7/udp/4001/quic-v1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
            "/ip4/192.0.2.7/udp/0/quic-v1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
            "/unix/tmp/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
            "/ip4/192.0.2.7/udp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        ] {
            assert!(bad.parse::<BootstrapAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_portal_address_is_https_with_a_host() {
        let url: EnrolUrl = "https://portal.example.org:8443/".parse().unwrap();
        assert_eq!(url.as_str(), "https://portal.example.org:8443");
        assert_eq!(url.host(), "portal.example.org");
        for good in ["https://[2001:db8::1]:8443/grids/chem", "https://10.0.0.1"] {
            assert!(good.parse::<EnrolUrl>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "http://portal.example.org",
            "https://",
            "https://user@portal.example.org",
            "https://portal.example.org:99999",
            "https://portal.example.org:0",
            "https://portal.example.org/?token=1",
            "portal.example.org",
        ] {
            assert!(bad.parse::<EnrolUrl>().is_err(), "{bad}");
        }
    }
}
