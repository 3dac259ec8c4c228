//! What a store keeps, and what it refuses.

mod content;
mod crashes;
mod keeping;
mod together;

use std::io::Write as _;
use std::path::Path;

use aerie_cluster_proto::description::Image;
use aerie_types::WallMillis;
use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use super::{Begun, Config, ImageInfo, Meta, Put, Store};
use crate::{Digest, Error};

pub(super) const NOW: WallMillis = WallMillis(1_900_000_000_000);
const DAY: u64 = 24 * 3600 * 1000;

pub(super) fn config(dir: &Path) -> Config {
    Config {
        keep_free: 0,
        ..Config::new(dir.join("store"))
    }
}

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    (dir, store)
}

fn image(text: &str) -> Image {
    text.parse().unwrap()
}

/// A raw disk of so many sectors, which differ.
pub(super) fn disk(sectors: u32, salt: u8) -> Vec<u8> {
    let sector = |number: u32| {
        let seed = number.to_be_bytes();
        (0..128_u8).flat_map(move |at| seed.map(|byte| byte.wrapping_mul(31) ^ at ^ salt))
    };
    (0..sectors).flat_map(sector).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn announce(bytes: &[u8], name: Option<&str>) -> Put {
    Put {
        sent: Digest::of(bytes),
        size: bytes.len() as u64,
        name: name.map(image),
        format: None,
        meta: Meta::default(),
    }
}

fn put(store: &Store, bytes: &[u8], name: Option<&str>) -> Result<ImageInfo, Error> {
    let put = announce(bytes, name);
    match store.begin(&put, NOW)? {
        Begun::Present(info) => Ok(*info),
        Begun::At(at) => {
            let rest = &bytes[usize::try_from(at).unwrap()..];
            store.append(put.sent, at, &mut &rest[..], NOW)?;
            store.finish(put.sent, NOW)
        }
    }
}

fn content(store: &Store, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.get(&image(name)).unwrap().copy_from(0, &mut bytes).unwrap();
    bytes
}

/// What is in the folders of a store.
fn files(store: &Store, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(store.dir().join(folder)).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
