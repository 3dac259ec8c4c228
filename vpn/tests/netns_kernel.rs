//! Real devices and sockets of kernels that refuse something, and interfaces that somebody else takes down.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use aerie_vpn::io::Offloads;
use common::netns::{Namespace, block_on, transfer};
use common::{Switchboard, addr, addr6, config};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

/// What a kernel does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lacks {
    /// Super-packets of UDP on the device: Linux before 6.2.
    Uso,
    /// Any offload of the device.
    Tso,
    /// Runs of datagrams by one call: Linux before 4.18, and some sandboxes.
    Gso,
    /// Runs received by one call: Linux before 5.0.
    Gro,
}

/// Of linux/if_tun.h.
const TUNSETOFFLOAD: u64 = 0x4004_54d0;

impl Lacks {
    /// Makes the kernel refuse it to this thread and to those that it starts, with the error of a kernel that is too
    /// old for it.
    fn enforce(self) {
        let is = |index: u8, value: i32| {
            SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value as u64).unwrap()
        };
        let offload =
            SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, TUNSETOFFLOAD).unwrap();
        let with_any = |bits: [u32; 2]| {
            bits.map(|bit| {
                let set = SeccompCmpOp::MaskedEq(bit.into());
                let set = SeccompCondition::new(2, SeccompCmpArgLen::Dword, set, bit.into()).unwrap();
                SeccompRule::new(vec![offload.clone(), set]).unwrap()
            })
        };
        let option = |name: i32| vec![SeccompRule::new(vec![is(1, libc::SOL_UDP), is(2, name)]).unwrap()];
        let (call, rules, errno) = match self {
            Self::Uso => (
                libc::SYS_ioctl,
                with_any([libc::TUN_F_USO4, libc::TUN_F_USO6]).to_vec(),
                libc::EINVAL,
            ),
            Self::Tso => (
                libc::SYS_ioctl,
                with_any([libc::TUN_F_TSO4, libc::TUN_F_TSO6]).to_vec(),
                libc::EINVAL,
            ),
            Self::Gso => (libc::SYS_setsockopt, option(libc::UDP_SEGMENT), libc::ENOPROTOOPT),
            Self::Gro => (libc::SYS_setsockopt, option(libc::UDP_GRO), libc::ENOPROTOOPT),
        };
        let filter = SeccompFilter::new(
            [(call, rules)].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(errno as u32),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        apply_filter(&program).unwrap();
    }

    fn expected(self) -> Offloads {
        let mut offloads = Offloads::default();
        (offloads.tun.framed, offloads.tun.tcp) = (self != Self::Tso, self != Self::Tso);
        offloads.tun.udp = !matches!(self, Self::Tso | Self::Uso);
        offloads.udp.send = self != Self::Gso;
        offloads.udp.receive = self != Self::Gro;
        offloads
    }
}

fn linked() -> [Namespace; 2] {
    let (a, b) = (Namespace::new(), Namespace::new());
    a.link("eth0", "10.1.0.1/24", &b, "eth0", "10.1.0.2/24");
    [a, b]
}

#[test]
fn a_kernel_that_lacks_an_offload_carries_every_byte_and_the_status_says_so() {
    for lacks in [Lacks::Uso, Lacks::Tso, Lacks::Gso, Lacks::Gro] {
        let [a, b] = linked();
        let board = Switchboard::default();
        let node_a = a.start_on(1, &board, config(1), move || lacks.enforce());
        let node_b = b.node(2, &board, None);
        let offloads = block_on(node_a.status()).unwrap().offloads;
        assert_eq!(offloads, lacks.expected(), "{lacks:?}: {offloads}");
        a.ping(2);
        transfer(&a, &b, addr(2).v4().unwrap(), 20);
        transfer(&b, &a, addr(1).v4().unwrap(), 20);
        transfer(&b, &a, addr6(1), 10);
        for node in [node_a, node_b] {
            block_on(node.shutdown());
        }
    }
}

#[test]
fn a_kernel_without_gro_runs_a_node_whose_offloads_are_switched_off() {
    let [a, b] = linked();
    let board = Switchboard::default();
    let mut config = config(1);
    config.offload = false;
    let node_a = a.start_on(1, &board, config, || Lacks::Gro.enforce());
    let node_b = b.node(2, &board, None);
    a.ping(2);
    for node in [node_a, node_b] {
        block_on(node.shutdown());
    }
}

/// Waits until a single ping is answered.
fn answers_within(limit: Duration, from: &Namespace, to: IpAddr) {
    let began = Instant::now();
    let ping = format!("ping -c 1 -W 1 {to}");
    while !from.command(&ping).output().unwrap().status.success() {
        assert!(began.elapsed() < limit, "{to} does not answer");
    }
}

#[test]
fn an_interface_that_was_down_and_is_up_again_has_its_addresses_and_its_traffic() {
    let [a, b] = linked();
    let board = Switchboard::default();
    let nodes = [a.node(1, &board, None), b.node(2, &board, None)];
    a.ping(2);
    a.ping_addr(addr6(2).into());
    let show = |what: &str| {
        let output = a.command(what).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines: Vec<_> = text.lines().map(|line| line.trim().to_owned()).collect();
        lines.sort();
        lines
    };
    let state = || {
        [
            show("ip -brief addr show dev aerie-t1"),
            show("ip route show dev aerie-t1"),
            show("ip -6 route show dev aerie-t1"),
        ]
    };
    let before = state();
    assert!(before[0][0].contains(&addr6(1).to_string()), "{before:?}");
    a.run("ip link set aerie-t1 down");
    // Packets of the other side meet an interface that is down.
    let lost = b.command(&format!("ping -c 2 -i 0.2 -W 1 {}", addr(1)));
    assert!(!{ lost }.output().unwrap().status.success());
    block_on(nodes[0].status()).unwrap();
    a.run("ip link set aerie-t1 up");
    for (from, to) in [
        (&a, addr(2).0),
        (&b, addr(1).0),
        (&a, addr6(2).into()),
        (&b, addr6(1).into()),
    ] {
        answers_within(Duration::from_secs(10), from, to);
    }
    assert_eq!(state(), before);
    transfer(&a, &b, addr(2).v4().unwrap(), 10);
    transfer(&b, &a, addr6(1), 10);
    for node in nodes {
        block_on(node.shutdown());
    }
}
