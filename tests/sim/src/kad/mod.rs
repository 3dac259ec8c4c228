//! Kademlia as the overlay uses it, for the simulator: it agrees with libp2p's message by message, and has no IO.
//!
//! ```text
//!    connections open and close ───┐                           ┌──► Dial
//!    identify tells addresses ─────┤                           │
//!    FIND_NODE ── Table ──► answer │        Kademlia           ├──► Ask (FIND_NODE)
//!    answers, failures ────────────┼──► Table   Lookup ... ────┤
//!    the clock ────────────────────┘    (who)   (whom to ask)  └──► Located
//! ```
//!
//! [`Kademlia`] is one member's part: a [`Table`] of whom it has met, and one [`Lookup`] for each question under way.
//! Nothing else than messages moves it, so that what a member does not know it cannot find. [`Mesh`] is the overlay's
//! rule of whom to stay connected to, and [`Member`] both of them with what the overlay's driver puts between. The
//! simulated grids of the register route by such members; [`Network`] joins many of them, and nothing else, on a
//! virtual clock. How well they find is told by [`Found`] and [`Figures`].
//!
//! The numbers and rules are those of libp2p-kad 0.49 with the settings that the overlay gives it. `tests/kad-compare`
//! runs both on the same grid and says whether they agree.

mod book;
mod bucket;
mod figures;
mod kademlia;
mod lookup;
mod member;
mod mesh;
mod network;
mod plan;
mod settings;
mod table;

use std::time::Duration;

use aerie_types::{Key, PeerId};

pub use bucket::{Inserted, Status};
pub use figures::{Figures, Found, Spread, closest_of, percentile};
pub use kademlia::{Kademlia, Output, Stats};
pub use lookup::{Lookup, Step};
pub use member::{Act, Member};
pub use mesh::{Begin, Mesh, Wish};
pub use network::Network;
pub(crate) use network::{HANDSHAKE, IDENTIFY, REFUSED, REQUEST};
pub use plan::{Outcome, Plan};
pub use settings::Settings;
pub use table::{Presence, Table};

/// Members that a look-up names, and that a bucket holds.
pub const K: usize = 20;

/// Members asked at once while a look-up makes progress.
pub const ALPHA: usize = 3;

/// How long a new member waits for the place of one that is not connected.
pub const PENDING: Duration = Duration::from_secs(60);

/// How long a look-up waits for one member before it goes on without it.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request may take until it counts as failed.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a look-up may take in all.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(8);

/// How long the overlay lets a look-up take before it makes do with what was found.
pub const PATIENCE: Duration = Duration::from_millis(2500);

/// How often a table is refreshed.
pub const BOOTSTRAP_EVERY: Duration = Duration::from_secs(1800);

/// How long after a new entry a table that has fewer than [`K`] is refreshed.
pub const BOOTSTRAP_SOON: Duration = Duration::from_millis(500);

/// A member with its place in the key space, which costs a hash to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contact {
    /// The member.
    pub peer: PeerId,
    /// Its place.
    pub position: Key,
}

impl Contact {
    /// How far the member is from a place.
    #[must_use]
    pub fn distance(&self, place: &Key) -> Distance {
        Key(self.position.distance(place))
    }
}

impl From<PeerId> for Contact {
    fn from(peer: PeerId) -> Self {
        Self {
            peer,
            position: peer.position(),
        }
    }
}

/// The XOR of two places: a place itself, and in the same order.
pub type Distance = Key;
