//! The driver on edges in memory that fail, lack something, or get what nobody sane sends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::{Duration, Instant};

use aerie_types::UnderlayAddr;
use aerie_vpn::Handle;
use aerie_vpn::io::Udp;
use aerie_vpn::io::faults::Faults;
use aerie_vpn::io::memory::MemoryTun;
use aerie_vpn_proto::Run;
use common::addr;
use common::memory::{Net, found, framed, packet, udp};

/// Two nodes that have a session.
async fn pair(net: &Net, tun: MemoryTun) -> ([Handle; 2], [MemoryTun; 2]) {
    let (a, tun_a) = net.node_with(1, tun);
    let (b, tun_b) = net.node(2);
    a.ping(addr(2)).await.unwrap();
    // Nothing is under way any more.
    found(&a).await;
    found(&b).await;
    ([a, b], [tun_a, tun_b])
}

async fn within_ten_seconds<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.unwrap()
}

/// Waits until so many reads have failed.
async fn fails(faults: &Faults, count: usize) {
    let until = async {
        while faults.failed_receives() < count {
            tokio::task::yield_now().await;
        }
    };
    within_ten_seconds(until).await;
}

/// What waits before an edge that fails is kept, while the edge is asked now and then, what goes the other way passes,
/// and the node answers. The ends: the number and the device of who sends what waits, and of who gets it.
async fn asked_now_and_then(
    node: &Handle,
    faults: &Faults,
    (errno, asked): (i32, usize),
    [(from, sender), (to, receiver)]: [(u16, &MemoryTun); 2],
) {
    let began = Instant::now();
    faults.fail_receive(errno, usize::MAX);
    sender.host_sends(packet(from, to, b"waits"));
    fails(faults, asked).await;
    assert!(
        began.elapsed() > Duration::from_millis(350),
        "{:?}",
        began.elapsed()
    );
    node.status().await.unwrap();
    receiver.host_sends(packet(to, from, b"the other way"));
    let got = within_ten_seconds(sender.host_receives()).await;
    assert_eq!(got, packet(to, from, b"the other way"));
    faults.fail_receive(0, 0);
    sender.host_sends(packet(from, to, b"later"));
    for payload in [&b"waits"[..], b"later"] {
        let got = within_ten_seconds(receiver.host_receives()).await;
        assert_eq!(got, packet(from, to, payload));
    }
}

#[tokio::test]
async fn a_device_that_cannot_be_read_is_asked_now_and_then_and_keeps_what_waits() {
    for errno in [libc::EIO, libc::ENOBUFS] {
        let net = Net::new();
        let ([a, _b], [tun_a, tun_b]) = pair(&net, MemoryTun::default()).await;
        asked_now_and_then(&a, tun_a.faults(), (errno, 5), [(1, &tun_a), (2, &tun_b)]).await;
    }
}

#[tokio::test]
async fn a_socket_that_cannot_be_read_is_asked_now_and_then_and_keeps_what_waits() {
    for errno in [libc::EIO, libc::ENOBUFS] {
        let net = Net::new();
        let ([a, _b], [tun_a, tun_b]) = pair(&net, MemoryTun::default()).await;
        // The second read follows the first at once.
        asked_now_and_then(&a, &net.faults(1), (errno, 6), [(2, &tun_b), (1, &tun_a)]).await;
    }
}

/// ICMP errors of earlier datagrams come so, and others can provoke them.
#[tokio::test]
async fn single_errors_of_the_socket_delay_nothing() {
    let net = Net::new();
    let (_nodes, [tun_a, tun_b]) = pair(&net, MemoryTun::default()).await;
    let faults = net.faults(1);
    let (began, before) = (Instant::now(), faults.failed_receives());
    for n in 0..50u8 {
        faults.fail_receive(libc::ECONNREFUSED, 1);
        tun_b.host_sends(packet(2, 1, &[n]));
        let got = within_ten_seconds(tun_a.host_receives()).await;
        assert_eq!(got, packet(2, 1, &[n]));
    }
    assert_eq!(faults.failed_receives() - before, 50);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_device_that_cannot_be_written_loses_what_comes_meanwhile_alone() {
    for errno in [libc::EIO, libc::ENOBUFS] {
        let net = Net::new();
        let ([_a, b], [tun_a, tun_b]) = pair(&net, MemoryTun::default()).await;
        tun_b.faults().fail_send(errno, 3);
        for n in 0..5u8 {
            tun_a.host_sends(packet(1, 2, &[n]));
        }
        for n in 3..5u8 {
            let got = within_ten_seconds(tun_b.host_receives()).await;
            assert_eq!(got, packet(1, 2, &[n]));
        }
        b.status().await.unwrap();
    }
}

/// A UDP super-packet of three segments of up to 100 bytes.
fn three_segments() -> Vec<u8> {
    let payload: Vec<u8> = (0..250).collect();
    // Flags and kind share the first number: a checksum is left, UDP segments.
    let kind = u16::from_ne_bytes([1, 5]);
    framed([kind, 28, 100, 20, 6], &udp(1, 2, &payload))
}

#[tokio::test]
async fn a_kernel_out_of_memory_costs_one_datagram_and_not_its_run() {
    for errno in [libc::ENOBUFS, libc::ENOMEM] {
        let net = Net::new();
        let (_nodes, [tun_a, tun_b]) = pair(&net, MemoryTun::with_offloads()).await;
        net.faults(1).fail_send(errno, 1);
        tun_a.host_sends(three_segments());
        let mut lengths = Vec::new();
        for _ in 0..2 {
            lengths.push(within_ten_seconds(tun_b.host_receives()).await.len() - 28);
        }
        assert_eq!(lengths, [100, 50]);
    }
}

#[tokio::test]
async fn a_socket_that_sends_nothing_for_a_while_stops_neither_the_driver_nor_what_comes_later() {
    for errno in [libc::ENOBUFS, libc::EIO, libc::ENETUNREACH] {
        let net = Net::new();
        let ([a, _b], [tun_a, tun_b]) = pair(&net, MemoryTun::default()).await;
        let sent = a.status().await.unwrap().counters.sent;
        net.faults(1).fail_send(errno, usize::MAX);
        for n in 0..200u32 {
            tun_a.host_sends(packet(1, 2, &n.to_be_bytes()));
        }
        let taken = async {
            while a.status().await.unwrap().counters.sent < sent + 200 {
                tokio::task::yield_now().await;
            }
        };
        within_ten_seconds(taken).await;
        net.faults(1).fail_send(0, 0);
        tun_a.host_sends(packet(1, 2, b"later"));
        let got = within_ten_seconds(tun_b.host_receives()).await;
        assert_eq!(got, packet(1, 2, b"later"));
    }
}

#[tokio::test]
async fn a_kernel_without_uso_gets_datagrams_one_by_one_and_the_status_says_so() {
    let net = Net::new();
    let (_nodes, [tun_a, _tun_b]) = pair(&net, MemoryTun::with_offloads()).await;
    let (c, tun_c) = net.node_with(3, MemoryTun::without_uso());
    c.ping(addr(1)).await.unwrap();
    let offloads = c.status().await.unwrap().offloads.tun;
    assert_eq!((offloads.framed, offloads.tcp, offloads.udp), (true, true, false));
    let payload: Vec<u8> = (0..250).collect();
    let kind = u16::from_ne_bytes([1, 5]);
    tun_a.host_sends(framed([kind, 28, 100, 20, 6], &udp(1, 3, &payload)));
    let mut got: Vec<u8> = Vec::new();
    while got.len() < payload.len() {
        let frame = within_ten_seconds(tun_c.host_receives()).await;
        assert_eq!(frame[1], 0, "no super-packet");
        assert!(frame.len() <= 10 + 28 + 100, "{}", frame.len());
        got.extend(&frame[38..]);
    }
    assert_eq!(got, payload);
    tun_c.host_sends(framed([0; 5], &udp(3, 1, b"back")));
    let frame = within_ten_seconds(tun_a.host_receives()).await;
    assert_eq!(frame[10..], udp(3, 1, b"back"));
}

#[tokio::test]
async fn datagrams_of_every_length_from_a_stranger_stop_nothing() {
    let net = Net::new();
    let ([_a, b], [tun_a, tun_b]) = pair(&net, MemoryTun::default()).await;
    let stranger = net.net.bind(UnderlayAddr(([203, 0, 113, 9], 5000).into()));
    let before = b.status().await.unwrap().counters;
    let lengths = [
        1, 3, 4, 5, 15, 16, 17, 31, 32, 33, 53, 54, 1500, 9064, 9065, 65_506, 65_507,
    ];
    for kind in 0..=11 {
        for len in lengths {
            let mut bytes = vec![1, kind, 1, 0];
            bytes.resize(len, 0x5a);
            let run = Run {
                to: Net::socket(2),
                bytes: &bytes,
                segment: len,
                whole: false,
            };
            stranger.try_send(run).unwrap();
        }
        tun_a.host_sends(packet(1, 2, &[kind]));
        let got = within_ten_seconds(tun_b.host_receives()).await;
        assert_eq!(got, packet(1, 2, &[kind]));
    }
    let after = b.status().await.unwrap().counters;
    let dropped = [
        after.malformed - before.malformed,
        after.forged - before.forged,
        after.unknown - before.unknown,
        after.relay_refused - before.relay_refused,
    ];
    assert_eq!(
        dropped.iter().sum::<u64>(),
        12 * lengths.len() as u64,
        "{dropped:?}"
    );
}
