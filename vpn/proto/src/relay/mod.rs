//! Relaying by tickets: a member with an open port carries sealed datagrams between two others.
//!
//! ```text
//!  asker                     relay                      far end
//!    │── RelayRequest ─────────►│                          │      over the overlay: the relay knows who asks
//!    │◄─ RelayGrant(2 tickets) ─│                          │
//!    │── RelayInvite(ticket) ─────────────────────────────►│      over the overlay
//!    │── bind(MAC by ticket) ──►│◄── bind(MAC by ticket) ──│      on the data socket, every 20 s
//!    │◄─ bound ─────────────────│─── bound ───────────────►│
//!    │── frame ────────────────►│─── frame ───────────────►│      only between the two bound addresses
//! ```
//!
//! One session at the relay:
//!
//! ```text
//!   Granted ──one end binds──► Half ──the other binds──► Open ──no bind for 60 s──► gone
//!      └──nobody binds for 30 s──► gone
//! ```
//!
//! A ticket never travels over the data socket: binds carry a MAC by it and a rising sequence number, so that a
//! recorded bind moves nothing. A frame is forwarded only if its source is the bound address of one end of its
//! session and the other end is bound too; what it carries is sealed end to end. The relay holds a bounded number
//! of sessions, in all and per member, and a rate for each.

pub(crate) mod client;
pub(crate) mod server;

use aws_lc_rs::hmac;

pub(crate) fn ticket_key(ticket: &[u8; 16]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, ticket)
}
