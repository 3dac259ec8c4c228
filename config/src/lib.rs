//! A node's configuration: one small blob of bytes, whatever carries it.
//!
//! A grid's administrator hands a machine a *bundle*: a few named files, of which `aerie.toml` is the *spec* and
//! the others are extras. The bundle travels as a 1.44 MB floppy image, as a zip archive, as cloud user-data, or
//! as a directory, and reads back the same from each ([`Bundle`]). On the machine, [`find`] looks through the
//! places where the Grid Appliance looked, in its order: a floppy, a directory, EC2's user-data, Nimbus's.
//!
//! ```text
//!  floppy ─┐
//!  path   ─┤  bytes        Bundle          aerie.toml        Spec
//!  EC2    ─┼──────► form ─────────► files ───────────► text ──────► typed values
//!  Nimbus ─┘  source  sniff   bundle              spec
//! ```
//!
//! Everything read here may be hostile or torn: every read has a named limit, no decoder trusts a length or a
//! pointer of its input, and decoders never panic. Errors say what is wrong, where it stands, and what to do.
//! Secrets (join token, rendezvous secret, the bundle's files) are wiped on drop and never shown by `Debug`.
//!
//! Decoding is pure. Files, devices and the network are touched in [`find`], [`load`], [`Bundle::from_dir`]
//! and [`Bundle::to_dir`] only.

mod bundle;
mod error;
mod explain;
mod secret;
mod source;
mod spec;

pub use bundle::{
    Bundle, Form, MAX_CARRIER_BYTES, MAX_FILE_BYTES, MAX_FILES, MAX_NAME_BYTES, MAX_SPEC_BYTES,
    MAX_TOTAL_BYTES, MAX_USER_DATA_BYTES, SPEC_FILE,
};
pub use error::{Error, Problem, Problems};
pub use explain::{Summary, explain};
pub use secret::{RendezvousSecret, SecretText};
pub use source::{Attempt, Ec2, Found, Outcome, Report, Scan, Search, SourceConfig, SourceKind, find, load};
pub use spec::{
    BootstrapAddr, CaHash, Cipher, Condor, DEFAULT_LISTEN_PORT, DEFAULT_TLS_PORT, DEFAULT_VPN_PORT, Enrol,
    EnrolUrl, Grid, Node, Overlay, Spec, VERSION, Vpn,
};
