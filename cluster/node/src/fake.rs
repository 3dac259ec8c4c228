//! A host whose guests are nothing but their states: for tests of what stands above a driver.
//!
//! A guest is up the moment that it is started. While it runs it counts: each look at its console adds a line with the
//! next number, so that a test can see whether it runs, stands still, or began anew. What can go wrong is put in with
//! [`FakeHost::inject`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::driver::{MAX_CONSOLE_READ, MAX_EVENTS, admit, check_balloon, how_it_ended};
use crate::{
    Console, Definition, End, Error, Event, GuestId, Host, Kind, Mib, NodeDriver, Operation, State, Status,
};

/// What goes wrong with a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its next start fails.
    FailsToStart,
    /// Its next suspend fails, as on a full disk.
    FailsToSuspend,
    /// It does not hear its power button, from now on.
    Deaf,
    /// It dies, now.
    Dies,
    /// It switches itself off, now.
    SwitchesOff,
    /// It begins anew, now.
    Resets,
    /// Its kernel panics, now.
    Panics,
    /// Its hypervisor does not answer, until [`Fault::Recovers`].
    Hangs,
    /// Its hypervisor answers again.
    Recovers,
    /// What is kept of it cannot be read any more, as a driver that begins finds out.
    Damaged,
}

#[derive(Debug)]
struct Guest {
    definition: Definition,
    state: State,
    console: Vec<u8>,
    count: u64,
    memory: Mib,
    /// Whether it ran when it was suspended, or when its hypervisor fell silent.
    ran: bool,
    deaf: bool,
    fails_to_start: bool,
    fails_to_suspend: bool,
}

#[derive(Debug, Default)]
struct World {
    driven: bool,
    guests: BTreeMap<GuestId, Guest>,
}

/// The host. It outlives its driver, as a real one does.
#[derive(Debug, Clone)]
pub struct FakeHost {
    world: Arc<Mutex<World>>,
    events: broadcast::Sender<Event>,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self {
            world: Arc::default(),
            events: broadcast::channel(MAX_EVENTS).0,
        }
    }
}

impl FakeHost {
    /// A driver for the host.
    ///
    /// # Errors
    /// [`Error::InUse`] while there is another one.
    pub fn open(&self) -> Result<FakeDriver, Error> {
        let mut world = self.world();
        if world.driven {
            return Err(Error::InUse { dir: "fake".into() });
        }
        world.driven = true;
        drop(world);
        Ok(FakeDriver { host: self.clone() })
    }

    /// Lets something go wrong.
    ///
    /// # Errors
    /// [`Error::UnknownGuest`]
    pub fn inject(&self, id: GuestId, fault: Fault) -> Result<(), Error> {
        self.with(id, |guest, tell| {
            let crash = |guest: &mut Guest, why: &str| {
                guest.state = State::Crashed { why: why.to_owned() };
                tell(Kind::Crashed(why.to_owned()));
            };
            let live = guest.state.is_live();
            if let State::Damaged { live, .. } = &mut guest.state {
                *live &= !matches!(fault, Fault::Dies | Fault::SwitchesOff | Fault::Panics);
                return Ok(());
            }
            match fault {
                Fault::Damaged => {
                    let why = "it was told to be damaged".to_owned();
                    guest.state = State::Damaged { why, live };
                }
                Fault::FailsToStart => guest.fails_to_start = true,
                Fault::FailsToSuspend => guest.fails_to_suspend = true,
                Fault::Deaf => guest.deaf = true,
                Fault::Recovers => {
                    if matches!(guest.state, State::Unresponsive { .. }) {
                        guest.state = if guest.ran { State::Running } else { State::Paused };
                        tell(Kind::Responsive);
                    }
                }
                _ if !live => {}
                Fault::Dies => crash(guest, "it was told to die"),
                Fault::SwitchesOff => {
                    guest.state = State::Stopped(End::Itself);
                    tell(Kind::Stopped(End::Itself));
                }
                Fault::Resets => {
                    guest.count = 0;
                    tell(Kind::Reset);
                }
                Fault::Panics => {
                    tell(Kind::Panicked);
                    crash(guest, "its kernel panicked");
                }
                Fault::Hangs => {
                    guest.ran = guest.state == State::Running;
                    let why = "it was told to hang".to_owned();
                    guest.state = State::Unresponsive { why: why.clone() };
                    tell(Kind::Unresponsive(why));
                }
            }
            Ok(())
        })
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        id: GuestId,
        work: impl FnOnce(&mut Guest, &dyn Fn(Kind)) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut world = self.world();
        let guest = world.guests.get_mut(&id).ok_or(Error::UnknownGuest(id))?;
        // Told while nobody else can change anything, so that events have the order of what happened.
        work(guest, &|kind| {
            let _ = self.events.send(Event { guest: id, kind });
        })
    }

    /// Does something to a guest that its state allows.
    fn act(
        &self,
        id: GuestId,
        operation: Operation,
        work: impl FnOnce(&mut Guest, &dyn Fn(Kind)) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.with(id, |guest, tell| {
            if admit(id, &guest.state, operation)? {
                work(guest, tell)?;
            }
            Ok(())
        })
    }
}

/// A driver of a [`FakeHost`].
#[derive(Debug)]
pub struct FakeDriver {
    host: FakeHost,
}

impl FakeDriver {
    /// The host.
    #[must_use]
    pub fn fake_host(&self) -> &FakeHost {
        &self.host
    }
}

impl Drop for FakeDriver {
    fn drop(&mut self) {
        self.host.world().driven = false;
    }
}

#[async_trait]
impl NodeDriver for FakeDriver {
    fn host(&self) -> Host {
        Host {
            hypervisor: "fake".to_owned(),
            acceleration: "none".to_owned(),
        }
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.host.events.subscribe()
    }

    fn list(&self) -> Vec<Status> {
        self.host.world().guests.values().map(status).collect()
    }

    fn status(&self, id: GuestId) -> Result<Status, Error> {
        self.host.with(id, |guest, _| Ok(status(guest)))
    }

    async fn define(&self, definition: Definition) -> Result<(), Error> {
        definition.check()?;
        let id = definition.id;
        let mut world = self.host.world();
        if let Some(guest) = world.guests.get(&id) {
            return if guest.definition == definition {
                Ok(())
            } else {
                Err(Error::Exists(id))
            };
        }
        let guest = Guest {
            memory: definition.memory,
            definition,
            state: State::Defined,
            console: Vec::new(),
            count: 0,
            ran: false,
            deaf: false,
            fails_to_start: false,
            fails_to_suspend: false,
        };
        world.guests.insert(id, guest);
        let _ = self.host.events.send(Event {
            guest: id,
            kind: Kind::Defined,
        });
        Ok(())
    }

    async fn start(&self, id: GuestId) -> Result<(), Error> {
        self.host.act(id, Operation::Start, |guest, tell| {
            if std::mem::take(&mut guest.fails_to_start) {
                let said = "it was told to fail".to_owned();
                return Err(Error::Start { id, said });
            }
            guest.state = State::Running;
            guest.count = 0;
            guest.memory = guest.definition.memory;
            tell(Kind::Started);
            Ok(())
        })
    }

    async fn pause(&self, id: GuestId) -> Result<(), Error> {
        self.host.act(id, Operation::Pause, |guest, tell| {
            guest.state = State::Paused;
            tell(Kind::Paused);
            Ok(())
        })
    }

    async fn resume(&self, id: GuestId) -> Result<(), Error> {
        self.host.act(id, Operation::Resume, |guest, tell| {
            guest.state = State::Running;
            tell(Kind::Resumed);
            Ok(())
        })
    }

    async fn suspend(&self, id: GuestId) -> Result<(), Error> {
        self.host.act(id, Operation::Suspend, |guest, tell| {
            if std::mem::take(&mut guest.fails_to_suspend) {
                let why = "it was told to fail".to_owned();
                return Err(Error::Suspend { id, why });
            }
            guest.ran = guest.state == State::Running;
            guest.state = State::Suspended;
            tell(Kind::Suspended);
            Ok(())
        })
    }

    async fn restore(&self, id: GuestId) -> Result<(), Error> {
        self.host.act(id, Operation::Restore, |guest, tell| {
            guest.state = if guest.ran { State::Running } else { State::Paused };
            tell(Kind::Restored);
            Ok(())
        })
    }

    async fn stop(&self, id: GuestId, grace: Duration) -> Result<End, Error> {
        self.host.act(id, Operation::Stop, |guest, tell| {
            let heard = !grace.is_zero() && !guest.deaf && !matches!(guest.state, State::Unresponsive { .. });
            let end = if heard { End::Asked } else { End::Forced };
            guest.state = State::Stopped(end);
            tell(Kind::Stopped(end));
            Ok(())
        })?;
        self.host.with(id, |guest, _| Ok(how_it_ended(&guest.state)))
    }

    async fn destroy(&self, id: GuestId) -> Result<(), Error> {
        let mut world = self.host.world();
        if world.guests.remove(&id).is_some() {
            let _ = self.host.events.send(Event {
                guest: id,
                kind: Kind::Destroyed,
            });
        }
        Ok(())
    }

    async fn balloon(&self, id: GuestId, memory: Mib) -> Result<(), Error> {
        self.host.act(id, Operation::Balloon, |guest, _| {
            check_balloon(id, &guest.definition, memory)?;
            guest.memory = memory;
            Ok(())
        })
    }

    async fn memory(&self, id: GuestId) -> Result<Mib, Error> {
        let mut memory = Mib(0);
        self.host.act(id, Operation::Balloon, |guest, _| {
            memory = guest.memory;
            Ok(())
        })?;
        Ok(memory)
    }

    async fn console(&self, id: GuestId, from: u64) -> Result<Console, Error> {
        self.host.with(id, |guest, _| {
            if guest.state == State::Running {
                guest.count += 1;
                let line = format!("count {:08x}\r\n", guest.count);
                guest.console.extend_from_slice(line.as_bytes());
            }
            let begin = usize::try_from(from)
                .unwrap_or(usize::MAX)
                .min(guest.console.len());
            let end = guest.console.len().min(begin + MAX_CONSOLE_READ);
            Ok(Console {
                from: begin as u64,
                bytes: guest.console[begin..end].to_vec(),
            })
        })
    }
}

fn status(guest: &Guest) -> Status {
    Status {
        id: guest.definition.id,
        name: guest.definition.name.clone(),
        state: guest.state.clone(),
        busy: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Bench, Program, conformance, id};

    struct Fake {
        host: FakeHost,
        driver: Option<FakeDriver>,
    }

    #[async_trait]
    impl Bench for Fake {
        fn driver(&self) -> &dyn NodeDriver {
            self.driver.as_ref().unwrap()
        }

        fn guest(&self, number: u128, _program: Program) -> Definition {
            Definition {
                id: id(number),
                name: "fake".parse().unwrap(),
                memory: Mib(192),
                cpus: 1,
                disks: Vec::new(),
                nics: Vec::new(),
            }
        }

        fn started(&self, id: GuestId, program: Program) {
            let fault = match program {
                Program::Counts | Program::Fills => return,
                Program::Deaf => Fault::Deaf,
                Program::SwitchesOff => Fault::SwitchesOff,
                Program::Panics => Fault::Panics,
                Program::Resets | Program::Loops => Fault::Resets,
                Program::Writes => return,
            };
            self.host.inject(id, fault).unwrap();
        }

        async fn reopen(&mut self) {
            assert!(matches!(self.host.open(), Err(Error::InUse { .. })));
            self.driver = None;
            self.driver = Some(self.host.open().unwrap());
        }

        fn kill(&self, id: GuestId) {
            self.host.inject(id, Fault::Dies).unwrap();
        }

        async fn damage(&mut self, id: GuestId) {
            self.host.inject(id, Fault::Damaged).unwrap();
            self.reopen().await;
        }

        fn hang(&self, id: GuestId) {
            self.host.inject(id, Fault::Hangs).unwrap();
        }

        fn recover(&self, id: GuestId) {
            self.host.inject(id, Fault::Recovers).unwrap();
        }
    }

    async fn fake() -> Fake {
        let host = FakeHost::default();
        let driver = Some(host.open().unwrap());
        Fake { host, driver }
    }

    conformance!(fake());

    #[tokio::test]
    async fn what_is_to_fail_fails_once_and_changes_nothing() {
        let bench = fake().await;
        let driver = bench.driver();
        let definition = bench.guest(1, Program::Counts);
        let id = definition.id;
        driver.define(definition).await.unwrap();
        bench.host.inject(id, Fault::FailsToStart).unwrap();
        assert!(matches!(driver.start(id).await, Err(Error::Start { .. })));
        assert_eq!(driver.status(id).unwrap().state, State::Defined);
        driver.start(id).await.unwrap();
        bench.host.inject(id, Fault::FailsToSuspend).unwrap();
        assert!(matches!(driver.suspend(id).await, Err(Error::Suspend { .. })));
        assert_eq!(driver.status(id).unwrap().state, State::Running);
        driver.suspend(id).await.unwrap();
    }
}
