//! Control groups: each node has its own, and sees it as the root.
//!
//! Only the first version of control groups is used, where the host has it and lets a group be made; elsewhere a
//! node goes without, which HTCondor copes with. The groups of a lab are named by its id, so that they can be found
//! and removed after a crash. They are the only thing that a lab makes outside its namespaces beside its folder.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::wait::wait_until;

/// The controllers that HTCondor uses.
const CONTROLLERS: [&str; 6] = ["blkio", "cpu", "cpuacct", "freezer", "memory", "pids"];

/// The parent of all groups of labs, below each controller's root.
const PARENT: &str = "aerie-lab";

/// Joins the groups, then becomes the rest of the line.
const JOIN: &str = "for group in $LAB_CGROUPS; do echo $$ >\"$group/cgroup.procs\"; done; exec \"$@\"";

/// The roots of the controllers that this host has: their mount points.
fn roots(mounts: &str) -> Vec<PathBuf> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter_map(|fields| match fields.as_slice() {
            [_, place, "cgroup", options, ..] => {
                let known = options.split(',').any(|option| CONTROLLERS.contains(&option));
                known.then(|| PathBuf::from(place))
            }
            _ => None,
        })
        .collect()
}

fn host_roots() -> Vec<PathBuf> {
    roots(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
}

/// The groups of a node that exist.
fn groups(lab: &str, node: &str) -> impl Iterator<Item = PathBuf> {
    let name = Path::new(PARENT).join(lab).join(node);
    host_roots()
        .into_iter()
        .map(move |root| root.join(&name))
        .filter(|group| group.is_dir())
}

/// Makes the groups of a node where the host lets them be made. Returns the controllers' names.
pub(crate) fn make(lab: &str, node: &str) -> Vec<String> {
    let name = Path::new(PARENT).join(lab).join(node);
    let made = host_roots()
        .into_iter()
        .filter(|root| fs::create_dir_all(root.join(&name)).is_ok());
    made.filter_map(|root| Some(root.file_name()?.to_str()?.to_owned()))
        .collect()
}

/// A command that runs in the groups of a node.
pub(crate) fn command(lab: &str, node: &str, program: &str) -> Command {
    let groups: Vec<_> = groups(lab, node)
        .map(|group| group.display().to_string())
        .collect();
    let mut command = Command::new("sh");
    command
        .args(["-c", JOIN, "sh", program])
        .env("LAB_CGROUPS", groups.join(" "));
    command
}

/// Removes the groups of a lab, whose processes have ended.
pub(crate) fn remove(lab: &str) -> Result<()> {
    for root in host_roots() {
        let parent = root.join(PARENT);
        let group = parent.join(lab);
        // A process that was killed leaves its group a moment later.
        wait_until(
            Duration::from_secs(10),
            &format!("{} to be empty", group.display()),
            || {
                remove_tree(&group)?;
                Ok(Some(()))
            },
        )?;
        // Goes with the last lab.
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

/// Removes a group and those below it. Its files are the kernel's and go with it.
fn remove_tree(group: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(group) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_versions_controllers_are_used() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(roots(mounts), [PathBuf::from("/sys/fs/cgroup/memory")]);
    }
}
