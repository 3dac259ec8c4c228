//! `cargo xtask bench pool`.

use std::time::Duration;

use aerie_lab::campus::Campus;
use anyhow::{Context, Result, ensure};

use super::Common;
use crate::steps::seconds;

/// What is promised of the time from a node's blob to its slot in the pool: the median.
const MAX_READY: Duration = Duration::from_secs(10);

/// How long a run of jobs may take.
const JOBS_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// How often a job is pinned to each worker.
    #[arg(long, default_value_t = 10)]
    runs: u32,
}

struct Run {
    /// Until the last of the run's jobs was done.
    took: Duration,
    jobs: usize,
    /// Jobs that were not started exactly once.
    restarted: usize,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let (mut ready, runs) = super::on_campus(args.common, |campus| measure(campus, args.runs))?;
    ready.sort();
    let median = *ready.get(ready.len() / 2).context("no node became ready")?;
    let slowest = *ready.last().unwrap_or(&median);
    let restarted: usize = runs.iter().map(|run| run.restarted).sum();
    let jobs: usize = runs.iter().map(|run| run.jobs).sum();
    if args.common.json {
        let value = serde_json::json!({
            "ready_ms": ready.iter().map(|took| took.as_secs_f64() * 1000.0).collect::<Vec<_>>(),
            "ready_median_ms": median.as_secs_f64() * 1000.0,
            "runs_ms": runs.iter().map(|run| run.took.as_secs_f64() * 1000.0).collect::<Vec<_>>(),
            "jobs": jobs,
            "restarted": restarted,
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        println!(
            "blob to ready, {} nodes at once: median {}, slowest {}",
            ready.len(),
            seconds(median),
            seconds(slowest)
        );
        for (number, run) in (1..).zip(&runs) {
            println!(
                "run {number}: {} jobs in {}, {} restarted",
                run.jobs,
                seconds(run.took),
                run.restarted
            );
        }
        println!(
            "{jobs} jobs, each pinned to a worker; {restarted} with NumJobStarts or NumShadowStarts other than 1"
        );
    }
    ensure!(
        restarted == 0,
        "{restarted} of {jobs} jobs were started more than once"
    );
    ensure!(
        median <= MAX_READY,
        "the median node took {} from its blob to the pool; promised are {}",
        seconds(median),
        seconds(MAX_READY)
    );
    Ok(())
}

fn measure(campus: &Campus<'_>, runs: u32) -> Result<(Vec<Duration>, Vec<Run>)> {
    let mut ready = Vec::new();
    for member in campus.members.values() {
        let took = member
            .status()?
            .ready_ms
            .context("a node does not say when it became ready")?;
        ready.push(Duration::from_millis(took));
    }
    let mut done = Vec::new();
    for number in 1..=runs {
        eprintln!("── run {number} of {runs}: a job pinned to each worker");
        let jobs = campus.run_pinned_jobs(&format!("run{number}"), JOBS_LIMIT)?;
        let restarted: Vec<_> = jobs
            .iter()
            .filter(|(_, job)| (job.starts, job.shadows) != (1, 1))
            .collect();
        for (worker, job) in &restarted {
            let (starts, shadows) = (job.starts, job.shadows);
            eprintln!(
                "the job of {worker} was started {starts} times by {shadows} shadows:\n{}",
                job.log
            );
        }
        done.push(Run {
            took: jobs.iter().map(|(_, job)| job.took).max().unwrap_or_default(),
            jobs: jobs.len(),
            restarted: restarted.len(),
        });
    }
    Ok((ready, done))
}
