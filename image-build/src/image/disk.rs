//! The disk: a partition table, GRUB for BIOS and for UEFI, and the root file system, written into one sparse file.
//!
//! ```text
//!  0          1 MiB          2 MiB              34 MiB                              end - 1 MiB
//!  | MBR, GPT | BIOS boot    | EFI system (FAT)  | root (ext4)                       | GPT again |
//!  | boot.img | core.img     | EFI/BOOT/BOOTX64  | /boot/grub/grub.cfg, kernel       |
//! ```
//!
//! GRUB is not installed but put together: `grub-mkimage` makes a core with every module that is needed, which finds
//! the root file system by its UUID and reads the menu there. All ids follow from the lock, so that the same inputs
//! give the same bytes.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::path::Path;

use fatfs::{Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};
use gpt::disk::LogicalBlockSize;
use gpt::partition::Partition;
use gpt::{GptConfig, mbr, partition_types};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::process;
use super::root::GRUB_DIR;
use super::tools::Tools;
use crate::Error;

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// Where the parts begin, in MiB; each ends where the next begins.
const BIOS_AT: u64 = 1;
const EFI_AT: u64 = 2;
const ROOT_AT: u64 = 34;

/// The block size of the root file system in bytes.
const BLOCK: u64 = 4096;

/// What GRUB needs to find and read the root file system and start a kernel, under either firmware.
const MODULES: [&str; 13] = [
    "configfile",
    "echo",
    "ext2",
    "halt",
    "linux",
    "ls",
    "minicmd",
    "normal",
    "part_gpt",
    "search_fs_uuid",
    "serial",
    "terminal",
    "test",
];

/// The ids of a disk and its parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ids {
    seed: [u8; 32],
}

impl Ids {
    /// Ids that follow from what the image is made of.
    pub(crate) fn of(inputs: &[u8]) -> Self {
        Self {
            seed: Sha256::digest(inputs).into(),
        }
    }

    /// The id for one purpose, as an own one (version 8) of RFC 9562.
    fn get(&self, purpose: &str) -> Uuid {
        let mut hash = Sha256::new();
        hash.update(self.seed);
        hash.update(purpose);
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }

    /// The UUID of the root file system.
    pub(crate) fn root(&self) -> String {
        self.get("root").to_string()
    }
}

/// Writes a disk of `size` bytes with this root file system. `work` is for what is needed in between.
pub(crate) fn write(
    tools: &Tools,
    root: &Path,
    ids: Ids,
    epoch: u64,
    size: u64,
    disk: &Path,
    work: &Path,
) -> Result<(), Error> {
    let size = size / MIB * MIB;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(disk)
        .map_err(Error::file("write", disk))?;
    file.set_len(size).map_err(Error::file("write", disk))?;
    file_system(tools, root, ids, epoch, size, disk)?;
    let trouble = |part: &'static str, reason: String| Error::Disk {
        part,
        path: disk.to_owned(),
        reason,
    };
    let early = work.join("early.cfg");
    let text = format!(
        "search.fs_uuid {} root\nset prefix=($root){GRUB_DIR}\n",
        ids.root()
    );
    fs::write(&early, text).map_err(Error::file("write", &early))?;
    let efi = core(
        tools,
        "x86_64-efi",
        &["all_video", "efi_gop"],
        &early,
        epoch,
        work,
    )?;
    let system = efi_system(&efi, ids).map_err(|error| trouble("EFI system partition", error.to_string()))?;
    put(&mut file, EFI_AT * MIB, &system).map_err(Error::file("write", disk))?;
    table(&mut file, ids, size).map_err(|reason| trouble("partition table", reason))?;
    let bios = core(tools, "i386-pc", &["biosdisk", "vga_text"], &early, epoch, work)?;
    let boot_path = tools.path("usr/lib/grub/i386-pc/boot.img");
    let boot = fs::read(&boot_path).map_err(Error::file("read", &boot_path))?;
    bios_boot(&mut file, &boot, bios).map_err(|error| trouble("boot loader for BIOS", error.to_string()))?;
    file.sync_all().map_err(Error::file("write", disk))
}

fn file_system(
    tools: &Tools,
    root: &Path,
    ids: Ids,
    epoch: u64,
    size: u64,
    disk: &Path,
) -> Result<(), Error> {
    let archive = fs::File::open(root).map_err(Error::file("read", root))?;
    drop(archive);
    let mut command = tools.command("mke2fs");
    command
        .env("SOURCE_DATE_EPOCH", epoch.to_string())
        .args(["-q", "-F", "-t", "ext4", "-m", "1", "-L", "root"])
        .args(["-b", &BLOCK.to_string()])
        // What GRUB cannot read.
        .args(["-O", "^orphan_file,^metadata_csum_seed"])
        .args(["-U", &ids.root()])
        .args([
            "-E",
            &format!(
                "hash_seed={},offset={},root_owner=0:0,lazy_itable_init=1",
                ids.get("hash"),
                ROOT_AT * MIB
            ),
        ])
        .arg("-d")
        .arg(root)
        .arg(disk)
        .arg(((size - (ROOT_AT + 1) * MIB) / BLOCK).to_string());
    process::output(&mut command, "mke2fs", "e2fsprogs").map(drop)
}

/// GRUB's core for a platform.
fn core(
    tools: &Tools,
    platform: &'static str,
    modules: &[&str],
    early: &Path,
    epoch: u64,
    work: &Path,
) -> Result<Vec<u8>, Error> {
    let path = work.join(platform);
    let mut command = tools.command("grub-mkimage");
    command
        .env("SOURCE_DATE_EPOCH", epoch.to_string())
        .args(["-O", platform, "-p", GRUB_DIR, "-c"])
        .arg(early)
        .arg("-d")
        .arg(tools.path(&format!("usr/lib/grub/{platform}")))
        .arg("-o")
        .arg(&path)
        .args(MODULES)
        .args(modules);
    process::output(&mut command, "grub-mkimage", "grub-common")?;
    fs::read(&path).map_err(Error::file("read", &path))
}

/// The EFI system partition, with the loader where firmware looks that knows nothing of this disk.
fn efi_system(loader: &[u8], ids: Ids) -> io::Result<Vec<u8>> {
    let mut image = vec![0; ((ROOT_AT - EFI_AT) * MIB) as usize];
    let [a, b, c, d, ..] = *ids.get("volume").as_bytes();
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat16)
        .volume_id(u32::from_be_bytes([a, b, c, d]))
        .volume_label(*b"EFI        ");
    fatfs::format_volume(Cursor::new(&mut image), options)?;
    let disk = FileSystem::new(Cursor::new(&mut image), FsOptions::new().time_provider(&FirstDay))?;
    let folder = disk.root_dir().create_dir("EFI")?.create_dir("BOOT")?;
    let mut file = folder.create_file("BOOTX64.EFI")?;
    file.write_all(loader)?;
    file.flush()?;
    drop(file);
    drop(folder);
    disk.unmount()?;
    Ok(image)
}

/// FAT's first day, as the time of every file.
#[derive(Debug)]
struct FirstDay;

impl TimeProvider for FirstDay {
    fn get_current_date(&self) -> Date {
        Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime {
            date: self.get_current_date(),
            time: Time {
                hour: 0,
                min: 0,
                sec: 0,
                millis: 0,
            },
        }
    }
}

/// The partition table at both ends, and the protective one for programs that do not know it.
fn table(file: &mut fs::File, ids: Ids, size: u64) -> Result<(), String> {
    let told = |error: &dyn std::error::Error| error.to_string();
    let sectors = u32::try_from(size / SECTOR - 1).unwrap_or(u32::MAX);
    mbr::ProtectiveMBR::with_lb_size(sectors)
        .overwrite_lba0(file)
        .map_err(|error| told(&error))?;
    let mut disk = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .change_partition_count(true)
        .create_from_device(file, Some(ids.get("disk")))
        .map_err(|error| told(&error))?;
    let part = |name: &str, kind, from: u64, to: u64| Partition {
        part_type_guid: kind,
        part_guid: ids.get(name),
        first_lba: from * MIB / SECTOR,
        last_lba: to * MIB / SECTOR - 1,
        flags: 0,
        name: name.to_owned(),
    };
    let parts = BTreeMap::from([
        (1, part("bios", partition_types::BIOS, BIOS_AT, EFI_AT)),
        (2, part("efi", partition_types::EFI, EFI_AT, ROOT_AT)),
        (
            3,
            part("root", partition_types::LINUX_ROOT_X64, ROOT_AT, size / MIB - 1),
        ),
    ]);
    disk.update_partitions(parts).map_err(|error| told(&error))?;
    disk.write().map_err(|error| told(&error))?;
    Ok(())
}

/// Puts GRUB's first sector into the disk's, and its core into the BIOS boot partition. What both know of each
/// other's place is written into them, as `grub-bios-setup` does (GRUB's `include/grub/i386/pc/boot.h`).
fn bios_boot(file: &mut (impl Read + Write + Seek), boot: &[u8], mut core: Vec<u8>) -> io::Result<()> {
    /// The code of the first sector ends before the disk's signature and the table of partitions.
    const CODE: usize = 440;
    /// Where the core's first sector stands on the disk.
    const CORE_SECTOR: usize = 0x5c;
    /// The drive to read from; the firmware's own if all bits are set.
    const DRIVE: usize = 0x64;
    /// A jump that is taken out: it would trust the firmware's number of the drive only for floppies.
    const DRIVE_CHECK: usize = 0x66;
    /// The list of blocks grows down from the end of the core's first sector: sector, count, segment.
    const BLOCKS: usize = 0x1f4;

    let too_large = || io::Error::other("GRUB's core does not fit");
    let sectors = core.len().div_ceil(SECTOR as usize);
    core.resize(sectors * SECTOR as usize, 0);
    if core.len() as u64 > (EFI_AT - BIOS_AT) * MIB || boot.len() < SECTOR as usize {
        return Err(too_large());
    }
    let at = BIOS_AT * MIB / SECTOR;
    let rest = u16::try_from(sectors - 1).map_err(|_| too_large())?;
    core[BLOCKS..BLOCKS + 8].copy_from_slice(&(at + 1).to_le_bytes());
    core[BLOCKS + 8..BLOCKS + 10].copy_from_slice(&rest.to_le_bytes());
    put(file, at * SECTOR, &core)?;
    let mut code = boot[..CODE].to_vec();
    code[CORE_SECTOR..CORE_SECTOR + 8].copy_from_slice(&at.to_le_bytes());
    code[DRIVE] = 0xff;
    code[DRIVE_CHECK..DRIVE_CHECK + 2].copy_from_slice(&[0x90, 0x90]);
    put(file, 0, &code)
}

fn put(file: &mut (impl Write + Seek), at: u64, bytes: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_same_each_time_and_names_three_parts() {
        let ids = Ids::of(b"inputs");
        let write = || {
            let mut file = tempfile::tempfile().unwrap();
            file.set_len(64 * MIB).unwrap();
            table(&mut file, ids, 64 * MIB).unwrap();
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        };
        let bytes = write();
        assert!(bytes == write());
        let disk = GptConfig::new().open_from_device(Cursor::new(bytes)).unwrap();
        let ends: Vec<_> = disk
            .partitions()
            .values()
            .map(|part| (part.first_lba, part.last_lba))
            .collect();
        assert_eq!(ends, [(2048, 4095), (4096, 69631), (69632, 64 * 2048 - 2049)]);
    }

    #[test]
    fn the_efi_partition_is_the_same_each_time_and_holds_the_loader() {
        let image = efi_system(b"loader", Ids::of(b"inputs")).unwrap();
        assert!(image == efi_system(b"loader", Ids::of(b"inputs")).unwrap());
        let disk = FileSystem::new(Cursor::new(image), FsOptions::new()).unwrap();
        let mut text = String::new();
        disk.root_dir()
            .open_file("EFI/BOOT/BOOTX64.EFI")
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "loader");
    }

    #[test]
    fn the_first_sectors_know_each_others_place() {
        let mut disk = Cursor::new(vec![0xaa; (2 * MIB) as usize]);
        bios_boot(&mut disk, &[1; 512], vec![2; 1000]).unwrap();
        let bytes = disk.into_inner();
        assert_eq!(bytes[0x5c..0x64], 2048_u64.to_le_bytes());
        assert_eq!(bytes[440], 0xaa, "the disk's signature and its table stay");
        let core = &bytes[MIB as usize..];
        assert_eq!(core[0x1f4..0x1fc], 2049_u64.to_le_bytes());
        assert_eq!(core[0x1fc..0x1fe], 1_u16.to_le_bytes());
        let mut small = Cursor::new(Vec::new());
        assert!(bios_boot(&mut small, &[1; 512], vec![0; 2 << 20]).is_err());
    }

    #[test]
    fn ids_follow_from_the_inputs_alone() {
        assert_eq!(Ids::of(b"a").root(), Ids::of(b"a").root());
        assert_ne!(Ids::of(b"a").root(), Ids::of(b"b").root());
        assert_ne!(Ids::of(b"a").get("x"), Ids::of(b"a").get("y"));
    }
}
