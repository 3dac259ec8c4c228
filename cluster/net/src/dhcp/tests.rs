//! Requests are made, and answers read, by another implementation of the protocol.

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};
use dhcproto::{Decodable as _, Decoder, Encodable as _};
use proptest::prelude::*;

use super::*;
use crate::plan::tests::{instance, net, plan, port_id};

const ANYBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const OWN: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);

/// The network that leads out, with guest 3 on it.
fn scope() -> Scope {
    let mut plan = plan();
    plan.networks.get_mut(&net("two")).unwrap().dns = vec![SERVER, Ipv4Addr::new(9, 9, 9, 9)];
    Scope::new(&plan, &net("two"), &instance()).unwrap()
}

fn message(kind: MessageType, change: impl FnOnce(&mut Message)) -> Message {
    let mut message = Message::new_with_id(
        0x1234_5678,
        ANYBODY,
        ANYBODY,
        ANYBODY,
        ANYBODY,
        &port_id(3).mac().0,
    );
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    change(&mut message);
    message
}

/// A frame around a message, made without this crate's own writer.
fn frame(message: &Message, from_mac: Mac, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let body = message.to_vec().unwrap();
    let mut frame = [&[0xff; 6][..], &from_mac.0, &[8, 0, 0x45, 0]].concat();
    frame.extend((28 + body.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend([0, 68, 0, 67]);
    frame.extend((8 + body.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(body);
    frame
}

fn ask(message: &Message) -> Result<Outcome, Dropped> {
    let from = message.ciaddr();
    scope().answer(&frame(message, port_id(3).mac(), from, Ipv4Addr::BROADCAST))
}

/// An answer: where it goes, and what it says.
fn reply(message: &Message) -> (Mac, Ipv4Addr, Message) {
    let Ok(Outcome::Reply(frame)) = ask(message) else {
        panic!("no answer to {message}");
    };
    let to = Ipv4Addr::from(<[u8; 4]>::try_from(&frame[30..34]).unwrap());
    let answer = Message::decode(&mut Decoder::new(&frame[42..])).unwrap();
    assert_eq!(answer.xid(), 0x1234_5678);
    assert_eq!(answer.chaddr(), port_id(3).mac().0);
    (Mac(frame[..6].try_into().unwrap()), to, answer)
}

fn kind(message: &Message) -> Option<MessageType> {
    reply(message).2.opts().msg_type()
}

fn request(asks: Option<&str>, server: Option<Ipv4Addr>, has: Ipv4Addr) -> Message {
    message(MessageType::Request, |message| {
        message.set_ciaddr(has);
        if let Some(asks) = asks {
            let asks = DhcpOption::RequestedIpAddress(asks.parse().unwrap());
            message.opts_mut().insert(asks);
        }
        if let Some(server) = server {
            message.opts_mut().insert(DhcpOption::ServerIdentifier(server));
        }
    })
}

#[test]
fn the_table_of_states_is_kept() {
    let discover = message(MessageType::Discover, |_| ());
    assert_eq!(kind(&discover), Some(MessageType::Offer));
    let other = Ipv4Addr::new(10, 2, 0, 9);
    let cases = [
        (
            "selecting",
            request(Some("10.2.0.2"), Some(SERVER), ANYBODY),
            Some(MessageType::Ack),
        ),
        (
            "selecting another",
            request(Some("10.2.0.3"), Some(SERVER), ANYBODY),
            Some(MessageType::Nak),
        ),
        (
            "rebooting",
            request(Some("10.2.0.2"), None, ANYBODY),
            Some(MessageType::Ack),
        ),
        (
            "rebooting elsewhere",
            request(Some("10.9.0.2"), None, ANYBODY),
            Some(MessageType::Nak),
        ),
        ("renewing", request(None, None, OWN), Some(MessageType::Ack)),
        (
            "asking for nothing",
            request(None, None, ANYBODY),
            Some(MessageType::Nak),
        ),
    ];
    for (what, message, expected) in cases {
        assert_eq!(kind(&message), expected, "{what}");
    }
    assert_eq!(
        ask(&request(Some("10.2.0.2"), Some(other), ANYBODY)),
        Err(Dropped::Elsewhere)
    );
    for kind in [MessageType::Release, MessageType::Decline] {
        assert!(matches!(ask(&message(kind, |_| ())), Ok(Outcome::Noted(_))));
    }
    for kind in [MessageType::Offer, MessageType::Ack, MessageType::Nak] {
        assert_eq!(ask(&message(kind, |_| ())), Err(Dropped::Malformed));
    }
}

#[test]
fn an_offer_says_all_that_a_guest_needs() {
    let (to_mac, to, offer) = reply(&message(MessageType::Discover, |_| ()));
    assert_eq!((to_mac, to), (port_id(3).mac(), OWN), "to the one guest");
    assert_eq!(offer.yiaddr(), OWN);
    let metadata = ("169.254.169.254/32".parse().unwrap(), SERVER);
    let default = ("0.0.0.0/0".parse().unwrap(), SERVER);
    for expected in [
        DhcpOption::ServerIdentifier(SERVER),
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
        DhcpOption::BroadcastAddr(Ipv4Addr::new(10, 2, 0, 255)),
        DhcpOption::Router(vec![SERVER]),
        DhcpOption::DomainNameServer(vec![SERVER, Ipv4Addr::new(9, 9, 9, 9)]),
        DhcpOption::Hostname("node-1".to_owned()),
        DhcpOption::InterfaceMtu(1500),
        DhcpOption::AddressLeaseTime(86_400),
        DhcpOption::Renewal(43_200),
        DhcpOption::Rebinding(75_600),
        DhcpOption::ClasslessStaticRoute(vec![metadata, default]),
    ] {
        assert_eq!(offer.opts().get(OptionCode::from(&expected)), Some(&expected));
    }
}

#[test]
fn a_network_that_is_cut_off_offers_no_router_and_metadata_on_the_link() {
    let scope = Scope::new(&plan(), &net("one"), &instance()).unwrap();
    let mut discover = message(MessageType::Discover, |_| ());
    discover.set_chaddr(&port_id(1).mac().0);
    let frame = frame(&discover, port_id(1).mac(), ANYBODY, Ipv4Addr::BROADCAST);
    let Ok(Outcome::Reply(frame)) = scope.answer(&frame) else {
        panic!("no offer");
    };
    let offer = Message::decode(&mut Decoder::new(&frame[42..])).unwrap();
    assert_eq!(offer.opts().get(OptionCode::Router), None);
    let routes = vec![("169.254.169.254/32".parse().unwrap(), ANYBODY)];
    assert_eq!(
        offer.opts().get(OptionCode::ClasslessStaticRoute),
        Some(&DhcpOption::ClasslessStaticRoute(routes))
    );
    assert_eq!(
        offer.opts().get(OptionCode::ServerIdentifier),
        Some(&DhcpOption::ServerIdentifier(METADATA))
    );
}

#[test]
fn answers_go_where_the_client_hears_them() {
    let broadcast = |message: &mut Message| {
        message.set_flags(Flags::default().set_broadcast());
    };
    let (mac, to, _) = reply(&message(MessageType::Discover, broadcast));
    assert_eq!((mac, to), (EVERYBODY, Ipv4Addr::BROADCAST));
    let (mac, to, ack) = reply(&request(None, None, OWN));
    assert_eq!((mac, to, ack.ciaddr()), (port_id(3).mac(), OWN, OWN));
    let (mac, to, nak) = reply(&request(Some("10.9.0.2"), None, ANYBODY));
    assert_eq!((mac, to, nak.yiaddr()), (EVERYBODY, Ipv4Addr::BROADCAST, ANYBODY));
}

#[test]
fn who_is_configured_otherwise_is_told_the_rest_and_leased_nothing() {
    let inform = message(MessageType::Inform, |message| {
        message.set_ciaddr(OWN);
    });
    let (mac, to, ack) = reply(&inform);
    assert_eq!((mac, to), (port_id(3).mac(), OWN));
    assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
    assert_eq!(ack.yiaddr(), ANYBODY);
    assert_eq!(ack.opts().get(OptionCode::AddressLeaseTime), None);
    assert!(ack.opts().get(OptionCode::DomainNameServer).is_some());
}

#[test]
fn strangers_liars_and_relays_get_no_answer() {
    let discover = message(MessageType::Discover, |_| ());
    let from = |message: &Message, mac, addr| scope().answer(&frame(message, mac, addr, Ipv4Addr::BROADCAST));
    let stranger = Mac([2, 0, 0, 0, 0, 9]);
    assert_eq!(from(&discover, stranger, ANYBODY), Err(Dropped::Forged));
    let mut unknown = discover.clone();
    unknown.set_chaddr(&stranger.0);
    assert_eq!(from(&unknown, stranger, ANYBODY), Err(Dropped::Unknown));
    assert_eq!(
        from(&discover, port_id(3).mac(), Ipv4Addr::new(10, 2, 0, 7)),
        Err(Dropped::Forged)
    );
    let relayed = message(MessageType::Discover, |message| {
        message.set_giaddr(SERVER);
    });
    assert_eq!(ask(&relayed), Err(Dropped::Relayed));
}

#[test]
fn answers_have_right_checksums_and_no_less_than_a_bootp_message() {
    let Ok(Outcome::Reply(frame)) = ask(&request(Some("10.9.0.2"), None, ANYBODY)) else {
        panic!("no answer");
    };
    let sum = |bytes: &[u8]| {
        let words = bytes
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
        let sum: u32 = words.sum();
        (sum & 0xffff) + (sum >> 16)
    };
    assert_eq!(sum(&frame[14..34]), 0xffff);
    let length = (frame.len() - 34) as u16;
    let pseudo = [&frame[26..34], &[0, 17], &length.to_be_bytes(), &frame[34..]].concat();
    assert_eq!(sum(&pseudo), 0xffff);
    assert!(frame.len() >= 42 + 300);
}

#[test]
fn every_beginning_of_a_request_is_dropped_or_answered_as_the_whole() {
    let whole = frame(
        &message(MessageType::Discover, |_| ()),
        port_id(3).mac(),
        ANYBODY,
        Ipv4Addr::BROADCAST,
    );
    for end in 0..whole.len() {
        assert_eq!(
            scope().answer(&whole[..end]),
            Err(Dropped::Malformed),
            "{end} bytes"
        );
    }
    let padded = [&whole[..], &[0; 40]].concat();
    assert_eq!(scope().answer(&padded), scope().answer(&whole));
}

proptest! {
    #[test]
    fn hostile_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        let _ = scope().answer(&bytes);
    }

    #[test]
    fn hostile_options_do_no_harm(options in prop::collection::vec(any::<u8>(), 0..800), cut in 0usize..1200) {
        let mut bytes = frame(&message(MessageType::Discover, |_| ()), port_id(3).mac(), ANYBODY, OWN);
        bytes.truncate(14 + 20 + 8 + 240);
        bytes.extend(options);
        let total = (bytes.len() - 14) as u16;
        bytes[16..18].copy_from_slice(&total.to_be_bytes());
        bytes[38..40].copy_from_slice(&(total - 20).to_be_bytes());
        bytes.truncate(cut.max(42));
        let _ = scope().answer(&bytes);
    }
}
