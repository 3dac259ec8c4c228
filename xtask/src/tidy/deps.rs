//! Which package may depend on which, and what the protocol crates must not reach.
//!
//! The directions are read from `cargo metadata`. Its graph joins the features that all packages of the workspace ask
//! for, so that a protocol crate would seem to reach whatever another package's features bring in; its purity is
//! therefore read from `cargo tree`, which resolves one package by itself. Development dependencies are left aside:
//! they are not part of what is built.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;

/// The packages of the workspace, each with those that it may depend on. A package that is not listed is an
/// error, so that each new one is given its place.
const DIRECTIONS: &[(&str, &[&str])] = &[
    ("aerie-types", &[]),
    ("aerie-config", &["aerie-types"]),
    ("aerie-identity", &["aerie-types"]),
    ("aerie-dht-proto", &["aerie-types"]),
    ("aerie-vpn-proto", &["aerie-types"]),
    (
        "aerie-dht",
        &["aerie-dht-proto", "aerie-identity", "aerie-config", "aerie-types"],
    ),
    (
        "aerie-overlay",
        &["aerie-identity", "aerie-config", "aerie-types"],
    ),
    (
        "aerie-vpn",
        &["aerie-vpn-proto", "aerie-identity", "aerie-config", "aerie-types"],
    ),
    ("aerie-condor", &["aerie-identity", "aerie-config", "aerie-types"]),
    ("aerie-portal", &["aerie-identity", "aerie-config", "aerie-types"]),
    ("aerie-context-proto", &["aerie-types"]),
    ("aerie-context-client", &["aerie-context-proto", "aerie-types"]),
    (
        "aerie-context-agent",
        &["aerie-context-client", "aerie-context-proto", "aerie-types"],
    ),
    (
        "aerie-context",
        &["aerie-context-proto", "aerie-identity", "aerie-types"],
    ),
    ("aerie-cluster-proto", &["aerie-context-proto", "aerie-types"]),
    ("aerie-cluster-node", &[]),
    ("aerie-cluster-net", &["aerie-cluster-node"]),
    (
        "aerie-cluster-repository",
        &["aerie-cluster-proto", "aerie-types"],
    ),
    (
        "aerie-cluster-manager-proto",
        &["aerie-cluster-proto", "aerie-context-proto", "aerie-types"],
    ),
    (
        "aerie-cluster-manager",
        &[
            "aerie-cluster-manager-proto",
            "aerie-cluster-node",
            "aerie-cluster-proto",
            "aerie-context",
            "aerie-context-proto",
            "aerie-types",
        ],
    ),
    ("aerie-image-build", &["aerie-config", "aerie-types"]),
    (
        "aerie",
        &[
            "aerie-condor",
            "aerie-config",
            "aerie-context",
            "aerie-context-client",
            "aerie-context-proto",
            "aerie-dht",
            "aerie-dht-proto",
            "aerie-identity",
            "aerie-image-build",
            "aerie-overlay",
            "aerie-portal",
            "aerie-types",
            "aerie-vpn",
            "aerie-vpn-proto",
        ],
    ),
    ("aerie-lab", &["aerie-image-build"]),
    (
        "aerie-leases",
        &[
            "aerie-dht",
            "aerie-dht-proto",
            "aerie-identity",
            "aerie-overlay",
            "aerie-types",
        ],
    ),
    (
        "aerie-sim",
        &["aerie-dht-proto", "aerie-vpn-proto", "aerie-types"],
    ),
    ("aerie-kad-compare", &["aerie-sim", "aerie-types"]),
    ("aerie-model", &["aerie-dht-proto", "aerie-sim", "aerie-types"]),
    ("aerie-scenarios", &["aerie-lab"]),
    ("xtask", &["aerie-image-build", "aerie-lab"]),
];

/// What a package without runtime, socket, file or clock has no use for.
const IMPURE: [&str; 7] = ["libc", "mio", "nix", "reqwest", "rusqlite", "socket2", "tokio"];

/// The normal and build dependencies of every package.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// The workspace's packages, by name, with their folders.
    members: BTreeMap<String, PathBuf>,
    /// Dependencies by package id.
    edges: BTreeMap<String, BTreeSet<String>>,
    names: BTreeMap<String, String>,
}

impl Graph {
    pub(super) fn read(metadata: &Value) -> Result<Self> {
        let mut graph = Self::default();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let members: BTreeSet<_> = list(&metadata["workspace_members"])
            .iter()
            .map(text)
            .collect::<Result<_>>()?;
        for package in list(&metadata["packages"]) {
            let (id, name) = (text(&package["id"])?, text(&package["name"])?);
            if members.contains(&id) {
                let manifest = PathBuf::from(text(&package["manifest_path"])?);
                graph.members.insert(
                    name.clone(),
                    manifest.parent().unwrap_or(Path::new("")).to_owned(),
                );
            }
            graph.names.insert(id, name);
        }
        for node in list(&metadata["resolve"]["nodes"]) {
            let mut edges = BTreeSet::new();
            for dep in list(&node["deps"]) {
                if list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev") {
                    edges.insert(text(&dep["pkg"])?);
                }
            }
            graph.edges.insert(text(&node["id"])?, edges);
        }
        Ok(graph)
    }

    /// The packages that have to be pure: the protocol crates and the types that all share.
    pub(super) fn pure(&self) -> impl Iterator<Item = &str> {
        self.members
            .keys()
            .map(String::as_str)
            .filter(|name| name.ends_with("-proto") || *name == "aerie-types")
    }

    /// The protocol crates with their folders.
    pub(super) fn protocol_crates(&self) -> impl Iterator<Item = (&str, &Path)> {
        let members = self
            .members
            .iter()
            .map(|(name, folder)| (name.as_str(), folder.as_path()));
        members.filter(|(name, _)| name.ends_with("-proto"))
    }

    fn direct(&self, id: &str) -> impl Iterator<Item = &String> {
        self.edges.get(id).into_iter().flatten()
    }

    fn name<'a>(&'a self, id: &'a str) -> &'a str {
        self.names.get(id).map_or(id, String::as_str)
    }

    fn member_ids(&self) -> impl Iterator<Item = (&String, &String)> {
        self.names
            .iter()
            .filter(|(_, name)| self.members.contains_key(*name))
    }
}

fn text(value: &Value) -> Result<String> {
    value
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("cargo metadata has {value} where a text is expected"))
}

/// Dependencies between the workspace's packages point downward only.
pub(super) fn directions(graph: &Graph) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (id, name) in graph.member_ids() {
        let Some((_, allowed)) = DIRECTIONS.iter().find(|(package, _)| package == name) else {
            findings.push(Finding::Error(format!(
                "package {name} has no place in the order of dependencies; give it one in xtask/src/tidy/deps.rs"
            )));
            continue;
        };
        for dep in graph.direct(id).map(|id| graph.name(id)) {
            if graph.members.contains_key(dep) && !allowed.contains(&dep) {
                let allowed = if allowed.is_empty() {
                    "none".to_owned()
                } else {
                    allowed.join(", ")
                };
                findings.push(Finding::Error(format!(
                    "{name} depends on {dep}; of the workspace it may depend on {allowed}"
                )));
            }
        }
    }
    findings
}

/// A package that has to be pure reaches no runtime, socket, file or clock. `tree` is what
/// `cargo tree --prefix depth` prints of it: one package a line, its depth before its name.
pub(super) fn purity(package: &str, tree: &str) -> Result<Vec<Finding>> {
    let mut findings = BTreeMap::new();
    let mut chain: Vec<&str> = Vec::new();
    for line in tree.lines() {
        let name = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let depth: usize = line[..line.len() - name.len()]
            .parse()
            .with_context(|| format!("cargo tree has the line '{line}' where depth and name are expected"))?;
        let name = name.split_whitespace().next().unwrap_or_default();
        chain.truncate(depth);
        chain.push(name);
        if IMPURE.contains(&name) {
            findings.entry(name.to_owned()).or_insert_with(|| {
                Finding::Error(format!(
                    "{package} has to be pure and reaches {name} ({}); turn off the feature that brings it in",
                    chain.join(" -> ")
                ))
            });
        }
    }
    Ok(findings.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A workspace whose packages depend on others as told: (name, dependency, kind of dependency).
    fn graph(members: &[&str], deps: &[(&str, &str, Value)]) -> Graph {
        let names: BTreeSet<_> = members
            .iter()
            .copied()
            .chain(deps.iter().flat_map(|(from, to, _)| [*from, *to]))
            .collect();
        let packages: Vec<_> = names
            .iter()
            .map(|name| json!({ "id": format!("id:{name}"), "name": name, "manifest_path": format!("/w/{name}/Cargo.toml") }))
            .collect();
        let nodes: Vec<_> = names
            .iter()
            .map(|name| {
                let deps: Vec<_> = deps
                    .iter()
                    .filter(|(from, _, _)| from == name)
                    .map(
                        |(_, to, kind)| json!({ "pkg": format!("id:{to}"), "dep_kinds": [{ "kind": kind }] }),
                    )
                    .collect();
                json!({ "id": format!("id:{name}"), "deps": deps })
            })
            .collect();
        let ids: Vec<_> = members.iter().map(|name| format!("id:{name}")).collect();
        Graph::read(&json!({ "workspace_members": ids, "packages": packages, "resolve": { "nodes": nodes } }))
            .unwrap()
    }

    fn one_error(findings: &[Finding]) -> &str {
        match findings {
            [Finding::Error(text)] => text,
            other => panic!("not one error: {other:?}"),
        }
    }

    #[test]
    fn a_dependency_that_points_upward_is_an_error() {
        let members = ["aerie-types", "aerie-dht", "aerie-overlay"];
        let good = graph(&members, &[("aerie-dht", "aerie-types", Value::Null)]);
        assert_eq!(directions(&good), []);
        let bad = graph(&members, &[("aerie-dht", "aerie-overlay", Value::Null)]);
        assert!(one_error(&directions(&bad)).starts_with("aerie-dht depends on aerie-overlay"));
    }

    #[test]
    fn a_package_without_a_place_is_an_error() {
        assert!(one_error(&directions(&graph(&["aerie-new"], &[]))).contains("aerie-new has no place"));
    }

    #[test]
    fn a_protocol_crate_that_reaches_a_runtime_is_an_error_that_names_the_way() {
        let tree = "0aerie-dht-proto v0.1.0 (/w)\n1serde v1.0.0\n1helper v1.0.0\n2tokio v1.0.0\n3mio v1.0.0\n\
                    1other v2.0.0\n2tokio v1.0.0 (*)\n";
        let findings = purity("aerie-dht-proto", tree).unwrap();
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(
            one_error(&findings[1..]).contains("(aerie-dht-proto -> helper -> tokio)"),
            "{findings:?}"
        );
    }

    #[test]
    fn a_protocol_crate_without_a_runtime_is_pure() {
        let tree = "0aerie-vpn-proto v0.1.0 (/w)\n1snow v0.10.0\n2sha2 v0.11.0\n";
        assert_eq!(purity("aerie-vpn-proto", tree).unwrap(), []);
        assert!(purity("aerie-vpn-proto", "├── snow v0.10.0\n").is_err());
    }

    #[test]
    fn what_only_tests_use_does_not_count() {
        let graph = graph(
            &["aerie-vpn-proto", "aerie-vpn"],
            &[("aerie-vpn-proto", "aerie-vpn", json!("dev"))],
        );
        assert_eq!(directions(&graph), []);
    }
}
