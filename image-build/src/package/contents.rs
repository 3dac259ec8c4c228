//! What stands in Aerie's packages.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::deb::gzip;
use super::manifest::{Content, ControlFile, Package, Stamp};
use crate::Error;

/// HTCondor as of Debian 13: the oldest that understands Aerie's configuration.
const CONDOR: &str = "condor (>= 23.9)";

/// What asks, at the installation and before a purge takes keys away.
const DEBCONF: &str = "debconf (>= 0.5) | debconf-2.0";

/// What the packages are made of, beside the files of `packaging/`.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The version, as Debian takes it.
    pub version: String,
    /// Debian's name of the architecture that the program was built for.
    pub architecture: String,
    /// Who answers for the packages.
    pub maintainer: String,
    /// The time that they bear.
    pub stamp: Stamp,
    /// The program, without what only a debugger reads.
    pub program: PathBuf,
    /// The packages of the libraries that it is linked with.
    pub libraries: Vec<String>,
    /// Man pages, by file name.
    pub manuals: BTreeMap<String, Vec<u8>>,
    /// Completions of the shells.
    pub completions: Completions,
}

/// What a shell needs to complete the command line.
#[derive(Debug, Clone, Default)]
pub struct Completions {
    /// Of bash.
    pub bash: Vec<u8>,
    /// Of fish.
    pub fish: Vec<u8>,
    /// Of zsh.
    pub zsh: Vec<u8>,
}

impl Inputs {
    /// Both packages.
    ///
    /// # Errors
    /// [`Error::Version`].
    pub fn packages(&self) -> Result<Vec<Package>, Error> {
        check_version(&self.version)?;
        Ok(vec![self.node()?, self.portal()?])
    }

    /// `aerie`: the program, and the service of a node.
    fn node(&self) -> Result<Package, Error> {
        let depends = self
            .libraries
            .iter()
            .cloned()
            .chain([CONDOR, DEBCONF].map(str::to_owned));
        let mut package = Package {
            name: "aerie",
            version: self.version.clone(),
            architecture: self.architecture.clone(),
            maintainer: self.maintainer.clone(),
            section: "net",
            depends: depends.collect(),
            // Only 'aerie doctor --bundle' runs the last. Where systemd-resolved is absent, names stand in
            // /etc/hosts: a machine's resolver is not ours to change.
            suggests: vec!["aerie-portal", "systemd-resolved", "iproute2"],
            synopsis: "member of a grid: peer-to-peer VPN and HTCondor",
            description: "Aerie makes a machine a member of a lab's own grid. Handed one small\n\
                          configuration, it joins a peer-to-peer overlay across NATs, takes a VPN\n\
                          address that nobody else holds, finds the pool's managers, configures\n\
                          HTCondor and runs jobs.\n\
                          \n\
                          Until it is given a configuration the service waits and joins nothing.\n\
                          'aerie join' takes one.",
            entries: BTreeMap::new(),
            control: scripts([
                (ControlFile::Config, include_str!("../../packaging/aerie.config")),
                (
                    ControlFile::Templates,
                    include_str!("../../packaging/aerie.templates"),
                ),
                (
                    ControlFile::Postinst,
                    include_str!("../../packaging/aerie.postinst"),
                ),
                (ControlFile::Postrm, include_str!("../../packaging/aerie.postrm")),
                (ControlFile::Prerm, include_str!("../../packaging/aerie.prerm")),
            ]),
        };
        package.put(
            "/usr/bin/aerie",
            Content::CopyOf(self.program.clone()),
            0o755,
            false,
        );
        // Holds the blob, which holds a secret.
        package.put("/etc/aerie", Content::Folder, 0o755, false);
        package.conffile(
            "/etc/default/aerie",
            include_str!("../../packaging/aerie.default"),
        );
        package.file(
            "/usr/lib/systemd/system/aerie.service",
            include_str!("../../packaging/aerie.service"),
        );
        package.file(
            "/usr/lib/tmpfiles.d/aerie.conf",
            include_str!("../../packaging/aerie.tmpfiles"),
        );
        for (name, text) in &self.manuals {
            package.file(&format!("/usr/share/man/man1/{name}.gz"), gzip(text)?);
        }
        let Completions { bash, fish, zsh } = &self.completions;
        package.file("/usr/share/bash-completion/completions/aerie", bash.clone());
        package.file("/usr/share/fish/vendor_completions.d/aerie.fish", fish.clone());
        package.file("/usr/share/zsh/vendor-completions/_aerie", zsh.clone());
        self.document(&mut package)?;
        Ok(package)
    }

    /// `aerie-portal`: the service that enrols nodes. The program is `aerie`'s, of the same version.
    fn portal(&self) -> Result<Package, Error> {
        let mut package = Package {
            name: "aerie-portal",
            version: self.version.clone(),
            architecture: "all".to_owned(),
            maintainer: self.maintainer.clone(),
            section: "net",
            depends: vec![
                format!("aerie (= {})", self.version),
                "systemd | systemd-standalone-sysusers | systemd-sysusers".to_owned(),
                "systemd | systemd-standalone-tmpfiles | systemd-tmpfiles".to_owned(),
            ],
            suggests: Vec::new(),
            synopsis: "enrolment service of a grid",
            description: "Aerie makes machines members of a lab's own grid. This package runs the\n\
                          service at which new nodes enrol, on the one machine that holds the\n\
                          grid's CA. It starts once 'aerie grid create' has made a grid.",
            entries: BTreeMap::new(),
            control: scripts([
                (
                    ControlFile::Postinst,
                    include_str!("../../packaging/aerie-portal.postinst"),
                ),
                (
                    ControlFile::Postrm,
                    include_str!("../../packaging/aerie-portal.postrm"),
                ),
                (
                    ControlFile::Prerm,
                    include_str!("../../packaging/aerie-portal.prerm"),
                ),
            ]),
        };
        package.conffile(
            "/etc/default/aerie-portal",
            include_str!("../../packaging/aerie-portal.default"),
        );
        package.file(
            "/usr/lib/systemd/system/aerie-portal.service",
            include_str!("../../packaging/aerie-portal.service"),
        );
        package.file(
            "/usr/lib/sysusers.d/aerie-portal.conf",
            include_str!("../../packaging/aerie-portal.sysusers"),
        );
        package.file(
            "/usr/lib/tmpfiles.d/aerie-portal.conf",
            include_str!("../../packaging/aerie-portal.tmpfiles"),
        );
        self.document(&mut package)?;
        Ok(package)
    }

    /// What Debian wants of each package.
    fn document(&self, package: &mut Package) -> Result<(), Error> {
        let changelog = format!(
            "aerie ({}) stable; urgency=medium\n\n  * Packaged from the sources of this version.\n\n -- {}  {}\n",
            self.version, self.maintainer, self.stamp
        );
        let folder = format!("/usr/share/doc/{}", package.name);
        package.file(
            &format!("{folder}/copyright"),
            include_str!("../../packaging/copyright"),
        );
        package.file(&format!("{folder}/changelog.gz"), gzip(changelog.as_bytes())?);
        Ok(())
    }
}

fn scripts<const N: usize>(scripts: [(ControlFile, &str); N]) -> BTreeMap<ControlFile, String> {
    scripts.map(|(file, text)| (file, text.to_owned())).into()
}

/// Debian's rule for versions without an epoch or a revision (Policy 5.6.12); a hyphen would part off a revision.
fn check_version(version: &str) -> Result<(), Error> {
    let good = version.starts_with(|first: char| first.is_ascii_digit())
        && version
            .chars()
            .all(|char| char.is_ascii_alphanumeric() || ".+~".contains(char));
    if good {
        Ok(())
    } else {
        Err(Error::Version {
            version: version.to_owned(),
        })
    }
}
