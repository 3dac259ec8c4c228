//! Arguments that both examples understand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aerie_condor::{Credentials, Intent, Layout, Manager, Pair};
use aerie_types::{GridId, VirtualAddr};
use anyhow::{Context, bail};

/// Reads the arguments into an intent, and returns those that it did not need.
///
/// `--node w1 --addr 10.77.0.3 --roles worker [--manager m1=10.77.0.1[=GROUP]]... [--primary m1] [--group chem]
/// [--user alice] [--program gcc]... [--credentials DIR] [--user-credentials DIR] [--grid lab] [--range CIDR]`
pub(crate) fn intent() -> anyhow::Result<(Intent, BTreeMap<String, Vec<String>>)> {
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
    Ok((intent, options))
}
