//! Where the log goes and what is in it.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::LogFormat;

/// What is logged unless `AERIE_LOG` says otherwise: our own news, and of the libraries only what went wrong. That a
/// member behind a NAT cannot be dialled back is what autonat is there to find out, not a warning.
const DEFAULT: &str =
    "info,libp2p=warn,libp2p_autonat=error,hickory_server=warn,hickory_proto=warn,quinn=warn,netlink=warn";

pub(super) fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env("AERIE_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A journal or a file is read by other programs, to which colours are noise.
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
