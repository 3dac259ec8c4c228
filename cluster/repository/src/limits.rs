//! Every bound of the repository, by name.

use std::time::Duration;

/// The smallest chunk in bytes. Below it the digests and the requests weigh more than what they are for.
pub const MIN_CHUNK: u32 = 64 << 10;

/// The largest chunk in bytes: what a server and a host hold of one in memory.
pub const MAX_CHUNK: u32 = 4 << 20;

/// Most chunks of an image: its manifest has 8 MiB of digests.
pub const MAX_CHUNKS: u32 = 1 << 18;

/// The largest image as it is stored, in bytes: 1 TiB, as many of the largest chunks as there may be.
pub const MAX_STORED: u64 = MAX_CHUNK as u64 * MAX_CHUNKS as u64;

/// The largest disk that an image may describe, in bytes: 64 TiB, beyond any that a host could back.
pub const MAX_VIRTUAL: u64 = 64 << 40;

/// How many chunks an image is cut into at least, where its chunks can be smaller: as many as keep tens of hosts busy
/// with different ones.
pub const WANTED_CHUNKS: u64 = 512;

/// The longest manifest in bytes.
pub const MAX_MANIFEST: usize = crate::manifest::HEADER + 32 * MAX_CHUNKS as usize;

/// Most images in a store, and names and leases of them.
pub const MAX_IMAGES: u64 = 65_536;

/// Most uploads that have begun and not ended.
pub const MAX_UPLOADS: u64 = 256;

/// How much of an upload is written between two moments at which it is made durable, in bytes. A power cut costs no
/// more than this; a kill costs nothing.
pub const UPLOAD_SYNC: u64 = 16 << 20;

/// How long an upload that nobody continues is kept.
pub const UPLOAD_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long an upload that was worked on is taken to be going on, so that nobody announces it with another size. Between
/// two requests of one client there are seconds.
pub const UPLOAD_LIVE: Duration = Duration::from_secs(600);

/// How long an image that has no name and no lease is kept after it was put last, so that whoever put it can still name it.
pub const UNNAMED_KEPT: Duration = Duration::from_secs(3600);

/// Longest description, creator or holder in bytes.
pub const MAX_TEXT: usize = 1024;

/// Most damaged chunks that are listed; the rest are counted.
pub const MAX_LISTED: usize = 64;

/// How much is read or written at a time, in bytes.
pub const BLOCK: usize = 256 << 10;

/// How long one process waits for another's change of the index. A change is a matter of milliseconds, but for one
/// that removes large files.
pub const INDEX_WAIT: Duration = Duration::from_secs(60);

/// Most sources that a host asks for one image. With more of them each is asked seldom and news of them is late.
pub const MAX_PEERS: usize = 64;

/// Most connections that a server has at a time: each source of [`MAX_PEERS`] with as many as it may have.
pub const MAX_CONNECTIONS: usize = 256;

/// Most of these from one address: as many fetches as a host may have, each with its requests and its news.
pub const MAX_CONNECTIONS_OF_ONE: usize = 3 * MAX_FETCHES;

/// Most chunks that a server holds in memory at a time: 64 MiB of the largest. Who asks for more is told to wait.
pub const MAX_SERVED_CHUNKS: usize = 16;

/// How long a connection may stand still, whichever side is to speak.
pub const STALL: Duration = Duration::from_secs(20);

/// How long the head of a request may take, from when the one before was answered.
pub const HEAD: Duration = Duration::from_secs(10);

/// How long it may take to send an answer, of which there are [`MAX_SERVED_CHUNKS`] at a time. Whoever asks for a chunk
/// waits no longer.
pub const SENDING: Duration = Duration::from_secs(60);

/// How long it may take to connect.
pub const CONNECT: Duration = Duration::from_secs(5);

/// The longest answer that is no chunk and no manifest, in bytes.
pub const MAX_ANSWER: usize = 64 << 10;

/// Images for which a server remembers who has begun to fetch them.
pub const MAX_ANNOUNCED_IMAGES: usize = 256;

/// Most ports of one address at which one image is said to be: a host, and the one that it was before it began anew.
pub const MAX_PORTS_OF_ONE: usize = 2;

/// How long a host is remembered as one that fetches or has an image.
pub const ANNOUNCED_KEPT: Duration = Duration::from_secs(60);

/// Most images that a host fetches at a time.
pub const MAX_FETCHES: usize = 16;

/// Most images in a host's cache.
pub const MAX_CACHED: usize = 4096;
