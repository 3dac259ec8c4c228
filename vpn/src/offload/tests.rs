//! Splitting and putting together, against each other and against a slow reference.

use proptest::prelude::*;

use super::checksum::slow;
use super::coalesce::Coalescer;
use super::header::{Header, Kind, LEN};
use super::layout::{ACK, CWR, FIN, Layout, PSH, TCP, UDP};
use super::split::{Malformed, split};

/// A packet's fields, for tests.
#[derive(Debug, Clone)]
struct Flow {
    v4: bool,
    protocol: u8,
    port: u16,
    sequence: u32,
    flags: u8,
    /// Words of TCP options.
    options: u8,
    /// IPv6 headers of options before the transport, of eight bytes each.
    extensions: u8,
}

const PLAIN: Flow = Flow {
    v4: true,
    protocol: TCP,
    port: 1000,
    sequence: 7,
    flags: ACK,
    options: 3,
    extensions: 0,
};

const PLAIN6: Flow = Flow { v4: false, ..PLAIN };

impl Flow {
    fn headers(&self) -> usize {
        let ip = if self.v4 {
            20
        } else {
            40 + 8 * usize::from(self.extensions)
        };
        let transport = if self.protocol == TCP {
            20 + 4 * usize::from(self.options)
        } else {
            8
        };
        ip + transport
    }

    /// A complete packet, its checksums made by the slow reference.
    fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let len = self.headers() + payload.len();
        let mut packet;
        if self.v4 {
            packet = vec![0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, self.protocol, 0, 0];
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet.extend([100, 96, 0, 1, 100, 96, 0, 2]);
            let sum = slow(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            packet = vec![0x60, 0, 0, 0, 0, 0, self.protocol, 64];
            packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
            packet.extend((0..32u8).map(|n| n.wrapping_mul(37)));
            for n in 0..self.extensions {
                let protocol = std::mem::replace(&mut packet[6], DESTINATION_OPTIONS);
                let next = if n == 0 { protocol } else { DESTINATION_OPTIONS };
                // One option that pads.
                packet.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
            }
        }
        let at = packet.len();
        packet.extend(self.port.to_be_bytes());
        packet.extend(5001u16.to_be_bytes());
        if self.protocol == TCP {
            packet.extend(self.sequence.to_be_bytes());
            packet.extend([1, 2, 3, 4, (5 + self.options) << 4, self.flags, 5, 6, 0, 0, 0, 0]);
            packet.extend((0..self.options * 4).map(|n| n ^ 0x5a));
        } else {
            packet.extend(((len - at) as u16).to_be_bytes());
            packet.extend([0, 0]);
        }
        packet.extend(payload);
        let place = at + if self.protocol == TCP { 16 } else { 6 };
        let sum = slow_transport(&packet, at, self.v4, self.protocol);
        packet[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn kind(&self) -> Kind {
        match (self.protocol, self.v4) {
            (TCP, true) => Kind::Tcp4,
            (TCP, false) => Kind::Tcp6,
            _ => Kind::Udp,
        }
    }
}

const DESTINATION_OPTIONS: u8 = 60;

/// The transport's checksum by the reference; zero for a packet that has the right one.
fn slow_transport(packet: &[u8], at: usize, v4: bool, protocol: u8) -> u16 {
    let mut bytes = packet[if v4 { 12..20 } else { 8..40 }].to_vec();
    bytes.extend([0, protocol]);
    bytes.extend(((packet.len() - at) as u16).to_be_bytes());
    bytes.extend(&packet[at..]);
    slow(&bytes)
}

fn is_right(packet: &[u8]) -> bool {
    let layout = Layout::of(packet).unwrap();
    let ip = !layout.v4 || slow(&packet[..layout.transport]) == 0;
    ip && layout.lengths_hold(packet)
        && slow_transport(packet, layout.transport, layout.v4, layout.protocol) == 0
}

fn split_all(header: &Header, packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut packets = Vec::new();
    split(header, &mut packet.to_vec(), mtu, |packet| {
        packets.push(packet.to_vec())
    })?;
    Ok(packets)
}

/// The frames that a batch of packets becomes.
fn coalesce(packets: &[Vec<u8>]) -> Vec<(Header, Vec<u8>)> {
    let mut coalescer = Coalescer::new(true, true);
    let mut memory = packets.concat();
    let mut at = 0;
    for packet in packets {
        coalescer.push(&memory, at..at + packet.len());
        at += packet.len();
    }
    let mut frames = Vec::new();
    coalescer.flush(&mut memory, |parts| {
        let mut frame: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        let (header, packet) = Header::parse(&mut frame).unwrap();
        frames.push((header, packet.to_vec()));
    });
    frames
}

fn segments(flow: &Flow, segment: u16) -> Header {
    Header {
        segments: Some((flow.kind(), segment)),
        ..Header::default()
    }
}

fn any_flow() -> impl Strategy<Value = Flow> {
    (any::<bool>(), any::<bool>(), 1000..1003u16, any::<u32>(), 0..11u8).prop_map(
        |(v4, tcp, port, sequence, options)| Flow {
            extensions: 0,
            v4,
            protocol: if tcp { TCP } else { UDP },
            port,
            sequence,
            flags: ACK,
            options,
        },
    )
}

proptest! {
    /// Each packet of a split super-packet is right by itself; together they become the same super-packet again.
    #[test]
    fn what_is_split_becomes_one_again(flow in any_flow(), payload in prop::collection::vec(any::<u8>(), 1..9000), push: bool) {
        let flow = Flow { flags: ACK | if push { PSH } else { 0 }, ..flow };
        let segment = 300;
        let whole = flow.packet(&payload);
        let packets = split_all(&segments(&flow, segment), &whole, 1420).unwrap();
        prop_assert_eq!(packets.len(), payload.len().div_ceil(segment.into()));
        for packet in &packets {
            prop_assert!(is_right(packet));
        }
        let frames = coalesce(&packets);
        prop_assert_eq!(frames.len(), 1);
        let (header, packet) = &frames[0];
        prop_assert_eq!(header.segments, (packets.len() > 1).then_some((flow.kind(), segment)));
        let again = split_all(header, packet, 1420).unwrap();
        prop_assert_eq!(again, packets);
        // But for the checksum, which is left to the kernel.
        let place = Layout::of(&whole).map(|layout| layout.transport + layout.checksum_offset()).unwrap();
        prop_assert_eq!(&packet[..place], &whole[..place]);
        prop_assert_eq!(&packet[place + 2..], &whole[place + 2..]);
    }

    /// Whatever order, loss or damage packets of several flows come with: each flow's packets come out as they went
    /// in, in their order.
    #[test]
    fn no_packet_is_lost_or_overtaken_within_its_flow(
        picks in prop::collection::vec((0..3usize, any::<bool>(), 0..6u32, 1..5usize, 0..20u8), 0..120),
    ) {
        let mut packets = Vec::new();
        for (n, (port, v4, sequence, words, damage)) in picks.iter().enumerate() {
            let flow = Flow {
                v4: *v4,
                extensions: u8::from(*damage == 4),
                port: 1000 + *port as u16,
                protocol: if *port == 2 { UDP } else { TCP },
                sequence: 100 * sequence,
                flags: if *damage == 1 { ACK | PSH } else { ACK },
                ..PLAIN
            };
            let mut packet = flow.packet(&vec![n as u8; 25 * words]);
            match damage {
                2 => *packet.last_mut().unwrap() ^= 1,
                // Time to live, hop limit.
                3 => packet[if *v4 { 8 } else { 7 }] -= 1,
                // Flow label.
                5 if !*v4 => packet[3] ^= 1,
                _ => {}
            }
            packets.push(packet);
        }
        let mut got: Vec<Vec<u8>> = Vec::new();
        for (header, packet) in coalesce(&packets) {
            got.extend(split_all(&header, &packet, 1420).unwrap());
        }
        let of_flow = |packets: &[Vec<u8>], v4: bool, port: u16| -> Vec<Vec<u8>> {
            let port = port.to_be_bytes();
            let is_of = |packet: &&Vec<u8>| {
                let layout = Layout::of(packet).unwrap();
                layout.v4 == v4 && packet[layout.transport..layout.transport + 2] == port
            };
            packets.iter().filter(is_of).map(|packet| scrub(packet)).collect()
        };
        prop_assert_eq!(got.len(), packets.len());
        for (v4, port) in (1000..1003).flat_map(|port| [(true, port), (false, port)]) {
            prop_assert_eq!(of_flow(&got, v4, port), of_flow(&packets, v4, port));
        }
    }

    /// The kernel's header and packet may say what they like.
    #[test]
    fn a_malformed_frame_is_refused_or_becomes_packets_that_fit(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        head in any::<[u8; 4]>(),
        kind in 0..8u8,
        shape in 0..3u8,
    ) {
        let mut frame = vec![head[0] & 1, kind, head[1], 0, head[2], 0, head[3] % 64, 0, head[1] % 32, 0];
        frame.extend(match shape { 0 => Vec::new(), 1 => vec![0x45, 0, 0, 0, 0, 0, 0, 0, 9, 6], _ => vec![0x60, 0, 0, 0, 0, 0, [17, 6, 0, 60][usize::from(head[2] % 4)], 3] });
        frame.extend(&bytes);
        let len = frame.len();
        if let Some((header, packet)) = Header::parse(&mut frame) {
            let mut total = 0;
            let _ = split(&header, packet, 600, |packet| {
                total += 1;
                assert!(packet.len() <= len - LEN);
            });
            prop_assert!(total <= 65_536);
        }
    }

    /// What a peer sends inside the tunnel may be anything.
    #[test]
    fn a_malformed_packet_is_handed_on_as_it_came(
        tails in prop::collection::vec((0..4u8, prop::collection::vec(any::<u8>(), 0..60)), 0..8),
    ) {
        let packets: Vec<Vec<u8>> = tails.into_iter().map(|(shape, tail)| {
            let mut packet = match shape { 0 => Vec::new(), 1 => vec![0x45], 2 => vec![0x60], _ => vec![0x45, 0, 0, 40, 0, 0, 0, 0, 9, 6] };
            packet.extend(tail);
            packet
        }).collect();
        let frames = coalesce(&packets);
        prop_assert_eq!(frames.into_iter().map(|(_, packet)| packet).collect::<Vec<_>>(), packets);
    }
}

/// IPv4's identification is made anew when a super-packet is split; so is its checksum.
fn scrub(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

#[test]
fn a_segment_longer_than_the_mtu_is_cut_to_fit() {
    for (flow, count) in [(PLAIN, 4), (PLAIN6, 4)] {
        let whole = flow.packet(&[7; 5000]);
        let packets = split_all(&segments(&flow, 8900), &whole, 1420).unwrap();
        assert!(
            packets
                .iter()
                .all(|packet| packet.len() <= 1420 && is_right(packet))
        );
        let joined: usize = packets.iter().map(|packet| packet.len() - flow.headers()).sum();
        assert_eq!((packets.len(), joined), (count, 5000));
    }
}

#[test]
fn the_end_of_a_stream_is_said_in_the_last_segment_and_the_window_in_the_first() {
    for plain in [PLAIN, PLAIN6] {
        let flow = Flow {
            flags: ACK | PSH | FIN | CWR,
            ..plain
        };
        let packets = split_all(&segments(&flow, 100), &flow.packet(&[7; 250]), 1420).unwrap();
        let place = if flow.v4 { 33 } else { 53 };
        let flags: Vec<u8> = packets.iter().map(|packet| packet[place]).collect();
        assert_eq!(flags, [ACK | CWR, ACK, ACK | PSH | FIN]);
    }
}

#[test]
fn a_super_packet_with_options_before_its_transport_is_split_and_stays_so() {
    for protocol in [TCP, UDP] {
        let flow = Flow {
            extensions: 2,
            protocol,
            ..PLAIN6
        };
        let packets = split_all(&segments(&flow, 100), &flow.packet(&[7; 250]), 1420).unwrap();
        let whole: Vec<_> = [(0, 100), (100, 100), (200, 50)]
            .map(|(at, len)| {
                let sequence = flow.sequence + at;
                Flow {
                    sequence,
                    ..flow.clone()
                }
                .packet(&vec![7; len])
            })
            .to_vec();
        assert_eq!(packets, whole);
        assert!(packets.iter().all(|packet| is_right(packet)));
        let frames: Vec<_> = coalesce(&packets).into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(frames, packets, "options may be of each packet alone");
    }
    let endless = Flow {
        extensions: 30,
        ..PLAIN6
    };
    assert_eq!(
        split_all(&segments(&endless, 100), &endless.packet(&[7; 250]), 1420),
        Err(Malformed)
    );
}

#[test]
fn a_checksum_that_the_kernel_left_is_made() {
    for (protocol, plain) in [(TCP, PLAIN), (UDP, PLAIN), (TCP, PLAIN6), (UDP, PLAIN6)] {
        let flow = Flow { protocol, ..plain };
        let packet = flow.packet(b"payload");
        let mut left = packet.clone();
        let layout = Layout::of(&packet).unwrap();
        let place = layout.transport + layout.checksum_offset();
        let sum = super::checksum::fold(layout.pseudo_sum(&packet, packet.len()));
        left[place..place + 2].copy_from_slice(&super::checksum::to_bytes(sum));
        let header = Header {
            checksum: Some((layout.transport as u16, layout.checksum_offset() as u16)),
            ..Header::default()
        };
        assert_eq!(split_all(&header, &left, 1420).unwrap(), [packet]);
        let outside = Header {
            checksum: Some((60_000, 16)),
            ..Header::default()
        };
        assert_eq!(split_all(&outside, &left, 1420), Err(Malformed));
    }
}

#[test]
fn a_super_packet_of_the_other_family_than_its_header_says_is_refused() {
    for (flow, other) in [(PLAIN, PLAIN6), (PLAIN6, PLAIN)] {
        assert_eq!(
            split_all(&segments(&flow, 100), &other.packet(&[7; 250]), 1420),
            Err(Malformed)
        );
    }
}

#[test]
fn ipv6_packets_that_differ_before_their_transport_stay_apart() {
    for protocol in [TCP, UDP] {
        let flow = Flow { protocol, ..PLAIN6 };
        let first = flow.packet(&[1; 100]);
        let next = Flow {
            sequence: flow.sequence + 100,
            ..flow.clone()
        };
        assert_eq!(coalesce(&[first.clone(), next.packet(&[2; 100])]).len(), 1);
        for (byte, why) in [
            (1, "traffic class"),
            (3, "flow label"),
            (7, "hop limit"),
            (23, "source"),
            (39, "destination"),
        ] {
            let mut other = next.packet(&[2; 100]);
            other[byte] ^= 1;
            let place = 40 + if protocol == TCP { 16 } else { 6 };
            other[place..place + 2].fill(0);
            let sum = slow_transport(&other, 40, false, protocol);
            other[place..place + 2].copy_from_slice(&sum.to_be_bytes());
            assert!(is_right(&other));
            assert_eq!(coalesce(&[first.clone(), other]).len(), 2, "{why}");
        }
        let four = Flow { v4: true, ..next }.packet(&[2; 100]);
        assert_eq!(coalesce(&[first, four]).len(), 2, "family");
    }
}

/// Without a checksum IPv6 has none over the addresses either: such a datagram goes on as it came, and alone.
#[test]
fn an_ipv6_datagram_without_a_checksum_stays_alone() {
    let flow = Flow {
        protocol: UDP,
        ..PLAIN6
    };
    let packets = [1, 2].map(|n| {
        let mut packet = flow.packet(&[n; 100]);
        packet[46..48].fill(0);
        packet
    });
    let frames: Vec<_> = coalesce(&packets).into_iter().map(|(_, packet)| packet).collect();
    assert_eq!(frames, packets);
}

#[test]
fn what_differs_stays_apart() {
    let first = PLAIN.packet(&[1; 100]);
    let next = Flow {
        sequence: PLAIN.sequence + 100,
        ..PLAIN
    };
    assert_eq!(coalesce(&[first.clone(), next.packet(&[2; 100])]).len(), 1);
    let syn = Flow {
        flags: 0x12,
        ..next.clone()
    };
    let options = Flow {
        options: 2,
        ..next.clone()
    };
    let other = Flow {
        port: 9,
        ..next.clone()
    };
    let gap = Flow {
        sequence: 1,
        ..next.clone()
    };
    for (why, flow) in [("SYN", syn), ("options", options), ("port", other), ("gap", gap)] {
        assert_eq!(
            coalesce(&[first.clone(), flow.packet(&[2; 100])]).len(),
            2,
            "{why}"
        );
    }
    assert_eq!(
        coalesce(&[first.clone(), next.packet(&[2; 101])]).len(),
        2,
        "longer"
    );
    assert_eq!(coalesce(&[first.clone(), next.packet(&[])]).len(), 2, "no data");
    let mut damaged = next.packet(&[2; 100]);
    damaged[60] ^= 1;
    assert_eq!(coalesce(&[first.clone(), damaged]).len(), 2, "damaged");
    let mut fragment = next.packet(&[2; 100]);
    fragment[6] = 0x20;
    assert_eq!(coalesce(&[first, fragment]).len(), 2, "fragment");
}

#[test]
fn nothing_overtakes_a_fragment() {
    for plain in [PLAIN, PLAIN6] {
        let flow = Flow {
            protocol: UDP,
            ..plain
        };
        let mut fragment = flow.packet(&[2; 100]);
        if flow.v4 {
            fragment[6] = 0x20;
        } else {
            fragment[6] = 44;
            fragment.splice(40..40, [UDP, 0, 0, 1, 0, 0, 0, 9]);
        }
        let packets = [flow.packet(&[1; 100]), fragment, flow.packet(&[3; 100])];
        let frames = coalesce(&packets);
        let order: Vec<u8> = frames
            .iter()
            .map(|(_, packet)| packet[packet.len() - 1])
            .collect();
        assert_eq!(order, [1, 2, 3]);
    }
}

#[test]
fn flows_that_alternate_are_put_together_each() {
    let mut packets = Vec::new();
    for n in 0..40u32 {
        for port in [1, 2] {
            let flow = Flow {
                port,
                sequence: n * 100,
                ..PLAIN
            };
            packets.push(flow.packet(&[port as u8; 100]));
        }
    }
    let frames = coalesce(&packets);
    assert_eq!(frames.len(), 2);
    assert!(
        frames
            .iter()
            .all(|(_, packet)| packet.len() == PLAIN.headers() + 4000)
    );
}
