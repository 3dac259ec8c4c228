//! Every bound of a context, by name. What exceeds one is refused with the name and the number.

/// Most bytes of a cluster document, in either form. The largest that fits all other limits is far below it.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;

/// Most elements in an XML document.
pub const MAX_ELEMENTS: usize = 20_000;

/// Deepest nesting of an XML document; a cluster document has seven levels.
pub const MAX_DEPTH: usize = 16;

/// Most attributes of one XML element.
pub const MAX_ATTRIBUTES: usize = 16;

/// Most sets of equal members in a cluster.
pub const MAX_SETS: usize = 64;

/// Most members of a context, over its whole life at one time: four times the largest that was tried.
pub const MAX_MEMBERS: usize = 4096;

/// Most roles that a set provides, and most that it requires.
pub const MAX_ROLES: usize = 32;

/// Most network interfaces that a member reports.
pub const MAX_INTERFACES: usize = 8;

/// Most places to deploy one set at.
pub const MAX_DEPLOYS: usize = 16;

/// Most data blobs that a set requires, and most that a member provides.
pub const MAX_DATA_PER_MEMBER: usize = 16;

/// Most data blobs that a context has from its creator.
pub const MAX_DATA: usize = 64;

/// Longest data blob of the creator's in bytes: keys, tables, small configuration files; images travel elsewhere.
pub const MAX_DATA_BYTES: usize = 64 * 1024;

/// Longest data blob of a member's in bytes. Each may be multiplied by the number of members.
pub const MAX_MEMBER_DATA_BYTES: usize = 8 * 1024;

/// Most bytes of data blobs in a context together, so that one answer to a member stays within a few megabytes.
pub const MAX_DATA_TOTAL: usize = 4 * 1024 * 1024;

/// Longest name of a set, role, data blob or step in bytes: they become names of files and of DNS labels.
pub const MAX_NAME: usize = 63;

/// Longest host name in bytes (RFC 1035).
pub const MAX_HOST_NAME: usize = 253;

/// Longest public host key in bytes: RSA with 8,192 bits has some 1,400.
pub const MAX_HOST_KEY: usize = 2048;

/// Longest free text of a document (image, network, cloud) in bytes.
pub const MAX_TEXT: usize = 512;

/// Most steps in an exit report. The agent has seven phases.
pub const MAX_STEPS: usize = 32;

/// Longest log kept of one step in bytes: its end, where errors are.
pub const MAX_STEP_LOG: usize = 4 * 1024;

/// Most bytes of logs in one exit report. A broker keeps the last report of every member: 64 MB for the largest context.
pub const MAX_LOGS: usize = 16 * 1024;

/// Longest message of an exit report in bytes.
pub const MAX_MESSAGE: usize = 1024;

/// Most attempts that a member may have at one version.
pub const MAX_ATTEMPTS: u32 = 100;

/// The longest time limit of a context: a week. What takes longer is no deployment.
pub const MAX_LIMIT_SECS: u64 = 7 * 24 * 3600;

/// Most versions of one context. Beyond it no change is accepted.
pub const MAX_VERSIONS: u32 = 65_536;

/// Most lines of a status that say who waits for what; the rest is counted.
pub const MAX_WAITS: usize = 64;
