//! `aerie up`.

use std::process::ExitCode;

use anyhow::{Context, Result};

use super::{UpArgs, logging};
use crate::daemon;

pub(super) fn run(args: UpArgs) -> Result<ExitCode> {
    logging::init(args.log);
    tokio::runtime::Builder::new_multi_thread()
        // One is enough for what is not the tunnel, which has a thread of its own; a second would be woken by the
        // first all the time.
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(daemon::run(args))?;
    Ok(ExitCode::SUCCESS)
}
