//! Brings a node up: each part in its order, each stage until it is done.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::atomic::AtomicU16;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aerie_condor::Manager;
use aerie_dht::{Dht, IdentityKeys};
use aerie_overlay::Overlay;
use aerie_types::{GridId, Role, VirtualNet};
use aerie_vpn::RouterNonce;
use tokio::sync::{Notify, watch};

use super::carry::{self, OverlayTransport};
use super::enrol::{self, Member};
use super::host::{self, Obstacle};
use super::names::{self, Names};
use super::node::{MANAGERS, Node};
use super::ports::OverlayPorts;
use super::shared::Shared;
use super::trust;
use super::{address, known, pool, programs, serve, source};
use crate::cli::UpArgs;
use crate::error::Error;
use crate::paths::{self, GridPaths};
use crate::status::Stage;

/// How often something is looked at again that another program has to mend.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How long HTCondor may take to end, with its jobs, before the node leaves without it.
const LEAVE_POOL: Duration = Duration::from_secs(60);

/// How soon a manager whose lease was not found is judged again.
const PROVE_AGAIN: Duration = Duration::from_secs(1);

/// How often the overlay is asked for members while there is none.
const MEMBERS_EVERY: Duration = Duration::from_millis(100);

/// Joins the grid and stays, until somebody asks the node to leave. The control socket is there until the end, so that
/// who asked sees when it is done.
pub(crate) async fn join(args: &UpArgs, shared: &Arc<Shared>) -> Result<(), Error> {
    let waiting = listen(args, None, shared).await?;
    let spec = tokio::select! {
        spec = source::find(args, shared) => spec?,
        () = shared.leave_asked() => return Ok(()),
    };
    shared.set_grid(spec.grid.id());
    let paths = GridPaths::new(&args.state, spec.grid.id());
    let _control = listen(args, Some(spec.grid.id()), shared).await?;
    drop(waiting);
    tokio::select! {
        ended = bring_up(args, spec, shared) => ended,
        () = shared.leave_asked() => {
            leave(&paths, shared).await;
            Ok(())
        }
    }
}

/// Undoes what joining did, in the reverse of its order: HTCondor, names, address, network.
async fn leave(paths: &GridPaths, shared: &Shared) {
    match shared.take_pool() {
        Some(pool) => {
            // It has bounds of its own; those of a service manager are added to them.
            if tokio::time::timeout(LEAVE_POOL, pool).await.is_err() {
                tracing::warn!("HTCondor did not end in time; the node leaves all the same");
            }
        }
        None => pool::end_left_over(paths).await,
    }
    if let Some(node) = shared.node() {
        node.leave().await;
        node.shutdown().await;
    }
}

async fn listen(args: &UpArgs, grid: Option<GridId>, shared: &Arc<Shared>) -> Result<serve::Server, Error> {
    let path = match grid {
        Some(grid) => paths::control_socket(&args.run_dir, grid),
        None => paths::waiting_socket(&args.run_dir),
    };
    serve::listen(&path, Arc::clone(shared)).await
}

async fn bring_up(args: &UpArgs, spec: aerie_config::Spec, shared: &Arc<Shared>) -> Result<(), Error> {
    let paths = GridPaths::new(&args.state, spec.grid.id());
    let interface = format!("aerie-{}", spec.grid.id().short());
    fit_for(&spec, &interface, shared).await;
    let member = Arc::new(enrol::become_member(&spec, &paths, shared).await?);
    let node = start(args, spec, paths, interface, Arc::clone(&member), shared).await?;
    keep_member(&node, &member, shared);
    meet_members(args, &node, shared).await;

    let (addr, addr_seen) = watch::channel(None);
    tokio::spawn(names::keep_names(
        Arc::clone(&node),
        Arc::clone(shared),
        addr_seen.clone(),
    ));
    let (managers, managers_seen) = watch::channel(Vec::new());
    tokio::spawn(follow_managers(Arc::clone(&node), managers));
    if args.no_condor || !pool::wanted(member.credential.borrow().roles) {
        let why = if args.no_condor {
            "by --no-condor"
        } else {
            "not part of this node's roles"
        };
        shared.off(Stage::Managers, why);
        shared.off(Stage::Pool, why);
    } else {
        shared.waiting(Stage::Managers, "waits for the address", "");
        shared.waiting(Stage::Pool, "waits for a manager", "");
        shared.set_pool(tokio::spawn(pool::run(
            Arc::clone(&node),
            Arc::clone(shared),
            addr_seen,
            managers_seen,
        )));
    }
    address::hold(&node, &member, &addr, shared).await
}

/// Looks at the machine until it can carry the grid.
async fn fit_for(spec: &aerie_config::Spec, interface: &str, shared: &Shared) {
    loop {
        let fit = match host::check_tun() {
            Ok(()) => host::check_range(spec.grid.pool.range(), interface).await,
            Err(obstacle) => Err(obstacle),
        };
        match fit {
            Ok(()) => return shared.done(Stage::Host, "TUN device usable, range free"),
            Err(Obstacle { reason, hint }) => shared.failed(Stage::Host, reason, hint),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Starts the overlay and the register, and makes the node of them.
async fn start(
    args: &UpArgs,
    spec: aerie_config::Spec,
    paths: GridPaths,
    interface: String,
    member: Arc<Member>,
    shared: &Arc<Shared>,
) -> Result<Arc<Node>, Error> {
    let credential = member.credential.subscribe();
    let der = der_of(&member.credential);
    let roles = credential.borrow().roles;
    let relay = roles.contains(Role::Relay);
    let port = spec.overlay.listen_port;
    let mut config = aerie_overlay::Config::new(spec.grid.id(), &member.keys).map_err(Error::Overlay)?;
    config.listen = aerie_overlay::Config::listen_everywhere(port);
    config.bootstrap = spec
        .overlay
        .bootstrap
        .iter()
        .filter_map(|addr| addr.as_str().parse().ok())
        .collect();
    config.known = known::load(&paths.peers());
    config.external = args.external.iter().flat_map(|ip| external(*ip, port)).collect();
    config.relay = relay;
    config.reserve = !relay;
    config.mdns = !args.no_mdns;
    let net = VirtualNet::new(spec.grid.id(), spec.grid.pool.range());
    config.virtual_net = Some(net);
    let (overlay, events) =
        Overlay::spawn(config, der.clone(), member.trust.verifier()).map_err(Error::Overlay)?;
    let ports = NonZeroU16::new(port).filter(|_| !args.no_upnp).map(|port| {
        let nonce = RouterNonce::of(&member.keys.noise_secret());
        OverlayPorts::start(port, nonce, overlay.clone())
    });
    let mut register = aerie_dht::Config::new(
        spec.grid.id(),
        spec.grid.pool.range(),
        credential.borrow().node.clone(),
        args.founder,
        paths.register(),
    );
    register.pool = spec.grid.pool.clone();
    register.witnesses.clone_from(&spec.grid.witnesses);
    register.fixed = spec.node.address;
    let dht = Dht::start(
        register,
        Arc::new(OverlayTransport(overlay.clone())),
        IdentityKeys::new(member.keys.overlay_signer(), member.trust.verifier(), der),
    )
    .map_err(Error::Register)?;
    let (user_ready, user_credential) = watch::channel(false);
    tokio::spawn(enrol::keep_user_credential(
        Arc::clone(&member),
        paths.clone(),
        user_ready,
    ));
    let node = Arc::new(Node {
        names: Names::new(spec.grid.name.clone(), net),
        spec,
        paths,
        interface,
        port_mapping: !args.no_upnp,
        ports: Mutex::new(ports),
        overlay,
        dht,
        trust: member.trust.clone(),
        credential,
        managers: Mutex::new(Vec::new()),
        member_came: Notify::new(),
        member_gone: Notify::new(),
        version: programs::version(),
        programs: programs::installed(),
        user_credential,
        tunnel: Mutex::new(None),
        tunnel_ended: Notify::new(),
        data_port: AtomicU16::new(0),
        tls_port: AtomicU16::new(0),
        relays: Mutex::new(BTreeMap::new()),
    });
    shared.set_node(Arc::clone(&node));
    tokio::spawn(carry::overlay_events(Arc::clone(&node), events));
    tokio::spawn(known::keep(Arc::clone(&node)));
    tokio::spawn(names::learn_members(Arc::clone(&node)));
    Ok(node)
}

/// The credential's bytes, as the overlay and the register show them to others.
fn der_of(credential: &watch::Sender<Arc<aerie_identity::Credential>>) -> watch::Receiver<Arc<Vec<u8>>> {
    let mut credentials = credential.subscribe();
    let (send, receive) = watch::channel(Arc::new(credentials.borrow_and_update().der.clone()));
    tokio::spawn(async move {
        while credentials.changed().await.is_ok() {
            send.send_replace(Arc::new(credentials.borrow_and_update().der.clone()));
        }
    });
    receive
}

fn external(ip: IpAddr, port: u16) -> Vec<aerie_overlay::Multiaddr> {
    let family = if ip.is_ipv4() { "ip4" } else { "ip6" };
    [
        format!("/{family}/{ip}/tcp/{port}"),
        format!("/{family}/{ip}/udp/{port}/quic-v1"),
    ]
    .iter()
    .filter_map(|text| text.parse().ok())
    .collect()
}

/// Keeps the credentials fresh and the revocations applied.
fn keep_member(node: &Arc<Node>, member: &Arc<Member>, shared: &Arc<Shared>) {
    tokio::spawn(enrol::keep_renewed(
        Arc::clone(member),
        node.paths.clone(),
        Arc::clone(shared),
    ));
    tokio::spawn(trust::watch_self(Arc::clone(node), Arc::clone(shared)));
    let for_lists = Arc::clone(node);
    let apply = move |list: Vec<u8>| {
        let node = Arc::clone(&for_lists);
        async move {
            if let Err(error) = trust::apply(&node, &list).await {
                tracing::warn!(error, "the portal's revocation list was refused");
            }
        }
    };
    tokio::spawn(enrol::poll_revocations(
        Arc::clone(member),
        node.overlay.clone(),
        apply,
    ));
}

/// Waits until an admitted member is connected, or this node is the founder.
async fn meet_members(args: &UpArgs, node: &Node, shared: &Shared) {
    let bootstrap = node.spec.overlay.bootstrap.len();
    loop {
        match node.overlay.members().await.map_or(0, |members| members.len()) {
            0 if args.founder => {
                return shared.done(Stage::Overlay, "the grid's founder; others may come");
            }
            0 => shared.waiting(
                Stage::Overlay,
                format!("no member reached yet, of {bootstrap} bootstrap addresses and the local network"),
                "check that a relay runs and that its port is open; the grid's first member is started with --founder",
            ),
            count => return shared.done(Stage::Overlay, format!("connected to {count} member(s)")),
        }
        tokio::time::sleep(MEMBERS_EVERY).await;
    }
}

/// Turns the managers set into what HTCondor's task wants to know.
async fn follow_managers(node: Arc<Node>, managers: watch::Sender<Vec<Manager>>) {
    let mut entries = node.dht.watch_set(MANAGERS);
    loop {
        let seen = entries.borrow_and_update().clone();
        let before = managers.borrow().clone();
        let (next, unproved) = node.announced_managers(&seen, &before).await;
        managers.send_if_modified(|before| {
            let changed = *before != next;
            *before = next;
            changed
        });
        let again = async {
            match unproved {
                0 => std::future::pending().await,
                _ => tokio::time::sleep(PROVE_AGAIN).await,
            }
        };
        tokio::select! {
            changed = entries.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}
