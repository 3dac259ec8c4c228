//! The messages between client and server: JSON, with binary values in hexadecimal.

use serde::{Deserialize, Serialize};

pub(crate) const ENROL: &str = "/v1/enrol";
pub(crate) const RENEW: &str = "/v1/renew";
pub(crate) const USER_CREDENTIAL: &str = "/v1/user-credential";
pub(crate) const REVOCATIONS: &str = "/v1/revocations";
pub(crate) const HEALTH: &str = "/v1/health";

/// The longest request, in bytes: the longest encoded request in hexadecimal, with a token, comes to a third.
pub(crate) const MAX_BODY: usize = 16 * 1024;

/// The longest answer, in bytes: the longest revocation list in hexadecimal, and certificates.
pub(crate) const MAX_ANSWER: usize = 2 * aerie_identity::MAX_SIGNED_REVOCATIONS + 16 * 1024;

/// Asks to become a member.
#[derive(Serialize, Deserialize)]
pub(crate) struct EnrolBody {
    /// The join token's text.
    pub(crate) token: String,
    /// An encoded `EnrolRequest`, in hexadecimal.
    pub(crate) request: String,
}

/// Asks for a renewal or a user credential.
#[derive(Serialize, Deserialize)]
pub(crate) struct SignedBody {
    /// An encoded `RenewRequest` or `UserRequest`, in hexadecimal.
    pub(crate) request: String,
}

/// Answers an enrolment or a renewal.
#[derive(Serialize, Deserialize)]
pub(crate) struct MemberAnswer {
    /// The node's name.
    pub(crate) node: String,
    /// The overlay credential, DER in hexadecimal.
    pub(crate) overlay: String,
    /// The certificate for HTCondor.
    pub(crate) condor_pem: String,
    /// The grid CA's certificate.
    pub(crate) ca_pem: String,
    /// The newest signed revocation list, in hexadecimal.
    pub(crate) revocations: String,
}

/// Answers a request for a user credential.
#[derive(Serialize, Deserialize)]
pub(crate) struct UserAnswer {
    /// The user's certificate.
    pub(crate) certificate_pem: String,
    /// The grid CA's certificate.
    pub(crate) ca_pem: String,
}

/// Asks for the newest revocation list.
#[derive(Serialize, Deserialize)]
pub(crate) struct RevocationsQuery {
    /// The serial of the list that the asker has; one that is not newer is not sent.
    #[serde(default)]
    pub(crate) after: u64,
}

/// The newest revocation list.
#[derive(Serialize, Deserialize)]
pub(crate) struct RevocationsAnswer {
    /// The signed list, in hexadecimal. None if the asker has it.
    pub(crate) revocations: Option<String>,
}

/// Says that the server works, and for which grid.
#[derive(Serialize, Deserialize)]
pub(crate) struct HealthAnswer {
    /// The grid's id.
    pub(crate) grid: String,
    /// The grid's name.
    pub(crate) name: String,
    /// The server's version.
    pub(crate) version: String,
}

/// Says why there is no other answer.
#[derive(Serialize, Deserialize)]
pub(crate) struct ErrorAnswer {
    /// A word for programs.
    pub(crate) code: String,
    /// A sentence for persons.
    pub(crate) message: String,
}
