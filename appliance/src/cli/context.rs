//! `aerie context`: the context broker, and what a creator of contexts does with it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aerie_context::{Broker, ServeConfig, Server};
use aerie_context_client::{Client, Form};
use aerie_context_proto::wire::CreateQuery;
use aerie_context_proto::{
    BrokerFile, Cluster, ContextId, DataName, MemberName, SetName, Status, UserData, limits, xml,
};
use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use comfy_table::{Table, presets};

use super::{LogFormat, logging};
use crate::paths;

/// Which broker is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct BrokerArgs {
    /// The broker's file, `broker.json` in its folder, or a copy of it on another machine.
    #[arg(
        long = "broker",
        value_name = "FILE",
        env = "AERIE_CONTEXT_BROKER",
        default_value = paths::CONTEXT_BROKER
    )]
    known: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Serve contexts over HTTPS until stopped.
    Serve {
        /// Folder of the database and the keys.
        #[arg(long, value_name = "DIR", default_value = paths::CONTEXT_DIR)]
        dir: PathBuf,
        /// The address to listen at.
        #[arg(long, default_value = "0.0.0.0:8446")]
        listen: SocketAddr,
        /// Where members reach this service, such as https://192.0.2.10:8446; it goes into their user-data.
        #[arg(long, value_name = "URL")]
        url: String,
    },
    /// Create a context for a cluster, and write the user-data of its machines.
    Create {
        /// The cluster document, XML or JSON; `-` for standard input.
        file: PathBuf,
        /// More data or members are to be added before anything is published: end with `aerie context close`.
        #[arg(long)]
        open: bool,
        /// How long a member has to report, such as 15m.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        report: Option<Duration>,
        /// How long a member has to configure itself by a version.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        exit: Option<Duration>,
        /// How often a member may try a version.
        #[arg(long, value_name = "NUMBER")]
        attempts: Option<u32>,
        /// How long a member waits before it tries again.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        retry: Option<Duration>,
        /// Write the user-data of each set into this folder, as SET.xml. It holds the context's secret.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        #[command(flatten)]
        broker: BrokerArgs,
    },
    /// List the contexts that live.
    List {
        #[command(flatten)]
        broker: BrokerArgs,
    },
    /// Show how far a context is, and who waits for what. The exit code is 1 if a member has failed, or is not done.
    Status {
        /// The context.
        id: ContextId,
        /// Wait up to this long until every member is done or has failed.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        wait: u64,
        /// Show the steps of each member's last report with their logs.
        #[arg(long)]
        logs: bool,
        #[command(flatten)]
        broker: BrokerArgs,
    },
    /// Print the user-data of a machine of a set. It holds the context's secret.
    UserData {
        /// The context.
        id: ContextId,
        /// The set.
        set: SetName,
        /// The member that the machine is; without it the broker gives it the first free place of the set.
        #[arg(long)]
        member: Option<MemberName>,
        #[command(flatten)]
        broker: BrokerArgs,
    },
    /// Add a data blob to an open context.
    Inject {
        /// The context.
        id: ContextId,
        /// The blob's name.
        name: DataName,
        /// The blob: text, at most 64 KiB.
        file: PathBuf,
        #[command(flatten)]
        broker: BrokerArgs,
    },
    /// Say that nothing more is added to an open context.
    Close {
        /// The context.
        id: ContextId,
        #[command(flatten)]
        broker: BrokerArgs,
    },
    /// Expect more members of a set: the next version is for them too.
    Expect {
        /// The context.
        id: ContextId,
        /// The set.
        set: SetName,
        /// How many members it is to have in all.
        quantity: u32,
        #[command(flatten)]
        broker: BrokerArgs,
    },
    /// Take a member out: the next version is without it.
    Remove {
        /// The context.
        id: ContextId,
        /// The member.
        member: MemberName,
        #[command(flatten)]
        broker: BrokerArgs,
    },
    /// End a context. Its agents are told so.
    Destroy {
        /// The context.
        id: ContextId,
        #[command(flatten)]
        broker: BrokerArgs,
    },
}

/// How often `status --wait` looks.
const LOOK: Duration = Duration::from_millis(500);

pub(super) fn run(command: ContextCommand) -> Result<ExitCode> {
    match command {
        ContextCommand::Serve { dir, listen, url } => return serve(&dir, listen, &url),
        ContextCommand::Create {
            file,
            open,
            report,
            exit,
            attempts,
            retry,
            out,
            broker,
        } => {
            let secs = |duration: Option<Duration>| duration.map(|duration| duration.as_secs());
            let query = CreateQuery {
                open,
                report_secs: secs(report),
                exit_secs: secs(exit),
                attempts,
                retry_secs: secs(retry),
            };
            create(&broker, &file, &query, out.as_deref())?;
        }
        ContextCommand::List { broker } => list(&broker)?,
        ContextCommand::Status {
            id,
            wait,
            logs,
            broker,
        } => return status(&broker, id, wait, logs),
        ContextCommand::UserData {
            id,
            set,
            member,
            broker,
        } => {
            let data = client(&broker)?.user_data(id, &set, member.as_ref())?;
            print_user_data(&data, broker.json)?;
        }
        ContextCommand::Inject {
            id,
            name,
            file,
            broker,
        } => {
            let content = read(&file, limits::MAX_DATA_BYTES)?;
            client(&broker)?.inject(id, &name, &content)?;
            done(&broker, &format!("Data {name} added."));
        }
        ContextCommand::Close { id, broker } => {
            client(&broker)?.close(id)?;
            done(&broker, "Closed.");
        }
        ContextCommand::Expect {
            id,
            set,
            quantity,
            broker,
        } => {
            let members = client(&broker)?.expect(id, &set, quantity)?;
            if broker.json {
                println!("{:#}", serde_json::json!({ "members": members }));
            } else {
                let names: Vec<_> = members.iter().map(MemberName::as_str).collect();
                println!("Expected of {set}: {}.", names.join(", "));
            }
        }
        ContextCommand::Remove { id, member, broker } => {
            client(&broker)?.remove(id, &member)?;
            done(&broker, &format!("{member} removed."));
        }
        ContextCommand::Destroy { id, broker } => {
            client(&broker)?.destroy(id)?;
            done(&broker, &format!("Context {id} destroyed."));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn done(broker: &BrokerArgs, message: &str) {
    if broker.json {
        println!("{:#}", serde_json::json!({ "ok": true }));
    } else {
        println!("{message}");
    }
}

fn serve(dir: &Path, listen: SocketAddr, url: &str) -> Result<ExitCode> {
    logging::init(LogFormat::Text);
    let broker = Arc::new(Broker::open(dir, url)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let server = Server::start(broker, ServeConfig::new(listen)).await?;
        eprintln!(
            "Contexts at https://{}, for members at {url}; creators need {}. Stop with Ctrl-C.",
            server.local_addr(),
            dir.join("broker.json").display()
        );
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .context("cannot wait for signals")?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for signals")?,
            _ = term.recv() => {}
        }
        server.shutdown().await;
        Ok(ExitCode::SUCCESS)
    })
}

fn client(args: &BrokerArgs) -> Result<Client> {
    let path = args.known.display();
    let text = std::fs::read(&args.known).with_context(|| {
        format!("cannot read {path}; `aerie context serve` writes it, and --broker names a copy of it")
    })?;
    let file: BrokerFile = serde_json::from_slice(&text)
        .with_context(|| format!("{path} is no broker's file; copy broker.json of its folder anew"))?;
    Ok(Client::creator(&file)?)
}

/// Reads a text that may be at most so long.
fn read(file: &Path, limit: usize) -> Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let most = limit as u64 + 1;
    if file == Path::new("-") {
        std::io::stdin().take(most).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(most).read_to_string(&mut text))
    }
    .with_context(|| format!("cannot read {} as text", file.display()))?;
    if text.len() > limit {
        bail!("{} is longer than {limit} bytes", file.display());
    }
    Ok(text)
}

fn create(args: &BrokerArgs, file: &Path, query: &CreateQuery, out: Option<&Path>) -> Result<()> {
    let document = read(file, limits::MAX_DOCUMENT_BYTES)?;
    let form = if document.trim_start().starts_with('{') {
        Form::Json
    } else {
        Form::Xml
    };
    // Read here too, so that what is wrong is said with the file's name before anybody is asked.
    let cluster = match form {
        Form::Json => Cluster::from_json(&document),
        Form::Xml => xml::read_cluster(&document),
    };
    let cluster = cluster.with_context(|| format!("{} cannot be used", file.display()))?;
    let client = client(args)?;
    let created = client.create(&document, form, query)?;
    let mut written = Vec::new();
    if let Some(dir) = out {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for set in &cluster.workspaces {
            let path = dir.join(format!("{}.xml", set.name));
            let data = client.user_data(created.id, &set.name, None)?;
            write_private(&path, xml::write_user_data(&data).as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            written.push(path);
        }
    }
    if args.json {
        println!("{:#}", serde_json::to_value(&created)?);
        return Ok(());
    }
    println!(
        "Context {} expects {} members.",
        created.id,
        created.members.len()
    );
    for path in written {
        println!("User-data with the context's secret: {}", path.display());
    }
    if out.is_none() {
        println!(
            "Next: 'aerie context user-data {} SET' for each set of machines.",
            created.id
        );
    }
    Ok(())
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // What is there may be readable by others, and keeps its mode when it is overwritten.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

fn print_user_data(data: &UserData, json: bool) -> Result<()> {
    if json {
        println!("{:#}", serde_json::to_value(data)?);
    } else {
        print!("{}", xml::write_user_data(data));
    }
    Ok(())
}

fn list(args: &BrokerArgs) -> Result<()> {
    let contexts = client(args)?.list()?;
    if args.json {
        println!("{:#}", serde_json::to_value(&contexts)?);
        return Ok(());
    }
    let mut table = table(["context", "age", "version", "members", "ok", "failed", ""]);
    for context in contexts {
        table.add_row([
            context.id.to_string(),
            humantime::format_duration(Duration::from_secs(context.age_secs)).to_string(),
            context.version.to_string(),
            context.total_nodes.to_string(),
            context.ok.to_string(),
            context.failed.to_string(),
            summary(&context).to_owned(),
        ]);
    }
    println!("{table}");
    Ok(())
}

fn summary(status: &Status) -> &'static str {
    if status.open {
        "open"
    } else if !status.complete {
        "gathering"
    } else if status.all_ok {
        "all ok"
    } else if is_over(status) {
        "over, with failures"
    } else {
        "configuring"
    }
}

/// Whether nobody is waited for.
fn is_over(status: &Status) -> bool {
    status.complete && status.ok + status.failed == status.total_nodes
}

fn status(args: &BrokerArgs, id: ContextId, wait: u64, logs: bool) -> Result<ExitCode> {
    let client = client(args)?;
    let until = Instant::now() + Duration::from_secs(wait);
    let status = loop {
        let status = client.status(id)?;
        if is_over(&status) || Instant::now() >= until {
            break status;
        }
        std::thread::sleep(LOOK);
    };
    let code = if status.all_ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    if args.json {
        println!("{:#}", serde_json::to_value(&status)?);
        return Ok(code);
    }
    println!(
        "Context {}: {}; version {}, {} of {} members reported, {} ok, {} failed.",
        status.id,
        summary(&status),
        status.version,
        status.registered,
        status.total_nodes,
        status.ok,
        status.failed
    );
    let mut table = table(["member", "phase", "version", "addresses"]);
    for member in &status.members {
        let addresses: Vec<_> = member
            .identities
            .iter()
            .map(|identity| identity.ip.to_string())
            .collect();
        table.add_row([
            member.name.to_string(),
            member.phase.as_str().to_owned(),
            member.version.to_string(),
            addresses.join(", "),
        ]);
    }
    println!("{table}");
    for wait in &status.waits {
        println!("{wait}");
    }
    if logs {
        for member in &status.members {
            for step in member.exit.iter().flat_map(|exit| &exit.steps) {
                let code = step
                    .code
                    .map_or("ended".to_owned(), |code| format!("code {code}"));
                println!(
                    "--- {} {}: {code} after {} ms",
                    member.name, step.name, step.millis
                );
                // A member's own words, of which a terminal must obey none.
                let shown: String = step
                    .log
                    .chars()
                    .filter(|c| matches!(c, '\n' | '\t') || !c.is_control())
                    .collect();
                println!("{}", shown.trim_end());
            }
        }
    }
    Ok(code)
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}
