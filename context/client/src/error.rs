use aerie_context_proto::{BadUrl, Fingerprint};

/// Why a broker did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker's address cannot be used.
    #[error("the broker's URL '{url}' is not usable: {source}")]
    Url {
        /// The URL.
        url: String,
        /// Why.
        #[source]
        source: BadUrl,
    },
    /// The context's key or certificate cannot be used.
    #[error("cannot set up TLS: {0}; are the user-data whole?")]
    Tls(#[source] rustls::Error),
    /// Nobody answers.
    #[error("the broker at {url} does not answer: {why}")]
    Unreachable {
        /// The broker.
        url: String,
        /// Why.
        why: String,
    },
    /// Somebody else answers.
    #[error(
        "who answers at {url} is not the broker (its certificate has not the fingerprint {fingerprint}), so nothing \
         was sent to it; check the URL, and that nobody listens in"
    )]
    WrongBroker {
        /// Who was asked.
        url: String,
        /// Who was meant.
        fingerprint: Fingerprint,
    },
    /// The broker refuses.
    #[error("the broker refuses: {message}")]
    Refused {
        /// HTTP's status.
        status: u16,
        /// For programs: the code of `aerie_context_proto::Refusal`, or the server's own.
        code: String,
        /// For people.
        message: String,
    },
    /// The answer is not understood.
    #[error("the answer of {url} is not understood: {why}; is it an Aerie context broker of this release?")]
    BadAnswer {
        /// The broker.
        url: String,
        /// Why.
        why: String,
    },
    /// A request that cannot be sent.
    #[error("the request cannot be sent: {0}")]
    Request(String),
}

impl Error {
    /// Whether it may go better later, without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::BadAnswer { .. } => true,
            // The attacker or the wrong address may go away; a guest has nobody who would start it again.
            Self::WrongBroker { .. } => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429,
            Self::Url { .. } | Self::Tls(_) | Self::Request(_) => false,
        }
    }

    /// Whether the context is no more.
    #[must_use]
    pub fn is_destroyed(&self) -> bool {
        matches!(self, Self::Refused { status: 410, .. })
    }
}
