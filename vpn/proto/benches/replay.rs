//! The replay window alone. Nothing outside of the core reaches it; it is built here from the same file.

#[allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "what the core and its tests use of it is not used here"
)]
#[path = "../src/replay.rs"]
mod replay;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use replay::Replay;

/// Counters of one turn.
const TURN: u64 = 8192;
/// Within how many counters those of a turn are out of order: not at all, by a batch, and by as much as batches that
/// take different paths.
const SPANS: [usize; 3] = [1, 64, 4096];

fn accept(c: &mut Criterion) {
    let mut group = c.benchmark_group("replay window");
    group.throughput(Throughput::Elements(TURN));
    for span in SPANS {
        let mut order: Vec<u64> = (0..TURN).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(13);
        order.chunks_mut(span).for_each(|part| part.shuffle(&mut rng));
        let mut replay = Replay::new();
        let mut base = 0;
        group.bench_function(BenchmarkId::new("new, out of order within", span), |b| {
            b.iter(|| {
                // As a session asks: before it opens a packet and after.
                let accepted = order
                    .iter()
                    .map(|at| black_box(base + at))
                    .filter(|counter| replay.may_accept(*counter) && replay.accept(*counter))
                    .count() as u64;
                assert_eq!(accepted, TURN);
                base += TURN;
            });
        });
    }
    let mut replay = Replay::new();
    assert!((0..TURN).all(|counter| replay.accept(counter)));
    group.bench_function("seen before", |b| {
        b.iter(|| {
            let refused = (0..TURN).filter(|counter| !replay.may_accept(black_box(*counter)));
            assert_eq!(refused.count() as u64, TURN);
        });
    });
}

criterion_group!(benches, accept);
criterion_main!(benches);
