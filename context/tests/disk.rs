//! A broker whose disk refuses to write.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use aerie_context::{Broker, Denied};
use aerie_context_proto::{Command, Settings, xml};
use aerie_types::WallMillis;

const NOW: WallMillis = WallMillis(1_900_000_000_000);

#[test]
fn what_could_not_be_written_has_not_happened_and_may_be_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::open(dir.path(), "https://127.0.0.1:1").unwrap();
    let cluster = xml::read_cluster("<cluster><workspace><name>a</name></workspace></cluster>").unwrap();
    let created = broker.create(cluster, Settings::default(), false, NOW).unwrap();
    let id = created.contact.context;
    let expect = || Command::Expect {
        set: "a".parse().unwrap(),
        quantity: 5,
    };
    let other = rusqlite::Connection::open(dir.path().join("contexts.sqlite")).unwrap();
    other.execute_batch("ALTER TABLE records RENAME TO lost").unwrap();
    let before = broker.status(id, NOW).unwrap();
    let error = broker.ask(id, expect(), NOW).unwrap_err();
    assert!(matches!(error, Denied::Failed(_)), "{error}");
    assert_eq!(broker.status(id, NOW).unwrap(), before);
    other.execute_batch("ALTER TABLE lost RENAME TO records").unwrap();
    broker.ask(id, expect(), NOW).unwrap();
    assert_eq!(broker.status(id, NOW).unwrap().total_nodes, 5);
    let after = broker.status(id, NOW).unwrap();
    drop(broker);
    let again = Broker::open(dir.path(), "https://127.0.0.1:1").unwrap();
    assert_eq!(again.status(id, NOW).unwrap(), after);
    assert_eq!(again.contact(id).unwrap(), created.contact, "the same keys");
}
