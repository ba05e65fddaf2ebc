//! Walks the manifest of golden files: each is compared by a test that exists, or left to a named issue.

#![allow(clippy::unwrap_used, reason = "a failed step of a test ends it")]

mod support;

use std::{collections::BTreeSet, path::Path};

use support::golden::{COMPARED, COMPARED_ELSEWHERE, Golden, LEFT, PROSE};

#[test]
fn every_golden_file_is_compared_or_left_to_a_named_issue() {
    let Some(golden) = Golden::open() else { return };
    let manifest: serde_json::Value = serde_json::from_slice(&golden.unlisted("MANIFEST.json")).unwrap();
    let files: BTreeSet<&str> = manifest.as_object().unwrap().keys().map(String::as_str).collect();
    let compared = COMPARED.iter().chain(COMPARED_ELSEWHERE).map(|&(file, ..)| file);
    let listed: BTreeSet<&str> = compared.chain(LEFT.iter().chain(PROSE).copied()).collect();
    assert_eq!(
        files.difference(&listed).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "neither compared nor left"
    );
    assert_eq!(
        listed.difference(&files).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "listed and not in the manifest"
    );
}

#[test]
fn no_file_is_both_compared_and_left() {
    for (file, ..) in COMPARED.iter().chain(COMPARED_ELSEWHERE) {
        assert!(!LEFT.contains(file) && !PROSE.contains(file), "{file}");
    }
}

#[test]
fn every_test_that_is_said_to_compare_exists() {
    for (file, source, test) in COMPARED.iter().chain(COMPARED_ELSEWHERE) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{source}: {error}"));
        assert!(text.contains(&format!("fn {test}(")), "{file}: no test `{test}` in {source}");
    }
}
