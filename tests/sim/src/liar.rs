//! A witness that lies.
//!
//! It signs with its own keys, which is all that it can do: nobody forges a signature in the simulation. To grant
//! everything to everybody it keeps a core of its own for each member that asks, which knows of nobody else's leases;
//! that core also denies every certificate. Between those answers it repeats old ones of its own, answers damaged
//! bytes, or keeps silent.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use aerie_dht_proto::{Change, Config, Input, MemoryStore, Now, Output, Register, Store, Table};
use aerie_types::PeerId;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::keys::SimKeys;

/// Answers remembered to be repeated.
const REMEMBERED: usize = 64;

type Core = Register<MemoryStore, SimKeys>;

/// What a lying witness remembers.
#[derive(Debug, Default)]
pub(crate) struct Liar {
    faces: BTreeMap<PeerId, Core>,
    answers: Vec<Vec<u8>>,
}

/// What a lying witness does with a request.
pub(crate) enum Lie {
    /// It answers this.
    Answer(Vec<u8>),
    /// It does not answer.
    Silence,
}

impl Liar {
    /// Answers a request by another member's own core, which is made of the liar's where it is the first.
    pub(crate) fn lie(
        &mut self,
        honest: &Core,
        config: &Config,
        keys: &SimKeys,
        asked: (PeerId, &[u8]),
        links: &[PeerId],
        (now, rng): (Now, &mut ChaCha8Rng),
    ) -> Option<Lie> {
        let (from, bytes) = asked;
        match rng.random_range(0..10) {
            0 => return Some(Lie::Silence),
            1 if !self.answers.is_empty() => {
                let place = rng.random_range(0..self.answers.len());
                return self.answers.get(place).cloned().map(Lie::Answer);
            }
            _ => {}
        }
        let face = match self.faces.entry(from) {
            Entry::Occupied(face) => face.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(forgetful(honest, config, keys, links, now, rng)?),
        };
        let input = Input::Request {
            from,
            id: 0,
            bytes: bytes.to_vec(),
        };
        face.handle_input(input, now);
        let mut answer = None;
        while let Some(output) = face.poll_output() {
            if let Output::Answer { bytes, .. } = output {
                answer = Some(bytes);
            }
        }
        while face.poll_event().is_some() {}
        let mut answer = answer?;
        if self.answers.len() < REMEMBERED {
            self.answers.push(answer.clone());
        }
        if rng.random_bool(0.1) {
            let place = rng.random_range(0..answer.len());
            if let Some(byte) = answer.get_mut(place) {
                *byte ^= 1 << rng.random_range(0..8_u8);
            }
        }
        Some(Lie::Answer(answer))
    }
}

/// A core like this one that votes and has forgotten every grant and certificate.
fn forgetful(
    honest: &Core,
    config: &Config,
    keys: &SimKeys,
    links: &[PeerId],
    now: Now,
    rng: &mut ChaCha8Rng,
) -> Option<Core> {
    let mut store = honest.clone().into_store();
    for table in [Table::Grants, Table::Certificates] {
        let rows = store.load(table).ok()?;
        let forget = |(key, _)| Change {
            table,
            key,
            value: None,
        };
        let changes: Vec<_> = rows.into_iter().map(forget).collect();
        store.persist(&changes).ok()?;
    }
    let mut face = Register::new(config.clone(), keys.clone(), store, rng, now).ok()?;
    for peer in links {
        face.handle_input(Input::MemberUp { peer: *peer }, now);
    }
    // Its patience is over at once: it has the store of a witness that voted.
    let later = Now {
        instant: now.instant + config.timings.patience,
        ..now
    };
    face.handle_timeout(later);
    while face.poll_output().is_some() {}
    face.is_ready().then_some(face)
}
