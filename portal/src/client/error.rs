use std::error::Error as _;
use std::io;

use aerie_identity::Rejection;
use reqwest::{StatusCode, Url};
use rustls::CertificateError;

use super::pin::PinMismatch;
use crate::wire::ErrorAnswer;

/// Why a node did not get what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// None of the URLs led to a portal that could decide.
    #[error("no portal could be used: {}", list(attempts))]
    Unusable {
        /// What happened at each URL, in the order tried.
        attempts: Vec<Attempt>,
    },
    /// A portal of the right grid decided against the request.
    #[error("the portal refused: {message}")]
    Refused {
        /// The portal.
        url: String,
        /// A word for programs; see [`crate::Refusal::code`].
        code: String,
        /// The portal's explanation.
        message: String,
    },
    /// The portal's certificates do not verify on this machine, most often because of its clock.
    #[error("the portal {url} sent a certificate that is not accepted here: {rejection}")]
    Rejected {
        /// The portal.
        url: String,
        /// Why it was not accepted.
        #[source]
        rejection: Rejection,
    },
    /// A portal of the right grid sent something else than was asked for.
    #[error("the portal {url} gave a wrong answer: {reason}; bring portal and node to the same release")]
    BadAnswer {
        /// The portal.
        url: String,
        /// What is wrong.
        reason: &'static str,
    },
}

impl ClientError {
    /// Whether the same request may succeed later without anybody doing something.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unusable { attempts } => attempts.iter().any(|attempt| attempt.retryable),
            Self::Refused { .. } | Self::Rejected { .. } | Self::BadAnswer { .. } => false,
        }
    }

    /// Whether this machine's clock, or the portal's, may be what stands in the way.
    #[must_use]
    pub fn is_about_time(&self) -> bool {
        matches!(
            self,
            Self::Rejected {
                rejection: Rejection::NotYetValid { .. } | Rejection::Expired { .. },
                ..
            }
        )
    }

    /// The portal's word for why it refused, if it did.
    #[must_use]
    pub fn refusal_code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// What happened at one URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The URL.
    pub url: String,
    /// Why it was of no use, and what to do.
    pub reason: String,
    /// Whether it may be of use later without anybody doing something.
    pub retryable: bool,
}

fn list(attempts: &[Attempt]) -> String {
    let lines: Vec<_> = attempts
        .iter()
        .map(|attempt| format!("{}: {}", attempt.url, attempt.reason))
        .collect();
    lines.join("; ")
}

/// The outcome at one URL: the end of it all, or a reason to try the next.
pub(super) enum Failed {
    Finally(ClientError),
    Here(Attempt),
}

impl Failed {
    pub(super) fn answer(url: &Url, reason: &str) -> Self {
        Self::here(url, format!("{reason}; is this Aerie's portal?"), false)
    }

    pub(super) fn status(url: &Url, status: StatusCode, answer: Option<ErrorAnswer>) -> Self {
        let retryable = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        match answer {
            Some(answer) if !retryable => Self::Finally(ClientError::Refused {
                url: url.to_string(),
                code: answer.code,
                message: answer.message,
            }),
            Some(answer) => Self::here(url, answer.message, true),
            None => Self::here(url, format!("it answered with status {status}"), retryable),
        }
    }

    pub(super) fn transport(url: &Url, error: &reqwest::Error) -> Self {
        match tls_error(error) {
            Some(rustls::Error::InvalidCertificate(reason)) => {
                let (reason, retryable) = certificate_reason(reason);
                Self::here(url, reason, retryable)
            }
            Some(tls) => Self::here(url, format!("TLS failed: {tls}"), true),
            None => Self::here(url, transport_reason(error), true),
        }
    }

    fn here(url: &Url, reason: String, retryable: bool) -> Self {
        Self::Here(Attempt {
            url: url.to_string(),
            reason,
            retryable,
        })
    }
}

/// A wrong server may be a captive portal that will go away; but a wrong clock or name needs somebody.
fn certificate_reason(error: &CertificateError) -> (String, bool) {
    let clock = "check this machine's clock, for example with `timedatectl`";
    match error {
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            format!("its certificate is not valid yet by this machine's clock; {clock}"),
            false,
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            format!("its certificate has expired by this machine's clock; {clock}, or restart the portal"),
            false,
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            "its certificate is for other names; restart `aerie portal serve` with this URL's host as `--san`"
                .to_owned(),
            false,
        ),
        CertificateError::Other(other) if other.0.is::<PinMismatch>() => (other.0.to_string(), true),
        other => (format!("its certificate is not accepted: {other}"), false),
    }
}

fn transport_reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time; check the network and the portal".to_owned();
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    if error.is_connect() {
        format!("it cannot be reached ({innermost}); check the address, the network and that the portal runs")
    } else {
        format!("the connection broke ({innermost})")
    }
}

/// Finds the TLS library's own error, which hides inside of IO errors.
fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next = error.source();
    while let Some(source) = next {
        if let Some(tls) = source.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        // An IO error's `source` skips the error that it wraps.
        next = match source.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => source.source(),
        };
    }
    None
}
