//! The server's certificate and the TLS settings around it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aerie_identity::{ServerCertificate, renewal_due};
use aerie_types::WallMillis;
use axum_server::tls_rustls::RustlsConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{Error, Portal};

/// Keeps the certificate of a server younger than two thirds of its life.
pub(super) struct Keeper {
    portal: Arc<Portal>,
    names: Vec<String>,
    lifetime: Duration,
    due: Mutex<WallMillis>,
    config: RustlsConfig,
}

impl Keeper {
    pub(super) fn new(
        portal: Arc<Portal>,
        names: Vec<String>,
        lifetime: Duration,
        now: WallMillis,
    ) -> Result<Self, Error> {
        let certificate = portal.issue_server(&names, now, lifetime)?;
        Ok(Self {
            due: Mutex::new(renewal_due(certificate.not_before, certificate.not_after)),
            config: RustlsConfig::from_config(Arc::new(server_config(certificate)?)),
            portal,
            names,
            lifetime,
        })
    }

    /// What the acceptor uses; it follows when the certificate changes.
    pub(super) fn config(&self) -> RustlsConfig {
        self.config.clone()
    }

    /// Replaces the certificate if it is time to. Connections that are open are not touched.
    pub(super) fn refresh(&self, now: WallMillis) -> Result<bool, Error> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if now < *due {
            return Ok(false);
        }
        let certificate = self.portal.issue_server(&self.names, now, self.lifetime)?;
        let next = renewal_due(certificate.not_before, certificate.not_after);
        self.config
            .reload_from_config(Arc::new(server_config(certificate)?));
        *due = next;
        Ok(true)
    }
}

fn server_config(certificate: ServerCertificate) -> Result<rustls::ServerConfig, Error> {
    let chain = vec![
        CertificateDer::from(certificate.leaf_der),
        CertificateDer::from(certificate.ca_der),
    ];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certificate.key_pkcs8.to_vec()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(Error::Tls)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(Error::Tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_certificate_is_replaced_at_two_thirds_of_its_life() {
        let dir = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        let now = WallMillis(1_900_000_000_000);
        let range: aerie_types::VirtualRange = "100.96.0.0/11".parse().unwrap();
        let portal = Portal::create_grid(dir.path(), "chem".parse().unwrap(), range, now).unwrap();
        let keeper = Keeper::new(Arc::new(portal), vec!["127.0.0.1".to_owned()], 30 * hour, now).unwrap();
        let first = keeper.config().get_inner();
        assert!(!keeper.refresh(now.plus(19 * hour)).unwrap());
        assert!(Arc::ptr_eq(&first, &keeper.config().get_inner()));
        assert!(keeper.refresh(now.plus(20 * hour)).unwrap());
        assert!(!Arc::ptr_eq(&first, &keeper.config().get_inner()));
        assert!(!keeper.refresh(now.plus(39 * hour)).unwrap());
    }
}
