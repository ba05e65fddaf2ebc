use common::artifact::{ArtifactManifest, Dtype, TensorLayout, TensorSpec};
use common::ids::{RoundId, StudyDigest};
use common::time::Timestamp;
use common::update::CheckedChunk;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::doctor::{self, Told};
use crate::fixture::forbid_log;
use crate::pki::Authority;
use crate::store::{JournalEntry, StoredStudy};

const NOW: Timestamp = Timestamp(1_800_000_000_000);

/// A consortium with a study, an artifact and an update; its settings.
async fn consortium(folder: &Path) -> (PathBuf, StudyDigest) {
    let settings = folder.join(SETTINGS);
    fs::write(&settings, "consortium = \"thorax\"\nlisten = \"127.0.0.1:0\"\n").unwrap();
    Authority::create(&folder.join(CERTS), "thorax", NOW).unwrap();
    let store = Store::create(&folder.join(STATE)).await.unwrap();
    let document = b"{}".to_vec();
    let digest = StudyDigest(Digest::of(&document));
    let study = StoredStudy { digest, name: "s".to_owned(), document, added_at: NOW };
    store.add_study(&study).await.unwrap();
    let spec = TensorSpec { name: "a".to_owned(), dtype: Dtype::F32, shape: vec![5] };
    let layout = TensorLayout::new(vec![spec]).unwrap();
    let manifest = ArtifactManifest::of(layout.clone(), &[7; 20]);
    let mut writer = store.artifacts().write(layout).unwrap();
    writer.push_chunk(&[7; 20]).unwrap();
    writer.finish().unwrap();
    let update = store.spool().receive(&digest, RoundId(1), &"a".parse().unwrap(), manifest).unwrap();
    let checked = CheckedChunk::check(update.manifest(), 0, &[7; 20]).unwrap();
    update.write_checked(&checked).unwrap();
    update.keep().unwrap();
    store.close().await;
    (settings, digest)
}

/// A consortium with a backup beside it.
struct BackedUp {
    dir: tempfile::TempDir,
    settings: PathBuf,
    study: StudyDigest,
    backup: PathBuf,
}

async fn backed_up() -> BackedUp {
    let dir = tempfile::tempdir().unwrap();
    let (settings, study) = consortium(dir.path()).await;
    let backup = dir.path().join("backup");
    back_up(&settings, &backup).await.unwrap();
    BackedUp { dir, settings, study, backup }
}

/// All files below a folder, with their bytes.
fn all_files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(all_files(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_backup_of_a_store_in_use_comes_back_on_another_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, study) = consortium(dir.path()).await;
    let running = Store::open(&dir.path().join(STATE)).await.unwrap();
    let entry = JournalEntry { at: NOW, event: "one".to_owned() };
    running.append_event(&study, &entry).await.unwrap();
    let to = dir.path().join("backup");
    let made = back_up(&settings, &to).await.unwrap();
    assert!(!to.join(CERTS).join(ROOT_KEY).exists(), "it belongs in a safe");
    assert!(!to.join(STATE).join("lock").exists());
    let mode = fs::metadata(to.join(CERTS).join("issuing.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let other = tempfile::tempdir().unwrap();
    let restored = restore(&other.path().join(SETTINGS), &to).unwrap();
    assert_eq!(restored, made);
    let store = Store::open(&other.path().join(STATE)).await.unwrap();
    assert_eq!(store.journal(&study).await.unwrap().events, [entry]);
    let there = |store: &Store| {
        let artifacts = store.artifacts().entries().unwrap().into_iter();
        artifacts.chain(store.spool().entries().unwrap()).map(|entry| entry.kind).collect::<Vec<_>>()
    };
    assert_eq!(there(&store), there(&running));
    assert_eq!(there(&store).len(), 2);
    assert!(Authority::open(&other.path().join(CERTS), "thorax").is_ok());
}

#[tokio::test]
async fn a_state_on_a_disk_that_takes_nothing_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, study) = consortium(dir.path()).await;
    forbid_log(&dir.path().join(STATE));
    let backup = dir.path().join("backup");
    back_up(&settings, &backup).await.unwrap();
    let copied = Store::inspect(&backup.join(STATE)).await.unwrap();
    assert_eq!(copied.studies().await.unwrap()[0].digest, study);
}

#[tokio::test]
async fn a_restored_state_is_well_before_its_first_start_though_folders_that_were_empty_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, backup) = (dir.path().join(SETTINGS), dir.path().join("backup"));
    fs::write(&settings, "consortium = \"thorax\"\nlisten = \"127.0.0.1:0\"\n").unwrap();
    Authority::create(&dir.path().join(CERTS), "thorax", clock::now()).unwrap();
    Store::create(&dir.path().join(STATE)).await.unwrap().close().await;
    back_up(&settings, &backup).await.unwrap();

    let other = tempfile::tempdir().unwrap();
    let settings = other.path().join(SETTINGS);
    restore(&settings, &backup).unwrap();
    let mut found = Vec::new();
    let mut tell = |told: Told<'_>| {
        if let Told::Finding(finding) = told {
            found.push(finding.clone());
        }
    };
    let config = Config::read(&settings).unwrap();
    let summary = doctor::examine(&config, false, &CancellationToken::new(), &mut tell).await.unwrap();
    assert_eq!(summary, doctor::Summary::default(), "{found:#?}");
    back_up(&settings, &other.path().join("backup")).await.unwrap();
}

#[tokio::test]
async fn a_changed_byte_anywhere_is_noticed_before_anything_is_written() {
    let BackedUp { dir: _dir, backup, .. } = backed_up().await;
    let other = tempfile::tempdir().unwrap();
    for (path, bytes) in all_files(&backup) {
        if path.ends_with(MANIFEST) {
            continue;
        }
        let mut changed = bytes.clone();
        changed[0] ^= 1;
        fs::write(&path, changed).unwrap();
        let refused = restore(&other.path().join(SETTINGS), &backup);
        assert!(matches!(refused, Err(BackupError::Damaged { .. })), "{}: {refused:?}", path.display());
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
        fs::write(&path, bytes).unwrap();
    }
    fs::remove_file(backup.join(STATE).join(DATABASE)).unwrap();
    assert!(matches!(restore(&other.path().join(SETTINGS), &backup), Err(BackupError::Damaged { .. })));
}

#[tokio::test]
async fn nothing_is_written_over() {
    let BackedUp { dir, settings, backup, .. } = backed_up().await;
    assert!(matches!(back_up(&settings, &backup).await, Err(BackupError::Exists { .. })));

    let before = all_files(&dir.path().join(STATE));
    assert!(matches!(restore(&settings, &backup), Err(BackupError::NotEmpty { .. })));
    assert_eq!(all_files(&dir.path().join(STATE)), before);

    fs::rename(dir.path().join(STATE), dir.path().join("old")).unwrap();
    fs::write(dir.path().join(CERTS).join("issuing.pem"), "another").unwrap();
    assert!(matches!(restore(&settings, &backup), Err(BackupError::Differs { .. })));
    assert!(!dir.path().join(STATE).exists());
}

#[tokio::test]
async fn a_state_in_use_is_said_to_be_and_not_to_be_moved_away() {
    let BackedUp { dir, settings, backup, .. } = backed_up().await;
    let running = Store::open(&dir.path().join(STATE)).await.unwrap();
    let refused = restore(&settings, &backup);
    assert!(matches!(refused, Err(BackupError::Store(StoreError::Locked { .. }))), "{refused:?}");
    running.close().await;
    assert!(matches!(restore(&settings, &backup), Err(BackupError::NotEmpty { .. })));
}

#[tokio::test]
async fn a_folder_that_is_there_is_filled_and_not_replaced_as_it_may_be_a_mount_point() {
    use std::os::unix::fs::MetadataExt;

    let BackedUp { dir: _dir, study, backup, .. } = backed_up().await;
    let other = tempfile::tempdir().unwrap();
    let state = other.path().join(STATE);
    // As a fresh file system has it, and a restore that was interrupted.
    fs::create_dir_all(state.join("lost+found")).unwrap();
    fs::create_dir_all(state.join("restoring/artifacts")).unwrap();
    fs::write(state.join("restoring/coordinator.db"), "half").unwrap();
    let inode = || fs::metadata(&state).unwrap().ino();
    let before = inode();
    restore(&other.path().join(SETTINGS), &backup).unwrap();
    assert_eq!(inode(), before);
    assert!(!state.join("restoring").exists());
    let beside: Vec<_> =
        fs::read_dir(other.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside.len(), 3, "settings, certificates and state: {beside:?}");
    let store = Store::open(&state).await.unwrap();
    assert!(store.studies().await.unwrap().iter().any(|stored| stored.digest == study));
    assert_eq!(store.artifacts().entries().unwrap().len(), 1);
    assert_eq!(store.spool().entries().unwrap().len(), 1);
}

#[tokio::test]
async fn a_backup_of_a_newer_program_or_another_consortium_is_refused() {
    let BackedUp { dir: _dir, settings, backup, .. } = backed_up().await;
    let other = tempfile::tempdir().unwrap();
    let theirs = other.path().join(SETTINGS);
    fs::write(&theirs, "consortium = \"abdomen\"\nlisten = \"127.0.0.1:0\"\n").unwrap();
    assert!(matches!(restore(&theirs, &backup), Err(BackupError::OtherConsortium { .. })));

    let path = backup.join(MANIFEST);
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["schema"] = 99.into();
    fs::write(&path, manifest.to_string()).unwrap();
    let refused = restore(&settings, &backup);
    assert!(matches!(refused, Err(BackupError::Store(StoreError::Newer { found: 99, .. }))), "{refused:?}");
}

#[tokio::test]
async fn a_backup_that_failed_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, _) = consortium(dir.path()).await;
    fs::remove_dir_all(dir.path().join(CERTS)).unwrap();
    assert!(back_up(&settings, &dir.path().join("backup")).await.is_err());
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("backup")), "{left:?}");
}

#[tokio::test]
async fn what_a_killed_backup_or_restore_left_goes_with_the_next() {
    let BackedUp { dir, settings, backup, .. } = backed_up().await;
    let second = dir.path().join("second");
    let names = ["second.unfinished-1", "second.unfinished-2", "second-to-none"];
    let [left, under_way, other] = names.map(|name| dir.path().join(name));
    for folder in [&left, &under_way, &other] {
        fs::create_dir_all(folder.join(CERTS)).unwrap();
    }
    let _held = hold(&under_way).unwrap();
    back_up(&settings, &second).await.unwrap();
    assert_eq!([left, under_way, other].map(|folder| folder.exists()), [false, true, true]);

    let elsewhere = tempfile::tempdir().unwrap();
    let left = elsewhere.path().join("state.unfinished-1");
    fs::create_dir(&left).unwrap();
    restore(&elsewhere.path().join(SETTINGS), &backup).unwrap();
    assert!(!left.exists());
}

#[tokio::test]
async fn a_restore_that_was_killed_at_its_end_is_told_from_a_state() {
    let BackedUp { dir: _dir, backup, .. } = backed_up().await;
    let other = tempfile::tempdir().unwrap();
    let (settings, state) = (other.path().join(SETTINGS), other.path().join(STATE));
    fs::create_dir_all(state.join(ARTIFACTS)).unwrap();
    assert!(matches!(restore(&settings, &backup), Err(BackupError::NotEmpty { .. })));
    fs::create_dir(state.join("restoring")).unwrap();
    assert!(matches!(restore(&settings, &backup), Err(BackupError::Interrupted { .. })));
    fs::write(state.join(DATABASE), "of a coordinator").unwrap();
    assert!(matches!(restore(&settings, &backup), Err(BackupError::NotEmpty { .. })));
}
