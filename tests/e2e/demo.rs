//! A demo that cannot succeed ends at once, with the words of whoever knows why, and leaves nothing running.

use std::fs;
use std::path::Path;

use crate::harness::process::{Process, command};
use crate::harness::study::make_phantoms;

/// Command lines of all processes that name `folder`.
fn processes_in(folder: &Path) -> Vec<String> {
    let listed = fs::read_dir("/proc").expect("Linux").flatten();
    // A process may end while it is looked at.
    let lines = listed.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(folder.to_str().expect("a plain name"))).collect()
}

#[test]
fn a_demo_ends_with_the_words_of_the_site_whose_scans_cannot_be_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    for (site, hospital) in [("hospital-a", "site-a"), ("hospital-b", "site-b")] {
        make_phantoms(&path("data").join(site), hospital);
    }
    make_phantoms(&path("held-out"), "site-d");
    let scan = path("data/hospital-b/kidneys-and-vessels/case-0001/ct.nii.gz");
    fs::write(scan, "no scan").expect("the phantom is there");

    let (data, held_out, keep) = (path("data"), path("held-out/whole-trunk"), path("demo"));
    let named = [("--data", &data), ("--held-out", &held_out), ("--keep", &keep)];
    let mut demo = command("coordinator", ["demo", "--held-out-labels", "universal"]);
    for (name, path) in named {
        demo.arg(name).arg(path);
    }
    let (code, said) = Process::start("demo", demo).end();

    assert_eq!(code, Some(1), "{said:#?}");
    let error = said.iter().find(|line| line.starts_with("error: ")).expect("one reporter of errors");
    assert!(error.starts_with("error: hospital-b: the training scans cannot be used: "), "{error}");
    assert!(error.contains("case-0001"), "{error}");
    assert_eq!(processes_in(folder.path()), [""; 0]);
}
