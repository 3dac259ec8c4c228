//! Through relays: members without an open port, and who is kept out there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;
mod stock;

use std::time::Duration;

use aerie_identity::Rejection;
use aerie_overlay::admission::{Gate, PROTOCOL, Secured};
use aerie_overlay::{Multiaddr, Protocol, Refusal, RequestError};
use aerie_types::{PeerId, Role};
use common::{Grid, Node, QUIC, Seen, TCP, eventually, proxy};
use libp2p::multiaddr;
use libp2p::swarm::SwarmEvent;
use stock::{Garbage, Stock};

/// A worker that nobody can dial: it listens nowhere but through the relay.
async fn hidden(grid: &Grid, name: &str, relay: &Node) -> Node {
    let node = grid.worker(name, &[], &relay.full_addrs()).await;
    reserved(&node).await;
    node
}

async fn reserved(node: &Node) {
    eventually("a place on the relay", || async {
        let addrs = node.handle.listen_addrs().await.unwrap();
        addrs
            .iter()
            .any(|addr| addr.to_string().contains("p2p-circuit"))
            .then_some(())
    })
    .await;
}

fn libp2p_id(peer: PeerId) -> libp2p::PeerId {
    libp2p::PeerId::from_bytes(&peer.to_multihash()).unwrap()
}

/// The address of a peer through a relay.
fn circuit(relay: &Node, peer: PeerId) -> Multiaddr {
    let tcp = relay
        .full_addrs()
        .into_iter()
        .find(|addr| addr.to_string().contains("/tcp/"))
        .unwrap();
    tcp.with(multiaddr::Protocol::P2pCircuit)
        .with(multiaddr::Protocol::P2p(libp2p_id(peer)))
}

#[tokio::test]
async fn a_member_behind_a_relay_alone_is_reached_by_others() {
    let grid = Grid::new("chem");
    let relay = grid.relay("relay").await;
    let a = hidden(&grid, "a", &relay).await;
    let b = hidden(&grid, "b", &relay).await;
    let answer = b
        .handle
        .request(a.peer(), Protocol::Signal, b"abc".to_vec())
        .await;
    assert_eq!(answer, Ok(b"cba".to_vec()));
    let members = b.handle.members().await.unwrap();
    let member = members.iter().find(|member| member.peer == a.peer()).unwrap();
    assert!(member.is_relayed());
    assert_eq!(member.credential.node.as_str(), "a");
    assert_eq!(b.handle.stats().reservations_now, 1);
    // The other way round, and by somebody with an open port.
    assert_eq!(
        a.handle.request(b.peer(), Protocol::Dht, vec![1, 2]).await,
        Ok(vec![2, 1])
    );
    let c = grid.worker("c", &[TCP], &relay.full_addrs()).await;
    assert_eq!(
        c.handle.request(a.peer(), Protocol::Dht, vec![1, 2]).await,
        Ok(vec![2, 1])
    );
}

/// Members probe each other seldom through a relay; it is the relay that notices.
#[tokio::test]
async fn a_member_that_falls_silent_behind_a_relay_is_noticed_by_the_relay() {
    let grid = Grid::new("chem");
    let enrolled = grid.enrol("relay", Role::Relay);
    let mut config = grid.config(&enrolled, &[TCP]);
    config.relay = true;
    config.probe_interval = Duration::from_millis(300);
    config.probe_timeout = Duration::from_millis(400);
    let relay = grid.start(config, &enrolled).await;
    let (way, silence) = proxy(&relay.addrs[0]).await;
    let a = grid.worker("a", &[], &[way]).await;
    reserved(&a).await;
    let mut b = hidden(&grid, "b", &relay).await;
    assert_eq!(
        b.handle.request(a.peer(), Protocol::Dht, vec![1, 2]).await,
        Ok(vec![2, 1])
    );
    b.sees_up(a.peer()).await;
    eventually("an answered probe", || async {
        let members = b.handle.members().await.unwrap();
        members.iter().find(|member| member.peer == a.peer())?.rtt
    })
    .await;
    silence.send(true).unwrap();
    b.sees_down(a.peer()).await;
    assert_eq!(b.handle.stats().dead_connections, 0);
    assert_eq!(relay.handle.stats().dead_connections, 1);
}

#[tokio::test]
async fn a_relayed_connection_gives_way_to_a_direct_one() {
    for listen in [TCP, QUIC] {
        let grid = Grid::new("chem");
        let relay = grid.relay("relay").await;
        let mut a = grid.worker("a", &[listen], &relay.full_addrs()).await;
        reserved(&a).await;
        // It knows the other only by its relayed address, and the relay does not get to tell it more.
        let mut b = grid.worker("b", &[listen], &[circuit(&relay, a.peer())]).await;
        b.sees_up(a.peer()).await;
        a.sees_up(b.peer()).await;
        eventually("one direct connection", || async {
            let members = b.handle.members().await.unwrap();
            let member = members.iter().find(|member| member.peer == a.peer())?;
            (member.connections.len() == 1 && !member.is_relayed()).then_some(())
        })
        .await;
        println!(
            "{listen}: punched {}",
            a.handle.stats().punched + b.handle.stats().punched
        );
        assert_eq!(
            b.handle.request(a.peer(), Protocol::Dht, vec![1, 2]).await,
            Ok(vec![2, 1])
        );
    }
}

/// A relay that admits the members of both grids, a hidden member of the first, and one of the second that lies.
async fn divided() -> (Grid, Node, Node, Node) {
    let (grid, other) = (Grid::new("chem"), Grid::new("bio"));
    let enrolled = grid.enrol("relay", Role::Relay);
    let mut config = grid.config(&enrolled, &[TCP, QUIC]);
    config.relay = true;
    let relay = grid.start_tolerant(config, &enrolled, &[&grid, &other]).await;
    let member = hidden(&grid, "a", &relay).await;
    let enrolled = other.enrol("mallory", Role::Worker);
    let mut config = grid.config(&enrolled, &[]);
    config.bootstrap = relay.full_addrs();
    let impostor = other.start_tolerant(config, &enrolled, &[&grid, &other]).await;
    reserved(&impostor).await;
    (grid, relay, member, impostor)
}

#[tokio::test]
async fn a_peer_of_another_ca_is_no_connection_through_a_relay() {
    let (_grid, relay, mut member, mut impostor) = divided().await;
    let wrong_grid = |seen: &Seen| {
        matches!(
            seen,
            Seen::Refused(_, Refusal::Credential(Rejection::WrongGrid { .. }))
        )
    };
    // It asks for the member, then the member for it.
    let answer = impostor
        .handle
        .request(member.peer(), Protocol::Dht, vec![1])
        .await;
    assert!(matches!(answer, Err(RequestError::Unreachable(_))), "{answer:?}");
    member.sees("refusal", wrong_grid).await;
    impostor
        .sees("verdict", |seen| {
            matches!(seen, Seen::Refused(_, Refusal::ByRemote(_)))
        })
        .await;
    let before = member.handle.stats().refused_credentials;
    member
        .handle
        .dial(circuit(&relay, impostor.peer()))
        .await
        .unwrap();
    let answer = member
        .handle
        .request(impostor.peer(), Protocol::Dht, vec![1])
        .await;
    assert!(matches!(answer, Err(RequestError::Unreachable(_))), "{answer:?}");
    eventually("refused again", || async {
        (member.handle.stats().refused_credentials > before).then_some(())
    })
    .await;
    assert_eq!(member.member_ids().await, [relay.peer()]);
    assert_eq!(impostor.member_ids().await, [relay.peer()]);
    assert!(!member.ever_up(impostor.peer()) && !impostor.ever_up(member.peer()));
}

#[tokio::test]
async fn a_stock_peer_is_no_connection_through_a_relay() {
    let grid = Grid::new("chem");
    let relay = grid.relay("relay").await;
    let mut member = hidden(&grid, "a", &relay).await;
    // It is admitted by the relay, with a good credential, but speaks plain Noise through the circuit.
    let enrolled = grid.enrol("b", Role::Worker);
    let mut seed = enrolled.keys.overlay_seed();
    let keypair = libp2p::identity::Keypair::ed25519_from_bytes(&mut seed[..]).unwrap();
    let gate = Gate::new(common::gate_showing(&grid, &enrolled.der));
    let secured = Secured::new(&keypair, grid.id(), gate).unwrap();
    let mut stock = Stock::through_relay(keypair, secured);
    let (peer, member_id) = (stock.peer(), libp2p_id(member.peer()));
    let relay_tcp = circuit(&relay, member.peer());
    stock.dial(&relay_tcp);
    let failed = |event: &SwarmEvent<_>| matches!(event, SwarmEvent::OutgoingConnectionError { peer_id: Some(who), .. } if *who == member_id);
    stock.until("dial fails", failed).await;
    assert_eq!(stock.established, 1, "the relay alone");
    // The member dials it.
    let own = stock.listen_through(&circuit(&relay, peer)).await;
    member.handle.dial(own).await.unwrap();
    let refused = |event: &SwarmEvent<_>| matches!(event, SwarmEvent::IncomingConnectionError { .. });
    stock.until("incoming fails", refused).await;
    let answer = stock
        .while_running(member.handle.request(peer, Protocol::Dht, vec![1]))
        .await;
    assert!(matches!(answer, Err(RequestError::Unreachable(_))), "{answer:?}");
    assert_eq!(stock.established, 1, "the relay alone");
    assert!(!member.ever_up(peer));
    member
        .sees("handshake", |seen| {
            matches!(seen, Seen::Refused(None, Refusal::Handshake(_)))
        })
        .await;
}

#[tokio::test]
async fn a_stranger_cannot_use_a_relay() {
    let grid = Grid::new("chem");
    let relay = grid.relay("relay").await;
    let member = hidden(&grid, "a", &relay).await;
    let mut stranger = Stock::with_security(Garbage::new(&grid, PROTOCOL, &[0, 0]));
    let tcp = relay
        .full_addrs()
        .into_iter()
        .find(|addr| addr.to_string().contains("/tcp/"))
        .unwrap();
    stranger.dial(&tcp);
    eventually_running(&mut stranger, &relay).await;
    assert!(!relay.ever_up(stranger.peer()));
    assert_eq!(relay.member_ids().await, [member.peer()]);
}

async fn eventually_running(stranger: &mut Stock, relay: &Node) {
    let refused = || async { (relay.handle.stats().refused_garbage > 0).then_some(()) };
    stranger
        .while_running(eventually("refused by the relay", refused))
        .await;
}
