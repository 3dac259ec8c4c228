//! `cargo xtask bench tunnel`: Aerie's tunnel and its peers, one after the other on the same kind of wire.
//!
//! A machine's speed drifts, so that only figures of one run can be compared. Each round therefore starts every
//! contestant in turn, measures it and stops it; what counts is the median of the rounds. While one is measured no
//! other runs. A contestant that cannot be installed or fails is left out and named with the reason.

mod contestants;
mod figures;
mod install;
mod measure;
mod parse;
mod program;
mod report;
mod svg;
mod wire;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aerie_lab::grid::AERIE;
use aerie_lab::{Host, Lab, Place};
use anyhow::{Context, Result, ensure};

use self::contestants::{Contestant, Kind, Network, Stage};
use self::figures::Figures;
use self::report::{Absent, Entrant, Machine, Report};
use self::wire::End;
use super::Common;
use crate::{test, tools};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// How often each contestant is measured, in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Only these contestants.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,NAME")]
    only: Vec<Kind>,
    /// Measure Aerie through a relay too, between two nodes behind symmetric NATs.
    #[arg(long)]
    relayed: bool,
    /// Let the wire lose so many percent of the packets in each direction, and cut super-packets into datagrams, also
    /// with 0; a relayed path loses none.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    loss: Option<f64>,
    /// Draw the speed of one stream as a bar chart.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Fail when a promise is not kept.
    #[arg(long)]
    check: bool,
}

fn percent(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=100.0).contains(&value) {
        Ok(value)
    } else {
        Err("it is between 0 and 100".to_owned())
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let report = measured(args)?;
    if args.common.json {
        println!("{}", serde_json::to_string_pretty(&report.json())?);
    } else {
        report.show();
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, svg::chart(&report))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let broken = report.verdicts().iter().filter(|v| !v.met()).count();
    ensure!(!args.check || broken == 0, "{broken} promises are not kept");
    Ok(())
}

/// Who shall take part.
fn kinds(args: &Args) -> Vec<Kind> {
    let wanted = |kind: &Kind| match kind {
        Kind::AerieRelayed => args.relayed,
        kind => args.only.is_empty() || args.only.contains(kind),
    };
    Kind::ALL.into_iter().filter(wanted).collect()
}

fn measured(args: &Args) -> Result<Report> {
    tools::install_debian(&["ethtool", "iperf3", "iproute2", "iputils-ping", "openssl"])?;
    let kinds = kinds(args);
    let aerie: Vec<Kind> = kinds.iter().copied().filter(|kind| kind.is_aerie()).collect();
    let mut builder = Lab::builder("bench");
    if !aerie.is_empty() {
        builder = builder.bind(test::build_aerie(!args.common.debug)?, AERIE);
        tools::root_file_system(&mut |step| eprintln!("   {step}"))?;
    }
    let machine = Machine::read()?;
    if machine.is_busy() {
        eprintln!(
            "── this machine has other work (load {}); figures will be low and uneven",
            machine.load
        );
    }
    let stage = builder.clone().start()?;
    let grids = aerie.into_iter().map(|kind| Ok((kind, builder.clone().start()?)));
    let grids = grids.collect::<Result<BTreeMap<_, _>>>()?;
    let report = in_labs(&stage, &grids, &kinds, args, machine);
    stage.destroy()?;
    grids.into_values().try_for_each(Lab::destroy)?;
    report
}

/// In a lab for the others, and one for each grid of Aerie.
fn in_labs(
    stage: &Lab,
    grids: &BTreeMap<Kind, Lab>,
    kinds: &[Kind],
    args: &Args,
    machine: Machine,
) -> Result<Report> {
    let stage = self::stage(stage, args.loss)?;
    let mut absent = Vec::new();
    let mut left_out = |kind: Kind, error: &anyhow::Error| {
        eprintln!("── {} is left out: {error:#}", kind.name());
        absent.push(Absent::new(kind, error));
    };
    let mut networks = BTreeMap::new();
    for (&kind, lab) in grids {
        let network = match kind {
            Kind::AerieRelayed => Network::relayed(lab),
            Kind::AerieChaCha20 => Network::direct(lab, args.loss, r#"cipher = "chacha20-poly1305""#),
            _ => Network::direct(lab, args.loss, ""),
        };
        match network {
            Ok(network) => drop(networks.insert(kind, network)),
            Err(error) => left_out(kind, &error),
        }
    }
    let mut contestants: Vec<(Kind, Box<dyn Contestant + '_>)> = Vec::new();
    for &kind in kinds {
        if kind.is_aerie() && !networks.contains_key(&kind) {
            continue;
        }
        match contestants::prepare(kind, &stage, networks.get(&kind)) {
            Ok(contestant) => contestants.push((kind, contestant)),
            Err(error) => left_out(kind, &error),
        }
    }
    let mut entrants: Vec<Entrant> = Vec::new();
    let mut figures = Figures::default();
    for round in 1..=args.rounds {
        for (kind, contestant) in &contestants {
            eprintln!("── round {round} of {}: {}", args.rounds, kind.name());
            let cipher = match one_round(*kind, contestant.as_ref(), &stage.dir, args.seconds, &mut figures) {
                Ok(cipher) => cipher,
                Err(error) => {
                    eprintln!("   {error:#}");
                    absent.push(Absent::new(*kind, &error));
                    continue;
                }
            };
            if !entrants.iter().any(|entrant| entrant.kind == *kind) {
                entrants.push(Entrant {
                    kind: *kind,
                    version: contestant.version().to_owned(),
                    cipher,
                });
            }
        }
    }
    entrants.sort_by_key(|entrant| entrant.kind);
    Ok(Report::new(args, machine, entrants, absent, figures))
}

/// Starts a contestant, measures it and stops it. Returns its cipher.
fn one_round(
    kind: Kind,
    contestant: &dyn Contestant,
    dir: &Path,
    seconds: u64,
    figures: &mut Figures,
) -> Result<String> {
    let mut tunnel = contestant.start()?;
    let result = tunnel.wait().and_then(|()| {
        let cipher = &tunnel.cipher;
        ensure!(kind.may_use(cipher), "its ends agreed on {cipher}");
        Ok(())
    });
    if result.is_ok() {
        measure::all(&tunnel, seconds, dir, |measure, value| match value {
            Ok(value) => {
                let ((name, unit), digits) = (measure.title(), measure.digits());
                eprintln!("   {name}: {value:.digits$} {unit}");
                figures.add(kind, measure, value);
            }
            Err(error) => eprintln!("   {}: {error:#}", measure.title().0),
        });
    }
    let cipher = tunnel.cipher.clone();
    tunnel.stop()?;
    result.map(|()| cipher)
}

/// The two hosts of everybody but Aerie, with a wire between them, and a folder.
fn stage(lab: &Lab, loss: Option<f64>) -> Result<Stage> {
    let dir = lab.dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let end = |name: &str| -> Result<(Host, End)> {
        let host = lab.host(name, Place::Internet)?;
        let end = End {
            net: host.net(),
            addr: host.addr(),
        };
        Ok((host, end))
    };
    let ends = [end("a")?.1, end("b")?.1];
    wire::join(ends[0], ends[1], loss)?;
    Ok(Stage { ends, dir })
}

/// Writes a file that only its owner may read.
fn private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(0o600);
    let mut file = options
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.write_all(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        let words = std::iter::once(&"tunnel").chain(words);
        Line::try_parse_from(words).map(|line| line.args)
    }

    #[test]
    fn contestants_are_chosen_by_name() {
        let args = parse(&["--only", "veth,wireguard-go"]).unwrap();
        assert_eq!(kinds(&args), [Kind::Veth, Kind::WireguardGo]);
        assert!(parse(&["--only", "tinc"]).is_err());
        assert!(!kinds(&parse(&[]).unwrap()).contains(&Kind::AerieRelayed));
        let args = parse(&["--only", "veth", "--relayed"]).unwrap();
        assert_eq!(kinds(&args), [Kind::Veth, Kind::AerieRelayed]);
    }

    #[test]
    fn a_loss_is_a_percentage() {
        assert_eq!(parse(&["--loss", "0.5"]).unwrap().loss, Some(0.5));
        assert!(parse(&["--loss", "101"]).is_err());
        assert!(parse(&["--loss", "NaN"]).is_err());
    }
}
