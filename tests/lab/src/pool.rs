//! HTCondor jobs as a person submits them, and what became of each.
//!
//! A job is followed by its own event log, as `condor_wait` does, so that following it asks nothing of the schedd.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::node::Node;
use crate::wait::wait_until;

/// How long the schedd may take to write a job's history.
const HISTORY: Duration = Duration::from_secs(30);

/// A job to submit: a shell script with one input file and one output file, both transferred.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobSpec {
    /// The folder of the job, below the user's home; its name tells jobs apart.
    pub name: String,
    /// The script; it reads `input` and writes `result`, and its standard output comes back too.
    pub script: String,
    /// What the script finds in `input`.
    pub input: String,
    /// The full name of the machine that it has to run on; any, if none.
    pub machine: Option<String>,
}

impl JobSpec {
    /// A job that says where it ran and proves by a checksum that its input arrived.
    #[must_use]
    pub fn whereabouts(name: &str, machine: Option<&str>) -> Self {
        Self {
            name: name.to_owned(),
            script: "hostname\nsha256sum <input >result\n".to_owned(),
            input: format!("the input of {name}\n").repeat(64),
            machine: machine.map(str::to_owned),
        }
    }

    fn submit_file(&self) -> String {
        let requirements = self
            .machine
            .as_ref()
            .map(|fqdn| format!("requirements = TARGET.Machine == \"{fqdn}\"\n"));
        format!(
            "universe = vanilla\nexecutable = job.sh\ntransfer_input_files = input\n\
             transfer_output_files = result\nshould_transfer_files = YES\nwhen_to_transfer_output = ON_EXIT\n\
             output = out\nerror = err\nlog = log\nrequest_memory = 16\nrequest_disk = 1024\n{}queue\n",
            requirements.unwrap_or_default()
        )
    }
}

/// A job that was submitted.
#[derive(Debug, Clone)]
pub struct Job {
    node: Node,
    user: String,
    dir: String,
    /// HTCondor's number of it.
    pub cluster: u32,
    submitted: Instant,
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// What it wrote to standard output.
    pub out: String,
    /// The content of its file `result`.
    pub result: String,
    /// How often it was started (NumJobStarts).
    pub starts: usize,
    /// How often a shadow was started for it (NumShadowStarts).
    pub shadows: usize,
    /// Its event log and, if it was not started exactly once, what the schedd and its shadows logged of it.
    pub log: String,
    /// From submission until it was seen to be done.
    pub took: Duration,
}

impl Job {
    /// Submits a job as a user of a submit node.
    ///
    /// # Errors
    /// When the schedd does not take it; the message is `condor_submit`'s.
    pub fn submit(node: &Node, user: &str, spec: &JobSpec) -> Result<Self> {
        let dir = format!("/home/{user}/{}", spec.name);
        node.sh(user, &format!("rm -rf {dir}; mkdir {dir}"))?;
        for (file, text) in [
            ("job.sh", &format!("#!/bin/sh\nset -eu\n{}", spec.script)),
            ("input", &spec.input),
            ("job.sub", &spec.submit_file()),
        ] {
            node.put(&format!("{dir}/{file}"), text.as_bytes())?;
        }
        node.sh(
            "root",
            &format!("chown -R {user} {dir} && chmod 755 {dir}/job.sh"),
        )?;
        let submitted = Instant::now();
        let said = node.sh(user, &format!("cd {dir} && condor_submit -terse job.sub"))?;
        // `12.0 - 12.0`
        let cluster = said
            .split('.')
            .next()
            .and_then(|number| number.trim().parse().ok());
        let cluster = cluster.with_context(|| format!("condor_submit said: {said}"))?;
        Ok(Self {
            node: node.clone(),
            user: user.to_owned(),
            dir,
            cluster,
            submitted,
        })
    }

    fn event_log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.node.get(&format!("{}/log", self.dir))?).into_owned())
    }

    /// How often it was started so far.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn starts(&self) -> Result<usize> {
        Ok(count(&self.event_log()?, EXECUTES))
    }

    /// Waits until it has been started.
    ///
    /// # Errors
    /// When the time ran out; the message has its log and the schedd's analysis.
    pub fn wait_started(&self, limit: Duration) -> Result<()> {
        self.wait_for(limit, "start", |log| (count(log, EXECUTES) > 0).then_some(()))
    }

    /// Waits for its end and collects what it left.
    ///
    /// # Errors
    /// When the time ran out or it was ended by somebody; the message has its log and the schedd's analysis.
    pub fn wait(&self, limit: Duration) -> Result<Done> {
        let log = self.wait_for(limit, "end", |log| {
            (count(log, TERMINATED) + count(log, ABORTED) > 0).then(|| log.to_owned())
        })?;
        let took = self.submitted.elapsed();
        ensure!(
            count(&log, TERMINATED) == 1 && log.contains("(return value 0)"),
            "job {} failed:\n{log}",
            self.cluster
        );
        let read = |file: &str| -> Result<String> {
            Ok(String::from_utf8_lossy(&self.node.get(&format!("{}/{file}", self.dir))?).into_owned())
        };
        let (starts, shadows) = self.counted()?;
        let executed = count(&log, EXECUTES);
        let log = if (starts, shadows) == (1, 1) {
            log
        } else {
            log + &self.logged()?
        };
        ensure!(
            starts == executed,
            "the schedd counts {starts} starts of job {}, its log tells another story:\n{log}",
            self.cluster
        );
        Ok(Done {
            out: read("out")?,
            result: read("result")?,
            starts,
            shadows,
            log,
            took,
        })
    }

    /// The lines about it in the logs of the schedd and its shadows.
    fn logged(&self) -> Result<String> {
        let logs = "/var/log/condor/SchedLog /var/log/condor/ShadowLog";
        let about = format!("grep -h -F '{}.0' {logs} || true", self.cluster);
        self.node.sh("root", &about)
    }

    /// What the schedd has counted: NumJobStarts and NumShadowStarts. The job has left the queue; its history is
    /// written a moment later.
    fn counted(&self) -> Result<(usize, usize)> {
        let what = format!("job {} in the history", self.cluster);
        let cluster = self.cluster.to_string();
        let line = wait_until(HISTORY, &what, || {
            let line = self.node.run(
                &self.user,
                &[
                    "condor_history",
                    &cluster,
                    "-limit",
                    "1",
                    "-af",
                    "NumJobStarts",
                    "NumShadowStarts",
                ],
            )?;
            Ok(Some(line).filter(|line| !line.trim().is_empty()))
        })?;
        let numbers: Vec<usize> = line
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        match numbers[..] {
            [starts, shadows] => Ok((starts, shadows)),
            _ => bail!("the history of job {} says '{}'", self.cluster, line.trim()),
        }
    }

    fn wait_for<T>(&self, limit: Duration, what: &str, found: impl Fn(&str) -> Option<T>) -> Result<T> {
        let what = format!(
            "the {what} of job {} of {} on {}",
            self.cluster,
            self.user,
            self.node.name()
        );
        wait_until(limit, &what, || Ok(found(&self.event_log()?))).map_err(|error| {
            let log = self.event_log().unwrap_or_default();
            let analysis = self
                .node
                .exec(
                    &self.user,
                    &["condor_q", "-better-analyze", &self.cluster.to_string()],
                )
                .map(|output| output.both())
                .unwrap_or_default();
            error.context(format!(
                "---- its event log:\n{log}\n---- the schedd's analysis:\n{analysis}"
            ))
        })
    }
}

/// Numbers of events in a job's log.
const EXECUTES: &str = "001 (";
const TERMINATED: &str = "005 (";
const ABORTED: &str = "009 (";

fn count(log: &str, event: &str) -> usize {
    log.lines().filter(|line| line.starts_with(event)).count()
}

/// The machines that the pool lists, by full name, as seen from a node.
///
/// # Errors
/// When `condor_status` fails.
pub fn machines(node: &Node, user: &str) -> Result<Vec<String>> {
    let text = node.run(user, &["condor_status", "-af", "Machine"])?;
    let mut names: Vec<_> = text.lines().map(str::to_owned).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_job_requires_its_machine() {
        let spec = JobSpec::whereabouts("j1", Some("w1.lab.grid"));
        assert!(
            spec.submit_file()
                .contains("requirements = TARGET.Machine == \"w1.lab.grid\"\n")
        );
        assert!(
            !JobSpec::whereabouts("j1", None)
                .submit_file()
                .contains("requirements")
        );
    }

    #[test]
    fn starts_are_counted_from_the_event_log() {
        let log =
            "000 (003.000.000) submitted\n...\n001 (003.000.000) executing\n...\n001 (003.000.000) again\n";
        assert_eq!(count(log, EXECUTES), 2);
        assert_eq!(count(log, TERMINATED), 0);
    }
}
