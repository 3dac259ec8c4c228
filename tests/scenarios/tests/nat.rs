//! Every pair of NATs connects, and directly wherever a hole can be punched in theory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use aerie_lab::grid::{AERIE, Grid, Join, Member};
use aerie_lab::portmap::PortProtocol;
use aerie_lab::wait::wait_until;
use aerie_lab::{Lab, Nat, matrix};
use aerie_scenarios::{GROUP, lab, small_grid};

#[test]
fn every_pair_of_nats_connects_and_goes_direct_where_it_can() {
    let lab = lab("nats").unwrap();
    let grid = small_grid(&lab).unwrap();
    let found = matrix::run(&lab, &grid, GROUP).unwrap();
    let faults = found.faults(3);
    assert!(faults.is_empty(), "{}\n{}", faults.join("\n"), lab.log_tails());
}

fn prepare(lab: &Lab, grid: &Grid<'_>, name: &str, nat: Nat, roles: &str) -> Member {
    let site = lab.site(name, nat).unwrap();
    grid.prepare(&Join::new(name, &site, GROUP, roles).option("--no-condor"))
        .unwrap()
}

fn start(grid: &Grid<'_>, members: &[&Member]) {
    for member in members {
        member.start().unwrap();
    }
    grid.wait_ready(members.iter().copied()).unwrap();
}

/// A firewall that forgets after twenty seconds needs to hear something before.
#[test]
fn a_pause_behind_forgetful_firewalls_costs_no_packet() {
    let lab = lab("forgetful").unwrap();
    let grid = small_grid(&lab).unwrap();
    let [a, b] = ["a", "b"].map(|name| prepare(&lab, &grid, name, Nat::Forgetful, "client"));
    start(&grid, &[&a, &b]);
    let addr = b.addr().unwrap();
    a.ping(&addr).unwrap();
    // What is waited for is that time itself has passed: longer than the firewall's memory.
    thread::sleep(Duration::from_secs(30));
    let said = a
        .node
        .run("alice", &["ping", "-n", "-c", "3", "-i", "0.3", "-W", "1", &addr])
        .unwrap();
    assert!(said.contains(" 0% packet loss"), "{said}");
}

/// Of the pings ten a second during which a relay is killed, those that are missing in a row.
#[test]
fn a_relay_that_is_killed_in_use_is_replaced_within_a_second() {
    let lab = lab("relays").unwrap();
    let grid = small_grid(&lab).unwrap();
    let relays = ["r1", "r2"].map(|name| prepare(&lab, &grid, name, Nat::Open, "relay"));
    let [a, b] = ["a", "b"].map(|name| prepare(&lab, &grid, name, Nat::Symmetric, "client"));
    start(&grid, &[&relays[0], &relays[1], &a, &b]);
    let addr = b.addr().unwrap();
    a.ping(&addr).unwrap();
    let path = || a.said::<serde_json::Value>(&["path", "b"]).unwrap().0;
    // Both relays answer before one is killed.
    wait_until(Duration::from_secs(30), "a second relay", || {
        let said = path();
        let pairs = said["pairs"].as_array().unwrap();
        let alive = pairs
            .iter()
            .filter(|pair| pair["kind"] == "relayed" && pair["state"] == "answers");
        Ok((alive.count() >= 2).then_some(()))
    })
    .unwrap();
    let used = path()["pairs"][0]["via"].as_str().unwrap().to_owned();
    let pings = thread::scope(|scope| {
        let pings = scope.spawn(|| {
            let argv = ["ping", "-n", "-D", "-i", "0.1", "-c", "80", "-W", "1", &addr];
            a.node.exec("root", &argv).unwrap().stdout
        });
        thread::sleep(Duration::from_secs(2));
        let dead = relays
            .iter()
            .chain([&grid.hub])
            .find(|relay| relay.node.name() == used);
        dead.unwrap().node.run("root", &["pkill", "-9", "aerie"]).unwrap();
        pings.join().unwrap()
    });
    let answered: Vec<u32> = pings
        .lines()
        .filter_map(|line| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok())
        .collect();
    let longest = answered.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(answered.last().is_some_and(|last| *last >= 75), "{pings}");
    assert!(
        longest <= 10,
        "{longest} tenths of a second without an answer\n{pings}"
    );
    assert_ne!(path()["pairs"][0]["via"].as_str().unwrap(), used);
}

/// TCP passes all the while, and nothing is restarted.
#[test]
fn a_network_without_udp_is_left_over_tls_and_udp_is_taken_again_when_it_passes() {
    let lab = lab("noudp").unwrap();
    let grid = small_grid(&lab).unwrap();
    let site = lab.site("a", Nat::PortRestricted).unwrap();
    site.block_udp().unwrap();
    let join = Join::new("a", &site, GROUP, "client").option("--no-condor");
    let a = grid.prepare(&join).unwrap();
    let b = prepare(&lab, &grid, "b", Nat::PortRestricted, "client");
    start(&grid, &[&a, &b]);
    let path = |of: &str| a.said::<serde_json::Value>(&["path", of]).unwrap().0;
    a.ping(&b.addr().unwrap()).unwrap();
    let said = path("b");
    let through = said["through"].as_str().unwrap();
    assert!(
        said["path"] == "relayed" && through.ends_with(":443 over TLS"),
        "{said}"
    );
    assert!(
        said["hint"].as_str().unwrap().starts_with("let UDP of port"),
        "{said}"
    );
    // The only relay is also a member.
    a.ping(&grid.hub.addr().unwrap()).unwrap();
    let hub = path(grid.hub.node.name());
    assert_eq!(hub["path"], "tls", "{hub}");
    let (network, _) = a.said::<serde_json::Value>(&["netcheck"]).unwrap();
    assert!(
        network["udp"] == false && network["tls"][0]["node"] == "hub",
        "{network}"
    );

    site.pass_udp().unwrap();
    let began = std::time::Instant::now();
    wait_until(Duration::from_secs(60), "a direct path", || {
        a.ping(&b.addr().unwrap())?;
        Ok((path("b")["path"] == "direct").then_some(()))
    })
    .unwrap();
    println!(
        "{:.1} s from the return of UDP to a direct path",
        began.elapsed().as_secs_f64()
    );
    site.block_udp().unwrap();
    let began = std::time::Instant::now();
    wait_until(Duration::from_secs(15), "an answer over TLS", || {
        let argv = ["ping", "-n", "-c", "1", "-W", "1", &b.addr()?];
        let output = a.node.exec("alice", &argv)?;
        Ok(output.success().then_some(()))
    })
    .unwrap();
    println!(
        "{:.1} s from the end of UDP to the first answer",
        began.elapsed().as_secs_f64()
    );
    assert_eq!(path("b")["path"], "relayed");
}

/// A TCP connection from one node to another, which is asked and answers, ten times a second.
fn conversation(from: &Member, to: &Member) -> std::net::TcpStream {
    let addr: std::net::Ipv4Addr = to.addr().unwrap().parse().unwrap();
    let listener = to
        .node
        .net()
        .unwrap()
        .enter(|| Ok(std::net::TcpListener::bind((addr, 7777))?));
    let listener = listener.unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
    let connect = || Ok(std::net::TcpStream::connect((addr, 7777))?);
    let stream = from.node.net().unwrap().enter(connect).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Of pings ten a second while something happens to the network, the longest time without an answer.
fn outage(from: &Member, addr: &str, happen: impl FnOnce() + Send) -> Duration {
    let pings = thread::scope(|scope| {
        let pings = scope.spawn(|| {
            let argv = ["ping", "-n", "-i", "0.1", "-c", "250", "-W", "1", addr];
            from.node.exec("root", &argv).unwrap().stdout
        });
        // That they have begun is seen by nothing but time.
        thread::sleep(Duration::from_secs(2));
        happen();
        pings.join().unwrap()
    });
    let answered: Vec<u32> = pings
        .lines()
        .filter_map(|line| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok())
        .collect();
    assert!(answered.last().is_some_and(|last| *last >= 240), "{pings}");
    let longest = answered.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    Duration::from_millis(100) * longest
}

#[test]
fn a_node_that_changes_its_network_keeps_its_connections() {
    let lab = lab("roam").unwrap();
    let grid = small_grid(&lab).unwrap();
    let relay = prepare(&lab, &grid, "r1", Nat::Open, "relay");
    let a = prepare(&lab, &grid, "a", Nat::PortRestricted, "client");
    let b = prepare(&lab, &grid, "b", Nat::PortRestricted, "client");
    let other = lab.site("cable", Nat::PortRestricted).unwrap();
    start(&grid, &[&relay, &a, &b]);
    let addr = b.addr().unwrap();
    a.ping(&addr).unwrap();
    let mut stream = conversation(&a, &b);
    let mut echo = || {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    };
    echo();
    // The kernel says so: the cable is taken out here and put in there.
    let noticed = outage(&a, &addr, || a.node.roam(&other).unwrap());
    echo();
    // Promised are two seconds on a machine of its own; this one runs all members and a compiler beside.
    assert!(noticed < Duration::from_secs(5), "{noticed:?}");
    // Nobody says so: the router forgets everything, as one that was restarted.
    let silent = outage(&a, &addr, || other.forget().unwrap());
    echo();
    assert!(silent < Duration::from_secs(15), "{silent:?}");
    println!("without an answer: {noticed:?} when the kernel says so, {silent:?} when nobody does");
}

/// Between two symmetric NATs there is no direct way, unless a router leads a port to one of them.
#[test]
fn a_port_that_a_router_gives_is_reached_from_behind_a_symmetric_nat() {
    let lab = lab("ports").unwrap();
    let grid = small_grid(&lab).unwrap();
    let behind = |name: &str, by| {
        let site = lab.site(name, Nat::Symmetric).unwrap();
        let join = Join::new(name, &site, GROUP, "client").option("--no-condor");
        let router = lab.port_mapper(&site, by).unwrap();
        (grid.prepare(&join).unwrap(), router)
    };
    let mapped = [
        (behind("a", PortProtocol::Pcp), "PCP"),
        (behind("c", PortProtocol::Upnp), "UPnP"),
    ];
    let b = prepare(&lab, &grid, "b", Nat::Symmetric, "client");
    start(&grid, &[&mapped[0].0.0, &mapped[1].0.0, &b]);
    for ((member, router), by) in &mapped {
        let name = member.node.name();
        let held = || {
            let held = lab.wait_until(Duration::from_secs(20), "a port of the router", || {
                let (said, _) = member.said::<serde_json::Value>(&["netcheck"])?;
                Ok(Some(said["port_mapping"].clone()).filter(|mapping| mapping["state"] == "held"))
            });
            // The tunnel's, and the overlay's two.
            let all = || Ok((router.given()?.len() == 3).then_some(()));
            lab.wait_until(Duration::from_secs(10), "the overlay's ports", all)
                .unwrap();
            held.unwrap()
        };
        let before = held();
        assert_eq!(before["by"], *by);
        member.daemon().unwrap().kill9().unwrap();
        member.start().unwrap();
        grid.wait_ready([member]).unwrap();
        let held = held();
        assert_eq!(held["addr"], before["addr"], "the router knows its node again");
        b.ping(&member.addr().unwrap()).unwrap();
        lab.wait_until(Duration::from_secs(10), "a direct path", || {
            let (said, _) = b.said::<serde_json::Value>(&["path", name])?;
            let used = &said["pairs"][0];
            Ok((used["kind"] == "port-mapped" && used["addr"] == held["addr"]).then_some(()))
        })
        .unwrap();
        member.node.run("root", &[AERIE, "leave", "--yes"]).unwrap();
        let back = || Ok(router.given()?.is_empty().then_some(()));
        lab.wait_until(Duration::from_secs(10), "the port to be given back", back)
            .unwrap();
    }
}
