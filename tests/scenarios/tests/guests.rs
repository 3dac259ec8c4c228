//! Machines of the image that people build, with a kernel and a service manager of their own, in a grid whose other
//! members are nodes of the lab.
//!
//! ```text
//! cargo xtask guests
//! ```
//!
//! Packages, root file systems and QEMU itself come from the cache of `aerie image`, and are made there first.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use aerie_lab::grid::{Grid, Join, Member};
use aerie_lab::guest::{BOOT, Firmware, Guest, Setup, image};
use aerie_lab::pool::{Job, JobSpec};
use aerie_lab::wait::wait_until;
use aerie_lab::{Lab, Nat, Place, Site};
use aerie_scenarios::{GROUP, join_all, lab, small_grid};

/// What the console says where nothing was configured.
const WAITING: &str = "waiting for configuration";

/// How soon a machine that is switched on says so, and how soon after its blob came it can run jobs: as promised for a
/// machine that is emulated on an idle host.
const WAITS_WITHIN: Duration = Duration::from_secs(40);
const READY_WITHIN: Duration = Duration::from_secs(90);

/// Tests run beside other programs, and with a program that was not optimized: so many times as long as promised.
const PATIENCE: u32 = 5;

/// How long a job may take from its submission.
const JOB: Duration = Duration::from_secs(120);

/// The grid's members that are no guests: a manager and a submit node, behind one NAT.
fn members(lab: &Lab, grid: &Grid<'_>) -> [Member; 2] {
    let campus = Place::from(&lab.site("campus", Nat::PortRestricted).unwrap());
    join_all(grid, &campus, [("m1", "manager"), ("s1", "submit")]).unwrap()
}

fn home(lab: &Lab) -> Site {
    lab.site("home", Nat::PortRestricted).unwrap()
}

/// Waits until the machine says that it waits, and prints when.
fn wait_waiting(guest: &Guest) {
    let watch = Watch {
        wall: Duration::ZERO,
        cpu: Duration::ZERO,
    };
    guest
        .wait_screen(BOOT, WAITING, |text| text.contains(WAITING).then_some(()))
        .unwrap();
    watch.held(guest, "switched on to waiting for configuration", WAITS_WITHIN);
}

/// The time at which something began: that of the machine, and the processor time that emulating it took. The host
/// has other programs, so that the one alone says little.
struct Watch {
    wall: Duration,
    cpu: Duration,
}

impl Watch {
    fn start(guest: &Guest) -> Self {
        Self {
            wall: guest.running_for(),
            cpu: guest.cpu(),
        }
    }

    /// Prints a time beside the promise, and fails where it is far from it.
    fn held(&self, guest: &Guest, what: &str, promised: Duration) {
        let took = guest.running_for() - self.wall;
        eprintln!(
            "{what}: {:.1} s, {:.1} s of processor time (promised on an idle host: {:.0} s)",
            took.as_secs_f64(),
            (guest.cpu() - self.cpu).as_secs_f64(),
            promised.as_secs_f64()
        );
        assert!(took < promised * PATIENCE, "{what}: {took:?}");
    }
}

/// Hands the waiting machine its blob on a floppy, and waits until it can run jobs.
fn join_by_floppy(lab: &Lab, grid: &Grid<'_>, guest: &Guest) {
    let name = guest.name();
    let floppy = lab.dir().join(format!("{name}.img"));
    fs::write(&floppy, grid.blob(GROUP, "worker", name, "floppy").unwrap()).unwrap();
    guest.wait_shell(BOOT).unwrap();
    let watch = Watch::start(guest);
    guest.insert_floppy(&floppy).unwrap();
    let status = guest.wait_ready(READY_WITHIN * PATIENCE).unwrap();
    watch.held(guest, "blob to job-ready", READY_WITHIN);
    let stages = status.stages.iter();
    let stages: Vec<_> = stages
        .filter_map(|stage| Some(format!("{} {:.1} s", stage.stage, stage.ms? as f64 / 1e3)))
        .collect();
    eprintln!("  {}", stages.join(", "));
}

/// Joins as a person does who has the line of a blob.
fn join_by_line(grid: &Grid<'_>, guest: &Guest) {
    let line = grid.blob(GROUP, "worker", "w1", "line").unwrap();
    let line = String::from_utf8(line).unwrap();
    let watch = Watch::start(guest);
    let said = guest
        .sh_for(
            READY_WITHIN * PATIENCE,
            &format!(
                "echo '{}' | aerie join --yes --wait {} -",
                line.trim(),
                (READY_WITHIN * PATIENCE).as_secs()
            ),
        )
        .unwrap();
    assert!(said.contains("w1 is a member of grid lab ("), "{said}");
    watch.held(guest, "aerie join to job-ready", READY_WITHIN);
}

/// Runs a job on the machine, which has to be started once.
fn run_job(grid: &Grid<'_>, submit: &Member, guest: &Guest, name: &str) {
    let spec = JobSpec::whereabouts(name, Some(&grid.fqdn(guest.name())));
    let done = Job::submit(&submit.node, "alice", &spec)
        .unwrap()
        .wait(JOB)
        .unwrap();
    eprintln!("job {name} on {}: {:.1} s", guest.name(), done.took.as_secs_f64());
    assert_eq!(done.out, guest.sh("hostname").unwrap(), "{}", done.log);
    assert_eq!(done.starts, 1, "{}", done.log);
}

/// The machine has left its grid, and HTCondor is as it came.
fn assert_left(guest: &Guest) {
    let found = guest
        .sh("for unit in aerie condor; do
                 if systemctl --quiet is-active $unit; then echo \"$unit runs\"; fi
                 if systemctl --quiet is-enabled $unit; then echo \"$unit is enabled\"; fi
             done
             pgrep --list-name condor_ || true
             find /etc/condor -type f -name '*aerie*' -o -name condor.map
             ls -d /var/lib/aerie/grids/*/aerie.toml 2>/dev/null || true
             ip -brief link | grep aerie- || true
             grep lab.grid /etc/hosts || true")
        .unwrap();
    assert_eq!(found, "");
}

#[test]
fn a_machine_that_is_handed_a_floppy_joins_from_behind_a_nat_and_runs_a_job() {
    let disk = image::disk("appliance").unwrap();
    let lab = lab("floppy").unwrap();
    let grid = small_grid(&lab).unwrap();
    let [_manager, submit] = members(&lab, &grid);
    let guest = lab.guest("w1", &home(&lab), &Setup::new(&disk)).unwrap();
    wait_waiting(&guest);
    join_by_floppy(&lab, &grid, &guest);
    run_job(&grid, &submit, &guest, "j1");
    let addr = guest.status().unwrap().addr.unwrap();
    submit.ping(&addr).unwrap();
    let journal = guest
        .sh("journalctl --all --output cat --no-pager --unit aerie")
        .unwrap();
    assert!(
        journal.contains("floppy /dev/fd0") && !journal.contains('\x1b'),
        "{journal}"
    );
    let (_, took) = guest
        .wait_screen(BOOT, "its address", |text| text.contains(&addr).then_some(()))
        .unwrap();
    eprintln!(
        "its address on its screen {:.1} s after it was switched on",
        took.as_secs_f64()
    );
    let screen = guest.screen();
    assert!(!screen.contains("I/O error"), "{screen}");
    // The floppy is in its drive still: that alone brings it back no more.
    let said = guest.sh("aerie leave --yes").unwrap();
    assert!(said.contains("systemctl enable --now aerie.service"), "{said}");
    assert_left(&guest);
}

/// By what a grid knows a machine: its key and its address.
fn identity(guest: &Guest) -> (String, String) {
    let status = guest.status().unwrap();
    (status.peer, status.addr.unwrap())
}

/// What the service manager says of the daemon, and of the machine's packages.
fn service(guest: &Guest, property: &str) -> String {
    guest
        .sh(&format!(
            "systemctl show aerie.service --property={property} --value"
        ))
        .unwrap()
        .trim()
        .to_owned()
}

/// The daemon is a service that the manager looks after: it is heard from, and would be ended if it were not.
fn assert_looked_after(guest: &Guest) {
    for (property, expected) in [
        ("Type", "notify-reload"),
        ("ActiveState", "active"),
        ("SubState", "running"),
        ("UnitFileState", "enabled"),
        ("WatchdogUSec", "1min"),
        ("NRestarts", "0"),
    ] {
        assert_eq!(service(guest, property), expected, "{property}");
    }
    // The time of the last sign of life moves on.
    let before = service(guest, "WatchdogTimestampMonotonic");
    wait_until(Duration::from_secs(90), "a sign of life of the daemon", || {
        Ok((service(guest, "WatchdogTimestampMonotonic") != before).then_some(()))
    })
    .unwrap();
    let pid = service(guest, "MainPID");
    guest.sh("systemctl reload aerie").unwrap();
    assert_eq!(service(guest, "MainPID"), pid, "a reload starts nothing anew");
}

fn version(guest: &Guest) -> String {
    guest.sh("dpkg-query -W -f='${Version}' aerie").unwrap()
}

/// What is there of Aerie beside what the image and the lab have put there.
fn left(guest: &Guest) -> String {
    guest
        .sh("find / -xdev -iname '*aerie*' ! -path '/usr/lib/aerie-image*' ! -path '/usr/lib/aerie-lab*' \
                ! -name 'aerie-console.service' ! -name 'aerie-first-boot.service' ! -name 'aerie-lab-shell.service' \
                ! -name 'aerie-image-booted' ! -path '/var/log/*' ! -path '/etc/modules-load.d/aerie.conf' \
                ! -path '/etc/ssh/sshd_config.d/50-aerie.conf' ! -path '/var/lib/systemd/*' ! -path '/var/tmp/*' \
                ! -path '/var/cache/*'
             find /run /tmp -iname '*aerie*' ! -name '*-aerie-*.service-*' ! -path '/run/systemd/*' \
                ! -path '/run/credentials/*' ! -path '/run/issue.d/*'
             getent passwd aerie || true
             grep -l -s -i aerie /etc/hosts /etc/default/* || true")
        .unwrap()
}

#[test]
#[ignore = "lives through the whole life of a machine: minutes"]
fn a_package_lives_through_reboot_and_upgrade_with_its_identity_and_its_job() {
    let disk = image::disk("appliance").unwrap();
    let lab = lab("life").unwrap();
    let newer = image::package("1.1", lab.dir()).unwrap();
    let grid = small_grid(&lab).unwrap();
    let [_manager, submit] = members(&lab, &grid);
    let setup = Setup::new(&disk).drive(&newer);
    let guest = lab.guest("w1", &home(&lab), &setup).unwrap();
    wait_waiting(&guest);
    guest.wait_shell(BOOT).unwrap();
    assert_eq!(version(&guest), image::VERSION);
    assert_looked_after(&guest);

    join_by_line(&grid, &guest);
    assert_looked_after(&guest);
    let known = identity(&guest);
    run_job(&grid, &submit, &guest, "joined");

    let watch = Watch::start(&guest);
    guest.reboot().unwrap();
    guest.wait_ready(READY_WITHIN * PATIENCE).unwrap();
    watch.held(&guest, "reboot to job-ready", WAITS_WITHIN + READY_WITHIN);
    assert_eq!(identity(&guest), known);
    run_job(&grid, &submit, &guest, "rebooted");

    // A job that runs until it is told to end.
    let spec = JobSpec {
        name: "upgraded".to_owned(),
        script: "while [ ! -e /run/lab-shell/go ]; do sleep 1; done\nhostname >result\n".to_owned(),
        machine: Some(grid.fqdn("w1")),
        ..JobSpec::default()
    };
    let job = Job::submit(&submit.node, "alice", &spec).unwrap();
    job.wait_started(JOB).unwrap();
    let condor = guest.sh("pgrep -o condor_master").unwrap();
    let daemon = service(&guest, "MainPID");
    let size = fs::metadata(&newer).unwrap().len();
    let watch = Watch::start(&guest);
    guest
        .sh_for(
            READY_WITHIN * PATIENCE,
            &format!(
                "head -c {size} /dev/vdb >/root/newer.deb
                 DEBIAN_FRONTEND=noninteractive apt-get -qq -y install /root/newer.deb"
            ),
        )
        .unwrap();
    assert_eq!(version(&guest), "1.1");
    assert_ne!(service(&guest, "MainPID"), daemon, "the new program runs");
    guest.wait_ready(READY_WITHIN * PATIENCE).unwrap();
    watch.held(&guest, "upgrade to job-ready", READY_WITHIN);
    assert_eq!(identity(&guest), known);
    assert_eq!(guest.sh("pgrep -o condor_master").unwrap(), condor);
    assert_looked_after(&guest);
    guest.sh("touch /run/lab-shell/go").unwrap();
    let done = job.wait(JOB).unwrap();
    assert_eq!((done.starts, done.shadows), (1, 1), "{}", done.log);
    assert_eq!(done.result, guest.sh("hostname").unwrap());
}

#[test]
#[ignore = "boots a machine for minutes"]
fn a_machine_that_leaves_gives_its_address_back_and_a_purge_leaves_nothing() {
    let disk = image::disk("cloud").unwrap();
    let lab = lab("purge").unwrap();
    let grid = small_grid(&lab).unwrap();
    let _members = members(&lab, &grid);
    let guest = lab.guest("w1", &home(&lab), &Setup::new(&disk)).unwrap();
    guest.wait_shell(BOOT).unwrap();
    join_by_line(&grid, &guest);
    let known = identity(&guest);

    let said = guest.sh("aerie leave --yes").unwrap();
    assert!(said.contains("Removed /etc/aerie/blob."), "{said}");
    assert_left(&guest);
    // Given back, the address is another member's to take at once.
    let (_, addr) = &known;
    let heir = Join::new(
        "w2",
        &lab.site("heir", Nat::PortRestricted).unwrap(),
        GROUP,
        "worker",
    );
    let heir = grid.prepare(&heir).unwrap();
    let ask = format!("sed -i 's/^\\[node\\]$/&\\naddress = \"{addr}\"/' /etc/aerie/blob");
    heir.node.sh("root", &ask).unwrap();
    heir.start().unwrap();
    grid.wait_ready([&heir]).unwrap();
    assert_eq!(&heir.addr().unwrap(), addr);

    guest
        .sh(
            "echo 'aerie aerie/purge-keys boolean true' | debconf-set-selections
             DEBIAN_FRONTEND=noninteractive apt-get -qq -y purge aerie",
        )
        .unwrap();
    assert_eq!(left(&guest), "");
    assert_eq!(service(&guest, "LoadState"), "not-found");
}

#[test]
#[ignore = "makes and boots a second image: minutes"]
fn a_cloud_instance_joins_by_its_user_data() {
    let disk = image::disk("cloud").unwrap();
    let lab = lab("cloud").unwrap();
    let grid = small_grid(&lab).unwrap();
    let [_manager, submit] = members(&lab, &grid);
    let cloud = home(&lab);
    let metadata = lab.metadata(&cloud).unwrap();
    let blob = grid.blob(GROUP, "worker", "w1", "user-data").unwrap();
    let guest = lab.guest("w1", &cloud, &Setup::new(&disk)).unwrap();
    let watch = Watch::start(&guest);
    // Long before it asks.
    metadata.set_user_data(guest.addr(), blob);
    guest.wait_shell(BOOT).unwrap();
    let status = guest.wait_ready(READY_WITHIN * PATIENCE).unwrap();
    let kernel = guest.sh("uname -r").unwrap();
    assert!(kernel.contains("cloud"), "{kernel}");
    watch.held(&guest, "switched on to job-ready", WAITS_WITHIN + READY_WITHIN);
    let source = &status.stage("source").unwrap().reason;
    assert!(source.contains("EC2") && metadata.served() > 0, "{source}");
    run_job(&grid, &submit, &guest, "j1");
}

/// What a machine says of itself: its name, its id, the fingerprints of its SSH keys.
#[derive(Debug, PartialEq, Eq)]
struct Own {
    host: String,
    id: String,
    keys: Vec<String>,
}

/// The last time that the console showed all of it.
fn own(screen: &str) -> Option<Own> {
    let start = screen.rfind("Aerie appliance: ")?;
    let shown = &screen[start..];
    let end = shown.find(WAITING)?;
    let line = shown.lines().next()?.trim().strip_prefix("Aerie appliance: ")?;
    let (host, id) = line.split_once(", machine ")?;
    let keys = shown[..end]
        .lines()
        .filter_map(|line| line.trim().strip_prefix("SSH "))
        .map(|key| key.trim().to_owned())
        .collect();
    Some(Own {
        host: host.to_owned(),
        id: id.to_owned(),
        keys,
    })
}

/// Where the root file system begins on the disk.
const ROOT_AT: u64 = 34 << 20;

/// The size of the root file system in bytes, from its superblock: the count of its blocks of 4 KiB.
fn root_size(disk: &Path) -> u64 {
    let mut count = [0; 4];
    fs::File::open(disk)
        .unwrap()
        .read_exact_at(&mut count, ROOT_AT + 1024 + 4)
        .unwrap();
    u64::from(u32::from_le_bytes(count)) * 4096
}

#[test]
#[ignore = "boots machines for minutes"]
fn clones_booted_by_bios_and_uefi_are_different_machines_that_wait_for_configuration() {
    let disk = image::disk("appliance").unwrap();
    let before = root_size(&disk);
    let lab = lab("clones").unwrap();
    let home = home(&lab);
    let guests = [("bios", Firmware::Bios), ("uefi", Firmware::Uefi)].map(|(name, firmware)| {
        lab.guest(name, &home, &Setup::new(&disk).firmware(firmware))
            .unwrap()
    });
    let seen = guests.each_ref().map(|guest| {
        let (own, took) = guest.wait_screen(BOOT, WAITING, own).unwrap();
        eprintln!("{own:?} after {:.1} s", took.as_secs_f64());
        let addr = format!("{}/24", guest.addr());
        guest
            .wait_screen(BOOT, "an address", |text| text.contains(&addr).then_some(()))
            .unwrap();
        let whole = fs::metadata(guest.disk()).unwrap().len();
        guest
            .wait_screen(BOOT, "the root file system to grow", |_| {
                (root_size(guest.disk()) > whole - (1 << 27)).then_some(())
            })
            .unwrap();
        own
    });
    let [one, other] = &seen;
    assert!(before < (4 << 30) + (1 << 27), "{before}");
    assert!(one.id.len() == 32 && one.id != other.id, "{seen:?}");
    assert!(
        one.host.starts_with("aerie-") && one.host != other.host,
        "{seen:?}"
    );
    assert!(
        !one.keys.is_empty() && one.keys.len() == other.keys.len(),
        "{seen:?}"
    );
    assert!(one.keys.iter().all(|key| !other.keys.contains(key)), "{seen:?}");
}

#[test]
#[ignore = "boots machines for minutes"]
fn a_copy_of_a_machine_that_has_run_becomes_a_machine_of_its_own() {
    const FIRST: &str = "6f1c1f7e-64b1-4c0e-9d3a-0a58d2f7c001";
    const SECOND: &str = "b20d44c9-64b1-4c0e-9d3a-0a58d2f7c002";
    let disk = image::disk("appliance").unwrap();
    let lab = lab("copies").unwrap();
    let home = home(&lab);
    let first = lab.guest("first", &home, &Setup::new(&disk).uuid(FIRST)).unwrap();
    let (original, _) = first.wait_screen(BOOT, WAITING, own).unwrap();
    first.wait_shell(BOOT).unwrap();
    // What a member would have there.
    first
        .sh("mkdir -p /var/lib/aerie/grids; echo secret >/var/lib/aerie/grids/key; sync")
        .unwrap();
    let disk = first.disk().to_owned();
    drop(first);

    let copy = lab.guest("copy", &home, &Setup::new(&disk).uuid(SECOND)).unwrap();
    let (own_of_copy, _) = copy.wait_screen(BOOT, WAITING, own).unwrap();
    assert!(
        own_of_copy.id != original.id
            && own_of_copy.host.starts_with("aerie-")
            && own_of_copy.host != original.host,
        "{original:?} {own_of_copy:?}"
    );
    assert!(
        !own_of_copy.keys.is_empty() && own_of_copy.keys.iter().all(|key| !original.keys.contains(key)),
        "{original:?} {own_of_copy:?}"
    );
    copy.wait_shell(BOOT).unwrap();
    assert_eq!(
        copy.sh(&format!(
            "cat /var/lib/aerie.of-{FIRST}/grids/key; find /var/lib/aerie -name key"
        ))
        .unwrap(),
        "secret\n"
    );
    // It is one machine from then on.
    copy.reboot().unwrap();
    copy.wait_shell(BOOT).unwrap();
    assert_eq!(copy.sh("cat /etc/machine-id").unwrap().trim(), own_of_copy.id);
    assert_eq!(copy.sh("hostname").unwrap().trim(), own_of_copy.host);
}

#[test]
#[ignore = "installs a root file system twice"]
fn two_builds_of_the_same_inputs_are_identical() {
    let hash = image::verify("small").unwrap();
    assert_eq!(hash.len(), 64);
}
