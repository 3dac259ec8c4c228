//! A real block device, which has no length in its metadata: needs root and loop devices.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aerie_config::{Bundle, SPEC_FILE, Scan, SourceConfig, SourceKind, find};

/// A loop device over a file, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn attach(image: &Path) -> Self {
        let output = Command::new("losetup")
            .args(["--show", "--find", "--read-only"])
            .arg(image)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        Self(String::from_utf8(output.stdout).unwrap().trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

const SPEC: &str = "version = 1\n[grid]\nname = \"chem\"\nrange = \"100.96.0.0/11\"\n\
    ca_hash = \"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"\n\
    [enrol]\nurls = [\"https://portal.example.org\"]\n[node]\nroles = [\"worker\"]\n";

#[tokio::test]
async fn a_blob_is_found_on_a_block_device_by_path_and_by_label() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("floppy.img");
    let mut bundle = Bundle::default();
    bundle.insert(SPEC_FILE, SPEC.as_bytes().to_vec()).unwrap();
    fs::write(&image, bundle.to_floppy().unwrap()).unwrap();
    let device = Loop::attach(&image);

    let by_path = SourceConfig {
        floppies: vec![device.0.clone()],
        ..SourceConfig::nowhere()
    };
    assert_eq!(find(&by_path).await.outcome.unwrap().unwrap().bundle, bundle);

    // The kernel's list, narrowed to this device: other disks of the machine are none of the test's business.
    let sys = dir.path().join("sys");
    let name = device.0.file_name().unwrap();
    fs::create_dir(&sys).unwrap();
    std::os::unix::fs::symlink(Path::new("/sys/class/block").join(name), sys.join(name)).unwrap();
    let by_label = SourceConfig {
        scan: Some(Scan {
            sys,
            dev: "/dev".into(),
        }),
        ..SourceConfig::nowhere()
    };
    let found = find(&by_label).await.outcome.unwrap().unwrap();
    assert_eq!(found.source, SourceKind::Floppy(device.0.clone()));
}
