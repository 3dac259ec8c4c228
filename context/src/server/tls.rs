//! TLS with members that prove their context's key, and bounds on connections.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aerie_context_proto::Fingerprint;
use axum::Extension;
use axum::middleware::AddExtension;
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use futures::future::BoxFuture;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tower_layer::Layer as _;

use crate::{Broker, Error};

/// Most connections at a time: every member of the largest context waits on one, and creators need some more. One
/// costs some 50 KB.
const MAX_CONNECTIONS: usize = aerie_context_proto::limits::MAX_MEMBERS + 256;

/// How long a connection may last: the longest wait for news, and the time for a slow line to take it.
const DEADLINE: Duration = Duration::from_secs(aerie_context_proto::wire::MAX_WAIT_SECS + 70);

/// The certificate whose key the peer proved in the handshake, if it showed one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) Option<Fingerprint>);

pub(super) fn config(broker: &Broker) -> Result<RustlsConfig, Error> {
    let (certificate, key) = broker.certificate();
    let chain = vec![CertificateDer::from(certificate.to_vec())];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyKey(Arc::clone(&provider)));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(Error::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(Error::Tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Every connection proves its key anew.
    config.send_tls13_tickets = 0;
    Ok(RustlsConfig::from_config(Arc::new(config)))
}

/// Takes any certificate, with a proof of its key. Which context it is of, and whether that lives, is looked at with
/// each request: contexts come and go while the server runs.
#[derive(Debug)]
struct AnyKey(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        // Creators show a token.
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        // TLS 1.2 is not offered.
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Admits connections within the bound, ends those that take too long, and tells the application who is there.
#[derive(Clone)]
pub(super) struct Acceptor {
    tls: RustlsAcceptor,
    places: Arc<Semaphore>,
}

impl Acceptor {
    pub(super) fn new(config: RustlsConfig) -> Self {
        Self {
            tls: RustlsAcceptor::new(config),
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Acceptor {
    type Stream = TlsStream<Guarded>;
    type Service = AddExtension<S, Peer>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let tls = self.tls.clone();
        let place = Arc::clone(&self.places).try_acquire_owned();
        Box::pin(async move {
            let place =
                place.map_err(|_| io::Error::new(io::ErrorKind::QuotaExceeded, "too many connections"))?;
            stream.set_nodelay(true)?;
            let guarded = Guarded {
                inner: stream,
                deadline: Box::pin(tokio::time::sleep(DEADLINE)),
                _place: place,
            };
            let (stream, service) = tls.accept(guarded, service).await?;
            let shown = stream.get_ref().1.peer_certificates();
            let peer = Peer(shown.and_then(<[_]>::first).map(|der| Fingerprint::of(der)));
            Ok((stream, Extension(peer).layer(service)))
        })
    }
}

/// A connection that fails once its deadline has passed.
pub(super) struct Guarded {
    inner: TcpStream,
    deadline: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Guarded {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
