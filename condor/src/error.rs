use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why HTCondor could not be planned, driven or asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path that cannot stand in a configuration file without being read as something else.
    #[error(
        "the path '{}' cannot be written into HTCondor's configuration: use an absolute path of letters, digits \
         and the signs / . _ - + @ only",
        path.display()
    )]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A program's name or a version that cannot stand in a machine ad.
    #[error(
        "'{text}' cannot describe a machine: use 1 to {max} letters, digits and the signs . _ - + (for example \
         python3.13), beginning with a letter or digit"
    )]
    Program {
        /// The text that was refused.
        text: String,
        /// The longest text allowed, in bytes.
        max: usize,
    },
    /// More programs than a machine ad should carry.
    #[error("{count} programs are listed for this machine, but an ad carries at most {max}: list fewer")]
    TooManyPrograms {
        /// How many were listed.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
    /// A node named like a role: its name would collide with the domain of the role's identities.
    #[error(
        "the node name '{node}' is reserved, since it would make local users of this node look like members with \
         that role: enrol the node again under another name"
    )]
    ReservedName {
        /// The name.
        node: String,
    },
    /// An address that HTCondor cannot use here.
    #[error("'{addr}' is not an IPv4 address inside the grid's range {range}: check the lease of this node")]
    Address {
        /// The address.
        addr: String,
        /// The grid's range.
        range: String,
    },
    /// HTCondor is not installed.
    #[error(
        "HTCondor is not installed ({program} was not found): install version 23.9 or later, for example with \
         'apt install condor' on Debian 13, and start again"
    )]
    NotInstalled {
        /// The program that was looked for.
        program: &'static str,
    },
    /// HTCondor is too old.
    #[error(
        "HTCondor {found} is installed, but 23.9 or later is needed: install it from Debian 13 or from \
         https://htcondor.org/downloads, and start again"
    )]
    TooOld {
        /// The version that was found.
        found: String,
    },
    /// The account that HTCondor's daemons run under is missing.
    #[error("there is no account named '{name}': install HTCondor's package again, which creates it")]
    NoAccount {
        /// The account.
        name: &'static str,
    },
    /// A file or folder could not be read or written.
    #[error("could not {what} {}: check its folder's permissions and free space", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A command could not be started.
    #[error("could not run '{command}': check that HTCondor is installed completely")]
    Spawn {
        /// The command.
        command: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A command ended with an error.
    #[error("'{command}' failed ({status}): {stderr}")]
    Command {
        /// The command.
        command: String,
        /// How it ended.
        status: String,
        /// What it wrote to its standard error, cut to a few lines.
        stderr: String,
    },
    /// A command took too long and was ended.
    #[error(
        "'{command}' did not finish within {} s: the manager may be unreachable; see 'aerie status'",
        limit.as_secs()
    )]
    Timeout {
        /// The command.
        command: String,
        /// The time that it was given.
        limit: Duration,
    },
    /// A command wrote something that cannot be understood.
    #[error(
        "'{command}' answered in a form that is not understood ({reason}): check the version of HTCondor"
    )]
    Answer {
        /// The command.
        command: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `condor_master` would not start or not stop.
    #[error("condor_master {what}: see {} and 'journalctl -u condor'", log.display())]
    Master {
        /// What it did not do.
        what: String,
        /// Its log.
        log: PathBuf,
    },
}
