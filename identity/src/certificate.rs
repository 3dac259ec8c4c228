//! The strict profile of X.509 that every certificate of a grid obeys.
//!
//! A certificate is read by a general parser and then held against the only encoding that the CA produces: its
//! outer structure, rebuilt from the signed part and the signature, must give the same bytes; keys and algorithms
//! are compared byte by byte; the subject has exactly an organization (the grid), a unit (a role) and a common name.

use aerie_types::WallMillis;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::X509Extension;
use x509_parser::x509::{X509Name, X509Version};

use crate::Rejection;
use crate::der::{ECDSA_SHA256, tlv};
use crate::keys::p256_point;

/// The longest certificate of any kind that is looked at, in bytes.
const MAX_CERTIFICATE: usize = 2048;

/// Raw object identifiers of the extensions that may be critical.
pub(crate) const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
const UNIT: &[u8] = &[0x55, 0x04, 0x0b];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// A verified P-256 certificate: of a node for HTCondor, of a user, or of the portal's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainCertificate {
    /// The subject's organization: the grid's name.
    pub organization: String,
    /// The subject's unit: a role, `user` or `portal`.
    pub unit: String,
    /// The subject's common name: the node or the user.
    pub common_name: String,
    /// The serial number.
    pub serial: u64,
    /// The P-256 public key: an uncompressed point, 65 bytes.
    pub public: Vec<u8>,
    /// The first moment of validity.
    pub not_before: WallMillis,
    /// The last moment of validity.
    pub not_after: WallMillis,
}

impl PlainCertificate {
    /// Reads the fields of a certificate of the profile. Whose signature it has is the caller's question.
    pub(crate) fn read(cert: &X509Certificate<'_>) -> Result<Self, Rejection> {
        check_extensions(cert, &[])?;
        if cert.is_ca() {
            return Err(Rejection::Malformed("it is a CA certificate"));
        }
        let public = p256_point(cert.public_key().raw).ok_or(Rejection::Malformed("its key is not P-256"))?;
        let [organization, unit, common_name] = subject(cert)?;
        let (not_before, not_after) = validity(cert);
        Ok(Self {
            organization,
            unit,
            common_name,
            serial: serial(cert)?,
            public: public.to_vec(),
            not_before,
            not_after,
        })
    }
}

/// Reads a certificate, refusing everything that is not in the one encoding of the profile.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Rejection> {
    if der.len() > MAX_CERTIFICATE {
        return Err(Rejection::Malformed("it is too long"));
    }
    let (rest, cert) = x509_parser::parse_x509_certificate(der)
        .map_err(|_| Rejection::Malformed("it is not an X.509 certificate"))?;
    if !rest.is_empty() {
        return Err(Rejection::Malformed("it has trailing bytes"));
    }
    let tbs = &cert.tbs_certificate;
    if cert.version() != X509Version::V3 || tbs.issuer_uid.is_some() || tbs.subject_uid.is_some() {
        return Err(Rejection::Malformed(
            "it is not of X.509 version 3 without unique identifiers",
        ));
    }
    if cert.signature_value.unused_bits != 0 {
        return Err(Rejection::Malformed("its signature is not whole bytes"));
    }
    let signature = tlv(0x03, &[&[0], &cert.signature_value.data]);
    if tlv(0x30, &[tbs.as_ref(), &ECDSA_SHA256, &signature]) != der
        || tbs.signature != cert.signature_algorithm
    {
        return Err(Rejection::Malformed(
            "it is not canonical DER signed by ECDSA with SHA-256",
        ));
    }
    Ok(cert)
}

/// Refuses critical extensions that are not known, and extensions that come twice.
pub(crate) fn check_extensions(cert: &X509Certificate<'_>, known: &[&[u8]]) -> Result<(), Rejection> {
    let extensions = cert.extensions();
    for (i, extension) in extensions.iter().enumerate() {
        let oid = extension.oid.as_bytes();
        if extensions[..i]
            .iter()
            .any(|earlier| earlier.oid.as_bytes() == oid)
        {
            return Err(Rejection::Malformed("it has an extension twice"));
        }
        if extension.critical && oid != KEY_USAGE && oid != BASIC_CONSTRAINTS && !known.contains(&oid) {
            return Err(Rejection::Malformed(
                "it has a critical extension that this release does not know",
            ));
        }
    }
    Ok(())
}

/// The extension with this raw object identifier.
pub(crate) fn extension<'a, 'c>(cert: &'a X509Certificate<'c>, oid: &[u8]) -> Option<&'a X509Extension<'c>> {
    cert.extensions()
        .iter()
        .find(|extension| extension.oid.as_bytes() == oid)
}

/// Organization, unit and common name, which must be all that the subject has.
pub(crate) fn subject(cert: &X509Certificate<'_>) -> Result<[String; 3], Rejection> {
    let [organization, unit, common_name] = attributes(cert.subject(), [ORGANIZATION, UNIT, COMMON_NAME])
        .ok_or(Rejection::Malformed("its subject is not /O=grid/OU=role/CN=name"))?;
    Ok([organization, unit, common_name])
}

/// The organization of a CA's subject, which must be all that it has.
pub(crate) fn ca_subject(cert: &X509Certificate<'_>) -> Option<String> {
    attributes(cert.subject(), [ORGANIZATION]).map(|[organization]| organization)
}

/// The serial number, if it is a positive number of 64 bits.
pub(crate) fn serial(cert: &X509Certificate<'_>) -> Result<u64, Rejection> {
    let bytes = match cert.raw_serial() {
        [0, rest @ ..] => rest,
        [first, ..] if *first >= 0x80 => &[],
        bytes => bytes,
    };
    if bytes.is_empty() || bytes.len() > 8 {
        return Err(Rejection::Malformed(
            "its serial number is not a positive number of 64 bits",
        ));
    }
    Ok(bytes
        .iter()
        .fold(0, |serial, byte| serial << 8 | u64::from(*byte)))
}

/// First and last moment of validity.
pub(crate) fn validity(cert: &X509Certificate<'_>) -> (WallMillis, WallMillis) {
    let millis = |secs: i64| WallMillis(u64::try_from(secs).unwrap_or(0).saturating_mul(1000));
    let validity = cert.validity();
    (
        millis(validity.not_before.timestamp()),
        millis(validity.not_after.timestamp()),
    )
}

fn attributes<const N: usize>(name: &X509Name<'_>, oids: [&[u8]; N]) -> Option<[String; N]> {
    let mut texts = Vec::with_capacity(N);
    let mut rdns = name.iter_rdn();
    for oid in oids {
        let mut attributes = rdns.next()?.iter();
        let attribute = attributes.next()?;
        if attributes.next().is_some() || attribute.attr_type().as_bytes() != oid {
            return None;
        }
        texts.push(attribute.as_str().ok()?.to_owned());
    }
    if rdns.next().is_some() {
        return None;
    }
    texts.try_into().ok()
}
