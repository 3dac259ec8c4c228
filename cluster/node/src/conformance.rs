//! What every driver has to do, asked of each.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::broadcast;
use tokio::time::timeout;
use uuid::Uuid;

use crate::{Definition, End, Error, Event, GuestId, Kind, Mib, NodeDriver, State};

/// How long anything may take under emulation on a machine that has other things to do.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// It counts on its console, and switches itself off when its power button is pressed.
    Counts,
    /// It fills its memory, so that all of it has to be saved, and then counts.
    #[allow(dead_code, reason = "a guest that has no memory fills none")]
    Fills,
    /// It counts, and does not hear its power button.
    Deaf,
    /// It counts to three and switches itself off.
    SwitchesOff,
    /// It counts to three and says that it panicked.
    Panics,
    /// It counts to three and begins anew.
    Resets,
    /// It begins anew at once, over and over.
    #[allow(dead_code, reason = "a guest that runs nothing does not loop")]
    Loops,
    /// It counts, and writes far behind on its disk each time.
    #[allow(dead_code, reason = "a guest that has no disk writes none")]
    Writes,
}

/// A host with a driver.
#[async_trait]
pub(crate) trait Bench: Send {
    fn driver(&self) -> &dyn NodeDriver;
    /// A guest that is not yet defined.
    fn guest(&self, number: u128, program: Program) -> Definition;
    /// The guest was started: what its program does by itself, it does now.
    fn started(&self, id: GuestId, program: Program);
    /// The driver ends, and another begins.
    async fn reopen(&mut self);
    /// The driver ends, what is kept of the guest is damaged, and another driver begins.
    async fn damage(&mut self, id: GuestId);
    /// The guest's hypervisor dies.
    fn kill(&self, id: GuestId);
    /// The guest's hypervisor does not answer any more.
    fn hang(&self, id: GuestId);
    /// The guest's hypervisor answers again.
    fn recover(&self, id: GuestId);
}

pub(crate) fn id(number: u128) -> GuestId {
    GuestId(Uuid::from_u128(number))
}

pub(crate) async fn started(bench: &mut dyn Bench, number: u128, program: Program) -> GuestId {
    let definition = bench.guest(number, program);
    let id = definition.id;
    bench.driver().define(definition).await.unwrap();
    bench.driver().start(id).await.unwrap();
    bench.started(id, program);
    id
}

pub(crate) fn state(bench: &dyn Bench, id: GuestId) -> State {
    bench.driver().status(id).unwrap().state
}

/// The last whole number that a guest has counted to, in what is on its console from there.
async fn last_count(driver: &dyn NodeDriver, id: GuestId, from: &mut u64) -> Option<u64> {
    let part = driver.console(id, *from).await.unwrap();
    let text = part.text();
    let (whole, _) = text.rsplit_once('\n')?;
    *from = part.from + whole.len() as u64 + 1;
    whole.lines().rev().find_map(|line| {
        let (_, number) = line.trim().split_once("count ")?;
        u64::from_str_radix(number.get(..8)?, 16).ok()
    })
}

/// Waits until a guest counts beyond a number; returns what it counted to.
pub(crate) async fn counts_beyond(driver: &dyn NodeDriver, id: GuestId, beyond: u64) -> u64 {
    let (until, mut from) = (Instant::now() + LIMIT, 0);
    loop {
        match last_count(driver, id, &mut from).await {
            Some(count) if count > beyond => return count,
            _ => {}
        }
        assert!(
            Instant::now() < until,
            "guest {id} does not count beyond {beyond}; it is {:?}, its console has {:?}",
            driver.status(id),
            driver.console(id, 0).await.map(|console| console.text()),
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The number that a guest that does not run has counted to. It has counted, and all that it wrote is read.
pub(crate) async fn counted(driver: &dyn NodeDriver, id: GuestId) -> u64 {
    let (mut from, mut last) = (0, None);
    loop {
        let before = from;
        last = last_count(driver, id, &mut from).await.or(last);
        if from == before {
            return last.unwrap_or_else(|| panic!("guest {id} has not counted: {:?}", driver.status(id)));
        }
    }
}

/// The number that a guest stands still at, while another one, that runs beside, counts on: that is how time passes for
/// guests.
async fn stands_still(driver: &dyn NodeDriver, id: GuestId, beside: GuestId) -> u64 {
    let stood = counted(driver, id).await;
    let now = counts_beyond(driver, beside, 0).await;
    counts_beyond(driver, beside, now + 3).await;
    assert_eq!(
        counted(driver, id).await,
        stood,
        "guest {id} does not stand still"
    );
    stood
}

/// Waits until a guest's state is such.
pub(crate) async fn until(
    bench: &dyn Bench,
    id: GuestId,
    what: &str,
    such: impl Fn(&State) -> bool,
) -> State {
    let limit = Instant::now() + LIMIT;
    loop {
        let state = state(bench, id);
        if such(&state) {
            return state;
        }
        assert!(Instant::now() < limit, "guest {id} is {state:?}, not {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn next_of(events: &mut broadcast::Receiver<Event>, id: GuestId) -> Kind {
    loop {
        let event = timeout(LIMIT, events.recv()).await.expect("an event").unwrap();
        if event.guest == id {
            return event.kind;
        }
    }
}

pub(crate) async fn a_guest_lives_and_ends(bench: &mut dyn Bench) {
    let mut events = bench.driver().events();
    let definition = bench.guest(1, Program::Counts);
    let id = definition.id;
    assert!(matches!(
        bench.driver().start(id).await,
        Err(Error::UnknownGuest(_))
    ));
    for _ in 0..2 {
        bench.driver().define(definition.clone()).await.unwrap();
    }
    let mut other = definition.clone();
    other.cpus = 2;
    assert!(matches!(
        bench.driver().define(other).await,
        Err(Error::Exists(_))
    ));
    assert_eq!(state(bench, id), State::Defined);
    for _ in 0..2 {
        bench.driver().start(id).await.unwrap();
    }
    assert_eq!(state(bench, id), State::Running);
    counts_beyond(bench.driver(), id, 1).await;

    for _ in 0..2 {
        bench.driver().pause(id).await.unwrap();
    }
    assert_eq!(state(bench, id), State::Paused);
    let beside = started(bench, 2, Program::Counts).await;
    let stood = stands_still(bench.driver(), id, beside).await;
    bench.driver().destroy(beside).await.unwrap();
    for _ in 0..2 {
        bench.driver().resume(id).await.unwrap();
    }
    counts_beyond(bench.driver(), id, stood).await;

    assert_eq!(bench.driver().stop(id, LIMIT).await.unwrap(), End::Asked);
    assert_eq!(state(bench, id), State::Stopped(End::Asked));
    assert_eq!(bench.driver().stop(id, LIMIT).await.unwrap(), End::Asked);
    bench.driver().start(id).await.unwrap();
    assert_eq!(
        bench.driver().stop(id, Duration::ZERO).await.unwrap(),
        End::Forced
    );
    for _ in 0..2 {
        bench.driver().destroy(id).await.unwrap();
    }
    assert!(matches!(bench.driver().status(id), Err(Error::UnknownGuest(_))));
    assert_eq!(bench.driver().list(), []);
    for expected in [
        Kind::Defined,
        Kind::Started,
        Kind::Paused,
        Kind::Resumed,
        Kind::Stopped(End::Asked),
        Kind::Started,
        Kind::Stopped(End::Forced),
        Kind::Destroyed,
    ] {
        assert_eq!(next_of(&mut events, id).await, expected);
    }
}

pub(crate) async fn what_the_state_does_not_allow_is_refused_and_says_so(bench: &mut dyn Bench) {
    let definition = bench.guest(1, Program::Counts);
    let id = definition.id;
    bench.driver().define(definition).await.unwrap();
    let error = bench.driver().pause(id).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("cannot pause guest {id}, which is defined: start it first")
    );
    let error = bench.driver().restore(id).await.unwrap_err().to_string();
    assert!(
        error.ends_with("which is defined: it was not suspended; start it"),
        "{error}"
    );
    assert_eq!(
        bench.driver().stop(id, LIMIT).await.unwrap(),
        End::Itself,
        "nothing to stop"
    );
    bench.driver().start(id).await.unwrap();
    bench.driver().pause(id).await.unwrap();
    let error = bench.driver().start(id).await.unwrap_err().to_string();
    assert!(error.ends_with("which is paused: resume it"), "{error}");
    bench.driver().suspend(id).await.unwrap();
    for refused in [
        bench.driver().start(id).await,
        bench.driver().resume(id).await,
        bench.driver().stop(id, LIMIT).await.map(drop),
    ] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("which is suspended: "), "{error}");
    }
    bench.driver().suspend(id).await.unwrap();
    bench.driver().destroy(id).await.unwrap();
}

pub(crate) async fn a_guest_that_was_suspended_goes_on_where_it_was(bench: &mut dyn Bench) {
    let mut events = bench.driver().events();
    let beside = started(bench, 2, Program::Counts).await;
    let id = started(bench, 1, Program::Counts).await;
    let before = counts_beyond(bench.driver(), id, 3).await;
    bench.driver().suspend(id).await.unwrap();
    assert_eq!(state(bench, id), State::Suspended);
    let then = stands_still(bench.driver(), id, beside).await;
    assert!(then >= before);
    bench.driver().restore(id).await.unwrap();
    assert_eq!(state(bench, id), State::Running);
    counts_beyond(bench.driver(), id, then).await;
    // It did not begin anew: what it counted is each number once.
    let text = bench.driver().console(id, 0).await.unwrap().text();
    assert_eq!(text.matches("count 00000001").count(), 1, "{text}");

    let error = bench.driver().restore(id).await.unwrap_err().to_string();
    assert!(
        error.contains("which is running: it has run on since it was suspended"),
        "{error}"
    );
    // One that stands still stands still afterwards.
    bench.driver().pause(id).await.unwrap();
    bench.driver().suspend(id).await.unwrap();
    bench.driver().restore(id).await.unwrap();
    assert_eq!(state(bench, id), State::Paused);
    assert!(bench.driver().restore(id).await.is_err());
    let stood = stands_still(bench.driver(), id, beside).await;
    bench.driver().resume(id).await.unwrap();
    counts_beyond(bench.driver(), id, stood).await;
    for id in [id, beside] {
        bench.driver().destroy(id).await.unwrap();
    }
    for expected in [
        Kind::Defined,
        Kind::Started,
        Kind::Suspended,
        Kind::Restored,
        Kind::Paused,
        Kind::Suspended,
        Kind::Restored,
        Kind::Resumed,
        Kind::Destroyed,
    ] {
        assert_eq!(next_of(&mut events, id).await, expected);
    }
}

pub(crate) async fn another_driver_finds_all_guests_as_they_are(bench: &mut dyn Bench) {
    let running = started(bench, 1, Program::Counts).await;
    let paused = started(bench, 2, Program::Counts).await;
    let suspended = started(bench, 3, Program::Counts).await;
    let stopped = started(bench, 4, Program::Counts).await;
    let defined = bench.guest(5, Program::Counts);
    let never = defined.id;
    bench.driver().define(defined).await.unwrap();
    let mut counts = Vec::new();
    for id in [running, paused, suspended] {
        counts.push(counts_beyond(bench.driver(), id, 1).await);
    }
    bench.driver().pause(paused).await.unwrap();
    bench.driver().suspend(suspended).await.unwrap();
    bench.driver().stop(stopped, Duration::ZERO).await.unwrap();

    bench.reopen().await;
    let found: Vec<_> = bench
        .driver()
        .list()
        .into_iter()
        .map(|status| status.state)
        .collect();
    assert_eq!(
        found,
        [
            State::Running,
            State::Paused,
            State::Suspended,
            State::Stopped(End::Forced),
            State::Defined
        ]
    );
    bench.driver().resume(paused).await.unwrap();
    bench.driver().restore(suspended).await.unwrap();
    for (id, count) in [running, paused, suspended].into_iter().zip(counts) {
        counts_beyond(bench.driver(), id, count).await;
        let text = bench.driver().console(id, 0).await.unwrap().text();
        assert_eq!(text.matches("count 00000001").count(), 1, "{text}");
    }
    assert_eq!(bench.driver().stop(running, LIMIT).await.unwrap(), End::Asked);
    for id in [running, paused, suspended, stopped, never] {
        bench.driver().destroy(id).await.unwrap();
    }
    bench.reopen().await;
    assert_eq!(bench.driver().list(), []);
}

pub(crate) async fn a_guest_that_dies_has_crashed_and_can_be_started(bench: &mut dyn Bench) {
    let id = started(bench, 1, Program::Counts).await;
    let mut events = bench.driver().events();
    bench.kill(id);
    let Kind::Crashed(why) = next_of(&mut events, id).await else {
        panic!("it has not crashed");
    };
    assert_eq!(state(bench, id), State::Crashed { why });
    bench.reopen().await;
    assert!(matches!(state(bench, id), State::Crashed { .. }));
    bench.driver().start(id).await.unwrap();
    assert_eq!(state(bench, id), State::Running);
    bench.driver().destroy(id).await.unwrap();
}

pub(crate) async fn what_a_guest_does_by_itself_is_told(bench: &mut dyn Bench) {
    let mut events = bench.driver().events();
    for (number, program, expected) in [
        (1, Program::SwitchesOff, Kind::Stopped(End::Itself)),
        (2, Program::Panics, Kind::Panicked),
        (3, Program::Resets, Kind::Reset),
    ] {
        let id = started(bench, number, program).await;
        for expected in [Kind::Defined, Kind::Started, expected] {
            assert_eq!(next_of(&mut events, id).await, expected);
        }
        match program {
            Program::Panics => {
                let why = "its kernel panicked".to_owned();
                assert_eq!(next_of(&mut events, id).await, Kind::Crashed(why.clone()));
                assert_eq!(state(bench, id), State::Crashed { why });
            }
            Program::SwitchesOff => assert_eq!(state(bench, id), State::Stopped(End::Itself)),
            _ => assert_eq!(state(bench, id), State::Running),
        }
        bench.driver().destroy(id).await.unwrap();
    }
}

pub(crate) async fn a_guest_that_does_not_answer_is_reported_and_the_others_go_on(bench: &mut dyn Bench) {
    let id = started(bench, 1, Program::Counts).await;
    let other = started(bench, 2, Program::Counts).await;
    let mut events = bench.driver().events();
    bench.hang(id);
    let error = bench.driver().pause(id).await.unwrap_err().to_string();
    assert!(
        error.ends_with("which is unresponsive: wait until it answers, stop it, or destroy it"),
        "{error}"
    );
    let State::Unresponsive { why } = state(bench, id) else {
        panic!("{:?}", state(bench, id));
    };
    assert_eq!(next_of(&mut events, id).await, Kind::Unresponsive(why));
    bench.driver().pause(other).await.unwrap();
    bench.recover(id);
    until(bench, id, "running again", |state| *state == State::Running).await;
    bench.driver().pause(id).await.unwrap();
    // It ran all along, and so was not resumed.
    assert_eq!(next_of(&mut events, id).await, Kind::Responsive);
    assert_eq!(next_of(&mut events, id).await, Kind::Paused);
    bench.hang(id);
    let _ = bench.driver().resume(id).await;
    let _ = bench.driver().pause(id).await;
    bench.driver().destroy(id).await.unwrap();
    bench.driver().destroy(other).await.unwrap();
}

pub(crate) async fn a_damaged_guest_is_left_alone_and_keeps_no_other_from_being_found(bench: &mut dyn Bench) {
    let runs = started(bench, 1, Program::Counts).await;
    let suspended = started(bench, 2, Program::Counts).await;
    let other = started(bench, 3, Program::Counts).await;
    for id in [runs, suspended, other] {
        counts_beyond(bench.driver(), id, 0).await;
    }
    bench.driver().suspend(suspended).await.unwrap();
    for id in [runs, suspended] {
        bench.damage(id).await;
    }
    assert_eq!(state(bench, other), State::Running);
    let count = counts_beyond(bench.driver(), other, 1).await;
    let driver = bench.driver();
    for (id, lives) in [(runs, true), (suspended, false)] {
        let found = state(bench, id);
        assert!(
            matches!(&found, State::Damaged { why, live } if !why.is_empty() && *live == lives),
            "{found:?}"
        );
        assert_eq!(found.is_live(), lives);
        for refused in [
            driver.start(id).await,
            driver.pause(id).await,
            driver.resume(id).await,
            driver.suspend(id).await,
            driver.restore(id).await,
            driver.stop(id, Duration::ZERO).await.map(drop),
            driver.balloon(id, Mib(64)).await,
            driver.memory(id).await.map(drop),
        ] {
            let error = refused.unwrap_err().to_string();
            assert!(
                error.ends_with(
                    "which is damaged: mend the file that its state names and open the driver again, or destroy it"
                ),
                "{error}"
            );
        }
        assert!(
            driver
                .console(id, 0)
                .await
                .unwrap()
                .text()
                .contains("count 00000001")
        );
    }
    let mut again = bench.guest(1, Program::Counts);
    again.cpus = 2;
    assert!(matches!(driver.define(again).await, Err(Error::Exists(_))));
    let mut events = driver.events();
    for id in [runs, suspended] {
        driver.destroy(id).await.unwrap();
        assert_eq!(next_of(&mut events, id).await, Kind::Destroyed);
        assert!(matches!(driver.status(id), Err(Error::UnknownGuest(_))));
    }
    counts_beyond(driver, other, count).await;
    driver.destroy(other).await.unwrap();
    assert_eq!(driver.list(), []);
}

pub(crate) async fn a_guest_that_does_not_listen_is_switched_off(bench: &mut dyn Bench) {
    let id = started(bench, 1, Program::Deaf).await;
    counts_beyond(bench.driver(), id, 0).await;
    let grace = Duration::from_millis(300);
    assert_eq!(bench.driver().stop(id, grace).await.unwrap(), End::Forced);
    assert_eq!(state(bench, id), State::Stopped(End::Forced));
    bench.driver().start(id).await.unwrap();
    bench.hang(id);
    assert_eq!(
        bench.driver().stop(id, Duration::ZERO).await.unwrap(),
        End::Forced
    );
    bench.driver().destroy(id).await.unwrap();
}

pub(crate) async fn a_guest_may_have_any_time_to_stop(bench: &mut dyn Bench) {
    let id = started(bench, 1, Program::Counts).await;
    counts_beyond(bench.driver(), id, 1).await;
    assert_eq!(bench.driver().stop(id, Duration::MAX).await.unwrap(), End::Asked);
    assert_eq!(state(bench, id), State::Stopped(End::Asked));
    bench.driver().destroy(id).await.unwrap();
}

pub(crate) async fn a_guest_has_as_much_memory_as_it_is_told(bench: &mut dyn Bench) {
    let id = started(bench, 1, Program::Counts).await;
    let most = bench.guest(1, Program::Counts).memory;
    assert_eq!(bench.driver().memory(id).await.unwrap(), most);
    for wrong in [Mib(0), Mib(most.0 + 1)] {
        let error = bench.driver().balloon(id, wrong).await.unwrap_err().to_string();
        assert!(error.ends_with(&format!("use 1 MiB to {most}")), "{error}");
    }
    bench.driver().balloon(id, most).await.unwrap();
    bench.driver().suspend(id).await.unwrap();
    assert!(matches!(
        bench.driver().memory(id).await,
        Err(Error::Refused { .. })
    ));
    bench.driver().destroy(id).await.unwrap();
}

/// The tests, for one driver. `$bench` makes a host.
macro_rules! conformance {
    (@one $bench:expr; [$(#[$attribute:meta])*]; $name:ident) => {
        #[tokio::test]
        $(#[$attribute])*
        async fn $name() {
            let mut bench = $bench.await;
            crate::conformance::$name(&mut bench).await;
        }
    };
    (@all $bench:expr; $attributes:tt; $($name:ident)*) => {
        $(crate::conformance::conformance!(@one $bench; $attributes; $name);)*
    };
    ($bench:expr $(, #[$attribute:meta])*) => {
        crate::conformance::conformance! {
            @all $bench; [$(#[$attribute])*];
            a_guest_lives_and_ends
            what_the_state_does_not_allow_is_refused_and_says_so
            a_guest_that_was_suspended_goes_on_where_it_was
            another_driver_finds_all_guests_as_they_are
            a_guest_that_dies_has_crashed_and_can_be_started
            what_a_guest_does_by_itself_is_told
            a_guest_that_does_not_answer_is_reported_and_the_others_go_on
            a_damaged_guest_is_left_alone_and_keeps_no_other_from_being_found
            a_guest_that_does_not_listen_is_switched_off
            a_guest_may_have_any_time_to_stop
            a_guest_has_as_much_memory_as_it_is_told
        }
    };
}
pub(crate) use conformance;
