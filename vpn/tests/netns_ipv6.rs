//! IPv6 inside the tunnel, between real drivers with real TUN devices, in network namespaces that end with the test.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
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
