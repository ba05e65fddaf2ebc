use serde::Deserialize;

use super::*;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its reading is tested")]
struct Site {
    name: String,
    ports: Vec<u16>,
    #[serde(default)]
    dataset: Vec<Dataset>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its reading is tested")]
struct Dataset {
    label_map: String,
}

fn refusal(text: &str) -> Diagnostics {
    Document::parse("site.toml", text).and_then(|document| document.read::<Site>()).unwrap_err()
}

#[test]
fn all_syntax_errors_are_reported_with_their_lines() {
    insta::assert_snapshot!(refusal("name = \nports = [1\n[[dataset]\n"), @r#"
    site.toml:1: string values must be quoted, expected literal string
    error: site.toml:3: missing comma between array elements, expected `,`
    error: site.toml:3: unclosed array, expected `]`
    error: site.toml:3: unclosed array, expected `]`
    error: site.toml:3: string values must be quoted, expected literal string
    "#);
}

#[test]
fn all_unknown_keys_and_wrong_types_are_reported_with_their_lines() {
    let text = "name = \"a\"\nports = [1, 70000]\ncolour = 1\n[[dataset]]\nlabel_map = \"btcv\"\n[[dataset]]\nlabelmap = \"x\"\nlabel_map = 7\n";
    insta::assert_snapshot!(refusal(text), @r#"
    site.toml:2: `ports`: invalid value: integer `70000`, expected u16
    error: site.toml:3: `colour`: unknown field `colour`, expected one of `name`, `ports`, `dataset`
    error: site.toml:7: `dataset[1].labelmap`: unknown field `labelmap`, expected `label_map`
    error: site.toml:8: `dataset[1].label_map`: invalid type: integer `7`, expected a string
    "#);
}

#[test]
fn a_missing_key_is_reported_once() {
    insta::assert_snapshot!(refusal("ports = []\n"), @"site.toml:1: missing field `name`");
}

#[test]
fn a_problem_stands_at_the_line_of_its_key_or_of_the_nearest_one() {
    let text = "name = \"a\"\n\n[[dataset]]\nlabel_map = \"btcv\"\n\n[[dataset]]\nlabel_map = \"x\"\n";
    let document = Document::parse("site.toml", text).unwrap();
    let mut problems = Problems::new();
    problems.add_allowed("dataset[1].label_map", "unknown data set `x`", "btcv, lits");
    problems.add("dataset[0].cases", "is missing");
    problems.add("ports", "is missing");
    problems.in_range("name.length", 3, 4..=5);
    let diagnostics = document.locate(problems).unwrap_err().with_hint("run `site-agent check`");
    insta::assert_snapshot!(diagnostics, @r#"
    site.toml: `ports`: is missing
    error: site.toml:1: `name.length`: 3 is out of range
      allowed: 4 to 5
    error: site.toml:3: `dataset[0].cases`: is missing
    error: site.toml:7: `dataset[1].label_map`: unknown data set `x`
      allowed: btcv, lits

    hint: run `site-agent check`
    "#);
}

#[test]
fn a_number_that_is_none_is_out_of_every_range() {
    let mut problems = Problems::new();
    problems.in_range("rate", f64::NAN, 0.0..=1.0);
    assert!(!problems.is_empty());
}
