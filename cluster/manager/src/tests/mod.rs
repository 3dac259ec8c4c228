//! The manager with its disk, over hosts of this process.

mod kills;
mod turns;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aerie_cluster_manager_proto::{
    Answer, Caller, ClusterStatus, Command, ContextReport, Entry, MemberState, Operation, Record, Request,
    Scope, Settings, What, Why,
};
use aerie_cluster_node::NodeDriver;
use aerie_cluster_node::fake::{FakeDriver, FakeHost};
use aerie_cluster_proto::amount::{Bytes, Resources};
use aerie_cluster_proto::description::Document;
use aerie_cluster_proto::ledger::RequestId;
use aerie_cluster_proto::placement::{Accelerator, Connections};
use aerie_types::WallMillis;

use crate::journal::{Journal, MAX_RECORDS};
use crate::{
    Config, ContextService, EmbeddedContexts, Error, FolderDisks, FolderImages, Local, LocalHost, Manager,
    NoNetworks,
};

/// How long anything may take before a test has failed.
const LIMIT: Duration = Duration::from_secs(60);

fn ada() -> Caller {
    Caller {
        user: "ada".parse().unwrap(),
        groups: [].into(),
        admin: false,
    }
}

fn id(text: &str) -> RequestId {
    text.parse().unwrap()
}

fn request(name: &str, count: u32, image: &str) -> Request {
    let text = format!(
        "version = 1\nname = \"c\"\n[[workspace]]\nname = \"w\"\ncount = {count}\nimage = \"{image}\"\n\
         resources = {{ cpus = 1, memory = \"64 MiB\", disk = \"1 MiB\" }}\n\
         [[workspace.partition]]\nname = \"disk\"\nsize = \"1 MiB\"\nfilesystem = \"ext4\"\n"
    );
    Request {
        id: id(name),
        group: None,
        description: Document::from_toml(&text).unwrap().description,
    }
}

fn operate(name: &str, operation: Operation) -> Command {
    Command::Operate {
        cluster: id(name),
        scope: Scope::Cluster,
        operation,
    }
}

fn config(dir: &Path) -> Config {
    let mut settings = Settings {
        ask_every: Duration::from_millis(200),
        look_every: Duration::from_millis(200),
        ..Settings::default()
    };
    settings.rules.emulation = true;
    Config {
        dir: dir.join("manager"),
        settings,
    }
}

/// A host in this folder, with an image `debian` in its repository.
fn local(dir: &Path, driver: Arc<dyn NodeDriver>) -> Arc<LocalHost> {
    let repository = dir.join("repository");
    std::fs::create_dir_all(&repository).unwrap();
    std::fs::write(repository.join("debian.raw"), b"an image").unwrap();
    Arc::new(LocalHost::new(Local {
        driver,
        images: Arc::new(FolderImages::new(repository, dir.join("cache"))),
        disks: Arc::new(FolderDisks::new(dir.join("disks"))),
        networks: Arc::new(NoNetworks),
        capacity: Resources {
            cpus: 128,
            memory: Bytes::gib(64),
            disk: Bytes::gib(64),
        },
        connections: Connections::default(),
        accelerator: Accelerator::Emulation,
    }))
}

fn contexts(dir: &Path) -> Arc<dyn ContextService> {
    // The one before may still be on its way out.
    let broker = loop {
        match aerie_context::Broker::open(&dir.join("context"), "https://127.0.0.1:8446") {
            Ok(broker) => break broker,
            Err(aerie_context::Error::InUse { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    Arc::new(EmbeddedContexts::new(
        Arc::new(broker),
        aerie_context_proto::Settings::default(),
    ))
}

async fn manager(dir: &Path, host: &FakeHost) -> Manager {
    let dir_of_contexts = dir.to_owned();
    let contexts = tokio::task::spawn_blocking(move || contexts(&dir_of_contexts))
        .await
        .unwrap();
    let manager = Manager::open(config(dir), Some(contexts)).await.unwrap();
    let driver = Arc::new(driver(host).await);
    manager
        .connect("h1".parse().unwrap(), local(dir, driver))
        .await
        .unwrap();
    let mut root = ada();
    root.admin = true;
    let told = |manager: &Manager| manager.hosts().len() == 1;
    let mut from = 0;
    while !told(&manager) {
        from = manager.next_events(&root, from, LIMIT).await.next;
    }
    manager
}

/// The host's driver, once the one before has let go of it.
async fn driver(host: &FakeHost) -> FakeDriver {
    loop {
        match host.open() {
            Ok(driver) => return driver,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

async fn wait(manager: &Manager, name: &str, is_so: impl Fn(&ClusterStatus) -> bool) -> ClusterStatus {
    let status = manager.wait(&ada(), &id(name), LIMIT, &is_so).await.unwrap();
    assert!(is_so(&status), "{status:?}");
    status
}

fn all(state: MemberState) -> impl Fn(&ClusterStatus) -> bool {
    move |status| status.members.iter().all(|member| member.state == state)
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

#[tokio::test]
async fn a_cluster_is_deployed_over_a_node_driver_walks_its_states_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let host = FakeHost::default();
    let manager = manager(dir.path(), &host).await;
    manager.request(&ada(), request("c", 3, "debian")).await.unwrap();
    let status = wait(&manager, "c", all(MemberState::Started)).await;
    // Each has its disks and its user-data, which names it.
    for member in &status.members {
        let folder = dir.path().join("disks").join(member.guest.to_string());
        let told = std::fs::read(folder.join("user-data")).unwrap();
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(
            told.contains(member.name.as_str()) && told.len().is_multiple_of(512),
            "{told}"
        );
        assert_eq!(std::fs::metadata(folder.join("disk.raw")).unwrap().len(), 1 << 20);
        assert_eq!(
            std::fs::metadata(folder.join("part-disk.raw")).unwrap().len(),
            1 << 20
        );
    }
    let console = manager
        .console(&ada(), &id("c"), &status.members[0].name, 0)
        .await
        .unwrap();
    assert!(console.text().contains("count"));
    for (operation, state) in [
        (Operation::Pause, MemberState::Paused),
        (Operation::Unpause, MemberState::Started),
        (Operation::Suspend, MemberState::Suspended),
        (Operation::Start, MemberState::Started),
        (Operation::Stop, MemberState::Stopped),
    ] {
        manager.command(&ada(), operate("c", operation)).await.unwrap();
        wait(&manager, "c", all(state)).await;
    }
    let save = Some("ada/kept".parse().unwrap());
    manager
        .command(&ada(), operate("c", Operation::Undeploy { save }))
        .await
        .unwrap();
    wait(&manager, "c", |status| status.ended).await;
    assert!(is_empty(&dir.path().join("disks")));
    assert!(dir.path().join("repository/ada+kept+w-2.raw").is_file());
    manager.close().await;
    assert!(driver(&host).await.list().is_empty());
}

#[tokio::test]
async fn a_manager_that_is_opened_again_adopts_what_runs_and_tells_its_events_on() {
    let dir = tempfile::tempdir().unwrap();
    let host = FakeHost::default();
    let first = manager(dir.path(), &host).await;
    first.request(&ada(), request("c", 2, "debian")).await.unwrap();
    let before = wait(&first, "c", |status| {
        status.until.is_some() && status.why().is_none()
    })
    .await;
    let before = wait(&first, &before.id.to_string(), all(MemberState::Started)).await;
    let second = Manager::open(config(dir.path()), None).await.unwrap_err();
    assert!(matches!(second, Error::InUse { .. }));
    assert!(second.to_string().contains("another manager runs on"), "{second}");
    let page = first.events(&ada(), 0);
    first.close().await;
    let again = manager(dir.path(), &host).await;
    let after = wait(&again, "c", all(MemberState::Started)).await;
    assert_eq!(before.members, after.members);
    assert_eq!(again.events(&ada(), 0).events[..page.events.len()], page.events);
    let Answer::Placed { plan, .. } = again.request(&ada(), request("c", 2, "debian")).await.unwrap() else {
        panic!("it has its place");
    };
    assert_eq!(plan.members.len(), 2);
}

#[tokio::test]
async fn a_missing_image_takes_the_cluster_back_and_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let manager = manager(dir.path(), &FakeHost::default()).await;
    manager
        .request(&ada(), request("c", 2, "lab/none@2"))
        .await
        .unwrap();
    let status = wait(&manager, "c", |status| status.ended).await;
    let Some(Why::Failed(why)) = status.why() else {
        panic!("{status:?}");
    };
    assert!(why.contains("there is no image 'lab/none@2' in"), "{why}");
}

#[tokio::test]
async fn a_guest_that_never_reports_to_its_context_is_said_to_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let host = FakeHost::default();
    let broker = aerie_context::Broker::open(&dir.path().join("context"), "https://127.0.0.1:8446").unwrap();
    let broker = Arc::new(broker);
    let contexts = EmbeddedContexts::new(Arc::clone(&broker), aerie_context_proto::Settings::default());
    let manager = Manager::open(config(dir.path()), Some(Arc::new(contexts)))
        .await
        .unwrap();
    let driver = Arc::new(driver(&host).await);
    manager
        .connect("h1".parse().unwrap(), local(dir.path(), driver))
        .await
        .unwrap();
    while manager.hosts().is_empty() {
        tokio::task::yield_now().await;
    }
    manager.request(&ada(), request("c", 1, "debian")).await.unwrap();
    wait(&manager, "c", all(MemberState::Started)).await;
    // The broker's deadline passes.
    let later = WallMillis::from(std::time::SystemTime::now()).plus(Duration::from_secs(3600));
    broker.tick(later).unwrap();
    let failed = |status: &ClusterStatus| matches!(status.members[0].report, Some(ContextReport::Failed(_)));
    let status = wait(&manager, "c", failed).await;
    assert!(!status.ready && status.members[0].state == MemberState::Started);
}

#[tokio::test]
async fn a_disk_that_refuses_refuses_the_command_and_what_hosts_answered_is_taken_in_later() {
    let dir = tempfile::tempdir().unwrap();
    let manager = manager(dir.path(), &FakeHost::default()).await;
    let other = rusqlite::Connection::open(dir.path().join("manager/manager.sqlite")).unwrap();
    other.busy_timeout(LIMIT).unwrap();
    let full =
        "CREATE TRIGGER full BEFORE INSERT ON journal BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    other.execute_batch(full).unwrap();
    let error = manager
        .request(&ada(), request("c", 2, "debian"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the disk is full") && error.contains("then ask again"),
        "{error}"
    );
    assert!(manager.list(&ada()).is_empty());
    other.execute_batch("DROP TRIGGER full").unwrap();
    manager.request(&ada(), request("c", 2, "debian")).await.unwrap();
    other.execute_batch(full).unwrap();
    let error = manager
        .command(&ada(), operate("c", Operation::Pause))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Database { .. }), "{error}");
    other.execute_batch("DROP TRIGGER full").unwrap();
    wait(&manager, "c", all(MemberState::Started)).await;
}

#[tokio::test]
async fn a_damaged_journal_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let host = FakeHost::default();
    let first = manager(dir.path(), &host).await;
    first.request(&ada(), request("c", 1, "debian")).await.unwrap();
    wait(&first, "c", all(MemberState::Started)).await;
    first.close().await;
    let path = dir.path().join("manager/manager.sqlite");
    let cases = [
        (
            "UPDATE journal SET entry = substr(entry, 1, 40) WHERE number = 5",
            "record 5 of the journal",
        ),
        ("DELETE FROM journal WHERE number = 4", "record 4 of the journal"),
    ];
    for (damage, expected) in cases {
        rusqlite::Connection::open(&path)
            .unwrap()
            .execute_batch(damage)
            .unwrap();
        let error = Manager::open(config(dir.path()), None)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(expected) && error.contains("manager.sqlite"),
            "{error}"
        );
    }
}

#[test]
fn a_long_journal_is_shortened_and_reads_back_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    assert!(journal.replay().unwrap().is_none());
    let at = WallMillis(1_900_000_000_000);
    let entry = |record| Entry { at, record };
    let begun = Record::Begun {
        manager: aerie_cluster_manager_proto::ManagerId([1; 7]),
    };
    journal.append(&[entry(begun)]).unwrap();
    let host = "h1".parse().unwrap();
    let told = entry(Record::Told(What::HostBack { host }));
    let many = usize::try_from(MAX_RECORDS).unwrap();
    journal.append(&vec![told.clone(); many]).unwrap();
    assert!(journal.is_long());
    let world = journal.replay().unwrap().unwrap();
    journal
        .compact(&entry(Record::Snapshot(Box::new(world.snapshot()))))
        .unwrap();
    assert!(!journal.is_long());
    let again = journal.replay().unwrap().unwrap();
    assert!(world == again, "the snapshot is of another world");
    journal.append(&[told]).unwrap();
    assert!(journal.replay().unwrap().is_some());
}
