//! Every pair of NATs connects, and directly wherever a hole can be punched in theory.
//!
//! One grid has a node behind a router of each kind (two of the kinds that are hard to pair with themselves), so that
//! all pairs are looked at in one lab.

use std::time::Duration;

use aerie_lab::grid::{Grid, Join, Member};
use aerie_lab::wait::wait_until;
use aerie_lab::{Lab, Nat};
use aerie_scenarios::{GROUP, lab, small_grid, wait_for_name};
use anyhow::{Result, bail};

/// How long a pair may take from its first packet to its best path.
const UPGRADED: Duration = Duration::from_secs(20);

const SITES: [(&str, Nat); 7] = [
    ("open", Nat::Open),
    ("cone", Nat::FullCone),
    ("addr", Nat::AddressRestricted),
    ("port-a", Nat::PortRestricted),
    ("port-b", Nat::PortRestricted),
    ("sym-a", Nat::Symmetric),
    ("sym-b", Nat::Symmetric),
];

/// Whether a hole can be punched: the mapping that one side shows to the other has to be the one that it showed to
/// the relay, or the other side has to admit a port that it never saw.
fn punchable(a: Nat, b: Nat) -> bool {
    let picky = |nat| matches!(nat, Nat::PortRestricted | Nat::Symmetric);
    match (a, b) {
        (Nat::Symmetric, other) | (other, Nat::Symmetric) => !picky(other),
        _ => true,
    }
}

fn members(lab: &Lab, grid: &Grid<'_>) -> Result<Vec<(Nat, Member)>> {
    let mut members = Vec::new();
    for (name, nat) in SITES {
        let site = lab.site(name, nat)?;
        members.push((
            nat,
            grid.join(&Join::new(name, &site, GROUP, "client").option("--no-condor"))?,
        ));
    }
    grid.wait_ready(members.iter().map(|(_, member)| member))?;
    Ok(members)
}

fn path(from: &Member, to: &Member) -> Result<String> {
    let peers = from.peers()?;
    let peer = peers.into_iter().find(|peer| peer.node == to.node.name());
    Ok(peer
        .map(|peer| format!("{} {}", peer.path, peer.why))
        .unwrap_or_default())
}

#[test]
fn every_pair_of_nats_connects_and_goes_direct_where_it_can() {
    let lab = lab("nats").unwrap();
    let grid = small_grid(&lab).unwrap();
    let members = members(&lab, &grid).unwrap();
    let pairs = || {
        let numbered = members.iter().enumerate();
        numbered.flat_map(|(i, a)| members[i + 1..].iter().map(move |b| (a, b)))
    };

    // The first packet has to arrive: what the tunnel cannot send yet it keeps.
    for ((a_nat, a), (b_nat, b)) in pairs() {
        wait_for_name(a, &grid.fqdn(b.node.name())).unwrap();
        let answered = a.ping(&grid.fqdn(b.node.name()));
        assert!(
            answered.is_ok(),
            "{a_nat:?} to {b_nat:?}: {:#}",
            answered.unwrap_err()
        );
    }
    for ((a_nat, a), (b_nat, b)) in pairs() {
        let wanted = if punchable(*a_nat, *b_nat) {
            "direct"
        } else {
            "relayed"
        };
        let what = format!("a {wanted} path from {a_nat:?} to {b_nat:?}");
        wait_until(UPGRADED, &what, || {
            a.ping(&grid.fqdn(b.node.name()))?;
            let path = path(a, b)?;
            if path.starts_with(wanted) {
                Ok(Some(()))
            } else {
                bail!("the path is '{path}'")
            }
        })
        .unwrap();
    }
}
