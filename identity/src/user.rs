use zeroize::Zeroizing;

use crate::Error;
use crate::keys::P256Key;

/// The key of a short-lived user credential, made on the node for one of its local users.
pub struct UserKey(pub(crate) P256Key);

impl UserKey {
    /// Draws a new P-256 key.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the system's random source fails.
    pub fn generate() -> Result<Self, Error> {
        P256Key::generate().map(Self)
    }

    /// Reads a key that was written as [`Self::to_pem`] gives it. `None` if there is no such file.
    ///
    /// # Errors
    /// [`Error`] if the file cannot be read or holds something else.
    pub fn load(path: &std::path::Path) -> Result<Option<Self>, Error> {
        Ok(P256Key::from_pem_file(path)?.map(Self))
    }

    /// The private key, PKCS#8 in PEM.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        self.0.to_pem()
    }

    /// The public key: an uncompressed point, 65 bytes.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        self.0.public()
    }
}

impl std::fmt::Debug for UserKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UserKey(..)")
    }
}
