//! Debian packages on a clean Debian 13: apt installs them from a signed repository, upgrades, removes and purges them.
//! Nothing runs as a service here; what the service manager makes of them is its part.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use aerie_image_build::package::{self, Compression, Signer, Stamp};
use aerie_lab::chroot::Chroot;
use aerie_lab::grid::aerie_binary;

/// Asks one archive only, so that the lists of the others stay.
const UPDATE: &str = "apt-get -qq update -o Dir::Etc::sourcelist=sources.list.d/aerie.list \
                      -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0 -o APT::Update::Error-Mode=any";

const INSTALL: &str = "apt-get -qq -y --no-install-recommends install";

/// The packages of a version.
fn build(version: &str, out: &Path) -> Vec<PathBuf> {
    let work = tempfile::tempdir().unwrap();
    let inputs = package::inputs(
        &aerie_binary().unwrap(),
        work.path(),
        version,
        "The lab <lab@example.org>",
        Stamp::from_secs(1_795_000_000),
    )
    .unwrap();
    let packages = inputs.packages().unwrap();
    packages
        .iter()
        .map(|package| package::write(package, out, inputs.stamp, Compression::Fast).unwrap())
        .collect()
}

fn signer(home: &Path) -> Signer {
    fs::set_permissions(home, fs::Permissions::from_mode(0o700)).unwrap();
    let made = Command::new("gpg")
        .args(["--batch", "--quiet", "--passphrase", "", "--homedir"])
        .arg(home)
        .args([
            "--quick-generate-key",
            "lab@example.org",
            "ed25519",
            "sign",
            "never",
        ])
        .status()
        .unwrap();
    assert!(made.success());
    Signer {
        key: "lab@example.org".to_owned(),
        home: Some(home.to_owned()),
    }
}

/// A machine with a signed repository at `/mnt/repo`, of version 1.
struct Machine {
    chroot: Chroot,
    keys: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self {
            chroot: Chroot::bare().unwrap(),
            keys: tempfile::tempdir().unwrap(),
        };
        signer(machine.keys.path());
        machine.publish("1.0");
        machine.sh(
            "echo 'deb [signed-by=/mnt/repo/aerie.asc] file:///mnt/repo stable main' \
             >/etc/apt/sources.list.d/aerie.list",
        );
        machine
    }

    fn publish(&self, version: &str) {
        let out = tempfile::tempdir().unwrap();
        let signer = Signer {
            key: "lab@example.org".to_owned(),
            home: Some(self.keys.path().to_owned()),
        };
        let repository = self.chroot.shared().join("repo");
        package::publish(&repository, &build(version, out.path()), Some(&signer)).unwrap();
    }

    fn sh(&self, script: &str) -> String {
        self.chroot.sh(script).unwrap()
    }
}

#[test]
fn packages_install_upgrade_and_go_and_keep_what_is_not_theirs() {
    let machine = Machine::new();
    machine.sh(&format!("{UPDATE}; {INSTALL} aerie aerie-portal"));
    assert_eq!(machine.sh("dpkg --verify aerie aerie-portal"), "");
    assert!(machine.sh("aerie --version").starts_with("aerie "));
    machine.sh("test -L /etc/systemd/system/multi-user.target.wants/aerie.service
         test -L /etc/systemd/system/multi-user.target.wants/aerie-portal.service
         zcat /usr/share/man/man1/aerie-up.1.gz | grep -q metadata
         systemd-analyze verify --man=no aerie.service aerie-portal.service");
    assert_eq!(
        machine.sh("stat -c '%a %U' /var/lib/aerie-portal"),
        "700 aerie-portal\n"
    );
    // What the confined service writes to is there before it starts: it could not make it.
    machine.sh(
        "for path in $(sed -n 's/^ReadWritePaths=//p' /usr/lib/systemd/system/aerie.service); do
             case ${path#-} in /run/*) ;; *) test -d \"${path#-}\" || { echo \"no $path\"; exit 1; } ;; esac
         done
         test \"$(stat -c %U /var/spool/condor)\" = condor",
    );
    // The threshold is that of systemd-analyze, times ten.
    machine.sh("systemd-analyze security --offline=true --threshold=65 aerie.service");
    machine.sh("systemd-analyze security --offline=true --threshold=40 aerie-portal.service");

    // A grid made by root on this machine is the portal's to serve, whose user is not root.
    machine.sh("aerie grid create lab; runuser -u aerie-portal -- aerie grid nodes");
    machine.sh(
        "echo 'AERIE_OPTIONS=\"--founder\"' >/etc/default/aerie
         mkdir -p /etc/condor/aerie/1 /var/lib/aerie/grids/1/keys; echo >/etc/condor/config.d/50-aerie-1.conf; echo key >/var/lib/aerie/grids/1/keys/k; echo blob >/etc/aerie/blob",
    );
    machine.publish("1.1");
    machine.sh(&format!("{UPDATE}; {INSTALL} aerie aerie-portal"));
    let version = machine.sh("dpkg-query -W -f='${Version} ' aerie aerie-portal");
    assert_eq!(version, "1.1 1.1 ");
    machine.sh(
        "grep -q founder /etc/default/aerie; grep -q key /var/lib/aerie/grids/1/keys/k
         test -L /etc/systemd/system/multi-user.target.wants/aerie.service",
    );

    machine.sh("apt-get -qq -y remove aerie");
    machine.sh(
        "test ! -e /usr/bin/aerie; test ! -e /usr/lib/systemd/system/aerie.service
         test -e /etc/default/aerie; test -e /var/lib/aerie/grids/1/keys/k; test -e /etc/aerie/blob",
    );
    let said = machine.sh("dpkg --purge aerie aerie-portal 2>&1");
    for left in [
        "/var/lib/aerie is left",
        "/etc/aerie/blob is left",
        "/var/lib/aerie-portal is left",
    ] {
        assert!(said.contains(left), "{said}");
    }
    machine.sh(
        "test ! -e /etc/default/aerie; test -e /var/lib/aerie/grids/1/keys/k; test -e /etc/aerie/blob
         test -e /var/lib/aerie-portal/portal.sqlite
         test ! -e /etc/systemd/system/multi-user.target.wants/aerie.service
         test -z \"$(find /etc/condor -name '*aerie*')\"",
    );

    // Again, with the answers of a preseed file: a blob to join by, and keys that may go at the end.
    let blob = format!(
        "version = 1\n[grid]\nname = \"lab\"\nca_hash = \"{}\"\nrange = \"100.96.0.0/11\"\n\
         [enrol]\nurls = [\"https://192.0.2.1:8443\"]\ntoken = \"very-secret\"\n\
         [node]\nroles = [\"worker\"]\ngroup = \"physics\"\n",
        "ab".repeat(32)
    );
    fs::write(machine.chroot.shared().join("blob.toml"), blob).unwrap();
    let line = "aerie-blob:$(gzip -c /mnt/blob.toml | base64 -w0 | tr '+/' '-_' | tr -d =)";
    machine.sh(&format!(
        "rm /etc/aerie/blob; line=\"{line}\"
         echo \"aerie aerie/blob password $line\" | debconf-set-selections
         echo 'aerie aerie/purge-keys boolean true' | debconf-set-selections
         {INSTALL} aerie
         grep -q very-secret /etc/aerie/blob; test \"$(stat -c %a /etc/aerie/blob)\" = 600
         if grep -rlF \"$line\" /var /etc /tmp; then exit 1; fi",
    ));
    machine.sh("dpkg --purge aerie; test ! -e /var/lib/aerie; test ! -e /etc/aerie");
    // A blob that is none stops no installation.
    let said = machine.sh(&format!(
        "echo 'aerie aerie/blob password /absent' | debconf-set-selections; {INSTALL} aerie 2>&1",
    ));
    assert!(said.contains("the configuration was not taken"), "{said}");
    machine.sh("test ! -e /etc/aerie/blob; aerie --version");
}

#[test]
fn a_repository_that_somebody_changed_is_refused() {
    let machine = Machine::new();
    let lists = machine
        .chroot
        .shared()
        .join("repo/dists/stable/main/binary-amd64");
    let packages = fs::read_to_string(lists.join("Packages")).unwrap();
    fs::remove_file(lists.join("Packages.gz")).unwrap();
    fs::write(lists.join("Packages"), packages.replace("condor", "cowsay")).unwrap();
    let refused = machine.chroot.sh(UPDATE).unwrap_err().to_string();
    assert!(
        refused.contains("Hash Sum mismatch") || refused.contains("unexpected size"),
        "{refused}"
    );
}
