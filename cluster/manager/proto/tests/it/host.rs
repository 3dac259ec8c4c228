//! A host that keeps its guests, and does at once what it is told.

use std::collections::{BTreeMap, BTreeSet};

use aerie_cluster_manager_proto::{Failure, GuestId, GuestState, Spec, Work};
use aerie_cluster_proto::amount::Resources;
use aerie_cluster_proto::description::Image;

#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) state: GuestState,
    was_paused: bool,
    pub(crate) has_context: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) capacity: Resources,
    pub(crate) images: BTreeSet<Image>,
    pub(crate) guests: BTreeMap<GuestId, Guest>,
    /// Guests of which nothing that was begun before is done any more.
    pub(crate) destroyed: BTreeSet<GuestId>,
    pub(crate) up: bool,
    /// The next steps fail so.
    pub(crate) fails: Vec<(&'static str, Failure)>,
    /// Steps that are answered as if they were done, and are not.
    pub(crate) ignores: BTreeSet<&'static str>,
    /// Whatever is started ends at once.
    pub(crate) crashes: bool,
}

impl Host {
    pub(crate) fn new(capacity: Resources) -> Self {
        Self {
            capacity,
            images: BTreeSet::new(),
            guests: BTreeMap::new(),
            destroyed: BTreeSet::new(),
            up: true,
            fails: Vec::new(),
            ignores: BTreeSet::new(),
            crashes: false,
        }
    }

    pub(crate) fn perform(&mut self, work: &Work) -> Result<(), Failure> {
        use GuestState as G;
        let absent = || Failure::refused("there is no such guest");
        match work {
            Work::Stage { image } => {
                if image.to_string().starts_with("missing") {
                    return Err(Failure::refused("no repository has it; put it there"));
                }
                self.images.insert(image.clone());
            }
            Work::Prepare(spec) => {
                let Spec { guest, image, .. } = spec.as_ref();
                if !self.images.contains(image) {
                    return Err(Failure::failed("the image is not there"));
                }
                self.guests.entry(*guest).or_insert(Guest {
                    state: G::Prepared,
                    was_paused: false,
                    has_context: false,
                });
            }
            Work::Attach(spec) => drop(self.guests.get(&spec.guest).ok_or_else(absent)?),
            Work::Define(spec) => {
                let guest = self.guests.get_mut(&spec.guest).ok_or_else(absent)?;
                assert!(guest.has_context, "it was not given its context");
                if guest.state == G::Prepared {
                    guest.state = G::Defined;
                }
            }
            Work::Save { guest, .. } => drop(self.guests.get(guest).ok_or_else(absent)?),
            Work::Destroy(guest) => {
                self.guests.remove(guest);
                self.destroyed.insert(*guest);
            }
            Work::Start(id)
            | Work::Pause(id)
            | Work::Resume(id)
            | Work::Suspend(id)
            | Work::Restore(id)
            | Work::Stop { guest: id, .. } => {
                let guest = self.guests.get_mut(id).ok_or_else(absent)?;
                let wrong = || Failure::failed(format!("it is {:?}", guest.state));
                let next = match (work, &guest.state) {
                    (Work::Start(_), _) if self.crashes => G::Crashed {
                        why: "its kernel panicked".to_owned(),
                    },
                    (Work::Start(_), G::Defined | G::Stopped | G::Crashed { .. } | G::Running) => G::Running,
                    (Work::Pause(_), G::Running | G::Paused) => G::Paused,
                    (Work::Resume(_), G::Running | G::Paused) => G::Running,
                    (Work::Suspend(_), G::Running | G::Paused | G::Suspended) => G::Suspended,
                    (Work::Restore(_), G::Suspended) if guest.was_paused => G::Paused,
                    (Work::Restore(_), G::Suspended) => G::Running,
                    (Work::Stop { .. }, G::Running | G::Paused | G::Defined | G::Stopped) => G::Stopped,
                    (Work::Stop { .. }, G::Crashed { .. }) => guest.state.clone(),
                    _ => return Err(wrong()),
                };
                if !matches!(guest.state, G::Suspended) {
                    guest.was_paused = guest.state == G::Paused;
                }
                guest.state = next;
            }
        }
        Ok(())
    }
}

/// What is done, and with whom.
pub(crate) fn describe(work: &Work) -> (&'static str, Option<GuestId>) {
    match work {
        Work::Stage { .. } => ("stage", None),
        Work::Prepare(spec) => ("prepare", Some(spec.guest)),
        Work::Attach(spec) => ("attach", Some(spec.guest)),
        Work::Define(spec) => ("define", Some(spec.guest)),
        Work::Start(guest) => ("start", Some(*guest)),
        Work::Pause(guest) => ("pause", Some(*guest)),
        Work::Resume(guest) => ("resume", Some(*guest)),
        Work::Suspend(guest) => ("suspend", Some(*guest)),
        Work::Restore(guest) => ("restore", Some(*guest)),
        Work::Stop { guest, .. } => ("stop", Some(*guest)),
        Work::Save { guest, .. } => ("save", Some(*guest)),
        Work::Destroy(guest) => ("destroy", Some(*guest)),
    }
}
