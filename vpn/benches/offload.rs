//! Super-packets: splitting them, and putting packets together. Nothing outside of the driver reaches either; both are
//! built here from the same files.

#[allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "what the driver and its tests use of it is not used here"
)]
#[path = "../src/offload/mod.rs"]
mod offload;

use std::hint::black_box;
use std::ops::Range;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use offload::coalesce::Coalescer;
use offload::header::{Header, Kind};
use offload::layout::{ACK, TCP, UDP};
use offload::split::split;

/// Of the interface.
const MTU: usize = 1420;
/// What the tunnel puts before and behind each packet in the memory of received datagrams.
const BEFORE: usize = 16;
const BEHIND: usize = 16;

/// A super-packet: its transport, how many packets it stands for, and the length of each.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    kind: Kind,
    count: usize,
    len: usize,
}

const CASES: [Case; 3] = [
    Case {
        name: "TCP",
        kind: Kind::Tcp4,
        count: 45,
        len: MTU,
    },
    Case {
        name: "UDP",
        kind: Kind::Udp,
        count: 45,
        len: MTU,
    },
    Case {
        name: "UDP",
        kind: Kind::Udp,
        count: 64,
        len: 64,
    },
];

impl Case {
    fn headers(self) -> usize {
        // TCP with its timestamps, as nearly every segment has them.
        if self.kind == Kind::Tcp4 { 52 } else { 28 }
    }

    fn bytes(self) -> u64 {
        (self.count * self.len) as u64
    }

    fn id(self) -> BenchmarkId {
        BenchmarkId::new(self.name, format!("{}x{}", self.count, self.len))
    }

    /// As the kernel hands it over.
    fn super_packet(self) -> (Header, Vec<u8>) {
        let segment = self.len - self.headers();
        let protocol = if self.kind == Kind::Tcp4 { TCP } else { UDP };
        let total = self.headers() + self.count * segment;
        let mut packet = vec![0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, protocol, 0, 0];
        packet.extend([100, 96, 0, 1, 100, 96, 0, 2, 0x80, 0x01, 0x14, 0x51]);
        if protocol == TCP {
            packet.extend([0, 0, 0, 7, 1, 2, 3, 4, 8 << 4, ACK, 5, 6, 0, 0, 0, 0]);
            packet.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        } else {
            packet.extend([0; 4]);
        }
        assert_eq!(packet.len(), self.headers());
        packet.extend((0..total - self.headers()).map(|at| at as u8));
        let header = Header {
            segments: Some((self.kind, segment as u16)),
            ..Header::default()
        };
        (header, packet)
    }

    /// The packets as they lie in received datagrams, and where.
    fn received(self) -> (Vec<u8>, Vec<Range<usize>>) {
        let (header, mut packet) = self.super_packet();
        let (mut memory, mut places) = (Vec::new(), Vec::new());
        let split = split(&header, &mut packet, MTU, |packet| {
            memory.extend([0; BEFORE]);
            places.push(memory.len()..memory.len() + packet.len());
            memory.extend(packet);
            memory.extend([0; BEHIND]);
        });
        assert_eq!(split, Ok(()));
        (memory, places)
    }
}

fn splitting(c: &mut Criterion) {
    let mut group = c.benchmark_group("split");
    for case in CASES {
        // Splitting leaves the first header where it is: what it has made of the rest is as good as new.
        let (header, mut packet) = case.super_packet();
        group.throughput(Throughput::Bytes(case.bytes()));
        group.bench_function(case.id(), |b| {
            b.iter(|| {
                let mut count = 0;
                let split = split(&header, &mut packet, MTU, |packet| {
                    black_box(packet);
                    count += 1;
                });
                assert_eq!((split, count), (Ok(()), case.count));
            });
        });
    }
}

fn coalescing(c: &mut Criterion) {
    let mut group = c.benchmark_group("coalesce");
    for case in CASES {
        let (mut memory, places) = case.received();
        let first = places[0].start..places[0].start + case.headers();
        let headers = memory[first.clone()].to_vec();
        let mut coalescer = Coalescer::new(true, true);
        group.throughput(Throughput::Bytes(case.bytes()));
        group.bench_function(case.id(), |b| {
            b.iter(|| {
                // The last turn has made them those of the super-packet.
                memory[first.clone()].copy_from_slice(&headers);
                for place in &places {
                    coalescer.push(&memory, black_box(place.clone()));
                }
                let mut frames = 0;
                coalescer.flush(&mut memory, |frame| {
                    black_box(frame);
                    frames += 1;
                });
                assert_eq!(frames, 1, "they were not put together");
            });
        });
    }
}

criterion_group!(benches, splitting, coalescing);
criterion_main!(benches);
