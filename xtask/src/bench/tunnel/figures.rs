//! What is measured, and what is promised of it in relation to wireguard-go, or to the direct path.

use std::collections::BTreeMap;

use super::contestants::Kind;

/// A quantity that is measured once in each round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Measure {
    TcpOne,
    TcpFour,
    TcpReverse,
    Cpu,
    UdpLarge,
    UdpSmall,
    PingIdle,
    PingLoaded,
    Memory,
}

impl Measure {
    pub(super) const ALL: [Self; 9] = [
        Self::TcpOne,
        Self::TcpFour,
        Self::TcpReverse,
        Self::Cpu,
        Self::UdpLarge,
        Self::UdpSmall,
        Self::PingIdle,
        Self::PingLoaded,
        Self::Memory,
    ];

    /// Its name in JSON, with the unit.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::TcpOne => "tcp_1_gbit_s",
            Self::TcpFour => "tcp_4_gbit_s",
            Self::TcpReverse => "tcp_reverse_gbit_s",
            Self::Cpu => "cpu_s_per_gib",
            Self::UdpLarge => "udp_1200_kpps",
            Self::UdpSmall => "udp_64_kpps",
            Self::PingIdle => "ping_us",
            Self::PingLoaded => "ping_loaded_us",
            Self::Memory => "peak_rss_mib",
        }
    }

    /// Its name and its unit for people.
    pub(super) fn title(self) -> (&'static str, &'static str) {
        match self {
            Self::TcpOne => ("TCP", "Gbit/s"),
            Self::TcpFour => ("4 streams", "Gbit/s"),
            Self::TcpReverse => ("reverse", "Gbit/s"),
            Self::Cpu => ("CPU", "s/GiB"),
            Self::UdpLarge => ("UDP 1200 B", "kpps"),
            Self::UdpSmall => ("UDP 64 B", "kpps"),
            Self::PingIdle => ("ping", "µs"),
            Self::PingLoaded => ("under load", "µs"),
            Self::Memory => ("peak RSS", "MiB"),
        }
    }

    /// Digits after the point that mean something.
    pub(super) fn digits(self) -> usize {
        match self {
            Self::TcpOne | Self::TcpFour | Self::TcpReverse | Self::Cpu => 2,
            Self::UdpLarge | Self::UdpSmall | Self::Memory => 1,
            Self::PingIdle | Self::PingLoaded => 0,
        }
    }
}

/// A promise: a figure of Aerie's divided by that of whom it is held beside is at least or at most this.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    pub(super) fn admits(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= least,
            Self::AtMost(most) => ratio <= most,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::AtMost(most) => write!(f, "at most {most}"),
        }
    }
}

type Promise = (Kind, Measure, Bound);

const PROMISES: [Promise; 10] = [
    (Kind::Aerie, Measure::TcpOne, Bound::AtLeast(2.4)),
    (Kind::Aerie, Measure::TcpFour, Bound::AtLeast(2.4)),
    (Kind::Aerie, Measure::TcpReverse, Bound::AtLeast(2.4)),
    (Kind::Aerie, Measure::Cpu, Bound::AtMost(0.35)),
    (Kind::Aerie, Measure::UdpLarge, Bound::AtLeast(3.0)),
    (Kind::Aerie, Measure::UdpSmall, Bound::AtLeast(3.0)),
    (Kind::Aerie, Measure::PingIdle, Bound::AtMost(1.0)),
    (Kind::Aerie, Measure::PingLoaded, Bound::AtMost(0.4)),
    (Kind::AerieChaCha20, Measure::TcpOne, Bound::AtLeast(1.5)),
    (Kind::AerieRelayed, Measure::TcpOne, Bound::AtLeast(0.5)),
];

/// Whom a contestant is held beside: a relayed path beside the direct one.
fn beside(kind: Kind) -> Kind {
    match kind {
        Kind::AerieRelayed => Kind::Aerie,
        _ => Kind::WireguardGo,
    }
}

/// Where the wire cuts super-packets into datagrams and loses none, and where it loses up to one in a hundred.
const CUT: [Promise; 1] = [(Kind::Aerie, Measure::TcpOne, Bound::AtLeast(1.8))];
const LOSSY: [Promise; 1] = [(Kind::Aerie, Measure::TcpOne, Bound::AtLeast(1.5))];

/// What is promised on a wire that loses so many percent, if it cuts super-packets at all.
pub(super) fn promises(loss: Option<f64>) -> &'static [Promise] {
    match loss {
        None => &PROMISES,
        Some(loss) if loss <= 0.0 => &CUT,
        Some(loss) if loss <= 1.0 => &LOSSY,
        Some(_) => &[],
    }
}

/// How a promise was kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Verdict {
    pub(super) kind: Kind,
    pub(super) measure: Measure,
    /// Whom it is held beside.
    pub(super) beside: Kind,
    pub(super) bound: Bound,
    /// Its median divided by the other's; none where one of them has no figure.
    pub(super) ratio: Option<f64>,
}

impl Verdict {
    pub(super) fn met(self) -> bool {
        self.ratio.is_some_and(|ratio| self.bound.admits(ratio))
    }
}

/// What the rounds gave.
#[derive(Debug, Default)]
pub(super) struct Figures(BTreeMap<(Kind, Measure), Vec<f64>>);

impl Figures {
    pub(super) fn add(&mut self, kind: Kind, measure: Measure, value: f64) {
        self.0.entry((kind, measure)).or_default().push(value);
    }

    /// One value a round, in the order of the rounds.
    pub(super) fn rounds(&self, kind: Kind, measure: Measure) -> &[f64] {
        self.0.get(&(kind, measure)).map_or(&[], Vec::as_slice)
    }

    pub(super) fn median(&self, kind: Kind, measure: Measure) -> Option<f64> {
        median(self.rounds(kind, measure))
    }

    /// What became of promises. What took part but in some runs is judged where it did.
    pub(super) fn verdicts(&self, promises: &[Promise]) -> Vec<Verdict> {
        let took_part = |kind: Kind| self.0.keys().any(|(other, _)| *other == kind);
        promises
            .iter()
            .filter(|(kind, ..)| *kind == Kind::Aerie || took_part(*kind))
            .map(|&(kind, measure, bound)| {
                let own = self.median(kind, measure);
                let beside = beside(kind);
                let other = self.median(beside, measure);
                let ratio = own.zip(other).map(|(own, other)| own / other);
                Verdict {
                    kind,
                    measure,
                    beside,
                    bound,
                    ratio,
                }
            })
            .collect()
    }
}

/// The value in the middle, or the mean of the two there.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_value_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 90.0]), Some(3.0));
    }

    #[test]
    fn a_promise_is_kept_or_not_by_the_ratio_of_medians() {
        let mut figures = Figures::default();
        for (own, other) in [(10.0, 4.0), (50.0, 4.1), (9.0, 1.0)] {
            figures.add(Kind::Aerie, Measure::TcpOne, own);
            figures.add(Kind::WireguardGo, Measure::TcpOne, other);
            figures.add(Kind::Aerie, Measure::Cpu, own);
            figures.add(Kind::WireguardGo, Measure::Cpu, other);
        }
        let verdicts = figures.verdicts(promises(None));
        let of = |measure| {
            *verdicts
                .iter()
                .find(|verdict| verdict.measure == measure)
                .unwrap()
        };
        assert_eq!(of(Measure::TcpOne).ratio, Some(2.5));
        assert!(of(Measure::TcpOne).met());
        assert!(!of(Measure::Cpu).met());
    }

    #[test]
    fn on_a_lossy_wire_less_is_promised_and_of_one_that_took_no_part_nothing() {
        let mut figures = Figures::default();
        figures.add(Kind::Aerie, Measure::TcpOne, 1.6);
        figures.add(Kind::WireguardGo, Measure::TcpOne, 1.0);
        let met = |loss| {
            figures
                .verdicts(promises(loss))
                .iter()
                .all(|verdict| verdict.met())
        };
        assert!(met(Some(1.0)) && !met(Some(0.0)) && !met(None));
        let of_chacha = |figures: &Figures| {
            let verdicts = figures.verdicts(promises(None));
            verdicts.iter().any(|verdict| verdict.kind == Kind::AerieChaCha20)
        };
        assert!(!of_chacha(&figures));
        figures.add(Kind::AerieChaCha20, Measure::TcpOne, 1.6);
        assert!(of_chacha(&figures));
    }

    #[test]
    fn a_relayed_path_is_held_beside_the_direct_one() {
        let mut figures = Figures::default();
        figures.add(Kind::Aerie, Measure::TcpOne, 5.0);
        figures.add(Kind::WireguardGo, Measure::TcpOne, 2.0);
        figures.add(Kind::AerieRelayed, Measure::TcpOne, 2.4);
        let verdicts = figures.verdicts(promises(None));
        let relayed = verdicts
            .iter()
            .find(|verdict| verdict.kind == Kind::AerieRelayed)
            .unwrap();
        assert_eq!((relayed.beside, relayed.ratio), (Kind::Aerie, Some(0.48)));
        assert!(!relayed.met());
    }

    #[test]
    fn a_promise_without_figures_is_not_kept() {
        let mut figures = Figures::default();
        figures.add(Kind::Aerie, Measure::PingLoaded, 1.0);
        assert!(
            figures
                .verdicts(promises(None))
                .iter()
                .all(|verdict| verdict.ratio.is_none() && !verdict.met())
        );
    }
}
