//! Look-ups: the local tables first, then the witnesses, three at a time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use aerie_types::{Key, NodeName, PeerId, VirtualAddr};

use super::{CALL_TIMEOUT, Event, Found, Purpose, Register, Task, Time};
use crate::wire::{Answer, Request};
use crate::{Certificate, Store, addr_key, name_key};

/// How many witnesses are asked at once.
const PARALLEL: usize = 3;

/// How many look-ups may run at once; further ones find nothing.
const MAX_LOOK_UPS: usize = 1024;

/// How many answers are kept, and for how long at most.
const MAX_CACHE: usize = 1024;
const FRESH: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct LookUp {
    key: Key,
    left: VecDeque<PeerId>,
    asked: usize,
    pub(super) deadline: Instant,
}

impl<S: Store> Register<S> {
    /// Begins to look for the holder of an address; [`Event::LookedUp`] has the id that is returned.
    pub fn look_up_addr(&mut self, addr: VirtualAddr, time: Time) -> u64 {
        let key = addr_key(&self.config.grid, addr);
        self.look_up(key, time)
    }

    /// Begins to look for the holder of a name; [`Event::LookedUp`] has the id that is returned.
    pub fn look_up_name(&mut self, name: &NodeName, time: Time) -> u64 {
        let key = name_key(&self.config.grid, name);
        self.look_up(key, time)
    }

    fn look_up(&mut self, key: Key, time: Time) -> u64 {
        let id = self.id();
        let cached = self
            .cache
            .get(&key)
            .filter(|(_, until)| *until > time.now)
            .map(|(certificate, _)| certificate);
        let local = self
            .leases
            .certificate(&key, time.now)
            .map(|(certificate, _)| certificate);
        if let Some(certificate) = local.or(cached).cloned() {
            let found = found(&certificate, time);
            self.event(Event::LookedUp { id, found });
        } else if self.lookups.len() >= MAX_LOOK_UPS {
            self.counters.overrun += 1;
            self.event(Event::LookedUp { id, found: None });
        } else {
            let deadline = time.now + CALL_TIMEOUT * 2;
            self.lookups.insert(
                id,
                LookUp {
                    key,
                    left: VecDeque::new(),
                    asked: 0,
                    deadline,
                },
            );
            self.with_witnesses(key, Task::LookUp { id }, time);
        }
        id
    }

    pub(super) fn begin_look_up(&mut self, id: u64, witnesses: Vec<PeerId>, time: Time) {
        let me = self.config.me;
        if let Some(lookup) = self.lookups.get_mut(&id) {
            // Those that are connected answer soonest.
            let (near, far): (Vec<_>, Vec<_>) = witnesses
                .into_iter()
                .filter(|peer| *peer != me)
                .partition(|peer| self.members.live().contains(peer));
            lookup.left = near.into_iter().chain(far).collect();
        }
        self.ask_more(id, time);
    }

    pub(super) fn on_found(&mut self, id: u64, _from: PeerId, answer: Option<Answer>, time: Time) {
        let Some(lookup) = self.lookups.get_mut(&id) else {
            return;
        };
        lookup.asked = lookup.asked.saturating_sub(1);
        let key = lookup.key;
        if let Some(Answer::Found {
            certificate: Some(certificate),
            ..
        }) = answer
        {
            let of_key = certificate.first().is_ok_and(|body| body.key == key);
            if of_key
                && certificate
                    .check(&self.config.grid, &*self.keys, time.wall)
                    .is_ok()
            {
                self.lookups.remove(&id);
                let found = found(&certificate, time);
                if let Some(found) = &found {
                    if self.cache.len() >= MAX_CACHE {
                        self.cache.pop_first();
                    }
                    self.cache
                        .insert(key, (certificate, time.now + found.remaining.min(FRESH)));
                }
                self.event(Event::LookedUp { id, found });
                return;
            }
            self.counters.bad_certificates += 1;
        }
        self.ask_more(id, time);
    }

    fn ask_more(&mut self, id: u64, time: Time) {
        loop {
            let Some(lookup) = self.lookups.get_mut(&id) else {
                return;
            };
            if lookup.asked >= PARALLEL {
                return;
            }
            let Some(peer) = lookup.left.pop_front() else {
                if lookup.asked == 0 {
                    self.lookups.remove(&id);
                    self.event(Event::LookedUp { id, found: None });
                }
                return;
            };
            lookup.asked += 1;
            let request = Request::LookUp { key: lookup.key };
            if !self.send(peer, &request, Purpose::LookUp { id }, time)
                && let Some(lookup) = self.lookups.get_mut(&id)
            {
                lookup.asked -= 1;
            }
        }
    }

    pub(super) fn expire_lookups(&mut self, time: Time) {
        let over: Vec<_> = self
            .lookups
            .iter()
            .filter(|(_, lookup)| lookup.deadline <= time.now)
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.lookups.remove(&id);
            self.event(Event::LookedUp { id, found: None });
        }
    }
}

fn found(certificate: &Certificate, time: Time) -> Option<Found> {
    let body = certificate.first().ok()?;
    let remaining = certificate.expires().ok()?.since(time.wall);
    Some(Found {
        holder: body.holder,
        name: body.name.clone(),
        addr: body.addr,
        remaining,
    })
}
