//! QEMU's command line.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use serde_json::json;

use super::folder::Folder;
use crate::{Definition, Device, Format, Link};

/// What QEMU may not do: a guest that breaks out of its machine starts no program.
pub(super) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// What a guest is started with besides its definition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch<'a> {
    /// The kind of machine, with its version: a memory is restored on the same one, by a later QEMU too.
    pub(super) machine: &'a str,
    /// The accelerator and its processor.
    pub(super) accelerator: &'a str,
    pub(super) cpu: &'a str,
    /// The socket on which QEMU listens.
    pub(super) socket: RawFd,
    /// The images, opened, in the order of the disks.
    pub(super) images: &'a [RawFd],
    /// Whether QEMU can keep itself from starting programs.
    pub(super) sandbox: bool,
    /// Whether a memory comes.
    pub(super) incoming: bool,
}

/// QEMU's arguments. The guest stands still until it is told to run.
pub(super) fn arguments(definition: &Definition, folder: &Folder, launch: Launch<'_>) -> Vec<OsString> {
    let mut all: Vec<OsString> = Vec::new();
    let mut add = |name: &str, value: String| {
        all.push(name.into());
        if !value.is_empty() {
            all.push(value.into());
        }
    };
    add("-name", format!("guest={}", definition.name));
    add("-uuid", definition.id.to_string());
    add("-accel", launch.accelerator.to_owned());
    add("-cpu", launch.cpu.to_owned());
    add("-machine", launch.machine.to_owned());
    add("-m", format!("size={}M", definition.memory.0));
    add("-smp", format!("cpus={}", definition.cpus));
    for flag in ["-nodefaults", "-no-user-config", "-no-shutdown", "-S"] {
        add(flag, String::new());
    }
    add("-display", "none".to_owned());
    add("-action", "panic=pause".to_owned());
    add("-rtc", "base=utc".to_owned());
    add("-msg", "timestamp=on".to_owned());
    if launch.sandbox {
        add("-sandbox", SANDBOX.to_owned());
    }
    add("-pidfile", folder.pid().display().to_string());
    add(
        "-chardev",
        format!("socket,id=qmp,fd={},server=on,wait=off", launch.socket),
    );
    add("-mon", "chardev=qmp,mode=control".to_owned());
    let console = escaped(&folder.console());
    add("-chardev", format!("file,id=console,path={console},append=on"));
    add("-serial", "chardev:console".to_owned());
    add("-device", "virtio-balloon-pci,id=balloon".to_owned());
    add("-device", "virtio-rng-pci,id=rng".to_owned());
    add("-device", "pvpanic".to_owned());

    for (number, (disk, image)) in definition.disks.iter().zip(launch.images).enumerate() {
        // QEMU is given the file that was looked at, not its name.
        add("-add-fd", format!("fd={image},set={number}"));
        let mut node = json!({
            "node-name": node_name(number),
            "driver": match disk.format { Format::Raw => "raw", Format::Qcow2 => "qcow2" },
            "read-only": !disk.writable(),
            "file": {"driver": "file", "filename": file_name(number), "locking": "on"},
        });
        if disk.format == Format::Qcow2 {
            // Whatever its header says by the time that QEMU reads it.
            node["backing"] = serde_json::Value::Null;
        }
        if disk.writable() {
            node["discard"] = json!("unmap");
        }
        add("-blockdev", node.to_string());
        // Hard disks first: a floppy with a context, which is no start disk, would end a start. Floppies have no place in
        // the order, and so the last.
        let order = definition
            .disks
            .iter()
            .enumerate()
            .filter(|(other, have)| (rank(have.device), *other) < (rank(disk.device), number))
            .count();
        let device = match disk.device {
            Device::Disk => format!("virtio-blk-pci,bootindex={order}"),
            Device::Cdrom => format!("ide-cd,bootindex={order}"),
            Device::Floppy => "floppy,drive-type=144".to_owned(),
        };
        let node = node_name(number);
        add("-device", format!("{device},id=disk{number},drive={node}"));
    }
    for (number, nic) in definition.nics.iter().enumerate() {
        let mac = nic.mac;
        match &nic.link {
            Link::None => add("-device", format!("virtio-net-pci,id=nic{number},mac={mac}")),
            Link::Tap(name) => {
                add(
                    "-netdev",
                    format!("tap,id=net{number},ifname={name},script=no,downscript=no"),
                );
                add(
                    "-device",
                    format!("virtio-net-pci,id=nic{number},netdev=net{number},mac={mac}"),
                );
            }
        }
    }
    if launch.incoming {
        add("-incoming", "defer".to_owned());
    }
    all
}

/// What QEMU calls a disk.
pub(super) fn node_name(number: usize) -> String {
    format!("node{number}")
}

/// The name under which QEMU has the file of a disk's image.
fn file_name(number: usize) -> String {
    format!("/dev/fdset/{number}")
}

/// What QEMU says, with the images by their own names.
pub(super) fn named(said: &str, definition: &Definition) -> String {
    let mut said = said.to_owned();
    // The tenth begins as the first does.
    for (number, disk) in definition.disks.iter().enumerate().rev() {
        said = said.replace(&file_name(number), &disk.path.display().to_string());
    }
    said
}

fn rank(device: Device) -> u8 {
    match device {
        Device::Disk => 0,
        Device::Cdrom => 1,
        Device::Floppy => 2,
    }
}

/// A path within an option, in which a comma ends a value.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Disk, GuestId, Mac, Mib, Nic};

    #[test]
    fn a_qcow2_image_names_no_other_file_whatever_becomes_of_its_header() {
        let definition = Definition {
            id: GuestId(uuid::Uuid::from_u128(1)),
            name: "node-1".parse().unwrap(),
            memory: Mib(192),
            cpus: 1,
            disks: vec![Disk {
                path: "/a".into(),
                format: Format::Qcow2,
                device: Device::Disk,
                read_only: false,
            }],
            nics: Vec::new(),
        };
        let launch = Launch {
            machine: "pc-i440fx-7.2",
            accelerator: "tcg",
            cpu: "qemu64,-cx16",
            socket: 7,
            images: &[8],
            sandbox: false,
            incoming: false,
        };
        let arguments = arguments(&definition, &Folder::new(Path::new("/x"), definition.id), launch);
        let text: Vec<_> = arguments.iter().map(|word| word.to_str().unwrap()).collect();
        assert!(!text.contains(&"-sandbox"));
        let node = text.iter().find(|word| word.starts_with('{')).unwrap();
        let node: serde_json::Map<_, _> = serde_json::from_str(node).unwrap();
        assert_eq!(node.get("backing"), Some(&serde_json::Value::Null));
    }

    #[test]
    fn what_a_definition_says_cannot_become_another_option() {
        let disk = |path: &str, device| Disk {
            path: path.into(),
            format: Format::Raw,
            device,
            read_only: false,
        };
        let definition = Definition {
            id: GuestId(uuid::Uuid::from_u128(1)),
            name: "node-1".parse().unwrap(),
            memory: Mib(192),
            cpus: 2,
            disks: vec![
                disk("/a,b\"c", Device::Floppy),
                disk("/cd", Device::Cdrom),
                disk("/hd", Device::Disk),
            ],
            nics: vec![
                Nic {
                    mac: Mac([0x52, 0x54, 0, 0, 0, 1]),
                    link: Link::Tap("tap0".to_owned()),
                },
                Nic {
                    mac: Mac([0x52, 0x54, 0, 0, 0, 2]),
                    link: Link::None,
                },
            ],
        };
        let folder = Folder::new(Path::new("/x,y"), definition.id);
        let launch = Launch {
            machine: "pc-i440fx-7.2",
            accelerator: "tcg",
            cpu: "qemu64,-cx16",
            socket: 7,
            images: &[8, 9, 10],
            sandbox: true,
            incoming: true,
        };
        let arguments = arguments(&definition, &folder, launch);
        let text: Vec<_> = arguments.iter().map(|word| word.to_str().unwrap()).collect();
        let has = |words: [&str; 2]| text.windows(2).any(|pair| pair == words);
        assert!(has(["-m", "size=192M"]) && has(["-incoming", "defer"]) && has(["-S", "-display"]));
        assert!(has(["-device", "floppy,drive-type=144,id=disk0,drive=node0"]));
        assert!(has(["-device", "ide-cd,bootindex=1,id=disk1,drive=node1"]));
        assert!(has([
            "-device",
            "virtio-blk-pci,bootindex=0,id=disk2,drive=node2"
        ]));
        assert!(has([
            "-netdev",
            "tap,id=net0,ifname=tap0,script=no,downscript=no"
        ]));
        assert!(has(["-device", "virtio-net-pci,id=nic1,mac=52:54:00:00:00:02"]));
        assert!(
            text.iter()
                .any(|word| word.contains("path=/x,,y/00000000-0000-0000-0000-000000000001/console.log"))
        );
        let nodes: Vec<serde_json::Value> = text
            .iter()
            .filter_map(|word| serde_json::from_str(word).ok())
            .filter(serde_json::Value::is_object)
            .collect();
        assert!(
            has(["-add-fd", "fd=8,set=0"]) && has(["-add-fd", "fd=10,set=2"]) && has(["-sandbox", SANDBOX])
        );
        assert_eq!(nodes[0]["file"]["filename"], "/dev/fdset/0");
        assert_eq!(nodes[2]["file"]["filename"], "/dev/fdset/2");
        assert_eq!(named("[/dev/fdset/2]?", &definition), "[/hd]?");
        assert_eq!(nodes[1]["read-only"], true);
    }
}
