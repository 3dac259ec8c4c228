//! Prints or writes the plan for given arguments: the door through which scripts try plans on real nodes.
//!
//! `render --node w1 --addr 10.77.0.3 --roles worker --manager m1=10.77.0.1[=group] [--primary m1] [--root DIR]`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aerie_condor::{Credentials, Intent, Layout, Manager, Pair, Plan};
use aerie_types::{GridId, VirtualAddr};
use anyhow::{Context, bail};

fn main() -> anyhow::Result<()> {
    let mut options: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut args = std::env::args().skip(1);
    while let Some(option) = args.next() {
        let value = args.next().with_context(|| format!("{option} needs a value"))?;
        options.entry(option).or_default().push(value);
    }
    let one = |name: &str| options.get(name).and_then(|values| values.first()).cloned();
    let need = |name: &str| one(name).with_context(|| format!("{name} is needed"));
    let credentials = PathBuf::from(one("--credentials").unwrap_or("/var/lib/aerie/cred".into()));
    let mut managers = Vec::new();
    for text in options.get("--manager").into_iter().flatten() {
        let parts: Vec<_> = text.split('=').collect();
        let [node, addr, group @ ..] = parts.as_slice() else {
            bail!("--manager is NODE=ADDRESS or NODE=ADDRESS=GROUP, not '{text}'")
        };
        managers.push(Manager {
            node: node.parse()?,
            addr: VirtualAddr(addr.parse()?),
            group: group.first().map(|group| group.parse()).transpose()?,
        });
    }
    let intent = Intent {
        grid: one("--grid").unwrap_or("lab".into()).parse()?,
        grid_id: GridId::of_ca(b"example"),
        node: need("--node")?.parse()?,
        addr: VirtualAddr(need("--addr")?.parse()?),
        range: one("--range").unwrap_or("10.77.0.0/24".into()).parse()?,
        roles: need("--roles")?.parse()?,
        group: one("--group").map(|group| group.parse()).transpose()?,
        user: one("--user").map(|user| user.parse()).transpose()?,
        primary: match one("--primary") {
            Some(name) => Some(name.parse()?),
            None => managers.first().map(|manager| manager.node.clone()),
        },
        managers,
        account_groups: BTreeMap::new(),
        version: one("--version").unwrap_or("0.1.0".into()).parse()?,
        programs: options
            .get("--program")
            .into_iter()
            .flatten()
            .map(|program| program.parse())
            .collect::<Result<_, _>>()?,
        credentials: Credentials {
            ca: credentials.join("ca.pem"),
            node: Pair {
                certificate: credentials.join("condor.pem"),
                key: credentials.join("condor.key"),
            },
            user: one("--user-credentials").map(|dir| Pair {
                certificate: Path::new(&dir).join("condor.pem"),
                key: Path::new(&dir).join("condor.key"),
            }),
        },
        layout: Layout::default(),
    };
    let plan = Plan::new(&intent)?;
    for (path, file) in &plan.files {
        match one("--root") {
            Some(root) => {
                let path = Path::new(&root).join(path.strip_prefix("/")?);
                std::fs::create_dir_all(path.parent().context("a file has a folder")?)?;
                std::fs::write(path, &file.bytes)?;
            }
            None => println!("=== {}\n{}", path.display(), String::from_utf8_lossy(&file.bytes)),
        }
    }
    Ok(())
}
