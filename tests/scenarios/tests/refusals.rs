//! Bad input, on real nodes: what is wrong is said, with what to do, and what waits goes on by itself once it is mended.

use std::time::{Duration, Instant};

use aerie_lab::grid::{AERIE, Grid, Join, Member, Status};
use aerie_lab::wait::wait_until;
use aerie_lab::{Node, Place};
use aerie_scenarios::{GROUP, SOON, lab, small_grid};
use anyhow::{Context, Result};

/// The folder of the grid on its hub.
const HOME: &str = "/var/lib/aerie-portal";

/// A node on the internet that carries the network only.
fn client(name: &str) -> Join {
    Join::new(name, Place::Internet, GROUP, "client").option("--no-condor")
}

/// Waits until a stage tells a reason with this text; gives all that it says, for more to be looked for.
fn explained(grid: &Grid<'_>, member: &Member, stage: &str, text: &str) -> Result<String> {
    let what = format!("stage {stage} to speak of '{text}'");
    let says = |status: &Status| {
        status
            .stage(stage)
            .is_some_and(|stage| stage.reason.contains(text))
    };
    let status = grid.wait_for(member, SOON, &what, says)?;
    let stage = status.stage(stage).context("the stage is gone")?;
    assert!(!status.ready, "it is ready in spite of: {}", stage.reason);
    Ok(format!("{} {}", stage.reason, stage.hint))
}

/// A blob made on the hub, at a place on the node.
fn blob(grid: &Grid<'_>, node: &Node, dir: &str, options: &[&str]) -> Result<()> {
    let url = format!("https://{}:8443", grid.hub.node.addr());
    let mut argv = vec![
        AERIE,
        "grid",
        "blob",
        "--dir",
        dir,
        "--group",
        GROUP,
        "--role",
        "client",
        "--url",
        &url,
        "--out",
        "/root/odd",
    ];
    let entry = format!("/ip4/{}/udp/4001/quic-v1", grid.hub.node.addr());
    if dir == HOME {
        argv.extend(["--bootstrap", &entry]);
    }
    argv.extend(options);
    grid.hub.node.run("root", &argv)?;
    node.put("/etc/aerie/blob", &grid.hub.node.get("/root/odd")?)
}

#[test]
fn tokens_used_up_expired_or_of_another_grid_are_refused_with_the_reason() {
    let lab = lab("tokens").unwrap();
    let grid = small_grid(&lab).unwrap();
    let first = grid.join(&client("first")).unwrap();
    let another = |name| first.on(lab.node(name, Place::Internet).unwrap());
    let [used, expired, foreign] = ["used", "expired", "foreign"].map(another);
    grid.wait_ready([&first]).unwrap();

    let taken = grid.hub.node.get("/root/first.toml").unwrap();
    used.node.put("/etc/aerie/blob", &taken).unwrap();
    used.start().unwrap();
    let said = explained(&grid, &used, "certificate", "refused").unwrap();
    assert!(said.contains("used"), "{said}");

    blob(&grid, &expired.node, HOME, &["--ttl", "1s"]).unwrap();
    let made = Instant::now();
    wait_until(SOON, "the token's end", || {
        Ok((made.elapsed() > Duration::from_secs(2)).then_some(()))
    })
    .unwrap();
    expired.start().unwrap();
    let said = explained(&grid, &expired, "certificate", "refused").unwrap();
    assert!(said.contains("expired"), "{said}");

    // Another grid's CA never sees the request: the handshake fails before anything is said.
    let run = |argv: &[&str]| grid.hub.node.run("root", argv).unwrap();
    run(&[AERIE, "grid", "create", "other", "--dir", "/var/lib/other"]);
    run(&[AERIE, "grid", "group", "add", GROUP, "--dir", "/var/lib/other"]);
    blob(&grid, &foreign.node, "/var/lib/other", &[]).unwrap();
    foreign.start().unwrap();
    let said = explained(&grid, &foreign, "certificate", "CA").unwrap();
    assert!(said.contains("8443"), "{said}");
}

#[test]
fn without_a_tun_device_or_the_right_to_it_the_node_waits_and_says_what_to_do() {
    let lab = lab("tun").unwrap();
    let grid = small_grid(&lab).unwrap();
    let node = lab.node("c1", Place::Internet).unwrap();
    node.sh("root", "mv /dev/net/tun /dev/net/away").unwrap();
    let member = grid.join_node(node.clone(), &client("c1")).unwrap();
    let said = explained(&grid, &member, "host", "/dev/net/tun").unwrap();
    assert!(said.contains("modprobe tun"), "{said}");
    node.sh("root", "mv /dev/net/away /dev/net/tun").unwrap();
    grid.wait_ready([&member]).unwrap();

    member.daemon().unwrap().kill9().unwrap();
    let confined = [
        "setpriv",
        "--bounding-set",
        "-net_admin",
        AERIE,
        "up",
        "--no-condor",
    ];
    let _confined = node.spawn("root", "confined", &confined, &[]).unwrap();
    let said = explained(&grid, &member, "host", "CAP_NET_ADMIN").unwrap();
    assert!(said.contains("--cap-add=NET_ADMIN"), "{said}");
}

#[test]
fn htcondor_absent_or_too_old_is_explained_and_taken_up_once_it_is_there() {
    let lab = lab("condor").unwrap();
    let grid = small_grid(&lab).unwrap();
    let node = lab.node("m1", Place::Internet).unwrap();
    node.sh("root", "mv /usr/bin/condor_version /root/condor_version")
        .unwrap();
    let member = grid
        .join_node(node.clone(), &Join::new("m1", Place::Internet, GROUP, "manager"))
        .unwrap();
    let said = explained(&grid, &member, "pool", "not installed").unwrap();
    assert!(said.contains("apt install condor"), "{said}");
    let old = b"#!/bin/sh\necho '$CondorVersion: 10.0.9 2023-09-28 BuildID: 1 $'\n";
    node.put("/usr/bin/condor_version", old).unwrap();
    node.sh("root", "chmod 755 /usr/bin/condor_version").unwrap();
    let said = explained(&grid, &member, "pool", "10.0.9").unwrap();
    assert!(said.contains("23.9"), "{said}");
    node.sh("root", "mv /root/condor_version /usr/bin/condor_version")
        .unwrap();
    grid.wait_ready([&member]).unwrap();
}

#[test]
fn a_full_disk_ends_the_start_with_the_path_and_costs_nothing_that_was_there() {
    let lab = lab("full").unwrap();
    let grid = small_grid(&lab).unwrap();
    let first = grid.join(&client("first")).unwrap();
    let member = first.on(lab.node("c1", Place::Internet).unwrap());
    blob(&grid, &member.node, HOME, &[]).unwrap();
    let node = &member.node;
    node.sh(
        "root",
        "mkdir -p /var/lib/aerie && mount -t tmpfs -o size=64k tmpfs /var/lib/aerie && \
         (head -c 1M /dev/zero >/var/lib/aerie/filler || true)",
    )
    .unwrap();
    let said = format!("{:#}", member.start().unwrap_err());
    assert!(
        said.contains("/var/lib/aerie/grids") && said.contains("has space"),
        "{said}"
    );
    assert_eq!(said.matches("No space left on device").count(), 1, "{said}");

    // With room again it joins; and what it then has survives a full disk.
    node.sh(
        "root",
        "rm /var/lib/aerie/filler && mount -o remount,size=16m /var/lib/aerie",
    )
    .unwrap();
    member.start().unwrap();
    grid.wait_ready([&member]).unwrap();
    let before = member.status().unwrap();
    node.sh("root", "head -c 32M /dev/zero >/var/lib/aerie/filler || true")
        .unwrap();
    member.daemon().unwrap().kill9().unwrap();
    node.sh("root", "rm /var/lib/aerie/filler").unwrap();
    member.start().unwrap();
    let after = grid
        .wait_for(&member, SOON, "every stage done again", |status| status.ready)
        .unwrap();
    assert_eq!((after.peer, after.addr), (before.peer, before.addr));
}

#[test]
fn a_kept_credential_waits_for_a_clock_that_is_wrong_at_boot() {
    let lab = lab("boot").unwrap();
    let grid = small_grid(&lab).unwrap();
    let member = grid.join(&client("c1")).unwrap();
    grid.wait_ready([&member]).unwrap();
    let before = member.status().unwrap();
    member.daemon().unwrap().kill9().unwrap();

    let late = Join::default().clock("-2d");
    let env: Vec<_> = late
        .env
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let daemon = member
        .node
        .spawn("root", "early", &[AERIE, "up", "--no-condor"], &env)
        .unwrap();
    let said = explained(&grid, &member, "certificate", "clock").unwrap();
    assert!(said.contains("timedatectl"), "{said}");
    assert!(
        daemon.running(),
        "it ended instead of waiting: {}",
        daemon.tail(5)
    );
    daemon.kill9().unwrap();

    member.start().unwrap();
    let after = grid
        .wait_for(&member, SOON, "every stage done", |status| status.ready)
        .unwrap();
    assert_eq!((after.peer, after.addr), (before.peer, before.addr));
}
