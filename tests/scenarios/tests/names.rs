//! Members' names resolve, by whatever resolver the machine has, and are gone when the node leaves.

use aerie_lab::grid::{AERIE, Join, Member};
use aerie_lab::wait::wait_until;
use aerie_lab::{Nat, Place};
use aerie_scenarios::{GROUP, SOON, join_all, lab, small_grid, wait_for_name};

/// What `getent hosts` says of a name or an address.
fn getent(on: &Member, what: &str) -> String {
    on.node
        .run("root", &["getent", "hosts", what])
        .unwrap_or_default()
}

/// The Grid Appliance's name of an address: `C` and the last three octets.
fn appliance_name(addr: &str) -> String {
    let octets = addr.split('.').skip(1).map(|octet| format!("{octet:0>3}"));
    format!("C{}", octets.collect::<String>())
}

#[test]
fn names_resolve_both_ways_by_the_hosts_file_and_leave_it_with_the_node() {
    let lab = lab("hostsfile").unwrap();
    let site = Place::from(&lab.site("home", Nat::PortRestricted).unwrap());
    let grid = small_grid(&lab).unwrap();
    let [one, two] = join_all(&grid, &site, [("s1", "submit"), ("m1", "manager")]).unwrap();
    wait_for_name(&one, "m1.lab.grid").unwrap();
    let addr = two.addr().unwrap();
    // Not by its bare name, which whoever enrols a node may choose after a machine of the local network.
    assert_eq!(getent(&one, "m1"), "");
    assert!(getent(&one, &appliance_name(&addr)).starts_with(&addr));
    assert!(getent(&one, &addr).contains("m1.lab.grid"));

    one.node.run("root", &[AERIE, "leave", "--yes"]).unwrap();
    wait_until(SOON, "the daemon to end", || {
        Ok((!one.daemon()?.running()).then_some(()))
    })
    .unwrap();
    let hosts = one.node.run("root", &["cat", "/etc/hosts"]).unwrap();
    assert!(!hosts.contains("lab.grid"), "{hosts}");
    assert_eq!(getent(&one, "m1.lab.grid"), "");
    assert!(
        !one.node
            .exec("root", &["pgrep", "condor_master"])
            .unwrap()
            .success()
    );
    // However it was configured, nothing brings it back by itself.
    let left = one.node.sh(
        "root",
        "find /etc/condor -name '*aerie*' -o -name condor.map; ls -d /var/lib/aerie/grids/*/aerie.toml || true",
    );
    assert_eq!(left.unwrap(), "");
    // Its address is free at once: the node that comes back under its name needs to wait for nothing.
    let links = one.node.run("root", &["ip", "-brief", "link"]).unwrap();
    assert!(!links.contains("aerie-"), "{links}");
    one.start().unwrap();
    grid.wait_ready([&one]).unwrap();
}

#[test]
fn systemd_resolved_asks_the_grids_own_resolver() {
    let lab = lab("resolved").unwrap();
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let grid = small_grid(&lab).unwrap();
    let [two] = join_all(&grid, &Place::from(&site), [("m1", "manager")]).unwrap();
    let node = lab.node("s1", &site).unwrap();
    node.sh(
        "root",
        "install -d -m 755 /run/dbus && install -d -o systemd-resolve -g systemd-resolve /run/systemd/resolve && \
         echo 'nameserver 127.0.0.53' >/etc/resolv.conf",
    )
    .unwrap();
    let run = |name: &str, argv: &[&str]| node.spawn("root", name, argv, &[]).unwrap();
    let _bus = run("dbus", &["dbus-daemon", "--system", "--nofork", "--nopidfile"]);
    let _resolved = run("resolved", &["/usr/lib/systemd/systemd-resolved"]);
    wait_until(SOON, "systemd-resolved to answer", || {
        Ok(node.run("root", &["resolvectl", "status"]).ok())
    })
    .unwrap();
    let one = grid
        .join_node(
            node.clone(),
            &Join::new("s1", &site, GROUP, "submit").option("--no-condor"),
        )
        .unwrap();
    grid.wait_ready([&one]).unwrap();
    wait_until(SOON, "the resolver to be hooked in", || {
        let status = one.node.run("root", &[AERIE, "status"])?;
        Ok(status.contains("systemd-resolved").then_some(()))
    })
    .unwrap();

    let addr = two.addr().unwrap();
    wait_for_name(&one, "m1.lab.grid").unwrap();
    let both = one
        .node
        .run("root", &["getent", "ahosts", "m1.lab.grid"])
        .unwrap();
    let addr6 = two.status().unwrap().addr6.unwrap();
    assert!(both.contains(&addr) && both.contains(&addr6), "{both}");
    let reverse = one.node.run("root", &["resolvectl", "query", &addr6]).unwrap();
    assert!(reverse.contains("m1.lab.grid"), "{reverse}");
    assert!(getent(&one, &format!("{}.lab.grid", appliance_name(&addr))).starts_with(&addr));
    let reverse = one.node.run("root", &["resolvectl", "query", &addr]).unwrap();
    assert!(reverse.contains("m1.lab.grid"), "{reverse}");
    // The hosts file holds this machine alone, so that a name that moves is never stale.
    let hosts = one.node.run("root", &["cat", "/etc/hosts"]).unwrap();
    assert!(
        hosts.contains("s1.lab.grid") && !hosts.contains("m1.lab.grid"),
        "{hosts}"
    );
    // A name of the grid that nobody has is no name, and is asked of nobody else.
    assert_eq!(getent(&one, "nobody.lab.grid"), "");
}
