//! The exchange itself, over any encrypted and authenticated stream.

use std::io;
use std::time::Duration;

use aerie_identity::Rejection;
use aerie_types::PeerId;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Gate, Refusal, Rejected};

/// The longest credential that is read, in bytes: what identity allows (700) and room for a later release.
pub const MAX_CREDENTIAL_FRAME: usize = 1024;

/// The whole exchange: two round trips over a relay on a bad line, with margin.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(8);

/// How long a side that refused waits for the other to hang up, so that its verdict is not overtaken by the close.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Exchanges credentials with the peer that proved this key. On success both sides have admitted each other.
///
/// # Errors
/// Why there shall be no connection. Counted in the gate.
pub async fn exchange<S>(gate: &Gate, stream: &mut S, remote: PeerId) -> Result<(), Rejected>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let result = tokio::time::timeout(EXCHANGE_TIMEOUT, converse(gate, stream, remote))
        .await
        .unwrap_or(Err(Refusal::Stalled));
    match &result {
        Ok(()) => gate.counters().admitted(),
        Err(refusal) => gate.counters().refused(refusal),
    }
    result.map_err(|reason| Rejected {
        peer: Some(remote),
        reason,
    })
}

async fn converse<S>(gate: &Gate, stream: &mut S, remote: PeerId) -> Result<(), Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let own = gate.own();
    let length = u16::try_from(own.len()).map_err(|_| Refusal::Oversized { length: own.len() })?;
    stream.write_all(&length.to_be_bytes()).await.map_err(broken)?;
    stream.write_all(&own).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;

    let judged = match read_frame(stream).await? {
        Ok(der) => gate.judge(&der, remote),
        Err(length) => Err(Refusal::Oversized { length }),
    };
    stream
        .write_all(&[Verdict::of(&judged) as u8])
        .await
        .map_err(broken)?;
    stream.flush().await.map_err(broken)?;

    let mut verdict = [0];
    match judged {
        Ok(credential) => {
            stream.read_exact(&mut verdict).await.map_err(broken)?;
            match Verdict::reason(verdict[0]) {
                None => {
                    gate.remember(credential);
                    Ok(())
                }
                Some(reason) => Err(Refusal::ByRemote(reason)),
            }
        }
        Err(refusal) => {
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, linger(stream)).await;
            Err(refusal)
        }
    }
}

/// Reads and forgets until the other side hangs up.
async fn linger<S>(stream: &mut S)
where
    S: AsyncRead + Unpin,
{
    let mut scrap = [0; 64];
    while matches!(stream.read(&mut scrap).await, Ok(read) if read > 0) {}
}

/// Reads a credential; the inner error is an announced length that is too large.
async fn read_frame<S>(stream: &mut S) -> Result<Result<Vec<u8>, usize>, Refusal>
where
    S: AsyncRead + Unpin,
{
    let mut length = [0; 2];
    stream.read_exact(&mut length).await.map_err(broken)?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > MAX_CREDENTIAL_FRAME {
        return Ok(Err(length));
    }
    let mut der = vec![0; length];
    stream.read_exact(&mut der).await.map_err(broken)?;
    Ok(Ok(der))
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn broken(error: io::Error) -> Refusal {
    Refusal::Broken(error.to_string())
}

/// What one side tells the other after it has judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Verdict {
    Admitted = 0,
    Malformed = 1,
    WrongGrid = 2,
    BadSignature = 3,
    NotYetValid = 4,
    Expired = 5,
    Revoked = 6,
    KeyMismatch = 7,
    Other = 255,
}

impl Verdict {
    pub(crate) fn of<T>(judged: &Result<T, Refusal>) -> Self {
        match judged {
            Ok(_) => Self::Admitted,
            Err(Refusal::Credential(Rejection::Malformed(_)) | Refusal::Oversized { .. }) => Self::Malformed,
            Err(Refusal::Credential(Rejection::WrongGrid { .. })) => Self::WrongGrid,
            Err(Refusal::Credential(Rejection::BadSignature)) => Self::BadSignature,
            Err(Refusal::Credential(Rejection::NotYetValid { .. })) => Self::NotYetValid,
            Err(Refusal::Credential(Rejection::Expired { .. })) => Self::Expired,
            Err(Refusal::Credential(Rejection::Revoked { .. })) => Self::Revoked,
            Err(Refusal::KeyMismatch) => Self::KeyMismatch,
            Err(_) => Self::Other,
        }
    }

    /// The reason that a verdict from the wire states; `None` if it admits.
    pub(crate) fn reason(byte: u8) -> Option<&'static str> {
        const TABLE: [(Verdict, &str); 7] = [
            (
                Verdict::Malformed,
                "it could not read this node's credential; install the same release on both",
            ),
            (
                Verdict::WrongGrid,
                "it is of another grid; check the bootstrap addresses and the blob",
            ),
            (
                Verdict::BadSignature,
                "its grid's CA did not sign this node's credential; enrol again",
            ),
            (
                Verdict::NotYetValid,
                "this node's credential is not valid yet by its clock; check both clocks",
            ),
            (
                Verdict::Expired,
                "this node's credential has expired by its clock; check both clocks, else renew or enrol again",
            ),
            (
                Verdict::Revoked,
                "this node's credential is revoked; ask the grid's administrator for a new token",
            ),
            (
                Verdict::KeyMismatch,
                "this node's credential is of another key; restore its keys or enrol again",
            ),
        ];
        if byte == Verdict::Admitted as u8 {
            return None;
        }
        let known = TABLE.iter().find(|(verdict, _)| *verdict as u8 == byte);
        Some(known.map_or("it gave no reason; see its log", |(_, reason)| *reason))
    }
}
