//! Guests on real TAPs, in a namespace of their own: what an honest one gets, and what a hostile one does not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;

use aerie_cluster_net::{METADATA, UserData, link_local};
use aerie_cluster_node::Mac;
use aerie_config::{Bundle, Ec2, SourceConfig, Spec, find};
use common::frames::*;
use common::guest::{Ear, Guest, LIMIT, Machine};
use common::namespace::Namespace;
use common::{bridge, drive, mac, plan, port_id, tap};
use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable as _, Decoder, Encodable as _};

const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const B: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
const C: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
const ANYBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn bridge_mac(host: &Namespace, network: &str) -> Mac {
    let text = host.run(&format!("ip -o link show {}", bridge(network)));
    let text = text.split("link/ether ").nth(1).unwrap();
    Mac::try_from(text.split(' ').next().unwrap().to_owned()).unwrap()
}

/// A broadcast that every guest of the network and the host hear: what was sent before it has come, or never does.
fn marker(n: u128, own: Ipv4Addr) -> Vec<u8> {
    ethernet(EVERYBODY, mac(n), ARP, &arp(1, (mac(n), own), (NOBODY, METADATA)))
}

fn dhcp(n: u128, kind: MessageType, options: &[DhcpOption]) -> Vec<u8> {
    let mut message = Message::new_with_id(7, ANYBODY, ANYBODY, ANYBODY, ANYBODY, &mac(n).0);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    let datagram = udp(68, 67, &message.to_vec().unwrap());
    ethernet(
        EVERYBODY,
        mac(n),
        IP,
        &ip(ANYBODY, Ipv4Addr::BROADCAST, UDP, &datagram),
    )
}

fn answer(guest: &Guest) -> Message {
    loop {
        let frame = guest.receive(LIMIT).unwrap();
        // The host may ask for somebody's Ethernet address at any time.
        if frame[12..14] == IP.to_be_bytes() && frame[34..36] == [0, 67] {
            return Message::decode(&mut Decoder::new(&frame[42..])).unwrap();
        }
    }
}

/// An HTTP exchange from inside a guest: the whole answer.
fn http(from: &Namespace, request: &str) -> std::io::Result<String> {
    from.enter(|| {
        let to = SocketAddr::from((METADATA, 80));
        let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

fn token(from: &Namespace, more: &str) -> String {
    let request = format!(
        "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n{more}\r\n"
    );
    let text = http(from, &request).unwrap();
    text.split("\r\n\r\n").nth(1).unwrap().to_owned()
}

#[test]
fn an_honest_guest_gets_its_lease() {
    let host = Namespace::new();
    drive(&host, plan(), async |_| {
        let task = tokio::task::spawn_blocking({
            let guest = Guest::plug(&host, &tap(1));
            move || {
                guest.send(&dhcp(1, MessageType::Discover, &[]));
                let offer = answer(&guest);
                assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
                assert_eq!(offer.yiaddr(), A);
                let server = offer.opts().get(OptionCode::ServerIdentifier).unwrap().clone();
                let asks = DhcpOption::RequestedIpAddress(A);
                guest.send(&dhcp(1, MessageType::Request, &[server, asks]));
                let ack = answer(&guest);
                assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
                assert_eq!(ack.yiaddr(), A);
                // Whose lease it is, the frame says and not the message.
                let mut forged = dhcp(2, MessageType::Discover, &[]);
                forged[6..12].copy_from_slice(&mac(1).0);
                guest.send(&forged);
                guest.send(&dhcp(1, MessageType::Discover, &[]));
                assert_eq!(answer(&guest).chaddr(), mac(1).0);
            }
        });
        task.await.unwrap();
    });
}

#[test]
fn an_honest_guest_pings_and_reads_its_own_metadata() {
    let host = Namespace::new();
    drive(&host, plan(), async |networks| {
        let machines = [(1, A), (2, B)].map(|(n, addr)| {
            let machine = Machine::plug(&host, &tap(n), mac(n));
            machine.inside.run(&format!("ip addr add {addr}/24 dev eth0"));
            machine.inside.run(&format!("ip route add {METADATA} dev eth0"));
            machine
        });
        let task = tokio::task::spawn_blocking(move || {
            let [one, two] = &machines;
            for to in [B, METADATA] {
                let text = one.inside.run(&format!("ping -c 2 -i 0.2 -W 5 {to}"));
                assert!(text.contains(" 0% packet loss"), "{text}");
            }
            // The link-local addresses are those that follow from the Ethernet addresses.
            let to = link_local(mac(2));
            one.inside.run(&format!("ping -c 2 -i 0.2 -W 5 {to}%eth0"));
            let own = token(&one.inside, "");
            let ask = |machine: &Machine, token: &str, path: &str| {
                let request =
                    format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n");
                http(&machine.inside, &request).unwrap()
            };
            assert!(ask(one, &own, "/latest/user-data").ends_with("\r\n\r\nfor 10.1.0.2"));
            assert!(ask(one, &own, "/latest/meta-data/local-ipv4").ends_with("10.1.0.2"));
            assert!(ask(two, &own, "/latest/user-data").starts_with("HTTP/1.1 401"));
            let other = token(&two.inside, "");
            assert!(ask(two, &other, "/latest/user-data").ends_with("\r\n\r\nfor 10.1.0.3"));
            assert!(token(&one.inside, "X-Forwarded-For: 10.1.0.9\r\n").contains("passed on"));
            let without = http(&one.inside, "GET /latest/user-data HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            assert!(without.starts_with("HTTP/1.1 401"), "{without}");
            // A head without end is cut off.
            let endless = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
            let text = http(&one.inside, &endless).unwrap_or_default();
            assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
            machines
        });
        let [one, _two] = task.await.unwrap();
        // What a guest is told changes while it runs.
        let mut facts = (*plan().ports[&port_id(1)].facts).clone();
        facts.allow_v1 = true;
        facts.user_data = None;
        networks.tell(&port_id(1), facts).unwrap();
        let task = tokio::task::spawn_blocking(move || {
            let ask = |path| http(&one.inside, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).unwrap();
            assert!(ask("/latest/meta-data/hostname").ends_with("node-2"));
            assert!(ask("/latest/user-data").starts_with("HTTP/1.1 404"));
        });
        task.await.unwrap();
    });
}

#[test]
fn a_machine_of_a_grid_finds_its_blob_as_on_any_cloud() {
    let spec = "version = 1\n[grid]\nname = \"chem\"\nrange = \"100.96.0.0/11\"\n\
                ca_hash = \"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"\n\
                [enrol]\nurls = [\"https://portal.example.org:8443\"]\ntoken = \"aerie-token-5wq8\"\n\
                [node]\nroles = [\"worker\"]\n";
    let bundle = Bundle::of_spec(&Spec::parse(spec).unwrap());
    let mut plan = plan();
    for (n, data) in [(1, bundle.to_user_data().unwrap()), (2, spec.as_bytes().to_vec())] {
        let facts = &mut plan.ports.get_mut(&port_id(n)).unwrap().facts;
        Arc::make_mut(facts).user_data = Some(UserData::new(data));
    }
    let host = Namespace::new();
    drive(&host, plan, async |_| {
        let machines = [(1, A), (2, B)].map(|(n, addr)| {
            let machine = Machine::plug(&host, &tap(n), mac(n));
            machine.inside.run(&format!("ip addr add {addr}/24 dev eth0"));
            machine.inside.run(&format!("ip route add {METADATA} dev eth0"));
            machine
        });
        let task = tokio::task::spawn_blocking(move || {
            for machine in &machines {
                let config = SourceConfig {
                    ec2: Some(Ec2::default()),
                    network_budget: LIMIT,
                    ..SourceConfig::nowhere()
                };
                let search = machine.inside.enter(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    runtime.unwrap().block_on(find(&config))
                });
                let found = search
                    .outcome
                    .unwrap()
                    .unwrap_or_else(|| panic!("{}", search.report));
                assert_eq!(found.spec, Spec::parse(spec).unwrap());
            }
        });
        task.await.unwrap();
    });
}

#[test]
fn answers_with_metadata_travel_one_hop() {
    let host = Namespace::new();
    drive(&host, plan(), async |_| {
        let guest = Guest::plug(&host, &tap(1));
        let to = bridge_mac(&host, "one");
        // The first packet of a connection, as a stack of the guest's would send it.
        let syn = [
            &[0x9c, 0x40, 0, 80][..],
            &[0; 8],
            &[0x50, 2, 0xff, 0xff, 0, 0, 0, 0],
        ]
        .concat();
        let mut pseudo = [A.octets(), METADATA.octets()].concat();
        pseudo.extend([0, 6, 0, 20]);
        let words = pseudo.chunks(2).chain(syn.chunks(2));
        let sum: u32 = words
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
            .sum();
        let mut syn = syn.clone();
        syn[16..18].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        guest.send(&ethernet(to, mac(1), IP, &ip(A, METADATA, 6, &syn)));
        guest.send(&marker(1, A));
        loop {
            let frame = guest.receive(LIMIT).unwrap();
            if frame[12..14] == ARP.to_be_bytes() && frame[20..22] == [0, 1] {
                // The host asks who the guest is.
                let reply = arp(2, (mac(1), A), (to, METADATA));
                guest.send(&ethernet(to, mac(1), ARP, &reply));
            } else if frame[12..14] == IP.to_be_bytes() && frame[23] == 6 {
                assert_eq!(frame[22], 1, "hops");
                break;
            }
        }
    });
}

/// What guest 1 has no right to send to guest 2, each with what it is.
fn forged() -> Vec<(&'static str, Vec<u8>)> {
    let (own, own6) = (mac(1), link_local(mac(1)));
    let (other, other6) = (mac(2), link_local(mac(2)));
    let foreign = Mac([2, 0, 0, 0, 0, 0x99]);
    let to = |ethertype, payload: Vec<u8>| ethernet(other, own, ethertype, &payload);
    let datagram = || udp(5000, 5001, b"hello, neighbour");
    let honest = to(IP, ip(A, B, UDP, &datagram()));
    let advertisement = router_advertisement(own6, ALL_NODES);
    // The options of a header that says nothing, before what it hides.
    let hidden = |next: u8, payload: &[u8]| [&[next, 0, 1, 4, 0, 0, 0, 0], payload].concat();
    let piece = |next: u8, place: u16, payload: &[u8]| {
        let place = place.to_be_bytes();
        [&[next, 0, place[0], place[1], 0, 0, 0, 9], payload].concat()
    };
    vec![
        (
            "a foreign Ethernet address",
            ethernet(other, foreign, IP, &ip(A, B, UDP, &datagram())),
        ),
        (
            "a neighbour's Ethernet address",
            ethernet(EVERYBODY, other, IP, &ip(A, B, UDP, &datagram())),
        ),
        (
            "a foreign address",
            to(IP, ip(Ipv4Addr::new(10, 1, 0, 77), B, UDP, &datagram())),
        ),
        ("a neighbour's address", to(IP, ip(B, A, UDP, &datagram()))),
        ("the host's address", to(IP, ip(METADATA, B, UDP, &datagram()))),
        ("no address", to(IP, ip(ANYBODY, B, UDP, &datagram()))),
        (
            "a foreign address in a later fragment",
            to(IP, fragment(B, A, UDP, 5, &[0; 32])),
        ),
        (
            "ARP of a neighbour's address",
            to(ARP, arp(2, (own, B), (other, B))),
        ),
        (
            "ARP of a foreign address",
            to(ARP, arp(2, (own, Ipv4Addr::new(10, 1, 0, 77)), (other, B))),
        ),
        (
            "ARP of the host's address",
            to(ARP, arp(2, (own, METADATA), (other, B))),
        ),
        (
            "ARP of a foreign Ethernet address",
            to(ARP, arp(2, (foreign, A), (other, B))),
        ),
        (
            "a question in a neighbour's name",
            to(ARP, arp(1, (own, B), (NOBODY, A))),
        ),
        (
            "a probe for a neighbour's address",
            to(ARP, arp(1, (own, ANYBODY), (NOBODY, B))),
        ),
        ("reverse ARP", to(ARP, arp(3, (own, A), (other, B)))),
        ("an offer of DHCP", to(IP, ip(A, B, UDP, &udp(67, 68, &[2; 300])))),
        (
            "an offer of DHCP in the host's name",
            to(IP, ip(METADATA, B, UDP, &udp(67, 68, &[2; 300]))),
        ),
        (
            "an offer of DHCP in pieces",
            to(IP, fragment(A, B, UDP, 0x2000, &udp(67, 68, &[2; 304]))),
        ),
        ("a DHCP request", dhcp(1, MessageType::Discover, &[])),
        (
            "a DHCP request to a neighbour",
            to(IP, ip(A, B, UDP, &udp(68, 67, &[1; 300]))),
        ),
        ("an ICMP redirect", to(IP, ip(A, B, ICMP, &icmp(5, &[0; 32])))),
        (
            "a router's advertisement",
            to(IP6, ip6(own6, ALL_NODES, ICMP6, &advertisement)),
        ),
        (
            "a router's advertisement behind options for the destination",
            to(IP6, ip6(own6, ALL_NODES, 60, &hidden(ICMP6, &advertisement))),
        ),
        (
            "a router's advertisement behind options for each hop",
            to(IP6, ip6(own6, ALL_NODES, 0, &hidden(ICMP6, &advertisement))),
        ),
        (
            "a router's advertisement in one piece of many",
            to(IP6, ip6(own6, ALL_NODES, 44, &piece(ICMP6, 0, &advertisement))),
        ),
        (
            "a router's advertisement behind options in pieces",
            to(IP6, ip6(own6, ALL_NODES, 44, &piece(60, 1, &hidden(ICMP6, &[])))),
        ),
        (
            "an IPv6 redirect",
            to(IP6, ip6(own6, other6, ICMP6, &icmp6(own6, other6, 137, &[0; 36]))),
        ),
        (
            "a foreign IPv6 address",
            to(IP6, ip6("fd00::9".parse().unwrap(), other6, UDP, &datagram())),
        ),
        (
            "a neighbour's IPv6 address",
            to(IP6, ip6(other6, own6, UDP, &datagram())),
        ),
        (
            "a neighbour's advertisement of another's address",
            to(
                IP6,
                ip6(
                    own6,
                    ALL_NODES,
                    ICMP6,
                    &neighbour_advertisement(own6, ALL_NODES, other6, own),
                ),
            ),
        ),
        (
            "an advertisement of another's Ethernet address",
            to(
                IP6,
                ip6(
                    own6,
                    ALL_NODES,
                    ICMP6,
                    &neighbour_advertisement(own6, ALL_NODES, own6, other),
                ),
            ),
        ),
        (
            "a question that names another's Ethernet address",
            to(
                IP6,
                ip6(
                    own6,
                    other6,
                    ICMP6,
                    &neighbour_solicitation(own6, other6, other6, Some(other)),
                ),
            ),
        ),
        (
            "the question whether anybody has a neighbour's IPv6 address",
            to(
                IP6,
                ip6(
                    Ipv6Addr::UNSPECIFIED,
                    ALL_NODES,
                    ICMP6,
                    &neighbour_solicitation(Ipv6Addr::UNSPECIFIED, ALL_NODES, other6, None),
                ),
            ),
        ),
        (
            "an answer of DHCPv6",
            to(IP6, ip6(own6, other6, UDP, &udp(547, 546, &[7; 40]))),
        ),
        ("a tag", tagged(&honest, 0x8100, 5)),
        ("a tag of priority", tagged(&honest, 0x8100, 0xe000)),
        ("a provider's tag", tagged(&honest, 0x88a8, 5)),
        ("two tags", tagged(&tagged(&honest, 0x8100, 6), 0x88a8, 5)),
        ("IPX", to(0x8137, vec![0; 60])),
        ("PPPoE", to(0x8863, vec![0; 60])),
        ("EAPOL", to(0x888e, vec![0; 60])),
        ("a frame of IEEE 802.3", to(60, vec![0x42; 60])),
        (
            "a spanning tree",
            ethernet(Mac([1, 0x80, 0xc2, 0, 0, 0]), own, 60, &[0x42; 60]),
        ),
    ]
}

/// What guest 1 may send to guest 2, one of each kind that could be forged.
fn honest() -> Vec<(&'static str, Vec<u8>)> {
    let (own, own6) = (mac(1), link_local(mac(1)));
    let (other, other6) = (mac(2), link_local(mac(2)));
    let to = |ethertype, payload: Vec<u8>| ethernet(other, own, ethertype, &payload);
    vec![
        ("a datagram", to(IP, ip(A, B, UDP, &udp(5000, 5001, b"hello")))),
        ("a later fragment", to(IP, fragment(A, B, UDP, 5, &[0; 32]))),
        ("a ping", to(IP, ip(A, B, ICMP, &icmp(8, &[0, 1, 0, 1])))),
        ("ARP", to(ARP, arp(2, (own, A), (other, B)))),
        (
            "ARP of itself",
            ethernet(EVERYBODY, own, ARP, &arp(1, (own, A), (NOBODY, A))),
        ),
        (
            "a probe",
            ethernet(EVERYBODY, own, ARP, &arp(1, (own, ANYBODY), (NOBODY, A))),
        ),
        (
            "IPv6",
            to(IP6, ip6(own6, other6, UDP, &udp(5000, 5001, b"hello"))),
        ),
        (
            "an advertisement",
            to(
                IP6,
                ip6(
                    own6,
                    ALL_NODES,
                    ICMP6,
                    &neighbour_advertisement(own6, ALL_NODES, own6, own),
                ),
            ),
        ),
        (
            "a question",
            to(
                IP6,
                ip6(
                    own6,
                    other6,
                    ICMP6,
                    &neighbour_solicitation(own6, other6, other6, Some(own)),
                ),
            ),
        ),
        (
            "the question whether anybody has its own",
            to(
                IP6,
                ip6(
                    Ipv6Addr::UNSPECIFIED,
                    ALL_NODES,
                    ICMP6,
                    &neighbour_solicitation(Ipv6Addr::UNSPECIFIED, ALL_NODES, own6, None),
                ),
            ),
        ),
    ]
}

#[test]
fn what_a_guest_has_no_right_to_send_reaches_neither_its_neighbour_nor_the_host() {
    let host = Namespace::new();
    drive(&host, plan(), async |_| {
        let (one, two) = (Guest::plug(&host, &tap(1)), Guest::plug(&host, &tap(2)));
        let ear = Ear::on(&host, &bridge("one"));
        one.send(&marker(1, A));
        two.until(&marker(1, A));
        ear.until(&marker(1, A));
        for (what, frame) in honest() {
            one.send(&frame);
            // Broadcasts of the host's, such as its own questions, may come between.
            two.until(&frame);
            eprintln!("passes: {what}");
        }
        one.send(&marker(1, A));
        ear.until(&marker(1, A));
        let from_one = |frames: Vec<Vec<u8>>| {
            let host = bridge_mac(&host, "one");
            frames
                .into_iter()
                .filter(|frame| frame[6..12] != host.0)
                .collect::<Vec<_>>()
        };
        two.until(&marker(1, A));
        for (what, frame) in forged() {
            one.send(&frame);
            one.send(&marker(1, A));
            assert_eq!(
                from_one(two.until(&marker(1, A))),
                Vec::<Vec<u8>>::new(),
                "{what}, at the neighbour"
            );
            let heard = from_one(ear.until(&marker(1, A)));
            // DHCP is the host's.
            let dhcp = heard.len() == 1 && what == "a DHCP request";
            assert!(heard.is_empty() || dhcp, "{what}, at the host: {heard:02x?}");
        }
        // The same without filters: the frames are such as would have come.
        host.unfiltered();
        for (what, frame) in forged() {
            if frame[..5] == [1, 0x80, 0xc2, 0, 0] {
                continue;
            }
            // What took its neighbour's Ethernet address has drawn its neighbour's frames to itself.
            two.send(&marker(2, B));
            one.until(&marker(2, B));
            one.send(&frame);
            one.send(&marker(1, A));
            let seen = from_one(two.until(&marker(1, A)));
            assert_eq!(seen.len(), 1, "{what} came without filters");
        }
    });
}

#[test]
fn a_guest_reaches_nothing_of_the_host_but_what_is_for_guests() {
    let host = Namespace::new();
    host.run("ip link add out0 type bridge");
    host.run("ip addr add 192.168.77.1/24 dev out0");
    host.run("ip link set out0 up");
    drive(&host, plan(), async |_| {
        let guests = [(1, A, "one"), (3, C, "two")]
            .map(|(n, own, network)| (n, own, Guest::plug(&host, &tap(n)), bridge_mac(&host, network)));
        let ear = host.enter(|| UdpSocket::bind("0.0.0.0:9999").unwrap());
        ear.set_read_timeout(Some(LIMIT)).unwrap();
        let here = host.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
        let heard = || {
            here.send_to(b"end", "127.0.0.1:9999").unwrap();
            let mut from = Vec::new();
            loop {
                let mut buffer = [0; 64];
                let (length, sender) = ear.recv_from(&mut buffer).unwrap();
                if &buffer[..length] == b"end" {
                    return from;
                }
                from.push(sender.ip());
            }
        };
        let attempts = || {
            let mut sent = 0;
            for (n, own, guest, bridge_mac) in &guests {
                for to in [
                    "192.168.77.1",
                    "10.2.0.1",
                    "169.254.169.254",
                    "127.0.0.1",
                    "255.255.255.255",
                ] {
                    for mac_to in [*bridge_mac, EVERYBODY, GROUP, GROUP_LLDP] {
                        let packet = ip(*own, to.parse().unwrap(), UDP, &udp(5000, 9999, b"hello, host"));
                        guest.send(&ethernet(mac_to, mac(*n), IP, &packet));
                        sent += 1;
                    }
                }
            }
            sent
        };
        assert_eq!(attempts(), 40);
        assert_eq!(heard(), Vec::<std::net::IpAddr>::new());
        // Nor does the host answer for addresses that are not on the bridge.
        let (n, own, guest, host_mac) = &guests[0];
        let ask = |to: &str| arp(1, (mac(*n), *own), (NOBODY, to.parse().unwrap()));
        guest.send(&ethernet(EVERYBODY, mac(*n), ARP, &ask("192.168.77.1")));
        guest.send(&ethernet(EVERYBODY, mac(*n), ARP, &ask("169.254.169.254")));
        let reply = ethernet(
            mac(*n),
            *host_mac,
            ARP,
            &arp(2, (*host_mac, METADATA), (mac(*n), *own)),
        );
        assert_eq!(guest.until(&reply), Vec::<Vec<u8>>::new());
        host.unfiltered();
        attempts();
        let heard = heard();
        assert!(heard.len() >= 6, "without filters the host hears them: {heard:?}");
    });
}

#[test]
fn guests_of_two_clusters_do_not_hear_each_other() {
    let host = Namespace::new();
    let outside = Namespace::new();
    host.run(&format!(
        "ip link add out0 type veth peer name eth0 netns {}",
        outside.pid()
    ));
    host.run("ip addr add 192.168.88.1/24 dev out0");
    host.run("ip link set out0 up");
    outside.run("ip addr add 192.168.88.2/24 dev eth0");
    outside.run("ip link set eth0 up");
    outside.run("ip route add 10.0.0.0/8 via 192.168.88.1");
    drive(&host, plan(), async |_| {
        // The worst that a host can be: it passes on everything, whatever the driver has set.
        host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.forwarding=1");
        let machines = [(1, A, "10.1.0.0/24"), (3, C, "10.2.0.0/24")].map(|(n, addr, _)| {
            let machine = Machine::plug(&host, &tap(n), mac(n));
            machine.inside.run(&format!("ip addr add {addr}/24 dev eth0"));
            machine
        });
        // Guest 1 takes the host for its router, though nobody told it to.
        machines[0]
            .inside
            .run("ip route add default via 169.254.169.254 dev eth0 onlink");
        machines[1].inside.run("ip route add default via 10.2.0.1");
        let [one, three] = &machines;
        let reaches = |from: &Namespace, to: &str| {
            let output = from.command(&format!("ping -c 1 -W 1 {to}")).output().unwrap();
            output.status.success()
        };
        assert!(reaches(&three.inside, "192.168.88.2"), "its network leads there");
        assert!(reaches(&outside, "10.2.0.2"), "and back");
        assert!(reaches(&three.inside, "10.2.0.1"));
        assert!(!reaches(&one.inside, "192.168.88.2"), "a network that is cut off");
        assert!(!reaches(&outside, "10.1.0.2"));
        assert!(!reaches(&one.inside, "10.2.0.2"), "another cluster");
        assert!(!reaches(&three.inside, "10.1.0.2"));
        assert!(
            !reaches(&three.inside, "192.168.88.1"),
            "the host's address elsewhere"
        );
        assert!(!reaches(&one.inside, "10.2.0.1"));
        host.unfiltered();
        assert!(
            reaches(&one.inside, "192.168.88.2"),
            "without filters it would be reached"
        );
        assert!(reaches(&one.inside, "10.2.0.2"));
    });
}
