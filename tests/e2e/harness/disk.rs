//! Disks of a test's own, which fill up and turn read-only. They are mounted in a namespace that ends with the test.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Says to the test in the namespace that it is there.
const INSIDE: &str = "CONSILIUM_TEST_INSIDE";

/// Whether this process may mount what nobody else sees.
pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs an ignored test of this executable where it may mount disks.
///
/// # Panics
/// When it fails; also where no disk may be mounted, if `CONSILIUM_REQUIRE_SHARED=1` says that nothing is to be left out.
pub(crate) fn run_inside(test: &str) {
    let Some(flags) = namespace_flags() else { return skipped(test) };
    let own = std::env::current_exe().expect("a test knows its executable");
    let mut inside = Command::new("unshare");
    inside.args(flags).arg("--").arg(own);
    inside.args([test, "--exact", "--ignored", "--nocapture"]).env(INSIDE, "1");
    let told = inside.output().expect("unshare was there a moment ago");
    let words = String::from_utf8_lossy(&told.stdout);
    let errors = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success() && words.contains("1 passed"), "{words}\n{errors}");
}

/// How `unshare` makes a namespace here in which a disk can be mounted; `None` where that is not permitted.
fn namespace_flags() -> Option<&'static [&'static str]> {
    const KINDS: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    let folder = tempfile::tempdir().expect("a folder");
    let works = |flags: &&&[&str]| {
        let mut mount = Command::new("unshare");
        mount.args(flags.iter()).args(["--", "mount", "-t", "tmpfs", "none"]).arg(folder.path());
        mount.output().is_ok_and(|told| told.status.success())
    };
    KINDS.iter().find(works).copied()
}

#[expect(clippy::print_stderr, reason = "a skipped check must not look like a passed one")]
fn skipped(test: &str) {
    let required = std::env::var("CONSILIUM_REQUIRE_SHARED").is_ok_and(|value| value == "1");
    assert!(!required, "{test}: no disk may be mounted here, and CONSILIUM_REQUIRE_SHARED=1");
    eprintln!("SKIPPED {test}: no disk may be mounted here");
}

/// Its words are shown at the end of a run, as those of no other passing test (.config/nextest.toml).
#[test]
fn whether_disks_can_be_mounted_is_said() {
    match namespace_flags() {
        Some(_) => println!("tested on disks that fill up and turn read-only"),
        None => skipped("each test on a disk that fills up or turns read-only"),
    }
}

/// A file system with room for a small study and little else.
pub(crate) struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Moves a folder, which need not be there yet, onto a disk of its own. Nobody may have a file of it open.
    pub(crate) fn under(folder: &Path) -> Self {
        let aside = folder.with_extension("aside");
        fs::create_dir_all(folder).expect("the folder is ours");
        fs::rename(folder, &aside).expect("the folder is ours");
        fs::create_dir(folder).expect("the folder is ours");
        let disk = Self { folder: folder.to_owned() };
        disk.mount(&["-t", "tmpfs", "-o", "size=64m,mode=0700", "none"]);
        run(Command::new("cp").arg("-a").arg(aside.join(".")).arg(folder));
        disk
    }

    /// Fills it to its last page.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.ballast()).expect("there is room yet");
        for size in [1 << 20, 4096] {
            let piece = vec![0xa5; size];
            while file.write_all(&piece).is_ok() {}
        }
    }

    /// Makes room again.
    pub(crate) fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("it was written here");
    }

    /// Lets nobody open a file to write, make or rename one. A file that is open stays so: the kernel turns no disk
    /// read-only under it, so a cover is put over the folder.
    pub(crate) fn cover(&self) {
        run(Command::new("mount").arg("--bind").arg(&self.folder).arg(&self.folder));
        self.mount(&["-o", "remount,bind,ro"]);
    }

    /// Takes the cover away, also from under those who read through it.
    pub(crate) fn uncover(&self) {
        run(Command::new("umount").arg("--lazy").arg(&self.folder));
    }

    /// Turns the disk itself read-only. Nobody may have a file of it open for writing.
    pub(crate) fn turn_read_only(&self) {
        self.mount(&["-o", "remount,ro"]);
    }

    /// Turns it writable again.
    pub(crate) fn turn_writable(&self) {
        self.mount(&["-o", "remount,rw"]);
    }

    fn mount(&self, options: &[&str]) {
        run(Command::new("mount").args(options).arg(&self.folder));
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }
}

fn run(command: &mut Command) {
    let told = command.output().expect("a program of every system");
    assert!(told.status.success(), "{command:?}: {}", String::from_utf8_lossy(&told.stderr));
}
