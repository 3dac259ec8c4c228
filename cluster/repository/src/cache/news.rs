//! Who else has an image, and which chunks, asked again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Fetch;
use crate::http::Client;
use crate::limits::MAX_PEERS;
use crate::manifest::ManifestId;
use crate::swarm::Bitfield;

/// How long after the last answer is asked again.
const INTERVAL: Duration = Duration::from_millis(400);

/// With more hosts than this it takes longer, so that each is asked as often by all together.
const FEW: u32 = 16;

/// How long a host may take to say what it has, before the others' news are used without it.
const ANSWER: Duration = Duration::from_secs(2);

/// How often a host may fail to say what it has.
const FAILURES: u32 = 5;

/// What was heard.
#[derive(Debug)]
pub(super) enum News {
    /// A host has these chunks.
    Has(SocketAddr, Bitfield),
    /// A host cannot be asked.
    Gone(SocketAddr),
    /// What came of asking the repository for hosts.
    Origin(Result<(), String>),
}

/// Asks until nobody listens.
pub(super) async fn ask(
    client: Client,
    fetch: Fetch,
    id: ManifestId,
    chunks: u32,
    port: u16,
    to: mpsc::Sender<News>,
) {
    let mut hosts: BTreeSet<_> = fetch.hosts.iter().copied().take(MAX_PEERS).collect();
    let mut failures: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    loop {
        let origin = client.announce(fetch.origin, id, port).await;
        let news = News::Origin(origin.as_ref().map(drop).map_err(ToString::to_string));
        if to.send(news).await.is_err() {
            return;
        }
        for host in origin.unwrap_or_default() {
            if hosts.len() < MAX_PEERS {
                hosts.insert(host);
            }
        }
        let mut asked = JoinSet::new();
        for host in hosts.iter().copied() {
            let client = client.clone();
            asked.spawn(async move {
                let have = tokio::time::timeout(ANSWER, client.have(host, id, chunks)).await;
                (host, have.ok().and_then(Result::ok).flatten())
            });
        }
        while let Some(answer) = asked.join_next().await {
            let Ok((host, have)) = answer else {
                continue;
            };
            let news = match have {
                Some(have) => {
                    failures.remove(&host);
                    News::Has(host, have)
                }
                None => {
                    let failed = failures.entry(host).or_default();
                    *failed += 1;
                    if *failed < FAILURES {
                        continue;
                    }
                    failures.remove(&host);
                    hosts.remove(&host);
                    News::Gone(host)
                }
            };
            if to.send(news).await.is_err() {
                return;
            }
        }
        let many = u32::try_from(hosts.len()).unwrap_or(1).div_ceil(FEW).max(1);
        tokio::time::sleep(INTERVAL * many).await;
    }
}
