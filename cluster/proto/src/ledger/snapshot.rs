//! A ledger in one piece, in the place of the journal that made it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use aerie_context_proto::HostName;
use aerie_types::WallMillis;
use serde::{Deserialize, Serialize};

use super::{Books, Hold, Ledger, Owner, RequestId, Spent};
use crate::amount::{Kind, Resources};
use crate::error::Corrupt;

/// All that a ledger is, to be kept instead of its journal. What is held of each host follows from the reservations
/// and is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    hosts: BTreeMap<HostName, Resources>,
    holds: BTreeMap<RequestId, Hold>,
    ended: VecDeque<(RequestId, WallMillis)>,
    spent: Vec<(Owner, Spent)>,
    records: u64,
}

impl Ledger {
    /// The ledger in one piece.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let hosts = self.hosts.iter();
        let spent = self.spent.iter();
        Snapshot {
            hosts: hosts
                .map(|(host, books)| (host.clone(), books.capacity))
                .collect(),
            holds: self.holds.clone(),
            ended: self.ended_order.clone(),
            spent: spent.map(|(owner, spent)| (owner.clone(), *spent)).collect(),
            records: self.records,
        }
    }

    /// The ledger that a snapshot is of.
    ///
    /// # Errors
    /// [`Corrupt`] where it contradicts itself.
    pub fn restore(snapshot: Snapshot) -> Result<Self, Corrupt> {
        let index = snapshot.records;
        let corrupt = |why| Corrupt { index, why };
        let held = Resources::NONE;
        let mut hosts: BTreeMap<_, _> = snapshot
            .hosts
            .into_iter()
            .map(|(host, capacity)| (host, Books { capacity, held }))
            .collect();
        for placed in snapshot
            .holds
            .values()
            .flat_map(|hold| hold.plan.members.values())
        {
            let books = hosts
                .get_mut(&placed.host)
                .ok_or(corrupt("it holds of a host that is not there"))?;
            books.held = books
                .held
                .plus(&placed.amounts)
                .ok_or(corrupt("it holds more than can be counted"))?;
        }
        let ended: BTreeSet<RequestId> = snapshot.ended.iter().map(|(id, _)| id.clone()).collect();
        if snapshot.holds.keys().any(|id| ended.contains(id)) {
            return Err(corrupt("it holds what has ended"));
        }
        Ok(Self {
            hosts,
            holds: snapshot.holds,
            ended,
            ended_order: snapshot.ended,
            spent: snapshot.spent.into_iter().collect(),
            records: snapshot.records,
        })
    }

    /// Whether no host has more held of it than it has.
    #[must_use]
    pub fn is_within(&self) -> bool {
        let fits = |books: &Books| {
            Kind::ALL
                .into_iter()
                .all(|kind| books.held.of(kind) <= books.capacity.of(kind))
        };
        self.hosts.values().all(fits)
    }
}
