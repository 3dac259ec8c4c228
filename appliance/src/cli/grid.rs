//! `aerie grid`: what an administrator does in the folder of the grid's CA and database.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use aerie_config::{Bundle, CaHash, Condor, Enrol, EnrolUrl, Grid, Node, Overlay, SecretText, Spec, Vpn};
use aerie_portal::{BlobRequest, GridSettings, Portal, Target};
use aerie_types::{AddressPool, Role, VirtualAddr, WallMillis};
use anyhow::{Context, Result, anyhow, bail};
use comfy_table::{Table, presets};

use super::{BlobArgs, BlobForm, GridCommand, GroupCommand, RevokeOptions, RevokeTarget};
use crate::client::ask_all;
use crate::control::{Reply, Request};

pub(super) fn run(command: GridCommand) -> Result<ExitCode> {
    match command {
        GridCommand::Create {
            name,
            range,
            reserve,
            exclude,
            routed,
            block,
            witnesses,
            dir,
            json,
        } => {
            let mut pool = AddressPool::new(range, reserve, exclude)?;
            if let Some(part) = routed {
                pool = pool.with_routed(part, block)?;
            }
            let settings = GridSettings { pool, witnesses };
            let portal = Portal::create_grid(&dir.dir, name, settings, now())?;
            give_to_owner(&dir.dir)
                .with_context(|| format!("cannot give what is in {} to its owner", dir.dir.display()))?;
            let grid = portal.grid();
            let GridSettings { pool, witnesses } = portal.settings()?;
            if json {
                let value = serde_json::json!({
                    "name": grid.name.as_str(),
                    "id": grid.id.to_string(),
                    "ca_hash": CaHash(grid.ca_hash).to_string(),
                    "range": grid.range.to_string(),
                    "reserved": pool.reserved(),
                    "excluded": pool.excluded(),
                    "routed": pool.routed().map(|routed| {
                        serde_json::json!({ "range": routed.part(), "block": routed.block_len() })
                    }),
                    "witnesses": witnesses.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
                    "dir": dir.dir,
                });
                println!("{value:#}");
            } else {
                println!(
                    "Grid {} ({}), addresses out of {}.",
                    grid.name, grid.id, grid.range
                );
                if let Some(routed) = pool.routed() {
                    println!(
                        "{} prefixes for nodes that route for others: {routed}.",
                        pool.blocks()
                    );
                }
                if !witnesses.is_empty() {
                    let names: Vec<_> = witnesses.iter().map(|name| name.as_str()).collect();
                    println!(
                        "Strict mode: make blobs with --name for {}, and start each of them once with \
                         'aerie up --founder'.",
                        names.join(", ")
                    );
                }
                println!(
                    "Its CA and database are in {}: keep that folder safe and backed up.",
                    dir.dir.display()
                );
                println!("Next: 'aerie grid group add NAME', 'aerie portal serve', 'aerie grid blob'.");
            }
        }
        GridCommand::Group(GroupCommand::Add { name, dir }) => {
            open(&dir.dir)?.add_group(&name, now())?;
            println!("Group {name} added.");
        }
        GridCommand::Group(GroupCommand::List { dir, json }) => list_groups(&open(&dir.dir)?, json)?,
        GridCommand::Blob(args) => blob(&args)?,
        GridCommand::Nodes { dir, json } => list_nodes(&open(&dir.dir)?, json)?,
        GridCommand::Revoke { target } => revoke(target)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn now() -> WallMillis {
    SystemTime::now().into()
}

fn open(dir: &Path) -> Result<Portal> {
    Ok(Portal::open(dir, now())?)
}

fn list_groups(portal: &Portal, json: bool) -> Result<()> {
    let groups = portal.list_groups()?;
    if json {
        let values: Vec<_> = groups
            .iter()
            .map(|g| serde_json::json!({"name": g.name.as_str(), "nodes": g.nodes, "revoked": g.revoked}))
            .collect();
        println!("{:#}", serde_json::Value::from(values));
        return Ok(());
    }
    let mut table = table(["group", "nodes", ""]);
    for group in groups {
        let mark = if group.revoked { "revoked" } else { "" };
        table.add_row([group.name.to_string(), group.nodes.to_string(), mark.to_owned()]);
    }
    println!("{table}");
    Ok(())
}

fn list_nodes(portal: &Portal, json: bool) -> Result<()> {
    let nodes = portal.list_nodes()?;
    if json {
        let values: Vec<_> = nodes
            .iter()
            .map(|node| {
                serde_json::json!({
                    "name": node.name.as_str(),
                    "peer": node.peer.to_string(),
                    "user": node.user.as_str(),
                    "group": node.group.as_str(),
                    "roles": node.roles.to_string(),
                    "credential_secs": node.not_after.since(now()).as_secs(),
                    "revoked": node.revoked.is_some(),
                })
            })
            .collect();
        println!("{:#}", serde_json::Value::from(values));
        return Ok(());
    }
    let mut table = table(["node", "user", "group", "roles", "credential"]);
    for node in nodes {
        let days = node.not_after.since(now()).as_secs() / 86_400;
        let state = match node.revoked {
            Some(_) => "revoked".to_owned(),
            None => format!("{days} days left"),
        };
        table.add_row([
            node.name.to_string(),
            node.user.to_string(),
            node.group.to_string(),
            node.roles.to_string(),
            state,
        ]);
    }
    println!("{table}");
    Ok(())
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn blob(args: &BlobArgs) -> Result<()> {
    let portal = open(&args.dir.dir)?;
    let bootstrap = args
        .bootstrap
        .iter()
        .map(|addr| with_peer(addr, &portal))
        .collect::<Result<Vec<_>>>()?;
    // Everything that can be refused is refused before a token exists.
    let pool = portal.settings()?.pool;
    if let Some(addr) = args.address
        && !pool.leases(addr.into())
    {
        bail!(
            "--address {addr} is no address that nodes may have: choose one of {} that is neither excluded nor routed",
            pool.range()
        );
    }
    let urls = args
        .urls
        .iter()
        .map(|url| {
            url.parse::<EnrolUrl>()
                .map_err(|why| anyhow!("--url {url} {why}"))
        })
        .collect::<Result<Vec<_>>>()?;
    let bootstrap_addrs = bootstrap
        .iter()
        .map(|addr| addr.parse().map_err(|why| anyhow!("--bootstrap {addr} {why}")))
        .collect::<Result<Vec<_>>>()?;
    let params = portal.make_blob(
        BlobRequest {
            group: args.group.clone(),
            roles: args.role,
            user: args.user.clone(),
            urls: args.urls.clone(),
            bootstrap,
            ttl: args.ttl,
            uses: args.uses,
        },
        now(),
    )?;
    let spec = Spec {
        grid: Grid {
            name: params.grid_name,
            ca_hash: CaHash(params.ca_hash),
            pool: params.settings.pool,
            witnesses: params.settings.witnesses,
        },
        enrol: Enrol {
            urls,
            token: Some(SecretText::new(params.token.to_string())),
        },
        node: Node {
            name: args.name.clone(),
            roles: params.roles,
            group: Some(params.group),
            address: args.address.map(VirtualAddr::from),
        },
        overlay: Overlay {
            bootstrap: bootstrap_addrs,
            ..Overlay::default()
        },
        vpn: Vpn::default(),
        condor: Condor::default(),
    };
    write_blob(&Bundle::of_spec(&spec), &spec, args)?;
    if args.out != Path::new("-") {
        eprintln!(
            "{}: {} of group {}, for {} node(s), token {} good for {}.",
            args.out.display(),
            args.role,
            args.group,
            args.uses,
            params.token_id,
            humantime::format_duration(args.ttl),
        );
        if args.bootstrap.is_empty() && !args.role.contains(Role::Relay) {
            eprintln!(
                "note: no --bootstrap was given, so that a node will find others only on its own network"
            );
        }
    }
    Ok(())
}

/// A bootstrap address without a peer id is completed with that of the grid's only relay.
fn with_peer(addr: &str, portal: &Portal) -> Result<String> {
    if addr.contains("/p2p/") {
        return Ok(addr.to_owned());
    }
    let relays: Vec<_> = portal
        .list_nodes()?
        .into_iter()
        .filter(|node| node.roles.contains(Role::Relay) && node.revoked.is_none())
        .collect();
    match relays.as_slice() {
        [one] => Ok(format!("{}/p2p/{}", addr.trim_end_matches('/'), one.peer)),
        [] => bail!(
            "--bootstrap {addr} names no peer, and no relay has enrolled yet whose id could be taken: start the \
             relay first, or end the address with /p2p/ and the member's peer id"
        ),
        many => {
            let names: Vec<_> = many
                .iter()
                .map(|node| format!("{} /p2p/{}", node.name, node.peer))
                .collect();
            bail!(
                "--bootstrap {addr} could be any of several relays; end it with one of: {}",
                names.join(", ")
            )
        }
    }
}

/// Makes what root wrote into a folder its owner's: the service that enrols nodes runs as a user of its own.
fn give_to_owner(dir: &Path) -> std::io::Result<()> {
    let owner = std::fs::metadata(dir)?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let own = entry.metadata()?;
        if (own.uid(), own.gid()) != (owner.uid(), owner.gid()) {
            std::os::unix::fs::lchown(entry.path(), Some(owner.uid()), Some(owner.gid()))?;
        }
    }
    Ok(())
}

fn write_blob(bundle: &Bundle, spec: &Spec, args: &BlobArgs) -> Result<()> {
    let bytes = match args.form {
        BlobForm::Dir => {
            return bundle
                .to_dir(&args.out)
                .with_context(|| format!("cannot write the blob into {}", args.out.display()));
        }
        BlobForm::Floppy => bundle.to_floppy()?,
        BlobForm::Zip => bundle.to_zip()?,
        BlobForm::UserData => bundle.to_user_data()?,
        BlobForm::Line => super::join::line(bundle)?.into_bytes(),
        BlobForm::Toml => spec.to_toml().as_bytes().to_vec(),
    };
    if args.out == Path::new("-") {
        use std::io::Write;
        std::io::stdout()
            .write_all(&bytes)
            .context("cannot write the blob to standard output")
    } else {
        // The blob holds a token: for the owner's eyes.
        aerie_identity::files::write_atomic(&args.out, &bytes, 0o600)
            .with_context(|| format!("cannot write the blob to {}", args.out.display()))
    }
}

fn revoke(target: RevokeTarget) -> Result<()> {
    let (target, what, options) = match target {
        RevokeTarget::Node { name, options } => (Target::Node(name.clone()), format!("node {name}"), options),
        RevokeTarget::User { name, options } => (Target::User(name.clone()), format!("user {name}"), options),
        RevokeTarget::Group { name, options } => {
            (Target::Group(name.clone()), format!("group {name}"), options)
        }
    };
    let RevokeOptions { dir, run_dir } = options;
    let portal = open(&dir.dir)?;
    let list = portal.revoke(&target, now())?;
    let request = Request::Revocations {
        list: hex::encode(list.encode()),
    };
    println!("Revoked: {what}.");
    let mut spread = false;
    for answer in ask_all(&run_dir, &request) {
        match answer {
            Ok(Reply::Ok { message }) => {
                spread = true;
                println!("{message}");
            }
            Ok(Reply::Error { message }) => eprintln!("aerie: a daemon here refused the list: {message}"),
            Ok(_) => {}
            Err(error) => eprintln!("aerie: a daemon here did not take the list: {error:#}"),
        }
    }
    if !spread {
        println!(
            "No member runs on this machine to spread the list at once; members fetch it from the portal within a \
             minute."
        );
    }
    Ok(())
}
