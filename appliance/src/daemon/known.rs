//! Addresses at which members were reached before, kept so that a restart does not depend on the bootstrap alone.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aerie_overlay::Multiaddr;
use aerie_types::PeerId;

use super::node::Node;

/// How often the addresses are written. They change slowly, and old ones only cost an attempt.
const EVERY: Duration = Duration::from_secs(60);

/// Lines read at most: a few hundred members with a dozen addresses each.
const MAX_LINES: usize = 4096;

/// Reads `peer address` lines; what is not one is left out.
pub(crate) fn load(path: &Path) -> Vec<(PeerId, Vec<Multiaddr>)> {
    parse(&std::fs::read_to_string(path).unwrap_or_default())
}

fn parse(text: &str) -> Vec<(PeerId, Vec<Multiaddr>)> {
    let mut known: Vec<(PeerId, Vec<Multiaddr>)> = Vec::new();
    for line in text.lines().take(MAX_LINES) {
        let Some((peer, addr)) = line.split_once(' ') else {
            continue;
        };
        let (Ok(peer), Ok(addr)) = (peer.parse::<PeerId>(), addr.parse::<Multiaddr>()) else {
            continue;
        };
        match known.last_mut() {
            Some((last, addrs)) if *last == peer => addrs.push(addr),
            _ => known.push((peer, vec![addr])),
        }
    }
    known
}

/// Writes the addresses from time to time.
pub(crate) async fn keep(node: Arc<Node>) {
    let mut written = String::new();
    loop {
        tokio::time::sleep(EVERY).await;
        let Ok(known) = node.overlay.known_addrs().await else {
            return;
        };
        let mut text = String::new();
        for (peer, addrs) in &known {
            for addr in addrs {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{peer} {addr}");
            }
        }
        if text != written {
            match aerie_identity::files::write_atomic(&node.paths.peers(), text.as_bytes(), 0o600) {
                Ok(()) => written = text,
                Err(error) => tracing::debug!(%error, "known addresses were not written"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_addresses_are_left_out() {
        let peer = PeerId([3; 32]);
        let text = format!(
            "{peer} /ip4/192.0.2.1/tcp/4001\nrubbish\n{peer} /ip4/192.0.2.1/udp/4001/quic-v1\n{peer} x\n"
        );
        let known = parse(&text);
        assert_eq!(known.len(), 1);
        assert_eq!(known[0].1.len(), 2);
    }
}
