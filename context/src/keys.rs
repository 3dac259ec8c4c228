//! The broker's certificate and token, and the key pair of each context.

use std::path::Path;

use aerie_context_proto::{BrokerFile, Fingerprint, Secret, Token};
use aerie_identity::files::{read_small, write_atomic};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
};
use zeroize::Zeroizing;

use crate::Error;

/// In the broker's folder: what somebody needs to create contexts, here or from elsewhere.
pub(crate) const BROKER_FILE: &str = "broker.json";
const CERTIFICATE_FILE: &str = "certificate.der";
const KEY_FILE: &str = "key.der";

/// Whether a text is the token, compared in a time that tells nothing.
pub(crate) fn is_token(token: &Token, shown: &str) -> bool {
    let hash = |text: &str| digest(&SHA256, text.as_bytes());
    verify_slices_are_equal(hash(token.expose()).as_ref(), hash(shown).as_ref()).is_ok()
}

fn read_broker_file(path: &Path) -> Result<Option<BrokerFile>, Error> {
    let Some(bytes) = read_small(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::File {
            path: path.to_owned(),
            why: error.to_string(),
        })
}

/// What the broker is known by.
pub(crate) struct BrokerKeys {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Zeroizing<Vec<u8>>,
    pub(crate) token: Token,
}

impl BrokerKeys {
    /// Reads the keys of a folder, or makes them. The token is kept when the URL changes.
    pub(crate) fn open(dir: &Path, url: &str) -> Result<Self, Error> {
        let (certificate, key) = certificate(dir)?;
        let path = dir.join(BROKER_FILE);
        let token = match read_broker_file(&path)? {
            Some(file) => file.token,
            None => Token::new(hex::encode(random::<32>()?)),
        };
        let file = BrokerFile {
            url: url.to_owned(),
            fingerprint: Fingerprint::of(&certificate),
            token: token.clone(),
        };
        let mut text = Zeroizing::new(serde_json::to_vec_pretty(&file).map_err(|error| Error::File {
            path: path.clone(),
            why: error.to_string(),
        })?);
        text.push(b'\n');
        write_atomic(&path, &text, 0o600)?;
        Ok(Self {
            certificate,
            key,
            token,
        })
    }
}

type CertificateAndKey = (Vec<u8>, Zeroizing<Vec<u8>>);

fn certificate(dir: &Path) -> Result<CertificateAndKey, Error> {
    let (path, key_path) = (dir.join(CERTIFICATE_FILE), dir.join(KEY_FILE));
    // The key is written first: a folder with a certificate has both.
    match (read_small(&path)?, read_small(&key_path)?) {
        (Some(certificate), Some(key)) => Ok((certificate.to_vec(), key)),
        (Some(_), None) => Err(Error::File {
            path: key_path,
            why: "it is missing, and members know the broker by it".to_owned(),
        }),
        (None, _) => {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::Certificate)?;
            // Members compare its fingerprint; the name is for people.
            let certificate = self_signed("aerie context broker", &key, ExtendedKeyUsagePurpose::ServerAuth)?;
            let der = Zeroizing::new(key.serialize_der());
            write_atomic(&key_path, &der, 0o600)?;
            write_atomic(&path, &certificate, 0o644)?;
            Ok((certificate, der))
        }
    }
}

/// A context's certificate and its private key.
pub(crate) fn context_keys(name: &str) -> Result<(Vec<u8>, Secret), Error> {
    let key = KeyPair::generate_for(&PKCS_ED25519).map_err(Error::Certificate)?;
    let certificate = self_signed(name, &key, ExtendedKeyUsagePurpose::ClientAuth)?;
    Ok((certificate, Secret::new(key.serialize_der())))
}

fn self_signed(name: &str, key: &KeyPair, usage: ExtendedKeyUsagePurpose) -> Result<Vec<u8>, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    let certificate = params.self_signed(key).map_err(Error::Certificate)?;
    Ok(certificate.der().to_vec())
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}
