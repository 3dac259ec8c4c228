//! Multicast and broadcast inside a group, where its members want them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeSet;

use aerie_lab::Nat;
use aerie_lab::grid::{Grid, Join};
use aerie_lab::wait::wait_until;
use aerie_scenarios::{GROUP, SOON, lab};

#[test]
fn a_packet_to_all_is_answered_by_the_members_of_the_group_that_want_it() {
    let lab = lab("groups").unwrap();
    let grid = Grid::found(&lab, "lab", None, &[GROUP, "others"]).unwrap();
    let member = |name: &str, group: &str, wants: bool| {
        let site = lab.site(name, Nat::PortRestricted).unwrap();
        let join = Join::new(name, &site, group, "client").option("--no-condor");
        let member = grid.prepare(&join).unwrap();
        let run = |argv: &[&str]| member.node.run("root", argv).unwrap();
        if wants {
            run(&[
                "sed",
                "-i",
                r"s/^\[vpn\]$/&\nmulticast = true/",
                "/etc/aerie/blob",
            ]);
        }
        // Every host is in the group of all hosts, and answers if told to.
        run(&["sysctl", "-qw", "net.ipv4.icmp_echo_ignore_broadcasts=0"]);
        member.start().unwrap();
        member
    };
    let members = [
        member("a", GROUP, true),
        member("b", GROUP, true),
        member("c", "others", true),
        member("d", GROUP, false),
    ];
    grid.wait_ready(&members).unwrap();
    let [a, b, c, d] = members.each_ref().map(|member| member.addr().unwrap());
    let addr = members[0]
        .node
        .run("root", &["ip", "-o", "-4", "addr", "show"])
        .unwrap();
    let line = addr
        .lines()
        .find(|line| line.contains(&format!(" {a}/")))
        .unwrap();
    let interface = line.split_whitespace().nth(1).unwrap();
    for to in ["224.0.0.1", "100.127.255.255"] {
        let answered = wait_until(SOON, &format!("an answer of b to {to}"), || {
            let argv = [
                "ping", "-b", "-n", "-c", "2", "-i", "0.3", "-W", "1", "-I", interface, to,
            ];
            let said = members[0].node.exec("root", &argv)?.stdout;
            let from = |line: &str| Some(line.split_once(" bytes from ")?.1.split_once(':')?.0.to_owned());
            let answered: BTreeSet<_> = said.lines().filter_map(from).collect();
            Ok(Some(answered).filter(|answered| answered.contains(&b)))
        })
        .unwrap();
        assert!(!answered.contains(&c) && !answered.contains(&d), "{answered:?}");
    }
}
