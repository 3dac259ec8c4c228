//! Nodes for tests: real drivers, with a switchboard in place of the overlay and the register.

// Each test binary uses its own part of this.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

pub(crate) mod memory;
pub(crate) mod netns;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use aerie_types::{GridId, PeerId, Ula, VirtualAddr, WallMillis};
use aerie_vpn::{
    CredentialCheck, Event, Handle, Identity, RemoteIdentity, RemotePeer, VpnConfig, noise_public,
};
use tokio::sync::mpsc;

const GRID: GridId = GridId([9; 16]);

/// Carries signals and answers who holds which address.
#[derive(Clone, Default)]
pub(crate) struct Switchboard {
    nodes: Arc<Mutex<BTreeMap<PeerId, Handle>>>,
}

impl Switchboard {
    pub(crate) fn join(&self, peer: PeerId, handle: Handle) {
        self.nodes.lock().unwrap().insert(peer, handle);
    }

    pub(crate) fn handle(&self, n: u16) -> Handle {
        self.nodes.lock().unwrap().get(&peer(n)).unwrap().clone()
    }

    fn find(&self, peer: PeerId) -> Option<Handle> {
        self.nodes.lock().unwrap().get(&peer).cloned()
    }

    /// Serves one node's events until its driver ends.
    pub(crate) async fn serve(self, n: u16, handle: Handle, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Resolve(addr) => {
                    let number = addr.v4().map_or(0, |v4| (v4.to_bits() & 0xffff) as u16);
                    let remote = self.find(peer(number)).map(|_| RemotePeer {
                        peer: peer(number),
                        noise_public: noise_public(&secret(number)).unwrap(),
                    });
                    handle.resolved(addr, remote).await;
                }
                Event::Signal { to, bytes } => {
                    if let Some(to) = self.find(to) {
                        to.signal(peer(n), bytes).await;
                    }
                }
                Event::PathChanged { peer, path, why } => {
                    eprintln!("node {n}: {} by {path} {}", peer.0[0], why.unwrap_or_default());
                }
            }
        }
    }
}

struct Check;

impl CredentialCheck for Check {
    fn check(&self, der: &[u8], _wall: WallMillis) -> Result<RemoteIdentity, String> {
        let Ok(n) = <[u8; 2]>::try_from(der).map(u16::from_be_bytes) else {
            return Err("malformed".to_owned());
        };
        Ok(RemoteIdentity {
            peer: peer(n),
            noise_public: noise_public(&secret(n)).unwrap(),
            node: format!("node{n}").parse().unwrap(),
        })
    }
}

pub(crate) fn check() -> Box<dyn CredentialCheck> {
    Box::new(Check)
}

pub(crate) fn peer(n: u16) -> PeerId {
    let mut id = [n as u8; 32];
    id[1] = (n >> 8) as u8;
    PeerId(id)
}

fn secret(n: u16) -> [u8; 32] {
    peer(n).0.map(|byte| byte ^ 0x55)
}

pub(crate) fn addr(n: u16) -> VirtualAddr {
    Ipv4Addr::new(100, 96, (n >> 8) as u8, n as u8).into()
}

/// The IPv6 address that follows from it.
pub(crate) fn addr6(n: u16) -> Ipv6Addr {
    Ula::of(GRID).addr(addr(n)).unwrap()
}

pub(crate) fn identity(n: u16) -> Identity {
    Identity {
        grid: GRID,
        peer: peer(n),
        noise_secret: secret(n).into(),
        credential: n.to_be_bytes().to_vec(),
    }
}

pub(crate) fn config(n: u16) -> VpnConfig {
    VpnConfig::new(format!("aerie-t{n}"), addr(n), "100.96.0.0/11".parse().unwrap())
}
