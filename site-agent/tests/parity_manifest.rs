//! Walks the manifest of golden files: each is compared by a test that exists.

#![allow(clippy::unwrap_used, reason = "a failed step of a test ends it")]

mod support;

use std::{collections::BTreeSet, path::Path};

use support::golden::{ASKED_ELSEWHERE, COMPARED, Golden, PASSED_OVER, PROSE, Why, farthest};

#[test]
fn every_golden_file_is_compared() {
    let Some(golden) = Golden::open() else { return };
    let manifest = golden.manifest();
    let files: BTreeSet<&str> = manifest.as_object().unwrap().keys().map(String::as_str).collect();
    let compared = COMPARED.iter().map(|&(file, ..)| file);
    let listed: BTreeSet<&str> = compared.chain(PROSE.iter().copied()).collect();
    assert_eq!(files.difference(&listed).collect::<Vec<_>>(), Vec::<&&str>::new(), "not compared");
    assert_eq!(
        listed.difference(&files).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "listed and not in the manifest"
    );
}

#[test]
fn no_file_is_both_compared_and_prose() {
    for (file, ..) in COMPARED {
        assert!(!PROSE.contains(file), "{file}");
    }
}

#[test]
fn every_test_that_is_said_to_compare_exists() {
    for (file, source, test) in COMPARED {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{source}: {error}"));
        assert!(text.contains(&format!("fn {test}(")), "{file}: no test `{test}` in {source}");
    }
}

#[test]
fn what_one_test_passes_over_is_read_by_another() {
    for (file, test, part, why) in PASSED_OVER {
        let compares = |by: &str| COMPARED.iter().any(|&(name, _, test)| name == *file && test == by);
        let passes = |by: &str| {
            PASSED_OVER.iter().any(|&(name, test, other, _)| (name, test, other) == (*file, by, *part))
        };
        assert!(compares(test), "{file}: `{test}` does not open it");
        match why {
            Why::ReadBy(other) => {
                assert!(compares(other) && !passes(other), "{file}: {part} is read by none")
            }
            Why::NotOurs(reason) => assert!(!reason.is_empty(), "{file}: {part}"),
        }
    }
}

#[test]
fn what_another_test_has_to_ask_for_is_in_a_file_that_it_opens() {
    for (file, part, why) in ASKED_ELSEWHERE {
        match why {
            Why::ReadBy(test) => {
                let opens = COMPARED.iter().any(|&(name, _, by)| name == *file && by == *test);
                assert!(opens, "{file}: {part} is not asked for by `{test}`");
            }
            Why::NotOurs(reason) => assert!(!reason.is_empty(), "{file}: {part}"),
        }
    }
}

#[test]
fn every_golden_case_stands_among_the_deviations() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fidelity.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (_, deviations) = text.split_once("## Largest deviations").unwrap();
    for (file, ..) in COMPARED {
        let (case, _) = file.split_once('_').unwrap();
        let is_named =
            deviations.contains(&format!("| {case} |")) || deviations.contains(&format!("({case})"));
        assert!(is_named, "{file}: neither a row nor what is equal to the bit is of {case}");
    }
}

#[test]
fn every_test_of_the_fidelity_table_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read =
        |file: &str| std::fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let (table, mut named) = (read("docs/fidelity.md"), 0);
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let proof = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let (mut file, mut source) = ("no file", String::new());
        let parts: Vec<&str> = proof.split('`').skip(1).collect();
        for part in parts.chunks(2) {
            let &[word, after] = part else { panic!("a backtick without its pair: {row}") };
            if word.ends_with(".rs") {
                (file, source) = (word, read(word));
                continue;
            }
            let attributes = attributes_of(word, &source);
            assert!(attributes.contains(&"#[test]"), "no test `{word}` in {file}: {row}");
            let ignored = attributes.iter().any(|line| line.starts_with("#[ignore"));
            assert_eq!(
                ignored,
                after.starts_with(" (slow)"),
                "is `{word}` ignored, and said to be slow? {row}"
            );
            named += 1;
        }
    }
    assert!(named > 40, "{named} tests are named");
}

/// The attributes of a function, each on one line; none where there is no such function, or only in a comment.
fn attributes_of<'a>(function: &str, source: &'a str) -> Vec<&'a str> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let signature = format!("fn {function}(");
    let Some(at) = lines.iter().position(|line| line.starts_with(&signature)) else { return Vec::new() };
    lines[..at].iter().rev().copied().take_while(|line| line.starts_with(['#', '/'])).collect()
}

#[test]
fn a_value_that_is_no_number_is_never_close_enough() {
    assert_eq!(farthest(&[1.0, 2.5, 3.0], &[1.0, 2.0, 3.25]), 0.5);
    for (got, golden) in [(f32::NAN, 1.0), (-f32::NAN, 1.0), (1.0, f32::NAN), (f32::INFINITY, f32::INFINITY)]
    {
        assert!(farthest(&[0.0, got, 2.0], &[0.0, golden, 9.0]).is_nan(), "{got} against {golden}");
    }
}
