//! The node's side of enrolment.
//!
//! The client knows the portal's URLs and the hash of the grid's CA, from the node's blob. It tries the URLs in
//! turn. A server that does not prove itself under that CA fails in the TLS handshake, before anything is sent. What
//! a proven server answers is still checked: it must verify under the CA and be for the keys and, where asked for
//! exactly, the name of the request. Waiting between attempts is the caller's part ([`ClientError::is_retryable`]).

mod error;
mod pin;

use std::time::Duration;

use aerie_identity::{
    Credential, EnrolRequest, JoinToken, MAX_REQUEST, RenewRequest, SignedRevocations, UserRequest, Verifier,
    pem_to_der, sha256,
};
use aerie_types::WallMillis;
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::{
    ENROL, EnrolBody, ErrorAnswer, HEALTH, HealthAnswer, MAX_ANSWER, MemberAnswer, RENEW, REVOCATIONS,
    RevocationsAnswer, SignedBody, USER_CREDENTIAL, UserAnswer,
};
use crate::{Error, check_url};
use error::Failed;

pub use error::{Attempt, ClientError};

/// How long a connection may take to open, before the next URL is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a whole request may take; the server ends it after 30 s by itself.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Most URLs of a portal. A blob needs one or two.
const MAX_URLS: usize = 16;

/// Asks a grid's portal for what a node needs.
#[derive(Debug, Clone)]
pub struct EnrolClient {
    urls: Vec<Url>,
    ca_hash: [u8; 32],
    http: reqwest::Client,
}

/// What a node has when it is a member.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The overlay credential, verified.
    pub credential: Credential,
    /// The certificate for HTCondor, verified, PEM.
    pub condor_pem: String,
    /// The grid CA's certificate, PEM.
    pub ca_pem: String,
    /// The same, DER.
    pub ca_der: Vec<u8>,
    /// The newest revocation list, its signature verified.
    pub revocations: SignedRevocations,
}

/// A local user's certificate for HTCondor's tools.
#[derive(Debug, Clone)]
pub struct UserCredential {
    /// The certificate, verified, PEM.
    pub certificate_pem: String,
    /// The grid CA's certificate, PEM.
    pub ca_pem: String,
    /// The first moment of its validity.
    pub not_before: WallMillis,
    /// The last moment of its validity.
    pub not_after: WallMillis,
}

impl EnrolClient {
    /// A client for a portal that is reached by any of these URLs and proves itself by the CA of this hash.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a URL that cannot be used.
    pub fn new<U: AsRef<str>>(urls: &[U], ca_hash: [u8; 32]) -> Result<Self, Error> {
        if urls.is_empty() || urls.len() > MAX_URLS {
            return Err(Error::Invalid {
                what: format!("a list of {} URLs", urls.len()),
                reason: "name between 1 and 16 URLs of the portal",
            });
        }
        Ok(Self {
            urls: urls
                .iter()
                .map(|url| check_url(url.as_ref()))
                .collect::<Result<_, _>>()?,
            ca_hash,
            http: reqwest::Client::builder()
                .tls_backend_preconfigured(pin::client_config(ca_hash)?)
                .https_only(true)
                .redirect(reqwest::redirect::Policy::none())
                .pool_max_idle_per_host(0)
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(REQUEST_TIMEOUT)
                .user_agent(concat!("aerie/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(Error::Http)?,
        })
    }

    /// Becomes a member by a join token. `now` is this machine's clock, by which the answer is judged.
    ///
    /// Asking again with the same keys and token, because an answer was lost, costs no further use of the token.
    ///
    /// # Errors
    /// [`ClientError`]; see [`ClientError::is_retryable`].
    pub async fn enrol(
        &self,
        token: &JoinToken,
        request: &EnrolRequest,
        now: WallMillis,
    ) -> Result<Membership, ClientError> {
        let body = EnrolBody {
            token: token.to_text().to_string(),
            request: hex::encode(request.encode()),
        };
        let (url, answer) = self.ask(Method::POST, ENROL, Some(&body)).await?;
        self.member(&url, answer, request, now)
    }

    /// Gets new certificates by the current credential.
    ///
    /// # Errors
    /// [`ClientError`]; see [`ClientError::is_retryable`].
    pub async fn renew(&self, request: &RenewRequest, now: WallMillis) -> Result<Membership, ClientError> {
        let (url, answer) = self
            .ask(Method::POST, RENEW, Some(&signed_body(request.encode())))
            .await?;
        self.member(&url, answer, &request.enrol, now)
    }

    /// Gets a short-lived certificate for a local user.
    ///
    /// # Errors
    /// [`ClientError`]; see [`ClientError::is_retryable`].
    pub async fn user_credential(
        &self,
        request: &UserRequest,
        now: WallMillis,
    ) -> Result<UserCredential, ClientError> {
        let (url, answer): (_, UserAnswer) = self
            .ask(
                Method::POST,
                USER_CREDENTIAL,
                Some(&signed_body(request.encode())),
            )
            .await?;
        let bad = |reason| bad_answer(&url, reason);
        let verifier = self.verifier(&url, &answer.ca_pem)?;
        let der = pem_to_der(&answer.certificate_pem).ok_or_else(|| bad("the certificate is not PEM"))?;
        let certificate = verifier
            .verify_plain(&der, now)
            .map_err(|rejection| ClientError::Rejected {
                url: url.to_string(),
                rejection,
            })?;
        if certificate.public != request.public
            || certificate.unit != "user"
            || certificate.common_name != request.user.as_str()
        {
            return Err(bad("the certificate is not for the requested user and key"));
        }
        Ok(UserCredential {
            certificate_pem: answer.certificate_pem,
            ca_pem: answer.ca_pem,
            not_before: certificate.not_before,
            not_after: certificate.not_after,
        })
    }

    /// Gets the newest revocation list, if it is newer than the one of serial `after` (0 for any). The caller's verifier
    /// checks its signature when it applies it.
    ///
    /// # Errors
    /// [`ClientError`]; see [`ClientError::is_retryable`].
    pub async fn revocations(&self, after: u64) -> Result<Option<SignedRevocations>, ClientError> {
        let path = format!("{REVOCATIONS}?after={after}");
        let (url, answer): (_, RevocationsAnswer) = self.ask(Method::GET, &path, None::<&()>).await?;
        answer
            .revocations
            .map(|text| decode_revocations(&url, &text))
            .transpose()
    }

    /// Asks whether the portal works; gives its version.
    ///
    /// # Errors
    /// [`ClientError`]; see [`ClientError::is_retryable`].
    pub async fn health(&self) -> Result<String, ClientError> {
        let (_, answer): (_, HealthAnswer) = self.ask(Method::GET, HEALTH, None::<&()>).await?;
        Ok(answer.version)
    }

    /// Checks an answer against the request it is for.
    fn member(
        &self,
        url: &Url,
        answer: MemberAnswer,
        request: &EnrolRequest,
        now: WallMillis,
    ) -> Result<Membership, ClientError> {
        let bad = |reason| bad_answer(url, reason);
        let rejected = |rejection| ClientError::Rejected {
            url: url.to_string(),
            rejection,
        };
        let mut verifier = self.verifier(url, &answer.ca_pem)?;
        let overlay = hex::decode(&answer.overlay).map_err(|_| bad("the credential is not hexadecimal"))?;
        // Its own revocation would be news for the caller to act upon, not a defect of the answer: it is not applied
        // before the check.
        let credential = verifier.verify(&overlay, now).map_err(rejected)?;
        if credential.peer != request.peer || credential.noise_public != request.noise_public {
            return Err(bad("the credential is for other keys than the requested ones"));
        }
        if credential.node.as_str() != answer.node || (request.exact && credential.node != request.node) {
            return Err(bad("the credential is for another name than the requested one"));
        }
        let condor =
            pem_to_der(&answer.condor_pem).ok_or_else(|| bad("the HTCondor certificate is not PEM"))?;
        let condor = verifier.verify_plain(&condor, now).map_err(rejected)?;
        if condor.public != request.condor_public
            || condor.common_name != credential.node.as_str()
            || condor.serial != credential.serial
        {
            return Err(bad("the HTCondor certificate does not go with the credential"));
        }
        let revocations = decode_revocations(url, &answer.revocations)?;
        verifier
            .apply(revocations.clone())
            .map_err(|_| bad("the revocation list is not signed by the grid's CA"))?;
        Ok(Membership {
            credential,
            condor_pem: answer.condor_pem,
            ca_der: verifier.ca_der().to_vec(),
            ca_pem: answer.ca_pem,
            revocations,
        })
    }

    fn verifier(&self, url: &Url, ca_pem: &str) -> Result<Verifier, ClientError> {
        pem_to_der(ca_pem)
            .filter(|der| sha256(der) == self.ca_hash)
            .and_then(|der| Verifier::new(&der).ok())
            .ok_or_else(|| bad_answer(url, "the CA certificate is not the pinned one"))
    }

    /// Tries the URLs in turn until one gives an answer or a refusal.
    async fn ask<B: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<(Url, A), ClientError> {
        let mut attempts = Vec::with_capacity(self.urls.len());
        for url in &self.urls {
            match self.ask_one(url, &method, path, body).await {
                Ok(answer) => return Ok((url.clone(), answer)),
                Err(Failed::Finally(error)) => return Err(error),
                Err(Failed::Here(attempt)) => {
                    tracing::debug!(url = %attempt.url, reason = %attempt.reason, "portal not usable");
                    attempts.push(attempt);
                }
            }
        }
        Err(ClientError::Unusable { attempts })
    }

    async fn ask_one<B: Serialize, A: DeserializeOwned>(
        &self,
        url: &Url,
        method: &Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<A, Failed> {
        let target = url
            .join(path)
            .map_err(|_| Failed::answer(url, "its URL takes no path"))?;
        let mut request = self.http.request(method.clone(), target);
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut response = request
            .send()
            .await
            .map_err(|error| Failed::transport(url, &error))?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| Failed::transport(url, &error))?
        {
            if bytes.len() + chunk.len() > MAX_ANSWER {
                return Err(Failed::answer(url, "its answer is too long"));
            }
            bytes.extend_from_slice(&chunk);
        }
        if status == StatusCode::OK {
            return serde_json::from_slice(&bytes)
                .map_err(|_| Failed::answer(url, "its answer is not understood"));
        }
        Err(Failed::status(
            url,
            status,
            serde_json::from_slice::<ErrorAnswer>(&bytes).ok(),
        ))
    }
}

fn signed_body(request: Vec<u8>) -> SignedBody {
    debug_assert!(
        request.len() <= MAX_REQUEST,
        "requests are built within their limit"
    );
    SignedBody {
        request: hex::encode(request),
    }
}

fn decode_revocations(url: &Url, text: &str) -> Result<SignedRevocations, ClientError> {
    hex::decode(text)
        .ok()
        .and_then(|bytes| SignedRevocations::decode(&bytes).ok())
        .ok_or_else(|| bad_answer(url, "the revocation list is damaged"))
}

fn bad_answer(url: &Url, reason: &'static str) -> ClientError {
    ClientError::BadAnswer {
        url: url.to_string(),
        reason,
    }
}
