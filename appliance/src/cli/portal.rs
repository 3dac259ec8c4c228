//! `aerie portal serve`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use aerie_portal::{Portal, ServeConfig, Server};
use anyhow::{Context, Result};

use super::{LogFormat, logging};

pub(super) fn serve(dir: &Path, listen: SocketAddr, names: Vec<String>) -> Result<ExitCode> {
    logging::init(LogFormat::Text);
    let portal = Arc::new(Portal::open(dir, SystemTime::now().into())?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let server = Server::start(portal, ServeConfig::new(listen, names)).await?;
        eprintln!("Enrolment at https://{}; stop with Ctrl-C.", server.local_addr());
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
