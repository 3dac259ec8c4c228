//! How fast the register is on real sockets: claims and look-ups at fifty members, and sixteen that want one address,
//! beside a stock libp2p Kademlia of as many nodes in the same run. `cargo xtask bench leases` builds and runs this.
//!
//! All members share one process, its cores and one disk, so that the figures are those of the work itself: of a claim
//! the locating of the witnesses, the votes of nine on the address and of nine on the name, each synced to the disk,
//! and the votes of nine on the address once more for the long lease. A member that has had an address before asks for
//! the name in a round of its own, which is measured too. What each part costs by itself is measured beside it.

mod figures;
mod grid;
mod stock;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aerie_dht::SqliteStore;
use aerie_dht_proto::{Change, Store, Table};
use anyhow::{Context, Result, ensure};
use clap::Parser;

use figures::{Figures, Times};
use grid::Grid;
use stock::Stock;

/// Between two measurements, so that what one leaves behind (certificates on their way to the witnesses) is over
/// before the next begins.
const PAUSE: Duration = Duration::from_millis(40);

/// Bytes of a grant as it is written.
const GRANT: usize = 200;

#[derive(Debug, Parser)]
struct Args {
    /// Members of the grid, and nodes of the stock Kademlia.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(12..=200))]
    nodes: u64,
    /// Claims by members that have had an address before; that of a newcomer is measured once for each member.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(..=100))]
    claims: u32,
    /// Look-ups.
    #[arg(long, default_value_t = 300)]
    look_ups: u32,
    /// Addresses for which several contend: members that have not won one yet, since a member may lease four in an hour.
    #[arg(long, default_value_t = 20)]
    contests: u32,
    /// Members that contend for each of these.
    #[arg(long, default_value_t = 16)]
    claimants: usize,
    /// The folder in which the members' databases are made for the time of the run; it decides what a sync costs.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    stores: PathBuf,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    /// Fail when a promise is not kept.
    #[arg(long)]
    check: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(measured(&args))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&figures.json())?);
    } else {
        figures.show();
    }
    let kept = figures.promises_kept();
    Ok(if args.check && !kept {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn measured(args: &Args) -> Result<Figures> {
    let nodes = usize::try_from(args.nodes)?;
    let contenders = args.claimants + usize::try_from(args.contests)?.saturating_sub(1);
    ensure!(
        args.contests == 0 || contenders <= nodes,
        "{} contests of {} that have not won one want {contenders} members; there are {nodes}",
        args.contests,
        args.claimants,
    );
    let dir = tempfile::Builder::new()
        .prefix("aerie-leases-")
        .tempdir_in(&args.stores);
    let dir = dir.with_context(|| format!("cannot make a folder in {}", args.stores.display()))?;
    let sync = syncs(dir.path())?;
    eprintln!("── {nodes} members become a grid");
    let grid = Grid::start(nodes, dir.path()).await?;
    let assembled = grid.assembled;
    eprintln!("   all connected after {:.1} s", assembled.as_secs_f64());
    let aerie = of_grid(&grid, args).await?;
    grid.stop().await;
    eprintln!("── {nodes} nodes become a stock Kademlia");
    let stock = of_stock(&Stock::start(nodes).await?, args).await?;
    Ok(Figures {
        nodes,
        claimants: args.claimants,
        assembled,
        sync,
        aerie,
        stock,
    })
}

/// What one grant costs to write and to sync, with nothing else going on.
fn syncs(dir: &Path) -> Result<Times> {
    let mut store = SqliteStore::open(&dir.join("alone.sqlite"))?;
    let mut times = Times::default();
    for number in 0..100_u32 {
        let change = Change {
            table: Table::Grants,
            key: number.to_be_bytes().to_vec(),
            value: Some(vec![0; GRANT]),
        };
        let begun = Instant::now();
        store
            .persist(&[change])
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        times.add(begun.elapsed());
    }
    Ok(times)
}

async fn of_grid(grid: &Grid, args: &Args) -> Result<figures::Aerie> {
    let mut figures = figures::Aerie::default();
    quiet().await;
    let nodes = usize::try_from(args.nodes)?;
    // The founder has its address.
    for number in 1..nodes {
        figures.claim.add(grid.newcomer(number).await?);
        quiet().await;
    }
    for number in 0..usize::try_from(args.look_ups)? {
        figures.look_up.add(grid.look_up(number).await?);
        figures.locate.add(grid.locate(number).await?);
        figures.request.add(grid.ask(number).await?);
    }
    // Each address is claimed once, so that what an earlier claim left does not matter.
    let mut addr = 1000..;
    let mut fresh = || addr.next().context("the range is used up");
    for number in 0..usize::try_from(args.claims)? {
        grid.release(number).await?;
        quiet().await;
        figures.again.add(grid.claim(number, fresh()?).await?);
        quiet().await;
    }
    let mut contenders: Vec<usize> = (0..nodes).collect();
    for _ in 0..args.contests {
        let claimants = contenders.get(..args.claimants);
        let claimants =
            claimants.context("too few members have not won an address yet: fewer contests, please")?;
        let contest = grid.contest(claimants, fresh()?).await?;
        figures.contests.add(contest.winners.len(), contest.first);
        contenders.retain(|number| !contest.winners.contains(number));
        quiet().await;
    }
    Ok(figures)
}

async fn of_stock(stock: &Stock, args: &Args) -> Result<figures::Stock> {
    let mut figures = figures::Stock::default();
    let key = |word: &str, number: usize| format!("{word} {number}").into_bytes();
    let claims = usize::try_from(args.claims)?;
    for number in 0..claims {
        figures
            .claim
            .add(stock.claim(number, &key("alone", number)).await?);
        quiet().await;
    }
    for number in 0..usize::try_from(args.look_ups)?.min(claims * 50) {
        // By nodes that have not created it; some of them keep it all the same.
        let asker = number + 1 + number / claims;
        figures
            .look_up
            .add(stock.look_up(asker, &key("alone", number % claims)).await?);
    }
    for number in 0..usize::try_from(args.contests)? {
        let begun = Instant::now();
        let told = stock.contest(args.claimants, &key("contested", number)).await?;
        figures.contests.add(told, Some(begun.elapsed()));
        quiet().await;
    }
    Ok(figures)
}

async fn quiet() {
    tokio::time::sleep(PAUSE).await;
}
