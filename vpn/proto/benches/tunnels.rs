//! The tunnel's core through its own calls: sealing and opening, the look-up of a packet's peer, and the timers.
//!
//! Every session is made by a handshake, and every way by probes, as on a network. Time stands still while something is
//! measured, so that no session grows old.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

mod grid;

use std::hint::black_box;

use aerie_vpn_proto::{Suite, Transmits};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use grid::{Grid, hub_outside};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Packets that the kernel hands over at once, and the length of each: what fills one send with UDP_SEGMENT, and as
/// many small ones as it has segments at most.
const BATCHES: [(usize, usize); 2] = [(45, 1420), (64, 64)];
const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];
/// Peers with a session.
const PEERS: [u32; 2] = [10, 1000];
/// Peers that are known; the last is as many as the core takes.
const KNOWN: [u32; 3] = [10, 1000, 4096];
/// Of that many peers one packet each is sent or looked up in one turn.
const TURN: usize = 64;

fn seal(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal");
    for suite in SUITES {
        let mut grid = Grid::new(1, suite);
        let now = grid.moment();
        for (count, len) in BATCHES {
            let packet = grid.packet(0, len);
            let mut out = Transmits::new();
            group.throughput(Throughput::Bytes((count * len) as u64));
            group.bench_function(
                BenchmarkId::new(suite.to_string(), format!("{count}x{len}")),
                |b| {
                    b.iter(|| {
                        out.clear();
                        for _ in 0..count {
                            grid.hub.core.handle_inner(black_box(&packet), now, &mut out);
                        }
                        assert_eq!(out.len(), count);
                    });
                },
            );
        }
    }
}

fn open(c: &mut Criterion) {
    let mut group = c.benchmark_group("open");
    for suite in SUITES {
        let mut grid = Grid::new(1, suite);
        let now = grid.moment();
        for (count, len) in BATCHES {
            let packet = grid.packet(0, len);
            let Grid { hub, peers, .. } = &mut grid;
            let mut out = Transmits::new();
            let mut memory = Vec::new();
            group.throughput(Throughput::Bytes((count * len) as u64));
            group.bench_function(
                BenchmarkId::new(suite.to_string(), format!("{count}x{len}")),
                |b| {
                    // Each datagram opens only once: every turn is given new ones.
                    let sealed = || {
                        out.clear();
                        memory.clear();
                        for _ in 0..count {
                            hub.core.handle_inner(&packet, now, &mut out);
                        }
                        memory.extend(out.iter().flat_map(|(_, datagram)| datagram));
                        std::mem::take(&mut memory)
                    };
                    let stride = len + aerie_vpn_proto::DATA_OVERHEAD;
                    b.iter_batched(
                        sealed,
                        |mut datagrams| {
                            let core = &mut peers[0].core;
                            let opened = datagrams
                                .chunks_mut(stride)
                                .filter_map(|datagram| core.handle_datagram(hub_outside(), datagram, now))
                                .count();
                            assert_eq!(opened, count);
                            datagrams
                        },
                        BatchSize::PerIteration,
                    );
                },
            );
        }
    }
}

/// Sealing to one peer after the other: what a core with many busy peers costs beyond one with few.
fn seal_to_many(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal to many, 64 bytes");
    group.throughput(Throughput::Elements(TURN as u64));
    for count in PEERS {
        let mut grid = Grid::new(count, Suite::Aes256Gcm);
        let now = grid.moment();
        let packets = shuffled((0..count as usize).map(|peer| grid.packet(peer, 64)));
        let mut next = packets.iter().cycle();
        let mut out = Transmits::new();
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| {
                out.clear();
                for packet in next.by_ref().take(TURN) {
                    grid.hub.core.handle_inner(black_box(packet), now, &mut out);
                }
                assert_eq!(out.len(), TURN);
            });
        });
    }
}

/// From a packet's destination to the length that fits its peer's path: the look-ups that precede sealing, alone.
fn look_up(c: &mut Criterion) {
    let mut group = c.benchmark_group("look up");
    group.throughput(Throughput::Elements(TURN as u64));
    for count in KNOWN {
        let (hub, packets) = Grid::of_strangers(count);
        let packets = shuffled(packets.into_iter());
        let mut next = packets.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| {
                next.by_ref()
                    .take(TURN)
                    .map(|packet| hub.room_for(black_box(packet)))
                    .sum::<usize>()
            });
        });
    }
}

/// The timers of a core none of whose peers has anything to do: the cost of being woken for one of them.
fn handle_timeout(c: &mut Criterion) {
    let mut group = c.benchmark_group("handle_timeout, nothing due");
    for count in PEERS {
        let mut grid = Grid::new(count, Suite::Aes256Gcm);
        grid.settle();
        let now = grid.moment();
        let core = &mut grid.hub.core;
        assert_eq!(
            core.peers(now).iter().filter(|peer| peer.active).count(),
            count as usize
        );
        group.throughput(Throughput::Elements(count.into()));
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| core.handle_timeout(black_box(now)));
        });
        let mut out = Transmits::new();
        core.poll_transmits(&mut out);
        assert!(out.is_empty(), "something was due");
    }
}

/// In an order that no map has.
fn shuffled(packets: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut packets: Vec<_> = packets.collect();
    packets.shuffle(&mut ChaCha8Rng::seed_from_u64(11));
    packets
}

criterion_group!(benches, seal, open, seal_to_many, look_up, handle_timeout);
criterion_main!(benches);
