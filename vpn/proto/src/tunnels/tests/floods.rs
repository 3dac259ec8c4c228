//! A member that sends genuine handshake messages in masses, and sessions that have sealed all they may: both need
//! what no core does by itself.

use std::net::SocketAddr;

use super::*;
use crate::handshake::{self, Context, Initiated, noise_public};
use crate::limits::{HANDSHAKES_BURST, HANDSHAKES_PER_PEER};
use crate::path::Agent;
use crate::session::Session;
use crate::signal::{Candidate, CandidateKind};
use crate::wire::{self, Packet};

const INIT: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 3;
const PROBE: u8 = 4;

/// Lets everybody in whose credential is a number.
struct ByNumber;

impl CredentialCheck for ByNumber {
    fn check(&self, der: &[u8], _wall: WallMillis) -> Result<RemoteIdentity, String> {
        Ok(RemoteIdentity {
            peer: peer(der[0]),
            noise_public: noise_public(&[der[0]; 32]).unwrap(),
            node: format!("node{}", der[0]).parse().unwrap(),
        })
    }
}

fn identity(n: u8) -> Identity {
    Identity {
        grid: GridId([9; 16]),
        peer: peer(n),
        noise_secret: [n; 32].into(),
        credential: vec![n],
    }
}

/// The core of node 2.
fn core(suite: Suite, now: Now) -> Tunnels {
    let config = Config {
        range: "100.96.0.0/11".parse().unwrap(),
        addr: addr(2),
        mtu: 1420,
        suites: vec![suite],
        relay: None,
        loopback: false,
    };
    let mut rng = StdRng::from_seed([7; 32]);
    Tunnels::new(config, identity(2), Box::new(ByNumber), &mut rng, now).unwrap()
}

fn sent(core: &mut Tunnels, kind: u8) -> Vec<Vec<u8>> {
    let mut out = Transmits::new();
    core.poll_transmits(&mut out);
    let runs = out.runs(1);
    runs.filter(|run| run.bytes[1] == kind)
        .map(|run| run.bytes.to_vec())
        .collect()
}

/// Another member, played by hand.
struct Member {
    n: u8,
    agent: Agent,
}

impl Member {
    /// One that has agreed on tags and a key with the core.
    fn join(n: u8, core: &mut Tunnels, now: Now) -> Self {
        Self::start(n, n.into(), core, now)
    }

    /// The same at one of its starts, each of which has a tag of its own.
    fn start(n: u8, tag: u64, core: &mut Tunnels, now: Now) -> Self {
        let mut agent = Agent::new(peer(n), peer(2), tag, [n; 32], now.instant);
        let own = Candidate {
            kind: CandidateKind::Host,
            addr: Self::addr(n),
        };
        let offer = Signal::Offer(agent.offer(false, vec![own], (false, false)));
        core.signal(peer(n), &offer.encode(), now).unwrap();
        core.handle_timeout(now);
        while let Some(event) = core.poll_event() {
            if let Event::Signal { to, bytes } = event
                && to == peer(n)
                && let Ok(Signal::Offer(offer)) = Signal::decode(&bytes)
            {
                agent.handle_offer(&offer, now.instant);
            }
        }
        assert!(agent.key().is_some(), "its offer was answered");
        Self { n, agent }
    }

    fn addr(n: u8) -> UnderlayAddr {
        UnderlayAddr(SocketAddr::from(([192, 0, 2, n], 4242)))
    }

    fn init(&self, timestamp: u64) -> Vec<u8> {
        let responder_tag = self.agent.remote_tag().unwrap();
        let context = Context {
            initiator_tag: self.agent.tag(),
            responder_tag,
            timestamp,
        };
        let remote = noise_public(&[2; 32]).unwrap();
        let suites = Suite::preferred(true);
        let (_, noise): (Initiated, _) =
            handshake::initiate(&identity(self.n), &remote, context, &suites, [5; 32]).unwrap();
        wire::init(1, responder_tag, timestamp, &noise, self.agent.key().unwrap())
    }

    /// Answers the core's probes, so that it has a way, and its init, where it has sent one.
    fn answer(&self, core: &mut Tunnels, now: Now) {
        let key = self.agent.key().unwrap();
        for probe in sent(core, PROBE) {
            let Some(Packet::Probe { transaction, .. }) = wire::parse(&probe) else {
                panic!("no probe: {probe:?}");
            };
            let tag = self.agent.remote_tag().unwrap();
            let mut reply = wire::probe_reply(tag, transaction, Self::addr(2), key);
            core.handle_datagram(Self::addr(self.n), &mut reply, now);
        }
    }

    /// The response to an init of the core.
    fn response(&self, init: &[u8]) -> Vec<u8> {
        let Some(Packet::Init {
            sender,
            tag,
            timestamp,
            noise,
            ..
        }) = wire::parse(init)
        else {
            panic!("no init: {init:?}");
        };
        let context = Context {
            initiator_tag: self.agent.remote_tag().unwrap(),
            responder_tag: tag,
            timestamp,
        };
        let own = identity(self.n);
        let received = handshake::receive(&own, context, noise, [6; 32]).unwrap();
        let (_, noise) = received.answer(&own, &Suite::preferred(true)).unwrap();
        wire::response(77, sender, &noise, self.agent.key().unwrap())
    }
}

/// A packet of node 2's host to another.
fn to(n: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(addr(2).v4().unwrap().octets());
    packet.extend(addr(n).v4().unwrap().octets());
    packet
}

fn send(core: &mut Tunnels, n: u8, now: Now) -> Vec<Vec<u8>> {
    let mut out = Transmits::new();
    core.handle_inner(&to(n), now, &mut out);
    out.runs(1).map(|run| run.bytes.to_vec()).collect()
}

/// The core's init to a member to whom it has just got a way.
fn initiated(core: &mut Tunnels, member: &Member, now: Now) -> Vec<u8> {
    let remote = RemotePeer {
        peer: peer(member.n),
        noise_public: noise_public(&[member.n; 32]).unwrap(),
    };
    core.resolved(addr(member.n), Some(remote), now);
    send(core, member.n, now);
    core.handle_timeout(now);
    member.answer(core, now);
    core.handle_timeout(now);
    sent(core, INIT).pop().unwrap()
}

fn later(now: Now, after: Duration) -> Now {
    Now {
        instant: now.instant + after,
        wall: WallMillis(now.wall.0 + after.as_millis() as u64),
    }
}

#[test]
fn a_member_that_floods_with_genuine_inits_keeps_no_other_out() {
    let now = moment();
    let mut core = core(Suite::Aes256Gcm, now);
    let noisy = Member::join(1, &mut core, now);
    let others: Vec<_> = (3..13).map(|n| Member::join(n, &mut core, now)).collect();
    sent(&mut core, RESPONSE);
    let flood = |core: &mut Tunnels, now: Now, from: u64| {
        for timestamp in from..from + 500 {
            let source = SocketAddr::from(([203, 0, 113, (timestamp % 250) as u8], 5000));
            core.handle_datagram(UnderlayAddr(source), &mut noisy.init(timestamp), now);
        }
        sent(core, RESPONSE).len()
    };
    assert_eq!(flood(&mut core, now, 1), HANDSHAKES_BURST as usize);
    assert_eq!(
        core.counters().handshakes_limited,
        500 - u64::from(HANDSHAKES_BURST)
    );
    for other in &others {
        core.handle_datagram(Member::addr(other.n), &mut other.init(1), now);
        assert_eq!(sent(&mut core, RESPONSE).len(), 1, "node {}", other.n);
    }
    let second = later(now, Duration::from_secs(1));
    assert_eq!(flood(&mut core, second, 501), HANDSHAKES_PER_PEER as usize);
}

#[test]
fn a_member_that_floods_with_responses_costs_a_few_of_them() {
    let now = moment();
    let mut core = core(Suite::Aes256Gcm, now);
    let member = Member::join(3, &mut core, now);
    let init = initiated(&mut core, &member, now);
    let good = member.response(&init);
    let before = core.counters();
    for n in 0..500u32 {
        let mut noise = good[12..good.len() - wire::MAC].to_vec();
        noise[40] ^= 1;
        let index = u32::from_be_bytes(good[8..12].try_into().unwrap());
        let mut bad = wire::response(n, index, &noise, member.agent.key().unwrap());
        core.handle_datagram(Member::addr(3), &mut bad, now);
    }
    let after = core.counters();
    assert_eq!(after.forged - before.forged, u64::from(HANDSHAKES_BURST));
    let later = later(now, Duration::from_secs(1));
    core.handle_datagram(Member::addr(3), &mut good.clone(), later);
    assert_eq!(core.counters().handshakes, 1, "the true one is taken");
}

#[test]
fn a_genuine_init_longer_than_any_handshake_is_refused() {
    let now = moment();
    let mut core = core(Suite::Aes256Gcm, now);
    let member = Member::join(1, &mut core, now);
    let tag = member.agent.remote_tag().unwrap();
    sent(&mut core, RESPONSE);
    for (timestamp, len) in [(1, 4097), (2, 65_000)] {
        let mut init = wire::init(1, tag, timestamp, &vec![0; len], member.agent.key().unwrap());
        core.handle_datagram(Member::addr(1), &mut init, now);
        assert_eq!(core.counters().forged, timestamp);
    }
    core.handle_datagram(Member::addr(1), &mut member.init(3), now);
    assert_eq!(sent(&mut core, RESPONSE).len(), 1, "the next is answered");
}

/// It has forgotten the peer, and said so, before it started again: nothing of its former start is in force.
#[test]
fn a_member_that_took_its_leave_is_let_in_with_an_earlier_clock() {
    let now = moment();
    let mut core = core(Suite::Aes256Gcm, now);
    let member = Member::join(1, &mut core, now);
    let mut recorded = member.init(1000);
    core.handle_datagram(Member::addr(1), &mut recorded.clone(), now);
    assert_eq!(sent(&mut core, RESPONSE).len(), 1);
    let bye = Signal::Bye {
        tag: member.agent.tag(),
    };
    core.signal(peer(1), &bye.encode(), now).unwrap();
    let again = Member::start(1, 99, &mut core, now);
    core.handle_datagram(Member::addr(1), &mut recorded, now);
    assert!(sent(&mut core, RESPONSE).is_empty(), "that of its former start");
    core.handle_datagram(Member::addr(1), &mut again.init(5), now);
    assert_eq!(sent(&mut core, RESPONSE).len(), 1);
}

#[test]
fn a_session_is_renewed_before_its_counter_ends_and_seals_nothing_beyond() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let now = moment();
        let mut core = core(suite, now);
        let member = Member::join(3, &mut core, now);
        let init = initiated(&mut core, &member, now);
        core.handle_datagram(Member::addr(3), &mut member.response(&init), now);
        sent(&mut core, DATA);
        let skip_to = |core: &mut Tunnels, counter: u64| {
            let session: &mut Session = core
                .peers
                .get_mut(&peer(3))
                .and_then(|peer| peer.current.as_mut())
                .unwrap();
            assert_eq!(session.suite(), suite);
            session.skip_to(counter);
        };
        // One before the renewal is due, then the one at which it is; the old keys serve meanwhile.
        let (renewal, end) = (suite.rekey_after_messages(), suite.reject_after_messages());
        skip_to(&mut core, renewal - 2);
        assert_eq!(send(&mut core, 3, now).len(), 1);
        core.handle_timeout(now);
        assert!(sent(&mut core, INIT).is_empty(), "{suite}: too early");
        assert_eq!(send(&mut core, 3, now).len(), 1);
        core.handle_timeout(now);
        let init = sent(&mut core, INIT).pop().unwrap();
        assert_eq!(send(&mut core, 3, now).len(), 1);
        // The response takes its time.
        skip_to(&mut core, end - 2);
        let sealed: Vec<_> = (0..5).flat_map(|_| send(&mut core, 3, now)).collect();
        let counters: Vec<_> = sealed
            .iter()
            .map(|bytes| u64::from_be_bytes(bytes[8..16].try_into().unwrap()))
            .collect();
        assert_eq!(counters, [end - 2, end - 1], "{suite}");
        core.handle_datagram(Member::addr(3), &mut member.response(&init), now);
        let waited = sent(&mut core, DATA);
        let counters: Vec<_> = waited.iter().map(|bytes| bytes[8..16].to_vec()).collect();
        let fresh: Vec<_> = (0..3u64).map(|n| n.to_be_bytes().to_vec()).collect();
        assert_eq!(counters, fresh, "{suite}: what waited goes under new keys");
    }
}

/// Lets a core have its timers until then, and looks at it after each. How many those were.
fn run(core: &mut Tunnels, from: Now, time: Duration, mut look: impl FnMut(&mut Tunnels, Now)) -> usize {
    let mut wakes = 0;
    let end = from.instant + time;
    while let Some(at) = core.poll_timeout().filter(|at| *at <= end) {
        let now = later(from, at.saturating_duration_since(from.instant));
        core.handle_timeout(now);
        look(core, now);
        wakes += 1;
    }
    wakes
}

/// What a core sends of one kind until then, while the member answers its probes.
fn sent_until(core: &mut Tunnels, member: &Member, kind: u8, from: Now, time: Duration) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    run(core, from, time, |core, now| {
        let mut out = Transmits::new();
        core.poll_transmits(&mut out);
        for run in out.runs(1) {
            if run.bytes[1] == kind {
                found.push(run.bytes.to_vec());
            }
            if let Some(Packet::Probe { transaction, .. }) = wire::parse(run.bytes) {
                let (tag, key) = (member.agent.remote_tag().unwrap(), member.agent.key().unwrap());
                let mut reply = wire::probe_reply(tag, transaction, Member::addr(2), key);
                core.handle_datagram(Member::addr(member.n), &mut reply, now);
            }
        }
    });
    found
}

#[test]
fn a_peer_that_never_uses_the_session_it_asked_for_is_asked_for_another_in_time() {
    let now = moment();
    let mut core = core(Suite::Aes256Gcm, now);
    let member = Member::join(1, &mut core, now);
    // A packet waits; the member's own init goes before this node's.
    initiated(&mut core, &member, now);
    core.handle_datagram(Member::addr(1), &mut member.init(1), now);
    assert_eq!(sent(&mut core, RESPONSE).len(), 1);
    // The first packet of the session was lost, and no other comes.
    let inits = sent_until(&mut core, &member, INIT, now, Duration::from_secs(6));
    assert!(!inits.is_empty());
}

#[test]
fn a_handshake_without_a_way_keeps_nobody_busy() {
    let now = moment();
    let mut core = core(Suite::Aes256Gcm, now);
    let member = Member::join(3, &mut core, now);
    initiated(&mut core, &member, now);
    // The peer is gone: neither its probes nor its init are answered any more.
    let wakes = run(&mut core, now, Duration::from_secs(80), |core, _| {
        sent(core, INIT);
    });
    assert!(wakes < 500, "{wakes} in 80 s");
}

#[test]
fn sessions_of_a_relay_end_though_their_members_are_no_peers_of_it() {
    let now = moment();
    let config = Config {
        relay: Some(RelayLimits::default()),
        ..core(Suite::Aes256Gcm, now).config
    };
    let mut rng = StdRng::from_seed([7; 32]);
    let mut core = Tunnels::new(config, identity(2), Box::new(ByNumber), &mut rng, now).unwrap();
    core.handle_timeout(now);
    let asks = Signal::RelayRequest { id: 1, far: peer(9) };
    core.signal(peer(8), &asks.encode(), now).unwrap();
    assert_eq!(core.relayed_sessions(), 1);
    run(&mut core, now, Duration::from_secs(35), |_, _| ());
    assert_eq!(core.relayed_sessions(), 0, "nobody has bound to it");
}
