//! The packets of one batch into super-packets, as the kernel's own GRO does it.
//!
//! Consecutive segments of a TCP flow, and consecutive datagrams of a UDP flow, become one packet with one
//! header; its payloads are gathered from where they lie. Other flows may stand between them: each flow keeps its
//! own order, which is all the order there is. A packet joins only if splitting the super-packet would give it
//! back: same addresses, ports, header fields and options; the next sequence number; a checksum that is right.
//! Everything else goes on alone and as it came.

use std::io::IoSlice;
use std::ops::Range;

use super::checksum;
use super::header::{Header, Kind};
use super::layout::{ACK, Layout, PSH, TCP};

/// Packets in one super-packet: as many as the kernel takes of UDP, and enough for 64 KiB of full segments.
const MAX_PIECES: usize = 64;
/// How many runs are looked back to for a packet's flow. Flows beyond that are not put together as well.
const LOOK_BACK: usize = 16;
const MAX_PACKET: usize = 65_535;
const NONE: u32 = u32::MAX;

/// Puts packets together. Its memory is used again from batch to batch.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    tcp: bool,
    udp: bool,
    pieces: Vec<Piece>,
    runs: Vec<Run>,
    /// Runs before this one take no more: a packet came whose flow is not known, such as a fragment, and nothing
    /// may overtake it.
    closed: usize,
}

/// A part of a run, in memory: the first packet as a whole, of the others the payload.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: usize,
    len: usize,
    next: u32,
}

#[derive(Debug)]
struct Run {
    /// Where the first packet begins.
    packet: usize,
    first: u32,
    last: u32,
    count: usize,
    /// Of all pieces.
    len: usize,
    /// What is known of a TCP or UDP packet; others are alone.
    flow: Option<Flow>,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    layout: Layout,
    /// Payload of each packet but the last.
    segment: usize,
    /// TCP: the sequence number that comes next.
    next: u32,
    /// TCP: whether the sender wants it handed on.
    push: bool,
    /// Whether one more may join.
    open: bool,
}

impl Coalescer {
    /// For a device that takes super-packets of these protocols.
    pub(crate) fn new(tcp: bool, udp: bool) -> Self {
        Self {
            tcp,
            udp,
            ..Self::default()
        }
    }

    /// Takes a packet that lies in `memory`.
    pub(crate) fn push(&mut self, memory: &[u8], at: Range<usize>) {
        let Some(packet) = memory.get(at.clone()) else {
            return;
        };
        let flow = self.flow_of(packet);
        if let Some(flow) = &flow
            && let Some(index) = self.latest(memory, packet, &flow.layout)
            && self.runs[index].takes(flow, memory, packet)
        {
            let piece = self.add_piece(at.start + flow.layout.payload, flow.segment);
            let run = &mut self.runs[index];
            self.pieces[run.last as usize].next = piece;
            run.join(flow, piece);
            return;
        }
        let piece = self.add_piece(at.start, at.len());
        let flow = flow.map(|flow| Flow {
            open: flow.open && !flow.push,
            ..flow
        });
        self.runs.push(Run {
            packet: at.start,
            first: piece,
            last: piece,
            count: 1,
            len: at.len(),
            flow,
        });
        if flow.is_none() {
            self.closed = self.runs.len();
        }
    }

    /// Hands each frame for the device to `write`: its header first, then what follows it. Empty afterwards.
    pub(crate) fn flush(&mut self, memory: &mut [u8], mut write: impl FnMut(&[IoSlice<'_>])) {
        for run in &self.runs {
            let head = run.finish(memory).encode();
            let mut frame = [IoSlice::new(&[]); MAX_PIECES + 1];
            frame[0] = IoSlice::new(&head);
            let mut parts = 1;
            let mut next = run.first;
            while let Some(piece) = self.pieces.get(next as usize) {
                frame[parts] = IoSlice::new(&memory[piece.start..piece.start + piece.len]);
                parts += 1;
                next = piece.next;
            }
            write(&frame[..parts]);
        }
        self.runs.clear();
        self.pieces.clear();
        self.closed = 0;
    }

    /// What others have to know of a packet to join it, or it to join them.
    fn flow_of(&self, packet: &[u8]) -> Option<Flow> {
        let layout = Layout::of(packet)?;
        let tcp = layout.protocol == TCP;
        let wanted = if tcp { self.tcp } else { self.udp };
        let segment = packet.len() - layout.payload;
        let flags = if tcp { packet[layout.transport + 13] } else { 0 };
        // An acknowledgement without data stays alone: its receiver counts them.
        let open = wanted
            && segment > 0
            && (!tcp || flags & !PSH == ACK)
            && !layout.has_ip_options()
            && layout.lengths_hold(packet)
            && layout.checksum_holds(packet);
        Some(Flow {
            layout,
            segment,
            next: if tcp {
                sequence(packet, &layout).wrapping_add(segment as u32)
            } else {
                0
            },
            push: flags & PSH != 0,
            open,
        })
    }

    /// The latest run of a packet's flow.
    fn latest(&self, memory: &[u8], packet: &[u8], layout: &Layout) -> Option<usize> {
        let oldest = self.runs.len().saturating_sub(LOOK_BACK).max(self.closed);
        (oldest..self.runs.len()).rev().find(|index| {
            let run = &self.runs[*index];
            run.flow
                .is_some_and(|flow| same_flow(&memory[run.packet..], &flow.layout, packet, layout))
        })
    }

    fn add_piece(&mut self, start: usize, len: usize) -> u32 {
        self.pieces.push(Piece {
            start,
            len,
            next: NONE,
        });
        (self.pieces.len() - 1) as u32
    }
}

impl Run {
    /// Whether a packet of the same flow may join.
    fn takes(&self, new: &Flow, memory: &[u8], packet: &[u8]) -> bool {
        let Some(own) = &self.flow else { return false };
        let first = &memory[self.packet..];
        own.open
            && new.open
            && new.segment <= own.segment
            && self.count < MAX_PIECES
            && self.len + new.segment <= MAX_PACKET
            && own.layout == new.layout
            && same_ip_fields(first, packet, own.layout.v4)
            && (own.layout.protocol != TCP
                || (sequence(packet, &new.layout) == own.next && same_tcp_fields(first, packet, &own.layout)))
    }

    fn join(&mut self, new: &Flow, piece: u32) {
        self.last = piece;
        self.count += 1;
        self.len += new.segment;
        if let Some(own) = &mut self.flow {
            own.next = new.next;
            own.push |= new.push;
            own.open = new.segment == own.segment && !new.push;
        }
    }

    /// Makes the first packet's headers those of the whole run, and the header of its frame.
    fn finish(&self, memory: &mut [u8]) -> Header {
        let Some(flow) = self.flow.filter(|_| self.count > 1) else {
            return Header::default();
        };
        let layout = flow.layout;
        let headers = &mut memory[self.packet..self.packet + layout.payload];
        layout.set_length(headers, self.len);
        if flow.push {
            headers[layout.transport + 13] |= PSH;
        }
        let sum = checksum::fold(layout.pseudo_sum(headers, self.len));
        let place = layout.transport + layout.checksum_offset();
        headers[place..place + 2].copy_from_slice(&checksum::to_bytes(sum));
        let kind = match (layout.protocol, layout.v4) {
            (TCP, true) => Kind::Tcp4,
            (TCP, false) => Kind::Tcp6,
            _ => Kind::Udp,
        };
        Header {
            checksum: Some((layout.transport as u16, layout.checksum_offset() as u16)),
            segments: Some((kind, flow.segment as u16)),
            headers: layout.payload as u16,
        }
    }
}

fn sequence(packet: &[u8], layout: &Layout) -> u32 {
    let at = layout.transport + 4;
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

fn same_flow(a: &[u8], a_layout: &Layout, b: &[u8], b_layout: &Layout) -> bool {
    let addresses = if a_layout.v4 { 12..20 } else { 8..40 };
    let ports = |packet: &[u8], at: usize| [packet[at], packet[at + 1], packet[at + 2], packet[at + 3]];
    a_layout.v4 == b_layout.v4
        && a_layout.protocol == b_layout.protocol
        && ports(a, a_layout.transport) == ports(b, b_layout.transport)
        && a[addresses.clone()] == b[addresses]
}

/// Traffic class, time to live, and whether it may be fragmented.
fn same_ip_fields(a: &[u8], b: &[u8], v4: bool) -> bool {
    if v4 {
        a[1] == b[1] && a[6..9] == b[6..9]
    } else {
        a[..4] == b[..4] && a[7] == b[7]
    }
}

/// Acknowledgement, window and options.
fn same_tcp_fields(a: &[u8], b: &[u8], layout: &Layout) -> bool {
    let at = |from: usize, to: usize| layout.transport + from..layout.transport + to;
    let options = layout.transport + 20..layout.payload;
    a[at(8, 12)] == b[at(8, 12)] && a[at(14, 16)] == b[at(14, 16)] && a[options.clone()] == b[options]
}
