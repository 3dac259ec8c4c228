//! The spec: what `aerie.toml` says, as typed values.
//!
//! The text is read once, here at the door ([`Spec::parse`]), and every mistake in it is reported together, with
//! its line. An unknown key is a mistake: a misspelt option must not silently keep its default. What is written
//! by [`Spec::to_toml`] reads back as the same spec.
//!
//! ```toml
//! version = 1
//!
//! [grid]
//! name = "chem"
//! ca_hash = "64 hexadecimal digits: the SHA-256 of the grid CA's certificate"
//! id = "32 hexadecimal digits: the first half of ca_hash (optional, checked)"
//! range = "100.96.0.0/11"
//! reserved = ["100.96.0.0/24"]    # only for nodes that ask for an address of it; optional
//! excluded = ["100.97.0.0/16"]    # for no node; optional
//! routed = { range = "100.127.0.0/17", block = 28 } # leased in blocks, to nodes that route for others; optional
//! witnesses = ["hub", "m1", "m2"] # strict mode; optional
//!
//! [enrol]
//! urls = ["https://portal.example.org:8443"]
//! token = "the join token (not needed once enrolled)"
//!
//! [node]
//! name = "w1"                     # a wish; optional
//! roles = ["worker"]              # manager, submit, worker, client, relay
//! group = "biochem"               # optional
//!
//! [overlay]
//! bootstrap = ["/dns4/portal.example.org/udp/4001/quic-v1/p2p/12D3KooW..."]
//! rendezvous_secret = "base64"    # to meet in the shared public overlay; optional
//! public_bootstrap = []           # members of that overlay
//! listen_port = 4001              # TCP and UDP; 0 takes any free port
//!
//! [vpn]
//! port = 4242                     # UDP; 0 takes any free port
//! mtu = 1280                      # optional: 1420 otherwise; each path's own is measured
//! ipv6 = true                     # false: IPv4 alone inside the grid
//! multicast = false               # true: multicast and broadcast to the members of the own group
//! offload = true                  # false: packet by packet, where the kernel's offloads are broken
//! cipher = "chacha20-poly1305"    # or "aes-256-gcm"; optional: what suits the processor
//! tls_port = 443                  # TCP; where a relay takes members that UDP does not reach; 0 takes none
//! relay_limit = 100               # Mbit/s of each session of a relay; optional: no limit
//!
//! [condor]
//! prefer_group = true
//! allow_election = false
//! ```

mod parse;
mod read;
mod values;
mod write;

pub use values::{BootstrapAddr, CaHash, Cipher, EnrolUrl};

use aerie_types::{AddressPool, GridId, GridName, GroupName, NodeName, Roles, VirtualAddr};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::secret::{RendezvousSecret, SecretText};

/// The version of the schema that this program reads and writes.
pub const VERSION: i64 = 1;

/// The overlay's port (TCP and UDP) where the spec names none.
pub const DEFAULT_LISTEN_PORT: u16 = 4001;

/// The tunnel's UDP port where the spec names none.
pub const DEFAULT_VPN_PORT: u16 = 4242;

/// The port at which a relay takes members over TLS where the spec names none: the one that networks let pass which let
/// pass little.
pub const DEFAULT_TLS_PORT: u16 = 443;

/// Everything that a node is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Which grid this is.
    pub grid: Grid,
    /// Where and with which token to enrol.
    pub enrol: Enrol,
    /// What this node is to be.
    pub node: Node,
    /// How it finds the others.
    pub overlay: Overlay,
    /// The tunnel's options.
    pub vpn: Vpn,
    /// HTCondor's options.
    pub condor: Condor,
}

/// Which grid this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// Its name.
    pub name: GridName,
    /// The hash of its CA's certificate: pins the portal and the grid's id.
    pub ca_hash: CaHash,
    /// Its virtual addresses.
    pub pool: AddressPool,
    /// The names of the nodes that lease them, in strict mode: three to five. None without it.
    pub witnesses: Vec<NodeName>,
}

impl Grid {
    /// The grid's id: the first 16 bytes of the CA's hash.
    #[must_use]
    pub fn id(&self) -> GridId {
        self.ca_hash.grid_id()
    }
}

/// Where and with which token to enrol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrol {
    /// The portal's addresses, tried in order. Never empty in a parsed spec.
    pub urls: Vec<EnrolUrl>,
    /// The join token. A node that has enrolled needs none.
    pub token: Option<SecretText>,
}

/// What this node is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The name it wishes for; the CA decides.
    pub name: Option<NodeName>,
    /// Its roles. Never empty in a parsed spec.
    pub roles: Roles,
    /// The user group it belongs to.
    pub group: Option<GroupName>,
    /// The virtual address that it takes, and no other.
    pub address: Option<VirtualAddr>,
}

/// How the node finds the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Members with open ports.
    pub bootstrap: Vec<BootstrapAddr>,
    /// The key of the rendezvous in the shared public overlay.
    pub rendezvous_secret: Option<RendezvousSecret>,
    /// Members of the shared public overlay.
    pub public_bootstrap: Vec<BootstrapAddr>,
    /// The port to listen on, TCP and UDP; 0 takes any free port.
    pub listen_port: u16,
}

impl Default for Overlay {
    fn default() -> Self {
        Self {
            bootstrap: Vec::new(),
            rendezvous_secret: None,
            public_bootstrap: Vec::new(),
            listen_port: DEFAULT_LISTEN_PORT,
        }
    }
}

/// The tunnel's options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vpn {
    /// The UDP port of the data socket; 0 takes any free port.
    pub port: u16,
    /// The MTU of the virtual interface in bytes, where it is not to be measured.
    pub mtu: Option<u16>,
    /// Whether the node takes its IPv6 address in the grid.
    pub ipv6: bool,
    /// Whether multicast and broadcast are exchanged with the other members of the group.
    pub multicast: bool,
    /// Whether the kernel's offloads are used where they are found.
    pub offload: bool,
    /// The preferred cipher, where it is not to follow from the processor. AES is used where both sides prefer it.
    pub cipher: Option<Cipher>,
    /// The TCP port at which a relay takes members over TLS that UDP does not reach. 0: none are taken.
    pub tls_port: u16,
    /// What a relay carries in one session, of which a pair of members has one or two, both directions together, in Mbit/s. No limit where it is not
    /// given.
    pub relay_limit: Option<u16>,
}

impl Default for Vpn {
    fn default() -> Self {
        Self {
            port: DEFAULT_VPN_PORT,
            mtu: None,
            ipv6: true,
            multicast: false,
            offload: true,
            cipher: None,
            tls_port: DEFAULT_TLS_PORT,
            relay_limit: None,
        }
    }
}

impl Vpn {
    /// The smallest MTU allowed: what every IPv4 host must take (RFC 791).
    pub const MIN_MTU: u16 = 576;
    /// The largest MTU allowed: jumbo frames.
    pub const MAX_MTU: u16 = 9000;
}

/// HTCondor's options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condor {
    /// Whether a manager of the node's own group is preferred as its primary.
    pub prefer_group: bool,
    /// Whether a node may be elected as manager where there is none.
    pub allow_election: bool,
}

impl Default for Condor {
    fn default() -> Self {
        Self {
            prefer_group: true,
            allow_election: false,
        }
    }
}

impl Spec {
    /// Reads the text of an `aerie.toml`.
    ///
    /// # Errors
    /// [`Error::Version`] for another version of the schema, [`Error::Spec`] with every mistake found otherwise,
    /// [`Error::TooLarge`] for a text beyond [`MAX_SPEC_BYTES`](crate::MAX_SPEC_BYTES).
    pub fn parse(text: &str) -> Result<Self, Error> {
        parse::parse(text)
    }

    /// The text of an `aerie.toml` that reads back as this spec. It holds the secrets.
    #[must_use]
    pub fn to_toml(&self) -> Zeroizing<String> {
        write::to_toml(self)
    }

    /// This spec without the join token, as a node keeps it once it has enrolled.
    #[must_use]
    pub fn without_token(mut self) -> Self {
        self.enrol.token = None;
        self
    }
}
