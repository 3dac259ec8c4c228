//! What happens to a whole grid: each scenario is a test here, on real nodes in the lab, driven through the `aerie`
//! command as a person would. This library has what the scenarios share.
//!
//! - `tests/assembly.rs`: a grid comes together across NATs and runs jobs
//! - `tests/nat.rs`: every pair of NATs connects
//! - `tests/diagnosis.rs`: a node says which NAT it is behind, why a path is relayed and what is wrong
//! - `tests/faults.rs`: daemons and managers die, the enrolment service is away
//! - `tests/register.rs`: many join at once, daemons are killed, the grid is torn, a witness's disk is full
//! - `tests/unattended.rs`: HTCondor dies under the daemon, the clock steps
//! - `tests/trust.rs`: credentials are revoked
//! - `tests/ipv6.rs`: IPv6 inside the grid, and a machine that has none
//! - `tests/names.rs`: names resolve, and a node leaves
//! - `tests/refusals.rs`: tokens, devices, programs, disks and clocks that are not as they should be
//! - `tests/hosts.rs`: machines that are not as they should be
//! - `tests/joining.rs`: `aerie join` takes a blob to a node that is ready, and `aerie leave` undoes it
//! - `tests/packages.rs`: Debian packages are installed, upgraded, removed and purged
//! - `tests/guests.rs`: machines of the built image join by floppy, by user-data and by `aerie join`, and live with it

use std::time::Duration;

use aerie_lab::grid::{AERIE, Grid, Join, Member, aerie_binary};
use aerie_lab::wait::wait_until;
use aerie_lab::{Lab, Place};
use anyhow::{Result, anyhow};

/// The group of the small grids' nodes.
pub const GROUP: &str = "chem";

/// Long enough for what should take seconds, on a machine that does a hundred things beside.
pub const SOON: Duration = Duration::from_secs(60);

/// A lab whose nodes have the `aerie` program.
///
/// # Errors
/// When there is no program, or no right to make a lab.
pub fn lab(name: &str) -> Result<Lab> {
    Lab::builder(name).bind(aerie_binary()?, AERIE).start()
}

/// A grid with only its hub.
///
/// # Errors
/// As [`Grid::found`].
pub fn small_grid<'a>(lab: &'a Lab) -> Result<Grid<'a>> {
    Grid::found(lab, "lab", None, &[GROUP])
}

/// Waits until a node knows the name of another one: it learns it when the other one holds its address.
///
/// # Errors
/// When it does not.
pub fn wait_for_name(on: &Member, fqdn: &str) -> Result<()> {
    wait_until(SOON, &format!("{} to know {fqdn}", on.node.name()), || {
        Ok(on.node.run("root", &["getent", "hosts", fqdn]).ok().map(|_| ()))
    })
}

/// Lets nodes join at once and waits until all are ready: their names and roles, all at one place.
///
/// # Errors
/// When one of them does not become ready.
pub fn join_all<const N: usize>(
    grid: &Grid<'_>,
    place: &Place,
    nodes: [(&str, &str); N],
) -> Result<[Member; N]> {
    let members: Vec<Member> = std::thread::scope(|scope| {
        let threads = nodes.map(|(name, roles)| {
            scope.spawn(move || grid.join(&Join::new(name, place.clone(), GROUP, roles)))
        });
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a join panicked"))?);
        joined.collect::<Result<_>>()
    })?;
    grid.wait_ready(&members)?;
    members.try_into().map_err(|_| anyhow!("a node is missing"))
}
