//! `aerie image`: disks that boot into a grid.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aerie_image_build::image::{
    self, BUILT_IN, Built, Cache, Event, Format, Lock, Manifest, Mirrors, Request,
};
use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::json;

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make an image: a disk that boots under BIOS and UEFI, with its lock file and bill of materials.
    Build {
        #[command(flatten)]
        inputs: Inputs,
        /// Folder of the image's files; it is made if absent.
        #[arg(long, value_name = "DIR", required_unless_present = "verify")]
        out: Option<PathBuf>,
        /// In which form; may be repeated. Without it, those of the manifest.
        #[arg(long, value_enum)]
        format: Vec<FormatArg>,
        /// Use exactly the packages of this lock file. Without it, MANIFEST's own if one stands beside it.
        #[arg(long, value_name = "FILE")]
        lock: Option<PathBuf>,
        /// Make the image twice, from the packages up, and fail where a byte differs; nothing is kept.
        #[arg(long, conflicts_with = "out")]
        verify: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write the lock file of an image: every package that it would take now, with version and hash.
    Lock {
        #[command(flatten)]
        inputs: Inputs,
        /// The file; `-` for standard output. Without it, beside the manifest, with the ending .lock.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the built-in manifests.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what a manifest would make, and what is wrong with it.
    Check {
        /// A file, or the name of a built-in manifest.
        manifest: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What an image is made of.
#[derive(Debug, clap::Args)]
pub(crate) struct Inputs {
    /// A file, or the name of a built-in manifest (aerie image list).
    #[arg(long, value_name = "FILE|NAME", default_value = "appliance")]
    manifest: String,
    /// A package given as a file, first of all Aerie's own; may be repeated.
    #[arg(long, value_name = "DEB", required = true)]
    package: Vec<PathBuf>,
    /// Where Debian's packages are fetched from.
    #[arg(long, value_name = "URL", env = "AERIE_DEBIAN_MIRROR")]
    mirror: Option<String>,
    /// Where Debian's security updates are fetched from.
    #[arg(long, value_name = "URL", env = "AERIE_DEBIAN_SECURITY_MIRROR")]
    security_mirror: Option<String>,
    /// Folder of what is kept between builds.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// The latest time that a file in the image bears, in seconds since 1970. Without it, the lock's.
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    epoch: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// The bytes of the disk.
    Raw,
    /// For QEMU, KVM and OpenStack.
    Qcow2,
    /// For VMware (streamOptimized).
    Vmdk,
    /// A whole machine for VirtualBox and VMware.
    Ova,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Raw => Self::Raw,
            FormatArg::Qcow2 => Self::Qcow2,
            FormatArg::Vmdk => Self::Vmdk,
            FormatArg::Ova => Self::Ova,
        }
    }
}

pub(super) fn run(command: ImageCommand) -> Result<ExitCode> {
    match command {
        ImageCommand::Build {
            inputs,
            out,
            format,
            lock,
            verify,
            json,
        } => {
            let mut request = inputs.request()?;
            request.formats = format.into_iter().map(Format::from).collect();
            let lock = lock.or_else(|| lock_beside(&inputs.manifest).filter(|path| path.is_file()));
            request.lock = lock.as_deref().map(Lock::read).transpose()?;
            match out {
                Some(out) if !verify => build(&request, &out, json),
                _ => check_twice(&request, json),
            }
        }
        ImageCommand::Lock { inputs, out, json } => lock(&inputs, out, json),
        ImageCommand::List { json } => list(json),
        ImageCommand::Check { manifest, json } => check(&manifest, json),
    }
}

impl Inputs {
    fn request(&self) -> Result<Request> {
        let usual = Mirrors::default();
        Ok(Request {
            manifest: Manifest::load(&self.manifest)?,
            debs: self.package.clone(),
            lock: None,
            formats: Vec::new(),
            mirrors: Mirrors {
                debian: self.mirror.clone().unwrap_or(usual.debian),
                security: self.security_mirror.clone().unwrap_or(usual.security),
            },
            cache: self.cache.as_deref().map_or_else(Cache::of_user, Cache::at)?,
            epoch: self.epoch,
        })
    }
}

/// Where the lock of a manifest stands, if the manifest is a file.
fn lock_beside(manifest: &str) -> Option<PathBuf> {
    let built_in = BUILT_IN.iter().any(|(name, _)| *name == manifest);
    (!built_in).then(|| Path::new(manifest).with_extension("lock"))
}

fn build(request: &Request, out: &Path, json: bool) -> Result<ExitCode> {
    let start = Instant::now();
    let mut shown = Shown::new();
    let built = image::build(request, out, &mut |event| shown.show(event))?;
    shown.end();
    if json {
        println!("{}", serde_json::to_string_pretty(&files(&built))?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for file in &built {
        table.add_row([
            file.path.display().to_string(),
            HumanBytes(file.size).to_string(),
            format!("sha256 {}", file.sha256),
        ]);
    }
    println!("{table}");
    println!("Made in {:.0} s.", start.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

fn files(built: &[Built]) -> serde_json::Value {
    let file = |file: &Built| {
        json!({
            "kind": file.kind,
            "path": file.path,
            "bytes": file.size,
            "sha256": file.sha256,
        })
    };
    json!({ "files": built.iter().map(file).collect::<Vec<_>>() })
}

fn check_twice(request: &Request, json: bool) -> Result<ExitCode> {
    let mut shown = Shown::new();
    let sha256 = image::verify(request, &mut |event| shown.show(event))?;
    shown.end();
    if json {
        println!("{}", json!({ "identical": true, "raw_sha256": sha256 }));
    } else {
        println!("Two builds are identical, as raw disk and as qcow2. The raw disk's sha256 is {sha256}.");
    }
    Ok(ExitCode::SUCCESS)
}

fn lock(inputs: &Inputs, out: Option<PathBuf>, json: bool) -> Result<ExitCode> {
    let out = out.or_else(|| lock_beside(&inputs.manifest)).with_context(|| {
        format!(
            "the manifest '{}' is built in: say with --out where its lock goes",
            inputs.manifest
        )
    })?;
    let mut shown = Shown::new();
    let lock = image::make_lock(&inputs.request()?, &mut |event| shown.show(event))?;
    shown.end();
    let text = lock.to_text()?;
    if out == Path::new("-") {
        print!("{text}");
    } else {
        std::fs::write(&out, text).with_context(|| format!("cannot write {}", out.display()))?;
        if json {
            println!("{}", json!({ "path": out, "packages": lock.packages.len() }));
        } else {
            println!("{}: {} packages", out.display(), lock.packages.len());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(json: bool) -> Result<ExitCode> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut all = Vec::new();
    for (name, _) in BUILT_IN {
        let manifest = Manifest::load(name)?;
        table.add_row([name, &manifest.description]);
        all.push(summary(&manifest));
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        println!("{table}");
    }
    Ok(ExitCode::SUCCESS)
}

fn check(manifest: &str, json: bool) -> Result<ExitCode> {
    let manifest = Manifest::load(manifest)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&summary(&manifest))?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}: {}", manifest.name, manifest.description);
    let packages: Vec<_> = manifest.all_packages().collect();
    let formats: Vec<_> = manifest.formats.iter().map(|format| format.extension()).collect();
    println!("  suite     {}", manifest.suite);
    println!(
        "  disk      {}, as {}",
        HumanBytes(manifest.size),
        formats.join(", ")
    );
    println!("  packages  {}", packages.join(" "));
    for deb in &manifest.debs {
        println!("  package   {}", deb.display());
    }
    for (path, file) in &manifest.files {
        println!("  file      {:04o} {path}", file.mode);
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(manifest: &Manifest) -> serde_json::Value {
    json!({
        "name": manifest.name,
        "description": manifest.description,
        "suite": manifest.suite,
        "packages": manifest.all_packages().collect::<Vec<_>>(),
        "debs": manifest.debs,
        "files": manifest.files.keys().collect::<Vec<_>>(),
        "disk_bytes": manifest.size,
        "formats": manifest.formats.iter().map(|format| format.extension()).collect::<Vec<_>>(),
    })
}

/// Progress on standard error: a line that moves on a terminal, a line for each step elsewhere.
struct Shown {
    bar: Option<ProgressBar>,
    step: String,
    began: Instant,
}

impl Shown {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(200));
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self {
            bar,
            step: String::new(),
            began: Instant::now(),
        }
    }

    fn show(&mut self, event: Event) {
        match (event, &self.bar) {
            (Event::Step(step), _) => {
                self.end_step();
                step.clone_into(&mut self.step);
                match &self.bar {
                    Some(bar) => bar.set_message(self.step.clone()),
                    None => eprintln!("{step}"),
                }
            }
            (Event::Detail(detail), Some(bar)) => bar.set_message(format!("{}: {detail}", self.step)),
            (Event::Bytes { done, total }, Some(bar)) => bar.set_message(format!(
                "{}: {} of {}",
                self.step,
                HumanBytes(done),
                HumanBytes(total)
            )),
            (Event::Bytes { done, total }, None) if done == total => eprintln!("  {}", HumanBytes(total)),
            (Event::Detail(_) | Event::Bytes { .. }, None) => {}
        }
    }

    /// A step that took a while is told with its time.
    fn end_step(&mut self) {
        let took = self.began.elapsed();
        if !self.step.is_empty() && took >= Duration::from_secs(1) {
            match &self.bar {
                Some(bar) => bar.println(format!("{} ({:.0} s)", self.step, took.as_secs_f64())),
                None => eprintln!("  {:.0} s", took.as_secs_f64()),
            }
        }
        self.began = Instant::now();
    }

    fn end(&mut self) {
        self.end_step();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
