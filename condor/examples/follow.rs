//! Runs HTCondor on this node as the appliance does: starts it, watches the primary manager, follows another when
//! it is lost. Arguments as in `support`, and `--state DIR`. A line is printed for each thing that happens.

mod support;

use std::time::Instant;

use aerie_condor::{Choice, Condor, Host, Plan, PrimaryKeeper, SystemConfig, SystemHost};
use anyhow::Context;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (mut intent, options) = support::intent()?;
    let state = options
        .get("--state")
        .and_then(|values| values.first())
        .context("--state is needed")?;
    let mut rng = ChaCha8Rng::seed_from_u64(u64::from(std::process::id()));
    let start = Instant::now();
    let say = |what: String| println!("{:8.3} s  {what}", start.elapsed().as_secs_f64());
    let host = SystemHost::new(SystemConfig::new(state))?;
    say(format!(
        "HTCondor {} kept running by {:?}",
        host.probe().await?,
        host.supervision()
    ));
    let mut condor = Condor::new(host);
    let mut keeper = PrimaryKeeper::new(intent.group.clone(), intent.primary.clone(), start);
    keeper.managers(intent.managers.clone(), start, &mut rng);
    intent.primary = keeper.primary().cloned();
    loop {
        let applied = condor.apply(Plan::new(&intent)?).await?;
        let state = condor.state().await?;
        say(format!("primary {:?}: {applied:?}, {state:?}", intent.primary));
        for door in condor.host().wildcards().await? {
            say(format!("open door: {door}"));
        }
        loop {
            let at = keeper.poll_timeout().context("no manager to follow")?;
            tokio::time::sleep_until(at.into()).await;
            let Some(manager) = keeper.due(Instant::now()) else {
                continue;
            };
            let alive = condor.host().port_open(&manager).await;
            let choice = keeper.probed(&manager.node, alive, Instant::now(), &mut rng);
            if !alive {
                say(format!("{} does not answer", manager.node));
            }
            if let Choice::Changed(primary) = choice {
                intent.primary = primary;
                break;
            }
        }
    }
}
