use std::path::{Path, PathBuf};
use std::sync::Arc;

use aerie_cluster_proto::description::Image;

use crate::Digest;
use crate::limits::{MAX_CACHED, MAX_FETCHES, MAX_IMAGES, MAX_STORED, MAX_TEXT, MAX_UPLOADS, MAX_VIRTUAL};

/// Why the content of a file is not taken as an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadContent {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It is of a kind that is known and not kept.
    #[error("it is {0}, which is not kept here; convert it with `qemu-img convert -O qcow2`")]
    Kind(&'static str),
    /// Its length is not that of a disk.
    #[error(
        "it has {0} bytes, which is no whole number of sectors of 512 bytes, so that it is no raw disk; it may be cut short"
    )]
    NoDisk(u64),
    /// It is said to be of another format.
    #[error("it is said to be {said} and is {found}; say what it is, or leave the format out")]
    NotAsSaid {
        /// What was said.
        said: crate::Format,
        /// What it is.
        found: crate::Format,
    },
    /// It refers to another image.
    #[error(
        "it is made on top of another image, which it names itself; flatten it with `qemu-img convert -O qcow2`"
    )]
    Backing,
    /// Its data are somewhere else.
    #[error(
        "its data are in another file, which it names itself; flatten it with `qemu-img convert -O qcow2`"
    )]
    ExternalData,
    /// The header makes no sense.
    #[error("its qcow2 header is not usable: {0}; look at it with `qemu-img check`")]
    Header(&'static str),
    /// The disk is too large.
    #[error("it describes a disk of {0} bytes, and the largest is {MAX_VIRTUAL}")]
    Disk(u64),
    /// Its manifest says another disk.
    #[error(
        "its manifest says a disk of {said} bytes and it is one of {found}; put it into the repository again"
    )]
    OtherDisk {
        /// What the manifest says.
        said: u64,
        /// What it is.
        found: u64,
    },
    /// It is too large.
    #[error("it has more than {limit} bytes{}, which is the limit", if *unpacked { " when it is unpacked" } else { "" })]
    TooLarge {
        /// How many there may be.
        limit: u64,
        /// Whether that is of what was packed.
        unpacked: bool,
    },
    /// It cannot be unpacked.
    #[error("it is packed by gzip and cannot be unpacked: {0}; pack it again")]
    Packed(String),
}

/// Why bytes are no manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadManifest {
    /// They do not begin as one.
    #[error("it does not begin as a manifest of this release")]
    Magic,
    /// A number is out of its bounds.
    #[error("its {0} is out of bounds")]
    Bounds(&'static str),
    /// The digests are not as many as the size asks for.
    #[error("it has not as many digests as chunks")]
    Length,
    /// It is another one.
    #[error("it is not the one that was asked for")]
    Other,
}

/// What can go wrong with images.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such image.
    #[error("there is no image {image} in {place}; list those that there are, or put it there first")]
    NoImage {
        /// What was asked for.
        image: Image,
        /// Where.
        place: String,
    },
    /// The name is of another image.
    #[error(
        "the name {image} is of another image, {of}; use another version, or remove that name from it first"
    )]
    NameTaken {
        /// The name.
        image: Image,
        /// What has it.
        of: Digest,
    },
    /// A digest where a name is needed.
    #[error("{0} is the digest of an image and cannot be its name; write a name such as lab/nfs@2")]
    NoName(Image),
    /// A text that is no digest.
    #[error("'{shown}' is no SHA-256; write 64 hexadecimal digits")]
    BadDigest {
        /// The text, cut and made safe to print.
        shown: String,
    },
    /// A text that is too long or has characters that cannot be shown.
    #[error("the {what} is not usable: write up to {MAX_TEXT} bytes without control characters")]
    BadText {
        /// What it is of.
        what: &'static str,
    },
    /// The content is no image.
    #[error("{what} is not taken as an image: {why}")]
    Content {
        /// What it is.
        what: String,
        /// Why.
        #[source]
        why: BadContent,
    },
    /// What came is not what was announced.
    #[error(
        "{what} has the digest {found} and not {expected} as announced; it was damaged on its way or changed meanwhile, and is forgotten: send it again"
    )]
    WrongDigest {
        /// What it is.
        what: String,
        /// What was announced.
        expected: Digest,
        /// What it has.
        found: Digest,
    },
    /// An upload is not complete.
    #[error("the upload {sent} has {have} of {size} bytes; continue it at byte {have}")]
    Incomplete {
        /// The digest of what is sent.
        sent: Digest,
        /// How much came.
        have: u64,
        /// How much was announced.
        size: u64,
    },
    /// An upload is continued at the wrong place.
    #[error(
        "the upload {sent} was continued at byte {at} and has {have} bytes of {size}; continue it at byte {have}, up to its end"
    )]
    WrongOffset {
        /// The digest of what is sent.
        sent: Digest,
        /// Where it was continued.
        at: u64,
        /// How much came.
        have: u64,
        /// How much was announced.
        size: u64,
    },
    /// The file changed while it was read.
    #[error("{} ended after {have} of {size} bytes; send it again when nobody changes it", path.display())]
    SourceEnded {
        /// The file.
        path: PathBuf,
        /// How much came.
        have: u64,
        /// How much there was.
        size: u64,
    },
    /// Another process works on the upload.
    #[error("the upload {sent} is being continued by somebody else; wait until that has ended")]
    UploadBusy {
        /// The digest of what is sent.
        sent: Digest,
    },
    /// An upload is announced with another size than it has.
    #[error(
        "the upload {sent} is under way with {known} bytes and was announced with {size}; the same content has one size: see which of both is right, and give the upload up if it is yours"
    )]
    OtherSize {
        /// The digest of what is sent.
        sent: Digest,
        /// The size that was announced first.
        known: u64,
        /// The size that was announced now.
        size: u64,
    },
    /// There is no such upload.
    #[error("there is no upload {sent}; begin it, it may have ended or been given up")]
    NoUpload {
        /// The digest of what is sent.
        sent: Digest,
    },
    /// There are too many of something.
    #[error("there are {limit} {what}, which is the limit; remove some that are not needed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: u64,
    },
    /// The disk has no room.
    #[error("{} has no room: {need} bytes are needed and {free} are free; remove something, or use a larger disk", path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// How much is needed.
        need: u64,
        /// How much there is that may be used.
        free: u64,
    },
    /// The store may not grow so far.
    #[error(
        "the store may have {limit} bytes and has {used}, so that {need} more do not fit; collect what is not needed, or raise the limit"
    )]
    Quota {
        /// How much is needed.
        need: u64,
        /// How much there is.
        used: u64,
        /// How much there may be.
        limit: u64,
    },
    /// The cache has no room.
    #[error(
        "the cache may have {limit} bytes, of which {held} are of images that are used or being fetched, so that {need} do not fit; stop guests that use other images, or raise the limit"
    )]
    CacheFull {
        /// How much is needed.
        need: u64,
        /// How much cannot be evicted.
        held: u64,
        /// How much there may be.
        limit: u64,
    },
    /// The image is damaged on the disk.
    #[error("the image {digest} is damaged and was taken out of use; put the same content again to mend it")]
    Quarantined {
        /// The image.
        digest: Digest,
    },
    /// Somebody holds no lease.
    #[error("{holder} holds no lease of image {digest}; list the leases to see who does")]
    NoLease {
        /// The image.
        digest: Digest,
        /// Who was named.
        holder: String,
    },
    /// A clone has the name.
    #[error("there is a clone {name}; remove it first, or use another name")]
    CloneExists {
        /// The name.
        name: String,
    },
    /// There is no such clone.
    #[error("there is no clone {name}; list the clones to see which there are")]
    NoClone {
        /// The name.
        name: String,
    },
    /// The name of a clone or a holder cannot be that of a file.
    #[error(
        "'{shown}' cannot be used as {what}; use up to 128 letters, digits and '.-_', a letter or digit first"
    )]
    BadName {
        /// What was given, made safe to print.
        shown: String,
        /// What it is for.
        what: &'static str,
    },
    /// A manifest cannot be used.
    #[error("the manifest from {from} is not usable: {why}; another source may have a good one")]
    Manifest {
        /// Where it came from.
        from: String,
        /// Why.
        #[source]
        why: BadManifest,
    },
    /// Nobody has what is missing.
    #[error(
        "the image {image} cannot be had: {missing} of {chunks} chunks are missing and nobody gives them ({tried}); see whether the repository runs, what is here is kept"
    )]
    NoSource {
        /// The image.
        image: String,
        /// How many chunks are missing.
        missing: u32,
        /// Of how many.
        chunks: u32,
        /// Who was asked, and what became of it.
        tried: String,
    },
    /// A source cannot be asked.
    #[error("{source_name} cannot be asked for {what}: {why}; see whether it runs and can be reached")]
    Ask {
        /// The source.
        source_name: String,
        /// What for.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// Too many fetches.
    #[error("{MAX_FETCHES} images are being fetched, which is the limit; wait until one has come")]
    TooManyFetches,
    /// The same error came to several that waited.
    #[error(transparent)]
    Shared(#[from] Arc<Error>),
    /// The database refused.
    #[error("the index of images could not {what}: {source}; check the disk's space and the folder's owner")]
    Database {
        /// What was tried.
        what: &'static str,
        /// The database's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// The database is of a later release.
    #[error("{} was written by a later release of Aerie (version {found}); use that release", path.display())]
    LaterVersion {
        /// The database's file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// Another process has the folder.
    #[error("another process uses the cache {}; stop it first, or name another folder", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// A file.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file of one's own is not what it should be.
    #[error("{} is damaged: {why}; restore it, or remove it and put the image again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A server cannot listen.
    #[error("cannot serve images: {source}; is another server running there?")]
    Listen {
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A task ended by itself.
    #[error("the work on an image ended early; this is a defect, try again")]
    Ended,
}

impl Error {
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }

    pub(crate) fn database(what: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Database { what, source }
    }

    pub(crate) fn content(what: impl Into<String>) -> impl FnOnce(BadContent) -> Self {
        let what = what.into();
        move |why| Self::Content { what, why }
    }

    pub(crate) const fn too_many_images() -> Self {
        Self::TooMany {
            what: "images, names, leases or clones",
            limit: MAX_IMAGES,
        }
    }

    pub(crate) const fn too_many_uploads() -> Self {
        Self::TooMany {
            what: "uploads that have not ended",
            limit: MAX_UPLOADS,
        }
    }

    pub(crate) const fn too_many_cached() -> Self {
        Self::TooMany {
            what: "images in the cache that are used",
            limit: MAX_CACHED as u64,
        }
    }

    pub(crate) const fn too_large(unpacked: bool) -> BadContent {
        BadContent::TooLarge {
            limit: MAX_STORED,
            unpacked,
        }
    }
}
