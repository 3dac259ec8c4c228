//! Every kind of NAT against every other: which path each pair of members finds, and how fast.
//!
//! One grid has a member behind a router of each kind, two of the kinds that are hard to pair with themselves, and two
//! behind one router that sends nothing back in (no hairpin). Two of the members that have no NAT relay. Each pair
//! begins with one packet, which has to arrive, and is then watched until its path is as good as it can be; pairs that
//! have no member in common go at the same time, as a grid's do.
//!
//! Two are in networks that let no UDP pass: they talk over TLS through the relays.
//!
//! What can be direct is decided here and nowhere else ([`expected`]): a hole can be punched if the mapping that one
//! side shows to the other is the one that it showed to others before, or if the other side admits a port that it never
//! saw.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::grid::{Grid, Join, Member};
use crate::wait::wait_until;
use crate::{Lab, Nat};

/// A pair that can be direct is so after this long.
pub const DIRECT_WITHIN: Duration = Duration::from_secs(5);

/// The first packet of a pair arrives after this long, through a relay where it has to.
pub const FIRST_WITHIN: Duration = Duration::from_secs(2);

/// Addresses are exchanged again a second after the first time: what took less was found by the first probes.
pub const FIRST_ROUND: Duration = Duration::from_secs(1);

/// How long is waited for a path, so that one that comes late is told as late and not as missing.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a member is.
#[derive(Debug, Clone, Copy)]
struct Spot {
    name: &'static str,
    nat: Nat,
    /// The router that the member's own hangs on.
    behind: Option<Nat>,
    /// The site that it shares, where that is another spot's.
    shares: Option<&'static str>,
    relays: bool,
}

const fn spot(name: &'static str, nat: Nat) -> Spot {
    Spot {
        name,
        nat,
        behind: None,
        shares: None,
        relays: false,
    }
}

const SPOTS: [Spot; 14] = [
    Spot {
        relays: true,
        ..spot("none", Nat::Open)
    },
    spot("full-cone", Nat::FullCone),
    spot("address", Nat::AddressRestricted),
    spot("port-a", Nat::PortRestricted),
    spot("port-b", Nat::PortRestricted),
    spot("symmetric-a", Nat::Symmetric),
    spot("symmetric-b", Nat::Symmetric),
    Spot {
        behind: Some(Nat::PortRestricted),
        ..spot("double-port", Nat::PortRestricted)
    },
    Spot {
        behind: Some(Nat::Symmetric),
        ..spot("double-sym", Nat::PortRestricted)
    },
    spot("forgetful", Nat::Forgetful),
    spot("shared-a", Nat::PortRestricted),
    Spot {
        shares: Some("shared-a"),
        ..spot("shared-b", Nat::PortRestricted)
    },
    spot("no-udp-a", Nat::UdpBlocked),
    spot("no-udp-b", Nat::UdpBlocked),
];

impl Spot {
    fn site(self) -> &'static str {
        self.shares.unwrap_or(self.name)
    }

    /// The stricter of its routers.
    fn strictest(self) -> Nat {
        self.behind.map_or(self.nat, |outer| self.nat.max(outer))
    }
}

/// How a pair's packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// By the addresses of one network.
    Lan,
    /// Straight.
    Direct,
    /// Through a relay.
    Relayed,
    /// Not at all.
    None,
}

impl Path {
    fn word(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::None => "NONE",
        }
    }
}

/// The best path that two members can have.
fn expected(a: Spot, b: Spot) -> Path {
    if a.site() == b.site() {
        return Path::Lan;
    }
    let picky = |nat| matches!(nat, Nat::PortRestricted | Nat::Forgetful | Nat::Symmetric);
    match (a.strictest(), b.strictest()) {
        (Nat::UdpBlocked, _) | (_, Nat::UdpBlocked) => Path::Relayed,
        (Nat::Symmetric, other) | (other, Nat::Symmetric) if picky(other) => Path::Relayed,
        _ => Path::Direct,
    }
}

/// What became of one pair.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Where the first packet came from.
    pub from: &'static str,
    /// Where it went.
    pub to: &'static str,
    /// The best path that there can be.
    pub expected: Path,
    /// The path found.
    pub found: Path,
    /// Round trip of the first packet, which includes finding a path; `None` if it was lost.
    pub first: Option<Duration>,
    /// From the first packet to the path that was found at last.
    pub took: Duration,
    /// What the node says of it.
    pub reason: String,
}

impl Cell {
    /// What is not as promised; `patience` is how many times as long as promised it may take.
    #[must_use]
    pub fn fault(&self, patience: u32) -> Option<String> {
        let pair = format!("{} to {}", self.from, self.to);
        let Some(first) = self.first else {
            return Some(format!("{pair}: the first packet was lost ({})", self.reason));
        };
        if self.found > self.expected {
            let (found, expected) = (self.found.word(), self.expected.word());
            return Some(format!("{pair}: {found} instead of {expected} ({})", self.reason));
        }
        if first > FIRST_WITHIN * patience {
            return Some(format!("{pair}: the first packet took {first:.1?}"));
        }
        (self.took > DIRECT_WITHIN * patience)
            .then(|| format!("{pair}: {} after {:.1?}", self.found.word(), self.took))
    }
}

/// Every pair.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// In the order in which they were tried.
    pub cells: Vec<Cell>,
}

/// What `aerie path --json` says, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Said {
    path: String,
    reason: String,
    since_secs: Option<f64>,
}

/// Starts the members in a lab that has only a grid's hub, and tries every pair once.
///
/// # Errors
/// When a member does not become ready. What becomes of the pairs is in the result.
pub fn run(lab: &Lab, grid: &Grid<'_>, group: &str) -> Result<Matrix> {
    let members = members(lab, grid, group)?;
    let addrs = members.iter().map(Member::addr).collect::<Result<Vec<_>>>()?;
    let mut cells = Vec::new();
    for round in rounds(members.len()) {
        let tried = thread::scope(|scope| {
            let threads: Vec<_> = round
                .iter()
                .map(|(a, b)| {
                    let (members, addrs) = (&members, &addrs);
                    scope.spawn(move || try_pair((SPOTS[*a], &members[*a]), (SPOTS[*b], &addrs[*b])))
                })
                .collect();
            let joined = threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a pair's thread panicked"))?);
            joined.collect::<Result<Vec<_>>>()
        })?;
        cells.extend(tried);
    }
    Ok(Matrix { cells })
}

fn members(lab: &Lab, grid: &Grid<'_>, group: &str) -> Result<Vec<Member>> {
    let mut sites = Vec::new();
    let mut members = Vec::new();
    for spot in SPOTS {
        let site = match (spot.shares, spot.behind) {
            (Some(shared), _) => {
                let found = sites.iter().find(|(name, _)| *name == shared);
                let (_, site) = found.with_context(|| format!("there is no site '{shared}'"))?;
                crate::Site::clone(site)
            }
            (None, Some(outer)) => {
                let outer = lab.site(&format!("{}-isp", spot.name), outer)?;
                lab.site_behind(&outer, spot.name, spot.nat)?
            }
            (None, None) => lab.site(spot.name, spot.nat)?,
        };
        let roles = if spot.relays { "relay" } else { "client" };
        let join = Join::new(spot.name, &site, group, roles).option("--no-condor");
        members.push(grid.prepare(&join)?);
        sites.push((spot.name, site));
    }
    // Only now: with a second relay enrolled, blobs would have to name one.
    members.iter().try_for_each(Member::start)?;
    grid.wait_ready(&members)?;
    // Until each knows both relays, what its NAT does is not known.
    for member in &members {
        let relays = if member.node.name() == "none" { 1 } else { 2 };
        wait_until(
            PATIENCE,
            &format!("{} to know the relays", member.node.name()),
            || {
                let (said, _) = member.said::<serde_json::Value>(&["netcheck"])?;
                let answering = said["relays"].as_array().map_or(0, |relays| {
                    relays.iter().filter(|relay| !relay["rtt_ms"].is_null()).count()
                });
                // Over TLS, where UDP does not pass.
                let answering = answering + said["tls"].as_array().map_or(0, Vec::len);
                Ok((answering >= relays).then_some(()))
            },
        )?;
    }
    Ok(members)
}

/// Every pair of so many once, in rounds in which nobody is twice (the circle method).
fn rounds(count: usize) -> Vec<Vec<(usize, usize)>> {
    let even = count + count % 2;
    let turns = even.saturating_sub(1);
    (0..turns)
        .map(|turn| {
            let at = |place: usize| {
                if place == 0 {
                    0
                } else {
                    (place - 1 + turn) % turns + 1
                }
            };
            (0..even / 2)
                .map(|place| (at(place), at(even - 1 - place)))
                .filter(|(a, b)| *a < count && *b < count)
                .collect()
        })
        .collect()
}

fn try_pair((from, member): (Spot, &Member), (to, addr): (Spot, &str)) -> Result<Cell> {
    let began = Instant::now();
    let output = member.node.exec("alice", &["ping", "-n", "-c1", "-W5", addr])?;
    let mut cell = Cell {
        from: from.name,
        to: to.name,
        expected: expected(from, to),
        found: Path::None,
        first: round_trip(&output.stdout),
        took: Duration::ZERO,
        reason: String::new(),
    };
    while began.elapsed() < PATIENCE {
        let (said, _) = member.said::<Said>(&["path", to.name])?;
        cell.found = match said.path.as_str() {
            "lan" => Path::Lan,
            "direct" => Path::Direct,
            // A relay is reached over the connection to it.
            "relayed" | "tls" => Path::Relayed,
            "none" => Path::None,
            other => bail!("there is no path called '{other}'"),
        };
        cell.reason = said.reason;
        let since = Duration::from_secs_f64(said.since_secs.unwrap_or_default().max(0.0));
        cell.took = began.elapsed().saturating_sub(since);
        if cell.found <= cell.expected {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(cell)
}

/// What `ping` says of its only packet.
fn round_trip(said: &str) -> Option<Duration> {
    let (_, rest) = said.split_once("time=")?;
    let ms: f64 = rest.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_secs_f64(ms / 1000.0))
}

impl Matrix {
    /// How many pairs that can be direct are so by their first round of probes, and how many there are.
    #[must_use]
    pub fn first_round(&self) -> (usize, usize) {
        let possible = self.cells.iter().filter(|cell| cell.expected < Path::Relayed);
        let found = |cell: &&Cell| cell.found <= cell.expected && cell.took <= FIRST_ROUND;
        (possible.clone().filter(found).count(), possible.count())
    }

    /// What is not as promised; `patience` is how many times as long as promised it may take: one where figures are
    /// made, and more where other work has the processor too.
    #[must_use]
    pub fn faults(&self, patience: u32) -> Vec<String> {
        self.cells
            .iter()
            .filter_map(|cell| cell.fault(patience))
            .collect()
    }

    fn cell(&self, a: &str, b: &str) -> Option<&Cell> {
        let of = |cell: &&Cell| (cell.from, cell.to) == (a, b) || (cell.from, cell.to) == (b, a);
        self.cells.iter().find(of)
    }
}

/// Several runs as one table in Markdown: for each pair its path, and the median time to it in milliseconds.
#[must_use]
pub fn markdown(runs: &[Matrix]) -> String {
    let names = SPOTS.map(|spot| spot.name);
    let mut text = format!("| |{}\n|---|{}\n", titles(&names), "---|".repeat(names.len()));
    for a in names {
        let _ = write!(text, "| **{a}** |");
        for b in names {
            let _ = write!(text, " {} |", entry(runs, a, b));
        }
        text.push('\n');
    }
    text
}

fn titles(names: &[&str]) -> String {
    names
        .iter()
        .fold(String::new(), |titles, name| format!("{titles} {name} |"))
}

fn entry(runs: &[Matrix], a: &str, b: &str) -> String {
    let cells: Vec<&Cell> = runs.iter().filter_map(|run| run.cell(a, b)).collect();
    let Some(worst) = cells.iter().map(|cell| cell.found).max() else {
        return String::new();
    };
    let mut times: Vec<u128> = cells.iter().map(|cell| cell.took.as_millis()).collect();
    times.sort_unstable();
    let mark = if cells.iter().any(|cell| cell.fault(1).is_some()) {
        " **!**"
    } else {
        ""
    };
    format!("{} {}{mark}", worst.word(), times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_pair_is_tried_once_and_nobody_is_in_two_at_a_time() {
        for count in [2, 7, 12] {
            let mut seen = BTreeSet::new();
            for round in rounds(count) {
                let mut busy = BTreeSet::new();
                for (a, b) in round {
                    assert!(busy.insert(a) && busy.insert(b), "{count}: {a} and {b}");
                    assert!(seen.insert((a.min(b), a.max(b))), "{count}: {a} and {b} again");
                }
            }
            assert_eq!(seen.len(), count * (count - 1) / 2);
        }
    }

    #[test]
    fn the_oracle_knows_what_can_be_punched() {
        let of = |a: &str, b: &str| {
            let find = |name| SPOTS.into_iter().find(|spot| spot.name == name).unwrap();
            expected(find(a), find(b))
        };
        for (a, b, wanted) in [
            ("none", "symmetric-a", Path::Direct),
            ("address", "symmetric-a", Path::Direct),
            ("port-a", "port-b", Path::Direct),
            ("port-a", "symmetric-a", Path::Relayed),
            ("symmetric-b", "symmetric-a", Path::Relayed),
            ("double-port", "port-a", Path::Direct),
            ("double-sym", "port-a", Path::Relayed),
            ("double-sym", "full-cone", Path::Direct),
            ("forgetful", "symmetric-b", Path::Relayed),
            ("shared-a", "shared-b", Path::Lan),
            ("no-udp-a", "none", Path::Relayed),
            ("no-udp-a", "no-udp-b", Path::Relayed),
        ] {
            assert_eq!((of(a, b), of(b, a)), (wanted, wanted), "{a} and {b}");
        }
    }

    #[test]
    fn a_lost_packet_a_worse_path_and_a_late_one_are_faults() {
        let good = Cell {
            from: "none",
            to: "port-a",
            expected: Path::Direct,
            found: Path::Direct,
            first: Some(Duration::from_millis(90)),
            took: Duration::from_millis(200),
            reason: String::new(),
        };
        assert_eq!(good.fault(1), None);
        let better = Cell {
            expected: Path::Relayed,
            ..good.clone()
        };
        assert_eq!(better.fault(1), None, "more than was asked for");
        for bad in [
            Cell {
                first: None,
                ..good.clone()
            },
            Cell {
                found: Path::Relayed,
                ..good.clone()
            },
            Cell {
                took: DIRECT_WITHIN * 2,
                ..good.clone()
            },
            Cell {
                first: Some(FIRST_WITHIN * 2),
                ..good
            },
        ] {
            assert!(bad.fault(1).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn a_round_trip_is_read() {
        let said = "64 bytes from 100.96.0.1: icmp_seq=1 ttl=64 time=12.5 ms\n";
        assert_eq!(round_trip(said), Some(Duration::from_micros(12_500)));
        assert_eq!(round_trip("1 packets transmitted, 0 received"), None);
    }
}
