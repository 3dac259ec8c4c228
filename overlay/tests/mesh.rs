//! Members find each other, keep each other, and carry what they are given.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aerie_identity::NodeKeys;
use aerie_overlay::{Config, Multiaddr, Protocol, RequestError, Stats, Topic};
use aerie_types::{Key, PeerId, Role};
use common::{Enrolled, Grid, Node, QUIC, Seen, TCP, eventually, now, proxy};

/// A relay and this many workers that know only the relay, started all at once.
async fn mesh(grid: &Grid, workers: usize) -> Vec<Node> {
    let relay = grid.relay("relay").await;
    let bootstrap = relay.full_addrs();
    let names: Vec<_> = (0..workers).map(|n| format!("w{n}")).collect();
    let starts = names
        .iter()
        .map(|name| grid.worker(name, &[TCP, QUIC], &bootstrap));
    let mut nodes = futures::future::join_all(starts).await;
    nodes.push(relay);
    nodes
}

async fn all_connected(nodes: &[Node]) {
    for node in nodes {
        eventually("everybody is connected to everybody", || async {
            (node.member_ids().await.len() == nodes.len() - 1).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twelve_members_mesh_from_one_bootstrap_address() {
    let grid = Grid::new("chem");
    let begun = Instant::now();
    let mut nodes = mesh(&grid, 11).await;
    all_connected(&nodes).await;
    println!("12 members meshed in {} ms", begun.elapsed().as_millis());

    // Everybody agrees with the exclusive-or distance about who is closest, and never names itself.
    let all: BTreeSet<PeerId> = nodes.iter().map(Node::peer).collect();
    for n in 0..20_u8 {
        let key = Key::of("test", &[&[n]]);
        let mut order: Vec<_> = all.iter().copied().collect();
        order.sort_by_key(|peer| key.position().distance(&peer.position()));
        for node in &nodes {
            let expected: Vec<_> = order
                .iter()
                .copied()
                .filter(|peer| *peer != node.peer())
                .collect();
            assert_eq!(node.handle.closest(key).await.unwrap(), expected);
        }
    }

    // A message reaches all the others, signed by its author.
    let author = nodes[0].peer();
    nodes[0].handle.publish(Topic::Sets, b"hello".to_vec()).unwrap();
    for node in &mut nodes[1..] {
        node.sees("gossip", |seen| *seen == Seen::Gossip(author, b"hello".to_vec()))
            .await;
    }

    // One leaves; all notice at once, and nobody names it any more.
    let gone = nodes.remove(3);
    let begun = Instant::now();
    gone.handle.shutdown().await;
    for node in &mut nodes {
        node.sees_down(gone.peer()).await;
        let closest = node.handle.closest(Key::of("test", &[b"x"])).await.unwrap();
        assert!(!closest.contains(&gone.peer()) && closest.len() == 10);
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_asks_the_network_where_members_keep_few_connections() {
    let grid = Grid::new("chem");
    let relay = grid.relay("relay").await;
    let mut nodes = Vec::new();
    for n in 0..13 {
        let enrolled = grid.enrol(&format!("w{n}"), Role::Worker);
        let mut config = grid.config(&enrolled, &[TCP]);
        config.bootstrap = relay.full_addrs();
        config.max_members = 4;
        nodes.push(grid.start(config, &enrolled).await);
    }
    nodes.push(relay);
    let all: Vec<_> = nodes.iter().map(Node::peer).collect();
    for n in 0..3_u8 {
        let key = Key::of("test", &[&[n]]);
        for node in &nodes {
            let mut expected: Vec<_> = all.iter().copied().filter(|peer| *peer != node.peer()).collect();
            expected.sort_by_key(|peer| key.position().distance(&peer.position()));
            eventually("the nine closest", || async {
                let closest = node.handle.closest(key).await.unwrap();
                (closest.len() >= 9 && closest[..9] == expected[..9]).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_of_a_member_that_has_just_joined_names_the_others_too() {
    let grid = Grid::new("chem");
    let nodes = mesh(&grid, 5).await;
    all_connected(&nodes).await;
    let key = Key::of("test", &[b"k"]);
    let mut expected: Vec<_> = nodes.iter().map(Node::peer).collect();
    expected.sort_by_key(|peer| key.position().distance(&peer.position()));
    let mut late = grid.worker("late", &[TCP], &nodes[5].full_addrs()).await;
    late.sees_up(nodes[5].peer()).await;
    assert_eq!(late.handle.closest(key).await.unwrap(), expected);
}

#[tokio::test]
async fn a_node_listens_everywhere_and_looks_around() {
    let grid = Grid::new("chem");
    let enrolled = grid.enrol("a", Role::Worker);
    let mut config = grid.config(&enrolled, &[]);
    config.listen = Config::listen_everywhere(0);
    config.mdns = true;
    let (handle, mut events) =
        aerie_overlay::Overlay::spawn_with(config, common::gate_showing(&grid, &enrolled.der), None).unwrap();
    for expected in ["/tcp/", "/quic-v1"] {
        eventually(expected, || async {
            let addrs = handle.listen_addrs().await.unwrap();
            addrs
                .iter()
                .any(|addr| addr.to_string().contains(expected))
                .then_some(())
        })
        .await;
    }
    assert!(events.recv().await.is_some());
    handle.shutdown().await;
    assert!(handle.members().await.is_err(), "nothing runs any more");
}

#[tokio::test]
async fn the_ports_of_routers_are_told_as_long_as_they_lead_here() {
    let grid = Grid::new("chem");
    let node = grid.worker("a", &[TCP], &[]).await;
    let [first, second] = ["/ip4/203.0.113.7/tcp/4001", "/ip4/203.0.113.7/tcp/20001"];
    for told in [vec![first], vec![first, second], vec![second], vec![]] {
        // A router that says so is not believed.
        let odd = ["/ip4/127.0.0.1/tcp/4001", "/ip4/169.254.1.1/tcp/4001"];
        let addrs = told
            .iter()
            .chain(&odd)
            .map(|addr| addr.parse().unwrap())
            .collect();
        node.handle.set_mapped(addrs).await.unwrap();
        let said = node.handle.listen_addrs().await.unwrap();
        let said: Vec<_> = said.iter().map(ToString::to_string).collect();
        for addr in [first, second] {
            let is_said = said.iter().any(|said| said.starts_with(addr));
            assert_eq!(is_said, told.contains(&addr), "{addr} in {said:?}");
        }
        assert!(
            !said
                .iter()
                .any(|said| said.starts_with(odd[0]) || said.starts_with(odd[1])),
            "{said:?}"
        );
    }
}

#[tokio::test]
async fn an_address_that_the_configuration_names_outlives_a_router_that_gives_it_too() {
    let grid = Grid::new("chem");
    let enrolled = grid.enrol("a", Role::Worker);
    let mut config = grid.config(&enrolled, &[TCP]);
    let addr: Multiaddr = "/ip4/203.0.113.7/tcp/4001".parse().unwrap();
    config.external = vec![addr.clone()];
    let gate = common::gate_showing(&grid, &enrolled.der);
    let (handle, _events) = aerie_overlay::Overlay::spawn_with(config, gate, None).unwrap();
    for mapped in [vec![addr.clone()], vec![]] {
        handle.set_mapped(mapped).await.unwrap();
        let said = handle.listen_addrs().await.unwrap();
        assert!(
            said.iter()
                .any(|said| said.to_string().starts_with(&addr.to_string())),
            "{said:?}"
        );
    }
    handle.shutdown().await;
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_says_so() {
    let grid = Grid::new("chem");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = format!("/ip4/127.0.0.1/tcp/{}", taken.local_addr().unwrap().port());
    let enrolled = grid.enrol("a", Role::Worker);
    let config = grid.config(&enrolled, &[&addr]);
    let keeper = common::gate_showing(&grid, &enrolled.der);
    let Err(error) = aerie_overlay::Overlay::spawn_with(config, keeper, None) else {
        panic!("it started");
    };
    assert!(
        error.to_string().contains(&addr) && error.to_string().contains("choose another"),
        "{error}"
    );
}

#[tokio::test]
async fn requests_of_each_protocol_are_answered_in_any_number() {
    let grid = Grid::new("chem");
    let mut a = grid.worker("a", &[TCP], &[]).await;
    let b = grid.worker("b", &[TCP], &a.full_addrs()).await;
    // Sent before the members are connected: they wait for it.
    let large = vec![7; 900 * 1024];
    assert_eq!(
        b.handle.request(a.peer(), Protocol::Control, large.clone()).await,
        Ok(large)
    );
    for protocol in Protocol::ALL {
        let calls = (0..50_u8).map(|n| b.handle.request(a.peer(), protocol, vec![1, n]));
        for (n, answer) in (0..50).zip(futures::future::join_all(calls).await) {
            assert_eq!(answer, Ok(vec![n, 1]));
        }
        a.sees("request", |seen| *seen == Seen::Request(b.peer(), protocol))
            .await;
    }
    let oversized = b
        .handle
        .request(a.peer(), Protocol::Dht, vec![0; 2 * 1024 * 1024])
        .await;
    assert!(matches!(oversized, Err(RequestError::TooLarge { .. })));
    assert_eq!(
        b.handle.request(b.peer(), Protocol::Dht, vec![]).await,
        Err(RequestError::ToSelf)
    );
}

#[tokio::test]
async fn a_request_to_a_member_that_nobody_knows_fails_with_the_reason() {
    let grid = Grid::new("chem");
    let a = grid.worker("a", &[TCP], &[]).await;
    let mut b = grid.worker("b", &[TCP], &a.full_addrs()).await;
    b.sees_up(a.peer()).await;
    let nobody = NodeKeys::generate().unwrap().peer_id();
    let answer = b.handle.request(nobody, Protocol::Dht, vec![1]).await;
    assert!(matches!(answer, Err(RequestError::Unreachable(_))), "{answer:?}");
}

#[tokio::test]
async fn a_renewed_credential_reaches_connected_members() {
    let grid = Grid::new("chem");
    let mut a = grid.worker("a", &[TCP], &[]).await;
    let keys = NodeKeys::generate().unwrap();
    let first = grid.enrol_at(keys, "b", Role::Worker, 5, now());
    let mut config = grid.config(&first, &[TCP]);
    config.bootstrap = a.full_addrs();
    let b = grid.start(config, &first).await;
    a.sees_up(b.peer()).await;
    assert_eq!(a.handle.credential(b.peer()).unwrap().serial, 5);
    let second = grid.enrol_at(first.keys, "b", Role::Manager, 6, now());
    b.own.send(Arc::new(second.der)).unwrap();
    a.sees("renewal", |seen| *seen == Seen::Renewed(b.peer(), 6))
        .await;
    let members = a.handle.members().await.unwrap();
    assert!(members[0].credential.roles.contains(Role::Manager));
    assert_eq!(members[0].connections.len(), 1, "without a new connection");
}

#[tokio::test]
async fn a_member_that_comes_back_is_connected_again_by_those_who_knew_it() {
    let grid = Grid::new("chem");
    let a = grid.worker("a", &[TCP], &[]).await;
    let addr = a.addrs[0].to_string();
    let enrolled = grid.enrol("b", Role::Worker);
    let mut config = grid.config(&enrolled, &[TCP]);
    config.bootstrap = a.full_addrs();
    let mut b = grid.start(config, &enrolled).await;
    b.sees_up(a.peer()).await;
    let known = b.handle.known_addrs().await.unwrap();
    assert_eq!(known[0].0, a.peer());
    a.handle.shutdown().await;
    b.sees_down(a.peer()).await;
    // A later start of another member of the same address: the bootstrap address leads to somebody new.
    let c = grid.worker("c", &[&addr], &[]).await;
    b.sees_up(c.peer()).await;
    // And from what was remembered alone, without bootstrap addresses.
    let enrolled = grid.enrol("d", Role::Worker);
    let mut config = grid.config(&enrolled, &[]);
    config.known = b.handle.known_addrs().await.unwrap();
    let mut d = grid.start(config, &enrolled).await;
    d.sees_up(c.peer()).await;
}

#[tokio::test]
async fn a_neighbour_that_was_lost_is_looked_for_by_those_that_have_no_room() {
    let grid = Grid::new("chem");
    let start = async |enrolled: &Enrolled, listen: &str, bootstrap: Vec<Multiaddr>| {
        let mut config = grid.config(enrolled, &[listen]);
        config.bootstrap = bootstrap;
        config.max_members = 2;
        grid.start(config, enrolled).await
    };
    let first = start(&grid.enrol("a", Role::Worker), TCP, Vec::new()).await;
    let mut nodes = vec![first];
    for name in ["b", "c"] {
        let bootstrap = nodes[0].full_addrs();
        nodes.push(start(&grid.enrol(name, Role::Worker), TCP, bootstrap).await);
    }
    let enrolled = grid.enrol("lost", Role::Worker);
    let lost = start(&enrolled, TCP, nodes[0].full_addrs()).await;
    let addr = lost.addrs[0].to_string();
    for node in &mut nodes {
        node.sees_up(lost.peer()).await;
    }
    for node in &nodes {
        eventually("everybody is connected", || async {
            (node.member_ids().await.len() == 3).then_some(())
        })
        .await;
    }
    lost.handle.shutdown().await;
    for node in &mut nodes {
        node.sees_down(lost.peer()).await;
    }
    // It knows nobody in its new run, and can only be found.
    let back = start(&enrolled, &addr, Vec::new()).await;
    for node in &mut nodes {
        node.sees_up(back.peer()).await;
    }
}

#[tokio::test]
async fn a_member_that_falls_silent_is_noticed_by_unanswered_probes() {
    let grid = Grid::new("chem");
    let a = grid.worker("a", &[TCP], &[]).await;
    let (proxy, silence) = proxy(&a.addrs[0]).await;
    let enrolled = grid.enrol("b", Role::Worker);
    let mut config = grid.config(&enrolled, &[]);
    config.bootstrap = vec![proxy];
    config.probe_interval = Duration::from_millis(300);
    config.probe_timeout = Duration::from_millis(400);
    let mut b = grid.start(config, &enrolled).await;
    b.sees_up(a.peer()).await;
    eventually("a probe was answered", || async {
        b.handle
            .members()
            .await
            .unwrap()
            .first()
            .and_then(|member| member.rtt)
    })
    .await;
    silence.send(true).unwrap();
    let begun = Instant::now();
    b.sees_down(a.peer()).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(b.handle.stats().dead_connections, 1);
}

/// Run by name, with the number of members in `MEMBERS`: how long a mesh takes, and what it costs at rest.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a test"]
async fn measure_a_large_mesh() {
    let members = std::env::var("MEMBERS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(40_usize);
    let grid = Grid::new("chem");
    let begun = Instant::now();
    let nodes = mesh(&grid, members - 1).await;
    let sum = |of: fn(&Stats) -> u64| nodes.iter().map(|node| of(&node.handle.stats())).sum::<u64>();
    let report = |when: &str| {
        println!(
            "{when}: {} connections, {} exchanges, {} dials, {} failed, {} given up",
            sum(|stats| stats.connections_now) / 2,
            sum(|stats| stats.admitted) / 2,
            sum(|stats| stats.dials),
            sum(|stats| stats.dial_failures),
            sum(|stats| stats.dead_connections),
        );
    };
    let pairs = members * (members - 1);
    while sum(|stats| stats.members_now) < pairs as u64 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no mesh");
        report(&format!("{:4.1} s", begun.elapsed().as_secs_f64()));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    println!("{members} members meshed in {} ms", begun.elapsed().as_millis());
    report("meshed");
    let cpu = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<u64> = stat.split(' ').filter_map(|field| field.parse().ok()).collect();
        fields[10] + fields[11]
    };
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = (cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(20)).await;
    let ticks = (cpu() - before.0) as f64;
    let percent = ticks / before.1.elapsed().as_secs_f64() / members as f64;
    println!("at rest {percent:.3} % of a core each");
    report("after 30 s");
    let key = Key::of("test", &[b"k"]);
    let begun = Instant::now();
    for node in &nodes {
        assert!(node.handle.closest(key).await.unwrap().len() >= 9);
    }
    println!(
        "a look-up takes {} us",
        begun.elapsed().as_micros() / members as u128
    );
}
