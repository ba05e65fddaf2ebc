//! The workspace keeps its shape: who may depend on whom, and what `common` may never see.

use std::collections::BTreeSet;
use std::process::Command;

/// Every package that a build of `root` (without its tests) links, by name.
///
/// Asked of `cargo tree`: it resolves features for this build alone, where `cargo metadata` joins those of all targets.
fn linked_by(root: &str) -> BTreeSet<String> {
    let args = ["--edges", "normal", "--prefix", "none", "--format", "{p}", "--locked", "--offline"];
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let mut tree = Command::new(env!("CARGO"));
    tree.args(["tree", "--manifest-path", manifest, "--package", root]).args(args);
    let told = tree.output().expect("cargo runs");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let text = String::from_utf8(told.stdout).expect("names of packages");
    let names = text.lines().filter_map(|line| line.split_once(' ')).map(|(name, _)| name.to_owned());
    names.filter(|name| name != root).collect()
}

#[test]
fn dependencies_point_one_way() {
    let ours = |root| -> Vec<String> {
        let members = ["common", "coordinator", "link", "site-agent"];
        linked_by(root).into_iter().filter(|name| members.contains(&name.as_str())).collect()
    };
    assert_eq!(ours("common"), [""; 0]);
    assert_eq!(ours("link"), ["common"]);
    assert_eq!(ours("coordinator"), ["common", "link"]);
    assert_eq!(ours("site-agent"), ["common", "link"]);
}

#[test]
fn common_is_pure() {
    let linked = linked_by("common");
    for banned in
        ["tokio", "quinn", "rustls", "mio", "socket2", "sqlx", "burn", "ndarray", "nalgebra", "tracing"]
    {
        assert!(!linked.contains(banned), "common must not link {banned}");
    }
}

#[test]
fn the_coordinator_knows_no_tensor_library() {
    let linked = linked_by("coordinator");
    let tensor: Vec<_> =
        linked.iter().filter(|name| name.starts_with("burn") || name.starts_with("cubecl")).collect();
    assert!(tensor.is_empty(), "the coordinator links {tensor:?}");
}

#[test]
fn there_is_one_crypto_provider() {
    for binary in ["coordinator", "site-agent"] {
        let linked = linked_by(binary);
        assert!(
            linked.contains("aws-lc-rs") && !linked.contains("ring"),
            "{binary}: aws-lc-rs alone, see docs/decisions"
        );
    }
}
