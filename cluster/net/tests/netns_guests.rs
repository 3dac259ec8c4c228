//! Guests on real TAPs, in a namespace of their own: what an honest one gets, and what a hostile one does not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;

use aerie_cluster_net::{METADATA, UserData, link_local};
use aerie_cluster_node::Mac;
use aerie_config::{Bundle, Ec2, SourceConfig, Spec, find};
use common::frames::*;
use common::guest::{Ear, Guest, LIMIT, Machine};
use common::lies::{A, B, dhcp, forged, honest};
use common::namespace::Namespace;
use common::{bridge, drive, mac, plan, port_id, tap};
use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable as _, Decoder};

const C: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);

fn bridge_mac(host: &Namespace, network: &str) -> Mac {
    let text = host.run(&format!("ip -o link show {}", bridge(network)));
    let text = text.split("link/ether ").nth(1).unwrap();
    Mac::try_from(text.split(' ').next().unwrap().to_owned()).unwrap()
}

/// A broadcast that every guest of the network and the host hear: what was sent before it has come, or never does.
fn marker(n: u128, own: Ipv4Addr) -> Vec<u8> {
    ethernet(EVERYBODY, mac(n), ARP, &arp(1, (mac(n), own), (NOBODY, METADATA)))
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
fn frames_that_no_bridge_passes_take_no_neighbours_address_and_pieces_do_not_reach_the_host() {
    let host = Namespace::new();
    drive(&host, plan(), async |_| {
        let (one, two) = (Guest::plug(&host, &tap(1)), Guest::plug(&host, &tap(2)));
        let ear = Ear::on(&host, &bridge("one"));
        two.send(&marker(2, B));
        one.until(&marker(2, B));
        let piece = fragment(A, METADATA, ICMP, 0x2000, &icmp(8, &[0; 32]));
        for (to, from, payload) in [
            (GROUP_LLDP, mac(2), ip(A, B, UDP, &udp(1, 2, b"mine"))),
            (GROUP_LLDP, mac(99), ip(A, B, UDP, &udp(1, 2, b"one more"))),
            (bridge_mac(&host, "one"), mac(1), piece),
        ] {
            one.send(&ethernet(to, from, IP, &payload));
        }
        one.send(&marker(1, A));
        two.until(&marker(1, A));
        let heard = ear.until(&marker(1, A));
        assert!(heard.iter().all(|frame| frame[6..12] != mac(1).0), "{heard:02x?}");
        let known = host.run(&format!("bridge fdb show br {}", bridge("one")));
        let at = |n: u128| {
            let start = format!("{} dev ", mac(n));
            let lines = known.lines().filter_map(|line| line.strip_prefix(&start));
            let mut places: Vec<_> = lines.filter_map(|line| line.split(' ').next()).collect();
            places.dedup();
            places.join(" ")
        };
        assert_eq!((at(2), at(99)), (tap(2), String::new()), "{known}");
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
