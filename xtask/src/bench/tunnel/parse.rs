//! What iperf3 and ping print, as figures.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What arrived of a transfer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Received {
    pub(super) bytes: f64,
    pub(super) seconds: f64,
}

impl Received {
    pub(super) fn gbit_per_second(self) -> f64 {
        self.bytes * 8.0 / self.seconds / 1e9
    }

    pub(super) fn gib(self) -> f64 {
        self.bytes / f64::from(1 << 30)
    }

    /// Thousands of packets a second, of so many bytes each.
    pub(super) fn kpps(self, payload: u32) -> f64 {
        self.bytes / f64::from(payload) / self.seconds / 1e3
    }
}

/// What the receiver got by the client's `iperf3 --json`, of all streams together.
pub(super) fn iperf3(text: &str) -> Result<Received> {
    let said: Value =
        serde_json::from_str(text).with_context(|| format!("iperf3 printed no JSON: {text}"))?;
    if let Some(error) = said["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let sum = &said["end"]["sum_received"];
    let number = |key: &str| {
        let value = sum[key].as_f64().filter(|value| *value > 0.0);
        value.with_context(|| format!("iperf3 counts no {key} that were received"))
    };
    Ok(Received {
        bytes: number("bytes")?,
        seconds: number("seconds")?,
    })
}

/// The round trips that `ping` printed, in microseconds.
pub(super) fn ping(text: &str) -> Vec<f64> {
    let times = text.lines().filter_map(|line| {
        let (_, time) = line.split_once(" time=")?;
        let milliseconds: f64 = time.split_whitespace().next()?.parse().ok()?;
        Some(milliseconds * 1000.0)
    });
    times.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = r#"{"start": {"version": "iperf 3.12"}, "intervals": [], "end": {
        "streams": [{"receiver": {"bytes": 1564999680, "seconds": 1.000039}}],
        "sum_sent": {"start": 0, "end": 1.000039, "seconds": 1.000039, "bytes": 1571553280, "retransmits": 8},
        "sum_received": {"start": 0, "end": 1.000562, "seconds": 1.000562, "bytes": 1564999680,
            "bits_per_second": 12512965153.583687, "sender": true},
        "sender_tcp_congestion": "bbr"}}"#;

    const UDP: &str = r#"{"end": {
        "sum": {"seconds": 1.000158, "bytes": 5213632, "lost_packets": 29209, "packets": 81463, "sender": true},
        "sum_sent": {"seconds": 1.000113, "bytes": 5213632, "lost_packets": 0, "packets": 81463},
        "sum_received": {"seconds": 1.000158, "bytes": 3344256, "lost_packets": 29209, "packets": 81463}}}"#;

    #[test]
    fn a_stream_counts_by_what_its_receiver_got() {
        let received = iperf3(TCP).unwrap();
        assert!(
            (received.gbit_per_second() - 12.513).abs() < 0.001,
            "{received:?}"
        );
        assert!((received.gib() - 1.4575).abs() < 0.001, "{received:?}");
    }

    #[test]
    fn datagrams_count_when_they_arrive() {
        let kpps = iperf3(UDP).unwrap().kpps(64);
        assert!((kpps - 52.246).abs() < 0.01, "{kpps}");
    }

    #[test]
    fn an_error_of_iperf3_is_told_in_its_own_words() {
        let refused = r#"{"intervals": [], "end": {}, "error": "unable to connect to server"}"#;
        assert_eq!(
            iperf3(refused).unwrap_err().to_string(),
            "iperf3: unable to connect to server"
        );
        assert!(iperf3("").is_err());
        assert!(
            iperf3(r#"{"end": {"sum_received": {"bytes": 0, "seconds": 5}}}"#)
                .unwrap_err()
                .to_string()
                .contains("no bytes")
        );
    }

    #[test]
    fn round_trips_are_read_off_every_reply() {
        let text = "PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data.\n\
                    64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=0.017 ms\n\
                    no answer yet for icmp_seq=2\n\
                    64 bytes from 10.0.0.2: icmp_seq=3 ttl=64 time=12.4 ms (DUP!)\n\n\
                    --- 10.0.0.2 ping statistics ---\n\
                    3 packets transmitted, 2 received, 33% packet loss, time 6ms\n\
                    rtt min/avg/max/mdev = 0.017/6.2/12.4/6.0 ms\n";
        let times = ping(text);
        assert_eq!(times.len(), 2);
        assert!((times[0] - 17.0).abs() < 1e-6 && (times[1] - 12400.0).abs() < 1e-6);
    }
}
