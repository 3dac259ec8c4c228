//! Who becomes a connection, directly over TCP and QUIC.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;
mod stock;

use aerie_identity::{NodeKeys, Rejection};
use aerie_overlay::admission::PROTOCOL;
use aerie_overlay::{Protocol, Refusal, RequestError};
use aerie_types::Role;
use common::{Grid, Node, QUIC, Seen, TCP, days_ago, eventually, now};
use libp2p::swarm::SwarmEvent;
use stock::{Garbage, Stock};

async fn two_members_connect(listen: &str, marker: &str) {
    let grid = Grid::new("chem");
    let mut a = grid.worker("a", &[listen], &[]).await;
    let mut b = grid.worker("b", &[listen], &a.full_addrs()).await;
    a.sees_up(b.peer()).await;
    b.sees_up(a.peer()).await;
    let members = b.handle.members().await.unwrap();
    assert_eq!(members[0].credential.node.as_str(), "a");
    assert!(members[0].connections[0].remote.to_string().contains(marker));
    assert!(!members[0].is_relayed());
    assert_eq!(a.handle.credential(b.peer()).unwrap().node.as_str(), "b");
    let answer = b.handle.request(a.peer(), Protocol::Dht, b"abc".to_vec()).await;
    assert_eq!(answer, Ok(b"cba".to_vec()));
    assert_eq!(a.handle.stats().requests_received, 1);
    a.handle.shutdown().await;
    b.sees_down(a.peer()).await;
}

#[tokio::test]
async fn two_members_connect_over_tcp() {
    two_members_connect(TCP, "/tcp/").await;
}

#[tokio::test]
async fn two_members_connect_over_quic() {
    two_members_connect(QUIC, "/quic-v1").await;
}

/// A node of another CA that claims the grid's id, and would itself admit everybody.
async fn impostor(grid: &Grid, other: &Grid, listen: &str, dials: Option<&Node>) -> Node {
    let enrolled = other.enrol("mallory", Role::Worker);
    let mut config = grid.config(&enrolled, &[listen]);
    if let Some(node) = dials {
        config.bootstrap = node.full_addrs();
    }
    other.start_tolerant(config, &enrolled, &[grid, other]).await
}

fn wrong_grid(seen: &Seen) -> bool {
    matches!(
        seen,
        Seen::Refused(_, Refusal::Credential(Rejection::WrongGrid { .. }))
    )
}

fn by_remote(seen: &Seen) -> bool {
    matches!(seen, Seen::Refused(_, Refusal::ByRemote(reason)) if reason.contains("another grid"))
}

async fn another_ca_is_kept_out(listen: &str) {
    let (grid, other) = (Grid::new("chem"), Grid::new("bio"));
    // It dials the member.
    let mut member = grid.worker("a", &[listen], &[]).await;
    let mut dialler = impostor(&grid, &other, listen, Some(&member)).await;
    member.sees("refusal", wrong_grid).await;
    dialler.sees("verdict", by_remote).await;
    // The member dials it.
    let mut listener = impostor(&grid, &other, listen, None).await;
    let mut member2 = grid.worker("b", &[listen], &listener.full_addrs()).await;
    member2.sees("refusal", wrong_grid).await;
    listener.sees("verdict", by_remote).await;

    for (one, two) in [(&member, &dialler), (&member2, &listener)] {
        assert!(!one.ever_up(two.peer()) && !two.ever_up(one.peer()));
        assert!(one.handle.credential(two.peer()).is_none());
        assert_eq!((one.handle.stats().admitted, two.handle.stats().admitted), (0, 0));
        assert!(one.handle.stats().refused_credentials >= 1);
    }
    let answer = member2
        .handle
        .request(listener.peer(), Protocol::Dht, vec![1])
        .await;
    assert!(matches!(answer, Err(RequestError::Unreachable(_))), "{answer:?}");
}

#[tokio::test]
async fn a_peer_of_another_ca_is_no_connection_over_tcp() {
    another_ca_is_kept_out(TCP).await;
}

#[tokio::test]
async fn a_peer_of_another_ca_is_no_connection_over_quic() {
    another_ca_is_kept_out(QUIC).await;
}

#[tokio::test]
async fn members_of_two_grids_fail_in_the_handshake_over_tcp() {
    let (grid, other) = (Grid::new("chem"), Grid::new("bio"));
    let mut a = grid.worker("a", &[TCP], &[]).await;
    let b = other.worker("b", &[TCP], &a.full_addrs()).await;
    a.sees("handshake", |seen| {
        matches!(seen, Seen::Refused(None, Refusal::Handshake(_)))
    })
    .await;
    eventually("dial failed", || async {
        (b.handle.stats().dial_failures > 0).then_some(())
    })
    .await;
    assert!(!a.ever_up(b.peer()) && !b.ever_up(a.peer()));
}

#[tokio::test]
async fn a_stock_peer_is_no_connection_over_tcp() {
    let grid = Grid::new("chem");
    // It dials the member.
    let mut member = grid.worker("a", &[TCP], &[]).await;
    let mut stock = Stock::plain();
    stock.dial(&member.full_addrs()[0]);
    let failed = |event: &SwarmEvent<_>| matches!(event, SwarmEvent::OutgoingConnectionError { .. });
    stock.until("dial fails", failed).await;
    member
        .sees("handshake", |seen| {
            matches!(seen, Seen::Refused(None, Refusal::Handshake(_)))
        })
        .await;
    // The member dials it.
    let addr = stock.listen(TCP).await;
    member.handle.dial(addr).await.unwrap();
    stock
        .until("incoming fails", |event| {
            matches!(event, SwarmEvent::IncomingConnectionError { .. })
        })
        .await;
    eventually("dial failed", || async {
        (member.handle.stats().dial_failures > 0).then_some(())
    })
    .await;
    assert_eq!(stock.established, 0);
    assert!(!member.ever_up(stock.peer()));
    assert_eq!(member.handle.stats().admitted, 0);
}

#[tokio::test]
async fn a_stock_peer_is_no_connection_over_quic() {
    let grid = Grid::new("chem");
    // It dials the member. Its own swarm, which has no gate, sees TLS succeed and then the connection close.
    let mut member = grid.worker("a", &[QUIC], &[]).await;
    let mut stock = Stock::plain();
    stock.dial(&member.full_addrs()[0]);
    stock
        .until("closed", |event| {
            matches!(event, SwarmEvent::ConnectionClosed { .. })
        })
        .await;
    let peer = stock.peer();
    member
        .sees(
            "refusal",
            |seen| matches!(seen, Seen::Refused(who, _) if *who == Some(peer)),
        )
        .await;
    // The member dials it.
    let before = member.handle.stats().refused_garbage;
    let addr = stock.listen(QUIC).await;
    member.handle.dial(addr).await.unwrap();
    let refused = || async { (member.handle.stats().refused_garbage > before).then_some(()) };
    stock.while_running(eventually("refused", refused)).await;
    assert!(!member.ever_up(peer));
    assert_eq!(member.handle.stats().admitted, 0);
    assert_eq!(stock.identified, 0, "no protocol was served");
}

#[tokio::test]
async fn a_revoked_member_is_refused() {
    let grid = Grid::new("chem");
    let mut a = grid.worker("a", &[TCP, QUIC], &[]).await;
    assert!(a.verifier.write().unwrap().apply(grid.revoke(7)).unwrap());
    let revoked = grid.enrol_at(NodeKeys::generate().unwrap(), "b", Role::Worker, 7, now());
    let mut config = grid.config(&revoked, &[TCP]);
    config.bootstrap = a.full_addrs();
    let mut b = grid.start(config, &revoked).await;
    a.sees("refusal", |seen| {
        matches!(
            seen,
            Seen::Refused(_, Refusal::Credential(Rejection::Revoked { .. }))
        )
    })
    .await;
    b.sees(
        "verdict",
        |seen| matches!(seen, Seen::Refused(_, Refusal::ByRemote(why)) if why.contains("revoked")),
    )
    .await;
    assert!(!a.ever_up(b.peer()) && !b.ever_up(a.peer()));
}

#[tokio::test]
async fn a_recheck_cuts_a_member_that_was_revoked_while_connected() {
    let grid = Grid::new("chem");
    let mut a = grid.worker("a", &[TCP], &[]).await;
    let enrolled = grid.enrol_at(NodeKeys::generate().unwrap(), "b", Role::Worker, 7, now());
    let mut config = grid.config(&enrolled, &[QUIC]);
    config.bootstrap = a.full_addrs();
    let mut b = grid.start(config, &enrolled).await;
    let other = grid.worker("c", &[TCP], &a.full_addrs()).await;
    a.sees_up(b.peer()).await;
    a.sees_up(other.peer()).await;
    assert!(a.handle.recheck().await.unwrap().is_empty());

    assert!(a.verifier.write().unwrap().apply(grid.revoke(7)).unwrap());
    assert_eq!(a.handle.recheck().await.unwrap(), [b.peer()]);
    a.sees_down(b.peer()).await;
    b.sees_down(a.peer()).await;
    // It comes back at once and is refused.
    a.sees("refusal", |seen| {
        matches!(
            seen,
            Seen::Refused(_, Refusal::Credential(Rejection::Revoked { .. }))
        )
    })
    .await;
    assert_eq!(a.member_ids().await, [other.peer()]);
    assert_eq!(a.handle.stats().expelled, 1);
}

#[tokio::test]
async fn a_member_whose_credential_expired_is_refused() {
    let grid = Grid::new("chem");
    let mut a = grid.worker("a", &[TCP], &[]).await;
    let expired = grid.enrol_at(NodeKeys::generate().unwrap(), "b", Role::Worker, 3, days_ago(40));
    let mut config = grid.config(&expired, &[TCP]);
    config.bootstrap = a.full_addrs();
    let b = grid.start(config, &expired).await;
    a.sees("refusal", |seen| {
        matches!(
            seen,
            Seen::Refused(_, Refusal::Credential(Rejection::Expired { .. }))
        )
    })
    .await;
    assert!(!a.ever_up(b.peer()) && !b.ever_up(a.peer()));
}

#[tokio::test]
async fn a_credential_of_another_key_is_refused() {
    let grid = Grid::new("chem");
    for listen in [TCP, QUIC] {
        let mut a = grid.worker("a", &[listen], &[]).await;
        let mut thief = grid.enrol("b", Role::Worker);
        thief.der = grid.enrol("victim", Role::Manager).der;
        let mut config = grid.config(&thief, &[listen]);
        config.bootstrap = a.full_addrs();
        let b = grid.start(config, &thief).await;
        let peer = b.peer();
        a.sees("refusal", |seen| {
            *seen == Seen::Refused(Some(peer), Refusal::KeyMismatch)
        })
        .await;
        assert!(!a.ever_up(peer) && !b.ever_up(a.peer()));
    }
}

#[tokio::test]
async fn garbage_after_the_handshake_is_counted_and_harms_nobody() {
    let grid = Grid::new("chem");
    let mut member = grid.worker("a", &[TCP], &[]).await;
    type Expected = fn(&Refusal) -> bool;
    let refusals: [(&[u8], Expected); 4] = [
        // Longer than any credential.
        (&[0xff, 0xff, 1, 2, 3], |refusal| {
            *refusal == Refusal::Oversized { length: 0xffff }
        }),
        // A frame of the right form that is no certificate.
        (&[0, 4, 1, 2, 3, 4], |refusal| {
            matches!(refusal, Refusal::Credential(Rejection::Malformed(_)))
        }),
        // Nothing at all in the frame.
        (&[0, 0], |refusal| {
            matches!(refusal, Refusal::Credential(Rejection::Malformed(_)))
        }),
        // Less than announced, and then the end.
        (&[0, 100, 1], |refusal| matches!(refusal, Refusal::Broken(_))),
    ];
    for (bytes, expected) in refusals {
        let mut hostile = Stock::with_security(Garbage::new(&grid, PROTOCOL, bytes));
        let peer = hostile.peer();
        hostile.dial(&member.full_addrs()[0]);
        let refused =
            |seen: &Seen| matches!(seen, Seen::Refused(who, why) if *who == Some(peer) && expected(why));
        hostile
            .while_running(member.sees("refusal of garbage", refused))
            .await;
        assert!(!member.ever_up(peer));
    }
    let stats = member.handle.stats();
    assert_eq!((stats.refused_garbage, stats.admitted), (4, 0), "{stats:?}");
    let mut friend = grid.worker("b", &[TCP], &member.full_addrs()).await;
    friend.sees_up(member.peer()).await;
}
