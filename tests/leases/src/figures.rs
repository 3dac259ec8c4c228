//! What was measured, and how it is shown.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Value, json};

/// What is promised of a newcomer's claim and of a look-up, in the median.
const MAX_CLAIM: Duration = Duration::from_millis(20);
const MAX_LOOK_UP: Duration = Duration::from_millis(10);

/// Times of one kind of thing.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn add(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// The time within which so many of a hundred were done; none where nothing was measured.
    fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        sorted.get(last * percent / 100).copied()
    }

    fn within(&self, promise: Duration) -> bool {
        self.percentile(50).is_none_or(|median| median <= promise)
    }

    fn json(&self) -> Value {
        let millis = |percent| self.percentile(percent).map(|took| took.as_secs_f64() * 1000.0);
        json!({"count": self.0.len(), "p50_ms": millis(50), "p95_ms": millis(95)})
    }
}

/// Addresses, or records, that several wanted at once.
#[derive(Debug, Default)]
pub(crate) struct Contests {
    /// How many of the claimants were told that it is theirs, of each.
    winners: Vec<usize>,
    /// Until the first was told.
    first: Times,
}

impl Contests {
    pub(crate) fn add(&mut self, winners: usize, first: Option<Duration>) {
        self.winners.push(winners);
        self.first.0.extend(first);
    }

    fn count(&self, wanted: impl Fn(usize) -> bool) -> usize {
        self.winners.iter().filter(|winners| wanted(**winners)).count()
    }

    /// Those of which more than one claimant believes that it is the holder.
    fn several(&self) -> usize {
        self.count(|winners| winners > 1)
    }

    fn json(&self) -> Value {
        json!({
            "contests": self.winners.len(),
            "one_winner": self.count(|winners| winners == 1),
            "no_winner": self.count(|winners| winners == 0),
            "several_winners": self.several(),
            "winners": self.winners,
            "first_told": self.first.json(),
        })
    }

    fn verdict(&self) -> String {
        format!(
            "{} of {} had one winner, {} none, {} several",
            self.count(|winners| winners == 1),
            self.winners.len(),
            self.count(|winners| winners == 0),
            self.several()
        )
    }
}

#[derive(Debug, Default)]
pub(crate) struct Aerie {
    /// Of newcomers.
    pub(crate) claim: Times,
    /// Of members that have had an address before.
    pub(crate) again: Times,
    pub(crate) look_up: Times,
    pub(crate) locate: Times,
    pub(crate) request: Times,
    pub(crate) contests: Contests,
}

#[derive(Debug, Default)]
pub(crate) struct Stock {
    pub(crate) claim: Times,
    pub(crate) look_up: Times,
    pub(crate) contests: Contests,
}

/// Everything of one run.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) nodes: usize,
    pub(crate) claimants: usize,
    pub(crate) assembled: Duration,
    pub(crate) sync: Times,
    pub(crate) aerie: Aerie,
    pub(crate) stock: Stock,
}

impl Figures {
    pub(crate) fn promises_kept(&self) -> bool {
        self.aerie.claim.within(MAX_CLAIM)
            && self.aerie.look_up.within(MAX_LOOK_UP)
            && self.aerie.contests.several() == 0
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "nodes": self.nodes,
            "claimants": self.claimants,
            "assembled_ms": self.assembled.as_secs_f64() * 1000.0,
            "aerie": {
                "claim": self.aerie.claim.json(),
                "claim_again": self.aerie.again.json(),
                "look_up": self.aerie.look_up.json(),
                "contested": self.aerie.contests.json(),
                "parts": {
                    "grant_synced": self.sync.json(),
                    "locate": self.aerie.locate.json(),
                    "request": self.aerie.request.json(),
                },
            },
            "stock_kademlia": {
                "get_then_put": self.stock.claim.json(),
                "get": self.stock.look_up.json(),
                "contested": self.stock.contests.json(),
            },
            "promised": {
                "claim_p50_ms": MAX_CLAIM.as_secs_f64() * 1000.0,
                "look_up_p50_ms": MAX_LOOK_UP.as_secs_f64() * 1000.0,
                "kept": self.promises_kept(),
            },
        })
    }

    pub(crate) fn show(&self) {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_header(["", "count", "p50 ms", "p95 ms"]);
        let wanted = self.claimants;
        let rows = [
            ("claim of a newcomer, address and name", &self.aerie.claim),
            ("claim of another address", &self.aerie.again),
            ("look-up of an address", &self.aerie.look_up),
            (
                &*format!("first told, {wanted} claimants"),
                &self.aerie.contests.first,
            ),
            ("  part: locate the closest", &self.aerie.locate),
            ("  part: one request", &self.aerie.request),
            ("  part: one grant synced, alone", &self.sync),
            ("stock Kademlia: get, then put", &self.stock.claim),
            ("stock Kademlia: get", &self.stock.look_up),
            (
                &*format!("stock Kademlia: {wanted} claimants"),
                &self.stock.contests.first,
            ),
        ];
        for (what, times) in rows {
            let millis = |percent| {
                let text = times.percentile(percent).map_or_else(
                    || "-".to_owned(),
                    |took| format!("{:.2}", took.as_secs_f64() * 1000.0),
                );
                Cell::new(text).set_alignment(CellAlignment::Right)
            };
            let count = Cell::new(times.0.len()).set_alignment(CellAlignment::Right);
            table.add_row([Cell::new(what), count, millis(50), millis(95)]);
        }
        println!("{table}");
        println!(
            "addresses wanted by {wanted} at once: {}",
            self.aerie.contests.verdict()
        );
        println!(
            "records wanted by {wanted} at once, stock Kademlia: {}",
            self.stock.contests.verdict()
        );
        println!(
            "promised: a newcomer's claim within {} ms and a look-up within {} ms in the median, and never two winners: {}",
            MAX_CLAIM.as_millis(),
            MAX_LOOK_UP.as_millis(),
            if self.promises_kept() { "kept" } else { "NOT KEPT" }
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(millis: &[u64]) -> Times {
        Times(millis.iter().copied().map(Duration::from_millis).collect())
    }

    #[test]
    fn a_percentile_is_one_of_the_times() {
        let times = times(&[30, 10, 20]);
        assert_eq!(times.percentile(50), Some(Duration::from_millis(20)));
        assert_eq!(times.percentile(95), Some(Duration::from_millis(20)));
        assert_eq!(times.percentile(100), Some(Duration::from_millis(30)));
        assert_eq!(Times::default().percentile(50), None);
    }

    #[test]
    fn a_slow_median_or_a_second_winner_breaks_the_promise() {
        let figures = |claim: u64, winners: usize| {
            let mut contests = Contests::default();
            contests.add(winners, None);
            Figures {
                nodes: 50,
                claimants: 16,
                assembled: Duration::ZERO,
                sync: Times::default(),
                aerie: Aerie {
                    claim: times(&[claim]),
                    contests,
                    ..Aerie::default()
                },
                stock: Stock::default(),
            }
        };
        assert!(figures(20, 1).promises_kept());
        assert!(!figures(21, 1).promises_kept());
        assert!(!figures(20, 2).promises_kept());
    }
}
