//! How images come into a store.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use aerie_cluster_proto::description::Image;
use aerie_types::WallMillis;
use flate2::read::MultiGzDecoder;
use nix::fcntl::Flock;
use rusqlite::{OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Serialize};

use super::begun::{Known, UPLOAD, forget, known, may_be_named, row, used};
use super::{ImageInfo, Meta, Store, index};
use crate::error::BadContent;
use crate::format::{At, GZIP, inspect};
use crate::limits::{BLOCK, MAX_STORED, MAX_UPLOADS, UPLOAD_LIVE, UPLOAD_SYNC};
use crate::manifest::Hashed;
use crate::{Digest, Error, Format, files};

/// Tells one run of the machine from the next.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Announces an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// SHA-256 of all that will be sent; of the packed image, if it is packed by gzip.
    pub sent: Digest,
    /// How many bytes will be sent.
    pub size: u64,
    /// What the image is to be called. Without a version it takes the next number.
    pub name: Option<Image>,
    /// What it is, if its bytes are not to say it.
    pub format: Option<Format>,
    /// What people are told of it.
    pub meta: Meta,
}

/// Where an upload stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// The store has the image, under its new name, and nothing need be sent.
    Present(Box<ImageInfo>),
    /// To be continued at this byte, or to be finished if that is the end.
    At(u64),
}

/// An upload that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// What was announced.
    pub put: Put,
    /// How many bytes came.
    pub have: u64,
    /// When somebody last worked on it.
    pub touched_at: WallMillis,
}

/// An upload's file, locked.
pub(super) struct Taken {
    file: Flock<File>,
    put: Put,
}

impl Store {
    /// Begins an upload, or finds the one that was interrupted.
    ///
    /// # Errors
    /// [`Error::NameTaken`] or [`Error::NoName`], [`Error::Content`] if it is too large, [`Error::BadText`],
    /// [`Error::NoSpace`], [`Error::Quota`], [`Error::TooMany`], [`Error::UploadBusy`], [`Error::File`], or
    /// [`Error::Database`].
    pub fn begin(&self, put: &Put, now: WallMillis) -> Result<Begun, Error> {
        put.meta.check()?;
        let size = put.size;
        if size == 0 || size > MAX_STORED {
            let why = match size {
                0 => BadContent::Empty,
                _ => Error::too_large(false),
            };
            return Err(Error::content("what is announced")(why));
        }
        let path = self.part("uploads", put.sent);
        let boot_id = boot_id()?;
        self.index.write(|tx| {
            let made = index::made_of(tx, put.sent)?;
            if let Some(name) = &put.name {
                may_be_named(tx, name, made)?;
            }
            let find = || index::image_of(tx, made).map_err(Error::database("look an image up"));
            if find()?.is_some_and(|image| !image.damaged) {
                if let Some(name) = &put.name {
                    index::name(tx, name, made)?;
                }
                index::put_again(tx, made, now)?;
                // Whoever is writing the same ends by itself.
                if self.nobody_has(put.sent)? {
                    forget(tx, put.sent)?;
                    files::remove(&path)?;
                }
                let found = find()?.ok_or_else(|| self.no_image(&made.into()))?;
                return Ok(Begun::Present(Box::new(found)));
            }
            let known = row(tx, put.sent)?;
            if let Some(other) = known.as_ref().filter(|known| known.put.size != size) {
                let rests = other.touched_at.plus(UPLOAD_LIVE) <= now;
                if !rests || !self.nobody_has(put.sent)? {
                    return Err(Error::OtherSize {
                        sent: put.sent,
                        known: other.put.size,
                        size,
                    });
                }
            }
            let have = match known.filter(|known| known.put.size == size) {
                Some(known) => match self.resume(&path, &known, &boot_id)? {
                    Some(have) => have,
                    None => self.fresh(&path, put.sent)?,
                },
                None => {
                    self.within_quota(tx, put.sent, size)?;
                    let uploads = tx
                        .query_row("SELECT count(*) FROM uploads", [], |row| index::number(row, 0))
                        .map_err(Error::database("count uploads"))?;
                    if uploads >= MAX_UPLOADS {
                        return Err(Error::too_many_uploads());
                    }
                    self.fresh(&path, put.sent)?
                }
            };
            self.has_room(size - have)?;
            let meta = serde_json::to_string(&put.meta).unwrap_or_default();
            tx.execute(
                "INSERT OR REPLACE INTO uploads (sent, size, durable, boot_id, touched_at, name, format, meta)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    put.sent.0,
                    index::sql(size),
                    index::sql(have),
                    boot_id,
                    index::sql(now.0),
                    put.name.as_ref().map(ToString::to_string),
                    put.format.map(Format::name),
                    meta
                ],
            )
            .map_err(Error::database("keep an upload"))?;
            Ok(Begun::At(have))
        })
    }

    /// How much of an upload is there. `None` if its file is not.
    fn resume(&self, path: &Path, known: &Known, boot_id: &str) -> Result<Option<u64>, Error> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("open", path)(error)),
        };
        let file = files::lock(file, path)?.ok_or(Error::UploadBusy { sent: known.put.sent })?;
        let length = file.metadata().map_err(Error::file("read", path))?.len();
        // After a power cut a file can have a length whose bytes never reached the disk.
        let have = if known.boot_id == boot_id {
            length
        } else {
            length.min(known.durable)
        };
        let have = have.min(known.put.size);
        if have < length {
            file.set_len(have).map_err(Error::file("cut", path))?;
        }
        // What is said to be there is not to be lost by a power cut of this run of the machine.
        file.sync_all().map_err(Error::file("sync", path))?;
        Ok(Some(have))
    }

    /// An empty file for an upload. Never one that was there: it may have become an image. Nor in the place of one that
    /// somebody has, who would go on with a file that has no name.
    fn fresh(&self, path: &Path, sent: Digest) -> Result<u64, Error> {
        if !self.nobody_has(sent)? {
            return Err(Error::UploadBusy { sent });
        }
        files::remove(path)?;
        files::new(path)?;
        files::sync_parent(path)?;
        Ok(0)
    }

    /// Takes what comes next of an upload, until `from` ends; where the upload then stands. What came is kept when
    /// `from` fails, and when this process is killed.
    ///
    /// # Errors
    /// [`Error::NoUpload`], [`Error::UploadBusy`], [`Error::WrongOffset`] if it is not to be continued at `at` or more
    /// comes than was announced, [`Error::NoSpace`], [`Error::File`] of `from` too, or [`Error::Database`].
    pub fn append(&self, sent: Digest, at: u64, from: &mut impl Read, now: WallMillis) -> Result<u64, Error> {
        let path = self.part("uploads", sent);
        let taken = self.take(sent)?;
        let size = taken.put.size;
        let mut have = taken.file.metadata().map_err(Error::file("read", &path))?.len();
        let wrong = |have| Error::WrongOffset { sent, at, have, size };
        if at != have {
            return Err(wrong(have));
        }
        let (mut buffer, mut durable) = (files::buffer(), have);
        let came = loop {
            let read = match from.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => break Err(Error::file("read what is sent as", &path)(error)),
            };
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                break Ok(());
            };
            if have + bytes.len() as u64 > size {
                break Err(wrong(have));
            }
            if let Err(error) = taken.file.write_all_at(bytes, have) {
                break Err(files::writing(&path, size - have)(error));
            }
            have += bytes.len() as u64;
            crate::crash::point("append: written");
            if have - durable >= UPLOAD_SYNC {
                self.durable(&taken, have, now)?;
                durable = have;
                self.has_room(size - have)?;
            }
        };
        // Where the disk is full both fail, and the first says why.
        let noted = self.durable(&taken, have, now);
        came.and(noted).map(|()| have)
    }

    fn durable(&self, taken: &Taken, have: u64, now: WallMillis) -> Result<(), Error> {
        let (sent, path) = (taken.put.sent, self.part("uploads", taken.put.sent));
        taken
            .file
            .sync_data()
            .map_err(files::writing(&path, taken.put.size - have))?;
        self.index.write(|tx| {
            tx.execute(
                "UPDATE uploads SET durable = ?2, touched_at = ?3 WHERE sent = ?1",
                params![sent.0, index::sql(have), index::sql(now.0)],
            )
            .map_err(Error::database("note an upload's progress"))
        })?;
        Ok(())
    }

    /// Makes an image of what was sent: proves its digest, unpacks it if it is packed by gzip, looks at its format, and
    /// gives it the name that it was announced with last. The image is there whole with its name, or not at all. An upload that cannot become an image
    /// is forgotten.
    ///
    /// # Errors
    /// [`Error::Incomplete`], [`Error::WrongDigest`], [`Error::Content`], [`Error::NameTaken`], [`Error::NoSpace`],
    /// [`Error::Quota`], [`Error::NoUpload`], [`Error::UploadBusy`], [`Error::TooMany`], [`Error::File`], or
    /// [`Error::Database`].
    pub fn finish(&self, sent: Digest, now: WallMillis) -> Result<ImageInfo, Error> {
        let taken = self.take(sent)?;
        let staging = self.part("staging", sent);
        let made = self.make(&taken, &staging, now);
        if made.is_err() {
            files::remove(&staging)?;
        }
        if let Err(Error::WrongDigest { .. } | Error::Content { .. }) = made {
            self.drop_upload(sent)?;
        }
        made
    }

    pub(super) fn make(&self, taken: &Taken, staging: &Path, now: WallMillis) -> Result<ImageInfo, Error> {
        let Put { sent, size, .. } = taken.put;
        let path = self.part("uploads", sent);
        let what = taken
            .put
            .name
            .as_ref()
            .map_or_else(|| format!("the upload {sent}"), ToString::to_string);
        let have = taken.file.metadata().map_err(Error::file("read", &path))?.len();
        if have != size {
            return Err(Error::Incomplete { sent, have, size });
        }
        self.durable(taken, have, now)?;
        let mut magic = [0; 2];
        files::fill(&mut At(&taken.file, 0), &mut magic).map_err(Error::file("read", &path))?;
        let packed = magic == GZIP;
        let check = |found: Digest| match found == sent {
            true => Ok(()),
            false => Err(Error::WrongDigest {
                what: what.clone(),
                expected: sent,
                found,
            }),
        };
        files::remove(staging)?;
        let (file, hashed) = if packed {
            check(Digest::of_file(&taken.file).map_err(Error::file("read", &path))?)?;
            let file = files::new(staging)?;
            let length = self.unpack(&taken.file, &file, staging, &what, sent)?;
            let hashed = Hashed::of(&file, length).map_err(Error::file("read", staging))?;
            (file, hashed)
        } else {
            let hashed = Hashed::of(&taken.file, size).map_err(Error::file("read", &path))?;
            check(hashed.digest)?;
            // A second name, so that the upload is still there if this process ends before the image is.
            fs::hard_link(&path, staging).map_err(Error::file("link", &path))?;
            let file = File::open(staging).map_err(Error::file("open", staging))?;
            // What was read is what becomes the image, and not what has its name by now.
            if !same_file(&file, &taken.file) {
                return Err(Error::NoUpload { sent });
            }
            (file, hashed)
        };
        let manifest = hashed.manifest(inspect(&file, &what, taken.put.format)?);
        file.sync_all().map_err(files::writing(staging, size))?;
        files::sync_parent(staging)?;
        crate::crash::point("finish: staged");
        let image = self.image_path(manifest.digest());
        let info = self.index.write(|tx| {
            if packed {
                self.within_quota(tx, sent, manifest.size())?;
            }
            index::keep(tx, &manifest, &taken.put.meta, now)?;
            if packed {
                tx.execute(
                    "INSERT OR REPLACE INTO packed (sent, digest) VALUES (?1, ?2)",
                    params![sent.0, manifest.digest().0],
                )
                .map_err(Error::database("note what was packed"))?;
            }
            if let Some(name) = &taken.put.name {
                index::name(tx, name, manifest.digest())?;
            }
            forget(tx, sent)?;
            files::rename(staging, &image)?;
            crate::crash::point("finish: renamed");
            let found =
                index::image_of(tx, manifest.digest()).map_err(Error::database("look an image up"))?;
            found.ok_or_else(|| self.no_image(&manifest.digest().into()))
        })?;
        // Renaming one name of a file to another of its names does nothing.
        files::remove(staging)?;
        files::remove(&path)?;
        crate::crash::point("finish: upload removed");
        // Nobody writes to an image by mistake. Before, the upload was to be written by this name's other one.
        file.set_permissions(fs::Permissions::from_mode(0o400))
            .map_err(Error::file("protect", &image))?;
        Ok(info)
    }

    /// Unpacks an upload, with holes where there are only zeros; how long it is.
    fn unpack(&self, from: &File, to: &File, path: &Path, what: &str, sent: Digest) -> Result<u64, Error> {
        let bad = |why| Error::content(what)(why);
        let limit = self
            .index
            .read("count bytes", |tx| used(tx, sent))
            .map(|used| self.config.max_bytes.unwrap_or(u64::MAX).saturating_sub(used))?;
        let mut input = MultiGzDecoder::new(BufReader::with_capacity(BLOCK, At(from, 0)));
        let (mut buffer, mut length, mut looked) = (files::buffer(), 0, 0);
        loop {
            let read = files::fill(&mut input, &mut buffer)
                .map_err(|error| bad(BadContent::Packed(error.to_string())))?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            let end = length + read as u64;
            if end > MAX_STORED {
                return Err(bad(Error::too_large(true)));
            }
            if end > limit {
                return Err(Error::Quota {
                    need: end,
                    used: self.config.max_bytes.unwrap_or(u64::MAX).saturating_sub(limit),
                    limit: self.config.max_bytes.unwrap_or(u64::MAX),
                });
            }
            if bytes.iter().any(|byte| *byte != 0) {
                if looked == 0 || end - looked >= UPLOAD_SYNC {
                    self.has_room(UPLOAD_SYNC)?;
                    looked = end;
                }
                to.write_all_at(bytes, length)
                    .map_err(files::writing(path, bytes.len() as u64))?;
            }
            length = end;
        }
        to.set_len(length).map_err(files::writing(path, length))?;
        Ok(length)
    }

    /// Gives an upload up.
    ///
    /// # Errors
    /// [`Error::NoUpload`], [`Error::UploadBusy`], [`Error::File`], or [`Error::Database`].
    pub fn give_up(&self, sent: Digest) -> Result<(), Error> {
        let _taken = self.take(sent)?;
        self.drop_upload(sent)
    }

    fn drop_upload(&self, sent: Digest) -> Result<(), Error> {
        self.index.write(|tx| {
            files::remove(&self.part("uploads", sent))?;
            forget(tx, sent)
        })
    }

    /// Every upload that has not ended.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn uploads(&self) -> Result<Vec<Upload>, Error> {
        let known = self.index.read("list uploads", |tx| {
            tx.prepare_cached(&format!("{UPLOAD} ORDER BY sent"))?
                .query_map([], known)?
                .collect::<Result<Vec<_>, _>>()
        })?;
        let have = |put: &Put| fs::metadata(self.part("uploads", put.sent)).map_or(0, |meta| meta.len());
        let upload = |known: Known| Upload {
            have: have(&known.put),
            put: known.put,
            touched_at: known.touched_at,
        };
        Ok(known.into_iter().map(upload).collect())
    }

    /// Puts a file: reads it once for its digest, then sends what the store lacks of it. `progress` is told bytes sent
    /// and bytes in all. Interrupted, it goes on where it was when it is called again.
    ///
    /// # Errors
    /// Those of [`Self::begin`], [`Self::append`] and [`Self::finish`], and [`Error::SourceEnded`].
    pub fn put_file(
        &self,
        path: &Path,
        name: Option<&Image>,
        format: Option<Format>,
        meta: &Meta,
        now: WallMillis,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<ImageInfo, Error> {
        let mut file = File::open(path).map_err(Error::file("open", path))?;
        let size = file.metadata().map_err(Error::file("read", path))?.len();
        let put = Put {
            sent: Digest::of_file(&file).map_err(Error::file("read", path))?,
            size,
            name: name.cloned(),
            format,
            meta: meta.clone(),
        };
        let info = match self.send(&mut file, path, &put, now, progress) {
            // Somebody who puts the same was faster.
            Err(Error::NoUpload { .. }) => match self.begin(&put, now)? {
                Begun::Present(info) => *info,
                Begun::At(_) => return Err(Error::NoUpload { sent: put.sent }),
            },
            sent => sent?,
        };
        // Of two that put the same at one time the upload has the name of the one that began last.
        let Some(name) = name.filter(|name| !info.has_name(name)) else {
            return Ok(info);
        };
        self.tag(&info.digest.into(), name)?;
        self.find(&info.digest.into())
    }

    fn send(
        &self,
        file: &mut File,
        path: &Path,
        put: &Put,
        now: WallMillis,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<ImageInfo, Error> {
        let size = put.size;
        let mut at = match self.begin(put, now)? {
            Begun::Present(info) => return Ok(*info),
            Begun::At(at) => at,
        };
        file.seek(SeekFrom::Start(at))
            .map_err(Error::file("read", path))?;
        progress(at, size);
        while at < size {
            let next = self.append(put.sent, at, &mut (&mut *file).take(UPLOAD_SYNC), now)?;
            if next == at {
                return Err(Error::SourceEnded {
                    path: path.to_owned(),
                    have: at,
                    size,
                });
            }
            at = next;
            progress(at, size);
        }
        self.finish(put.sent, now)
    }

    /// Takes an upload's file for oneself.
    pub(super) fn take(&self, sent: Digest) -> Result<Taken, Error> {
        let path = self.part("uploads", sent);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NoUpload { sent }),
            Err(error) => return Err(Error::file("open", &path)(error)),
        };
        let file = files::lock(file, &path)?.ok_or(Error::UploadBusy { sent })?;
        // Whoever had the lock may have ended the upload, and another may have begun.
        let same = match (file.metadata(), fs::metadata(&path)) {
            (Ok(locked), Ok(named)) => locked.ino() == named.ino(),
            _ => false,
        };
        let known = self.index.read("look an upload up", |tx| {
            tx.prepare_cached(&format!("{UPLOAD} WHERE sent = ?1"))?
                .query_row([sent.0], known)
                .optional()
        })?;
        match known.filter(|_| same) {
            Some(known) => Ok(Taken { file, put: known.put }),
            None => Err(Error::NoUpload { sent }),
        }
    }

    /// Whether no upload of this process or another has the file; what is so found stays so while the value lives.
    pub(super) fn idle(&self, sent: Digest) -> Result<Option<Flock<File>>, Error> {
        let path = self.part("uploads", sent);
        match File::open(&path) {
            Ok(file) => files::lock(file, &path),
            Err(error) => Err(Error::file("open", &path)(error)),
        }
    }

    /// Whether an upload's file may be removed. Within a change of the index it stays so: a file gets its name in one.
    fn nobody_has(&self, sent: Digest) -> Result<bool, Error> {
        match self.idle(sent) {
            Ok(idle) => Ok(idle.is_some()),
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Refuses what the disk has no room for.
    fn has_room(&self, need: u64) -> Result<(), Error> {
        let free = files::free(&self.config.dir)?.saturating_sub(self.config.keep_free);
        if need > free {
            return Err(Error::NoSpace {
                path: self.config.dir.clone(),
                need,
                free,
            });
        }
        Ok(())
    }

    fn within_quota(&self, tx: &Transaction<'_>, sent: Digest, need: u64) -> Result<(), Error> {
        let Some(limit) = self.config.max_bytes else {
            return Ok(());
        };
        let used = used(tx, sent).map_err(Error::database("count bytes"))?;
        if used.saturating_add(need) > limit {
            return Err(Error::Quota { need, used, limit });
        }
        Ok(())
    }
}

/// Whether both are one file. What cannot be looked at is not.
fn same_file(one: &File, other: &File) -> bool {
    let place = |file: &File| file.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
    place(one).is_some() && place(one) == place(other)
}

fn boot_id() -> Result<String, Error> {
    fs::read_to_string(BOOT_ID).map_err(Error::file("read", Path::new(BOOT_ID)))
}
