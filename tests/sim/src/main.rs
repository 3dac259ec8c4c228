fn main() {
    let s = aerie_sim::scenario::Scenario::named("mixed").unwrap();
    let first: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    for seed in first..first + 1 {
        let t = std::time::Instant::now();
        let r = s.run(seed, 60);
        println!(
            "{seed} {:x} steps {} {:?} {:?}",
            r.trace,
            r.steps,
            r.simulated,
            t.elapsed()
        );
        for v in &r.violations {
            println!("   {}", &v[..v.len().min(300)]);
        }
        for (_, t, n) in r.tally.named() {
            print!("{t}={n} ");
        }
        println!("{:?} {:?}", r.tally.claim_time(0.5), r.tally.claim_time(0.95));
    }
}
