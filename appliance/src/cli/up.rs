//! `aerie up`.

use std::process::ExitCode;

use anyhow::{Context, Result};

use super::{UpArgs, logging};
use crate::daemon;

pub(super) fn run(args: UpArgs) -> Result<ExitCode> {
    logging::init(args.log);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(daemon::run(args))?;
    Ok(ExitCode::SUCCESS)
}
