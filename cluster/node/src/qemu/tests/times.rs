//! How long things take. The times are printed; only ones whose median is off by far are failures, since the machine may
//! have other things to do for a while.

use std::time::{Duration, Instant};

use super::Host;
use super::program::FILLED;
use crate::NodeDriver;
use crate::conformance::{Bench, Program, counts_beyond, started};

/// How long it may take to pause, resume, suspend and restore a guest.
const PROMISED: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(50),
    Duration::from_millis(1500),
    Duration::from_millis(1000),
];

/// How many times what is promised a test machine may take.
const SLACK: u32 = 10;

/// How often each is done.
const ROUNDS: usize = 9;

#[tokio::test]
#[ignore = "needs QEMU"]
async fn what_is_done_to_a_guest_takes_no_time_that_a_person_notices() {
    for program in [Program::Counts, Program::Fills] {
        let bench = Host::with(|_| {}).await;
        times(&bench, program).await;
    }
}

async fn times(bench: &Host, program: Program) {
    let driver = bench.driver.as_ref().unwrap();
    let definition = bench.guest(1, program);
    let id = definition.id;
    driver.define(definition).await.unwrap();
    let began = Instant::now();
    driver.start(id).await.unwrap();
    let start = began.elapsed();
    let mut count = counts_beyond(driver, id, 1).await;
    let (mut times, mut bytes) = ([const { Vec::new() }; 4], 0);
    for _ in 0..ROUNDS {
        for (number, times) in times.iter_mut().enumerate() {
            let began = Instant::now();
            match number {
                0 => driver.pause(id).await.unwrap(),
                1 => driver.resume(id).await.unwrap(),
                2 => driver.suspend(id).await.unwrap(),
                _ => driver.restore(id).await.unwrap(),
            }
            times.push(began.elapsed());
            if number == 2 {
                bytes = bench.folder(id).manifest().unwrap().bytes;
            }
        }
        count = counts_beyond(driver, id, count).await;
    }
    if program == Program::Fills {
        assert!(bytes > u64::from(FILLED.end - FILLED.start), "{bytes}");
    }
    for (times, promised) in times.iter_mut().zip(PROMISED) {
        times.sort();
        let median = times[ROUNDS / 2];
        assert!(
            median < SLACK * promised,
            "{median:?} where {promised:?} is promised"
        );
    }
    let [pause, resume, suspend, restore] =
        times.map(|times| format!("{:.0?} (at most {:.0?})", times[ROUNDS / 2], times[ROUNDS - 1]));
    println!(
        "a guest of 192 MiB, emulated, {} MB of it saved, the median of {ROUNDS}: start {start:.0?}, pause {pause}, \
         resume {resume}, suspend {suspend}, restore {restore}",
        bytes / 1_000_000
    );
    driver.destroy(id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_driver_finds_many_guests_in_little_time() {
    const GUESTS: u128 = 8;
    let mut bench = Host::with(|config| config.answer = Duration::from_secs(30)).await;
    for number in 1..=GUESTS {
        started(&mut bench, number, Program::Counts).await;
    }
    bench.close().await;
    let began = Instant::now();
    bench.open().await;
    let took = began.elapsed();
    println!("{GUESTS} running guests found again in {took:.1?}, QEMU's versions asked included");
    assert!(took < Duration::from_secs(30));
    let driver = bench.driver.as_ref().unwrap();
    for status in driver.list() {
        assert_eq!(status.state, crate::State::Running);
        driver.destroy(status.id).await.unwrap();
    }
}
