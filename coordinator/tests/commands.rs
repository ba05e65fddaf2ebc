//! The program from outside: what it prints, where, and with which exit code. Cargo builds the program itself for this
//! test, and so for the tests of the whole in `tests/e2e`.

use std::path::Path;
use std::process::{Command, Output};

fn coordinator(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    command.current_dir(folder).args(args).env_remove("CONSILIUM_LOG").output().expect("the program starts")
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("it speaks UTF-8")
}

#[test]
fn a_command_before_init_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let told = coordinator(folder.path(), &["status"]);
    assert_eq!((told.status.code(), text(&told.stdout)), (Some(78), ""));
    assert!(text(&told.stderr).starts_with("error: coordinator.toml"), "{}", text(&told.stderr));
    assert!(text(&told.stderr).contains("run `coordinator init`"), "{}", text(&told.stderr));
}

#[test]
fn init_makes_a_consortium_once() {
    let folder = tempfile::tempdir().unwrap();
    let init = ["init", "--consortium", "thorax", "--listen", "127.0.0.1:0"];
    let told = coordinator(folder.path(), &init);
    assert_eq!((told.status.code(), text(&told.stderr)), (Some(0), ""));
    assert!(text(&told.stdout).contains("keep it in a safe"), "{}", text(&told.stdout));
    let root = std::fs::read(folder.path().join("certs/root.pem")).unwrap();

    let again = coordinator(folder.path(), &init);
    assert_eq!((again.status.code(), text(&again.stdout)), (Some(1), ""));
    assert!(text(&again.stderr).contains("was initialised before"), "{}", text(&again.stderr));
    assert_eq!(std::fs::read(folder.path().join("certs/root.pem")).unwrap(), root);

    let status = coordinator(folder.path(), &["status"]);
    assert_eq!(status.status.code(), Some(0));
    assert!(text(&status.stdout).starts_with("consortium thorax: not running\n"), "{}", text(&status.stdout));
}

#[test]
fn a_demo_runs_one_experiment() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = [
        ["demo", "--ablation", "--encodings"].as_slice(),
        &["demo", "--encodings", "--cross-site"],
        &["demo", "--encodings", "--embedding", "minilm"],
        &["demo", "--seeds", "1,2"],
        &["demo", "--cross-site", "--data", "a", "--held-out", "b"],
    ];
    for args in wrong {
        let told = coordinator(folder.path(), args);
        assert_eq!((told.status.code(), text(&told.stdout)), (Some(2), ""), "{args:?}");
    }
}

#[test]
fn leaving_sites_out_needs_the_studies_that_do() {
    let folder = tempfile::tempdir().unwrap();
    coordinator(folder.path(), &["init", "--consortium", "thorax", "--listen", "127.0.0.1:0"]);
    let told =
        coordinator(folder.path(), &["study", "cross-site", "table", "lungs", "--sites", "north,south"]);
    assert_eq!((told.status.code(), text(&told.stdout)), (Some(1), ""));
    let words = "error: no study is called `lungs-without-north`";
    assert!(text(&told.stderr).starts_with(words), "{}", text(&told.stderr));

    let told = coordinator(folder.path(), &["study", "cross-site", "run", "lungs", "--sites", "north,south"]);
    assert_eq!((told.status.code(), text(&told.stdout)), (Some(1), ""));
    let words = "error: no coordinator is running";
    assert!(text(&told.stderr).starts_with(words), "{}", text(&told.stderr));
    assert!(text(&told.stderr).contains("hint: start `coordinator run` first"), "{}", text(&told.stderr));
}
