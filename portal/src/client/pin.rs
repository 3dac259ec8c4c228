//! Trust in exactly one CA, known by the hash of its certificate.

use std::fmt;
use std::sync::Arc;

use aerie_identity::{Verifier, sha256};
use aerie_types::WallMillis;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};

use crate::Error;

/// Most certificates looked at in a server's chain. A portal sends two.
const MAX_CHAIN: usize = 8;

/// The role that stands in the subject of a portal's certificate, and of no node's.
const PORTAL_UNIT: &str = "portal";

/// TLS settings that accept a portal of the CA with this hash, and nobody else.
pub(super) fn client_config(ca_hash: [u8; 32]) -> Result<rustls::ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = PinnedCa {
        ca_hash,
        provider: Arc::clone(&provider),
    };
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(Error::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// The server showed no certificate of the pinned CA.
#[derive(Debug)]
pub(super) struct PinMismatch;

impl fmt::Display for PinMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the server is not a portal of this grid (its chain lacks the grid's CA), so nothing was sent to it; \
             check the URL and that the blob is of this grid",
        )
    }
}

impl std::error::Error for PinMismatch {}

/// Finds the pinned CA in the presented chain and verifies the server's certificate under it.
#[derive(Debug)]
struct PinnedCa {
    ca_hash: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .take(MAX_CHAIN)
            .find(|der| sha256(der) == self.ca_hash)
            .ok_or_else(|| other(PinMismatch))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verified =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(other)?
                .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        // A node's certificate for HTCondor is a server's certificate too, but no portal's.
        let portal = Verifier::new(ca).map_err(other)?;
        let wall = WallMillis(now.as_secs().saturating_mul(1000));
        let certificate = portal.verify_plain(end_entity, wall).map_err(other)?;
        if certificate.unit != PORTAL_UNIT {
            return Err(other(PinMismatch));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // TLS 1.2 is not offered.
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use aerie_identity::{EnrolRequest, GridCa, NodeKeys, Subject, pem_to_der};
    use aerie_types::Role;

    use super::*;

    struct Fixture {
        ca: GridCa,
        pinned: PinnedCa,
        now: WallMillis,
    }

    impl Fixture {
        fn new() -> Self {
            let now = WallMillis::from(SystemTime::now());
            let ca = GridCa::create("chem".parse().unwrap(), "100.96.0.0/11".parse().unwrap(), now).unwrap();
            let pinned = PinnedCa {
                ca_hash: ca.ca_hash(),
                provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            };
            Self { ca, pinned, now }
        }

        fn verify(&self, leaf: &[u8], chain: &[&[u8]], name: &str) -> Result<(), rustls::Error> {
            let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(*der)).collect();
            let time = UnixTime::since_unix_epoch(Duration::from_millis(self.now.0));
            let name = ServerName::try_from(name).unwrap();
            self.pinned
                .verify_server_cert(&leaf.into(), &chain, &name, &[], time)
                .map(drop)
        }

        fn server(&self) -> Vec<u8> {
            let names = ["portal.example.org".to_owned(), "192.0.2.7".to_owned()];
            let life = Duration::from_secs(3600);
            self.ca.issue_server(&names, 1, self.now, life).unwrap().leaf_der
        }
    }

    fn is_mismatch(error: &rustls::Error) -> bool {
        let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = error else {
            return false;
        };
        other.0.is::<PinMismatch>()
    }

    #[test]
    fn a_portal_of_the_pinned_ca_is_accepted_under_its_names_alone() {
        let f = Fixture::new();
        let leaf = f.server();
        f.verify(&leaf, &[f.ca.ca_der()], "portal.example.org").unwrap();
        f.verify(&leaf, &[f.ca.ca_der()], "192.0.2.7").unwrap();
        let other = f
            .verify(&leaf, &[f.ca.ca_der()], "other.example.org")
            .unwrap_err();
        assert!(matches!(
            other,
            rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })
        ));
    }

    #[test]
    fn a_chain_without_the_pinned_ca_is_refused_even_if_it_is_sound() {
        let (f, other) = (Fixture::new(), Fixture::new());
        for chain in [&[][..], &[other.ca.ca_der()]] {
            let error = f
                .verify(&other.server(), chain, "portal.example.org")
                .unwrap_err();
            assert!(is_mismatch(&error), "{error}");
        }
    }

    #[test]
    fn showing_the_pinned_ca_does_not_help_a_server_that_it_did_not_sign() {
        let (f, other) = (Fixture::new(), Fixture::new());
        let chain = [f.ca.ca_der(), other.ca.ca_der()];
        f.verify(&other.server(), &chain, "portal.example.org")
            .unwrap_err();
    }

    #[test]
    fn a_member_cannot_pass_for_the_portal_with_its_own_certificate() {
        let f = Fixture::new();
        let keys = NodeKeys::generate().unwrap();
        let subject = Subject {
            node: "w1".parse().unwrap(),
            user: "mallory".parse().unwrap(),
            group: "physics".parse().unwrap(),
            roles: Role::Manager.into(),
        };
        let request = EnrolRequest::create(&keys, f.ca.grid_id(), subject.node.clone(), true).unwrap();
        let issued =
            f.ca.issue(&request, &subject, 1, f.now, Duration::from_secs(3600))
                .unwrap();
        let leaf = pem_to_der(&issued.condor_pem).unwrap();
        let error = f.verify(&leaf, &[f.ca.ca_der()], "w1.chem.grid").unwrap_err();
        assert!(is_mismatch(&error), "{error}");
    }
}
