//! `aerie ping`: round trips through the tunnel, with the path as it changes.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::PingArgs;
use super::query::unexpected;
use crate::client::ask;
use crate::control::{Reply, Request};

/// Round trips, unless a number was asked for; and while a direct path is waited for.
const USUAL: u32 = 4;
const PATIENT: u32 = 20;

pub(crate) fn ping(args: &PingArgs) -> Result<ExitCode> {
    let usual = if args.until_direct { PATIENT } else { USUAL };
    let count = args.count.unwrap_or(usual);
    let json = args.query.json;
    let mut course = Course::new(Instant::now());
    let mut direct = false;
    for turn in 0..count {
        let request = Request::Ping {
            target: args.target.clone(),
        };
        let daemon = &args.query.daemon;
        course.sent += 1;
        match ask(&daemon.run_dir, daemon.grid.as_deref(), &request)? {
            Reply::Pong {
                node,
                addr,
                rtt_ms,
                path,
                candidate,
            } => {
                direct = path.starts_with("direct") || path.starts_with("lan");
                let change = course.answered(rtt_ms, &path, Instant::now());
                if json {
                    let line = serde_json::json!({
                        "node": node, "addr": addr, "rtt_ms": rtt_ms, "path": path, "candidate": candidate,
                    });
                    println!("{line}");
                } else {
                    change.iter().for_each(|change| println!("{change}"));
                    let how = candidate.map_or(String::new(), |candidate| format!(" ({candidate})"));
                    println!("{node} ({addr}): {rtt_ms:.2} ms, {path}{how}");
                }
            }
            Reply::Error { message } => eprintln!("aerie: {message}"),
            other => return unexpected(other),
        }
        if args.until_direct && direct {
            break;
        }
        if turn + 1 < count {
            thread::sleep(Duration::from_secs_f64(args.interval));
        }
    }
    if !json && course.sent > 1 {
        println!("{}", course.summary());
    }
    if args.until_direct && !direct && !course.rtts.is_empty() {
        eprintln!(
            "aerie: there is no direct path yet; 'aerie path {} --why' tells why",
            args.target
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(if course.rtts.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// What came of the round trips so far.
struct Course {
    began: Instant,
    sent: u32,
    rtts: Vec<f64>,
    path: Option<String>,
}

impl Course {
    fn new(began: Instant) -> Self {
        Self {
            began,
            sent: 0,
            rtts: Vec::new(),
            path: None,
        }
    }

    /// Notes an answer. What is to be said of the path, if it is another one than before.
    fn answered(&mut self, rtt_ms: f64, path: &str, now: Instant) -> Option<String> {
        self.rtts.push(rtt_ms);
        let before = self.path.replace(path.to_owned())?;
        (before != path).then(|| {
            let after = now.saturating_duration_since(self.began).as_secs_f64();
            format!("path changed after {after:.1} s: {before} -> {path}")
        })
    }

    fn summary(&self) -> String {
        let answered = self.rtts.len();
        let lost = 100.0 * (1.0 - answered as f64 / f64::from(self.sent.max(1)));
        let sent = self.sent;
        let mut text = format!("{answered} of {sent} answered, {lost:.0}% lost");
        let least = self.rtts.iter().copied().reduce(f64::min);
        let most = self.rtts.iter().copied().reduce(f64::max);
        if let (Some(least), Some(most)) = (least, most) {
            let mean = self.rtts.iter().sum::<f64>() / answered as f64;
            text += &format!("; round trip {least:.2} / {mean:.2} / {most:.2} ms (least, mean, most)");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_path_is_told_when_it_happens() {
        let began = Instant::now();
        let mut course = Course::new(began);
        let relayed = "relayed via r1 203.0.113.2:4242";
        assert_eq!(course.answered(20.0, relayed, began), None);
        assert_eq!(course.answered(21.0, relayed, began), None);
        let at = began + Duration::from_millis(1300);
        assert_eq!(
            course.answered(4.0, "direct 198.51.100.5:4242", at).unwrap(),
            "path changed after 1.3 s: relayed via r1 203.0.113.2:4242 -> direct 198.51.100.5:4242"
        );
    }

    #[test]
    fn the_summary_counts_what_was_lost() {
        let mut course = Course::new(Instant::now());
        course.sent = 4;
        assert_eq!(course.summary(), "0 of 4 answered, 100% lost");
        for rtt in [1.0, 2.0, 6.0] {
            course.answered(rtt, "lan 10.0.0.2:4242", Instant::now());
        }
        assert_eq!(
            course.summary(),
            "3 of 4 answered, 25% lost; round trip 1.00 / 3.00 / 6.00 ms (least, mean, most)"
        );
    }
}
