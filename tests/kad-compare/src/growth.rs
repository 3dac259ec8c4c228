//! What a look-up costs as the grid grows, by the stand-in.

use std::time::Duration;

use aerie_sim::kad::{Outcome, Plan, Settings};
use aerie_sim::peer;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::compare::figures;

/// The sizes measured.
pub const SIZES: [usize; 4] = [50, 200, 1000, 10_000];

/// From this size on, what a look-up costs may grow as the logarithm of the size does and no faster. In smaller grids
/// nearly everybody is among the closest.
pub const FROM: usize = 200;

/// A grid of one size, measured.
#[derive(Debug, Clone)]
pub struct Point {
    /// How many members.
    pub members: usize,
    /// What came of it.
    pub outcome: Outcome,
}

/// Measures a grid of one size.
#[must_use]
pub fn measure(members: usize, lookups: usize, seed: u64, settings: &Settings) -> Point {
    let mut plan = Plan::new((0..members).map(peer).collect(), seed);
    plan.lookups = lookups;
    plan.join_every = Duration::from_millis(10);
    plan.settle = Duration::from_secs(60);
    Point {
        members,
        outcome: plan.simulate(settings.clone()),
    }
}

/// Where messages grow faster than the logarithm of the size; empty if nowhere.
#[must_use]
pub fn excesses(points: &[Point]) -> Vec<String> {
    let measured: Vec<_> = points.iter().filter(|point| point.members >= FROM).collect();
    let mut excesses = Vec::new();
    if measured.len() < 2 {
        excesses.push(format!(
            "fewer than two sizes from {FROM} members on: no growth to be seen"
        ));
    }
    let Some((first, rest)) = measured.split_first() else {
        return excesses;
    };
    for point in rest {
        let allowed = (point.members as f64).ln() / (first.members as f64).ln();
        let grown = point.outcome.before.messages.mean / first.outcome.before.messages.mean;
        // What is not a number has not been measured.
        if grown.is_nan() || grown > allowed {
            excesses.push(format!(
                "from {} to {} members the messages of a look-up grew {grown:.2} times, log N {allowed:.2} times",
                first.members, point.members
            ));
        }
    }
    excesses
}

/// The figures as a table.
#[must_use]
pub fn table(points: &[Point]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "members",
        "messages p50 / p95",
        "rounds p50 / p95",
        "dials p50 / p95",
        "time p50 / p95",
        "found",
        "found after 20% died",
        "linked",
        "known",
    ]);
    for point in points {
        let before = &point.outcome.before;
        let pair = |spread: &aerie_sim::kad::Spread| format!("{:.0} / {:.0}", spread.p50, spread.p95);
        table.add_row([
            point.members.to_string(),
            pair(&before.messages),
            pair(&before.rounds),
            pair(&before.dials),
            format!("{} ms", pair(&before.took_ms)),
            format!("{:.2}%", before.accuracy.mean * 100.0),
            format!("{:.2}%", point.outcome.after.accuracy.mean * 100.0),
            format!("{:.0}", point.outcome.links),
            format!("{:.0}", point.outcome.known),
        ]);
    }
    table.to_string()
}

/// The figures for programs.
#[must_use]
pub fn json(points: &[Point], settings: &Settings) -> Value {
    let point = |point: &Point| {
        json!({
            "members": point.members,
            "before": figures(&point.outcome.before),
            "after": figures(&point.outcome.after),
            "links": point.outcome.links,
            "known": point.outcome.known,
            "refresh_messages": point.outcome.refresh,
            "mesh_questions_per_member_and_minute": point.outcome.questions,
        })
    };
    json!({
        "delay_ms": settings.delay.as_secs_f64() * 1e3,
        "limit": settings.limit,
        "points": points.iter().map(point).collect::<Vec<_>>(),
        "excesses": excesses(points),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(members: usize, messages: f64) -> Point {
        let mut outcome = Outcome::default();
        outcome.before.messages.mean = messages;
        Point { members, outcome }
    }

    #[test]
    fn growth_like_the_logarithm_passes_and_faster_growth_does_not() {
        let log = |members: usize| point(members, 5.0 * (members as f64).ln());
        assert!(excesses(&[log(200), log(1000), log(10_000)]).is_empty());
        let linear = [point(200, 20.0), point(1000, 30.0)];
        assert_eq!(excesses(&linear).len(), 1);
        assert!(excesses(&[point(50, 1.0), point(200, 30.0), point(1000, 30.0)]).is_empty());
    }

    #[test]
    fn what_was_not_measured_does_not_pass() {
        assert_eq!(excesses(&[point(200, 20.0)]).len(), 1);
        assert_eq!(excesses(&[point(200, 0.0), point(1000, 0.0)]).len(), 1);
    }

    #[test]
    fn a_look_up_costs_little_more_in_a_grid_of_four_hundred_than_in_one_of_a_hundred() {
        let settings = Settings::default();
        let [small, large] = [100, 400].map(|members| measure(members, 30, 1, &settings));
        assert!(large.outcome.before.accuracy.mean > 0.97, "{large:?}");
        let grown = large.outcome.before.messages.mean / small.outcome.before.messages.mean;
        // ln 400 / ln 100 is 1.3.
        assert!(grown < 1.5, "{grown}");
    }
}
