//! A node with its daemon, and what the daemon says of itself.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::AERIE;
use crate::node::Node;
use crate::service::Service;

/// How far a stage of joining is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Stage {
    /// Its name: source, certificate, overlay, address, names, managers, pool, and others.
    pub stage: String,
    /// done, waiting, failed or off.
    pub state: String,
    /// Milliseconds that it took.
    pub ms: Option<u64>,
    /// What it found, or what it waits for.
    #[serde(default)]
    pub reason: String,
    /// What a person can do.
    #[serde(default)]
    pub hint: String,
}

/// A manager as a member knows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Manager {
    /// Its node name.
    pub node: String,
    /// Whether the member reports to it.
    pub primary: bool,
    /// Whether it answers.
    pub alive: bool,
}

/// What `aerie status --json` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The member's peer id.
    #[serde(default)]
    pub peer: String,
    /// Its virtual address, while it holds one.
    pub addr: Option<String>,
    /// Its IPv6 address, where it has one.
    #[serde(default)]
    pub addr6: Option<String>,
    /// Whether every stage is done.
    pub ready: bool,
    /// Milliseconds from the daemon's start until it was ready.
    #[serde(default)]
    pub ready_ms: Option<u64>,
    /// The stages in their order.
    pub stages: Vec<Stage>,
    /// The managers it knows.
    #[serde(default)]
    pub managers: Vec<Manager>,
}

impl Status {
    /// A stage by name.
    #[must_use]
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.stage == name)
    }

    /// The stage at which the node is: the first that is neither done nor off.
    #[must_use]
    pub fn pending(&self) -> Option<&Stage> {
        self.stages
            .iter()
            .find(|stage| !matches!(stage.state.as_str(), "done" | "off"))
    }

    /// The stages that are not done, as one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let stages = self
            .stages
            .iter()
            .filter(|stage| !matches!(stage.state.as_str(), "done" | "off"));
        let lines = stages.map(|s| format!("{} {}: {} ({})", s.stage, s.state, s.reason, s.hint));
        lines.collect::<Vec<_>>().join("; ")
    }
}

/// What `aerie peers --json` says of one member.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Peer {
    /// Its node name.
    pub node: String,
    /// Its virtual address, if known.
    pub addr: Option<String>,
    /// The IPv6 address that follows from it.
    #[serde(default)]
    pub addr6: Option<String>,
    /// The overlay's connection: direct, relayed or none.
    pub overlay: String,
    /// The tunnel's path.
    pub path: String,
    /// The cipher of the tunnel's session; empty while there is none.
    #[serde(default)]
    pub cipher: String,
    /// Round trip in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Why the path is not direct.
    pub why: String,
}

/// A node that runs the daemon.
#[derive(Debug)]
pub struct Member {
    /// The machine.
    pub node: Node,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    daemon: Mutex<Option<Service>>,
}

impl Member {
    pub(super) fn new(node: Node, argv: Vec<String>, env: Vec<(String, String)>) -> Self {
        Self {
            node,
            argv,
            env,
            daemon: Mutex::new(None),
        }
    }

    /// Starts the daemon, again with the options of its first start.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self) -> Result<()> {
        let argv: Vec<_> = self.argv.iter().map(String::as_str).collect();
        let env: Vec<_> = self
            .env
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let daemon = self.node.spawn("root", "aerie", &argv, &env)?;
        *self.daemon.lock().unwrap_or_else(PoisonError::into_inner) = Some(daemon);
        Ok(())
    }

    /// The same daemon's options on another machine, such as one with a copy of its disk.
    #[must_use]
    pub fn on(&self, node: Node) -> Self {
        Self::new(node, self.argv.clone(), self.env.clone())
    }

    /// The running daemon.
    ///
    /// # Errors
    /// When none was started.
    pub fn daemon(&self) -> Result<Service> {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).clone();
        daemon.with_context(|| format!("no daemon was started on {}", self.node.name()))
    }

    /// What an `aerie` command prints with `--json`, and whether it succeeded.
    ///
    /// # Errors
    /// When it prints something else.
    pub fn said<T: DeserializeOwned>(&self, argv: &[&str]) -> Result<(T, bool)> {
        let output = self.node.exec("root", &[&[AERIE], argv, &["--json"]].concat())?;
        let said = serde_json::from_str(&output.stdout)
            .with_context(|| format!("on {}, {argv:?} said: {}", self.node.name(), output.both()))?;
        Ok((said, output.success()))
    }

    /// What the daemon says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Status> {
        self.said(&["status"]).map(|(status, _)| status)
    }

    /// The members that it knows.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn peers(&self) -> Result<Vec<Peer>> {
        self.said(&["peers"]).map(|(peers, _)| peers)
    }

    /// Its virtual address.
    ///
    /// # Errors
    /// When it holds none.
    pub fn addr(&self) -> Result<String> {
        let status = self.status()?;
        let pending = status.summary();
        status
            .addr
            .with_context(|| format!("{} has no address: {pending}", self.node.name()))
    }

    /// Pings a name or address through the virtual network with the system's own `ping`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ping(&self, target: &str) -> Result<()> {
        self.node
            .run("alice", &["ping", "-c1", "-W2", target])
            .map(|_| ())
    }

    /// The primary manager as it sees it.
    ///
    /// # Errors
    /// When it has none.
    pub fn primary(&self) -> Result<String> {
        let managers = self.status()?.managers;
        let primary = managers.iter().find(|manager| manager.primary);
        Ok(primary
            .with_context(|| format!("{} has no primary manager", self.node.name()))?
            .node
            .clone())
    }
}
