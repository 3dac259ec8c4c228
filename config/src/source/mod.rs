//! Where a machine finds its blob.
//!
//! The order is the Grid Appliance's: a floppy, a path on disk, EC2's user-data, Nimbus's. The first place that
//! holds a blob decides. A place that holds something else is passed over; one that holds a *broken* blob ends
//! the search with an error, since going on would join another grid or wait for ever without a word.
//!
//! ```text
//!            absent, or not for us
//!  floppies ──────► paths ──────► EC2 ──────► Nimbus ──────► nothing: ask again later
//!     │               │            │            │
//!     ├── a good blob: found       └──── both asked at once, within one time limit
//!     └── a broken blob: error, the search ends
//! ```
//!
//! Each place tried is reported with what was found there ([`Report`]), for `aerie status`. The search reads;
//! it changes nothing and mounts nothing.

mod disk;
mod metadata;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::bundle::Bundle;
use crate::error::Error;
use crate::spec::Spec;

/// How long one device or path may take. A floppy drive needs seconds to find that it is empty.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to look.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Floppy devices and images, in order.
    pub floppies: Vec<PathBuf>,
    /// Where to look for further disks labelled `AERIE`; `None` to leave them alone.
    pub scan: Option<Scan>,
    /// Files in any form, and directories, in order.
    pub paths: Vec<PathBuf>,
    /// EC2's metadata service; `None` to leave it alone.
    pub ec2: Option<Ec2>,
    /// The file in which Nimbus leaves the URL of its metadata server; `None` to leave it alone.
    pub nimbus: Option<PathBuf>,
    /// The time limit of both metadata services together, from the first packet to the last.
    pub network_budget: Duration,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            floppies: vec!["/dev/fd0".into(), "/dev/disk/by-label/AERIE".into()],
            scan: Some(Scan::default()),
            paths: vec![
                "/opt/grid_appliance/var/floppy.img".into(),
                "/etc/aerie/blob.d".into(),
                "/etc/aerie/blob".into(),
                "/etc/aerie/aerie.toml".into(),
            ],
            ec2: Some(Ec2::default()),
            nimbus: Some("/var/nimbus-metadata-server-url".into()),
            network_budget: Duration::from_secs(2),
        }
    }
}

impl SourceConfig {
    /// Looks nowhere: a start for those who name each place.
    #[must_use]
    pub fn nowhere() -> Self {
        Self {
            floppies: Vec::new(),
            scan: None,
            paths: Vec::new(),
            ec2: None,
            nimbus: None,
            network_budget: Duration::from_secs(2),
        }
    }
}

/// Where block devices are listed and where they can be opened.
#[derive(Debug, Clone)]
pub struct Scan {
    /// The kernel's list.
    pub sys: PathBuf,
    /// The devices.
    pub dev: PathBuf,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            sys: "/sys/class/block".into(),
            dev: "/dev".into(),
        }
    }
}

/// EC2's metadata service, or one that speaks its protocol.
#[derive(Debug, Clone)]
pub struct Ec2 {
    /// Its address, without a path.
    pub base: String,
    /// Whether the first version of the protocol may be used where the second is not offered. It has no token,
    /// so that any program that can be made to fetch a URL can read the user-data. Eucalyptus has no other.
    pub allow_v1: bool,
}

impl Default for Ec2 {
    fn default() -> Self {
        Self {
            base: "http://169.254.169.254".to_owned(),
            allow_v1: false,
        }
    }
}

/// A place where a blob can be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind", content = "place")]
pub enum SourceKind {
    /// A floppy device, its image, or another labelled disk.
    Floppy(PathBuf),
    /// A file or directory.
    Path(PathBuf),
    /// EC2's metadata service, by its address.
    Ec2(String),
    /// Nimbus's metadata server, by the file that names it.
    Nimbus(PathBuf),
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Floppy(path) => write!(f, "floppy {}", path.display()),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Ec2(base) => write!(f, "EC2 user-data at {base}"),
            Self::Nimbus(path) => write!(f, "Nimbus user-data ({})", path.display()),
        }
    }
}

/// A blob that was found, read and understood.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its files.
    pub bundle: Bundle,
    /// Its spec.
    pub spec: Spec,
    /// Where it was.
    pub source: SourceKind,
    /// What a careful administrator would mend, such as a secret that everybody can read.
    pub warnings: Vec<String>,
}

/// The end of a search.
#[derive(Debug)]
pub struct Search {
    /// The blob; `None` if there is none anywhere; the error of a broken one.
    pub outcome: Result<Option<Found>, Error>,
    /// Every place tried, in order.
    pub report: Report,
}

/// Every place tried, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One entry for each place.
    pub attempts: Vec<Attempt>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, attempt) in self.attempts.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}: {}", attempt.source, attempt.outcome)?;
        }
        Ok(())
    }
}

/// One place tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// The place.
    pub source: SourceKind,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of trying a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "result", content = "reason")]
pub enum Outcome {
    /// A good blob.
    Found,
    /// Nothing there.
    Absent(String),
    /// Something that is not for us.
    NotOurs(String),
    /// A blob that cannot be used.
    Broken(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found => f.write_str("found"),
            Self::Absent(reason) => write!(f, "nothing ({reason})"),
            Self::NotOurs(reason) => write!(f, "passed over: {reason}"),
            Self::Broken(reason) => write!(f, "broken: {reason}"),
        }
    }
}

/// Looks for a blob in every place, in order.
///
/// Takes at most ten seconds for each device or path that does not answer, and `network_budget` for the network.
/// Must run on a tokio runtime with time and IO.
pub async fn find(config: &SourceConfig) -> Search {
    let mut search = Searching::default();
    for path in &config.floppies {
        if search
            .try_disk(SourceKind::Floppy(path.clone()), path.clone())
            .await
        {
            return search.end();
        }
    }
    if let Some(scan) = config.scan.clone() {
        for path in off_thread(move || disk::labelled(&scan))
            .await
            .unwrap_or_default()
        {
            let known = config.floppies.iter().any(|floppy| disk::same(floppy, &path));
            if !known && search.try_disk(SourceKind::Floppy(path.clone()), path).await {
                return search.end();
            }
        }
    }
    for path in &config.paths {
        if search
            .try_disk(SourceKind::Path(path.clone()), path.clone())
            .await
        {
            return search.end();
        }
    }
    // Asked together, so that a network without either costs one time limit; EC2 comes first all the same.
    let ec2 = async {
        match &config.ec2 {
            Some(ec2) => Some((
                SourceKind::Ec2(ec2.base.clone()),
                metadata::ec2(ec2, config.network_budget).await,
            )),
            None => None,
        }
    };
    let nimbus = async {
        match &config.nimbus {
            Some(path) => Some((
                SourceKind::Nimbus(path.clone()),
                metadata::nimbus(path, config.network_budget).await,
            )),
            None => None,
        }
    };
    let (ec2, nimbus) = tokio::join!(ec2, nimbus);
    for (source, answer) in [ec2, nimbus].into_iter().flatten() {
        if search.take(source, answer) {
            break;
        }
    }
    search.end()
}

/// Reads the blob at a path that a person named: a file in any form, a device, or a directory.
///
/// # Errors
/// [`Error::At`] with the path, whatever is wrong.
pub fn load(path: &Path) -> Result<Found, Error> {
    let source = SourceKind::Path(path.to_owned());
    disk::read(path)
        .and_then(|read| understand(source, read))
        .map_err(|error| error.at(path.display()))
}

/// A bundle as it was read, with remarks on how it was kept.
struct Read {
    bundle: Bundle,
    warnings: Vec<String>,
}

/// What a place gave.
enum Answer {
    Absent(String),
    Read(Read),
    Refused(Error),
}

#[derive(Default)]
struct Searching {
    attempts: Vec<Attempt>,
    outcome: Option<Result<Found, Error>>,
}

impl Searching {
    /// Tries a device or path. True ends the search.
    async fn try_disk(&mut self, source: SourceKind, path: PathBuf) -> bool {
        let answer = match off_thread(move || disk::answer(&path)).await {
            Some(answer) => answer,
            None => Answer::Absent(format!("it did not answer within {} s", DISK_TIMEOUT.as_secs())),
        };
        self.take(source, answer)
    }

    /// Notes what a place gave. True ends the search.
    fn take(&mut self, source: SourceKind, answer: Answer) -> bool {
        let result = match answer {
            Answer::Absent(reason) => {
                tracing::debug!(%source, %reason, "no blob here");
                self.note(source, Outcome::Absent(reason));
                return false;
            }
            Answer::Read(read) => understand(source.clone(), read),
            Answer::Refused(error) => Err(error),
        };
        match result {
            Ok(found) => {
                tracing::info!(%source, "blob found");
                self.note(source, Outcome::Found);
                self.outcome = Some(Ok(found));
                true
            }
            Err(error) if error.is_foreign() => {
                tracing::debug!(%source, %error, "passed over");
                self.note(source, Outcome::NotOurs(error.to_string()));
                false
            }
            Err(error) => {
                tracing::warn!(%source, %error, "the blob here is broken");
                self.note(source.clone(), Outcome::Broken(error.to_string()));
                self.outcome = Some(Err(error.at(source)));
                true
            }
        }
    }

    fn note(&mut self, source: SourceKind, outcome: Outcome) {
        self.attempts.push(Attempt { source, outcome });
    }

    fn end(self) -> Search {
        Search {
            outcome: self.outcome.transpose(),
            report: Report {
                attempts: self.attempts,
            },
        }
    }
}

fn understand(source: SourceKind, read: Read) -> Result<Found, Error> {
    let spec = read.bundle.spec()?;
    Ok(Found {
        bundle: read.bundle,
        spec,
        source,
        warnings: read.warnings,
    })
}

/// Runs what may block on a thread of its own. `None` if it takes longer than [`DISK_TIMEOUT`].
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::time::timeout(DISK_TIMEOUT, tokio::task::spawn_blocking(work))
        .await
        .ok()?
        .ok()
}
