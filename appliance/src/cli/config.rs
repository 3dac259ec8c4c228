//! `aerie config`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

/// Says what a blob would do. The exit code is 1, and the message says why, where a node would refuse it.
pub(super) fn check(path: &Path, json: bool) -> Result<ExitCode> {
    let found = aerie_config::load(path)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&found.spec.summary())?);
    } else {
        println!("{}", aerie_config::explain(&found.spec, Some(&found.bundle)));
    }
    Ok(ExitCode::SUCCESS)
}
