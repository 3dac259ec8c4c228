//! The state directory without a network: its rules, and what survives a crash.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use aerie_identity::{Credential, RevokedBy, Verifier, pem_to_der};
use aerie_portal::{BlobRequest, Denied, Enrolled, Error, GridSettings, Portal, Refusal, Target};
use aerie_types::{AddressPool, Role, Roles, VirtualRange};
use support::{DAY, HOUR, Node, create, now, token, token_request};

fn verifier(portal: &Portal) -> Verifier {
    Verifier::new(&pem_to_der(&portal.grid().ca_pem).unwrap()).unwrap()
}

fn credential(portal: &Portal, enrolled: &Enrolled) -> Credential {
    verifier(portal)
        .verify(&enrolled.credentials.overlay_der, now())
        .unwrap()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Denied>) -> Refusal {
    match result.unwrap_err() {
        Denied::Refused(refusal) => refusal,
        Denied::Failed(error) => panic!("{error}"),
    }
}

#[test]
fn a_grid_opens_again_with_everything_that_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let portal = create(dir.path(), "chem");
    let token = token(&portal, 3);
    let grid = portal.grid();
    drop(portal);
    let portal = Portal::open(dir.path(), now()).unwrap();
    assert_eq!(portal.grid(), grid);
    portal
        .enrol(&token, &Node::new().wish(&portal, "w1"), now())
        .unwrap();
    let listed = &portal.list_tokens().unwrap()[0];
    assert_eq!((listed.uses, listed.uses_left), (3, 2));
    assert_eq!(listed.group.as_str(), "physics");
}

#[test]
fn a_folder_without_a_grid_or_with_one_already_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let message = Portal::open(dir.path(), now()).unwrap_err().to_string();
    assert!(message.contains("aerie grid create"), "{message}");
    let portal = create(dir.path(), "chem");
    let again = Portal::create_grid(dir.path(), "bio".parse().unwrap(), portal.grid().range, now());
    assert!(
        again
            .unwrap_err()
            .to_string()
            .contains("holds the grid 'chem' already")
    );
}

#[test]
fn what_was_decided_for_a_grid_stays_and_a_database_of_before_has_none_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let range: VirtualRange = "100.96.0.0/11".parse().unwrap();
    let nets = |net: &str| vec![net.parse().unwrap()];
    let pool = AddressPool::new(range, nets("100.96.0.0/24"), nets("100.97.0.0/16")).unwrap();
    let pool = pool.with_routed("100.127.0.0/17".parse().unwrap(), 28).unwrap();
    let settings = GridSettings {
        pool,
        witnesses: ["hub", "m1", "m2"].map(|name| name.parse().unwrap()).to_vec(),
    };
    let two = GridSettings {
        witnesses: settings.witnesses[..2].to_vec(),
        ..settings.clone()
    };
    let message = Portal::create_grid(dir.path(), "chem".parse().unwrap(), two, now())
        .unwrap_err()
        .to_string();
    assert!(message.contains("name three to five nodes"), "{message}");
    drop(Portal::create_grid(dir.path(), "chem".parse().unwrap(), settings.clone(), now()).unwrap());
    assert_eq!(
        Portal::open(dir.path(), now()).unwrap().settings().unwrap(),
        settings
    );

    let conn = rusqlite::Connection::open(dir.path().join("portal.sqlite")).unwrap();
    for column in ["reserved", "excluded", "witnesses", "routed", "block"] {
        conn.execute(&format!("ALTER TABLE grid DROP COLUMN {column}"), [])
            .unwrap();
    }
    conn.pragma_update(None, "user_version", 1).unwrap();
    drop(conn);
    assert_eq!(
        Portal::open(dir.path(), now()).unwrap().settings().unwrap(),
        range.into()
    );
}

#[test]
fn a_lost_database_is_not_replaced_by_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let grid = create(dir.path(), "chem").grid();
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(dir.path().join(format!("portal.sqlite{suffix}")));
    }
    let message = Portal::open(dir.path(), now()).unwrap_err().to_string();
    assert!(message.contains("restore it from a backup"), "{message}");
    assert!(!dir.path().join("portal.sqlite").exists());

    // The same as a creation that was cut off: by name, it is carried on with the same CA.
    let other = Portal::create_grid(dir.path(), "bio".parse().unwrap(), grid.range, now());
    assert!(matches!(other, Err(Error::GridExists { .. })));
    let portal = Portal::create_grid(dir.path(), grid.name.clone(), grid.range, now()).unwrap();
    assert_eq!(portal.grid(), grid);
    let again = Portal::create_grid(dir.path(), grid.name, grid.range, now());
    assert!(matches!(again, Err(Error::GridExists { .. })));
}

#[test]
fn a_database_of_another_grid_is_refused() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(create(a.path(), "chem"));
    drop(create(b.path(), "chem"));
    std::fs::copy(b.path().join("portal.sqlite"), a.path().join("portal.sqlite")).unwrap();
    assert!(matches!(
        Portal::open(a.path(), now()),
        Err(Error::MixedGrids { .. })
    ));
}

#[test]
fn unusable_tokens_are_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let portal = create(dir.path(), "chem");
    type Edit = fn(&mut aerie_portal::TokenRequest);
    let cases: [(&str, Edit); 5] = [
        ("no group 'bio'", |t| t.group = "bio".parse().unwrap()),
        ("at least one of", |t| t.roles = Roles::NONE),
        ("at least one node", |t| t.uses = 0),
        ("366 days", |t| t.ttl = 400 * DAY),
        ("a client has", |t| {
            t.roles = Roles::from(Role::Client).with(Role::Worker)
        }),
    ];
    for (reason, edit) in cases {
        let mut request = token_request(1);
        edit(&mut request);
        let message = portal.create_token(&request, now()).unwrap_err().to_string();
        assert!(message.contains(reason), "{reason}: {message}");
    }
    assert!(portal.list_tokens().unwrap().is_empty());
    assert!(matches!(
        portal.add_group(&"physics".parse().unwrap(), now()),
        Err(Error::GroupExists(_))
    ));
}

#[test]
fn the_tokens_secret_is_not_in_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let portal = create(dir.path(), "chem");
    let text = token(&portal, 1).to_text();
    drop(portal);
    let secret = text.rsplit('-').next().unwrap().as_bytes().to_vec();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
}

#[test]
fn a_blob_has_all_that_a_node_needs_to_enrol() {
    let dir = tempfile::tempdir().unwrap();
    let portal = create(dir.path(), "chem");
    let request = BlobRequest {
        group: "physics".parse().unwrap(),
        roles: Role::Worker.into(),
        user: "alice".parse().unwrap(),
        urls: vec!["https://portal.example.org:8443".to_owned()],
        bootstrap: vec![],
        ttl: HOUR,
        uses: 5,
    };
    let blob = portal.make_blob(request.clone(), now()).unwrap();
    assert_eq!(blob.grid_id, portal.grid().id);
    assert_eq!(blob.ca_hash, portal.grid().ca_hash);
    let enrolled = portal
        .enrol(
            &blob.token.parse().unwrap(),
            &Node::new().wish(&portal, "w1"),
            now(),
        )
        .unwrap();
    assert_eq!(credential(&portal, &enrolled).roles, blob.roles);
    for bad in [
        "http://portal.example.org",
        "portal",
        "https://portal.example.org/x",
        "https://u@h",
    ] {
        let request = BlobRequest {
            urls: vec![bad.to_owned()],
            ..request.clone()
        };
        assert!(
            matches!(portal.make_blob(request, now()), Err(Error::Invalid { .. })),
            "{bad}"
        );
    }
}

#[test]
fn revoking_a_user_or_group_reaches_all_their_nodes_and_their_tokens() {
    for (target, by) in [
        (Target::User("alice".parse().unwrap()), RevokedBy::User),
        (Target::Group("physics".parse().unwrap()), RevokedBy::Group),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let portal = create(dir.path(), "chem");
        let token = token(&portal, 5);
        let node = Node::new();
        let enrolled = portal.enrol(&token, &node.wish(&portal, "w1"), now()).unwrap();
        let credential = credential(&portal, &enrolled);
        let mut verifier = verifier(&portal);
        verifier.apply(portal.revoke(&target, now()).unwrap()).unwrap();
        assert!(verifier.is_revoked(&credential));
        assert_eq!(portal.list_nodes().unwrap()[0].revoked, Some(by));
        let refused = refusal(portal.renew(&node.renewal(&credential), now()));
        let again = refusal(portal.enrol(&token, &Node::new().wish(&portal, "w2"), now()));
        assert_eq!(refused, again);
        assert!(matches!(
            portal.create_token(&token_request(1), now()),
            Err(Error::Revoked { .. })
        ));

        portal.reinstate(&target).unwrap();
        refusal(portal.renew(&node.renewal(&credential), now()));
        let anew = portal.enrol(&token, &node.wish(&portal, "w1"), now()).unwrap();
        verifier.apply(portal.revocations().unwrap()).unwrap();
        assert!(
            verifier.verify(&anew.credentials.overlay_der, now()).is_ok(),
            "{by:?} reinstated"
        );
        assert!(verifier.is_revoked(&credential), "old certificates stay revoked");
    }
}

#[test]
fn a_revoked_serial_ends_one_credential_and_not_its_node() {
    let dir = tempfile::tempdir().unwrap();
    let portal = create(dir.path(), "chem");
    let token = token(&portal, 1);
    let node = Node::new();
    let stolen = credential(
        &portal,
        &portal.enrol(&token, &node.wish(&portal, "w1"), now()).unwrap(),
    );
    portal.revoke(&Target::Serial(stolen.serial), now()).unwrap();
    assert_eq!(portal.list_nodes().unwrap()[0].revoked, Some(RevokedBy::Serial));
    let refused = refusal(portal.renew(&node.renewal(&stolen), now()));
    assert_eq!(refused.code(), "credential-rejected");
    let again = portal.enrol(&token, &node.wish(&portal, "w1"), now()).unwrap();
    let mut verifier = verifier(&portal);
    verifier.apply(again.revocations).unwrap();
    assert!(verifier.verify(&again.credentials.overlay_der, now()).is_ok());
    assert!(verifier.is_revoked(&stolen));
}

#[test]
fn what_is_unknown_cannot_be_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let portal = create(dir.path(), "chem");
    for target in [
        Target::Node("w9".parse().unwrap()),
        Target::User("bob".parse().unwrap()),
        Target::Group("bio".parse().unwrap()),
        Target::Serial(7),
    ] {
        assert!(
            matches!(portal.revoke(&target, now()), Err(Error::Unknown { .. })),
            "{target:?}"
        );
        assert!(portal.reinstate(&target).is_err());
    }
}

#[test]
fn revocations_leave_the_list_when_nothing_they_revoke_can_be_valid() {
    let dir = tempfile::tempdir().unwrap();
    let portal = create(dir.path(), "chem");
    let token = token(&portal, 2);
    for name in ["w1", "w2"] {
        portal
            .enrol(&token, &Node::new().wish(&portal, name), now())
            .unwrap();
    }
    portal
        .revoke(&Target::Node("w1".parse().unwrap()), now())
        .unwrap();
    let both = portal
        .revoke(&Target::Node("w2".parse().unwrap()), now().plus(30 * DAY))
        .unwrap();
    assert_eq!(both.list_unverified().unwrap().nodes.len(), 2);
    let later = portal
        .revoke(&Target::Node("w2".parse().unwrap()), now().plus(32 * DAY))
        .unwrap();
    assert_eq!(later.list_unverified().unwrap().nodes.len(), 1);
    assert_eq!(portal.list_nodes().unwrap()[0].revoked, Some(RevokedBy::Node));
}

#[test]
fn serials_rise_after_the_database_is_restored_from_a_backup() {
    let dir = tempfile::tempdir().unwrap();
    let portal = create(dir.path(), "chem");
    let token = token(&portal, 9);
    let backup = dir.path().join("backup.sqlite");
    rusqlite::Connection::open(dir.path().join("portal.sqlite"))
        .unwrap()
        .execute("VACUUM INTO ?1", [backup.to_str().unwrap()])
        .unwrap();
    let before = portal
        .enrol(&token, &Node::new().wish(&portal, "w1"), now())
        .unwrap();
    let list = portal
        .revoke(&Target::Node("w1".parse().unwrap()), now())
        .unwrap();
    drop(portal);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(dir.path().join(format!("portal.sqlite{suffix}")));
    }
    std::fs::rename(&backup, dir.path().join("portal.sqlite")).unwrap();
    let portal = Portal::open(dir.path(), now()).unwrap();
    let later = now().plus(Duration::from_secs(60));
    let after = portal
        .enrol(&token, &Node::new().wish(&portal, "w1"), later)
        .unwrap();
    assert!(after.credentials.serial > before.credentials.serial);
    let newer = portal
        .revoke(&Target::Node("w1".parse().unwrap()), later)
        .unwrap();
    let mut verifier = verifier(&portal);
    assert!(verifier.apply(list).unwrap());
    assert!(
        verifier.apply(newer).unwrap(),
        "members would ignore the restored portal"
    );
}

#[test]
fn a_request_that_fails_half_way_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let portal = create(dir.path(), "chem");
    let token = token(&portal, 1);
    let sql = rusqlite::Connection::open(dir.path().join("portal.sqlite")).unwrap();
    sql.execute_batch("CREATE TRIGGER broken BEFORE INSERT ON nodes BEGIN SELECT RAISE(ABORT, 'disk'); END")
        .unwrap();
    let request = Node::new().wish(&portal, "w1");
    assert!(matches!(
        portal.enrol(&token, &request, now()),
        Err(Denied::Failed(_))
    ));
    assert_eq!(portal.list_tokens().unwrap()[0].uses_left, 1);
    let issued: i64 = sql
        .query_row("SELECT count(*) FROM issued", [], |row| row.get(0))
        .unwrap();
    assert_eq!(issued, 0);
    sql.execute_batch("DROP TRIGGER broken").unwrap();
    portal.enrol(&token, &request, now()).unwrap();
}

#[test]
fn two_processes_on_one_folder_never_spend_a_use_twice() {
    let dir = tempfile::tempdir().unwrap();
    let portal = create(dir.path(), "chem");
    let token = token(&portal, 5);
    let wins: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let own = Portal::open(dir.path(), now()).unwrap();
                    (0..4)
                        .filter(|_| own.enrol(&token, &Node::new().wish(&own, "w"), now()).is_ok())
                        .count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(wins, 5);
    assert_eq!(portal.list_nodes().unwrap().len(), 5);
    assert_eq!(portal.list_tokens().unwrap()[0].uses_left, 0);
}

const KILLED_DIR: &str = "AERIE_TEST_KILLED_DIR";
const KILLED_TOKEN: &str = "AERIE_TEST_KILLED_TOKEN";

/// Not a test of its own: the process that the next one kills. It enrols nodes for ever and names each when done.
#[test]
#[ignore = "run as a child process by the test below"]
fn child_that_enrols_until_it_is_killed() {
    let Some(dir) = std::env::var_os(KILLED_DIR) else {
        return;
    };
    let portal = Portal::open(dir.as_ref(), now()).unwrap();
    let token = std::env::var(KILLED_TOKEN).unwrap().parse().unwrap();
    loop {
        let enrolled = portal
            .enrol(&token, &Node::new().wish(&portal, "w"), now())
            .unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "enrolled {} {}", enrolled.node, enrolled.credentials.serial).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn a_portal_killed_at_any_point_loses_nothing_that_it_answered() {
    const USES: u32 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let portal = create(dir.path(), "chem");
    let token = token(&portal, USES);
    let mut answered = BTreeSet::new();
    for lines in [1, 2, 5, 9] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "child_that_enrols_until_it_is_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(KILLED_DIR, dir.path())
            .env(KILLED_TOKEN, token.to_text().as_str())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut output = output
            .lines()
            .map(Result::unwrap)
            .filter(|line| line.contains("enrolled "));
        answered.extend(output.by_ref().take(lines));
        child.kill().unwrap();
        child.wait().unwrap();
        // What it wrote between the last line read and its end was answered too.
        answered.extend(output);
    }
    let nodes = portal.list_nodes().unwrap();
    let known: BTreeSet<String> = nodes
        .iter()
        .map(|node| format!("enrolled {} {}", node.name, node.serial))
        .collect();
    for line in &answered {
        let line = &line[line.find("enrolled").unwrap()..];
        assert!(known.contains(line), "lost: {line}");
    }
    assert!(answered.len() >= 17);
    let left = portal.list_tokens().unwrap()[0].uses_left;
    assert_eq!(
        (USES - left) as usize,
        nodes.len(),
        "uses and nodes changed together"
    );
    let sql = rusqlite::Connection::open(dir.path().join("portal.sqlite")).unwrap();
    let sound: String = sql
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(sound, "ok");
}
