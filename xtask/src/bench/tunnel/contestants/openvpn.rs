//! OpenVPN from point to point, each end knowing the other's certificate. In user space: its kernel part is no
//! more a contestant than WireGuard's.

use anyhow::{Context, Result};

use super::{Contestant, INSIDE, Stage, Tunnel};
use crate::bench::tunnel::install;
use crate::bench::tunnel::program::{Program, run_here};

const CIPHER: &str = "AES-256-GCM";

pub(super) struct Openvpn<'a> {
    stage: &'a Stage,
    version: String,
    certificates: [Certificate; 2],
}

struct Certificate {
    cert: String,
    key: String,
    fingerprint: String,
}

impl<'a> Openvpn<'a> {
    pub(super) fn prepare(stage: &'a Stage) -> Result<Self> {
        let version = install::debian_package("openvpn")?;
        Ok(Self {
            stage,
            version,
            certificates: [certificate(stage, "a")?, certificate(stage, "b")?],
        })
    }

    fn start_end(&self, own: usize) -> Result<Program> {
        let other = 1 - own;
        let (end, peer) = (self.stage.ends[own], self.stage.ends[other]);
        let certificate = &self.certificates[own];
        let (inside, across) = (INSIDE[own].to_string(), INSIDE[other].to_string());
        let (local, remote) = (end.addr.to_string(), peer.addr.to_string());
        let mut argv = vec!["openvpn", "--dev", "tun0", "--disable-dco"];
        argv.extend(["--ifconfig", &inside, &across]);
        argv.extend(["--local", &local, "--remote", &remote]);
        argv.extend(["--data-ciphers", CIPHER, "--cipher", CIPHER]);
        argv.extend(["--cert", &certificate.cert, "--key", &certificate.key]);
        argv.extend(["--peer-fingerprint", &self.certificates[other].fingerprint]);
        match own {
            0 => argv.push("--tls-client"),
            _ => argv.extend(["--tls-server", "--dh", "none"]),
        }
        Program::start(end.net, &self.stage.dir, &format!("openvpn-{own}"), &argv)
    }
}

fn certificate(stage: &Stage, name: &str) -> Result<Certificate> {
    let path = |kind: &str| {
        let file = stage.dir.join(format!("openvpn-{name}.{kind}"));
        file.to_string_lossy().into_owned()
    };
    let (cert, key) = (path("crt"), path("key"));
    let subject = format!("/CN={name}");
    run_here(&[
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        &subject,
        "-keyout",
        &key,
        "-out",
        &cert,
    ])?;
    let said = run_here(&[
        "openssl",
        "x509",
        "-in",
        &cert,
        "-noout",
        "-fingerprint",
        "-sha256",
    ])?;
    let (_, fingerprint) = said
        .trim()
        .split_once('=')
        .context("openssl tells no fingerprint")?;
    Ok(Certificate {
        fingerprint: fingerprint.to_owned(),
        cert,
        key,
    })
}

impl Contestant for Openvpn<'_> {
    fn version(&self) -> &str {
        &self.version
    }

    fn start(&self) -> Result<Tunnel<'_>> {
        let daemons = vec![self.start_end(1)?, self.start_end(0)?];
        Ok(Tunnel::staged(self.stage, daemons, CIPHER))
    }
}
