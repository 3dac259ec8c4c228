//! The forms in which a disk is given away.

use std::fs;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::manifest::Format;
use super::process;
use super::tools::Tools;
use crate::Error;

const OVF: &str = include_str!("../../image/machine.ovf");

/// What a machine's description says of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Described<'a> {
    pub(crate) name: &'a str,
    /// The disk's size in bytes.
    pub(crate) size: u64,
    /// The time of the files in an archive, in seconds since 1970.
    pub(crate) epoch: u64,
}

/// Writes the disk in another form. `work` is on the same file system as `to`.
pub(crate) fn convert(
    tools: &Tools,
    described: Described,
    disk: &Path,
    format: Format,
    to: &Path,
    work: &Path,
) -> Result<(), Error> {
    let qemu_img = |format: &str, options: &[&str], to: &Path| {
        let mut command = tools.command("qemu-img");
        // One after the other: the order of the clusters in the file is that of the disk.
        command
            .args(["convert", "-m", "1", "-f", "raw", "-O", format])
            .args(options)
            .args([disk, to]);
        process::output(&mut command, "qemu-img", "qemu-utils").map(drop)
    };
    match format {
        Format::Raw => fs::copy(disk, to).map(drop).map_err(Error::file("write", to)),
        Format::Qcow2 => qemu_img("qcow2", &["-c", "-o", "compression_type=zstd"], to),
        Format::Vmdk => qemu_img("vmdk", &["-o", "subformat=streamOptimized"], to),
        Format::Ova => {
            let vmdk = work.join("disk.vmdk");
            qemu_img("vmdk", &["-o", "subformat=streamOptimized"], &vmdk)?;
            ova(described, &vmdk, to)
        }
    }
}

/// An OVA (DSP0243): a tar archive of the machine's description, the hashes of both files, and the disk.
fn ova(described: Described, vmdk: &Path, to: &Path) -> Result<(), Error> {
    let Described { name, size, epoch } = described;
    let length = fs::metadata(vmdk).map_err(Error::file("read", vmdk))?.len();
    let ovf = OVF
        .replace("@NAME@", name)
        .replace("@LENGTH@", &length.to_string())
        .replace("@SIZE@", &size.to_string());
    let hashes = format!(
        "SHA256({name}.ovf)= {}\nSHA256({name}-disk1.vmdk)= {}\n",
        hex::encode(Sha256::digest(&ovf)),
        super::cache::sha256(vmdk)?
    );
    let file = fs::File::create(to).map_err(Error::file("write", to))?;
    let disk = fs::File::open(vmdk).map_err(Error::file("read", vmdk))?;
    let mut archive = tar::Builder::new(file);
    let mut add = |suffix: &str, length: u64, content: &mut dyn Read| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_mtime(epoch);
        header.set_size(length);
        archive.append_data(&mut header, format!("{name}{suffix}"), content)
    };
    let written = add(".ovf", ovf.len() as u64, &mut ovf.as_bytes())
        .and_then(|()| add(".mf", hashes.len() as u64, &mut hashes.as_bytes()))
        .and_then(|()| add("-disk1.vmdk", length, &mut &disk));
    written
        .and_then(|()| archive.finish())
        .map_err(Error::file("write", to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ova_begins_with_its_description_which_names_the_disk_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let (vmdk, to) = (dir.path().join("d"), dir.path().join("o"));
        fs::write(&vmdk, "disk").unwrap();
        let described = Described {
            name: "lab",
            size: 4 << 30,
            epoch: 7,
        };
        ova(described, &vmdk, &to).unwrap();
        let mut archive = tar::Archive::new(fs::File::open(&to).unwrap());
        let mut parts = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            parts.push((entry.path().unwrap().display().to_string(), text));
        }
        let names: Vec<_> = parts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["lab.ovf", "lab.mf", "lab-disk1.vmdk"]);
        let ovf = &parts[0].1;
        assert!(
            ovf.contains("ovf:href=\"lab-disk1.vmdk\"") && ovf.contains("ovf:size=\"4\""),
            "{ovf}"
        );
        assert!(
            ovf.contains("ovf:capacity=\"4294967296\"") && !ovf.contains('@'),
            "{ovf}"
        );
    }
}
