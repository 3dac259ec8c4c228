//! Checks what other members show.

use std::time::Duration;

use aerie_types::{GridId, GridName, WallMillis};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use x509_parser::certificate::X509Certificate;

use crate::certificate::{ca_subject, check_extensions, parse, validity};
use crate::keys::{P256_POINT, p256_point};
use crate::revocation::CONTEXT;
use crate::{
    CLOCK_SKEW, Credential, Error, MAX_CREDENTIAL_DER, PlainCertificate, Rejection, RevocationList,
    RevokedBy, SignedRevocations, sha256, transcript,
};

/// Verifies the certificates and revocation lists of one grid.
#[derive(Debug, Clone)]
pub struct Verifier {
    grid: GridId,
    grid_name: GridName,
    ca_der: Vec<u8>,
    ca_not_after: WallMillis,
    /// Who may sign certificates. Today the root alone; an intermediate that the root signed would stand here too.
    issuers: Vec<SigningAuthority>,
    revocations: Option<(SignedRevocations, RevocationList)>,
}

#[derive(Debug, Clone)]
struct SigningAuthority {
    /// The subject's raw DER, which stands as issuer in what it signs.
    subject: Vec<u8>,
    public: [u8; P256_POINT],
}

impl Verifier {
    /// A verifier that trusts this root certificate (DER), with no revocations yet.
    ///
    /// # Errors
    /// [`Error::CaCertificate`] if it is not a self-signed grid CA.
    pub fn new(ca_der: &[u8]) -> Result<Self, Error> {
        let cert = parse(ca_der).map_err(|_| Error::CaCertificate("it is not of the profile of grid CAs"))?;
        check_extensions(&cert, &[])
            .map_err(|_| Error::CaCertificate("it has unknown critical extensions"))?;
        if !cert.is_ca() || cert.issuer().as_raw() != cert.subject().as_raw() {
            return Err(Error::CaCertificate("it is not a root CA"));
        }
        let public = p256_point(cert.public_key().raw).ok_or(Error::CaCertificate("its key is not P-256"))?;
        let authority = SigningAuthority {
            subject: cert.subject().as_raw().to_vec(),
            public,
        };
        if !authority.signed(&cert) {
            return Err(Error::CaCertificate("its signature is wrong"));
        }
        let grid_name = ca_subject(&cert)
            .and_then(|name| name.parse().ok())
            .ok_or(Error::CaCertificate("its subject is not a grid's name"))?;
        Ok(Self {
            grid: GridId::of_ca(ca_der),
            grid_name,
            ca_der: ca_der.to_vec(),
            ca_not_after: validity(&cert).1,
            issuers: vec![authority],
            revocations: None,
        })
    }

    /// The grid's id.
    #[must_use]
    pub fn grid(&self) -> GridId {
        self.grid
    }

    /// The grid's name, as the CA's subject has it.
    #[must_use]
    pub fn grid_name(&self) -> &GridName {
        &self.grid_name
    }

    /// The root certificate, DER.
    #[must_use]
    pub fn ca_der(&self) -> &[u8] {
        &self.ca_der
    }

    /// The SHA-256 of the root certificate.
    #[must_use]
    pub fn ca_hash(&self) -> [u8; 32] {
        sha256(&self.ca_der)
    }

    /// Verifies an overlay credential: profile, grid, signature, times (with [`CLOCK_SKEW`]) and revocations.
    ///
    /// # Errors
    /// [`Rejection`] with the first reason found, in that order.
    pub fn verify(&self, der: &[u8], now: WallMillis) -> Result<Credential, Rejection> {
        self.verify_with_grace(der, now, CLOCK_SKEW)
    }

    /// As [`Self::verify`], but accepts a credential for `grace` after its end, so that it can be renewed.
    ///
    /// # Errors
    /// [`Rejection`] with the first reason found.
    pub fn verify_with_grace(
        &self,
        der: &[u8],
        now: WallMillis,
        grace: Duration,
    ) -> Result<Credential, Rejection> {
        let credential = self.read(der)?;
        let (not_before, not_after) = (credential.not_before, credential.not_after);
        check_times(credential.node.as_str(), not_before, not_after, now, grace)?;
        match self.revoked_by(&credential) {
            Some(by) => Err(Rejection::Revoked {
                node: credential.node,
                serial: credential.serial,
                by,
            }),
            None => Ok(credential),
        }
    }

    /// Reads an overlay credential of this grid, whether or not it is valid at any time: profile, grid and signature.
    ///
    /// # Errors
    /// [`Rejection`] with the first reason found, in that order.
    pub fn read(&self, der: &[u8]) -> Result<Credential, Rejection> {
        if der.len() > MAX_CREDENTIAL_DER {
            return Err(Rejection::Malformed("it is longer than 700 bytes"));
        }
        let cert = parse(der)?;
        let credential = Credential::read(&cert)?;
        if credential.grid != self.grid {
            return Err(Rejection::WrongGrid {
                theirs: credential.grid,
                ours: self.grid,
            });
        }
        self.check_signature(&cert)?;
        if credential.grid_name != self.grid_name {
            return Err(Rejection::Malformed("its subject names another grid"));
        }
        Ok(credential)
    }

    /// Verifies a P-256 certificate of the grid (a node's for HTCondor, a user's, a server's): profile, signature
    /// and times. Revocation lists do not name these.
    ///
    /// # Errors
    /// [`Rejection`] with the first reason found.
    pub fn verify_plain(&self, der: &[u8], now: WallMillis) -> Result<PlainCertificate, Rejection> {
        let cert = parse(der)?;
        let plain = PlainCertificate::read(&cert)?;
        self.check_signature(&cert)?;
        check_times(
            &plain.common_name,
            plain.not_before,
            plain.not_after,
            now,
            CLOCK_SKEW,
        )?;
        Ok(plain)
    }

    /// Takes over a revocation list if it is newer than the present one. `false` if it is not newer.
    ///
    /// # Errors
    /// [`Error::Revocations`] if it is damaged, another grid's, or not signed by the CA.
    pub fn apply(&mut self, signed: SignedRevocations) -> Result<bool, Error> {
        let message = transcript(CONTEXT, &[&signed.bytes]);
        if !self.issuers[0].verifies(&message, &signed.signature) {
            return Err(Error::Revocations("it is not signed by this grid's CA"));
        }
        let list = signed.list_unverified()?;
        if list.grid != self.grid {
            return Err(Error::Revocations("it is of another grid"));
        }
        if list.serial <= self.revocation_serial() {
            return Ok(false);
        }
        self.revocations = Some((signed, list));
        Ok(true)
    }

    /// The newest list that was applied, to pass on to others.
    #[must_use]
    pub fn revocations(&self) -> Option<&SignedRevocations> {
        self.revocations.as_ref().map(|(signed, _)| signed)
    }

    /// The newest list's contents.
    #[must_use]
    pub fn revocation_list(&self) -> Option<&RevocationList> {
        self.revocations.as_ref().map(|(_, list)| list)
    }

    /// The newest list's serial; 0 if there is none.
    #[must_use]
    pub fn revocation_serial(&self) -> u64 {
        self.revocation_list().map_or(0, |list| list.serial)
    }

    /// Whether the newest list names the credential.
    #[must_use]
    pub fn is_revoked(&self, credential: &Credential) -> bool {
        self.revoked_by(credential).is_some()
    }

    pub(crate) fn ca_public(&self) -> &[u8; P256_POINT] {
        &self.issuers[0].public
    }

    pub(crate) fn ca_not_after(&self) -> WallMillis {
        self.ca_not_after
    }

    fn revoked_by(&self, credential: &Credential) -> Option<RevokedBy> {
        self.revocation_list()?.revokes(credential)
    }

    fn check_signature(&self, cert: &X509Certificate<'_>) -> Result<(), Rejection> {
        self.issuers
            .iter()
            .any(|issuer| issuer.subject == cert.issuer().as_raw() && issuer.signed(cert))
            .then_some(())
            .ok_or(Rejection::BadSignature)
    }
}

impl SigningAuthority {
    fn signed(&self, cert: &X509Certificate<'_>) -> bool {
        self.verifies(cert.tbs_certificate.as_ref(), &cert.signature_value.data)
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.public)
            .verify(message, signature)
            .is_ok()
    }
}

fn check_times(
    name: &str,
    not_before: WallMillis,
    not_after: WallMillis,
    now: WallMillis,
    grace: Duration,
) -> Result<(), Rejection> {
    if now.plus(CLOCK_SKEW) < not_before {
        return Err(Rejection::NotYetValid {
            name: name.to_owned(),
            not_before,
            now,
        });
    }
    if now > not_after.plus(grace) {
        return Err(Rejection::Expired {
            name: name.to_owned(),
            not_after,
            now,
        });
    }
    Ok(())
}
