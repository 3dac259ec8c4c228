//! The same course of events with the stand-in and with libp2p, side by side.

use aerie_sim::kad::{Figures, Outcome};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

/// By how much of the real figure the stand-in's may differ.
pub const TOLERANCE: f64 = 0.10;

/// One course of events with both.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// How many members.
    pub members: usize,
    /// What came of it with libp2p.
    pub real: Outcome,
    /// What came of it with the stand-in.
    pub stand_in: Outcome,
}

impl Comparison {
    /// Where the two differ by more than [`TOLERANCE`], or did not do the same; empty if they agree.
    #[must_use]
    pub fn differences(&self) -> Vec<String> {
        let mut differences = Vec::new();
        for (when, real, stand_in) in self.phases() {
            if real.count == 0 || real.count != stand_in.count {
                let (real, stand_in) = (real.count, stand_in.count);
                differences.push(format!(
                    "{when}: {real} look-ups of libp2p, {stand_in} of the stand-in"
                ));
            }
            for (what, real, stand_in) in [
                ("messages", real.messages.mean, stand_in.messages.mean),
                ("accuracy", real.accuracy.mean, stand_in.accuracy.mean),
            ] {
                let off = deviation(real, stand_in);
                // A figure that is not a number agrees with nothing.
                if off.is_nan() || off > TOLERANCE {
                    let percent = off * 100.0;
                    differences.push(format!(
                        "{when}: {what} {real:.3} of libp2p, {stand_in:.3} of the stand-in ({percent:.1}% off)"
                    ));
                }
            }
        }
        differences
    }

    /// The figures as a table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header([
            "members", "look-ups", "of", "count", "messages", "rounds", "dials", "failures", "accuracy",
        ]);
        for (when, real, stand_in) in self.phases() {
            for (of, figures) in [("libp2p", real), ("stand-in", stand_in)] {
                table.add_row([
                    self.members.to_string(),
                    when.to_owned(),
                    of.to_owned(),
                    figures.count.to_string(),
                    format!("{:.1}", figures.messages.mean),
                    format!("{:.1}", figures.rounds.mean),
                    format!("{:.1}", figures.dials.mean),
                    format!("{:.2}", figures.failures.mean),
                    format!("{:.4}", figures.accuracy.mean),
                ]);
            }
        }
        let line = |of: &str, outcome: &Outcome| {
            format!(
                "{of}: a member is linked to {:.1} others, knows {:.1}, and sent {:.0} FIND_NODE to fill its table",
                outcome.links, outcome.known, outcome.refresh
            )
        };
        format!(
            "{table}\n{}\n{}",
            line("libp2p  ", &self.real),
            line("stand-in", &self.stand_in)
        )
    }

    /// The figures for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let outcome = |outcome: &Outcome| {
            json!({
                "before": figures(&outcome.before),
                "after": figures(&outcome.after),
                "links": outcome.links,
                "known": outcome.known,
                "refresh_messages": outcome.refresh,
            })
        };
        json!({
            "members": self.members,
            "libp2p": outcome(&self.real),
            "stand_in": outcome(&self.stand_in),
            "tolerance": TOLERANCE,
            "differences": self.differences(),
        })
    }

    fn phases(&self) -> [(&'static str, &Figures, &Figures); 2] {
        [
            ("while all live", &self.real.before, &self.stand_in.before),
            ("after some died", &self.real.after, &self.stand_in.after),
        ]
    }
}

fn deviation(real: f64, stand_in: f64) -> f64 {
    (stand_in - real).abs() / real
}

/// Figures for programs.
pub(crate) fn figures(figures: &Figures) -> Value {
    let spread = |spread: &aerie_sim::kad::Spread| json!({ "mean": spread.mean, "p50": spread.p50, "p95": spread.p95 });
    json!({
        "lookups": figures.count,
        "messages": spread(&figures.messages),
        "rounds": spread(&figures.rounds),
        "dials": spread(&figures.dials),
        "failures": spread(&figures.failures),
        "took_ms": spread(&figures.took_ms),
        "accuracy": spread(&figures.accuracy),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(messages: f64, accuracy: f64) -> Outcome {
        let mut outcome = Outcome::default();
        for figures in [&mut outcome.before, &mut outcome.after] {
            figures.count = 10;
            figures.messages.mean = messages;
            figures.accuracy.mean = accuracy;
        }
        outcome
    }

    fn compared(stand_in: Outcome) -> Vec<String> {
        let comparison = Comparison {
            members: 9,
            real: outcome(30.0, 0.9),
            stand_in,
        };
        comparison.differences()
    }

    #[test]
    fn a_tenth_more_or_less_agrees_and_more_than_that_does_not() {
        assert!(compared(outcome(32.9, 0.98)).is_empty());
        assert!(compared(outcome(27.1, 0.82)).is_empty());
        assert_eq!(compared(outcome(33.1, 0.9)).len(), 2);
        let off = compared(outcome(30.0, 0.8));
        assert!(
            off[0].contains("accuracy") && off[0].contains("11.1% off"),
            "{off:?}"
        );
    }

    #[test]
    fn figures_that_are_missing_agree_with_nothing() {
        let mut lacking = outcome(30.0, 0.9);
        lacking.after.count = 9;
        assert_eq!(compared(lacking).len(), 1);
        assert_eq!(compared(outcome(f64::NAN, 0.9)).len(), 2);
        let nothing = Comparison {
            members: 9,
            real: Outcome::default(),
            stand_in: Outcome::default(),
        };
        assert!(nothing.differences().len() >= 4);
    }
}
