//! The key of the probes' MACs, from both halves of the exchange.

use aws_lc_rs::{digest, hmac};

use super::Agent;
use crate::signal::Offer;

impl Agent {
    pub(super) fn derive_key(&self, offer: &Offer) -> hmac::Key {
        let own = (self.own, self.tag, &*self.secret);
        let theirs = (self.peer, offer.tag, &offer.secret);
        let (first, second) = if self.own < self.peer {
            (own, theirs)
        } else {
            (theirs, own)
        };
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(b"aerie path key 1");
        for (peer, tag, secret) in [first, second] {
            hash.update(&peer.0);
            hash.update(&tag.to_be_bytes());
            hash.update(secret);
        }
        hmac::Key::new(hmac::HMAC_SHA256, hash.finish().as_ref())
    }
}
