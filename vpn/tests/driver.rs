//! The driver on edges in memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::Duration;

use aerie_vpn::io::memory::MemoryTun;
use aerie_vpn::{NoIpv6, PathKind, PingError, VpnConfig};
use common::memory::{Net, found, framed, packet, udp};
use common::{addr, addr6, config, peer};

#[tokio::test]
async fn packets_cross_from_device_to_device_in_order() {
    let net = Net::new();
    let (_a, tun_a) = net.node(1);
    let (b, tun_b) = net.node(2);
    tun_a.host_sends(packet(1, 2, b"first"));
    assert_eq!(tun_b.host_receives().await, packet(1, 2, b"first"));
    for n in 0..500u32 {
        tun_a.host_sends(packet(1, 2, &n.to_be_bytes()));
    }
    for n in 0..500u32 {
        assert_eq!(tun_b.host_receives().await, packet(1, 2, &n.to_be_bytes()));
    }
    tun_b.host_sends(packet(2, 1, b"back"));
    assert_eq!(tun_a.host_receives().await, packet(2, 1, b"back"));
    let status = b.peers().await.remove(0);
    assert_eq!(status.peer, peer(1));
    assert_eq!(status.name.unwrap().as_str(), "node1");
    assert!(matches!(status.path, PathKind::Direct(_)));
    assert!(status.rx_bytes > 500 * 24);
}

#[tokio::test]
async fn a_super_packet_crosses_and_a_plain_device_gets_its_packets() {
    let net = Net::new();
    let (a, tun_a) = net.node_with(1, MemoryTun::with_offloads());
    let (_b, tun_b) = net.node(2);
    let (_c, tun_c) = net.node_with(3, MemoryTun::with_offloads());
    assert!(a.status().await.unwrap().offloads.tun.udp);
    for (n, tun) in [(2, &tun_b), (3, &tun_c)] {
        a.ping(addr(n)).await.unwrap();
        // Flags and kind share the first number: a checksum is left, UDP segments.
        let kind = u16::from_ne_bytes([1, 5]);
        let payload: Vec<u8> = (0..250).collect();
        tun_a.host_sends(framed([kind, 28, 100, 20, 6], &udp(1, n, &payload)));
        let mut got: Vec<u8> = Vec::new();
        let mut lengths = Vec::new();
        while got.len() < payload.len() {
            let frame = tun.host_receives().await;
            let headers = if n == 3 { 38 } else { 28 };
            lengths.push(frame.len() - headers);
            got.extend(&frame[headers..]);
        }
        assert_eq!(got, payload);
        if n == 2 {
            assert_eq!(lengths, [100, 100, 50]);
        }
    }
}

/// The path loses what is long, or the host's own link refuses it.
#[tokio::test]
async fn a_path_that_takes_less_cuts_streams_and_tells_the_others() {
    for near in [false, true] {
        let crossing = cross_a_narrow_path(near);
        tokio::time::timeout(Duration::from_secs(10), crossing)
            .await
            .unwrap();
    }
}

async fn cross_a_narrow_path(near: bool) {
    let net = Net::new();
    net.net.set_longest(1372, near);
    let (a, tun_a) = net.node_with(1, MemoryTun::with_offloads());
    let (_b, tun_b) = net.node(2);
    a.ping(addr(2)).await.unwrap();
    assert_eq!(found(&a).await, 1340);
    // A TCP super-packet in segments of 1,380 bytes, and one UDP segment as long.
    let payload: Vec<u8> = (0..6900u32).map(|n| (n * 7) as u8).collect();
    let mut tcp = vec![
        0x13, 0x88, 0x13, 0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0,
    ];
    tcp.extend(&payload);
    let mut tcp = packet(1, 2, &tcp);
    tcp[9] = 6;
    tun_a.host_sends(framed([u16::from_ne_bytes([1, 1]), 40, 1380, 20, 16], &tcp));
    let mut got: Vec<u8> = Vec::new();
    while got.len() < payload.len() {
        let segment = tun_b.host_receives().await;
        assert!(segment.len() <= 1340, "{}", segment.len());
        got.extend(&segment[40..]);
    }
    assert_eq!(got, payload);
    let mut datagrams = udp(1, 2, &payload[..2760]);
    datagrams[6] = 0x40;
    tun_a.host_sends(framed([u16::from_ne_bytes([1, 5]), 28, 1380, 20, 6], &datagrams));
    for _ in 0..2 {
        let told = tun_a.host_receives().await;
        assert_eq!(told[10..][20..28][..2], [3, 4], "fragmentation needed");
        assert_eq!(told[10..][24..28], 1340u32.to_be_bytes());
    }
}

#[tokio::test]
async fn a_frame_that_makes_no_sense_does_no_harm() {
    let net = Net::new();
    let (a, tun_a) = net.node_with(1, MemoryTun::with_offloads());
    let (_b, tun_b) = net.node(2);
    a.ping(addr(2)).await.unwrap();
    let whole = udp(1, 2, b"payload");
    tun_a.host_sends(vec![0; 3]);
    tun_a.host_sends(framed([u16::from_ne_bytes([1, 1]), 0, 9, 0, 0], &whole));
    tun_a.host_sends(framed([1, 0, 0, 60_000, 60_000], &whole));
    tun_a.host_sends(framed([0; 5], &whole));
    assert_eq!(tun_b.host_receives().await, whole);
}

#[tokio::test]
async fn a_ping_opens_the_tunnel_and_a_hopeless_one_says_why() {
    let net = Net::new();
    let (a, _tun_a) = net.node(1);
    let (_b, _tun_b) = net.node(2);
    let pong = a.ping(addr(2)).await.unwrap();
    assert!(pong.rtt < Duration::from_secs(1));
    let outside = a
        .ping(std::net::Ipv4Addr::new(192, 0, 2, 1).into())
        .await
        .unwrap_err();
    assert!(
        matches!(&outside, PingError::Unreachable(why) if why.contains("range")),
        "{outside}"
    );
}

#[tokio::test]
async fn a_revoked_member_is_no_peer_any_more() {
    let net = Net::new();
    let (a, _tun_a) = net.node(1);
    let (b, _tun_b) = net.node(2);
    a.ping(addr(2)).await.unwrap();
    b.revoke(peer(1)).await;
    assert!(b.peers().await.is_empty());
}

fn packet6(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend(addr6(from).octets());
    packet.extend(addr6(to).octets());
    packet.extend(payload);
    packet
}

#[tokio::test]
async fn packets_of_both_families_cross() {
    let net = Net::new();
    let (a, tun_a) = net.node(1);
    let (_b, tun_b) = net.node(2);
    assert_eq!(tun_a.addr6(), Some(addr6(1)));
    assert_eq!(a.status().await.unwrap().addr6, Ok(addr6(1)));
    tun_a.host_sends(packet6(1, 2, b"six"));
    assert_eq!(tun_b.host_receives().await, packet6(1, 2, b"six"));
    tun_b.host_sends(packet(2, 1, b"four"));
    assert_eq!(tun_a.host_receives().await, packet(2, 1, b"four"));
    tun_b.host_sends(packet6(2, 1, b"six"));
    assert_eq!(tun_a.host_receives().await, packet6(2, 1, b"six"));
}

#[tokio::test]
async fn a_host_without_ipv6_says_why_to_its_own_and_at_once_to_its_peers() {
    let small = VpnConfig {
        mtu: 1279,
        ..config(2)
    };
    let off = VpnConfig {
        ipv6: false,
        ..config(2)
    };
    for (tun, config, reason) in [
        (MemoryTun::default(), off, NoIpv6::Configured),
        (MemoryTun::without_ipv6(), config(2), NoIpv6::SwitchedOff),
        (MemoryTun::default(), small, NoIpv6::SmallMtu { mtu: 1279 }),
    ] {
        let net = Net::new();
        let (_a, tun_a) = net.node(1);
        let (b, tun_b) = net.node_as(2, tun, config);
        assert_eq!(tun_b.addr6(), None);
        assert_eq!(b.status().await.unwrap().addr6, Err(reason));
        tun_a.host_sends(packet6(1, 2, b"six"));
        let answer = tun_a.host_receives().await;
        assert_eq!(answer[40..42], [1, 3], "address unreachable");
        assert_eq!(answer[48..], packet6(1, 2, b"six"));
        tun_a.host_sends(packet(1, 2, b"four"));
        assert_eq!(tun_b.host_receives().await, packet(1, 2, b"four"));
    }
}

#[tokio::test]
async fn a_new_address_reaches_the_interface_and_the_status() {
    let net = Net::new();
    let (a, tun) = net.node(1);
    a.readdress(addr(7)).await.unwrap();
    assert_eq!(tun.addr(), Some(addr(7)));
    assert_eq!(tun.addr6(), Some(addr6(7)));
    let status = a.status().await.unwrap();
    assert_eq!((status.addr, status.addr6), (addr(7), Ok(addr6(7))));
    let outside = a
        .readdress(std::net::Ipv4Addr::new(10, 0, 0, 1).into())
        .await
        .unwrap_err();
    assert!(
        outside.to_string().contains("outside the grid's range"),
        "{outside}"
    );
}

#[tokio::test]
async fn an_address_that_the_interface_did_not_take_is_given_at_the_next_attempt() {
    let net = Net::new();
    let (a, tun) = net.node(1);
    tun.set_stuck(true);
    a.readdress(addr(7)).await.unwrap_err();
    assert_eq!(a.status().await.unwrap().addr, addr(1));
    tun.set_stuck(false);
    a.readdress(addr(7)).await.unwrap();
    assert_eq!(tun.addr(), Some(addr(7)));
    assert_eq!(a.status().await.unwrap().addr, addr(7));
}

#[tokio::test]
async fn a_driver_that_was_shut_down_says_so() {
    let net = Net::new();
    let (a, _tun) = net.node(1);
    a.shutdown().await;
    a.shutdown().await;
    assert!(a.peers().await.is_empty());
    assert!(a.status().await.unwrap_err().to_string().contains("down"));
    assert!(matches!(a.ping(addr(2)).await, Err(PingError::Down(_))));
}
