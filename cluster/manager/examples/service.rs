//! How long the manager itself takes: clusters on a host whose guests boot in no time, with a journal on the disk.
//! `cargo run --example service -p aerie-cluster-manager`

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aerie_cluster_manager::proto::{
    Caller, ClusterStatus, Command, MemberState, Operation, Request, Scope, Settings,
};
use aerie_cluster_manager::{Config, FolderDisks, FolderImages, Local, LocalHost, Manager, NoNetworks};
use aerie_cluster_node::fake::FakeHost;
use aerie_cluster_proto::amount::{Bytes, Resources};
use aerie_cluster_proto::description::Document;
use aerie_cluster_proto::placement::{Accelerator, Connections};

const LIMIT: Duration = Duration::from_secs(120);

fn all(state: MemberState) -> impl Fn(&ClusterStatus) -> bool {
    move |status| status.members.iter().all(|member| member.state == state)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let repository = dir.path().join("repository");
    std::fs::create_dir_all(&repository)?;
    std::fs::write(repository.join("debian.raw"), b"an image")?;
    let mut settings = Settings::default();
    settings.rules.emulation = true;
    let config = Config {
        dir: dir.path().join("manager"),
        settings,
    };
    let manager = Manager::open(config, None).await?;
    let host = LocalHost::new(Local {
        driver: Arc::new(FakeHost::default().open()?),
        images: Arc::new(FolderImages::new(repository, dir.path().join("cache"))),
        disks: Arc::new(FolderDisks::new(dir.path().join("disks"))),
        networks: Arc::new(NoNetworks),
        capacity: Resources {
            cpus: 256,
            memory: Bytes::gib(256),
            disk: Bytes::gib(256),
        },
        connections: Connections::default(),
        accelerator: Accelerator::Emulation,
    });
    manager.connect("h1".parse()?, Arc::new(host)).await?;
    let caller = Caller {
        user: "ada".parse()?,
        groups: [].into(),
        admin: true,
    };
    let mut from = 0;
    while manager.hosts().is_empty() {
        from = manager.next_events(&caller, from, LIMIT).await.next;
    }
    println!(
        "members   deploy ms    pause  unpause  suspend    start     stop  undeploy   (ms for a member)"
    );
    for count in [1_u32, 3, 4, 16, 64] {
        let id: aerie_cluster_proto::ledger::RequestId = format!("c{count}").parse()?;
        let text = format!(
            "version = 1\nname = \"c\"\n[[workspace]]\nname = \"w\"\ncount = {count}\nimage = \"debian\"\n\
             resources = {{ cpus = 1, memory = \"64 MiB\", disk = \"1 MiB\" }}\n"
        );
        let description = Document::from_toml(&text)?.description;
        let begin = Instant::now();
        let request = Request {
            id: id.clone(),
            group: None,
            description,
        };
        manager.request(&caller, request).await?;
        let status = manager
            .wait(&caller, &id, LIMIT, all(MemberState::Started))
            .await?;
        if !all(MemberState::Started)(&status) {
            return Err(format!("it was not deployed: {status:?}").into());
        }
        print!("{count:7} {:11.1}", begin.elapsed().as_secs_f64() * 1e3);
        for (operation, state) in [
            (Operation::Pause, MemberState::Paused),
            (Operation::Unpause, MemberState::Started),
            (Operation::Suspend, MemberState::Suspended),
            (Operation::Start, MemberState::Started),
            (Operation::Stop, MemberState::Stopped),
        ] {
            let begin = Instant::now();
            let command = Command::Operate {
                cluster: id.clone(),
                scope: Scope::Cluster,
                operation,
            };
            manager.command(&caller, command).await?;
            manager.wait(&caller, &id, LIMIT, all(state)).await?;
            print!(" {:8.2}", begin.elapsed().as_secs_f64() * 1e3 / f64::from(count));
        }
        let begin = Instant::now();
        let command = Command::Operate {
            cluster: id.clone(),
            scope: Scope::Cluster,
            operation: Operation::Undeploy { save: None },
        };
        manager.command(&caller, command).await?;
        manager.wait(&caller, &id, LIMIT, |status| status.ended).await?;
        println!("  {:8.2}", begin.elapsed().as_secs_f64() * 1e3 / f64::from(count));
    }
    manager.close().await;
    Ok(())
}
