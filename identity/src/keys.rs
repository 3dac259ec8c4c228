//! The three key pairs of a node.

use std::path::Path;
use std::sync::Arc;

use aerie_types::PeerId;
use aws_lc_rs::agreement::{self, X25519};
use aws_lc_rs::rand::{self, SystemRandom};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use zeroize::Zeroizing;

use crate::der::{self, ED25519_PKCS8, P256_SPKI, X25519_PKCS8};
use crate::files::{private_dir, read_small, write_atomic};
use crate::{Error, UserRequest};

/// All keys are in one file, so that an interrupted write cannot leave a mixture of old and new ones.
const FILE: &str = "node-keys.pem";

const LABEL: &str = "PRIVATE KEY";

/// An uncompressed P-256 point: 0x04, x, y.
pub(crate) const P256_POINT: usize = 65;

/// The private keys of a node. They never leave it, and memory that held them is wiped.
pub struct NodeKeys {
    overlay_seed: Zeroizing<[u8; 32]>,
    signer: OverlaySigner,
    noise_secret: Zeroizing<[u8; 32]>,
    noise_public: [u8; 32],
    condor: P256Key,
}

impl NodeKeys {
    /// Draws three new keys.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the system's random source fails.
    pub fn generate() -> Result<Self, Error> {
        Self::assemble(random()?, random()?, P256Key::generate()?).ok_or(Error::Crypto("derive public keys"))
    }

    /// Writes the keys into a folder of mode 0700, as one file of mode 0600, atomically.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        private_dir(dir)?;
        let overlay = Zeroizing::new([&ED25519_PKCS8[..], &self.overlay_seed[..]].concat());
        let noise = Zeroizing::new([&X25519_PKCS8[..], &self.noise_secret[..]].concat());
        let mut text = Zeroizing::new(String::with_capacity(1024));
        text.push_str(&der::pem(LABEL, &overlay));
        text.push_str(&der::pem(LABEL, &noise));
        text.push_str(&der::pem(LABEL, &self.condor.pkcs8));
        write_atomic(&dir.join(FILE), text.as_bytes(), 0o600)
    }

    /// Reads the keys from a folder. `None` if it holds none.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses; [`Error::BadFile`] if the file is damaged.
    pub fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE);
        let Some(text) = read_small(&path)? else {
            return Ok(None);
        };
        let bad = |reason| Error::BadFile {
            path: path.clone(),
            reason,
        };
        let blocks = der::pem_blocks(&text, LABEL).ok_or_else(|| bad("it is not PEM"))?;
        let [overlay, noise, condor] = blocks.as_slice() else {
            return Err(bad("it must hold three keys"));
        };
        let overlay = raw_key(overlay, &ED25519_PKCS8).ok_or_else(|| bad("its first key is not Ed25519"))?;
        let noise = raw_key(noise, &X25519_PKCS8).ok_or_else(|| bad("its second key is not X25519"))?;
        let condor = P256Key::from_pkcs8(condor).ok_or_else(|| bad("its third key is not P-256"))?;
        Self::assemble(overlay, noise, condor)
            .map(Some)
            .ok_or_else(|| bad("its keys have no public halves"))
    }

    /// The keys in the folder, made and saved if there are none yet.
    ///
    /// # Errors
    /// As [`Self::load`], [`Self::generate`] and [`Self::save`].
    pub fn load_or_generate(dir: &Path) -> Result<Self, Error> {
        if let Some(keys) = Self::load(dir)? {
            return Ok(keys);
        }
        let keys = Self::generate()?;
        keys.save(dir)?;
        Ok(keys)
    }

    /// The member's id: the public half of the overlay key.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.signer.peer
    }

    /// Signs as this member. Cheap to clone.
    #[must_use]
    pub fn overlay_signer(&self) -> OverlaySigner {
        self.signer.clone()
    }

    /// The Ed25519 seed (32 bytes), for a library that wants to hold the key itself.
    #[must_use]
    pub fn overlay_seed(&self) -> Zeroizing<[u8; 32]> {
        self.overlay_seed.clone()
    }

    /// The X25519 private key (32 bytes).
    #[must_use]
    pub fn noise_secret(&self) -> Zeroizing<[u8; 32]> {
        self.noise_secret.clone()
    }

    /// The X25519 public key (32 bytes).
    #[must_use]
    pub fn noise_public(&self) -> [u8; 32] {
        self.noise_public
    }

    /// The P-256 public key: an uncompressed point, 65 bytes.
    #[must_use]
    pub fn condor_public(&self) -> &[u8] {
        &self.condor.public
    }

    /// The P-256 private key for HTCondor, PKCS#8 in PEM.
    #[must_use]
    pub fn condor_key_pem(&self) -> Zeroizing<String> {
        self.condor.to_pem()
    }

    /// Asks for a short-lived certificate for a local user, proved by this node's credential.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the library fails.
    pub fn user_request(
        &self,
        credential: &crate::Credential,
        key: &crate::UserKey,
        user: &aerie_types::UserName,
    ) -> Result<UserRequest, Error> {
        UserRequest::create(self, credential, key, user)
    }

    pub(crate) fn condor(&self) -> &P256Key {
        &self.condor
    }

    fn assemble(overlay: Zeroizing<[u8; 32]>, noise: Zeroizing<[u8; 32]>, condor: P256Key) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&*overlay).ok()?;
        let peer = PeerId(pair.public_key().as_ref().try_into().ok()?);
        let noise_key = agreement::PrivateKey::from_private_key(&X25519, &*noise).ok()?;
        let noise_public = noise_key.compute_public_key().ok()?.as_ref().try_into().ok()?;
        Some(Self {
            overlay_seed: overlay,
            signer: OverlaySigner {
                pair: Arc::new(pair),
                peer,
            },
            noise_secret: noise,
            noise_public,
            condor,
        })
    }
}

impl std::fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKeys")
            .field("peer", &self.signer.peer)
            .finish_non_exhaustive()
    }
}

/// Signs with a member's Ed25519 key.
#[derive(Clone)]
pub struct OverlaySigner {
    pair: Arc<Ed25519KeyPair>,
    peer: PeerId,
}

impl OverlaySigner {
    /// Signs a message, which must begin with a context of its own (see [`crate::transcript`]).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }

    /// Whose signatures these are.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.peer
    }
}

impl std::fmt::Debug for OverlaySigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OverlaySigner({})", self.peer)
    }
}

/// A P-256 key pair with its storable form.
pub(crate) struct P256Key {
    pair: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
    public: [u8; P256_POINT],
}

impl P256Key {
    pub(crate) fn generate() -> Result<Self, Error> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|_| Error::Crypto("draw a P-256 key"))?;
        Self::from_pkcs8(document.as_ref()).ok_or(Error::Crypto("read back a new P-256 key"))
    }

    pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Option<Self> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8).ok()?;
        let public = pair.public_key().as_ref().try_into().ok()?;
        Some(Self {
            pair,
            pkcs8: Zeroizing::new(pkcs8.to_vec()),
            public,
        })
    }

    pub(crate) fn from_pem_file(path: &Path) -> Result<Option<Self>, Error> {
        let Some(text) = read_small(path)? else {
            return Ok(None);
        };
        der::pem_blocks(&text, LABEL)
            .and_then(|blocks| Self::from_pkcs8(blocks.first()?))
            .map(Some)
            .ok_or_else(|| Error::BadFile {
                path: path.to_owned(),
                reason: "it does not hold a P-256 key in PEM",
            })
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature = self
            .pair
            .sign(&SystemRandom::new(), message)
            .map_err(|_| Error::Crypto("sign with a P-256 key"))?;
        Ok(signature.as_ref().to_vec())
    }

    pub(crate) fn public(&self) -> &[u8; P256_POINT] {
        &self.public
    }

    pub(crate) fn pkcs8(&self) -> &Zeroizing<Vec<u8>> {
        &self.pkcs8
    }

    pub(crate) fn to_pem(&self) -> Zeroizing<String> {
        der::pem(LABEL, &self.pkcs8)
    }
}

impl rcgen::PublicKeyData for P256Key {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for P256Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Self::sign(self, message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// The point in a SubjectPublicKeyInfo of P-256, if it is one in its only accepted encoding.
pub(crate) fn p256_point(spki: &[u8]) -> Option<[u8; P256_POINT]> {
    let point: [u8; P256_POINT] = spki.strip_prefix(&P256_SPKI)?.try_into().ok()?;
    (point[0] == 4).then_some(point)
}

fn random() -> Result<Zeroizing<[u8; 32]>, Error> {
    let mut bytes = Zeroizing::new([0; 32]);
    rand::fill(&mut *bytes).map_err(|_| Error::Crypto("draw random bytes"))?;
    Ok(bytes)
}

fn raw_key(pkcs8: &[u8], prefix: &[u8; 16]) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    let bytes = pkcs8.strip_prefix(prefix)?;
    if bytes.len() != key.len() {
        return None;
    }
    key.copy_from_slice(bytes);
    Some(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::verify_overlay;

    #[test]
    fn saved_keys_read_back_as_the_same_member() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("keys");
        assert!(NodeKeys::load(&dir).unwrap().is_none());
        let keys = NodeKeys::load_or_generate(&dir).unwrap();
        let again = NodeKeys::load_or_generate(&dir).unwrap();
        assert_eq!(keys.peer_id(), again.peer_id());
        assert_eq!(keys.noise_public(), again.noise_public());
        assert_eq!(keys.condor_public(), again.condor_public());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join(FILE)), 0o600);
    }

    #[test]
    fn a_damaged_key_file_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        NodeKeys::generate().unwrap().save(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        let message = NodeKeys::load(dir.path()).unwrap_err().to_string();
        assert!(message.contains(FILE), "{message}");
    }

    #[test]
    fn openssl_reads_all_three_keys() {
        let dir = tempfile::tempdir().unwrap();
        NodeKeys::generate().unwrap().save(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        for block in text.split_inclusive("-----END PRIVATE KEY-----\n") {
            let path = dir.path().join("one.pem");
            std::fs::write(&path, block).unwrap();
            let output = std::process::Command::new("openssl")
                .args(["pkey", "-noout", "-in"])
                .arg(&path)
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }

    #[test]
    fn a_signature_is_of_its_member_and_message_alone() {
        let keys = NodeKeys::generate().unwrap();
        let signature = keys.overlay_signer().sign(b"message");
        assert!(verify_overlay(&keys.peer_id(), b"message", &signature));
        assert!(!verify_overlay(&keys.peer_id(), b"massage", &signature));
        assert!(!verify_overlay(
            &NodeKeys::generate().unwrap().peer_id(),
            b"message",
            &signature
        ));
    }

    #[test]
    fn keys_are_not_in_their_debug_text() {
        let keys = NodeKeys::generate().unwrap();
        let text = format!("{keys:?} {:?}", keys.overlay_signer());
        assert!(
            !text.contains(&hex::encode(*keys.overlay_seed())) && !text.contains("seed"),
            "{text}"
        );
    }
}
