//! The passing on of certificates: to members that have become the closer ones, and to those that ask.

use std::collections::BTreeMap;
use std::time::Duration;

use aerie_types::{Key, PeerId};

use crate::SendError;
use crate::limits::{MAX_HANDED, MAX_SUMMARIES};
use crate::proof::Flaw;
use crate::register::Purpose;
use crate::store::Store;
use crate::wire::{Answer, Handed, Request, Summary};
use crate::{Keys, Now, Register};

impl<S: Store, K: Keys> Register<S, K> {
    pub(crate) fn offered(&mut self, summaries: &[Summary], now: Now) -> Answer {
        Answer::Want(self.wanted(summaries, now))
    }

    pub(crate) fn fetched(&mut self, keys: &[Key], now: Now) -> Answer {
        Answer::Certificates(self.handed_of(keys, now))
    }

    fn handed_of(&self, keys: &[Key], now: Now) -> Vec<Handed> {
        let seen = keys
            .iter()
            .take(MAX_HANDED)
            .filter_map(|key| self.records.get(key)?.seen.as_ref());
        seen.filter(|seen| seen.until > now.instant)
            .map(|seen| self.handed(seen, now))
            .collect()
    }

    pub(crate) fn fetch_answered(&mut self, answer: Result<Answer, SendError>, now: Now) {
        if let Ok(Answer::Certificates(handed)) = answer {
            self.take_handed(&handed, now);
        }
    }

    pub(crate) fn offer_answered(&mut self, from: PeerId, answer: Result<Answer, SendError>, now: Now) {
        let Ok(Answer::Want(keys)) = answer else {
            self.untell(from);
            return;
        };
        for keys in keys.chunks(MAX_HANDED).take(MAX_SUMMARIES / MAX_HANDED) {
            let handed = self.handed_of(keys, now);
            self.ask(from, &Request::HandOver(handed), Purpose::Nothing, now);
        }
    }

    pub(crate) fn handed_over(&mut self, handed: &[Handed], now: Now) -> Answer {
        self.take_handed(handed, now);
        Answer::Done
    }

    fn take_handed(&mut self, handed: &[Handed], now: Now) {
        #[cfg(feature = "weaken")]
        if self.config.weaken == Some(crate::Weaken::NewWitnessIgnoresCertificates) {
            return;
        }
        for handed in handed.iter().take(MAX_HANDED) {
            match self.check(&handed.proof, now) {
                Ok(life) => {
                    let told = Duration::from_millis(handed.remaining_ms.into());
                    self.stats.handed_over += 1;
                    self.take_certificate(handed.proof.certificate.clone(), life.min(told), now);
                }
                // Here nobody is asked for what is missing.
                Err(Flaw::UnknownWitness) => self.stats.bad_certificates += 1,
                Err(Flaw::Invalid) => {}
            }
        }
    }

    pub(crate) fn schedule_handover(&mut self, now: Now) {
        if self.handover_at.is_none() {
            let delay = self.draw.about(self.config.timings.handover);
            self.handover_at = Some(now.instant + delay);
        }
    }

    /// Offers certificates to those of their keys' closest nine who were not offered them yet.
    pub(crate) fn handover_due(&mut self, now: Now) {
        if self.handover_at.is_none_or(|at| at > now.instant) {
            return;
        }
        self.handover_at = None;
        let named = self.named_peers();
        self.releases_due(&named, now);
        let moved = self.members.take_moved();
        let untold: Vec<_> = std::mem::take(&mut self.untold)
            .into_iter()
            .map(|peer| (peer, self.members.position(peer)))
            .collect();
        let count = self.config.quorum.witnesses;
        let mut offers: BTreeMap<PeerId, Vec<Summary>> = BTreeMap::new();
        for (key, record) in &mut self.records {
            record.offered.forget(&untold);
            let settled = record.offered.is_settled(&moved);
            let Some(seen) = record.seen.as_ref().filter(|seen| seen.until > now.instant) else {
                continue;
            };
            if settled && named.is_empty() {
                continue;
            }
            let nine = self.members.witnesses(&named, *key, count);
            let mut all = named.is_empty();
            for peer in &nine {
                if *peer == self.me || record.offered.has(*peer) {
                    continue;
                }
                let batch = offers.entry(*peer).or_default();
                if batch.len() < MAX_SUMMARIES {
                    record
                        .offered
                        .insert(*peer, &self.members.position(*peer), key.position());
                    let holder = seen.certificate.terms.holder;
                    let rest = seen.until - now.instant;
                    batch.push(Summary::new(*key, holder, rest, Some(&seen.certificate)));
                } else {
                    all = false;
                }
            }
            if all {
                let position = key.position();
                let farthest = nine.last().filter(|_| nine.len() >= count);
                let reach = farthest.map_or([u8::MAX; 32], |peer| {
                    position.distance(&self.members.position(*peer))
                });
                record.offered.settle(position, reach);
            }
        }
        for (peer, batch) in offers {
            self.ask(peer, &Request::Offer(batch), Purpose::Offer, now);
        }
    }
}
