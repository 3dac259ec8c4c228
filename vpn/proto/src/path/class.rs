//! How good a kind of way is, whatever its round trip.

use super::Route;
use super::pair::Pair;
use crate::signal::CandidateKind;

/// 0: within one network, 1: direct, 2: relayed, or over TLS.
pub(super) fn class(route: Route, pair: Option<&Pair>) -> u8 {
    match route {
        Route::Relayed(_) | Route::Stream(_) => 2,
        Route::Direct(addr) => {
            let announced = pair.is_some_and(|pair| pair.kind == CandidateKind::Host);
            u8::from(!(announced && addr.is_private()))
        }
    }
}
