//! The planner's rules, one by one.

use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::{Bitfield, Dropped, Event, Failure, Limits, Request, Role, SourceId, Swarm};

const ORIGIN: SourceId = SourceId(0);
const A: SourceId = SourceId(1);
const B: SourceId = SourceId(2);

fn swarm(chunks: u32) -> Swarm<ChaCha8Rng> {
    let mut swarm = Swarm::new(
        Limits::default(),
        Bitfield::empty(chunks),
        ChaCha8Rng::seed_from_u64(1),
    );
    swarm.source_has(ORIGIN, Role::Origin, Bitfield::full(chunks));
    swarm
}

fn some(chunks: u32, had: &[u32]) -> Bitfield {
    let mut some = Bitfield::empty(chunks);
    for chunk in had {
        some.insert(*chunk);
    }
    some
}

fn requests(swarm: &mut Swarm<ChaCha8Rng>, now: Instant) -> Vec<Request> {
    std::iter::from_fn(|| swarm.poll_request(now)).collect()
}

fn events(swarm: &mut Swarm<ChaCha8Rng>) -> Vec<Event> {
    std::iter::from_fn(|| swarm.poll_event()).collect()
}

#[test]
fn what_a_host_has_is_not_asked_of_the_origin() {
    let now = Instant::now();
    let mut swarm = swarm(4);
    swarm.source_has(A, Role::Host, some(4, &[0, 1]));
    let asked = requests(&mut swarm, now);
    let of = |source| {
        let mut chunks: Vec<_> = asked
            .iter()
            .filter(|request| request.source == source)
            .map(|request| request.chunk)
            .collect();
        chunks.sort_unstable();
        chunks
    };
    assert_eq!((of(A), of(ORIGIN)), (vec![0, 1], vec![2, 3]));
}

#[test]
fn the_rarest_chunk_is_asked_first() {
    let now = Instant::now();
    let mut swarm = swarm(3);
    swarm.source_has(B, Role::Host, some(3, &[0, 1]));
    swarm.source_has(A, Role::Host, some(3, &[0, 1, 2]));
    let first = requests(&mut swarm, now)
        .into_iter()
        .find(|request| request.source == A)
        .unwrap();
    assert_eq!(first.chunk, 2);
}

#[test]
fn a_host_that_sends_a_wrong_chunk_is_dropped_at_once_and_its_chunks_are_asked_of_others() {
    let now = Instant::now();
    let mut swarm = swarm(8);
    swarm.source_has(A, Role::Host, Bitfield::full(8));
    let asked = requests(&mut swarm, now);
    let of_a: Vec<_> = asked
        .iter()
        .filter(|request| request.source == A)
        .copied()
        .collect();
    assert_eq!(of_a.len(), 2);
    swarm.wrong(of_a[0]);
    let events = events(&mut swarm);
    assert!(events.contains(&Event::Dropped(A, Dropped::WrongChunk(of_a[0].chunk))));
    assert!(events.contains(&Event::Cancel(of_a[1])));
    assert!(
        requests(&mut swarm, now)
            .iter()
            .all(|request| request.source == ORIGIN)
    );
}

#[test]
fn a_host_that_gives_nothing_is_dropped_and_meanwhile_the_origin_is_asked() {
    let start = Instant::now();
    let mut swarm = swarm(8);
    swarm.source_has(A, Role::Host, Bitfield::full(8));
    assert!(
        requests(&mut swarm, start)
            .iter()
            .all(|request| request.source == A)
    );
    let quiet = swarm.poll_timeout(start).unwrap();
    let quiet = quiet.max(start + Limits::default().quiet);
    swarm.handle_timeout(quiet);
    let asked = requests(&mut swarm, quiet);
    assert!(!asked.is_empty() && asked.iter().all(|request| request.source == ORIGIN));
    for request in asked {
        swarm.received(request, quiet);
    }
    swarm.handle_timeout(start + Limits::default().stall);
    assert!(events(&mut swarm).contains(&Event::Dropped(A, Dropped::Silent)));
}

#[test]
fn a_host_that_has_not_what_it_says_is_dropped() {
    let mut now = Instant::now();
    let mut swarm = swarm(64);
    swarm.source_has(A, Role::Host, Bitfield::full(64));
    for _ in 0..3 {
        let asked = requests(&mut swarm, now);
        let of_a = asked.iter().find(|request| request.source == A);
        swarm.failed(*of_a.unwrap(), Failure::Absent, now);
        now += Duration::from_secs(6);
    }
    assert!(events(&mut swarm).contains(&Event::Dropped(A, Dropped::Failing)));
}

#[test]
fn the_origin_is_waited_for_though_it_fails() {
    let mut now = Instant::now();
    let mut swarm = swarm(1);
    for _ in 0..20 {
        let [request] = requests(&mut swarm, now)[..] else {
            panic!("it is not asked again");
        };
        swarm.failed(request, Failure::Broken, now);
        assert_eq!(requests(&mut swarm, now), [], "it is asked again at once");
        now = swarm.poll_timeout(now).unwrap();
    }
}

#[test]
fn what_is_late_at_the_end_is_asked_of_another_and_the_second_is_cancelled() {
    let now = Instant::now();
    let mut swarm = swarm(1);
    swarm.source_has(A, Role::Host, Bitfield::full(1));
    swarm.source_has(B, Role::Host, Bitfield::full(1));
    let first = requests(&mut swarm, now);
    assert_eq!(first.len(), 1);
    let late = now + Limits::default().late;
    let second = requests(&mut swarm, late);
    assert_eq!(second.len(), 1);
    assert_ne!(first[0].source, second[0].source);
    assert_eq!(requests(&mut swarm, late), [], "a third is asked");
    swarm.received(second[0], late);
    assert_eq!(events(&mut swarm), [Event::Cancel(first[0]), Event::Complete]);
}

#[test]
fn no_source_and_not_all_together_are_asked_for_more_than_they_may() {
    let now = Instant::now();
    let mut swarm = swarm(1000);
    for id in 1..40 {
        swarm.source_has(SourceId(id), Role::Host, Bitfield::full(1000));
    }
    let asked = requests(&mut swarm, now);
    assert_eq!(asked.len(), Limits::default().in_flight);
    let one = asked
        .iter()
        .filter(|request| request.source == asked[0].source)
        .count();
    assert!(one <= Limits::default().per_host);
}

#[test]
fn nothing_is_asked_when_all_is_had() {
    let now = Instant::now();
    let mut swarm = Swarm::new(Limits::default(), Bitfield::full(9), ChaCha8Rng::seed_from_u64(1));
    swarm.source_has(ORIGIN, Role::Origin, Bitfield::full(9));
    assert_eq!(events(&mut swarm), [Event::Complete]);
    assert_eq!(requests(&mut swarm, now), []);
}

/// A host that has everything and sends a byte of each chunk a second, from a time on until another; what else is asked
/// meanwhile comes at once. How much of it was of the origin.
fn creeps(swarm: &mut Swarm<ChaCha8Rng>, start: Instant, seconds: std::ops::Range<u64>) -> usize {
    let (mut of_a, mut of_origin) = (requests(swarm, start), 0);
    for second in seconds {
        let now = start + Duration::from_secs(second);
        for request in &of_a {
            swarm.moved(*request, now);
        }
        swarm.handle_timeout(now);
        for request in requests(swarm, now) {
            if request.source == A {
                of_a.push(request);
            } else {
                of_origin += 1;
                swarm.received(request, now);
            }
        }
    }
    of_origin
}

#[test]
fn while_a_host_only_creeps_the_origin_is_asked_for_what_it_says_it_has() {
    let (start, limits) = (Instant::now(), Limits::default());
    let mut swarm = swarm(100);
    swarm.source_has(A, Role::Host, Bitfield::full(100));
    assert_eq!(
        creeps(&mut swarm, start, 1..4),
        0,
        "it has no time to give anything"
    );
    assert!(creeps(&mut swarm, start, 4..5) >= limits.per_origin);
}

#[test]
fn a_host_that_takes_far_longer_than_others_is_dropped() {
    let start = Instant::now();
    let mut swarm = swarm(1000);
    swarm.source_has(A, Role::Host, Bitfield::full(1000));
    creeps(&mut swarm, start, 1..30);
    assert!(events(&mut swarm).contains(&Event::Dropped(A, Dropped::Slow)));
}

#[test]
fn hosts_take_no_places_of_the_origin() {
    let now = Instant::now();
    let mut swarm = swarm(1000);
    let some = some(1000, &(0..500).collect::<Vec<_>>());
    for id in 1..40 {
        swarm.source_has(SourceId(id), Role::Host, some.clone());
    }
    let asked = requests(&mut swarm, now);
    let of_origin = asked.iter().filter(|request| request.source == ORIGIN);
    assert_eq!(of_origin.count(), Limits::default().per_origin);
    assert_eq!(
        asked.len(),
        Limits::default().in_flight + Limits::default().per_origin
    );
}

#[test]
fn a_request_ends_before_the_fetch_that_it_is_of() {
    let fetch = crate::CacheConfig::new("cache");
    assert!(fetch.limits.chunk < fetch.patience);
}
