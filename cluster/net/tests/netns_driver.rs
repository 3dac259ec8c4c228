//! The driver over its life: killed at any time, found again, changed, and gone without a trace.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aerie_cluster_net::{Error, HostNetworks, METADATA, Plan};
use aerie_cluster_node::Link;
use common::frames::*;
use common::guest::{Guest, LIMIT, passes};
use common::namespace::Namespace;
use common::{bridge, drive, instance, mac, net, plan, port, port_id, tap};

const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const B: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);

/// A host with something of its own on it.
fn host() -> Namespace {
    let host = Namespace::new();
    host.run("ip link add out0 type bridge");
    host.run("ip tuntap add dev own0 mode tap");
    host.run("ip link set own0 master out0");
    host.run("nft add table inet own");
    host
}

fn marker() -> Vec<u8> {
    ethernet(EVERYBODY, mac(1), ARP, &arp(1, (mac(1), A), (NOBODY, METADATA)))
}

fn forged() -> Vec<u8> {
    ethernet(mac(2), mac(1), IP, &ip(B, A, UDP, &udp(1, 2, b"forged")))
}

/// Guest 1 is heard by guest 2, and not with what it has no right to.
fn filtered(one: &Guest, two: &Guest) {
    // What was heard before does not count.
    one.send(&marker());
    two.until(&marker());
    one.send(&forged());
    one.send(&marker());
    let seen = two.until(&marker());
    assert!(!seen.contains(&forged()), "{seen:02x?}");
}

#[test]
fn nothing_is_left_when_the_last_guest_goes() {
    let host = host();
    let before = (
        host.links(),
        host.run("nft --stateless list ruleset"),
        host.run("ip route show table all"),
    );
    drive(&host, plan(), async |networks| {
        assert!(host.links().contains(&bridge("one")) && host.links().contains(&tap(3)));
        networks.detach(&port_id(3)).await.unwrap();
        assert!(!host.links().contains(&bridge("two")), "its last guest has gone");
        networks.detach(&port_id(1)).await.unwrap();
        assert!(host.links().contains(&bridge("one")));
        networks.detach(&port_id(2)).await.unwrap();
        let after = (
            host.links(),
            host.run("nft --stateless list ruleset"),
            host.run("ip route show table all"),
        );
        assert_eq!(before, after);
        let error = networks.detach(&port_id(2)).await.unwrap_err();
        assert!(matches!(error, Error::UnknownPort(_)), "{error}");
        networks.remove_network(&net("one")).unwrap();
    });
}

#[test]
fn a_nic_is_attached_once_however_often_it_is_asked_for() {
    let host = host();
    drive(&host, Plan::default(), async |networks| {
        let plan = plan();
        for (id, network) in plan.networks {
            networks.add_network(id, network).unwrap();
        }
        assert!(!host.links().contains(&bridge("one")), "nobody is on it");
        for (id, port) in &plan.ports {
            for _ in 0..2 {
                let nic = networks.attach(*id, port.clone()).await.unwrap();
                assert_eq!(nic.mac, id.mac());
                assert_eq!(nic.link, Link::Tap(id.tap(&instance()).to_string()));
            }
        }
        // Whether anybody is on the other side shows after a while; which interface it is does not change.
        let seen = || {
            let links = host.run("ip -o link show");
            let links = links.lines().map(|line| {
                let master = line
                    .split("master ")
                    .nth(1)
                    .and_then(|rest| rest.split(' ').next());
                (
                    line.split('<').next().unwrap().to_owned(),
                    master.map(str::to_owned),
                )
            });
            (
                links.collect::<Vec<_>>(),
                host.run("nft --stateless list ruleset"),
            )
        };
        let before = seen();
        networks.reconcile().await.unwrap();
        assert_eq!(before, seen());
        let text = host.run(&format!("ip -d link show {}", tap(1)));
        assert!(
            text.contains("persist on") && text.contains("vnet_hdr on"),
            "{text}"
        );
        assert!(text.contains(&format!("master {}", bridge("one"))), "{text}");
        // An address that moves to another guest is the other's at once.
        let (one, two) = (Guest::plug(&host, &tap(1)), Guest::plug(&host, &tap(2)));
        filtered(&one, &two);
        networks.detach(&port_id(2)).await.unwrap();
        networks.attach(port_id(4), port("one", B)).await.unwrap();
        let four = Guest::plug(&host, &tap(4));
        filtered(&one, &four);
        four.send(&ethernet(
            EVERYBODY,
            mac(4),
            ARP,
            &arp(1, (mac(4), B), (NOBODY, A)),
        ));
        one.until(&ethernet(
            EVERYBODY,
            mac(4),
            ARP,
            &arp(1, (mac(4), B), (NOBODY, A)),
        ));
    });
}

/// What is killed: a driver in a process of its own.
#[test]
#[ignore = "run by another test"]
fn driver_process() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let _networks = HostNetworks::open(instance(), plan()).await.unwrap();
        println!("\nready");
        std::future::pending::<()>().await;
    });
}

#[test]
fn a_killed_driver_leaves_its_filters_and_the_next_one_goes_on() {
    let host = host();
    let program = std::env::current_exe().unwrap();
    let mut driver = host
        .command(&format!(
            "{} --exact driver_process --ignored --nocapture",
            program.display()
        ))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "ready"));
    let guests = [1, 2, 3].map(|n| Guest::plug(&host, &tap(n)));
    filtered(&guests[0], &guests[1]);
    // nsenter has become the driver.
    driver.kill().unwrap();
    driver.wait().unwrap();
    filtered(&guests[0], &guests[1]);

    // What was half made when it was killed, and what somebody broke since.
    let half = format!("{}22222222", instance().tap_prefix());
    host.run(&format!("ip tuntap add dev {half} mode tap"));
    host.run(&format!("ip link set {half} master {} up", bridge("one")));
    let cut_off = Guest::plug(&host, &half);
    let unknown = ethernet(EVERYBODY, mac(9), ARP, &arp(1, (mac(9), B), (NOBODY, B)));
    cut_off.send(&unknown);
    guests[0].send(&marker());
    let seen = guests[1].until(&marker());
    assert!(
        !seen.contains(&unknown),
        "a port without rules is cut off: {seen:02x?}"
    );
    host.run(&format!(
        "ip link add {}33333333 type bridge",
        instance().bridge_prefix()
    ));
    host.run(&format!("ip addr del {METADATA}/32 dev {}", bridge("two")));
    host.run(&format!("ip link set {} down", tap(1)));
    host.run("nft delete table bridge aerie_net_lab");

    let mut changed = plan();
    changed.ports.remove(&port_id(3));
    changed.networks.remove(&net("two"));
    changed
        .ports
        .insert(port_id(4), port("one", Ipv4Addr::new(10, 1, 0, 4)));
    drive(&host, changed, async |networks| {
        let mut links = host.links();
        links.sort();
        let mut expected = vec![
            "lo".to_owned(),
            "out0".to_owned(),
            "own0".to_owned(),
            bridge("one"),
            tap(1),
            tap(2),
            tap(4),
        ];
        expected.sort();
        assert_eq!(links, expected);
        // The guests were not unplugged.
        for n in [1, 2] {
            passes(&host, &tap(n));
        }
        filtered(&guests[0], &guests[1]);
        networks.clear().await.unwrap();
    });
    assert_eq!(host.links(), ["lo", "out0", "own0"]);
    assert_eq!(host.run("nft list tables"), "table inet own\n");
}

#[test]
fn filters_hold_while_they_are_replaced() {
    let host = host();
    drive(&host, plan(), async |networks| {
        let (one, two) = (Guest::plug(&host, &tap(1)), Guest::plug(&host, &tap(2)));
        filtered(&one, &two);
        let ended = Arc::new(AtomicBool::new(false));
        let flood = std::thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                let mut count = 0;
                while !ended.load(Ordering::SeqCst) {
                    one.send(&forged());
                    count += 1;
                }
                (one, count)
            }
        });
        for _ in 0..10 {
            let four = port("one", Ipv4Addr::new(10, 1, 0, 4));
            networks.attach(port_id(4), four).await.unwrap();
            networks.detach(&port_id(4)).await.unwrap();
        }
        ended.store(true, Ordering::SeqCst);
        let (one, count) = flood.join().unwrap();
        one.send(&marker());
        let seen = two.until(&marker());
        assert!(!seen.contains(&forged()), "of {count} some passed");
        assert!(count > 1000, "{count} frames in 20 changes");
    });
}

#[test]
fn a_network_takes_another_subnet_after_a_restart() {
    let host = host();
    drive(&host, plan(), async |_| ());
    let mut moved = plan();
    moved.networks.get_mut(&net("one")).unwrap().subnet = "10.5.0.0/24".parse().unwrap();
    let two = moved.networks.get_mut(&net("two")).unwrap();
    two.subnet = "10.1.0.0/24".parse().unwrap();
    two.host = Some(Ipv4Addr::new(10, 1, 0, 1));
    for (n, address) in [(1, [10, 5, 0, 2]), (2, [10, 5, 0, 3]), (3, [10, 1, 0, 2])] {
        moved.ports.get_mut(&port_id(n)).unwrap().address = address.into();
    }
    drive(&host, moved, async |networks| {
        let routes = host.run("ip -o route show");
        let lines: Vec<_> = routes
            .lines()
            .map(|line| line.split(" proto").next().unwrap())
            .collect();
        let expected = [
            format!("10.1.0.0/24 dev {}", bridge("two")),
            format!("10.5.0.0/24 dev {}", bridge("one")),
        ];
        assert_eq!(lines, expected);
        networks.clear().await.unwrap();
    });
}

#[test]
fn without_filters_guests_are_cut_off() {
    let host = host();
    drive(&host, plan(), async |networks| {
        let up = |n| host.run(&format!("ip -o link show {}", tap(n))).contains(",UP");
        assert!(up(1) && up(3));
        // A table of the same name that belongs to a running program cannot be replaced.
        host.run("nft flush ruleset");
        let mut owner = host
            .command("nft -i")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let line = b"add table inet aerie_net_lab { flags owner; }\n";
        owner.stdin.as_mut().unwrap().write_all(line).unwrap();
        networks.disturbed().await.unwrap();
        let taken = || host.run("nft list tables").contains("aerie_net_lab");
        assert!((0..500).any(|_| taken()), "the other program took no table");
        let error = networks.reconcile().await.unwrap_err();
        assert!(matches!(error, Error::Rules { .. }), "{error}");
        assert!(!up(1) && !up(2) && !up(3), "no network without filters");
        drop(owner.stdin.take());
        owner.wait().unwrap();
        networks.reconcile().await.unwrap();
        assert!(up(1) && up(2) && up(3));
    });
}

#[test]
fn whoever_flushes_the_packet_filter_is_noticed_and_made_good() {
    let host = host();
    drive(&host, plan(), async |networks| {
        let (one, two) = (Guest::plug(&host, &tap(1)), Guest::plug(&host, &tap(2)));
        filtered(&one, &two);
        // Its own changes, and those of others to their own tables, are none of it.
        host.run("nft add chain inet own x");
        let waited = tokio::time::timeout(Duration::from_millis(300), networks.disturbed()).await;
        assert!(waited.is_err(), "nothing was removed");
        host.run("nft flush ruleset");
        tokio::time::timeout(LIMIT, networks.disturbed())
            .await
            .unwrap()
            .unwrap();
        networks.reconcile().await.unwrap();
        filtered(&one, &two);
    });
}

#[test]
fn nobody_elses_interface_is_touched() {
    let host = host();
    host.run(&format!("ip link add {} type bridge", tap(1)));
    let stranger = format!("{}44444444", instance().bridge_prefix());
    host.run(&format!("ip link add {stranger} type bridge"));
    host.run(&format!("ip link set {stranger} alias aerie:other:net:x"));
    drive(&host, Plan::default(), async |networks| {
        networks
            .add_network(net("one"), plan().networks[&net("one")].clone())
            .unwrap();
        let error = networks.attach(port_id(1), port("one", A)).await.unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        assert!(error.to_string().contains("rename or remove it"), "{error}");
        networks.clear().await.unwrap();
    });
    assert!(host.links().contains(&tap(1)) && host.links().contains(&stranger));
}

#[test]
fn a_subnet_of_the_hosts_own_is_refused_and_nothing_is_left() {
    let host = host();
    host.run("ip addr add 10.1.0.7/25 dev own0");
    host.run("ip link set own0 up");
    let before = host.links();
    drive(&host, Plan::default(), async |networks| {
        networks
            .add_network(net("one"), plan().networks[&net("one")].clone())
            .unwrap();
        let error = networks.attach(port_id(1), port("one", A)).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("10.1.0.0/25") && text.contains("own0"), "{text}");
        assert!(networks.plan().ports.is_empty());
    });
    assert_eq!(host.links(), before);
}

#[test]
fn a_port_that_cannot_be_served_is_not_attached() {
    let host = host();
    let listener = host.enter(|| std::net::TcpListener::bind("0.0.0.0:80").unwrap());
    let before = host.links();
    drive(&host, Plan::default(), async |networks| {
        networks
            .add_network(net("one"), plan().networks[&net("one")].clone())
            .unwrap();
        let error = networks.attach(port_id(1), port("one", A)).await.unwrap_err();
        assert!(error.to_string().contains("another program listens"), "{error}");
        assert_eq!(host.links(), before);
        drop(listener);
        networks.attach(port_id(1), port("one", A)).await.unwrap();
    });
}
