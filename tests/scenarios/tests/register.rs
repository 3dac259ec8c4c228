//! The register of addresses under faults: many join at once, daemons are killed, sites are torn apart, a witness's
//! disk is full. No address ever has two holders for long, and the status says what is waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use aerie_lab::grid::{AERIE, Grid, Join, Member, Status};
use aerie_lab::wait::wait_until;
use aerie_lab::{Nat, Place};
use aerie_scenarios::{GROUP, SOON, lab, small_grid};
use anyhow::{Context, Result, anyhow, ensure};

/// Nodes that are booted at the same time.
const SIDE_BY_SIDE: usize = 4;

/// The port of the enrolment service.
const ENROLMENT: u16 = 8443;

/// The nodes beside the founder, and how many of them join at the same time. All daemons share the cores of one machine,
/// and each newcomer is work for every other; `AERIE_WAVE=39` lets all of them join at once.
const CROWD: usize = 39;
const WAVE: usize = 13;

/// How many join at the same time.
fn wave() -> Result<usize> {
    let asked = std::env::var("AERIE_WAVE").ok();
    let wave = asked.map_or(Ok(WAVE), |text| text.parse());
    wave.context("AERIE_WAVE is not a number of nodes")
}

/// A node that carries the network only.
fn light(name: &str, place: &Place) -> Join {
    Join::new(name, place.clone(), GROUP, "client")
        .option("--no-condor")
        .option("--no-upnp")
}

/// Does something with each, several at a time; the results are in the order of `items`.
fn each<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let share = items.len().div_ceil(SIDE_BY_SIDE).max(1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .chunks(share)
            .map(|chunk| scope.spawn(|| chunk.iter().map(&work).collect::<Result<Vec<_>>>()))
            .collect();
        let mut results = Vec::with_capacity(items.len());
        for thread in threads {
            results.extend(thread.join().map_err(|_| anyhow!("a thread panicked"))??);
        }
        Ok(results)
    })
}

/// Boots nodes named by a letter and a number, each with its blob and none with its daemon started.
fn prepared(grid: &Grid<'_>, letter: char, count: usize, place: &Place) -> Result<Vec<Member>> {
    let names: Vec<_> = (1..=count).map(|number| format!("{letter}{number}")).collect();
    each(&names, |name| grid.prepare(&light(name, place)))
}

/// Waits until all are ready; gives what each then says of itself.
fn all_ready(grid: &Grid<'_>, members: &[&Member]) -> Result<Vec<Status>> {
    let ready = |member: &&Member| grid.wait_for(member, SOON, "every stage done", |status| status.ready);
    members.iter().map(ready).collect()
}

/// The address of each by its name, once all hold one.
fn addrs(grid: &Grid<'_>, members: &[&Member]) -> Result<BTreeMap<String, String>> {
    let held = |member: &&Member| {
        let status = grid.wait_for(member, SOON, "an address", |status| status.addr.is_some())?;
        Ok((status.node, status.addr.context("the address is gone again")?))
    };
    members.iter().map(held).collect()
}

/// Fails where two have the same address.
fn all_different(addrs: &BTreeMap<String, String>) -> Result<()> {
    let distinct: BTreeSet<_> = addrs.values().collect();
    ensure!(
        distinct.len() == addrs.len(),
        "an address is held twice: {addrs:?}"
    );
    Ok(())
}

/// Waits until a member resolves all these names to these addresses.
fn resolves(on: &Member, grid: &Grid<'_>, addrs: &BTreeMap<String, String>) -> Result<()> {
    let names: Vec<_> = addrs.keys().map(|node| grid.fqdn(node)).collect();
    let script = format!("getent ahostsv4 {} || true", names.join(" "));
    let what = format!("{} to resolve {} names", on.node.name(), names.len());
    wait_until(SOON, &what, || {
        let said = on.node.sh("root", &script)?;
        let shown: BTreeSet<_> = said
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                // The first line of an address has the name at its end.
                Some((words.next()?, words.nth(1)?))
            })
            .collect();
        let missing: Vec<_> = addrs
            .iter()
            .filter(|(node, addr)| !shown.contains(&(addr.as_str(), grid.fqdn(node).as_str())))
            .collect();
        ensure!(missing.is_empty(), "not so: {missing:?}");
        Ok(Some(()))
    })
}

/// Each asks for the address that is so many places further on, and reaches its holder through the tunnel. Where a pair
/// has not spoken before, the address is looked up in the register.
fn reach_in_a_ring(members: &[&Member], addrs: &BTreeMap<String, String>, step: usize) -> Result<()> {
    let targets: Vec<_> = members.iter().cycle().skip(step).take(members.len()).collect();
    let pairs: Vec<_> = members.iter().zip(targets).collect();
    each(&pairs, |(from, to)| {
        let addr = addrs.get(to.node.name()).context("a member has no address")?;
        let what = format!("{} to reach {} at {addr}", from.node.name(), to.node.name());
        wait_until(SOON, &what, || {
            from.node.run("root", &[AERIE, "ping", "--count", "1", addr])?;
            Ok(Some(()))
        })
    })?;
    Ok(())
}

#[test]
fn forty_daemons_join_in_crowds_and_those_killed_come_back_to_their_addresses() {
    let lab = lab("forty").unwrap();
    let grid = small_grid(&lab).unwrap();
    let mut crowd = Vec::new();
    for hall in ['e', 's', 'w'] {
        // Small segments: the kernel keeps one table of neighbours for all machines of the lab, of a thousand entries.
        let place = Place::from(&lab.site(&hall.to_string(), Nat::Open).unwrap());
        crowd.extend(prepared(&grid, hall, CROWD / 3, &place).unwrap());
    }
    let late = grid.prepare(&light("late", &Place::Internet)).unwrap();

    let wave = wave().unwrap();
    let begun = Instant::now();
    let mut statuses = Vec::new();
    for wave in crowd.chunks(wave) {
        let started = Instant::now();
        each(wave, Member::start).unwrap();
        statuses.extend(all_ready(&grid, &wave.iter().collect::<Vec<_>>()).unwrap());
        println!(
            "{} joined at once in {:.1} s",
            wave.len(),
            started.elapsed().as_secs_f64()
        );
    }
    let mut took: Vec<_> = statuses.iter().filter_map(|status| status.ready_ms).collect();
    took.sort_unstable();
    println!(
        "from its own start a node took {} ms in the median, {} ms at most",
        took[took.len() / 2],
        took[took.len() - 1]
    );
    let mut all: Vec<_> = crowd.iter().chain([&grid.hub]).collect();
    let before = addrs(&grid, &all).unwrap();
    all_different(&before).unwrap();
    each(&all, |member| resolves(member, &grid, &before)).unwrap();
    reach_in_a_ring(&all, &before, 1).unwrap();
    println!(
        "all names resolve everywhere {:.1} s after the first start",
        begun.elapsed().as_secs_f64()
    );

    let (killed, living) = crowd.split_at(CROWD.div_ceil(4));
    each(killed, |member| member.daemon()?.kill9()).unwrap();
    let dead = Instant::now();
    late.start().unwrap();
    let mut living: Vec<_> = living.iter().chain([&grid.hub]).collect();
    reach_in_a_ring(&living, &before, 2).unwrap();
    println!(
        "{} of them killed: each of the living looked another one up and reached it within {:.1} s",
        killed.len(),
        dead.elapsed().as_secs_f64()
    );
    all_ready(&grid, &[&late]).unwrap();
    living.push(&late);
    all.push(&late);
    let meanwhile = addrs(&grid, &living).unwrap();
    for (node, addr) in meanwhile.iter().filter(|(node, _)| *node != "late") {
        assert_eq!(before.get(node), Some(addr), "{node} did not keep its address");
    }
    let taken = &meanwhile["late"];
    assert!(
        before.values().all(|addr| addr != taken),
        "the latecomer took {taken}, which is held"
    );

    let back = Instant::now();
    each(killed, Member::start).unwrap();
    all_ready(&grid, &killed.iter().collect::<Vec<_>>()).unwrap();
    println!("the killed are back after {:.1} s", back.elapsed().as_secs_f64());
    let after = addrs(&grid, &all).unwrap();
    all_different(&after).unwrap();
    for (node, addr) in &before {
        assert_eq!(after.get(node), Some(addr), "{node} has another address");
    }
    reach_in_a_ring(&all, &after, 3).unwrap();
}

/// What the daemon says of its address: the reason and what can be done.
fn address(status: &Status) -> String {
    let stage = status.stage("address");
    stage.map_or_else(String::new, |stage| format!("{} {}", stage.reason, stage.hint))
}

#[test]
fn a_witness_whose_disk_is_full_abstains_and_says_so_until_there_is_room() {
    let lab = lab("diskfull").unwrap();
    let grid = small_grid(&lab).unwrap();
    let mut members = prepared(&grid, 'n', 5, &Place::Internet).unwrap().into_iter();
    let mut next = || members.next().unwrap();
    let (full, second, third, early, later) = (next(), next(), next(), next(), next());
    let state = "mkdir -p /var/lib/aerie && mount -t tmpfs -o size=8m tmpfs /var/lib/aerie";
    full.node.sh("root", state).unwrap();
    each(&[&full, &second, &third], |member| member.start()).unwrap();
    all_ready(&grid, &[&full, &second, &third]).unwrap();
    let held = full.addr().unwrap();
    full.node
        .sh("root", "head -c 32M /dev/zero >/var/lib/aerie/filler || true")
        .unwrap();

    // Three of the other four are enough: who joins now is served, and the full one has to refuse.
    early.start().unwrap();
    all_ready(&grid, &[&early]).unwrap();
    let says = |status: &Status| address(status).contains("abstains");
    let status = grid.wait_for(&full, SOON, "said that it abstains", says).unwrap();
    let said = address(&status);
    assert!(
        said.contains("disk is full") && said.contains("make room"),
        "{said}"
    );
    assert_eq!(status.addr.as_ref(), Some(&held), "it lost its own address");
    let log = full.daemon().unwrap().log();
    assert!(log.contains("this witness abstains"), "{log}");

    // With two of the six gone four are left, and four are needed: now its vote is missed.
    second.node.kill9();
    third.node.kill9();
    later.start().unwrap();
    let waits = |status: &Status| address(status).contains("witnesses needed");
    let status = grid.wait_for(&later, SOON, "a claim that waits", waits).unwrap();
    println!("the claim waits: {}", address(&status));
    assert_eq!(status.addr, None);

    full.node.sh("root", "rm /var/lib/aerie/filler").unwrap();
    let room = Instant::now();
    all_ready(&grid, &[&later]).unwrap();
    println!(
        "served {:.1} s after there was room",
        room.elapsed().as_secs_f64()
    );
    let quiet = |status: &Status| !address(status).contains("abstains");
    grid.wait_for(&full, SOON, "no more complaint of its disk", quiet)
        .unwrap();
    let held = addrs(&grid, &[&grid.hub, &full, &early, &later]).unwrap();
    all_different(&held).unwrap();
}

/// Waits until a member is connected to so many others and no more.
fn sees(member: &Member, others: usize) -> Result<()> {
    let what = format!("{} to see {others} others", member.node.name());
    wait_until(SOON, &what, || {
        let seen: Vec<_> = member.peers()?.into_iter().map(|peer| peer.node).collect();
        ensure!(seen.len() == others, "it sees {}: {seen:?}", seen.len());
        Ok(Some(()))
    })
}

/// A grid of thirty addresses, torn into three: the founder's side and the hall have nine members each and go on by
/// themselves, the hut has one, which is no majority of anything. What is free is so little that newcomers on both
/// large sides are bound to take the same, but for one run in twenty.
#[test]
fn after_a_partition_each_address_has_one_holder_and_those_who_lost_theirs_have_moved() {
    let lab = lab("torn").unwrap();
    let grid = Grid::found(&lab, "lab", Some("10.77.0.0/27"), &[GROUP]).unwrap();
    let hall = lab.site("hall", Nat::PortRestricted).unwrap();
    let hut = lab.site("hut", Nat::PortRestricted).unwrap();
    let (outside, inside, remote) = (Place::Internet, Place::from(&hall), Place::from(&hut));
    let old_outside = prepared(&grid, 'a', 8, &outside).unwrap();
    let old_inside = prepared(&grid, 'b', 9, &inside).unwrap();
    let old_remote = prepared(&grid, 'c', 1, &remote).unwrap();
    let new_outside = prepared(&grid, 'd', 5, &outside).unwrap();
    let new_inside = prepared(&grid, 'e', 4, &inside).unwrap();
    let new_remote = prepared(&grid, 'f', 1, &remote).unwrap();

    let old: Vec<_> = old_outside.iter().chain(&old_inside).chain(&old_remote).collect();
    for wave in old.chunks(WAVE) {
        each(wave, |member| member.start()).unwrap();
        all_ready(&grid, wave).unwrap();
    }
    each(&old, |member| sees(member, old.len())).unwrap();
    let before = addrs(&grid, &old).unwrap();

    hall.only(ENROLMENT).unwrap();
    hut.only(ENROLMENT).unwrap();
    let torn = Instant::now();
    sees(&grid.hub, old_outside.len()).unwrap();
    each(&old_inside, |member| sees(member, old_inside.len() - 1)).unwrap();
    each(&old_remote, |member| sees(member, 0)).unwrap();
    println!(
        "the sides miss each other {:.1} s after the cut",
        torn.elapsed().as_secs_f64()
    );

    let new: Vec<_> = new_outside.iter().chain(&new_inside).chain(&new_remote).collect();
    each(&new, |member| member.start()).unwrap();
    let lone = new_remote.first().unwrap();
    let waits = |status: &Status| address(status).contains("witnesses needed");
    let status = grid.wait_for(lone, SOON, "a claim that waits", waits).unwrap();
    println!("without a majority: {}", address(&status));
    let on_outside = addrs(&grid, &new_outside.iter().collect::<Vec<_>>()).unwrap();
    let on_inside = addrs(&grid, &new_inside.iter().collect::<Vec<_>>()).unwrap();
    println!(
        "both sides have served their newcomers {:.1} s after the cut",
        torn.elapsed().as_secs_f64()
    );
    assert_eq!(
        lone.status().unwrap().addr,
        None,
        "a node took an address without a majority"
    );
    assert_eq!(
        addrs(&grid, &old).unwrap(),
        before,
        "who held an address lost it in the partition"
    );
    let taken: BTreeSet<_> = before.values().collect();
    assert!(
        on_outside
            .values()
            .chain(on_inside.values())
            .all(|addr| !taken.contains(addr)),
        "a newcomer took an address that is held on another side"
    );
    let contested: BTreeSet<_> = on_outside
        .values()
        .filter(|addr| on_inside.values().any(|other| other == *addr))
        .collect();
    println!("{} addresses have a holder on either side", contested.len());

    hall.everything().unwrap();
    hut.everything().unwrap();
    let healed = Instant::now();
    let all: Vec<_> = old.iter().chain(&new).copied().chain([&grid.hub]).collect();
    let after = wait_until(SOON, "one holder of each address", || {
        let held = each(&all, |member| {
            let status = member.status()?;
            let reason = address(&status);
            Ok((
                status.node,
                status.addr.with_context(|| format!("no address: {reason}"))?,
            ))
        });
        let held: BTreeMap<_, _> = held?.into_iter().collect();
        all_different(&held)?;
        Ok(Some(held))
    })
    .unwrap();
    println!(
        "one holder of each address {:.1} s after the heal",
        healed.elapsed().as_secs_f64()
    );
    for (node, addr) in before.iter().chain(&on_outside).chain(&on_inside) {
        let kept = after.get(node) == Some(addr);
        assert!(
            kept || contested.contains(addr),
            "{node} lost {addr}, which nobody else wanted"
        );
    }
    for addr in contested {
        assert!(
            after.values().any(|held| held == addr),
            "both holders of {addr} gave it up"
        );
    }
    reach_in_a_ring(&all, &after, 1).unwrap();
    reach_in_a_ring(&all, &after, all.len() / 2).unwrap();
    println!(
        "everybody reaches everybody asked {:.1} s after the heal",
        healed.elapsed().as_secs_f64()
    );
    all_ready(&grid, &all).unwrap();
}
