//! Every bound of descriptions, placement and the ledger, by name. What exceeds one is refused with the number.

use std::time::Duration;

use crate::amount::Bytes;

pub use aerie_context_proto::limits::{
    MAX_DATA, MAX_DATA_BYTES, MAX_DATA_PER_MEMBER, MAX_DATA_TOTAL, MAX_DOCUMENT_BYTES, MAX_MEMBERS,
    MAX_ROLES, MAX_SETS,
};

/// Deepest nesting of a document in TOML or JSON; a description has five levels.
pub const MAX_DEPTH: usize = 16;

/// Most values in a document, those in lists and tables included. The largest that fits all other limits has fewer.
pub const MAX_VALUES: usize = 100_000;

/// Most faults that are listed; the rest are counted. The first ones are what one mends.
pub const MAX_FAULTS: usize = 50;

/// Most characters shown of a key or a value that is not understood.
pub const MAX_SHOWN: usize = 60;

/// Most members of one set: an index that fits its name, and what one context takes.
pub const MAX_COUNT: u32 = MAX_MEMBERS as u32;

/// Most network interfaces of a workspace: as many as a member reports to the context broker.
pub const MAX_NICS: usize = aerie_context_proto::limits::MAX_INTERFACES;

/// Most blank partitions of a workspace: virtio disks `vdb` to `vdq` beside the image's.
pub const MAX_PARTITIONS: usize = 16;

/// Most virtual CPUs of one workspace: QEMU's bound for a guest on x86 without extended interrupt remapping is
/// 255, with it 4,096; hosts of today stay below this.
pub const MAX_CPUS: u32 = 1024;

/// Most memory of one workspace.
pub const MAX_MEMORY: Bytes = Bytes(64 << 40);

/// Most disk of one workspace, and the largest blank partition.
pub const MAX_DISK: Bytes = Bytes(1 << 50);

/// Longest name of an image in bytes, and its longest version.
pub const MAX_IMAGE_NAME: usize = 128;

/// Longest mount point in bytes.
pub const MAX_MOUNT: usize = 255;

/// The longest life-time that a grid may allow: ten years. What lasts longer is a host.
pub const MAX_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The longest lease of a place that is not committed yet: it takes nobody's time from a quota of hours, so that it is
/// for copying images and no more.
pub const MAX_LEASE: Duration = Duration::from_secs(3600);

/// Most hosts that one placement chooses among.
pub const MAX_HOSTS: usize = 1024;

/// Most members up to which a placement that the heuristics do not find is searched for exactly.
pub const EXACT_MEMBERS: usize = 32;

/// Most hosts that this search looks at, each time that it comes by counted: some tens of milliseconds.
pub const EXACT_STEPS: u32 = 2_000_000;

/// As [`EXACT_STEPS`], for each nearest fit that a refusal tries; there are some fifty of them.
pub const NEAREST_STEPS: u32 = 40_000;

/// Most kinds of members times hosts for which a refusal looks for the amount that would fit: as many as one
/// description has on as many hosts as there may be.
pub const MAX_NEAREST: usize = MAX_SETS * MAX_HOSTS;

/// Most reservations that a ledger holds at one time.
pub const MAX_HOLDS: usize = 65_536;

/// Most members in all of them: as many hosts as one placement knows, with 64 guests each.
pub const MAX_HELD_MEMBERS: usize = 64 * MAX_HOSTS;

/// How long the id of an ended reservation is known at least, so that a late copy of its request is not taken for a new
/// one. Where [`MAX_ENDED`] end in less time, it is shorter.
pub const ENDED_KEPT: Duration = Duration::from_secs(24 * 3600);

/// How many ended reservations' ids are known however long ago they ended: a clock that jumps makes none of these
/// forgotten.
pub const ENDED_ROOM: usize = 4096;

/// Most ended reservations whose ids are known; beyond it the first that ended is forgotten early.
pub const MAX_ENDED: usize = 65_536;

/// Longest id of a request in bytes.
pub const MAX_REQUEST_ID: usize = 64;
