//! Who takes part: each can be prepared once, and started and stopped round after round.

mod aerie;
mod nebula;
mod openvpn;
mod wireguard;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use aerie_lab::grid::Member;
use aerie_lab::netns::NetNs;
use aerie_lab::process::Process;
use aerie_lab::wait::wait_until;
use anyhow::{Context, Result};

pub(super) use aerie::Network;

use super::program::{Program, run};
use super::wire::End;

/// How long a tunnel may take from its daemons' start to its first answered ping.
const LINK_LIMIT: Duration = Duration::from_secs(60);

/// How long Aerie's daemon may take to leave its grid.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The addresses inside of a tunnel that has to be given some.
const INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];

/// The one cipher of WireGuard, as everybody here writes it.
const WIREGUARD_CIPHER: &str = "ChaCha20-Poly1305";

/// A contestant by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Kind {
    /// No tunnel: the wire itself.
    Veth,
    /// Two daemons of one grid.
    Aerie,
    /// Two daemons behind symmetric NATs, and the grid's relay between them.
    #[value(skip)]
    AerieRelayed,
    /// Two daemons of which one prefers the cipher of WireGuard.
    #[value(name = "aerie-chacha20")]
    AerieChaCha20,
    /// WireGuard by its authors, in Go.
    WireguardGo,
    /// WireGuard in Rust.
    Gotatun,
    /// Nebula as its authors ship it.
    Nebula,
    /// OpenVPN as one process for each end.
    Openvpn,
}

impl Kind {
    pub(super) const ALL: [Self; 8] = [
        Self::Veth,
        Self::Aerie,
        Self::AerieRelayed,
        Self::AerieChaCha20,
        Self::WireguardGo,
        Self::Gotatun,
        Self::Nebula,
        Self::Openvpn,
    ];

    /// Whether it is Aerie, in one form or another.
    pub(super) fn is_aerie(self) -> bool {
        matches!(self, Self::Aerie | Self::AerieRelayed | Self::AerieChaCha20)
    }

    /// Whether what is measured with this cipher may be shown under the contestant's name.
    pub(super) fn may_use(self, cipher: &str) -> bool {
        self != Self::AerieChaCha20 || cipher == WIREGUARD_CIPHER
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Aerie => "aerie",
            Self::AerieRelayed => "aerie relayed",
            Self::AerieChaCha20 => "aerie chacha20",
            Self::WireguardGo => "wireguard-go",
            Self::Gotatun => "gotatun",
            Self::Nebula => "nebula",
            Self::Openvpn => "openvpn",
        }
    }
}

/// Where everybody but Aerie runs.
#[derive(Debug)]
pub(super) struct Stage {
    /// The two ends of the wire; the first one is the client.
    pub(super) ends: [End; 2],
    /// A folder for keys, configurations and logs, removed at the end.
    pub(super) dir: PathBuf,
}

/// What can be started and stopped.
pub(super) trait Contestant {
    /// The version of its program; empty where it has none.
    fn version(&self) -> &str;

    /// Starts its daemons. The tunnel may take a while to carry packets.
    fn start(&self) -> Result<Tunnel<'_>>;
}

/// Installs a contestant's program where it is absent, and prepares it. `network` is Aerie's grid of this kind.
pub(super) fn prepare<'a>(
    kind: Kind,
    stage: &'a Stage,
    network: Option<&'a Network<'a>>,
) -> Result<Box<dyn Contestant + 'a>> {
    Ok(match kind {
        Kind::Veth => Box::new(Veth(stage)),
        Kind::Aerie | Kind::AerieRelayed | Kind::AerieChaCha20 => {
            Box::new(network.context("there is no grid")?.contestant()?)
        }
        Kind::WireguardGo => Box::new(wireguard::WireGuard::go(stage)?),
        Kind::Gotatun => Box::new(wireguard::WireGuard::gotatun(stage)?),
        Kind::Nebula => Box::new(nebula::Nebula::prepare(stage)?),
        Kind::Openvpn => Box::new(openvpn::Openvpn::prepare(stage)?),
    })
}

/// A contestant that runs.
pub(super) struct Tunnel<'a> {
    pub(super) client: NetNs,
    pub(super) server: NetNs,
    /// The server's address inside the tunnel.
    pub(super) addr: Ipv4Addr,
    /// How packets are encrypted; empty where they are not.
    pub(super) cipher: String,
    running: Running<'a>,
}

enum Running<'a> {
    Nothing,
    /// Ended by dropping them.
    Programs(Vec<Program>),
    Members(Vec<&'a Member>),
}

impl<'a> Tunnel<'a> {
    /// A tunnel between the stage's ends by programs started there.
    fn staged(stage: &Stage, programs: Vec<Program>, cipher: &str) -> Self {
        let [client, server] = stage.ends;
        Self {
            client: client.net,
            server: server.net,
            addr: INSIDE[1],
            cipher: cipher.to_owned(),
            running: Running::Programs(programs),
        }
    }

    /// Waits until a ping through the tunnel is answered.
    pub(super) fn wait(&mut self) -> Result<()> {
        let addr = self.addr.to_string();
        let client = self.client;
        let waited = wait_until(LINK_LIMIT, &format!("a ping to {addr}"), || {
            run(client, &["ping", "-n", "-c1", "-W1", &addr])?;
            Ok(Some(()))
        });
        match &mut self.running {
            Running::Programs(programs) => {
                for program in programs.iter_mut() {
                    program.ensure_running()?;
                }
                let said = || programs.iter().map(Program::said).collect::<Vec<_>>().join("\n");
                waited.with_context(said)
            }
            Running::Nothing | Running::Members(_) => waited,
        }
    }

    /// The processes that carry its packets.
    pub(super) fn daemons(&self) -> Vec<Process> {
        match &self.running {
            Running::Nothing => Vec::new(),
            Running::Programs(programs) => programs.iter().map(Program::process).collect(),
            Running::Members(members) => members
                .iter()
                .filter_map(|member| Some(member.daemon().ok()?.process()))
                .collect(),
        }
    }

    /// Ends its daemons. Those of peers end by being dropped too.
    pub(super) fn stop(self) -> Result<()> {
        match self.running {
            Running::Nothing | Running::Programs(_) => Ok(()),
            Running::Members(members) => stop(members),
        }
    }
}

fn stop<'m>(members: impl IntoIterator<Item = &'m Member>) -> Result<()> {
    for member in members {
        let daemon = member.daemon()?;
        if daemon.running() && daemon.stop(STOP_LIMIT).is_err() {
            daemon.kill9()?;
        }
    }
    Ok(())
}

/// The wire itself.
struct Veth<'a>(&'a Stage);

impl Contestant for Veth<'_> {
    fn version(&self) -> &'static str {
        ""
    }

    fn start(&self) -> Result<Tunnel<'_>> {
        let [client, server] = self.0.ends;
        Ok(Tunnel {
            client: client.net,
            server: server.net,
            addr: server.addr,
            cipher: String::new(),
            running: Running::Nothing,
        })
    }
}
