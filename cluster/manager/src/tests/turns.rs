//! Turns of the one task that fail.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aerie_cluster_manager_proto::{Core, Facts, Inventory, ManagerId, OpId, Outcome, Settings, World};
use aerie_cluster_proto::amount::{Bytes, Resources};
use aerie_cluster_proto::placement::{Accelerator, Connections};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::LIMIT;
use crate::journal::Journal;
use crate::manager::{Clock, Links};
use crate::task::{Input, Task};

fn clock() -> Clock {
    Clock(Instant::now())
}

/// A task over a core, with a journal that has not begun.
fn task(dir: &Path, core: Core) -> (Task, mpsc::Sender<Input>) {
    let (inputs, received) = mpsc::channel(8);
    let task = Task {
        journal: Journal::open(dir).unwrap(),
        contexts: None,
        links: Links::default(),
        clock: clock(),
        published: watch::channel(Arc::new(core.clone())).0,
        core,
        inputs: received,
        outcomes: inputs.downgrade(),
        running: BTreeMap::new(),
        late: Vec::new(),
        failing: false,
    };
    (task, inputs)
}

fn told() -> Input {
    let facts = Facts {
        capacity: Resources {
            cpus: 1,
            memory: Bytes::gib(1),
            disk: Bytes::gib(1),
        },
        images: [].into(),
        connections: Connections::default(),
        accelerator: Accelerator::Kvm,
    };
    let guests = Vec::new();
    // The first that is begun is the question to the host.
    Input::Outcome(
        OpId(1),
        Box::new(Outcome::Inventory(Ok(Inventory { facts, guests }))),
    )
}

/// A core that has asked its one host.
fn asked(mut core: Core) -> Core {
    let now = clock().now();
    core.connect("h1".parse().unwrap(), now);
    core.tick(now);
    assert_eq!(core.take_effects().len(), 1);
    core
}

#[tokio::test]
async fn what_is_kept_while_the_disk_refuses_is_what_hosts_answered_and_no_hint() {
    let dir = tempfile::tempdir().unwrap();
    let core = Core::begin(ManagerId([1; 7]), Settings::default(), clock().now());
    let (task, _inputs) = task(dir.path(), asked(core));
    let other = rusqlite::Connection::open(dir.path().join("manager.sqlite")).unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON journal BEGIN SELECT RAISE(ABORT, 'full'); END";
    other.execute_batch(full).unwrap();
    let host = || Input::Changed("h1".parse().unwrap());
    let task = task.turn(vec![host(), told(), host()]).await.unwrap();
    assert!(task.failing);
    assert!(matches!(task.late.as_slice(), [Input::Outcome(OpId(1), _)]));
}

#[tokio::test]
async fn what_the_core_cannot_take_in_is_dropped_and_the_next_turn_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    // A world without a beginning takes no record.
    let core = Core::resume(World::default(), Settings::default(), clock().now());
    let (task, _inputs) = task(dir.path(), asked(core));
    let task = task.turn(vec![told()]).await.unwrap();
    assert!(task.failing && task.late.is_empty());
    let task = task.turn(Vec::new()).await.unwrap();
    assert!(!task.failing);
}

#[tokio::test]
async fn a_panic_in_the_core_ends_what_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        // No time is so long after now.
        ask_every: Duration::MAX,
        ..Settings::default()
    };
    let core = Core::begin(ManagerId([1; 7]), settings, clock().now());
    let (mut task, inputs) = task(dir.path(), core);
    let effect = tokio::spawn(std::future::pending::<()>());
    task.running.insert(OpId(1), effect.abort_handle());
    inputs.send(Input::Changed("h1".parse().unwrap())).await.unwrap();
    tokio::time::timeout(LIMIT, task.run()).await.unwrap();
    let ended = tokio::time::timeout(LIMIT, effect).await.unwrap();
    assert!(ended.unwrap_err().is_cancelled());
}
