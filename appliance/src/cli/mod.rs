//! The command line: one parser, from which completion and man pages are made too.

mod config;
mod context;
mod diagnose;
mod docs;
mod grid;
mod image;
mod join;
mod logging;
mod ping;
mod portal;
mod query;
mod up;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use aerie_types::{GridName, GroupName, NodeName, Roles, UserName, VirtualRange};
use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use crate::paths;

/// Build your own grid: a peer-to-peer overlay, a VPN address that nobody else holds, and HTCondor on top.
#[derive(Debug, Parser)]
#[command(
    name = "aerie",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join the grid named by the configuration and stay: the daemon, in the foreground.
    Up(UpArgs),
    /// Make this machine a member of a grid: keep the configuration, start the service, and watch until it is ready.
    Join(JoinArgs),
    /// Show how far this node is, stage by stage.
    Status(StatusArgs),
    /// List the members that this node knows, with the path to each.
    Peers(QueryArgs),
    /// Send round trips to a node through the tunnel and show the path they take.
    Ping(PingArgs),
    /// Tell which way packets take to a node, and why not a better one.
    Path(PathArgs),
    /// Look at the network in front of this node: NAT, firewall, IPv6, relays.
    Netcheck(QueryArgs),
    /// Check this machine and its daemon from the ground up, and say how to mend what is wrong.
    Doctor(DoctorArgs),
    /// Give the address back, stop HTCondor and end the daemon; undo what 'aerie join' did.
    Leave(LeaveArgs),
    /// Create and administer a grid.
    #[command(subcommand)]
    Grid(GridCommand),
    /// Serve enrolment to the nodes of a grid.
    #[command(subcommand)]
    Portal(PortalCommand),
    /// Look at configurations.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make disks that boot into a grid.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Tell the machines of a cluster what they have to know of each other.
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Print the completion script of a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a folder.
    Man {
        /// The folder; it is made if absent.
        dir: PathBuf,
    },
}

/// Options of `aerie up`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// Read the configuration from this file (TOML, zip, floppy image or user-data) or folder, and nowhere else.
    #[arg(long, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// Look for a floppy at this device or image instead of the usual places.
    #[arg(long, value_name = "PATH")]
    pub(crate) floppy: Option<PathBuf>,
    /// Base URL of the EC2 metadata service.
    #[arg(long, value_name = "URL", default_value = "http://169.254.169.254")]
    pub(crate) metadata_url: String,
    /// Also ask a metadata service that has no session tokens (IMDSv1).
    #[arg(long)]
    pub(crate) allow_imds_v1: bool,
    /// Folder of keys, credentials and leases.
    #[arg(long, value_name = "DIR", default_value = paths::STATE_DIR)]
    pub(crate) state: PathBuf,
    /// Folder of the control socket.
    #[arg(long, value_name = "DIR", default_value = paths::RUN_DIR)]
    pub(crate) run_dir: PathBuf,
    /// This is the grid's first member: it may take its address while it knows nobody else.
    #[arg(long)]
    pub(crate) founder: bool,
    /// An underlay address at which others reach this node (for relays behind a forwarded port).
    #[arg(long, value_name = "IP")]
    pub(crate) external: Vec<std::net::IpAddr>,
    /// Carry the network only; leave HTCondor alone.
    #[arg(long)]
    pub(crate) no_condor: bool,
    /// Do not look for members on the local network by multicast DNS.
    #[arg(long)]
    pub(crate) no_mdns: bool,
    /// Do not ask routers for port mappings.
    #[arg(long)]
    pub(crate) no_upnp: bool,
    /// How the log is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which daemon is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct DaemonArgs {
    /// The grid's id, or its first eight digits; needed only where several daemons run.
    #[arg(long, value_name = "ID")]
    pub(crate) grid: Option<String>,
    /// Folder of the control socket.
    #[arg(long, value_name = "DIR", default_value = paths::RUN_DIR)]
    pub(crate) run_dir: PathBuf,
}

/// Options of commands that ask and print.
#[derive(Debug, clap::Args)]
pub(crate) struct QueryArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `aerie status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) query: QueryArgs,
    /// Wait up to this long for the node to be ready; the exit code is 1 if it is not.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) wait: Option<u64>,
}

/// A pause in seconds that a person may want between two questions.
fn pause(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    if (0.01..=3600.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("from 0.01 to 3600 seconds".to_owned())
    }
}

/// Options of `aerie ping`.
#[derive(Debug, clap::Args)]
pub(crate) struct PingArgs {
    /// A node's name, its full name, its `C` name or its virtual address of either family.
    pub(crate) target: String,
    /// How many round trips: 4, or 20 at most with '--until-direct', unless said.
    #[arg(short = 'c', long)]
    pub(crate) count: Option<u32>,
    /// The pause between two, in seconds.
    #[arg(short = 'i', long, value_name = "SECONDS", default_value_t = 0.5, value_parser = pause)]
    pub(crate) interval: f64,
    /// End as soon as the path is direct; the exit code is 1 if it is not after all round trips.
    #[arg(long)]
    pub(crate) until_direct: bool,
    #[command(flatten)]
    pub(crate) query: QueryArgs,
}

/// Options of `aerie path`.
#[derive(Debug, clap::Args)]
pub(crate) struct PathArgs {
    /// A node's name, its full name, its `C` name or its virtual address of either family.
    pub(crate) target: String,
    /// Show every way that was tried, and how it did.
    #[arg(long)]
    pub(crate) why: bool,
    #[command(flatten)]
    pub(crate) query: QueryArgs,
}

/// Options of `aerie doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) query: QueryArgs,
    /// Folder of keys, credentials and leases.
    #[arg(long, value_name = "DIR", default_value = paths::STATE_DIR)]
    pub(crate) state: PathBuf,
    /// Also write what was found, the paths that are not direct and the last of the log into a new zip archive, for
    /// somebody who helps. It has no secrets in it.
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: Option<PathBuf>,
}

/// Options of `aerie join`.
#[derive(Debug, clap::Args)]
pub(crate) struct JoinArgs {
    /// The blob: a file (TOML, zip, floppy image or user-data), a folder, '-' for standard input, or the line that
    /// 'aerie grid blob --as line' prints.
    pub(crate) blob: String,
    /// Do not ask.
    #[arg(long)]
    pub(crate) yes: bool,
    /// Only keep the configuration, for the service's next start.
    #[arg(long)]
    pub(crate) no_start: bool,
    /// How long to wait for the node to be ready; the exit code is 1 if it is not.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) wait: u64,
    /// Where the configuration is kept.
    #[arg(long, value_name = "FILE", default_value = paths::BLOB, hide = true)]
    pub(crate) place: PathBuf,
    /// Folder of keys, credentials and leases.
    #[arg(long, value_name = "DIR", default_value = paths::STATE_DIR)]
    pub(crate) state: PathBuf,
    /// Folder of the control socket.
    #[arg(long, value_name = "DIR", default_value = paths::RUN_DIR)]
    pub(crate) run_dir: PathBuf,
}

/// Options of `aerie leave`.
#[derive(Debug, clap::Args)]
pub(crate) struct LeaveArgs {
    /// Folder of keys, credentials and leases.
    #[arg(long, value_name = "DIR", default_value = paths::STATE_DIR)]
    pub(crate) state: PathBuf,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// Do not ask.
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Where a grid's CA and database are.
#[derive(Debug, clap::Args)]
pub(crate) struct GridDir {
    /// Folder of the grid's CA and enrolment database.
    #[arg(long, value_name = "DIR", default_value = paths::PORTAL_DIR)]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum GridCommand {
    /// Create a grid: its CA and its enrolment database.
    Create {
        /// The grid's name, the label below `.grid` in the names of its nodes.
        name: GridName,
        /// The range of virtual addresses.
        #[arg(long, value_name = "CIDR", default_value = VirtualRange::DEFAULT)]
        range: VirtualRange,
        /// A part of the range that only nodes get that ask for an address of it by number; may be repeated.
        #[arg(long, value_name = "CIDR")]
        reserve: Vec<ipnet::Ipv4Net>,
        /// A part of the range that no node gets, for machines that run no Aerie; may be repeated.
        #[arg(long, value_name = "CIDR")]
        exclude: Vec<ipnet::Ipv4Net>,
        /// A part of the range that is leased in blocks, to nodes that route for others, and to no node singly.
        #[arg(long, value_name = "CIDR")]
        routed: Option<ipnet::Ipv4Net>,
        /// The length of those blocks' prefixes.
        #[arg(long, value_name = "BITS", default_value_t = 28, requires = "routed")]
        block: u8,
        /// Strict mode: only these nodes grant addresses, by majority. Three to five names, such as hub,m1,m2.
        #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
        witnesses: Vec<NodeName>,
        #[command(flatten)]
        dir: GridDir,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Administer the user groups.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Make a configuration blob: what a new node needs to join.
    Blob(BlobArgs),
    /// List the nodes that enrolled.
    Nodes {
        #[command(flatten)]
        dir: GridDir,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take credentials back. The signed list reaches every member within seconds.
    Revoke {
        #[command(subcommand)]
        target: RevokeTarget,
    },
}

#[derive(Debug, Subcommand)]
enum GroupCommand {
    /// Add a user group.
    Add {
        /// The group's name.
        name: GroupName,
        #[command(flatten)]
        dir: GridDir,
    },
    /// List the user groups.
    List {
        #[command(flatten)]
        dir: GridDir,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum RevokeTarget {
    /// One node.
    Node {
        /// The node's name.
        name: NodeName,
        #[command(flatten)]
        options: RevokeOptions,
    },
    /// Every node of a user.
    User {
        /// The user's name.
        name: UserName,
        #[command(flatten)]
        options: RevokeOptions,
    },
    /// Every node of a group.
    Group {
        /// The group's name.
        name: GroupName,
        #[command(flatten)]
        options: RevokeOptions,
    },
}

/// Options of `aerie grid revoke`.
#[derive(Debug, clap::Args)]
pub(crate) struct RevokeOptions {
    #[command(flatten)]
    pub(crate) dir: GridDir,
    /// Folder of the control socket of a daemon on this machine, which spreads the list at once.
    #[arg(long, value_name = "DIR", default_value = paths::RUN_DIR)]
    pub(crate) run_dir: PathBuf,
}

/// Options of `aerie grid blob`.
#[derive(Debug, clap::Args)]
pub(crate) struct BlobArgs {
    #[command(flatten)]
    pub(crate) dir: GridDir,
    /// The user group whose blob this is.
    #[arg(long)]
    pub(crate) group: GroupName,
    /// What the node will do: manager, submit, worker, client, relay; several joined by commas.
    #[arg(long)]
    pub(crate) role: Roles,
    /// The person to whom the node belongs.
    #[arg(long, default_value = "admin")]
    pub(crate) user: UserName,
    /// The name wished for the node; without it the host's name is taken.
    #[arg(long)]
    pub(crate) name: Option<NodeName>,
    /// The virtual address that the node takes, and no other.
    #[arg(long, value_name = "IPV4")]
    pub(crate) address: Option<std::net::Ipv4Addr>,
    /// Where the enrolment service answers, such as https://192.0.2.10:8443.
    #[arg(long = "url", value_name = "URL", required = true)]
    pub(crate) urls: Vec<String>,
    /// A member with an open port, as a multiaddress; without its /p2p/ part any member of the grid may answer.
    #[arg(long, value_name = "MULTIADDR")]
    pub(crate) bootstrap: Vec<String>,
    /// How many nodes may enrol with this blob.
    #[arg(long, default_value_t = 1)]
    pub(crate) uses: u32,
    /// How long the blob can be used, such as 24h or 7days.
    #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
    pub(crate) ttl: std::time::Duration,
    /// The form of the blob.
    #[arg(long = "as", value_enum, default_value_t = BlobForm::Toml)]
    pub(crate) form: BlobForm,
    /// The file (or, for `dir`, the folder) to write; `-` for standard output.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BlobForm {
    /// A 1.44 MB FAT floppy image.
    Floppy,
    /// A zip archive.
    Zip,
    /// Gzip'd user-data for a cloud instance, at most 16,384 bytes.
    UserData,
    /// A folder.
    Dir,
    /// The bare configuration file.
    Toml,
    /// One line of text, to be pasted after 'aerie join'.
    Line,
}

#[derive(Debug, Subcommand)]
enum PortalCommand {
    /// Serve enrolment over HTTPS until stopped.
    Serve {
        #[command(flatten)]
        dir: GridDir,
        /// The address to listen at.
        #[arg(long, default_value = "0.0.0.0:8443")]
        listen: SocketAddr,
        /// Names and addresses under which nodes reach this service; they go into its certificate.
        #[arg(long = "san", value_name = "NAME", required = true)]
        sans: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say what a blob would do, and what is wrong with it.
    Check {
        /// The blob: TOML, zip, floppy image, user-data or a folder.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command. The exit code is 0 where it did what was asked.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Up(args) => up::run(args),
        Command::Join(args) => join::run(&args),
        Command::Status(args) => query::status(&args),
        Command::Peers(args) => query::peers(&args),
        Command::Ping(args) => ping::ping(&args),
        Command::Path(args) => diagnose::path(&args),
        Command::Netcheck(args) => diagnose::netcheck(&args),
        Command::Doctor(args) => diagnose::doctor(&args),
        Command::Leave(args) => query::leave(&args),
        Command::Grid(command) => grid::run(command),
        Command::Portal(PortalCommand::Serve { dir, listen, sans }) => portal::serve(&dir.dir, listen, sans),
        Command::Config(ConfigCommand::Check { file, json }) => config::check(&file, json),
        Command::Image(command) => image::run(command),
        Command::Context(command) => context::run(command),
        Command::Completion { shell } => docs::completion(shell),
        Command::Man { dir } => docs::man(&dir),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}
