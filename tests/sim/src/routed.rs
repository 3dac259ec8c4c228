//! Nodes that hold a prefix beside their address.

use aerie_dht_proto::{AcquireRequest, Event, Kind, LostReason};
use aerie_types::VirtualPrefix;

use crate::keys::name;
use crate::node::Told;
use crate::world::World;

impl World {
    /// Lets a node claim a prefix beside its address, now and after each start.
    pub fn acquire_prefix(&mut self, index: usize, fixed: Option<VirtualPrefix>) {
        let request = AcquireRequest::prefix(name(index), fixed);
        let routed = &mut self.nodes[index].routed;
        routed.request = Some(request.clone());
        routed.turns += 1;
        routed.told = Told::Nothing;
        self.tally.routed += 1;
        self.checker.gave_back(index, Kind::Prefix);
        self.with(index, |core, now| core.acquire(request, now));
    }

    /// What a node tells of its prefix.
    pub(crate) fn routed_event(&mut self, index: usize, event: Event) {
        let node = &mut self.nodes[index];
        let routed = &mut node.routed;
        match event {
            Event::Held(lease) | Event::Renewed(lease) => {
                let until = node.clock.when(self.base, lease.until);
                if matches!(routed.told, Told::Held(_)) {
                    self.tally.renewed += 1;
                    self.tally.lapsed += u64::from(routed.until < self.now);
                } else {
                    self.tally.routes += 1;
                }
                routed.until = until;
                if let Some(bereft) = routed.bereft.take() {
                    routed.moved = Some(self.now.saturating_sub(bereft));
                }
                routed.told = Told::Held(Box::new(lease.clone()));
                self.relies(index, &lease, until);
            }
            Event::Waiting { reason, .. } if !matches!(routed.told, Told::Held(_)) => {
                routed.told = Told::Waiting(reason);
            }
            Event::Failed { failure, .. } => {
                if !matches!(routed.told, Told::Failed(_)) {
                    self.tally.refused += 1;
                }
                routed.told = Told::Failed(failure);
            }
            Event::Lost { reason, .. } => {
                routed.bereft = Some(self.now);
                let live = routed.until > self.now;
                if let LostReason::Conflict { winner, leased } = &reason {
                    routed.conflicts += 1;
                    self.lost_to(index, *winner, *leased, live);
                }
                self.checker.gave_back(index, Kind::Prefix);
                self.nodes[index].routed.told = Told::Lost(reason);
            }
            _ => {}
        }
    }
}
