//! The lab: owns an internet, sites, hosts and nodes, and removes all of them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest::{Dhcp, Guest, Setup};
use crate::line::Quality;
use crate::metadata::Metadata;
use crate::nat::Nat;
use crate::netns::NetNs;
use crate::network::{Bare, Internet, Lease, Port, Router, Segment};
use crate::node::{self, Node};
use crate::portmap::{PortMapper, PortProtocol};
use crate::state::{self, State};
use crate::{rootfs, wait};

/// How many of a log's last lines a failure shows.
const SHOWN_LINES: usize = 12;

/// How a lab is made.
#[derive(Debug, Clone)]
pub struct Builder {
    name: String,
    keep: bool,
    binds: Vec<(PathBuf, String)>,
}

impl Builder {
    /// Lets the lab outlive this process, until [`state::remove`] is called.
    #[must_use]
    pub fn keep(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// Shows a file of the host at a path in each node, such as a program under test.
    #[must_use]
    pub fn bind(mut self, from: impl Into<PathBuf>, to: impl Into<String>) -> Self {
        self.binds.push((from.into(), to.into()));
        self
    }

    /// Makes the lab with its internet. Whatever crashed labs left is removed first.
    ///
    /// # Errors
    /// When the host cannot carry it: not root, or a tool is missing.
    pub fn start(self) -> Result<Lab> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a lab makes network namespaces: run as root"
        );
        state::reap().context("cannot remove what an earlier lab left")?;
        for (from, _) in &self.binds {
            ensure!(
                from.is_file(),
                "there is no file {} to show in the nodes",
                from.display()
            );
        }
        let (dir, state) = state::register(&self.name, self.keep)?;
        let clean_up = RemoveOnError { dir: Some(&dir) };
        let internet = Internet::start(&dir.join("logs/internet.log"), self.keep)?;
        clean_up.disarm();
        let shared = Shared {
            id: state.id.clone(),
            dir: dir.clone(),
            keep: self.keep,
            binds: self.binds,
            rootfs: OnceLock::new(),
            internet,
            state: Mutex::new(state),
            nodes: Mutex::new(Vec::new()),
        };
        shared.record(|state| state.holders.push(shared.internet.bare.process()))?;
        Ok(Lab {
            shared: Arc::new(shared),
            sites: Mutex::default(),
            hosts: Mutex::default(),
            dhcp: Mutex::default(),
        })
    }
}

struct RemoveOnError<'a> {
    dir: Option<&'a Path>,
}

impl RemoveOnError<'_> {
    fn disarm(mut self) {
        self.dir = None;
    }
}

impl Drop for RemoveOnError<'_> {
    fn drop(&mut self) {
        if let Some(dir) = self.dir {
            let _ = state::remove_dir(dir);
        }
    }
}

/// What the lab and the handles of its parts share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) keep: bool,
    pub(crate) binds: Vec<(PathBuf, String)>,
    rootfs: OnceLock<PathBuf>,
    pub(crate) internet: Internet,
    state: Mutex<State>,
    nodes: Mutex<Vec<Node>>,
}

impl Shared {
    /// The root file system, built at the first node's boot if the cache has none.
    pub(crate) fn rootfs(&self) -> Result<&Path> {
        if self.rootfs.get().is_none() {
            let path = rootfs::prepare(&mut |step| eprintln!("rootfs: {step}"))?;
            let _ = self.rootfs.set(path);
        }
        self.rootfs
            .get()
            .map(PathBuf::as_path)
            .context("the root file system has no path")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Changes the state and writes it down.
    pub(crate) fn record(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut state = lock(&self.state);
        change(&mut state);
        state.save(&self.dir)
    }

    /// Takes a node into the lab's care.
    pub(crate) fn adopt(&self, node: &Node) {
        lock(&self.nodes).push(node.clone());
    }
}

/// A place to wire a host to.
#[derive(Debug, Clone, Default)]
pub enum Place {
    /// Directly on the internet, with a public address.
    #[default]
    Internet,
    /// On the LAN of a site.
    Site(Site),
}

impl Place {
    pub(crate) fn segment<'a>(&'a self, shared: &'a Shared) -> &'a Segment {
        match self {
            Self::Internet => &shared.internet.segment,
            Self::Site(site) => &site.0.lan,
        }
    }

    /// Tells places apart.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Internet => "internet".to_owned(),
            Self::Site(site) => site.0.wan.addr.to_string(),
        }
    }

    fn router(&self, shared: &Shared) -> NetNs {
        match self {
            Self::Internet => shared.internet.bare.net(),
            Self::Site(site) => site.0.bare.net(),
        }
    }
}

impl From<&Site> for Place {
    fn from(site: &Site) -> Self {
        Self::Site(site.clone())
    }
}

/// A handle of a site.
#[derive(Debug, Clone)]
pub struct Site(Arc<Router>);

impl Site {
    /// What its router does to packets.
    #[must_use]
    pub fn nat(&self) -> Nat {
        self.0.nat
    }

    /// Its router's address on the outside.
    #[must_use]
    pub fn wan(&self) -> Ipv4Addr {
        self.0.wan.addr
    }

    /// Its router's network namespace.
    #[must_use]
    pub fn net(&self) -> NetNs {
        self.0.bare.net()
    }

    /// Cuts the site's uplink. Its LAN goes on.
    ///
    /// # Errors
    /// When the router is gone.
    pub fn cut(&self) -> Result<()> {
        self.0.uplink.cut()
    }

    /// Restores the uplink.
    ///
    /// # Errors
    /// When the router is gone.
    pub fn restore(&self) -> Result<()> {
        self.0.uplink.restore()
    }

    /// Its router forgets every mapping and gives others from now on, as one that was restarted. Nobody is told.
    ///
    /// # Errors
    /// When the router is gone.
    pub fn forget(&self) -> Result<()> {
        let net = self.net();
        net.nft(
            "flush chain ip nat postrouting\n\
             add rule ip nat postrouting oifname wan meta l4proto { tcp, udp } masquerade to :20000-29999\n\
             add rule ip nat postrouting oifname wan masquerade\n",
        )?;
        // With its interface the kernel forgets what was translated to the address on it.
        net.ip(["link set wan down"])?;
        net.ip(self.0.wan.up("wan"))
    }

    /// Lets nothing pass between the site and the outside but one service elsewhere, by its TCP port. Its LAN goes on.
    ///
    /// # Errors
    /// When the router is gone, or is told so already.
    pub fn only(&self, tcp_port: u16) -> Result<()> {
        // Before the translation of addresses, in which a connection that was once let through goes on. Where the
        // kernel shows bridged packets to the rules, those of the LAN come by here too.
        self.net().nft(&format!(
            "create table inet only\n\
             add chain inet only through {{ type filter hook forward priority -300; policy drop; }}\n\
             add rule inet only through iifname != wan oifname != wan accept\n\
             add rule inet only through tcp dport {tcp_port} accept\n\
             add rule inet only through tcp sport {tcp_port} accept\n"
        ))
    }

    /// Drops UDP between the site and the outside. Its LAN goes on.
    ///
    /// # Errors
    /// When the router is gone, or is told so already.
    pub fn block_udp(&self) -> Result<()> {
        self.net().nft(
            "create table inet noudp\n\
             add chain inet noudp through { type filter hook forward priority -300; }\n\
             add rule inet noudp through iifname != wan oifname != wan accept\n\
             add rule inet noudp through meta l4proto udp drop\n",
        )
    }

    /// Ends [`Site::block_udp`].
    ///
    /// # Errors
    /// When the router is gone, or lets UDP pass.
    pub fn pass_udp(&self) -> Result<()> {
        self.net().nft("delete table inet noudp\n")
    }

    /// Ends [`Site::only`].
    ///
    /// # Errors
    /// When the router is gone, or lets everything pass.
    pub fn everything(&self) -> Result<()> {
        self.net().nft("delete table inet only\n")
    }
}

/// A host with nothing but a network: for sockets of the test itself.
#[derive(Debug, Clone)]
pub struct Host(Arc<HostInner>);

#[derive(Debug)]
struct HostInner {
    bare: Bare,
    lease: Lease,
    port: Port,
}

impl Host {
    /// Its address on its segment.
    #[must_use]
    pub fn addr(&self) -> Ipv4Addr {
        self.0.lease.addr
    }

    /// Its network namespace.
    #[must_use]
    pub fn net(&self) -> NetNs {
        self.0.bare.net()
    }

    /// Pulls its network cable.
    ///
    /// # Errors
    /// When the host is gone.
    pub fn cut(&self) -> Result<()> {
        self.0.port.cut()
    }

    /// Plugs the cable in again.
    ///
    /// # Errors
    /// When the host is gone.
    pub fn restore(&self) -> Result<()> {
        self.0.port.restore()
    }
}

/// A lab. Dropping it ends every process in it and deletes its folder, unless it was made to be kept.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
    sites: Mutex<Vec<Site>>,
    hosts: Mutex<Vec<Host>>,
    /// By the key of their place.
    dhcp: Mutex<BTreeMap<String, Dhcp>>,
}

impl Lab {
    /// Begins a lab; the name is for people.
    #[must_use]
    pub fn builder(name: &str) -> Builder {
        Builder {
            name: name.to_owned(),
            keep: false,
            binds: Vec::new(),
        }
    }

    /// A lab with nothing bound into its nodes.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn new(name: &str) -> Result<Self> {
        Self::builder(name).start()
    }

    /// The lab's id.
    #[must_use]
    pub fn id(&self) -> String {
        self.shared.id.clone()
    }

    /// The folder of the lab's disks and logs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Makes a site on the internet.
    ///
    /// # Errors
    /// When its router cannot be made.
    pub fn site(&self, name: &str, nat: Nat) -> Result<Site> {
        self.make_site(name, nat, None)
    }

    /// Makes a site whose router hangs on another site's LAN, as with carrier-grade NAT.
    ///
    /// # Errors
    /// When its router cannot be made.
    pub fn site_behind(&self, outer: &Site, name: &str, nat: Nat) -> Result<Site> {
        self.make_site(name, nat, Some(&outer.0.lan))
    }

    fn make_site(&self, name: &str, nat: Nat, behind: Option<&Segment>) -> Result<Site> {
        let log = self.shared.log(&format!("{name}.router"));
        let router = Router::start(&self.shared.internet, behind, nat, &log, self.shared.keep)
            .with_context(|| format!("cannot make the site '{name}'"))?;
        self.shared
            .record(|state| state.holders.push(router.bare.process()))?;
        let site = Site(Arc::new(router));
        lock(&self.sites).push(site.clone());
        Ok(site)
    }

    /// Makes a host with nothing but a network.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn host(&self, name: &str, place: impl Into<Place>) -> Result<Host> {
        let place = place.into();
        let segment = place.segment(&self.shared);
        let bare = Bare::start(&self.shared.log(&format!("{name}.host")), self.shared.keep)?;
        self.shared.record(|state| state.holders.push(bare.process()))?;
        let lease = segment.lease()?;
        let port = segment.attach(bare.net(), "eth0", lease)?;
        let host = Host(Arc::new(HostInner { bare, lease, port }));
        lock(&self.hosts).push(host.clone());
        Ok(host)
    }

    /// Boots a node.
    ///
    /// # Errors
    /// When it does not boot.
    pub fn node(&self, name: &str, place: impl Into<Place>) -> Result<Node> {
        let node = Node::boot(Arc::clone(&self.shared), name, place.into(), None)?;
        self.shared.adopt(&node);
        Ok(node)
    }

    /// Starts a guest: a machine under emulation on a site's LAN, which asks for its address as any machine does.
    ///
    /// # Errors
    /// When it cannot be started. Whether it boots is seen later.
    pub fn guest(&self, name: &str, site: &Site, setup: &Setup) -> Result<Guest> {
        let dir = self.shared.dir.join("guests").join(name);
        std::fs::create_dir_all(&dir)?;
        let segment = &site.0.lan;
        let lease = segment.lease()?;
        {
            let mut served = lock(&self.dhcp);
            let key = Place::from(site).key();
            if !served.contains_key(&key) {
                let dir = self.shared.dir.join("dhcp").join(&key);
                let dhcp = Dhcp::start(site.net(), lease, &dir, self.shared.log(&format!("{key}.dhcp")))?;
                self.shared.record(|state| state.holders.push(dhcp.process()))?;
                served.insert(key.clone(), dhcp);
            }
            served.get(&key).map_or(Ok(()), |dhcp| dhcp.add(name, lease))?;
        }
        let guest = Guest::start(name, site.net(), lease, segment.tap()?, setup, &dir)?;
        self.shared.record(|state| state.holders.push(guest.process()))?;
        Ok(guest)
    }

    /// The nodes, in the order in which they were made.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        lock(&self.shared.nodes).clone()
    }

    /// Starts a metadata service at 169.254.169.254 for the hosts of a place. It ends with the returned value.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn metadata(&self, place: impl Into<Place>) -> Result<Metadata> {
        Metadata::start(place.into().router(&self.shared))
    }

    /// Makes the way between a site's router and the internet a long one. For sites that hang on the internet itself.
    ///
    /// # Errors
    /// When the router is gone, or its uplink is a long one already.
    pub fn lengthen(&self, site: &Site, quality: Quality) -> Result<()> {
        site.0.lengthen(&self.shared.internet, quality)
    }

    /// Has a site's router give ports to hosts that ask for them, until the returned value is dropped.
    ///
    /// # Errors
    /// When the service does not start; the message holds the end of its log.
    pub fn port_mapper(&self, site: &Site, by: PortProtocol) -> Result<PortMapper> {
        let dir = self.shared.dir.join(format!("portmap-{}", site.net().pid()));
        PortMapper::start(site.net(), site.wan(), by, (self.shared.rootfs()?, &dir))
    }

    /// As [`wait::wait_until`]; a failure shows the last lines of every background process of the lab.
    ///
    /// # Errors
    /// When the time ran out.
    pub fn wait_until<T>(
        &self,
        limit: Duration,
        what: &str,
        look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        wait::wait_until(limit, what, look).map_err(|error| error.context(self.log_tails()))
    }

    /// The last lines of the log of each background process of each node.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let services = self.nodes().into_iter().flat_map(|node| node.services());
        services
            .map(|service| {
                let state = if service.running() { "runs" } else { "ended" };
                format!(
                    "---- {} ({state}):\n{}\n",
                    service.what(),
                    service.tail(SHOWN_LINES)
                )
            })
            .collect()
    }

    /// Removes the lab, a kept one too.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub fn destroy(self) -> Result<()> {
        self.tear_down()
    }

    fn tear_down(&self) -> Result<()> {
        // Nodes hold the shared part and it holds them: part them, so that each is dropped.
        for node in std::mem::take(&mut *lock(&self.shared.nodes)) {
            node.kill9();
        }
        lock(&self.hosts).iter().for_each(|host| host.0.bare.kill());
        lock(&self.sites).iter().for_each(|site| site.0.bare.kill());
        self.shared.internet.bare.kill();
        let state = lock(&self.shared.state).clone();
        state::remove(&state).with_context(|| format!("cannot remove the lab {}", state.id))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.shared.keep {
            lock(&self.shared.nodes).clear();
        } else if let Err(error) = self.tear_down() {
            eprintln!("{error:#}");
        }
    }
}

/// The command that opens a shell, or runs a command, as a user of a node of a kept lab.
///
/// # Errors
/// When the lab has no such node that runs.
pub fn enter_command(lab: &State, name: &str, user: &str, argv: &[String]) -> Result<Command> {
    let names = || lab.nodes.keys().cloned().collect::<Vec<_>>().join(", ");
    let init = lab
        .nodes
        .get(name)
        .with_context(|| format!("the lab '{}' has no node '{name}'; it has {}", lab.name, names()))?;
    ensure!(init.alive(), "the node '{name}' of the lab '{}' is off", lab.name);
    let mut command = node::enter(&lab.id, name, *init);
    if argv.is_empty() {
        node::as_user(&mut command, user, &["bash", "-l"]);
    } else {
        node::as_user(&mut command, user, argv);
    }
    Ok(command)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
