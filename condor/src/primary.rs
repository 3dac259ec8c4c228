//! Which manager a node reports to, and when it gives one up.
//!
//! The Grid Appliance draws a manager at random, one of its own group first if it prefers those, and looks every
//! ten minutes whether it is still there (seed 004, III-B). Here the draw is the same, the watch is closer:
//!
//! ```text
//!            a manager is known                 probe failed
//!   Alone ──────────────────────► Following ───────────────────► Doubting
//!     ▲                            ▲     ▲                          │  │
//!     │                            │     └──── probe succeeded ─────┘  │
//!     │  it was the last one       │                                   │ second failure, or it left the set:
//!     └────────────────────────────┴───────────────────────────────────┘ draw another, or Alone
//! ```
//!
//! A manager that failed is avoided for [`AVOID`], unless it is the only one. With no other to go to, the present
//! one is kept: a node that drops its last manager gains nothing and makes its jobs wait longer when it returns.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aerie_types::{GroupName, NodeName};
use rand::Rng;

use crate::intent::Manager;

/// The time between two probes of the manager in use.
pub const PROBE_EVERY: Duration = Duration::from_secs(5);

/// How soon a failed probe is repeated.
pub const PROBE_AGAIN: Duration = Duration::from_secs(1);

/// A manager that failed is not drawn again for so long.
pub const AVOID: Duration = Duration::from_secs(120);

/// Failures in a row after which a manager is given up: one may be a lost packet or a busy minute.
const FAILURES: u32 = 2;

/// Draws a manager: the present one while it is among them, else one of the own group, else any.
///
/// `None` only if there is none at all. The same managers in another order give the same draw.
pub fn choose_primary(
    managers: &[Manager],
    own_group: Option<&GroupName>,
    current: Option<&NodeName>,
    rng: &mut impl Rng,
) -> Option<NodeName> {
    if let Some(current) = current.filter(|node| managers.iter().any(|manager| manager.node == **node)) {
        return Some(current.clone());
    }
    let own: BTreeMap<_, _> = by_name(
        managers
            .iter()
            .filter(|m| own_group.is_some() && m.group.as_ref() == own_group),
    );
    let all = by_name(managers.iter());
    let from = if own.is_empty() { &all } else { &own };
    let count = u64::try_from(from.len()).ok().filter(|count| *count > 0)?;
    let index = usize::try_from(rng.next_u64() % count).unwrap_or(0);
    from.keys().nth(index).map(|node| (*node).clone())
}

fn by_name<'a>(managers: impl Iterator<Item = &'a Manager>) -> BTreeMap<&'a NodeName, &'a Manager> {
    managers.map(|manager| (&manager.node, manager)).collect()
}

/// What a [`PrimaryKeeper`] decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Everything stays as it is.
    Unchanged,
    /// Plan again with this primary. `None`: no manager is known.
    Changed(Option<NodeName>),
}

/// Keeps a primary manager and watches it. Pure: the caller probes, and passes the time and the random source.
///
/// Call [`managers`](Self::managers) whenever the managers set changes, [`due`](Self::due) to learn whom to probe
/// and [`probed`](Self::probed) with the outcome; [`poll_timeout`](Self::poll_timeout) says when to come back.
#[derive(Debug)]
pub struct PrimaryKeeper {
    own_group: Option<GroupName>,
    managers: Vec<Manager>,
    primary: Option<NodeName>,
    failures: u32,
    next_probe: Instant,
    /// Managers that failed, and until when they are avoided. Bounded by the managers that are known.
    avoided: BTreeMap<NodeName, Instant>,
}

impl PrimaryKeeper {
    /// A keeper that prefers managers of `own_group` and, after a restart of the daemon, the primary of before.
    #[must_use]
    pub fn new(own_group: Option<GroupName>, before: Option<NodeName>, now: Instant) -> Self {
        Self {
            own_group,
            managers: Vec::new(),
            primary: before,
            failures: 0,
            next_probe: now + PROBE_EVERY,
            avoided: BTreeMap::new(),
        }
    }

    /// The primary as it stands.
    #[must_use]
    pub fn primary(&self) -> Option<&NodeName> {
        self.primary.as_ref()
    }

    /// The managers set changed.
    pub fn managers(&mut self, managers: Vec<Manager>, now: Instant, rng: &mut impl Rng) -> Choice {
        self.managers = managers;
        let known = &self.managers;
        self.avoided
            .retain(|node, until| *until > now && known.iter().any(|manager| manager.node == *node));
        let current = self.primary.clone();
        self.draw(current.as_ref(), now, rng)
    }

    /// The manager to probe now, if it is time. Counts as asked: the next one is due after [`PROBE_EVERY`].
    pub fn due(&mut self, now: Instant) -> Option<Manager> {
        if now < self.next_probe {
            return None;
        }
        self.next_probe = now + PROBE_EVERY;
        let primary = self.primary.as_ref()?;
        self.managers
            .iter()
            .find(|manager| manager.node == *primary)
            .cloned()
    }

    /// The outcome of a probe. One of a manager that is no longer the primary is ignored.
    pub fn probed(&mut self, node: &NodeName, alive: bool, now: Instant, rng: &mut impl Rng) -> Choice {
        if self.primary.as_ref() != Some(node) {
            return Choice::Unchanged;
        }
        if alive {
            self.failures = 0;
            return Choice::Unchanged;
        }
        self.failures += 1;
        if self.failures < FAILURES {
            self.next_probe = now + PROBE_AGAIN;
            return Choice::Unchanged;
        }
        self.failures = 0;
        self.avoided.insert(node.clone(), now + AVOID);
        self.draw(None, now, rng)
    }

    /// When [`due`](Self::due) should be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.primary.as_ref().map(|_| self.next_probe)
    }

    fn draw(&mut self, current: Option<&NodeName>, now: Instant, rng: &mut impl Rng) -> Choice {
        let fit: Vec<_> = self
            .managers
            .iter()
            .filter(|manager| self.avoided.get(&manager.node).is_none_or(|until| *until <= now))
            .cloned()
            .collect();
        let chosen = choose_primary(&fit, self.own_group.as_ref(), current, rng).or_else(|| {
            // All have failed of late: stay, as long as the set still holds the present one.
            choose_primary(
                &self.managers,
                self.own_group.as_ref(),
                self.primary.as_ref(),
                rng,
            )
        });
        if chosen == self.primary {
            return Choice::Unchanged;
        }
        self.primary.clone_from(&chosen);
        self.failures = 0;
        self.next_probe = now + PROBE_EVERY;
        Choice::Changed(chosen)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn manager(node: &str, group: Option<&str>) -> Manager {
        Manager {
            node: node.parse().unwrap(),
            addr: Ipv4Addr::new(10, 0, 0, 1).into(),
            group: group.map(|group| group.parse().unwrap()),
        }
    }

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    #[test]
    fn the_present_primary_is_kept_even_before_one_of_the_own_group() {
        let managers = [manager("m1", None), manager("m2", Some("chem"))];
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let chem = "chem".parse().unwrap();
        let kept = choose_primary(&managers, Some(&chem), Some(&name("m1")), &mut rng);
        assert_eq!(kept, Some(name("m1")));
    }

    #[test]
    fn a_manager_of_the_own_group_is_preferred_and_the_others_share_the_rest() {
        let managers = [
            manager("m1", None),
            manager("m2", Some("chem")),
            manager("m3", None),
        ];
        let chem = "chem".parse().unwrap();
        let bio = "bio".parse().unwrap();
        let mut drawn = BTreeSet::new();
        for seed in 0..64 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            assert_eq!(
                choose_primary(&managers, Some(&chem), None, &mut rng),
                Some(name("m2"))
            );
            drawn.extend(choose_primary(&managers, Some(&bio), None, &mut rng));
        }
        assert_eq!(drawn.len(), 3, "a node of another group draws among all");
    }

    #[test]
    fn without_a_group_no_manager_is_preferred() {
        let managers = [manager("m1", None), manager("m2", Some("chem"))];
        let drawn: BTreeSet<_> = (0..64)
            .filter_map(|seed| choose_primary(&managers, None, None, &mut ChaCha8Rng::seed_from_u64(seed)))
            .collect();
        assert_eq!(drawn.len(), 2);
    }

    #[test]
    fn no_manager_is_no_choice() {
        assert_eq!(
            choose_primary(&[], None, Some(&name("m1")), &mut ChaCha8Rng::seed_from_u64(1)),
            None
        );
    }

    #[test]
    fn a_primary_that_fails_twice_is_given_up_within_the_promise() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let start = Instant::now();
        let mut keeper = PrimaryKeeper::new(None, Some(name("m1")), start);
        let both = vec![manager("m1", None), manager("m2", None)];
        assert_eq!(keeper.managers(both, start, &mut rng), Choice::Unchanged);
        let given_up = loop {
            let asked_at = keeper.poll_timeout().unwrap();
            let asked = keeper.due(asked_at).unwrap();
            // The probe itself may take its whole limit.
            let now = asked_at + Duration::from_secs(3);
            if keeper.probed(&asked.node, false, now, &mut rng) == Choice::Changed(Some(name("m2"))) {
                break now;
            }
        };
        assert!(
            given_up - start <= Duration::from_secs(12),
            "{:?}",
            given_up - start
        );
    }

    #[test]
    fn one_failed_probe_changes_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let now = Instant::now();
        let mut keeper = PrimaryKeeper::new(None, Some(name("m1")), now);
        keeper.managers(vec![manager("m1", None), manager("m2", None)], now, &mut rng);
        for _ in 0..10 {
            assert_eq!(
                keeper.probed(&name("m1"), false, now, &mut rng),
                Choice::Unchanged
            );
            assert_eq!(keeper.probed(&name("m1"), true, now, &mut rng), Choice::Unchanged);
        }
    }

    #[test]
    fn the_last_manager_is_kept_although_it_fails() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let now = Instant::now();
        let mut keeper = PrimaryKeeper::new(None, Some(name("m1")), now);
        keeper.managers(vec![manager("m1", None)], now, &mut rng);
        for _ in 0..10 {
            assert_eq!(
                keeper.probed(&name("m1"), false, now, &mut rng),
                Choice::Unchanged
            );
        }
        assert_eq!(keeper.managers(Vec::new(), now, &mut rng), Choice::Changed(None));
    }

    #[test]
    fn a_manager_that_failed_is_avoided_for_a_while_and_then_drawn_again() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let now = Instant::now();
        let mut keeper = PrimaryKeeper::new(None, Some(name("m1")), now);
        let all = vec![manager("m1", None), manager("m2", None)];
        keeper.managers(all.clone(), now, &mut rng);
        for _ in 0..2 {
            keeper.probed(&name("m1"), false, now, &mut rng);
        }
        assert_eq!(keeper.primary(), Some(&name("m2")));
        let only_m1 = vec![manager("m1", None)];
        assert_eq!(
            keeper.managers(only_m1, now, &mut rng),
            Choice::Changed(Some(name("m1")))
        );
        assert_eq!(keeper.managers(all, now + AVOID, &mut rng), Choice::Unchanged);
    }
}
