//! What a node asks of the CA, with the proofs that it may ask.
//!
//! An enrolment request carries the three public keys and proves possession of each. The Ed25519 and the P-256 key
//! sign one transcript of everything in the request, each under a context of its own. X25519 cannot sign: its key
//! is bound by standing in the transcript that the Ed25519 key signs, and a holder who does not know its private
//! half could never complete a tunnel's handshake.
//!
//! A renewal wraps an enrolment request and the current credential, and is signed by the key of that credential. It
//! needs no challenge from the server: replayed, it yields a certificate for keys that the replayer does not have.

use aerie_types::{GridId, NodeName, PeerId, UserName};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::keys::P256_POINT;
use crate::{Credential, Error, MAX_CREDENTIAL_DER, NodeKeys, UserKey, sha256, transcript, verify_overlay};

/// The longest encoded request of any kind, in bytes: a credential, a request of 300 bytes, signatures and slack.
pub const MAX_REQUEST: usize = 2048;

const VERSION: u8 = 1;
const ENROL_OVERLAY: &str = "aerie enrol 1 overlay and noise keys";
const ENROL_CONDOR: &str = "aerie enrol 1 condor key";
const RENEW: &str = "aerie renew 1";
const USER_NODE: &str = "aerie user credential 1 node";
const USER_KEY: &str = "aerie user credential 1 key";

/// A node's request to become a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The grid it wants to join.
    pub grid: GridId,
    /// Its Ed25519 public key.
    pub peer: PeerId,
    /// Its X25519 public key.
    pub noise_public: [u8; 32],
    /// Its P-256 public key: an uncompressed point, 65 bytes.
    pub condor_public: Vec<u8>,
    /// The node name it wishes for.
    pub node: NodeName,
    /// Whether another name than the wished one is of no use to it.
    pub exact: bool,
    overlay_signature: Vec<u8>,
    condor_signature: Vec<u8>,
}

impl EnrolRequest {
    /// Asks for membership with these keys.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the library fails.
    pub fn create(keys: &NodeKeys, grid: GridId, node: NodeName, exact: bool) -> Result<Self, Error> {
        let mut request = Self {
            grid,
            peer: keys.peer_id(),
            noise_public: keys.noise_public(),
            condor_public: keys.condor_public().to_vec(),
            node,
            exact,
            overlay_signature: Vec::new(),
            condor_signature: Vec::new(),
        };
        request.overlay_signature = keys
            .overlay_signer()
            .sign(&request.signed(ENROL_OVERLAY))
            .to_vec();
        request.condor_signature = keys.condor().sign(&request.signed(ENROL_CONDOR))?;
        Ok(request)
    }

    /// Checks that the request is for this grid and proves possession of its keys.
    ///
    /// # Errors
    /// [`Error::Request`] with the reason.
    pub fn verify(&self, grid: GridId) -> Result<(), Error> {
        if self.grid != grid {
            return Err(Error::Request(
                "it is for another grid; use the token and blob of one grid",
            ));
        }
        if self.noise_public == [0; 32] {
            return Err(Error::Request("its X25519 key is zero"));
        }
        if !verify_overlay(&self.peer, &self.signed(ENROL_OVERLAY), &self.overlay_signature) {
            return Err(Error::Request("it does not prove possession of the overlay key"));
        }
        if !verify_p256(
            &self.condor_public,
            &self.signed(ENROL_CONDOR),
            &self.condor_signature,
        ) {
            return Err(Error::Request("it does not prove possession of the HTCondor key"));
        }
        Ok(())
    }

    /// The request's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a request. It still has to be verified.
    ///
    /// # Errors
    /// [`Error::Request`] if the bytes are no request of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        decode(bytes)
    }

    fn signed(&self, context: &str) -> Vec<u8> {
        transcript(
            context,
            &[
                &self.grid.0,
                &self.peer.0,
                &self.noise_public,
                &self.condor_public,
                self.node.as_str().as_bytes(),
                &[u8::from(self.exact)],
            ],
        )
    }
}

/// A member's request for new certificates, proved by its current ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// The current overlay credential (DER). The caller verifies it.
    pub credential: Vec<u8>,
    /// The keys to certify. The overlay key is the current one; the others may be new.
    pub enrol: EnrolRequest,
    signature: Vec<u8>,
}

impl RenewRequest {
    /// Asks for the same membership again.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the library fails.
    pub fn create(keys: &NodeKeys, credential: &Credential) -> Result<Self, Error> {
        let enrol = EnrolRequest::create(keys, credential.grid, credential.node.clone(), true)?;
        let mut request = Self {
            credential: credential.der.clone(),
            enrol,
            signature: Vec::new(),
        };
        request.signature = keys.overlay_signer().sign(&request.signed()).to_vec();
        Ok(request)
    }

    /// Checks that the holder of `current` (the verified form of [`Self::credential`]) made this request.
    ///
    /// # Errors
    /// [`Error::Request`] with the reason.
    pub fn verify(&self, current: &Credential) -> Result<(), Error> {
        self.enrol.verify(current.grid)?;
        if current.der != self.credential || self.enrol.peer != current.peer {
            return Err(Error::Request(
                "it is for another overlay key than its credential's; enrol again",
            ));
        }
        if self.enrol.node != current.node {
            return Err(Error::Request(
                "it is for another node name than its credential's; enrol again",
            ));
        }
        if !verify_overlay(&current.peer, &self.signed(), &self.signature) {
            return Err(Error::Request("it is not signed by the key of its credential"));
        }
        Ok(())
    }

    /// The request's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a request. It still has to be verified.
    ///
    /// # Errors
    /// [`Error::Request`] if the bytes are no request of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let request: Self = decode(bytes)?;
        check_credential_size(&request.credential)?;
        Ok(request)
    }

    fn signed(&self) -> Vec<u8> {
        transcript(RENEW, &[&sha256(&self.credential), &sha256(&self.enrol.encode())])
    }
}

/// A node's request for a short-lived certificate for one of its local users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRequest {
    /// The node's current overlay credential (DER). The caller verifies it.
    pub credential: Vec<u8>,
    /// The user of the grid in whose name the tools will speak.
    pub user: UserName,
    /// The user's P-256 public key: an uncompressed point, 65 bytes.
    pub public: Vec<u8>,
    node_signature: Vec<u8>,
    key_signature: Vec<u8>,
}

impl UserRequest {
    pub(crate) fn create(
        keys: &NodeKeys,
        credential: &Credential,
        key: &UserKey,
        user: &UserName,
    ) -> Result<Self, Error> {
        let mut request = Self {
            credential: credential.der.clone(),
            user: user.clone(),
            public: key.public().to_vec(),
            node_signature: Vec::new(),
            key_signature: Vec::new(),
        };
        request.node_signature = keys.overlay_signer().sign(&request.signed(USER_NODE)).to_vec();
        request.key_signature = key.0.sign(&request.signed(USER_KEY))?;
        Ok(request)
    }

    /// Checks that the holder of `current` (the verified form of [`Self::credential`]) made this request.
    ///
    /// # Errors
    /// [`Error::Request`] with the reason.
    pub fn verify(&self, current: &Credential) -> Result<(), Error> {
        if current.der != self.credential
            || !verify_overlay(&current.peer, &self.signed(USER_NODE), &self.node_signature)
        {
            return Err(Error::Request("it is not signed by the key of its credential"));
        }
        if !verify_p256(&self.public, &self.signed(USER_KEY), &self.key_signature) {
            return Err(Error::Request("it does not prove possession of the user's key"));
        }
        Ok(())
    }

    /// The request's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a request. It still has to be verified.
    ///
    /// # Errors
    /// [`Error::Request`] if the bytes are no request of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let request: Self = decode(bytes)?;
        check_credential_size(&request.credential)?;
        Ok(request)
    }

    fn signed(&self, context: &str) -> Vec<u8> {
        let user = self.user.as_str().as_bytes();
        transcript(context, &[&sha256(&self.credential), user, &self.public])
    }
}

fn encode<T: Serialize>(request: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    #[expect(
        clippy::expect_used,
        reason = "plain structs of bytes and texts always serialize into memory"
    )]
    bytes.extend(postcard::to_stdvec(request).expect("a request serializes"));
    bytes
}

fn decode<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.len() > MAX_REQUEST {
        return Err(Error::Request("it is too long"));
    }
    let Some((&VERSION, body)) = bytes.split_first() else {
        return Err(Error::Request(
            "its version is unknown; bring node and portal to the same release",
        ));
    };
    match postcard::take_from_bytes(body) {
        Ok((request, [])) => Ok(request),
        _ => Err(Error::Request("it is damaged")),
    }
}

fn check_credential_size(der: &[u8]) -> Result<(), Error> {
    if der.len() > MAX_CREDENTIAL_DER {
        return Err(Error::Request("its credential is too long"));
    }
    Ok(())
}

fn verify_p256(public: &[u8], message: &[u8], signature: &[u8]) -> bool {
    public.len() == P256_POINT
        && public[0] == 4
        && UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public)
            .verify(message, signature)
            .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: GridId = GridId([1; 16]);

    fn request() -> EnrolRequest {
        let keys = NodeKeys::generate().unwrap();
        EnrolRequest::create(&keys, GRID, "w1".parse().unwrap(), false).unwrap()
    }

    #[test]
    fn a_request_proves_itself_and_reads_back() {
        let request = request();
        request.verify(GRID).unwrap();
        assert_eq!(EnrolRequest::decode(&request.encode()).unwrap(), request);
        assert!(request.verify(GridId([2; 16])).is_err());
    }

    #[test]
    fn a_request_with_any_part_of_another_is_refused() {
        let other = request();
        let edits: [fn(&mut EnrolRequest, &EnrolRequest); 7] = [
            |a, b| a.peer = b.peer,
            |a, b| a.noise_public = b.noise_public,
            |a, b| a.condor_public.clone_from(&b.condor_public),
            |a, _| a.node = "w2".parse().unwrap(),
            |a, _| a.exact = true,
            |a, b| a.overlay_signature.clone_from(&b.overlay_signature),
            |a, b| a.condor_signature.clone_from(&b.condor_signature),
        ];
        for (i, edit) in edits.iter().enumerate() {
            let mut forged = request();
            edit(&mut forged, &other);
            assert!(forged.verify(GRID).is_err(), "edit {i}");
        }
    }

    #[test]
    fn a_request_of_a_later_version_says_so() {
        let mut bytes = request().encode();
        bytes[0] = 2;
        let message = EnrolRequest::decode(&bytes).unwrap_err().to_string();
        assert!(message.contains("version"), "{message}");
    }
}
