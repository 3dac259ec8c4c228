//! The search against a link that is narrow, loses, changes or is gone.
#![expect(clippy::disallowed_methods, reason = "a test's clock starts somewhere")]

use aerie_types::UnderlayAddr;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// The inner MTU that nodes have.
const INNER: usize = 1420;
const DIRECT: usize = INNER + DATA_OVERHEAD;

fn route(last: u8) -> Route {
    Route::Direct(UnderlayAddr(([192, 0, 2, last], 4242).into()))
}

fn way(inner: usize) -> Way {
    Way {
        route: route(1),
        v6: false,
        frame: 0,
        inner,
    }
}

/// A search and the link that it is about.
struct Bench {
    mtu: Mtu,
    start: Instant,
    now: Instant,
    rtt: Duration,
    /// The longest datagram that passes; 0 for a link that is down.
    link: usize,
    /// This host's own link.
    own: usize,
    /// Of 100 datagrams and answers, how many are lost.
    loss: u32,
    rng: StdRng,
    answers: Vec<(Instant, u64)>,
    transaction: u64,
    probes: usize,
    bytes: usize,
    /// Limits below the truth that were in force, and ones above it that were told.
    told: Vec<usize>,
}

impl Bench {
    fn new(link: usize) -> Self {
        Self::of(way(INNER), link)
    }

    fn of(way: Way, link: usize) -> Self {
        let now = Instant::now();
        let mut mtu = Mtu::new(now);
        mtu.set_way(Some(way), now);
        Self {
            mtu,
            start: now,
            now,
            rtt: Duration::from_millis(40),
            link,
            own: usize::MAX,
            loss: 0,
            rng: StdRng::seed_from_u64(7),
            answers: Vec::new(),
            transaction: 0,
            probes: 0,
            bytes: 0,
            told: Vec::new(),
        }
    }

    /// Lets time pass. Each `every`, a long packet goes out; where it passes and `talks`, one comes back.
    fn run(&mut self, duration: Duration, every: Option<Duration>, talks: bool) {
        let end = self.now + duration;
        let mut packet = every.map(|every| self.now + every);
        loop {
            let answer = self.answers.iter().map(|(at, _)| *at).min();
            let next = [self.mtu.poll_timeout(), answer, packet];
            let Some(next) = next.into_iter().flatten().min().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            if let Some(at) = packet.filter(|at| *at <= self.now) {
                packet = every.map(|every| at + every);
                let len = self.mtu.inner().min(INNER) + DATA_OVERHEAD;
                self.mtu.sent(len, self.now);
                if talks && len <= self.link {
                    self.mtu.heard();
                }
            }
            let (due, later) = self.answers.drain(..).partition(|(at, _)| *at <= self.now);
            self.answers = later;
            let due: Vec<(Instant, u64)> = due;
            for (_, transaction) in due {
                assert!(
                    self.mtu
                        .answered(self.mtu.way.unwrap().route, transaction, self.now)
                );
            }
            self.send();
            self.told.extend(self.mtu.proved());
        }
        self.now = end;
    }

    fn send(&mut self) {
        let Self { mtu, transaction, .. } = self;
        let probes = mtu.poll(Some(self.rtt), self.now, || {
            *transaction += 1;
            *transaction
        });
        for (transaction, len) in probes {
            if len > self.own {
                self.mtu.refused(len, self.now);
                continue;
            }
            self.probes += 1;
            self.bytes += len;
            let lost = self.rng.next_u32() % 100 < self.loss || self.rng.next_u32() % 100 < self.loss;
            if len <= self.link && !lost {
                self.answers.push((self.now + self.rtt, transaction));
            }
        }
    }

    fn limit(&self) -> Option<usize> {
        self.mtu.proved().map(|inner| inner + DATA_OVERHEAD)
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_way_that_takes_everything_costs_one_probe() {
    let mut bench = Bench::new(1472);
    assert_eq!(bench.mtu.inner(), usize::MAX, "as long as nothing is known");
    bench.run(SECOND, None, false);
    assert_eq!((bench.limit(), bench.probes), (Some(DIRECT), 1));
    assert_eq!(bench.mtu.inner(), INNER);
}

#[test]
fn a_narrow_link_is_found_within_a_few_round_trips() {
    for (link, found) in [
        (1400, 1372),
        (1300, 1272),
        (1280, 1252),
        (1228, 1200),
        (1419, 1372),
    ] {
        let mut bench = Bench::new(link - 28);
        // Two round trips of patience for the longest, and one for all of them.
        bench.run(Duration::from_millis(150), None, false);
        assert_eq!(bench.limit(), Some(found), "{link}");
        bench.run(HOUR, None, false);
        assert_eq!(bench.limit(), Some(found), "{link}");
        assert!(
            bench.told.iter().all(|inner| inner + DATA_OVERHEAD <= link - 28),
            "{link}"
        );
    }
}

#[test]
fn the_headers_of_ipv6_and_of_a_relay_count() {
    let relayed = Way {
        route: Route::Relayed(7),
        v6: true,
        frame: crate::wire::RELAY_OVERHEAD,
        inner: INNER,
    };
    let mut bench = Bench::of(relayed, 1400 - 48);
    bench.run(SECOND, None, false);
    assert_eq!(bench.mtu.proved(), Some(1400 - 48 - 16 - 32));
}

#[test]
fn jumbo_frames_are_used_where_they_pass_and_ethernet_where_they_do_not() {
    for (link, inner) in [(9000, 8900), (8896, 8836), (1500, 1440)] {
        let mut bench = Bench::of(way(8900), link - 28);
        bench.run(SECOND, None, false);
        assert_eq!(bench.mtu.proved(), Some(inner), "{link}");
    }
}

#[test]
fn what_the_own_link_refuses_is_not_waited_for() {
    let mut bench = Bench::new(1372);
    bench.own = 1372;
    bench.run(bench.rtt * 2, None, false);
    assert_eq!(bench.limit(), Some(1372));
    assert!(bench.mtu.limit.is_some_and(|limit| limit == 1372));
    // The link is replaced by one that takes more.
    (bench.own, bench.link) = (1472, 1472);
    bench.run(RAISE + SECOND, None, false);
    assert_eq!(bench.limit(), Some(DIRECT));
    // And by one that takes less.
    (bench.own, bench.link) = (1272, 1272);
    bench.run(CONFIRM + bench.rtt * 3, None, false);
    assert_eq!(bench.limit(), Some(1272));
}

#[test]
fn a_refusal_of_what_was_not_asked_changes_nothing() {
    let mut bench = Bench::new(1472);
    bench.run(SECOND, None, false);
    bench.mtu.refused(100, bench.now);
    bench.mtu.refused(DIRECT, bench.now);
    assert_eq!(bench.limit(), Some(DIRECT));
}

#[test]
fn a_black_hole_is_noticed_within_seconds_while_packets_vanish_in_it() {
    let mut bench = Bench::new(1472);
    bench.run(MINUTE, Some(SECOND / 10), true);
    assert_eq!(bench.limit(), Some(DIRECT));
    bench.told.clear();
    bench.link = 1372;
    bench.run(SECOND * 4, Some(SECOND / 10), true);
    assert_eq!(bench.limit(), Some(1372));
    assert!(
        bench.told.iter().all(|inner| inner + DATA_OVERHEAD >= 1372),
        "nobody is told of the floor that was in force between: {:?}",
        bench.told
    );
}

#[test]
fn an_outage_does_not_let_long_packets_loose_on_a_way_that_was_found_narrow() {
    let mut bench = Bench::new(1372);
    let every = Some(SECOND / 10);
    bench.run(MINUTE, every, true);
    assert_eq!(bench.limit(), Some(1372));
    bench.link = 0;
    bench.run(SECOND * 4, every, true);
    assert!(bench.mtu.inner() + DATA_OVERHEAD <= 1372, "{}", bench.mtu.inner());
    bench.link = 1372;
    bench.run(SECOND * 3, every, true);
    assert_eq!(bench.limit(), Some(1372));
}

#[test]
fn a_black_hole_behind_a_flow_that_hears_something_is_noticed_within_a_minute() {
    let mut bench = Bench::new(1472);
    bench.run(MINUTE, Some(SECOND), true);
    bench.link = 1272;
    for _ in 0..60 {
        bench.run(SECOND, Some(SECOND / 4), false);
        bench.mtu.heard();
    }
    assert_eq!(bench.limit(), Some(1272));
}

#[test]
fn a_link_that_was_down_for_a_while_gets_its_length_back() {
    let mut bench = Bench::new(1472);
    bench.run(SECOND, None, false);
    bench.link = 0;
    bench.run(MINUTE, Some(SECOND), true);
    assert_eq!(
        (bench.limit(), bench.mtu.inner()),
        (None, usize::MAX),
        "nothing is known"
    );
    bench.link = 1472;
    bench.run(AGAIN * 4, Some(SECOND), true);
    assert_eq!(bench.limit(), Some(DIRECT));
}

#[test]
fn another_way_begins_anew_and_answers_of_the_old_one_count_no_more() {
    let mut bench = Bench::new(1272);
    bench.run(SECOND, None, false);
    assert_eq!(bench.limit(), Some(1272));
    let other = Way {
        route: route(2),
        ..way(INNER)
    };
    bench.mtu.set_way(Some(other), bench.now);
    assert_eq!(bench.mtu.inner(), usize::MAX);
    let asked = bench.mtu.poll(None, bench.now, || 77);
    assert_eq!(asked, [(77, DIRECT)]);
    assert!(
        !bench.mtu.answered(route(1), 77, bench.now),
        "it came another way"
    );
    assert!(bench.mtu.answered(route(2), 77, bench.now));
    assert!(
        !bench.mtu.answered(route(2), 77, bench.now),
        "an answer counts once"
    );
    assert_eq!(bench.limit(), Some(DIRECT));
    bench.mtu.set_way(None, bench.now);
    assert_eq!((bench.mtu.poll_timeout(), bench.limit()), (None, None));
}

#[test]
fn a_network_that_may_have_changed_is_asked_at_once_and_keeps_what_it_had_until_then() {
    for (link, later) in [(1372, 1272), (1372, 1372), (1372, 1472)] {
        let mut bench = Bench::new(link);
        bench.run(MINUTE, None, false);
        bench.link = later;
        bench.mtu.recheck(bench.now);
        assert_eq!(bench.limit(), Some(link));
        bench.run(SECOND * 3, None, false);
        assert_eq!(bench.limit(), Some(later.min(DIRECT)), "{later}");
    }
}

#[test]
fn one_lost_probe_of_each_three_lowers_nothing() {
    let mut bench = Bench::new(1472);
    let mut sent = 0;
    for _ in 0..7200 {
        // Two of three are lost, in turn.
        bench.run(SECOND, Some(SECOND), true);
        bench.answers.retain(|_| {
            sent += 1;
            sent % 3 == 0
        });
    }
    assert_eq!(bench.limit(), Some(DIRECT));
}

#[test]
fn the_cost_of_an_hour_is_what_the_documentation_says() {
    let bytes = |link: usize, every: Option<Duration>, talks: bool| {
        let mut bench = Bench::new(link);
        bench.run(SECOND, every, talks);
        let search = bench.bytes;
        bench.run(HOUR, every, talks);
        (search, bench.bytes - search)
    };
    let (search, quiet) = bytes(1472, None, false);
    assert_eq!((search, quiet), (1452, 6 * 1452));
    let (_, busy) = bytes(1472, Some(SECOND), true);
    assert!((118 * 1452..=120 * 1452).contains(&busy), "{busy}");
    let (_, unheard) = bytes(1472, Some(SECOND / 10), false);
    assert!((300 * 1452..=360 * 1452).contains(&unheard), "{unheard}");
    for (link, most, most_later) in [
        (1372, 37_000, 50_000),
        (1200, 53_000, 89_000),
        (0, 55_000, 200_000),
    ] {
        let (search, quiet) = bytes(link, None, false);
        eprintln!("{link}: {search}, then {quiet} bytes an hour");
        assert!(search < most && quiet < most_later, "{link}: {search} {quiet}");
    }
}

proptest! {
    /// Whatever the link and its losses, no length is told that does not pass, and with few losses the best of the
    /// ladder is found.
    #[test]
    fn what_is_found_passes(link in 900..9100usize, inner in 576..=9000usize, loss in 0..20u32, seed: u64, v6: bool) {
        let to = Way { v6, ..way(inner) };
        let mut bench = Bench::of(to, link);
        bench.loss = loss;
        bench.rng = StdRng::seed_from_u64(seed);
        bench.run(HOUR, Some(SECOND * 7), true);
        prop_assert!(bench.told.iter().all(|inner| inner + DATA_OVERHEAD <= link), "{:?}", bench.told);
        prop_assert!(bench.mtu.inflight.len() <= MAX_INFLIGHT);
        let best = bench.mtu.lengths.iter().copied().find(|len| *len <= link);
        if loss == 0 {
            prop_assert_eq!(bench.limit(), best);
        } else if let (Some(limit), Some(best)) = (bench.limit(), best) {
            prop_assert!(limit <= best);
        }
    }

    /// However the link changes, the number of probes is bounded, and at its end the length that passes is known.
    #[test]
    fn a_link_that_changes_is_followed_at_a_bounded_cost(
        links in prop::collection::vec(prop_oneof![Just(0usize), 1200..1500usize], 1..6),
        last in 1200..1500usize,
        talks: bool,
    ) {
        let mut bench = Bench::new(1472);
        let changes = links.len();
        for link in links {
            bench.link = link;
            bench.run(MINUTE * 7, Some(SECOND), talks);
        }
        bench.link = last;
        bench.run(MINUTE * 25, Some(SECOND), talks);
        let best = bench.mtu.lengths.iter().copied().find(|len| *len <= last);
        prop_assert_eq!(bench.limit(), best);
        // A search that was in vain, five shorter ones that grow apart, and one that finds it again.
        let most = (changes + 1) * (3 + 5 + 3) * (LINKS.len() + 2) + 8 * (bench.now - bench.start).as_secs() as usize / 60;
        prop_assert!(bench.probes < most, "{} of {most}", bench.probes);
    }
}

#[test]
fn a_network_that_changes_while_lengths_are_asked_is_asked_from_the_beginning() {
    let mut bench = Bench::new(0);
    bench.run(MINUTE / 100, None, false);
    assert_eq!(bench.limit(), None);
    assert!(matches!(bench.mtu.state, State::Ladder { .. }));
    bench.link = DIRECT;
    bench.mtu.recheck(bench.now);
    bench.run(bench.rtt * 2, None, false);
    assert_eq!(bench.limit(), Some(DIRECT));
}
