//! What the commands say that explain a path, a network and a machine: each NAT by its name, each relayed path with
//! its reason, each fault with its fix.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use aerie_lab::grid::{AERIE, Join, Member};
use aerie_lab::wait::wait_until;
use aerie_lab::{Lab, Nat};
use aerie_scenarios::{GROUP, SOON, lab, small_grid, wait_for_name};
use serde_json::Value;

fn asked(on: &Member, argv: &[&str]) -> (Value, bool) {
    on.said(argv).unwrap()
}

fn check<'a>(diagnosis: &'a Value, name: &str) -> &'a Value {
    let checks = diagnosis["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap()
}

struct Nodes {
    /// Without NAT, and a second relay, so that NATs can be told apart.
    open: Member,
    cone: Member,
    port: Member,
    symmetric: [Member; 2],
}

fn nodes(lab: &Lab, grid: &aerie_lab::grid::Grid<'_>) -> Nodes {
    let join = |name: &str, nat, roles: &str| {
        let site = lab.site(name, nat).unwrap();
        grid.prepare(&Join::new(name, &site, GROUP, roles).option("--no-condor"))
            .unwrap()
    };
    let nodes = Nodes {
        open: join("open", Nat::Open, "relay"),
        cone: join("cone", Nat::FullCone, "client"),
        port: join("port", Nat::PortRestricted, "client"),
        symmetric: ["sym-a", "sym-b"].map(|name| join(name, Nat::Symmetric, "client")),
    };
    let [a, b] = &nodes.symmetric;
    let all = [&nodes.open, &nodes.cone, &nodes.port, a, b];
    for member in all {
        member.start().unwrap();
    }
    grid.wait_ready(all).unwrap();
    nodes
}

fn each_nat_is_named(nodes: &Nodes) {
    let [symmetric, _] = &nodes.symmetric;
    for (member, mapping, strangers, good) in [
        (&nodes.open, "open", true, true),
        (&nodes.cone, "endpoint-independent", true, true),
        (&nodes.port, "endpoint-independent", false, true),
        (symmetric, "address-and-port-dependent", false, false),
    ] {
        let name = member.node.name();
        // Both relays have to be known to it.
        let mut last = Value::Null;
        wait_until(SOON, &format!("the NAT of {name} to be named"), || {
            let (said, _) = asked(member, &["netcheck"]);
            let right = said["mapping"] == mapping && said["admits_strangers"] == strangers;
            last = said;
            Ok(right.then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}: {last:#}"));
        assert_eq!(last["udp"], true, "{last:#}");
        assert_eq!(last["good"], good, "{last:#}");
        assert_eq!(good, last["hint"] == "", "{last:#}");
        let nearest = &last["relays"][0];
        assert!(nearest["rtt_ms"].as_f64().unwrap() < 1000.0, "{last:#}");
    }
}

fn paths_are_explained(nodes: &Nodes) {
    let [a, b] = &nodes.symmetric;
    let mut relayed = Value::Null;
    wait_until(SOON, "the reason of a relayed path", || {
        let (said, success) = asked(a, &["path", b.node.name(), "--why"]);
        relayed = said;
        Ok((success && relayed["reason"].as_str().unwrap().contains("both NATs")).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {relayed:#}"));
    assert_eq!(relayed["path"], "relayed", "{relayed:#}");
    assert!(
        relayed["hint"].as_str().unwrap().contains("UDP port 4242"),
        "{relayed:#}"
    );
    let pairs = relayed["pairs"].as_array().unwrap();
    let (first, others) = pairs.split_first().unwrap();
    assert_eq!(
        (&first["kind"], &first["selected"]),
        (&"relayed".into(), &true.into())
    );
    let via = first["via"].as_str().unwrap();
    assert!(["hub", "open"].contains(&via), "{relayed:#}");
    assert!(relayed["through"].as_str().unwrap().contains(via), "{relayed:#}");
    assert!(others.iter().any(|pair| pair["kind"] == "host"), "{relayed:#}");

    let (direct, success) = asked(&nodes.port, &["path", nodes.open.node.name()]);
    assert!(success, "{direct:#}");
    assert_eq!(
        (&direct["path"], &direct["hint"]),
        (&"direct".into(), &"".into()),
        "{direct:#}"
    );
    // The same for a person, in words.
    let said = a
        .node
        .run("alice", &[AERIE, "path", b.node.name(), "--why"])
        .unwrap();
    assert!(
        said.contains("because both NATs") && said.contains("to do: ") && said.contains("no answer to"),
        "{said}"
    );
    let unknown = a.node.exec("root", &[AERIE, "path", "nobody"]).unwrap();
    assert!(
        !unknown.success() && unknown.both().contains("no member 'nobody'"),
        "{}",
        unknown.both()
    );
}

/// The bundle helps somebody who may not be trusted with the node.
fn a_bundle_has_no_secrets(member: &Member) {
    let file = "/root/bundle.zip";
    member
        .node
        .run("root", &[AERIE, "doctor", "--bundle", file])
        .unwrap();
    let bytes = member.node.get(file).unwrap();
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
    let mut all = Vec::new();
    for index in 0..zip.len() {
        std::io::Read::read_to_end(&mut zip.by_index(index).unwrap(), &mut all).unwrap();
    }
    let all = String::from_utf8_lossy(&all);
    assert!(all.contains(member.node.name()) && all.contains("\"verdict\""));
    // Every word of the configuration and the keys that is long enough to be a secret.
    let state = "/var/lib/aerie/grids";
    let secrets = member
        .node
        .sh(
            "root",
            &format!("cat {state}/*/aerie.toml; find {state}/*/keys -type f -exec base64 -w0 {{}} ';' -exec echo ';' -exec cat {{}} ';'"),
        )
        .unwrap();
    let grid = asked(member, &["status"]).0["grid_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let words = secrets.split(|c: char| !(c.is_ascii_alphanumeric() || "+/=_-".contains(c)));
    let secret: Vec<_> = words
        .filter(|word| word.len() >= 24 && !word.contains(&grid))
        .collect();
    assert!(secret.len() > 3, "the state folder was read: {secret:?}");
    for word in secret {
        assert!(!all.contains(word), "the bundle has '{word}' in it");
    }
}

#[test]
fn a_node_says_which_nat_it_is_behind_why_a_path_is_relayed_and_what_is_wrong() {
    let lab = lab("diagnosis").unwrap();
    let grid = small_grid(&lab).unwrap();
    let nodes = nodes(&lab, &grid);
    each_nat_is_named(&nodes);
    let [a, b] = &nodes.symmetric;
    wait_for_name(a, &grid.fqdn(b.node.name())).unwrap();
    paths_are_explained(&nodes);

    let (healthy, success) = asked(&nodes.port, &["doctor"]);
    assert!(success && healthy["healthy"] == true, "{healthy:#}");
    assert_eq!(check(&healthy, "network")["health"], "ok");
    assert_eq!(check(&healthy, "relays")["found"], "2 of 2 answer");
    let (symmetric, success) = asked(a, &["doctor"]);
    assert!(success, "{symmetric:#}");
    assert_eq!(check(&symmetric, "network")["health"], "warning", "{symmetric:#}");
    let paths = check(&symmetric, "paths");
    assert_eq!(paths["fix"], "'aerie path sym-b --why' tells why", "{paths:#}");
    a_bundle_has_no_secrets(a);

    nodes.port.node.run("root", &["pkill", "-9", "aerie"]).unwrap();
    let (dead, success) = asked(&nodes.port, &["doctor"]);
    assert!(!success && dead["healthy"] == false, "{dead:#}");
    assert_eq!(check(&dead, "daemon")["health"], "failed", "{dead:#}");
    assert!(
        check(&dead, "daemon")["fix"]
            .as_str()
            .unwrap()
            .contains("aerie up")
    );
}
