//! Nodes whose edges are in memory, and packets for them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use aerie_types::UnderlayAddr;
use aerie_vpn::io::faults::Faults;
use aerie_vpn::io::memory::{MemoryNet, MemoryTun};
use aerie_vpn::{Handle, Vpn, VpnConfig};

use super::{Switchboard, addr, check, config, identity, peer};

pub(crate) struct Net {
    board: Switchboard,
    pub(crate) net: MemoryNet,
    sockets: Mutex<BTreeMap<u16, Faults>>,
}

impl Net {
    pub(crate) fn new() -> Self {
        Self {
            board: Switchboard::default(),
            net: MemoryNet::default(),
            sockets: Mutex::default(),
        }
    }

    pub(crate) fn node(&self, n: u16) -> (Handle, MemoryTun) {
        self.node_with(n, MemoryTun::default())
    }

    pub(crate) fn node_with(&self, n: u16, tun: MemoryTun) -> (Handle, MemoryTun) {
        self.node_as(n, tun, config(n))
    }

    pub(crate) fn node_as(&self, n: u16, tun: MemoryTun, config: VpnConfig) -> (Handle, MemoryTun) {
        let udp = self.net.bind(Self::socket(n));
        self.sockets.lock().unwrap().insert(n, udp.faults().clone());
        let (handle, events, _) =
            Vpn::start_with(config, identity(n), check(), &mut rand::rng(), tun.clone(), udp).unwrap();
        self.board.join(peer(n), handle.clone());
        tokio::spawn(self.board.clone().serve(n, handle.clone(), events));
        (handle, tun)
    }

    /// Where a node's socket is.
    pub(crate) fn socket(n: u16) -> UnderlayAddr {
        UnderlayAddr(([192, 0, 2, n as u8], 4242).into())
    }

    /// What makes a node's socket fail.
    pub(crate) fn faults(&self, n: u16) -> Faults {
        self.sockets.lock().unwrap().get(&n).unwrap().clone()
    }
}

pub(crate) fn packet(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(addr(from).v4().unwrap().octets());
    packet.extend(addr(to).v4().unwrap().octets());
    packet.extend(payload);
    let total = packet.len() as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet
}

/// A virtio header: flags, kind, length of headers, payload of each segment, where the checksum begins and stands.
pub(crate) fn framed(head: [u16; 5], packet: &[u8]) -> Vec<u8> {
    let mut frame: Vec<u8> = head.iter().flat_map(|number| number.to_ne_bytes()).collect();
    frame.extend(packet);
    frame
}

/// A UDP packet whose checksum is absent.
pub(crate) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x13, 0x88, 0x13, 0x89, 0, 0, 0, 0];
    bytes[4..6].copy_from_slice(&(payload.len() as u16 + 8).to_be_bytes());
    bytes.extend(payload);
    packet(from, to, &bytes)
}

/// Waits until a node knows how long a packet may be that goes whole to its only peer.
pub(crate) async fn found(node: &Handle) -> usize {
    let search = async {
        loop {
            if let Some(mtu) = node.peers().await.first().and_then(|peer| peer.mtu) {
                return mtu;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), search)
        .await
        .unwrap()
}
