//! What is told of a run: the figures, on which machine they were taken, and which promises they keep.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Value, json};

use anyhow::Result;

use super::Args;
use super::contestants::Kind;
use super::figures::{Figures, Measure, Verdict, promises};
use super::program::run_here;

/// The share of a machine's processors from which on others are in the way.
const BUSY: f64 = 0.25;

/// A contestant that was measured.
#[derive(Debug)]
pub(super) struct Entrant {
    pub(super) kind: Kind,
    pub(super) version: String,
    pub(super) cipher: String,
}

/// A contestant that was not measured, wholly or in one round.
#[derive(Debug)]
pub(super) struct Absent {
    kind: Kind,
    why: String,
}

impl Absent {
    pub(super) fn new(kind: Kind, error: &anyhow::Error) -> Self {
        Self {
            kind,
            why: reason(error),
        }
    }
}

/// An error in one line. Some hold the ends of logs, which are shown when it happens.
fn reason(error: &anyhow::Error) -> String {
    let parts = error.chain().map(ToString::to_string);
    let lines: Vec<_> = parts.filter(|part| !part.contains('\n')).collect();
    if lines.is_empty() {
        let root = error.root_cause().to_string();
        return root.lines().next().unwrap_or_default().to_owned();
    }
    lines.join(": ")
}

/// The machine and the day.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) date: String,
    pub(super) kernel: String,
    pub(super) processor: String,
    pub(super) cores: usize,
    pub(super) congestion: String,
    /// Processes that wanted a processor in the last minute, before anything was measured.
    pub(super) load: f64,
}

impl Machine {
    pub(super) fn read() -> Result<Self> {
        let line = |path: &str| {
            std::fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        Ok(Self {
            date: run_here(&["date", "-u", "+%Y-%m-%d %H:%M UTC"])?
                .trim()
                .to_owned(),
            kernel: line("/proc/sys/kernel/osrelease"),
            processor: processor(&line("/proc/cpuinfo")).to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            congestion: line("/proc/sys/net/ipv4/tcp_congestion_control"),
            load: line("/proc/loadavg")
                .split_whitespace()
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or_default(),
        })
    }

    /// Whether others leave less than most of it to a measurement.
    pub(super) fn is_busy(&self) -> bool {
        self.load > self.cores as f64 * BUSY
    }
}

fn processor(cpuinfo: &str) -> &str {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut models = fields.filter(|(key, _)| key.trim() == "model name");
    models
        .next()
        .map_or("unknown processor", |(_, model)| model.trim())
}

/// Everything that a run gave.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) entrants: Vec<Entrant>,
    pub(super) figures: Figures,
    absent: Vec<Absent>,
    rounds: u32,
    seconds: u64,
    loss: Option<f64>,
    debug: bool,
}

impl Report {
    pub(super) fn new(
        args: &Args,
        machine: Machine,
        entrants: Vec<Entrant>,
        absent: Vec<Absent>,
        figures: Figures,
    ) -> Self {
        Self {
            machine,
            entrants,
            figures,
            absent,
            rounds: args.rounds,
            seconds: args.seconds,
            loss: args.loss,
            debug: args.common.debug,
        }
    }

    /// The cipher that Aerie's ends agreed on.
    pub(super) fn cipher(&self) -> Option<&str> {
        let aerie = |entrant: &&Entrant| matches!(entrant.kind, Kind::Aerie | Kind::AerieRelayed);
        self.entrants
            .iter()
            .find(aerie)
            .map(|entrant| entrant.cipher.as_str())
    }

    /// Where and how the figures were taken, in one line each.
    pub(super) fn circumstances(&self) -> [String; 2] {
        let Machine {
            date,
            kernel,
            processor,
            cores,
            congestion,
            load,
        } = &self.machine;
        let cipher = self.cipher().unwrap_or("not measured");
        let loss = self
            .loss
            .map(|loss| format!(", {loss}% loss"))
            .unwrap_or_default();
        let busy = if self.machine.is_busy() {
            format!(", load before {load}")
        } else {
            String::new()
        };
        let debug = if self.debug { ", debug build" } else { "" };
        [
            format!("{date}, Linux {kernel}, {cores} x {processor}"),
            format!(
                "cipher of Aerie: {cipher}; TCP {congestion}; medians of {} rounds of {} s{loss}{busy}{debug}",
                self.rounds, self.seconds
            ),
        ]
    }

    pub(super) fn json(&self) -> Value {
        let contestant = |entrant: &Entrant| {
            let mut value = json!({
                "name": entrant.kind.name(),
                "version": entrant.version,
                "cipher": entrant.cipher,
            });
            for measure in Measure::ALL {
                value[measure.key()] = json!({
                    "median": self.figures.median(entrant.kind, measure),
                    "rounds": self.figures.rounds(entrant.kind, measure),
                });
            }
            value
        };
        let absent = |absent: &Absent| json!({ "name": absent.kind.name(), "why": absent.why });
        let promises = self.verdicts();
        let promises = promises.iter().map(|verdict| {
            json!({
                "name": verdict.kind.name(),
                "measure": verdict.measure.key(),
                "beside": verdict.beside.name(),
                "ratio": verdict.ratio,
                "promised": verdict.bound.to_string(),
                "met": verdict.met(),
            })
        });
        json!({
            "date": self.machine.date,
            "kernel": self.machine.kernel,
            "processor": self.machine.processor,
            "cores": self.machine.cores,
            "load_before": self.machine.load,
            "tcp_congestion_control": self.machine.congestion,
            "aerie_cipher": self.cipher(),
            "rounds": self.rounds,
            "seconds": self.seconds,
            "loss_percent": self.loss,
            "debug_build": self.debug,
            "contestants": self.entrants.iter().map(contestant).collect::<Vec<_>>(),
            "absent": self.absent.iter().map(absent).collect::<Vec<_>>(),
            "promises": promises.collect::<Vec<_>>(),
        })
    }

    pub(super) fn show(&self) {
        for line in self.circumstances() {
            println!("{line}");
        }
        println!("\n{}\n", self.table());
        if self.figures.median(Kind::Veth, Measure::UdpSmall).is_some() {
            println!("UDP: the wire's own figures are what iperf3 can send here; no tunnel can show more.");
        }
        for absent in &self.absent {
            println!("left out: {} ({})", absent.kind.name(), absent.why);
        }
        let promises = self.promises();
        if promises.row_count() > 0 {
            println!("Aerie in relation to others:\n{promises}");
        }
    }

    /// What became of what is promised on this wire.
    pub(super) fn verdicts(&self) -> Vec<Verdict> {
        self.figures.verdicts(promises(self.loss))
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        let headers = Measure::ALL.map(|measure| {
            let (name, unit) = measure.title();
            right(format!("{name}\n{unit}"))
        });
        table
            .load_style(presets::NOTHING)
            .set_header([Cell::new(""), Cell::new("")].into_iter().chain(headers));
        for entrant in &self.entrants {
            let cells = Measure::ALL.map(|measure| {
                let median = self.figures.median(entrant.kind, measure);
                let digits = measure.digits();
                right(median.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}")))
            });
            let names = [entrant.kind.name(), &entrant.version].map(Cell::new);
            table.add_row(names.into_iter().chain(cells));
        }
        table
    }

    fn promises(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        for verdict in self.verdicts() {
            let ratio = match verdict.ratio {
                Some(ratio) => format!("{ratio:.2} x {}", verdict.beside.name()),
                None => "not measured".to_owned(),
            };
            table.add_row([
                Cell::new(verdict.kind.name()),
                Cell::new(verdict.measure.title().0),
                right(ratio),
                Cell::new(format!("promised {}", verdict.bound)),
                Cell::new(if verdict.met() { "met" } else { "not met" }),
            ]);
        }
        table
    }
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A report of two contestants.
    pub(in super::super) fn sample() -> Report {
        let mut figures = Figures::default();
        figures.add(Kind::Aerie, Measure::TcpOne, 11.0);
        figures.add(Kind::WireguardGo, Measure::TcpOne, 4.0);
        let entrant = |kind, cipher: &str| Entrant {
            kind,
            version: "1.0".to_owned(),
            cipher: cipher.to_owned(),
        };
        Report {
            machine: Machine {
                date: "2000-01-01 00:00 UTC".to_owned(),
                kernel: "6.1".to_owned(),
                processor: "Fast & <Cheap>".to_owned(),
                cores: 2,
                congestion: "cubic".to_owned(),
                load: 1.5,
            },
            entrants: vec![
                entrant(Kind::Aerie, "AES-256-GCM"),
                entrant(Kind::WireguardGo, "ChaCha20-Poly1305"),
            ],
            absent: vec![Absent::new(Kind::Nebula, &anyhow::anyhow!("no archive"))],
            figures,
            rounds: 1,
            seconds: 5,
            loss: None,
            debug: false,
        }
    }

    #[test]
    fn a_report_tells_machine_cipher_and_verdicts() {
        let report = sample();
        let told = report.json();
        assert_eq!(told["aerie_cipher"], "AES-256-GCM");
        assert_eq!(told["contestants"][1]["tcp_1_gbit_s"]["median"], 4.0);
        assert_eq!(told["promises"][0]["met"], true);
        assert_eq!(told["promises"][1]["ratio"], Value::Null);
        assert_eq!(told["absent"][0]["why"], "no archive");
        let [_, how] = report.circumstances();
        assert!(how.contains("AES-256-GCM") && !how.contains("loss"), "{how}");
        let lossy = Report {
            loss: Some(0.5),
            ..sample()
        };
        let [_, how] = lossy.circumstances();
        assert!(how.contains("0.5% loss"), "{how}");
        assert!(report.circumstances()[1].contains("load before 1.5"), "{how}");
        let promises = report.promises().to_string();
        assert!(
            promises.contains("2.75 x") && promises.contains("not measured"),
            "{promises}"
        );
    }

    #[test]
    fn a_reason_leaves_the_ends_of_logs_out() {
        let error = anyhow::anyhow!("waited 90 s").context("a log:\nits end\n");
        assert_eq!(reason(&error), "waited 90 s");
        let error = anyhow::anyhow!("no network\nat all").context("cannot fetch it");
        assert_eq!(reason(&error), "cannot fetch it");
        assert_eq!(reason(&anyhow::anyhow!("first\nsecond")), "first");
    }

    #[test]
    fn the_processor_is_read_off_the_kernels_list() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC: 9\nflags\t: a b\nmodel name\t: other\n";
        assert_eq!(processor(text), "AMD EPYC: 9");
        assert_eq!(processor(""), "unknown processor");
    }
}
