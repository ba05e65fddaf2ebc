//! The workspace keeps its shape: who may depend on whom, and what `common` may never see.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// Every package that a build of `root` (without its tests) links, by name.
fn linked_by(metadata: &Metadata, root: &str) -> BTreeSet<String> {
    let names: BTreeMap<&PackageId, &str> =
        metadata.packages.iter().map(|p| (&p.id, p.name.as_str())).collect();
    let resolve = metadata.resolve.as_ref().expect("cargo metadata resolves the workspace");
    let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|n| (&n.id, n)).collect();
    let is_root =
        |p: &&cargo_metadata::Package| p.name.as_str() == root && metadata.workspace_members.contains(&p.id);
    let start = metadata.packages.iter().find(is_root).unwrap_or_else(|| panic!("no package {root}"));

    let mut seen = BTreeSet::new();
    let mut open = vec![&start.id];
    while let Some(id) = open.pop() {
        for dependency in &nodes[id].deps {
            let linked = dependency.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal);
            if linked && seen.insert(&dependency.pkg) {
                open.push(&dependency.pkg);
            }
        }
    }
    seen.into_iter().map(|id| names[id].to_owned()).collect()
}

fn metadata() -> Metadata {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    MetadataCommand::new()
        .manifest_path(root)
        .other_options(
            ["--locked", "--offline", "--filter-platform", "x86_64-unknown-linux-gnu"].map(String::from),
        )
        .exec()
        .expect("cargo metadata")
}

#[test]
fn dependencies_point_one_way() {
    let metadata = metadata();
    let ours = |root| -> Vec<String> {
        let members = ["common", "coordinator", "link", "site-agent"];
        linked_by(&metadata, root).into_iter().filter(|name| members.contains(&name.as_str())).collect()
    };
    assert_eq!(ours("common"), [""; 0]);
    assert_eq!(ours("link"), ["common"]);
    assert_eq!(ours("coordinator"), ["common", "link"]);
    assert_eq!(ours("site-agent"), ["common", "link"]);
}

#[test]
fn common_is_pure() {
    let linked = linked_by(&metadata(), "common");
    for banned in
        ["tokio", "quinn", "rustls", "mio", "socket2", "sqlx", "burn", "ndarray", "nalgebra", "tracing"]
    {
        assert!(!linked.contains(banned), "common must not link {banned}");
    }
}

#[test]
fn the_coordinator_knows_no_tensor_library() {
    let linked = linked_by(&metadata(), "coordinator");
    let tensor: Vec<_> =
        linked.iter().filter(|name| name.starts_with("burn") || name.starts_with("cubecl")).collect();
    assert!(tensor.is_empty(), "the coordinator links {tensor:?}");
}

#[test]
fn there_is_one_crypto_provider() {
    for binary in ["coordinator", "site-agent"] {
        let linked = linked_by(&metadata(), binary);
        assert!(
            linked.contains("aws-lc-rs") && !linked.contains("ring"),
            "{binary}: aws-lc-rs alone, see docs/decisions"
        );
    }
}
