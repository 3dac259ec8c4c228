//! The grid's certification authority.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use aerie_types::{GridId, GridName, GroupName, NodeName, Roles, UserName, VirtualRange, WallMillis};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
};
use zeroize::Zeroizing;

use crate::credential::{highest_role, private_extension};
use crate::files::{private_dir, read_small, write_atomic};
use crate::keys::P256Key;
use crate::revocation::CONTEXT;
use crate::time::LAST_SECOND;
use crate::{
    CLOCK_SKEW, EnrolRequest, Error, MAX_CREDENTIAL_DER, MAX_REVOCATIONS, RevocationList, SignedRevocations,
    UserRequest, Verifier, sha256, transcript,
};

/// How long a grid's CA lives: beyond the life of any machine it certifies.
const CA_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Certificates begin this long before they are issued, so that a member with a slow clock accepts them.
const BACKDATE: Duration = CLOCK_SKEW;

const CERTIFICATE_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";
const RANGE_FILE: &str = "range";

/// Whom a node's credentials name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The node's name, which the caller made sure is unique in the grid.
    pub node: NodeName,
    /// Who owns it.
    pub user: UserName,
    /// The user's group.
    pub group: GroupName,
    /// What it may do; at least one role.
    pub roles: Roles,
}

/// What a node gets for its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedCredentials {
    /// The overlay credential, DER.
    pub overlay_der: Vec<u8>,
    /// The certificate for HTCondor's SSL, PEM.
    pub condor_pem: String,
    /// The grid CA's certificate, PEM.
    pub ca_pem: String,
    /// The serial number of both.
    pub serial: u64,
    /// The last moment of validity of both.
    pub not_after: WallMillis,
}

/// A TLS server's certificate with its key.
pub struct ServerCertificate {
    /// The server's certificate, DER.
    pub leaf_der: Vec<u8>,
    /// The grid CA's certificate, DER: the second of the chain, by which a client finds the pinned root.
    pub ca_der: Vec<u8>,
    /// The private key, PKCS#8 DER.
    pub key_pkcs8: Zeroizing<Vec<u8>>,
    /// The first moment of validity.
    pub not_before: WallMillis,
    /// The last moment of validity.
    pub not_after: WallMillis,
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The CA of one grid, with its private key.
///
/// It keeps no record of what it issued: unique names and rising serials are the portal's part.
pub struct GridCa {
    name: GridName,
    range: VirtualRange,
    key: P256Key,
    ca_der: Vec<u8>,
    not_after: WallMillis,
}

impl GridCa {
    /// Makes the CA of a new grid.
    ///
    /// # Errors
    /// [`Error::Crypto`] or [`Error::Build`] if the library fails.
    pub fn create(name: GridName, range: VirtualRange, now: WallMillis) -> Result<Self, Error> {
        let key = P256Key::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(name.as_str(), None);
        // One level below the root is left free for intermediates.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let not_after = set_validity(&mut params, now, CA_LIFETIME, WallMillis(LAST_SECOND * 1000));
        let certificate = params.self_signed(&key).map_err(|source| Error::Build {
            what: "CA certificate",
            source,
        })?;
        Ok(Self {
            name,
            range,
            key,
            ca_der: certificate.der().to_vec(),
            not_after,
        })
    }

    /// Writes the CA into a folder of mode 0700. The certificate comes last: without it there is no CA.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses; [`Error::BadFile`] if another CA is there already.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        private_dir(dir)?;
        let path = dir.join(CERTIFICATE_FILE);
        let pem = self.ca_pem();
        if read_small(&path)?.is_some_and(|present| *present != pem.as_bytes()) {
            return Err(Error::BadFile {
                path,
                reason: "it belongs to another grid's CA, which is not overwritten",
            });
        }
        write_atomic(&dir.join(KEY_FILE), self.key.to_pem().as_bytes(), 0o600)?;
        write_atomic(
            &dir.join(RANGE_FILE),
            format!("{}\n", self.range).as_bytes(),
            0o644,
        )?;
        write_atomic(&path, pem.as_bytes(), 0o644)
    }

    /// Reads the CA from a folder. `None` if it holds none.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses; [`Error::BadFile`] if the files do not belong together.
    pub fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(CERTIFICATE_FILE);
        let Some(pem) = read_small(&path)? else {
            return Ok(None);
        };
        let bad = |path: &Path, reason| Error::BadFile {
            path: path.to_owned(),
            reason,
        };
        let ca_der = std::str::from_utf8(&pem)
            .ok()
            .and_then(crate::pem_to_der)
            .ok_or_else(|| bad(&path, "it is not a certificate in PEM"))?;
        let verifier = Verifier::new(&ca_der).map_err(|_| bad(&path, "it is not a grid CA's certificate"))?;
        let key_path = dir.join(KEY_FILE);
        let key =
            P256Key::from_pem_file(&key_path)?.ok_or_else(|| bad(&key_path, "the CA's key is missing"))?;
        if key.public() != verifier.ca_public() {
            return Err(bad(&key_path, "it is not the key of the certificate beside it"));
        }
        let range_path = dir.join(RANGE_FILE);
        let range = read_small(&range_path)?
            .and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse().ok())
            .ok_or_else(|| bad(&range_path, "it does not hold the grid's virtual range"))?;
        Ok(Some(Self {
            name: verifier.grid_name().clone(),
            range,
            key,
            not_after: verifier.ca_not_after(),
            ca_der,
        }))
    }

    /// The grid's name.
    #[must_use]
    pub fn name(&self) -> &GridName {
        &self.name
    }

    /// The grid's virtual range.
    #[must_use]
    pub fn range(&self) -> VirtualRange {
        self.range
    }

    /// The grid's id: the first half of [`Self::ca_hash`].
    #[must_use]
    pub fn grid_id(&self) -> GridId {
        GridId::of_ca(&self.ca_der)
    }

    /// The CA's certificate, DER.
    #[must_use]
    pub fn ca_der(&self) -> &[u8] {
        &self.ca_der
    }

    /// The CA's certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        crate::der::pem("CERTIFICATE", &self.ca_der).to_string()
    }

    /// The SHA-256 of the CA's certificate (DER), by which nodes pin it.
    #[must_use]
    pub fn ca_hash(&self) -> [u8; 32] {
        sha256(&self.ca_der)
    }

    /// A verifier of this grid's credentials.
    ///
    /// # Errors
    /// [`Error::CaCertificate`] never happens for a CA that was created or loaded.
    pub fn verifier(&self) -> Result<Verifier, Error> {
        Verifier::new(&self.ca_der)
    }

    /// Issues both of a node's certificates for a request, whose proofs are checked.
    ///
    /// # Errors
    /// [`Error::Request`] if the request proves nothing; [`Error::Issue`] for a subject without a role.
    pub fn issue(
        &self,
        request: &EnrolRequest,
        subject: &Subject,
        serial: u64,
        now: WallMillis,
        lifetime: Duration,
    ) -> Result<IssuedCredentials, Error> {
        request.verify(self.grid_id())?;
        let what = "overlay credential";
        let role = highest_role(subject.roles).ok_or(Error::Issue {
            what,
            reason: "the subject has no role; give it at least one",
        })?;
        let name = distinguished_name(self.name.as_str(), Some((role.as_str(), subject.node.as_str())));

        let mut overlay = self.leaf(name.clone(), serial)?;
        overlay.custom_extensions = vec![private_extension(self.grid_id(), request.noise_public, subject)];
        let not_after = set_validity(&mut overlay, now, lifetime, self.not_after);
        let overlay_der = self.sign(what, &overlay, &RawKey::ed25519(&request.peer.0))?;
        if overlay_der.len() > MAX_CREDENTIAL_DER {
            return Err(Error::Issue {
                what,
                reason: "it would be longer than 700 bytes; use shorter names",
            });
        }

        let mut condor = self.leaf(name, serial)?;
        condor.use_authority_key_identifier_extension = true;
        condor.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        condor.subject_alt_names = vec![dns_name(&subject.node.fqdn(&self.name))?];
        set_validity(&mut condor, now, lifetime, self.not_after);
        let condor_der = self.sign(
            "HTCondor certificate",
            &condor,
            &RawKey::p256(&request.condor_public),
        )?;
        Ok(IssuedCredentials {
            overlay_der,
            condor_pem: crate::der::pem("CERTIFICATE", &condor_der).to_string(),
            ca_pem: self.ca_pem(),
            serial,
            not_after,
        })
    }

    /// Issues a user's certificate for HTCondor's tools: PEM, subject `/O=<grid>/OU=user/CN=<user>`.
    ///
    /// That the request was verified against the node's credential, and that the node may ask for this user, is the
    /// caller's part.
    ///
    /// # Errors
    /// [`Error::Build`] if the library fails.
    pub fn issue_user(
        &self,
        request: &UserRequest,
        serial: u64,
        now: WallMillis,
        lifetime: Duration,
    ) -> Result<String, Error> {
        let name = distinguished_name(self.name.as_str(), Some(("user", request.user.as_str())));
        let mut params = self.leaf(name, serial)?;
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        set_validity(&mut params, now, lifetime, self.not_after);
        let der = self.sign("user certificate", &params, &RawKey::p256(&request.public))?;
        Ok(crate::der::pem("CERTIFICATE", &der).to_string())
    }

    /// Issues a TLS server's certificate with a new key, for names and addresses (`portal.example.org`, `192.0.2.7`).
    ///
    /// # Errors
    /// [`Error::Issue`] without a name, or with one that cannot stand in a certificate.
    pub fn issue_server(
        &self,
        names: &[String],
        serial: u64,
        now: WallMillis,
        lifetime: Duration,
    ) -> Result<ServerCertificate, Error> {
        if names.is_empty() {
            return Err(Error::Issue {
                what: "server certificate",
                reason: "it needs a name or address; name those under which nodes reach the server",
            });
        }
        let key = P256Key::generate()?;
        let name = distinguished_name(self.name.as_str(), Some(("portal", "portal")));
        let mut params = self.leaf(name, serial)?;
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(address) => Ok(SanType::IpAddress(address)),
                Err(_) => dns_name(name),
            })
            .collect::<Result<_, _>>()?;
        let not_after = set_validity(&mut params, now, lifetime, self.not_after);
        let leaf_der = self.sign("server certificate", &params, &key)?;
        Ok(ServerCertificate {
            leaf_der,
            ca_der: self.ca_der.clone(),
            key_pkcs8: key.pkcs8().clone(),
            not_before: backdated(now),
            not_after,
        })
    }

    /// Signs a revocation list.
    ///
    /// # Errors
    /// [`Error::Revocations`] if the list is another grid's or has too many entries.
    pub fn sign_revocations(&self, list: &RevocationList) -> Result<SignedRevocations, Error> {
        if list.grid != self.grid_id() {
            return Err(Error::Revocations("it is of another grid"));
        }
        if list.len() > MAX_REVOCATIONS {
            return Err(Error::Revocations(
                "it has too many entries; revoke a user or group in place of many nodes",
            ));
        }
        let bytes = list.to_bytes();
        let signature = self.key.sign(&transcript(CONTEXT, &[&bytes]))?;
        Ok(SignedRevocations { bytes, signature })
    }

    pub(crate) fn leaf(&self, name: DistinguishedName, serial: u64) -> Result<CertificateParams, Error> {
        if serial == 0 {
            return Err(Error::Issue {
                what: "certificate",
                reason: "serial numbers begin at 1",
            });
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        params.serial_number = Some(SerialNumber::from(serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        Ok(params)
    }

    pub(crate) fn sign(
        &self,
        what: &'static str,
        params: &CertificateParams,
        public_key: &impl PublicKeyData,
    ) -> Result<Vec<u8>, Error> {
        Issuer::from_ca_cert_der(&self.ca_der.as_slice().into(), &self.key)
            .and_then(|issuer| params.signed_by(public_key, &issuer))
            .map(|certificate| certificate.der().to_vec())
            .map_err(|source| Error::Build { what, source })
    }
}

impl std::fmt::Debug for GridCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GridCa")
            .field("name", &self.name)
            .field("grid", &self.grid_id())
            .finish_non_exhaustive()
    }
}

/// The public key of a request, which this side never had the private half of.
pub(crate) struct RawKey<'a> {
    bytes: &'a [u8],
    algorithm: &'static SignatureAlgorithm,
}

impl<'a> RawKey<'a> {
    pub(crate) fn ed25519(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            algorithm: &rcgen::PKCS_ED25519,
        }
    }

    pub(crate) fn p256(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            algorithm: &rcgen::PKCS_ECDSA_P256_SHA256,
        }
    }
}

impl PublicKeyData for RawKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.bytes
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

pub(crate) fn distinguished_name(grid: &str, leaf: Option<(&str, &str)>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, grid);
    if let Some((unit, common_name)) = leaf {
        name.push(DnType::OrganizationalUnitName, unit);
        name.push(DnType::CommonName, common_name);
    }
    name
}

fn dns_name(name: &str) -> Result<SanType, Error> {
    Ia5String::try_from(name)
        .map(SanType::DnsName)
        .map_err(|_| Error::Issue {
            what: "certificate",
            reason: "a DNS name must be ASCII; write its xn-- form",
        })
}

fn backdated(now: WallMillis) -> WallMillis {
    WallMillis(now.0.saturating_sub(BACKDATE.as_millis() as u64))
}

/// Sets the validity, never beyond `latest`, and returns its end.
pub(crate) fn set_validity(
    params: &mut CertificateParams,
    now: WallMillis,
    lifetime: Duration,
    latest: WallMillis,
) -> WallMillis {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let end = now.plus(lifetime).min(latest);
    let at = |time: WallMillis| epoch + Duration::from_secs(time.secs().min(LAST_SECOND));
    params.not_before = at(backdated(now));
    params.not_after = at(end);
    WallMillis(end.secs() * 1000)
}
