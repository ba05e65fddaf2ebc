//! The program from outside: what becomes of output that cannot be written.

use std::fs::{self, File};
use std::process::{Command, Output, Stdio};

#[test]
fn an_answer_that_cannot_be_written_is_a_failure_and_one_that_nobody_reads_is_none() {
    let site = tempfile::tempdir().unwrap();
    let settings = "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p\"\n";
    fs::write(site.path().join("site.toml"), settings).unwrap();
    let status = |stdout: Stdio| -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_site-agent"));
        command.current_dir(site.path()).arg("status").env("CONSILIUM_LOG", "error").stdout(stdout);
        command.output().unwrap()
    };
    let lost = status(File::options().write(true).open("/dev/full").unwrap().into());
    let told = String::from_utf8(lost.stderr).unwrap();
    assert!(
        told.contains("error: the output could not be written\n  caused by: No space left on device"),
        "{told}"
    );
    assert_eq!(lost.status.code(), Some(1));

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let unread = status(writer.into());
    assert_eq!((unread.status.code(), String::from_utf8(unread.stderr).unwrap().as_str()), (Some(0), ""));
}
