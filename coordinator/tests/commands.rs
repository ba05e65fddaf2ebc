//! The program from outside: what it prints, where, and with which exit code. Cargo builds the program itself for this
//! test, and so for the tests of the whole in `tests/e2e`.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use safetensors::tensor::{Dtype, TensorView};

fn coordinator(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    command.current_dir(folder).args(args).env_remove("CONSILIUM_LOG").output().expect("the program starts")
}

/// As [`coordinator`], with its output going to `stdout`.
fn coordinator_into(folder: &Path, args: &[&str], stdout: impl Into<Stdio>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    command.current_dir(folder).args(args).env_remove("CONSILIUM_LOG").stdout(stdout);
    command.output().expect("the program starts")
}

fn full() -> std::fs::File {
    std::fs::File::options().write(true).open("/dev/full").expect("Linux has it")
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
fn init_makes_nothing_where_a_part_of_a_consortium_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let init = ["init", "--consortium", "thorax", "--listen", "127.0.0.1:0"];
    coordinator(folder.path(), &init);
    let (certs, state) = (folder.path().join("certs"), folder.path().join("state"));
    let key = std::fs::read(certs.join("issuing.key")).unwrap();
    let refused = |words: &str| {
        let again = coordinator(folder.path(), &init);
        assert_eq!((again.status.code(), text(&again.stdout)), (Some(1), ""));
        assert!(text(&again.stderr).contains(words), "{}", text(&again.stderr));
    };

    std::fs::rename(certs.join("issuing.pem"), folder.path().join("lost.pem")).unwrap();
    refused("`coordinator restore BACKUP`");
    assert_eq!(std::fs::read(certs.join("issuing.key")).unwrap(), key, "what signed the sites' certificates");
    std::fs::rename(folder.path().join("lost.pem"), certs.join("issuing.pem")).unwrap();

    std::fs::rename(&state, folder.path().join("unmounted")).unwrap();
    refused("mount the folder");
    assert!(!state.exists());
}

#[test]
fn settings_that_are_there_are_not_contradicted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("coordinator.toml");
    let settings = "consortium = \"thorax\"\nlisten = \"127.0.0.1:0\"\naddress = \"old.example.org:443\"\n";
    std::fs::write(&path, settings).unwrap();
    let told =
        coordinator(folder.path(), &["init", "--consortium", "thorax", "--address", "new.example.org:443"]);
    assert_eq!(told.status.code(), Some(1));
    assert!(text(&told.stderr).contains("`address = \"old.example.org:443\"`"), "{}", text(&told.stderr));
    assert!(!folder.path().join("certs").exists());
}

#[test]
fn a_log_on_a_full_disk_changes_no_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let code = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
        command.current_dir(folder.path()).args(args).env("CONSILIUM_LOG", "trace");
        command.stdout(Stdio::null()).stderr(full()).status().expect("the program starts").code()
    };
    let init = ["init", "--consortium", "thorax", "--listen", "127.0.0.1:0"];
    assert_eq!(code(&["status"]), Some(78));
    assert_eq!(code(&init), Some(0));
    assert_eq!(code(&init), Some(1));
    assert_eq!(code(&["status"]), Some(0));
}

#[test]
fn an_answer_that_cannot_be_written_is_a_failure_and_one_that_nobody_reads_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let init = ["init", "--consortium", "thorax", "--listen", "127.0.0.1:0"];
    let made = coordinator_into(folder.path(), &init, full());
    assert_eq!(made.status.code(), Some(1));
    assert!(text(&made.stderr).contains("hint: what was asked for is done"), "{}", text(&made.stderr));
    for args in [["status"].as_slice(), &["sites", "--json"], &["study", "list"]] {
        let lost = coordinator_into(folder.path(), args, full());
        let words = "error: the output could not be written\n  caused by: No space left on device";
        assert!(text(&lost.stderr).starts_with(words), "{args:?}: {}", text(&lost.stderr));
        assert_eq!(lost.status.code(), Some(1), "{args:?}");

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let unread = coordinator_into(folder.path(), args, writer);
        assert_eq!((unread.status.code(), text(&unread.stderr)), (Some(0), ""), "{args:?}");
    }
}

/// A safetensors file of zeros.
fn write_zeros(path: &Path, tensors: &[(&str, &[usize])]) {
    let zeros = |shape: &[usize]| vec![0; 4 * shape.iter().product::<usize>()];
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, shape)| zeros(shape)).collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("zeros fill their shape"))
    });
    let file = safetensors::serialize(views, None).expect("plain tensors have a file");
    std::fs::write(path, file).expect("the folder is ours");
}

#[test]
fn a_study_may_have_classes_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    coordinator(folder.path(), &["init", "--consortium", "thorax", "--listen", "127.0.0.1:0"]);
    write_zeros(
        &folder.path().join("model"),
        &[("backbone.down_tr64.ops.0.conv1.weight", &[32, 1, 3, 3, 3]), ("text_to_vision.weight", &[256, 2])],
    );
    write_zeros(&folder.path().join("embeddings"), &[("organ_embedding", &[2, 2])]);
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/examples/finetune");
    let (study, taxonomy) = (format!("{examples}/study.toml"), format!("{examples}/taxonomy.toml"));
    let add = ["study", "add", study.as_str(), "--model", "model", "--embeddings", "embeddings"];

    let refused = coordinator(folder.path(), &add);
    let words = text(&refused.stderr);
    assert!(words.contains("`embeddings.rows`: 2") && words.contains("32, one per class"), "{words}");
    let with_classes = |file: &str| {
        let args: Vec<&str> = add.into_iter().chain(["--taxonomy", file]).collect();
        coordinator(folder.path(), &args)
    };
    let added = with_classes(&taxonomy);
    assert_eq!(added.status.code(), Some(0), "{}", text(&added.stderr));
    assert_eq!(text(&added.stdout).trim().len(), 64, "the study's digest: {}", text(&added.stdout));
    let digest = text(&added.stdout).trim();
    let shown = coordinator(folder.path(), &["study", "show", &digest[..8]]);
    let words = text(&shown.stdout);
    assert_eq!((shown.status.code(), text(&shown.stderr)), (Some(0), ""));
    for expected in [digest, "not started", "[aggregation]", "fedavg (default)", "refuse (default)"] {
        assert!(words.contains(expected), "{expected}: {words}");
    }
    let json = coordinator(folder.path(), &["study", "show", &digest[..8], "--json"]);
    let document = common::study::StudyDocument::parse(json.stdout).expect("the exact document");
    assert_eq!(document.digest().to_string(), digest);
    let lost = coordinator_into(folder.path(), &["study", "show", &digest[..8], "--json"], full());
    assert_eq!(lost.status.code(), Some(1), "{}", text(&lost.stderr));
    let missing = with_classes("no-such-file");
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("no-such-file"), "{}", text(&missing.stderr));
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
