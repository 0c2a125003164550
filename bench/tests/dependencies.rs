//! Holds the house's shape against `cargo metadata`: who may know whom.
//!
//! ```text
//! dpdk-sys <- dpdk <- dataplane          shm <- dataplane, control
//! esp, tcpstack <- dataplane, bench      ike <- control, bench
//! api <- control, ctl, lab               dataplane-config <- dataplane, control
//! lab, tcpstack <- sim
//! ```
//!
//! Control never sees DPDK, and the dataplane never sees IKE, however indirectly.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Node, NodeDep, PackageId};

/// Each package of the workspace and those of the others that it may build on.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("dpdk-sys", &[]),
    ("culvert-dpdk", &["dpdk-sys"]),
    ("culvert-tcpstack", &[]),
    ("culvert-esp", &[]),
    ("culvert-shm", &[]),
    ("culvert-dataplane-config", &[]),
    (
        "culvert-dataplane",
        &[
            "culvert-dpdk",
            "culvert-esp",
            "culvert-shm",
            "culvert-tcpstack",
            "culvert-dataplane-config",
        ],
    ),
    ("culvert-ike", &[]),
    ("culvert-api", &[]),
    ("culvert-control", &["culvert-ike", "culvert-shm", "culvert-api", "culvert-dataplane-config"]),
    ("culvert-ctl", &["culvert-api", "culvert-control"]),
    ("culvert-captures", &[]),
    ("culvert-lab", &["culvert-api"]),
    ("culvert-sim", &["culvert-dpdk", "culvert-lab", "culvert-tcpstack"]),
    (
        "culvert-bench",
        &[
            "culvert-dataplane",
            "culvert-dpdk",
            "culvert-esp",
            "culvert-ike",
            "culvert-shm",
            "culvert-tcpstack",
            "culvert-dataplane-config",
        ],
    ),
];

/// What a package must never reach, not even through others.
const NEVER_REACHES: &[(&str, &[&str])] = &[
    ("culvert-control", &["dpdk-sys", "culvert-dpdk", "culvert-dataplane"]),
    ("culvert-ctl", &["dpdk-sys", "culvert-dpdk", "culvert-dataplane"]),
    ("culvert-lab", &["dpdk-sys", "culvert-dataplane", "culvert-control"]),
    ("culvert-dataplane", &["culvert-ike", "culvert-control", "tokio"]),
    // Protocol crates hold no socket, thread or runtime.
    ("culvert-ike", &["tokio", "rustix", "culvert-shm"]),
    ("culvert-tcpstack", &["tokio", "rustix", "libc"]),
    ("culvert-esp", &["tokio", "rustix"]),
];

/// The only packages with unsafe code of their own.
const UNSAFE: &[&str] = &["dpdk-sys", "culvert-dpdk", "culvert-shm"];

fn metadata() -> Metadata {
    MetadataCommand::new().other_options(["--locked".to_owned()]).exec().expect("cargo metadata")
}

/// What each package is built from. Tests may know more, so their dependencies do not count.
fn dependencies(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let nodes = &metadata.resolve.as_ref().expect("resolved dependencies").nodes;
    nodes.iter().map(|node| (name(metadata, &node.id), built_from(metadata, node))).collect()
}

fn name(metadata: &Metadata, id: &PackageId) -> String {
    metadata[id].name.to_string()
}

fn built_from(metadata: &Metadata, node: &Node) -> BTreeSet<String> {
    let built =
        |dep: &&NodeDep| dep.dep_kinds.iter().any(|kind| kind.kind != DependencyKind::Development);
    node.deps.iter().filter(built).map(|dep| name(metadata, &dep.pkg)).collect()
}

#[test]
fn every_package_builds_on_what_the_design_allows_and_nothing_else() {
    let metadata = metadata();
    let dependencies = dependencies(&metadata);
    let members: BTreeSet<String> =
        metadata.workspace_packages().iter().map(|package| package.name.to_string()).collect();
    let listed: BTreeSet<String> = MAY_KNOW.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(members, listed, "a member of the workspace needs its line here");
    for (package, allowed) in MAY_KNOW {
        for other in dependencies[*package].intersection(&members) {
            assert!(allowed.contains(&other.as_str()), "{package} must not know {other}");
        }
    }
}

#[test]
fn control_never_reaches_dpdk_and_the_dataplane_never_reaches_ike() {
    let dependencies = dependencies(&metadata());
    for (package, forbidden) in NEVER_REACHES {
        let mut reached = BTreeSet::new();
        let mut next = vec![(*package).to_owned()];
        while let Some(name) = next.pop() {
            for dependency in &dependencies[&name] {
                if reached.insert(dependency.clone()) {
                    next.push(dependency.clone());
                }
            }
        }
        for other in *forbidden {
            assert!(!reached.contains(*other), "{package} reaches {other}");
        }
    }
}

#[test]
fn unsafe_code_lives_in_the_packages_made_for_it() {
    for package in metadata().workspace_packages() {
        let name = package.name.to_string();
        for target in package.targets.iter().filter(|target| target.is_lib() || target.is_bin()) {
            let root = fs::read_to_string(PathBuf::from(&target.src_path)).unwrap();
            let forbids = root.contains("#![forbid(unsafe_code)]");
            let allowed = UNSAFE.contains(&name.as_str());
            assert!(forbids || allowed, "{name}: {} does not forbid unsafe code", target.src_path);
        }
    }
}
