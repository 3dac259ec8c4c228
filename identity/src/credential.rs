//! The overlay credential: what a member shows to every other one.
//!
//! An X.509 certificate for the member's Ed25519 key, whose subject is `/O=<grid>/OU=<highest role>/CN=<node>`. What
//! X.509 has no field for stands in one private extension: the grid's id, the Noise key, all roles, user and group.
//! The extension is critical, so that no ordinary TLS library takes the credential for a certificate of its own
//! kind. It travels in the payload of a handshake and is therefore held below [`MAX_CREDENTIAL_DER`].

use std::time::Duration;

use aerie_types::{GridId, GridName, GroupName, NodeName, PeerId, Role, Roles, UserName, WallMillis};
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;

use crate::certificate::{KEY_USAGE, check_extensions, extension, serial, subject, validity};
use crate::der::{ED25519_SPKI, tlv};
use crate::{Rejection, Subject};

/// The longest overlay credential, in bytes of DER.
pub const MAX_CREDENTIAL_DER: usize = 700;

/// How far a clock may be off, either way, before a credential is refused for its times.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// How long credentials live unless the caller says otherwise.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// An arc below 2.25, which is free for everybody who draws a random number.
const EXTENSION_OID: [u64; 3] = [2, 25, 0x3a7d_19c4_5e02_b6f1];
const EXTENSION_OID_DER: &[u8] = &[0x69, 0xba, 0xbe, 0xc6, 0xb8, 0xc5, 0xf0, 0x8a, 0xed, 0x71];
const EXTENSION_VERSION: u8 = 1;

/// KeyUsage with the one bit digitalSignature.
const DIGITAL_SIGNATURE: &[u8] = &[0x03, 0x02, 0x07, 0x80];

/// A member's verified overlay credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The grid.
    pub grid: GridId,
    /// The grid's name.
    pub grid_name: GridName,
    /// The node's name, unique in the grid.
    pub node: NodeName,
    /// Who owns the node.
    pub user: UserName,
    /// The user's group.
    pub group: GroupName,
    /// What the node may do.
    pub roles: Roles,
    /// The serial number of this certificate; rises with every one that the CA issues.
    pub serial: u64,
    /// The member's id: its Ed25519 public key.
    pub peer: PeerId,
    /// The X25519 public key of its tunnels.
    pub noise_public: [u8; 32],
    /// The first moment of validity.
    pub not_before: WallMillis,
    /// The last moment of validity.
    pub not_after: WallMillis,
    /// The certificate itself.
    pub der: Vec<u8>,
}

impl Credential {
    /// The node's full name: `<node>.<grid>.grid`.
    #[must_use]
    pub fn fqdn(&self) -> String {
        self.node.fqdn(&self.grid_name)
    }

    /// When to renew: after two thirds of the life.
    #[must_use]
    pub fn renew_at(&self) -> WallMillis {
        renewal_due(self.not_before, self.not_after)
    }

    /// Reads the fields of a credential. Whose signature it has is the caller's question.
    pub(crate) fn read(cert: &X509Certificate<'_>) -> Result<Self, Rejection> {
        check_extensions(cert, &[EXTENSION_OID_DER])?;
        if extension(cert, KEY_USAGE).is_none_or(|usage| usage.value != DIGITAL_SIGNATURE) {
            return Err(Rejection::Malformed(
                "its key usage is not digital signature alone",
            ));
        }
        let payload = extension(cert, EXTENSION_OID_DER)
            .and_then(|extension| Payload::from_der(extension.value))
            .ok_or(Rejection::Malformed(
                "it is no overlay credential of this release",
            ))?;
        let key = cert.public_key().raw.strip_prefix(&ED25519_SPKI);
        let peer = key
            .and_then(|key| key.try_into().ok())
            .map(PeerId)
            .ok_or(Rejection::Malformed("its key is not Ed25519"))?;
        let [grid_name, unit, node] = subject(cert)?;
        let roles = Roles::from_bits(payload.roles).ok_or(Rejection::Malformed("it has an unknown role"))?;
        if highest_role(roles).is_none_or(|role| role.as_str() != unit) {
            return Err(Rejection::Malformed(
                "its subject's role is not the highest of its roles",
            ));
        }
        let (not_before, not_after) = validity(cert);
        Ok(Self {
            grid: payload.grid,
            grid_name: grid_name
                .parse()
                .map_err(|_| Rejection::Malformed("its grid name is not valid"))?,
            node: node
                .parse()
                .map_err(|_| Rejection::Malformed("its node name is not valid"))?,
            user: payload.user,
            group: payload.group,
            roles,
            serial: serial(cert)?,
            peer,
            noise_public: payload.noise_public,
            not_before,
            not_after,
            der: cert.as_raw().to_vec(),
        })
    }
}

/// When certificates of this validity are to be renewed: after two thirds of it.
#[must_use]
pub fn renewal_due(not_before: WallMillis, not_after: WallMillis) -> WallMillis {
    not_before.plus(not_after.since(not_before) * 2 / 3)
}

/// The role that stands in a subject: the first in the order manager, submit, worker, client, relay.
pub(crate) fn highest_role(roles: Roles) -> Option<Role> {
    roles.iter().next()
}

/// The private extension of a new credential.
pub(crate) fn private_extension(
    grid: GridId,
    noise_public: [u8; 32],
    subject: &Subject,
) -> rcgen::CustomExtension {
    let payload = Payload {
        grid,
        noise_public,
        roles: subject.roles.bits(),
        user: subject.user.clone(),
        group: subject.group.clone(),
    };
    let mut extension = rcgen::CustomExtension::from_oid_content(&EXTENSION_OID, payload.to_der());
    extension.set_criticality(true);
    extension
}

/// What the private extension says: a version byte and this in postcard, within a DER octet string.
#[derive(Serialize, Deserialize)]
struct Payload {
    grid: GridId,
    noise_public: [u8; 32],
    roles: u8,
    user: UserName,
    group: GroupName,
}

impl Payload {
    fn to_der(&self) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "a plain struct always serializes into memory")]
        let body = postcard::to_stdvec(self).expect("a payload serializes");
        tlv(0x04, &[&[EXTENSION_VERSION], &body])
    }

    fn from_der(der: &[u8]) -> Option<Self> {
        // At most 116 bytes, so the length has its short form: tag, length, version, body.
        let [0x04, _, EXTENSION_VERSION, body @ ..] = der else {
            return None;
        };
        let (payload, rest) = postcard::take_from_bytes::<Self>(body).ok()?;
        (rest.is_empty() && payload.to_der() == der).then_some(payload)
    }
}
