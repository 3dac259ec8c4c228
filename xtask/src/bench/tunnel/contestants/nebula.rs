//! Nebula: one end is the lighthouse of the other.

use std::path::Path;

use anyhow::Result;

use super::{Contestant, INSIDE, Stage, Tunnel};
use crate::bench::tunnel::program::{Program, run_in};
use crate::bench::tunnel::{install, private};

const PORT: u16 = 4242;

pub(super) struct Nebula<'a> {
    stage: &'a Stage,
    program: String,
    version: String,
    configs: [String; 2],
}

impl<'a> Nebula<'a> {
    pub(super) fn prepare(stage: &'a Stage) -> Result<Self> {
        let package = install::newest_debian("nebula")?;
        let tool = package.dir.join("usr/bin/nebula-cert");
        let dir = stage.dir.join("nebula");
        std::fs::create_dir_all(&dir)?;
        let cert = |args: &[&str]| -> Result<()> {
            let tool = tool.to_string_lossy();
            let mut argv = vec![&*tool];
            argv.extend(args);
            // It writes where it is called, its keys for nobody else to read.
            run_in(&dir, &argv).map(|_| ())
        };
        cert(&["ca", "-name", "bench"])?;
        let mut configs = [String::new(), String::new()];
        for (own, config) in configs.iter_mut().enumerate() {
            let name = ["a", "b"][own];
            cert(&["sign", "-name", name, "-ip", &format!("{}/24", INSIDE[own])])?;
            let file = dir.join(format!("{name}.yml"));
            private(&file, text(stage, &dir, own, name).as_bytes())?;
            *config = file.to_string_lossy().into_owned();
        }
        Ok(Self {
            stage,
            program: package.dir.join("usr/bin/nebula").to_string_lossy().into_owned(),
            version: package.version,
            configs,
        })
    }
}

/// A configuration with what has to be said; the rest is as Nebula has it.
fn text(stage: &Stage, dir: &Path, own: usize, name: &str) -> String {
    let (dir, lighthouse) = (dir.display(), INSIDE[1]);
    let (is, hosts) = match own {
        0 => ("false", format!("[\"{lighthouse}\"]")),
        _ => ("true", "[]".to_owned()),
    };
    format!(
        "pki: {{ca: {dir}/ca.crt, cert: {dir}/{name}.crt, key: {dir}/{name}.key}}\n\
         static_host_map: {{\"{lighthouse}\": [\"{}:{PORT}\"]}}\n\
         lighthouse: {{am_lighthouse: {is}, interval: 60, hosts: {hosts}}}\n\
         listen: {{host: 0.0.0.0, port: {PORT}}}\n\
         cipher: aes\n\
         tun: {{dev: nebula}}\n\
         firewall:\n  \
           outbound: [{{port: any, proto: any, host: any}}]\n  \
           inbound: [{{port: any, proto: any, host: any}}]\n",
        stage.ends[1].addr
    )
}

impl Contestant for Nebula<'_> {
    fn version(&self) -> &str {
        &self.version
    }

    fn start(&self) -> Result<Tunnel<'_>> {
        let daemon = |own: usize| {
            let argv = [self.program.as_str(), "-config", &self.configs[own]];
            let name = format!("nebula-{own}");
            Program::start(self.stage.ends[own].net, &self.stage.dir, &name, &argv)
        };
        let daemons = vec![daemon(1)?, daemon(0)?];
        Ok(Tunnel::staged(self.stage, daemons, "AES-256-GCM"))
    }
}
