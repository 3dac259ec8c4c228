//! The register's database when its process is killed at any moment, and when its file is damaged.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aerie_dht::SqliteStore;
use aerie_dht_proto::{Change, Rows, Store, Table};
use aerie_types::{Instance, NodeName, PeerId, VirtualAddr};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

mod common;

use common::wire::Answer;
use common::{OTHERS, World};

/// Where the child finds the database.
const PATH: &str = "AERIE_TEST_REGISTER";

/// Rounds of killing; `AERIE_TEST_KILLS` asks for more.
const KILLS: u64 = 12;

fn kills() -> u64 {
    let asked = std::env::var("AERIE_TEST_KILLS").ok();
    asked.map_or(KILLS, |asked| {
        asked.parse().expect("AERIE_TEST_KILLS is a number")
    })
}

#[test]
#[ignore = "a process that another test starts and kills"]
fn grants_until_it_is_killed() {
    let path = PathBuf::from(std::env::var(PATH).unwrap());
    let mut world = World::over(SqliteStore::open(&path).unwrap());
    let mut out = std::io::stdout();
    for seq in 0.. {
        for member in OTHERS {
            let terms = world.terms(member, world.addr(seq % 10 * 6 + member as u32));
            match world.claim(member, &terms, seq.into(), None) {
                Answer::Granted { receipt, .. } => {
                    writeln!(out, "granted {} {}", hex(&terms.key.0), receipt.number).unwrap();
                    out.flush().unwrap();
                }
                Answer::Unready => writeln!(out, "refused").unwrap(),
                other => panic!("{other:?}"),
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The numbers of the grants in the database, by key, and the number of the last one.
fn stored(path: &Path) -> (BTreeMap<String, u64>, u64) {
    let mut store = SqliteStore::open(path).unwrap();
    let grants = store.load(Table::Grants).unwrap();
    let number_of = |value: &[u8]| {
        type Row = (PeerId, VirtualAddr, NodeName, Instance, u64, u64);
        let ((.., number), _): (Row, _) = postcard::take_from_bytes(value).unwrap();
        number
    };
    let grants = grants
        .iter()
        .map(|(key, value)| (hex(key), number_of(value)))
        .collect();
    let meta = store.load(Table::Meta).unwrap();
    let last = meta.iter().find(|(name, _)| name == b"number").unwrap();
    (grants, u64::from_be_bytes(last.1.as_slice().try_into().unwrap()))
}

#[test]
fn what_a_killed_register_had_answered_is_in_its_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("register.sqlite");
    let seed = std::process::id().into();
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut before = 0;
    for round in 0..kills() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "grants_until_it_is_killed", "--ignored", "--nocapture"])
            .env(PATH, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let enough = 1 + rng.next_u64() % 60;
        let mut answered: BTreeMap<String, u64> = BTreeMap::new();
        let mut take = |line: std::io::Result<String>| {
            // The kill may have cut the last line.
            let line = line.unwrap_or_default();
            assert_ne!(line, "refused", "the disk has room");
            let mut words = line
                .split(' ')
                .skip_while(|word| !word.ends_with("granted"))
                .skip(1);
            if let (Some(key), Some(Ok(number))) = (words.next(), words.next().map(str::parse)) {
                answered.insert(key.to_owned(), number);
                true
            } else {
                false
            }
        };
        let mut granted = 0;
        while granted < enough {
            granted += u64::from(take(lines.next().expect("the child runs")));
        }
        // SIGKILL, wherever it is.
        child.kill().unwrap();
        child.wait().unwrap();
        granted += lines.map(|line| u64::from(take(line))).sum::<u64>();
        let (stored, last) = stored(&path);
        for (key, number) in &answered {
            let kept = stored.get(key);
            assert!(
                kept >= Some(number),
                "round {round}: {key} {number}, stored {kept:?}"
            );
        }
        let highest = answered.values().max().copied().unwrap();
        assert!(last >= highest && highest > before, "{last} {highest} {before}");
        assert!(last <= highest + 1, "at most one was written and not answered");
        assert!(granted >= enough);
        before = last;
    }
}

fn change(number: u32, table: Table) -> Change {
    Change {
        table,
        key: number.to_be_bytes().to_vec(),
        value: Some(vec![number as u8; 300]),
    }
}

/// A database of several pages in its main file, and its rows.
fn sound(path: &Path) -> Vec<Rows> {
    let mut store = SqliteStore::open(path).unwrap();
    for number in 0..200 {
        let tables = [Table::Grants, Table::Meta].map(|table| change(number, table));
        store.persist(&tables).unwrap();
    }
    Table::ALL.map(|table| store.load(table).unwrap()).to_vec()
}

/// All rows, or why not.
fn read(path: &Path) -> Result<Vec<Rows>, String> {
    let mut store = SqliteStore::open(path).map_err(|error| error.to_string())?;
    let rows = Table::ALL.map(|table| store.load(table).map_err(|error| error.to_string()));
    rows.into_iter().collect()
}

#[test]
fn a_file_that_is_no_database_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("register.sqlite");
    std::fs::write(&path, [b'x'; 5000]).unwrap();
    let message = read(&path).unwrap_err();
    for part in [
        "register.sqlite is damaged",
        "remove it together with its -wal file",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_database_cut_or_overwritten_anywhere_is_whole_or_empty_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("register.sqlite");
    let rows = sound(&path);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() > 20 * 4096, "{} bytes", bytes.len());
    assert_eq!(read(&path), Ok(rows.clone()));
    let damaged = dir.path().join("damaged.sqlite");
    let (mut refused, mut empty) = (0, 0);
    let mut check = |damage: &str, bytes: &[u8]| {
        for suffix in ["", "-wal"] {
            let _ = std::fs::remove_file(dir.path().join(format!("damaged.sqlite{suffix}")));
        }
        std::fs::write(&damaged, bytes).unwrap();
        match read(&damaged) {
            Err(_) => refused += 1,
            Ok(found) if found.iter().all(Vec::is_empty) => {
                assert_eq!(bytes.len(), 0, "{damage} looks like a new one");
                empty += 1;
            }
            Ok(found) => assert!(found == rows, "{damage}: some rows are gone, and nobody was told"),
        }
    };
    for length in (0..bytes.len()).step_by(1024) {
        check(&format!("cut to {length} bytes"), &bytes[..length]);
    }
    for page in 0..bytes.len() / 4096 {
        let mut zeroed = bytes.clone();
        zeroed[page * 4096..(page + 1) * 4096].fill(0);
        check(&format!("page {page} zeroed"), &zeroed);
    }
    assert_eq!(
        empty, 1,
        "one of no bytes is a new one: its node has to join anew"
    );
    assert!(refused > 20, "{refused}");
}

#[test]
fn a_database_that_was_removed_leaves_nothing_behind_in_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("register.sqlite");
    let copy = dir.path().join("copy.sqlite");
    let mut store = SqliteStore::open(&path).unwrap();
    store.persist(&[change(1, Table::Grants)]).unwrap();
    // As it is when the process is killed: what was written last is in the log alone.
    let log = dir.path().join("copy.sqlite-wal");
    std::fs::copy(dir.path().join("register.sqlite-wal"), &log).unwrap();
    assert!(std::fs::metadata(&log).unwrap().len() > 0);
    let found = read(&copy).unwrap();
    assert!(found.iter().all(Vec::is_empty));
}
