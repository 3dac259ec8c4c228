//! `aerie-context-agent`: makes a machine a member of its cluster's context.
//!
//! It reads from the user-data where its broker is, reports who this machine is, waits until the cluster is known,
//! writes what came into files, runs the scripts that configure the machine by them, and reports how that ended; then
//! it waits for the next version. It has no runtime and no library beyond the C one, so that it runs in any guest.

mod error;
mod files;
mod identity;
mod phases;
mod render;
mod run;
mod source;
mod state;
mod step;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use aerie_context_proto::{HostName, Interface};
use lexopt::prelude::{Long, Short, ValueExt as _};

use crate::identity::Overrides;
use crate::phases::Phases;
use crate::run::{End, Options};
use crate::source::Sources;

const HELP: &str = "\
Makes this machine a member of its cluster's context.

Usage: aerie-context-agent [OPTIONS]

  --user-data FILE         read the user-data from this file, and from nowhere else
  --metadata-url URL       base URL of the EC2 metadata service [http://169.254.169.254]
  --allow-imds-v1          ask it without a token too
  --scripts DIR            folder of the phase scripts [/etc/aerie/context.d]
  --provide DIR            folder of the data that this machine provides [/etc/aerie/context.provide]
  --root DIR               put everything that is written below this folder [/]
  --leave-etc              leave /etc/hosts and /etc/ssh/ssh_known_hosts to the scripts
  --identity [IFACE=]IP    report this identity in place of the interfaces'; may be repeated
  --hostname NAME          report this host name
  --step-timeout SECONDS   how long one script may take [300]
  --network-timeout SECONDS  how long the network may take to come up [120]
  --once                   end after the first version; the exit code says how it went
  --leave                  leave the context, and end
  --version, --help

Scripts are named 0-etchosts, 1-ipandhost/ROLE, 2-thishost, 3-data/NAME, 4-restarts/NAME, 5-finalize, problem.
What they work with is in /var/lib/aerie-context-agent/current, which is $AERIE_CONTEXT_DIR to them.
";

/// The command line, understood.
enum Asked {
    Run(Box<Options>),
    Leave(Box<Options>),
    Print(&'static str),
}

fn main() -> ExitCode {
    let asked = match parse() {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("aerie-context-agent: {error}; see --help");
            return ExitCode::from(2);
        }
    };
    let ended = match asked {
        Asked::Print(text) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Asked::Run(options) => run::run(&options),
        Asked::Leave(options) => run::leave(&options),
    };
    match ended {
        Ok(end) => {
            let told = match end {
                End::Configured => "done",
                End::Destroyed => "the context was destroyed: there is nothing more to do",
                End::Removed => "this machine is no member of the context any more",
            };
            eprintln!("aerie-context-agent: {told}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("aerie-context-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Asked, lexopt::Error> {
    let mut file = None;
    let mut metadata_url = "http://169.254.169.254".to_owned();
    let mut allow_imds_v1 = false;
    let mut scripts = PathBuf::from("/etc/aerie/context.d");
    let mut data = PathBuf::from("/etc/aerie/context.provide");
    let mut root = PathBuf::from("/");
    let mut overrides = Overrides::default();
    let mut limit = Duration::from_secs(300);
    let mut network = Duration::from_secs(120);
    let (mut leave_etc, mut once, mut leave) = (false, false, false);
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("user-data") => file = Some(PathBuf::from(args.value()?)),
            Long("metadata-url") => metadata_url = args.value()?.string()?,
            Long("allow-imds-v1") => allow_imds_v1 = true,
            Long("scripts") => scripts = args.value()?.into(),
            Long("provide") => data = args.value()?.into(),
            Long("root") => root = args.value()?.into(),
            Long("leave-etc") => leave_etc = true,
            Long("identity") => overrides.identities.push(identity(&args.value()?.string()?)?),
            Long("hostname") => overrides.hostname = Some(args.value()?.parse::<HostName>()?),
            Long("step-timeout") => limit = Duration::from_secs(args.value()?.parse()?),
            Long("network-timeout") => network = Duration::from_secs(args.value()?.parse()?),
            Long("once") => once = true,
            Long("leave") => leave = true,
            Long("version") => {
                return Ok(Asked::Print(concat!(
                    "aerie-context-agent ",
                    env!("CARGO_PKG_VERSION"),
                    "\n"
                )));
            }
            Short('h') | Long("help") => return Ok(Asked::Print(HELP)),
            other => return Err(other.unexpected()),
        }
    }
    let options = Box::new(Options {
        sources: Sources {
            file,
            root: root.clone(),
            metadata_url,
            allow_imds_v1,
        },
        overrides,
        phases: Phases {
            scripts,
            root,
            limit,
            leave_etc,
        },
        data,
        network,
        once,
    });
    Ok(if leave {
        Asked::Leave(options)
    } else {
        Asked::Run(options)
    })
}

/// An identity as the command line has it: an address, and before it an interface.
fn identity(text: &str) -> Result<(Option<Interface>, std::net::IpAddr), lexopt::Error> {
    let (interface, ip) = match text.split_once('=') {
        Some((interface, ip)) => (Some(interface), ip),
        None => (None, text),
    };
    let wrong = |error: &dyn std::fmt::Display| lexopt::Error::from(format!("--identity {text}: {error}"));
    Ok((
        interface
            .map(|name| name.parse().map_err(|error| wrong(&error)))
            .transpose()?,
        ip.parse().map_err(|error| wrong(&error))?,
    ))
}
