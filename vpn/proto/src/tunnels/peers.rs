//! The peers of a node, and when each of them is to be looked at.
//!
//! A look-up costs the same however many there are, and so does time: only peers for which something is due are
//! looked at. Whatever gives a peer something to do earlier than it was to be looked at says so
//! ([`Peers::look_at`]); what has become later is found out when it is looked at.

use std::collections::BTreeSet;
use std::time::Instant;

use aerie_types::PeerId;
use foldhash::fast::RandomState;
use indexmap::IndexMap;

use crate::peer::Peer;

#[derive(Default)]
pub(super) struct Peers {
    /// Its order is that of their coming and going, the same in every run.
    by_id: IndexMap<PeerId, Entry, RandomState>,
    agenda: BTreeSet<(Instant, PeerId)>,
    /// What is said now to be due is due then at the earliest.
    no_earlier: Option<Instant>,
}

struct Entry {
    peer: Peer,
    /// When it is to be looked at: its place in the agenda.
    due: Option<Instant>,
}

impl Peers {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn contains(&self, id: PeerId) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(super) fn get(&self, id: &PeerId) -> Option<&Peer> {
        self.by_id.get(id).map(|entry| &entry.peer)
    }

    pub(super) fn get_mut(&mut self, id: &PeerId) -> Option<&mut Peer> {
        self.by_id.get_mut(id).map(|entry| &mut entry.peer)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Peer> {
        self.by_id.values().map(|entry| &entry.peer)
    }

    /// Adds a peer, in place of one of the same id, that is to be looked at then.
    pub(super) fn insert(&mut self, peer: Peer, at: Instant) {
        let id = peer.id;
        self.remove(id);
        self.by_id.insert(id, Entry { peer, due: None });
        self.look_at(id, at);
    }

    pub(super) fn remove(&mut self, id: PeerId) -> Option<Peer> {
        let entry = self.by_id.swap_remove(&id)?;
        if let Some(due) = entry.due {
            self.agenda.remove(&(due, id));
        }
        Some(entry.peer)
    }

    /// A peer is to be looked at then, or earlier if that was said before.
    pub(super) fn look_at(&mut self, id: PeerId, at: Instant) {
        let at = self.no_earlier.map_or(at, |earliest| at.max(earliest));
        let Some(entry) = self.by_id.get_mut(&id) else {
            return;
        };
        if entry.due.is_some_and(|due| due <= at) {
            return;
        }
        if let Some(late) = entry.due.replace(at) {
            self.agenda.remove(&(late, id));
        }
        self.agenda.insert((at, id));
    }

    /// Sets the moment before which [`Peers::look_at`] has nobody looked at: while peers are looked at, so that none
    /// keeps the caller busy by being due again at once.
    pub(super) fn look_no_earlier(&mut self, earliest: Option<Instant>) {
        self.no_earlier = earliest;
    }

    /// Changes all that want to be changed, and has those looked at then.
    pub(super) fn change(&mut self, at: Instant, mut change: impl FnMut(&mut Peer) -> bool) {
        let changed: Vec<_> = self
            .by_id
            .values_mut()
            .filter_map(|entry| change(&mut entry.peer).then_some(entry.peer.id))
            .collect();
        for id in changed {
            self.look_at(id, at);
        }
    }

    /// Those that are to be looked at now. They are on the agenda no more.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<PeerId> {
        let mut ids = Vec::new();
        while let Some((at, id)) = self.agenda.first().copied().filter(|(at, _)| *at <= now) {
            self.agenda.remove(&(at, id));
            if let Some(entry) = self.by_id.get_mut(&id) {
                entry.due = None;
            }
            ids.push(id);
        }
        ids
    }

    /// When the first is to be looked at.
    pub(super) fn next(&self) -> Option<Instant> {
        self.agenda.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's clock starts somewhere")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::path::Agent;

    fn id(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    fn peers(now: Instant) -> Peers {
        let mut peers = Peers::default();
        for n in 1..=3 {
            let agent = Agent::new(id(0), id(n), n.into(), [n; 32], now);
            peers.insert(Peer::new(id(n), agent, now), now);
        }
        assert_eq!(peers.take_due(now).len(), 3, "each is looked at once");
        peers
    }

    #[test]
    fn only_whom_something_is_due_for_is_looked_at() {
        let start = Instant::now();
        let later = |ms| start + Duration::from_millis(ms);
        let mut peers = peers(start);
        assert_eq!(peers.next(), None);
        peers.look_at(id(1), later(30));
        peers.look_at(id(2), later(20));
        peers.look_at(id(1), later(10));
        peers.look_at(id(2), later(40));
        assert_eq!(peers.next(), Some(later(10)), "the earlier of what was said");
        assert_eq!(peers.take_due(later(9)), []);
        assert_eq!(peers.take_due(later(10)), [id(1)]);
        assert_eq!(peers.next(), Some(later(20)));
        peers.remove(id(2));
        assert_eq!(peers.next(), None);
    }

    #[test]
    fn nobody_is_due_again_while_peers_are_looked_at() {
        let start = Instant::now();
        let later = start + Duration::from_millis(1);
        let mut peers = peers(start);
        peers.look_no_earlier(Some(later));
        peers.look_at(id(1), start);
        assert_eq!(peers.next(), Some(later));
        peers.look_no_earlier(None);
        peers.look_at(id(1), start);
        assert_eq!(peers.next(), Some(start));
    }

    #[test]
    fn those_that_were_changed_are_looked_at() {
        let start = Instant::now();
        let mut peers = peers(start);
        peers.change(start, |peer| peer.id == id(3));
        assert_eq!(peers.take_due(start), [id(3)]);
    }
}
