//! Every node has an IPv6 address beside its IPv4 one, and a machine without IPv6 is a member all the same.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use aerie_lab::Nat;
use aerie_lab::grid::{AERIE, Join, Member};
use aerie_lab::wait::wait_until;
use aerie_scenarios::{GROUP, SOON, lab, small_grid, wait_for_name};

fn run(on: &Member, argv: &[&str]) -> String {
    on.node.run("root", argv).unwrap()
}

#[test]
fn nodes_behind_nats_reach_each_other_over_ipv6_by_name_and_one_without_it_has_ipv4_alone() {
    let lab = lab("ipv6").unwrap();
    let grid = small_grid(&lab).unwrap();
    let site = |name: &str| lab.site(name, Nat::PortRestricted).unwrap();
    let join = |name: &str| Join::new(name, &site(name), GROUP, "client").option("--no-condor");
    let [a, b] = ["a", "b"].map(|name| grid.join(&join(name)).unwrap());
    let without = lab.node("c", &site("c")).unwrap();
    without
        .run("root", &["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"])
        .unwrap();
    let c = grid.join_node(without, &join("c")).unwrap();
    grid.wait_ready([&a, &b, &c]).unwrap();

    let [a6, b6] = [&a, &b].map(|member| member.status().unwrap().addr6.unwrap());
    assert_ne!(a6, b6);
    assert!(a6.starts_with("fd"), "{a6}");
    wait_for_name(&a, "b.lab.grid").unwrap();
    wait_for_name(&b, "a.lab.grid").unwrap();
    let known = a
        .peers()
        .unwrap()
        .into_iter()
        .find(|peer| peer.node == "b")
        .unwrap();
    assert_eq!(known.addr6.as_ref(), Some(&b6));
    for (from, to, addr6) in [(&a, "b", &b6), (&b, "a", &a6)] {
        let name = grid.fqdn(to);
        let said = run(from, &["ping", "-6", "-n", "-c", "3", "-W", "5", &name]);
        assert!(said.contains(addr6) && said.contains(" 0% packet loss"), "{said}");
        assert!(run(from, &["getent", "ahostsv6", &name]).starts_with(addr6));
        assert!(run(from, &["getent", "hosts", addr6]).contains(&name));
        let said = run(from, &[AERIE, "ping", addr6]);
        assert!(said.contains(to), "{said}");
    }

    // The one without says so, has no names that lead nowhere, and refuses at once what others send it.
    let status = c.status().unwrap();
    assert_eq!(status.addr6, None);
    let tunnel = status.stage("tunnel").unwrap();
    assert!(tunnel.reason.contains("IPv4 alone"), "{tunnel:?}");
    assert!(tunnel.hint.contains("disable_ipv6=0"), "{tunnel:?}");
    wait_for_name(&c, "a.lab.grid").unwrap();
    let hosts = run(&c, &["cat", "/etc/hosts"]);
    assert!(
        hosts.contains(&a.addr().unwrap()) && !hosts.contains(&a6),
        "{hosts}"
    );
    c.ping("a.lab.grid").unwrap();
    wait_for_name(&a, "c.lab.grid").unwrap();
    let c6 = a
        .peers()
        .unwrap()
        .into_iter()
        .find(|peer| peer.node == "c")
        .unwrap()
        .addr6
        .unwrap();
    wait_until(SOON, "the node without IPv6 to say so", || {
        let said = a
            .node
            .exec("root", &["ping", "-6", "-n", "-c", "1", "-W", "2", &c6])?;
        Ok(said.both().contains("Address unreachable").then_some(()))
    })
    .unwrap();

    // The address that is given back takes its IPv6 address with it.
    run(&b, &[AERIE, "leave", "--yes"]);
    wait_until(SOON, "the interface to go", || {
        let addrs = b.node.run("root", &["ip", "-6", "-brief", "addr"])?;
        Ok((!addrs.contains(&b6)).then_some(()))
    })
    .unwrap();
    let hosts = run(&b, &["cat", "/etc/hosts"]);
    assert!(!hosts.contains(&b6) && !hosts.contains("lab.grid"), "{hosts}");
}
