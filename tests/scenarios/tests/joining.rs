//! `aerie join`, as a person runs it after the package is installed, and `aerie leave` after it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;

use aerie_lab::grid::{AERIE, Join, Member, PORTAL_DIR, Status};
use aerie_lab::wait::wait_until;
use aerie_lab::{Nat, Node, Place};
use aerie_scenarios::{GROUP, SOON, join_all, lab, small_grid};

/// What the command prints where it fails.
fn refusal(node: &Node, user: &str, argv: &[&str]) -> String {
    let output = node.exec(user, argv).unwrap();
    assert!(!output.success(), "{}", output.both());
    output.both()
}

fn exists(node: &Node, path: &str) -> bool {
    node.exec("root", &["test", "-e", path]).unwrap().success()
}

fn other_grids_blob() -> String {
    format!(
        "version = 1\n[grid]\nname = \"other\"\nca_hash = \"{}\"\nrange = \"10.9.0.0/16\"\n\
         [enrol]\nurls = [\"https://192.0.2.1:8443\"]\ntoken = \"secret\"\n\
         [node]\nroles = [\"worker\"]\ngroup = \"chem\"\n",
        "ab".repeat(32)
    )
}

#[test]
fn one_line_takes_a_machine_into_the_pool_and_leaving_removes_what_it_put_there() {
    let lab = lab("joining").unwrap();
    let site = Place::from(&lab.site("home", Nat::PortRestricted).unwrap());
    let grid = small_grid(&lab).unwrap();
    let [_manager] = join_all(&grid, &site, [("m1", "manager")]).unwrap();
    let node = lab.node("w1", site).unwrap();
    let line = String::from_utf8(grid.blob(GROUP, "worker", "w1", "line").unwrap()).unwrap();
    let line = line.trim();

    // The service, as it waits on a machine that has no blob.
    let service = node.spawn("root", "aerie", &[AERIE, "up"], &[]).unwrap();
    wait_until(SOON, "the daemon to wait for a blob", || {
        let status = node.run("root", &[AERIE, "status"]).ok();
        Ok(status.filter(|status| status.contains("aerie join")))
    })
    .unwrap();
    let asked = refusal(&node, "root", &[AERIE, "join", line]);
    assert!(
        asked.contains("--yes") && !exists(&node, "/etc/aerie/blob"),
        "{asked}"
    );

    let said = node.run("root", &[AERIE, "join", line, "--yes"]).unwrap();
    for part in [
        "worker",
        "100.96.0.0/11",
        "/etc/aerie/blob",
        "pool ",
        "w1 is a member of grid lab (",
    ] {
        assert!(said.contains(part), "no '{part}' in: {said}");
    }
    let mode = node
        .run("root", &["stat", "-c", "%a %U", "/etc/aerie/blob"])
        .unwrap();
    assert_eq!(mode, "600 root\n");

    let again = refusal(&node, "root", &[AERIE, "join", line, "--yes"]);
    assert!(again.contains("has joined grid lab already"), "{again}");
    node.put("/root/other.toml", other_grids_blob().as_bytes())
        .unwrap();
    let other = refusal(&node, "root", &[AERIE, "join", "/root/other.toml", "--yes"]);
    assert!(
        other.contains("is a member of grid lab (id ") && other.contains("aerie leave"),
        "{other}"
    );

    let left = node.run("root", &[AERIE, "leave", "--yes"]).unwrap();
    assert!(left.contains("Removed /etc/aerie/blob."), "{left}");
    assert!(!service.running() && !exists(&node, "/etc/aerie/blob"));
    assert!(!node.exec("root", &["pgrep", "condor_master"]).unwrap().success());
    let kept = node.sh("root", "cd /var/lib/aerie/grids/*; ls").unwrap();
    assert!(
        kept.contains("keys") && !kept.contains("aerie.toml") && !kept.contains("joined"),
        "{kept}"
    );

    let condor = node
        .sh(
            "root",
            "find /etc/condor -name '*aerie*.conf' -o -name condor.map",
        )
        .unwrap();
    assert_eq!(condor, "");

    // Back again: nothing waits here now, so the command says what to run.
    let said = node.run("root", &[AERIE, "join", line, "--yes"]).unwrap();
    assert!(said.contains("'aerie up'"), "{said}");
    let before = refusal(&node, "root", &[AERIE, "join", "/root/other.toml", "--yes"]);
    assert!(before.contains("is a member of grid lab (id "), "{before}");
    node.spawn("root", "aerie", &[AERIE, "up"], &[]).unwrap();
    let ready = node.run("root", &[AERIE, "status", "--wait", "60"]).unwrap();
    assert!(ready.contains("w1 of grid lab"), "{ready}");
}

/// Machines that were made from one image, with one blob in it, and are switched on in one moment.
#[test]
fn twenty_clones_of_one_image_are_twenty_members() {
    const CLONES: usize = 20;
    let lab = lab("clones").unwrap();
    let site = Place::from(&lab.site("home", Nat::PortRestricted).unwrap());
    let grid = small_grid(&lab).unwrap();
    let join = Join::new("c1", site.clone(), GROUP, "client").option("--no-condor");
    let first = grid.prepare(&join).unwrap();
    let (url, uses) = (
        format!("https://{}:8443", grid.hub.node.addr()),
        CLONES.to_string(),
    );
    let entry = format!("/ip4/{}/udp/4001/quic-v1", grid.hub.node.addr());
    let make = [
        AERIE,
        "grid",
        "blob",
        "--dir",
        PORTAL_DIR,
        "--group",
        GROUP,
        "--role",
        "client",
        "--url",
        &url,
        "--bootstrap",
        &entry,
        "--uses",
        &uses,
        "--out",
        "/root/clones.toml",
    ];
    grid.hub.node.run("root", &make).unwrap();
    let blob = grid.hub.node.get("/root/clones.toml").unwrap();
    let mut clones: Vec<Member> = (2..=CLONES)
        .map(|number| first.on(lab.node(&format!("c{number}"), site.clone()).unwrap()))
        .collect();
    clones.push(first);
    for clone in &clones {
        clone.node.put("/etc/aerie/blob", &blob).unwrap();
    }

    for clone in &clones {
        clone.start().unwrap();
    }
    grid.wait_ready(&clones).unwrap();

    let all: Vec<_> = clones.iter().map(|clone| clone.status().unwrap()).collect();
    let different = |what: &str, of: fn(&Status) -> String| {
        let values: BTreeSet<_> = all.iter().map(of).collect();
        assert_eq!(values.len(), CLONES, "{what}: {values:?}");
    };
    different("names", |status| status.node.clone());
    different("identities", |status| status.peer.clone());
    different("addresses", |status| status.addr.clone().unwrap());
    // The blob was for so many, and for no one more.
    let more = clones[0].on(lab.node("c21", site).unwrap());
    more.node.put("/etc/aerie/blob", &blob).unwrap();
    more.start().unwrap();
    wait_until(SOON, "the one too many to be refused", || {
        let status = more.status()?;
        let reason = status.stage("certificate").map(|stage| stage.reason.clone());
        Ok(reason.filter(|reason| reason.contains("used")))
    })
    .unwrap();
}

#[test]
fn a_blob_that_cannot_be_joined_changes_nothing_and_says_why() {
    let lab = lab("badjoin").unwrap();
    let node = lab.node("w1", Place::Internet).unwrap();
    let good = other_grids_blob();
    node.put(
        "/root/new.toml",
        good.replace("version = 1", "version = 9").as_bytes(),
    )
    .unwrap();
    node.put("/root/good.toml", good.as_bytes()).unwrap();
    node.put("/root/noise", &[0x9c; 400]).unwrap();
    for (blob, reason) in [
        ("/root/absent.toml", "/root/absent.toml"),
        ("/root/new.toml", "version 9"),
        ("/root/noise", "/root/noise"),
        ("aerie-blob:H4sIAAAAAAAA%%", "not whole"),
        ("aerie-blob:H4sIAAAAAAAA", "not usable"),
        ("aerie-0a1b2c3d-abcdefgh", "a join token alone"),
        ("-", "standard input"),
    ] {
        let said = refusal(&node, "root", &[AERIE, "join", blob, "--yes"]);
        assert!(said.contains(reason), "{blob}: {said}");
    }
    let said = refusal(&node, "alice", &[AERIE, "join", "/root/good.toml", "--yes"]);
    assert!(said.contains("run it as root"), "{said}");
    assert!(!exists(&node, "/etc/aerie/blob") && !exists(&node, "/var/lib/aerie"));
}
