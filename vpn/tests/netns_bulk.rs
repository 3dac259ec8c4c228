//! Much data between two hosts: none of it out of order, none of it damaged. Short here; the full length that is
//! promised takes minutes and is asked for with `--release --run-ignored all`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aerie_vpn::Handle;
use common::netns::{Namespace, block_on, transfer};
use common::{Switchboard, addr};

/// Two hosts on a wire that cuts super-packets into datagrams, as every wire but this machine's own does, and loses so
/// many of 1,000.
struct Pair {
    a: Namespace,
    b: Namespace,
    nodes: [Handle; 2],
}

impl Pair {
    fn new(lost: u32) -> Self {
        let (a, b) = (Namespace::new(), Namespace::new());
        a.link("eth0", "10.1.0.1/24", &b, "eth0", "10.1.0.2/24");
        for side in [&a, &b] {
            side.run("ip link set eth0 gso_max_segs 1");
        }
        let board = Switchboard::default();
        let nodes = [a.node(1, &board, None), b.node(2, &board, None)];
        a.ping(2);
        for side in [&a, &b] {
            side.lose(lost);
        }
        Self { a, b, nodes }
    }

    /// Moves so many megabytes each way, one after the other, and compares every byte.
    fn move_megabytes(self, megabytes: usize, lost: u32) {
        let there = transfer(&self.a, &self.b, addr(2).v4().unwrap(), megabytes);
        let back = transfer(&self.b, &self.a, addr(1).v4().unwrap(), megabytes);
        eprintln!("{lost} of 1,000 lost: {there:.0} and {back:.0} MB/s");
        // About 700 datagrams each way a megabyte, if they are cut.
        let expected = megabytes as u64 * 700 * u64::from(lost) / 1000;
        for side in [&self.a, &self.b] {
            let dropped = dropped(side);
            assert!(
                (expected / 2..=expected * 2).contains(&dropped),
                "the wire lost {dropped} datagrams instead of about {expected}"
            );
        }
        self.stop();
    }

    fn stop(self) {
        for node in self.nodes {
            block_on(node.shutdown());
        }
    }
}

/// How many datagrams a side's rules have dropped.
fn dropped(side: &Namespace) -> u64 {
    let rules = side.command("nft list ruleset").output().unwrap();
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    let (_, count) = rules.split_once("counter packets ").unwrap();
    count.split_whitespace().next().unwrap().parse().unwrap()
}

fn order_of(packets: u64) {
    let pair = Pair::new(0);
    let to = addr(2).v4().unwrap();
    let (send, ready) = std::sync::mpsc::channel();
    let enough = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&enough);
    let receiver = pair.b.spawn(move || {
        let socket = UdpSocket::bind((to, 5001)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        send.send(()).unwrap();
        let mut buffer = [0; 128];
        let mut last = None;
        for received in 0..packets {
            let len = socket.recv(&mut buffer).unwrap();
            let number = u64::from_be_bytes(buffer[..8].try_into().unwrap());
            assert_eq!(len, 100);
            assert!(
                last.is_none_or(|last| last < number),
                "after {received}: {number} came behind {last:?}"
            );
            last = Some(number);
        }
        told.store(true, Ordering::Relaxed);
        last.unwrap()
    });
    ready.recv_timeout(Duration::from_secs(5)).unwrap();
    let sender = pair.a.spawn(move || {
        let socket = UdpSocket::bind((addr(1).v4().unwrap(), 0)).unwrap();
        socket.connect((to, 5001)).unwrap();
        let mut packet = [0; 100];
        for number in 0_u64.. {
            packet[..8].copy_from_slice(&number.to_be_bytes());
            // A full queue of the host itself drops, as any link does; the receiver waits for others.
            if socket.send(&packet).is_err() || number % 1024 == 0 && enough.load(Ordering::Relaxed) {
                return;
            }
        }
    });
    let last = receiver.join().unwrap();
    sender.join().unwrap();
    eprintln!("{packets} arrived of {} in order", last + 1);
    pair.stop();
}

#[test]
fn packets_of_one_flow_keep_their_order() {
    order_of(200_000);
}

#[test]
#[ignore = "full length"]
fn ten_million_packets_of_one_flow_keep_their_order() {
    order_of(10_000_000);
}

#[test]
fn a_wire_that_loses_and_cuts_damages_no_byte() {
    Pair::new(50).move_megabytes(10, 50);
}

#[test]
#[ignore = "full length"]
fn three_hundred_megabytes_arrive_whole_on_a_wire_that_loses_nothing() {
    Pair::new(0).move_megabytes(300, 0);
}

#[test]
#[ignore = "full length"]
fn three_hundred_megabytes_arrive_whole_on_a_wire_that_loses_one_percent() {
    Pair::new(10).move_megabytes(300, 10);
}

#[test]
#[ignore = "full length"]
fn three_hundred_megabytes_arrive_whole_on_a_wire_that_loses_five_percent() {
    Pair::new(50).move_megabytes(300, 50);
}
