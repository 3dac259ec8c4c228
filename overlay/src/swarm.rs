//! Builds the swarm: transports, each with admission in its upgrade, and the protocols above them.

use std::sync::Arc;
use std::time::Duration;

use libp2p::core::Transport;
use libp2p::core::transport::dummy::DummyTransport;
use libp2p::core::upgrade::Version;
use libp2p::{Swarm, SwarmBuilder, dns, noise, quic, tcp, yamux};

use crate::admission::{Gate, Secured, admit_quic};
use crate::behaviour::Behaviour;
use crate::config::Config;
use crate::error::Error;

/// A connection of a member is never closed for being idle; the driver decides whom to keep.
const NEVER_IDLE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// QUIC keeps its own watch as a second line behind the probes, rarely enough to cost little.
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(20);
const QUIC_IDLE_MILLIS: u32 = 60_000;

pub(crate) fn build(config: &Config, gate: &Arc<Gate>) -> Result<Swarm<Behaviour>, Error> {
    let grid = config.grid;
    let secured = |keypair: &libp2p::identity::Keypair| -> Result<Secured, noise::Error> {
        Secured::new(keypair, grid, Arc::clone(gate))
    };
    let quic_gate = Arc::clone(gate);
    let builder = SwarmBuilder::with_existing_identity(config.keypair.clone())
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            secured,
            yamux::Config::default,
        )
        .map_err(|error| setup("TCP transport", &error))?
        .with_other_transport(|keypair| {
            let mut settings = quic::Config::new(keypair);
            settings.keep_alive_interval = QUIC_KEEP_ALIVE;
            settings.max_idle_timeout = QUIC_IDLE_MILLIS;
            quic::tokio::Transport::new(settings).and_then(move |output, _| {
                Box::pin(admit_quic(quic_gate, output)) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
            })
        })
        .map_err(|error| setup("QUIC transport", &error))?;

    // The two ways to a resolver have different types.
    macro_rules! finish {
        ($builder:expr) => {
            $builder
                .with_relay_client(secured, yamux::Config::default)
                .map_err(|error| setup("relay client", &error))?
                .with_behaviour(|_, relay_client| {
                    Behaviour::new(config, Arc::clone(gate), relay_client)
                        .map_err(Box::<dyn std::error::Error + Send + Sync>::from)
                })
                .map_err(|error| setup("protocols", &error))?
                .with_swarm_config(|swarm| {
                    swarm
                        .with_idle_connection_timeout(NEVER_IDLE)
                        // Members speak the same protocols: a request goes out with its stream's negotiation, and a round
                        // trip before it is saved.
                        .with_substream_upgrade_protocol_override(Version::V1Lazy)
                        .with_smart_dial()
                })
                .build()
        };
    }
    // A machine without a usable resolv.conf can still dial numbers.
    if dns::tokio::Transport::system(DummyTransport::<()>::new()).is_ok() {
        let builder = builder
            .with_dns()
            .map_err(|error| setup("name resolution", &error))?;
        Ok(finish!(builder))
    } else {
        tracing::warn!("the system's resolver settings are not usable; names are asked of public servers");
        let (settings, options) = (dns::ResolverConfig::default(), dns::ResolverOpts::default());
        Ok(finish!(builder.with_dns_config(settings, options)))
    }
}

fn setup(what: &'static str, reason: &dyn std::fmt::Display) -> Error {
    Error::Setup {
        what,
        reason: reason.to_string(),
    }
}
