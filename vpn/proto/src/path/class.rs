//! How good a kind of way is, whatever its round trip.

use std::net::IpAddr;

use super::Route;
use super::pair::Pair;
use crate::signal::CandidateKind;

/// 0: within one network, 1: direct, 2: relayed.
pub(super) fn class(route: Route, pair: Option<&Pair>) -> u8 {
    match route {
        Route::Relayed(_) => 2,
        Route::Direct(addr) => {
            let announced = pair.is_some_and(|pair| pair.kind == CandidateKind::Host);
            u8::from(!(announced && is_private(addr.0.ip())))
        }
    }
}

pub(super) fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || v4.is_link_local() || v4.is_loopback() || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback(),
    }
}
