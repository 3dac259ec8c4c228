//! `cargo run --release -p aerie-model -- [--world NAME] [--weaken NAME] [--json]`

use std::process::ExitCode;

use aerie_model::{Order, Verdict, WEAKENINGS, World, explore, worlds};
use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;

/// Explores small worlds of the register's core for two holders of one address.
#[derive(Debug, Parser)]
struct Options {
    /// Explore this world alone.
    #[arg(long, conflicts_with = "weaken")]
    world: Option<String>,
    /// Leave a rule out, to see that this is found.
    #[arg(long)]
    weaken: Option<String>,
    /// Print one JSON object a world.
    #[arg(long)]
    json: bool,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// States after which a world is left.
    #[arg(long, default_value_t = 2_000_000)]
    most: usize,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let mut safe = true;
    let (mut states, mut unique) = (0, 0);
    for (order, world) in chosen(&options)? {
        if !options.json {
            println!("{}: {}", world.name, world.about);
        }
        let verdict = explore(world, order, options.threads, options.most);
        safe &= verdict.violation.is_none();
        states += verdict.states;
        unique += verdict.unique;
        print(&verdict, options.json);
    }
    if !options.json {
        println!("{states} states, {unique} of them different");
    }
    Ok(ExitCode::from(u8::from(!safe)))
}

fn chosen(options: &Options) -> Result<Vec<(Order, World)>> {
    if let Some(name) = &options.weaken {
        let names = WEAKENINGS.map(|weakening| weakening.name).join(", ");
        let weakening = WEAKENINGS.iter().find(|weakening| weakening.name == name);
        let weakening =
            weakening.with_context(|| format!("no weakening is called {name}; there are {names}"))?;
        return Ok(vec![(weakening.order, (weakening.world)())]);
    }
    let Some(name) = &options.world else {
        return Ok(worlds().into_iter().map(|world| (Order::Depth, world)).collect());
    };
    let names: Vec<_> = worlds().iter().map(|world| world.name).collect();
    let world = worlds().into_iter().find(|world| world.name == name);
    let world =
        world.with_context(|| format!("no world is called {name}; there are {}", names.join(", ")))?;
    Ok(vec![(Order::Depth, world)])
}

fn print(verdict: &Verdict, as_json: bool) {
    let seconds = verdict.time.as_secs_f64();
    if as_json {
        let (what, steps) = verdict.violation.clone().unzip();
        let value = json!({
            "world": verdict.world,
            "states": verdict.states,
            "unique": verdict.unique,
            "depth": verdict.depth,
            "whole": verdict.whole,
            "taken": verdict.taken,
            "seconds": seconds,
            "safe": verdict.violation.is_none(),
            "violation": what,
            "steps": steps,
        });
        println!("{value}");
        return;
    }
    let word = if verdict.violation.is_some() {
        "VIOLATED"
    } else {
        "safe"
    };
    println!(
        "  {word}: {} states, {} of them different, runs of up to {} steps, {seconds:.1} s{}{}",
        verdict.states,
        verdict.unique,
        verdict.depth,
        if verdict.whole {
            ", everything within the bounds"
        } else {
            ""
        },
        if verdict.taken { "" } else { "; no claim succeeds" }
    );
    if let Some((what, steps)) = &verdict.violation {
        println!("  {what}, after");
        for (number, step) in steps.iter().enumerate() {
            println!("  {:4}. {step}", number + 1);
        }
    }
}
