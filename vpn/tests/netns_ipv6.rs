//! IPv6 inside the tunnel, between real drivers with real TUN devices, in network namespaces that end with the test.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use aerie_vpn::NoIpv6;
use common::netns::{Namespace, block_on, transfer};
use common::{Switchboard, addr, addr6, config};

fn linked() -> (Namespace, Namespace) {
    let (a, b) = (Namespace::new(), Namespace::new());
    a.link("eth0", "10.1.0.1/24", &b, "eth0", "10.1.0.2/24");
    (a, b)
}

fn said(namespace: &Namespace, words: &str) -> String {
    let output = namespace.command(words).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn two_hosts_ping_and_move_data_intact_over_ipv6() {
    let (a, b) = linked();
    let board = Switchboard::default();
    let (node_a, node_b) = (a.node(1, &board, None), b.node(2, &board, None));
    a.ping_addr(addr6(2).into());
    b.ping_addr(addr6(1).into());
    let rate = transfer(&a, &b, addr6(2), 100);
    eprintln!("{rate:.0} MB/s");
    assert_eq!(block_on(node_a.peers()).len(), 1, "one tunnel for both families");
    block_on(node_a.shutdown());
    block_on(node_b.shutdown());
}

/// Sets an option of a socket that the standard library has no name for.
fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: &[u8]) {
    let len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes from the slice, which outlives the call.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// The kernel hands a run of datagrams over in one frame, and a stream with options of IPv6 before its transport.
#[test]
fn runs_of_datagrams_and_streams_with_options_arrive_intact() {
    let (a, b) = linked();
    let board = Switchboard::default();
    let nodes = [a.node(1, &board, None), b.node(2, &board, None)];
    a.ping_addr(addr6(2).into());
    let (send, ready) = std::sync::mpsc::channel();
    let receiver = b.spawn(move || {
        let datagrams = UdpSocket::bind((addr6(2), 5002)).unwrap();
        datagrams.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let listener = TcpListener::bind((addr6(2), 5001)).unwrap();
        send.send(()).unwrap();
        let mut buffer = [0; 2000];
        for n in 0..20u8 {
            let len = datagrams.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..len], vec![n; if n == 19 { 123 } else { 500 }]);
        }
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let began = Instant::now();
        let mut bytes = Vec::new();
        while Read::by_ref(&mut stream)
            .take(1 << 20)
            .read_to_end(&mut bytes)
            .unwrap()
            > 0
        {
            // Dropped super-packets come again one segment at a time.
            let took = began.elapsed();
            assert!(
                took < Duration::from_secs(30),
                "{} bytes took {took:?}",
                bytes.len()
            );
        }
        bytes
    });
    ready.recv_timeout(Duration::from_secs(5)).unwrap();
    let pattern: Vec<u8> = (0..20_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let sent = pattern.clone();
    let sender = a.spawn(move || {
        let datagrams = UdpSocket::bind((addr6(1), 0)).unwrap();
        set_option(
            &datagrams,
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            &500i32.to_ne_bytes(),
        );
        let run: Vec<u8> = (0..20u8)
            .flat_map(|n| vec![n; if n == 19 { 123 } else { 500 }])
            .collect();
        datagrams.send_to(&run, (addr6(2), 5002)).unwrap();
        let mut stream = TcpStream::connect((addr6(2), 5001)).unwrap();
        // Eight bytes: the kernel fills in the next header, none more, and an option that pads.
        set_option(
            &stream,
            libc::IPPROTO_IPV6,
            libc::IPV6_DSTOPTS,
            &[0, 0, 1, 4, 0, 0, 0, 0],
        );
        // A receiver that gives up says why.
        let _ = stream.write_all(&sent);
    });
    let received = receiver.join().unwrap();
    sender.join().unwrap();
    assert!(
        received == pattern,
        "{} bytes of {}",
        received.len(),
        pattern.len()
    );
    for node in nodes {
        block_on(node.shutdown());
    }
}

#[test]
fn the_interface_has_the_nodes_address_and_the_route_to_the_others_and_nothing_more() {
    let a = Namespace::new();
    let node = a.node(1, &Switchboard::default(), None);
    let addrs = said(&a, "ip -6 -brief addr show dev aerie-t1");
    assert_eq!(
        addrs.split_whitespace().skip(2).collect::<Vec<_>>(),
        [format!("{}/64", addr6(1))]
    );
    let routes = said(&a, "ip -6 route show dev aerie-t1");
    assert!(
        routes.lines().count() == 1 && routes.contains("::/64 proto kernel"),
        "{routes}"
    );
    assert_eq!(said(&a, "sysctl -n net.ipv6.conf.aerie-t1.accept_ra").trim(), "0");
    block_on(node.readdress(addr(7))).unwrap();
    let addrs = said(&a, "ip -brief addr show dev aerie-t1");
    let both = [format!("{}/11", addr(7)), format!("{}/64", addr6(7))];
    assert_eq!(addrs.split_whitespace().skip(2).collect::<Vec<_>>(), both);
    let routes = said(&a, "ip -6 route show dev aerie-t1");
    assert!(routes.contains("::/64 proto kernel"), "{routes}");
    block_on(node.shutdown());
    assert_eq!(said(&a, "ip -6 route show"), "", "nothing is left");
}

#[test]
fn a_host_with_ipv6_switched_off_comes_up_with_ipv4_and_refuses_ipv6_at_once() {
    let (a, b) = linked();
    b.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let board = Switchboard::default();
    let (node_a, node_b) = (a.node(1, &board, None), b.node(2, &board, None));
    let why = block_on(node_b.status()).unwrap().addr6.unwrap_err();
    assert_eq!(why, NoIpv6::SwitchedOff);
    assert!(why.to_string().contains("disable_ipv6=0"), "{why}");
    a.ping(2);
    b.ping(1);
    transfer(&a, &b, addr(2).v4().unwrap(), 5);
    let began = Instant::now();
    let refused = a
        .spawn(|| TcpStream::connect_timeout(&SocketAddr::from((addr6(2), 5001)), Duration::from_secs(60)))
        .join()
        .unwrap()
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::HostUnreachable, "{refused}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    block_on(node_a.shutdown());
    block_on(node_b.shutdown());
}

#[test]
fn an_interface_whose_mtu_is_too_small_for_ipv6_has_ipv4_alone() {
    let a = Namespace::new();
    let mut config = config(1);
    config.mtu = 1200;
    let node = a.start(1, &Switchboard::default(), config);
    assert_eq!(
        block_on(node.status()).unwrap().addr6,
        Err(NoIpv6::SmallMtu { mtu: 1200 })
    );
    assert_eq!(said(&a, "ip -6 -brief addr show dev aerie-t1"), "");
    block_on(node.shutdown());
}
