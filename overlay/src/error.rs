use libp2p::Multiaddr;

/// What can go wrong with the overlay as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A transport could not be set up.
    #[error(
        "cannot set up the {what} of the overlay: {reason}; check the system's limits and network settings"
    )]
    Setup {
        /// Which part.
        what: &'static str,
        /// The library's reason.
        reason: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}: {reason}; stop what uses the port, or choose another overlay port")]
    Listen {
        /// The address.
        addr: Multiaddr,
        /// The system's reason.
        reason: String,
    },
    /// The overlay's task has ended.
    #[error("the overlay has been shut down; start the daemon again")]
    Closed,
    /// The overlay has more commands waiting than it can hold.
    #[error("the overlay is busy; try again in a moment")]
    Busy,
    /// A message is longer than the overlay carries.
    #[error("the message has {length} bytes, more than the {limit} that the overlay carries; split it")]
    TooLarge {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The member could not be reached, directly or through a relay.
    #[error("the member cannot be reached: {0}; check that it runs, with `aerie status` there")]
    Unreachable(String),
    /// No answer came in time. The member may have processed the request.
    #[error("no answer in time; try again")]
    Timeout,
    /// The connection closed before the answer came. The member may have processed the request.
    #[error("the connection closed before the answer came; try again")]
    ConnectionClosed,
    /// The member does not serve the protocol.
    #[error("the member does not serve this protocol; install the same release on both")]
    Unsupported,
    /// The member received the request and gave no answer, or the stream broke.
    #[error("the member gave no answer ({0}); see its log")]
    NoAnswer(String),
    /// The request is longer than the overlay carries.
    #[error("the request has {length} bytes, more than the {limit} that the overlay carries; split it")]
    TooLarge {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A member does not send requests to itself.
    #[error("a request to this node itself is not carried; answer it locally")]
    ToSelf,
    /// Too many requests wait for this member, or for all.
    #[error("too many requests are waiting; try again in a moment")]
    Busy,
    /// The overlay has been shut down.
    #[error("the overlay has been shut down; start the daemon again")]
    Closed,
}
