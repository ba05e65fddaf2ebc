use common::aggregate::Contribution;
use common::artifact::{ArtifactManifest, Dtype, TensorLayout, TensorSpec};
use common::ids::{Digest, Role, RoundId, SiteId, StudyDigest};
use common::time::Timestamp;
use common::update::CheckedChunk;

use super::*;
use crate::fixture::forbid_log;
use crate::pki::{Serial, Token, TokenHash};

const NOW: Timestamp = Timestamp(1_000_000);
const LATER: Timestamp = Timestamp(2_000_000);

async fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).await.unwrap();
    (dir, store)
}

fn site(name: &str) -> SiteId {
    name.parse().unwrap()
}

async fn invite(store: &Store, name: &str, role: Role) -> TokenHash {
    let token = Token::random().hash();
    store.add_invite(token, &InviteTerms { site: site(name), role }, NOW, LATER).await.unwrap();
    token
}

async fn enrol(store: &Store, name: &str) -> Serial {
    let token = invite(store, name, Role::Trainer).await;
    let serial = Serial::random();
    store.enrol(token, &[1; 32], serial, LATER, NOW).await.unwrap().unwrap();
    serial
}

async fn study(store: &Store) -> StudyDigest {
    let document = b"{}".to_vec();
    let digest = StudyDigest(Digest::of(&document));
    store.add_study(&StoredStudy { digest, name: "s".to_owned(), document, added_at: NOW }).await.unwrap();
    digest
}

/// An update of three chunks.
fn update(fill: u8) -> (ArtifactManifest, Vec<u8>) {
    let spec = |name: &str, len| TensorSpec { name: name.to_owned(), dtype: Dtype::F32, shape: vec![len] };
    let layout = TensorLayout::new(vec![spec("a", 5), spec("b", 300_000)]).unwrap();
    let data: Vec<u8> = (0..layout.bytes()).map(|i| (i as u8).wrapping_mul(31) ^ fill).collect();
    (ArtifactManifest::of(layout, &data), data)
}

fn chunk_of<'a>(manifest: &ArtifactManifest, data: &'a [u8], index: usize) -> &'a [u8] {
    let span = manifest.layout().spans()[index];
    &data[span.offset as usize..][..span.len as usize]
}

/// Chunk `index` of an update, checked.
fn checked<'a>(manifest: &ArtifactManifest, data: &'a [u8], index: u32) -> CheckedChunk<'a> {
    CheckedChunk::check(manifest, index, chunk_of(manifest, data, index as usize)).unwrap()
}

#[tokio::test]
async fn a_second_process_is_told_that_the_store_is_in_use() {
    let (dir, store) = store().await;
    // It waits for the lock first.
    tokio::time::pause();
    let second = Store::open(dir.path()).await;
    tokio::time::resume();
    assert_eq!(second.err().map(|e| e.code()), Some("store-locked"));
    store.close().await;
    assert!(Store::open(dir.path()).await.is_ok());
}

#[tokio::test]
async fn a_folder_without_a_store_is_not_made_into_one_by_opening() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open(dir.path()).await, Err(StoreError::Missing { .. })));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_invite_enrols_once() {
    let (_dir, store) = store().await;
    let token = invite(&store, "a", Role::Trainer).await;
    let first = store.enrol(token, &[1; 32], Serial::random(), LATER, NOW).await.unwrap();
    assert_eq!(first, Ok(InviteTerms { site: site("a"), role: Role::Trainer }));
    let second = store.enrol(token, &[2; 32], Serial::random(), LATER, NOW).await.unwrap();
    assert_eq!(second, Err(InviteRefusal::Used { site: site("a") }));
    assert_eq!(store.site(&site("a")).await.unwrap().unwrap().signing_key, [1; 32]);
}

#[tokio::test]
async fn a_used_invite_counts_again_for_its_own_certificate_while_that_and_the_invite_count() {
    let (_dir, store) = store().await;
    let token = invite(&store, "a", Role::Trainer).await;
    let serial = Serial::random();
    let enrol = |serial, until, now| store.enrol(token, &[1; 32], serial, until, now);
    let used = || Err(InviteRefusal::Used { site: site("a") });
    enrol(serial, LATER, NOW).await.unwrap().unwrap();

    let until = Timestamp(LATER.0 + 1);
    assert!(enrol(serial, until, Timestamp(NOW.0 + 1)).await.unwrap().is_ok());
    let kept = store.certificate(&serial, &site("a")).await.unwrap().unwrap();
    assert!(!kept.revoked && kept.not_after == until);
    assert_eq!(enrol(Serial::random(), LATER, NOW).await.unwrap(), used(), "other keys");
    assert_eq!(enrol(serial, LATER, LATER).await.unwrap(), used(), "too late");

    let newer = invite(&store, "a", Role::Trainer).await;
    assert_eq!(enrol(serial, LATER, NOW).await.unwrap(), used(), "invited anew");
    store.enrol(newer, &[1; 32], Serial::random(), LATER, NOW).await.unwrap().unwrap();
    assert_eq!(enrol(serial, LATER, NOW).await.unwrap(), used(), "replaced");
}

#[tokio::test]
async fn a_used_invite_does_not_bring_a_revoked_site_back() {
    let (_dir, store) = store().await;
    let token = invite(&store, "a", Role::Trainer).await;
    let serial = Serial::random();
    store.enrol(token, &[1; 32], serial, LATER, NOW).await.unwrap().unwrap();
    store.revoke_site(&site("a"), NOW).await.unwrap();
    let again = store.enrol(token, &[1; 32], serial, LATER, NOW).await.unwrap();
    assert_eq!(again, Err(InviteRefusal::Used { site: site("a") }));
    assert!(store.certificate(&serial, &site("a")).await.unwrap().unwrap().revoked);
}

#[tokio::test]
async fn expired_unknown_and_replaced_invites_enrol_nobody() {
    let (_dir, store) = store().await;
    let first = invite(&store, "a", Role::Trainer).await;
    let second = invite(&store, "a", Role::Evaluator).await;
    let enrol = |token, now| store.enrol(token, &[1; 32], Serial::random(), LATER, now);
    assert_eq!(enrol(first, NOW).await.unwrap(), Err(InviteRefusal::Unknown), "replaced by the second");
    assert_eq!(enrol(second, LATER).await.unwrap(), Err(InviteRefusal::Expired { site: site("a") }));
    assert_eq!(enrol(Token::random().hash(), NOW).await.unwrap(), Err(InviteRefusal::Unknown));
    assert!(store.sites().await.unwrap().is_empty());
}

#[tokio::test]
async fn revoking_a_site_ends_its_certificates_and_open_invites() {
    let (_dir, store) = store().await;
    let serial = enrol(&store, "a").await;
    let before = store.certificate(&serial, &site("a")).await.unwrap().unwrap();
    assert!(!before.revoked && before.status == SiteStatus::Active);
    let open = invite(&store, "a", Role::Trainer).await;

    assert!(store.revoke_site(&site("a"), NOW).await.unwrap());
    let after = store.certificate(&serial, &site("a")).await.unwrap().unwrap();
    assert!(after.revoked && after.status == SiteStatus::Revoked);
    assert_eq!(store.check_invite(open, NOW).await.unwrap(), Err(InviteRefusal::Unknown));
    assert!(!store.revoke_site(&site("b"), NOW).await.unwrap());
}

#[tokio::test]
async fn enrolling_again_ends_the_certificate_before() {
    let (_dir, store) = store().await;
    let first = enrol(&store, "a").await;
    let second = enrol(&store, "a").await;
    assert!(store.certificate(&first, &site("a")).await.unwrap().unwrap().revoked);
    assert!(!store.certificate(&second, &site("a")).await.unwrap().unwrap().revoked);
}

#[tokio::test]
async fn a_certificate_belongs_to_one_site() {
    let (_dir, store) = store().await;
    let serial = enrol(&store, "a").await;
    enrol(&store, "b").await;
    assert_eq!(store.certificate(&serial, &site("b")).await.unwrap(), None);
}

#[tokio::test]
async fn the_journal_is_the_snapshot_and_the_events_since() {
    let (dir, store) = store().await;
    let study = study(&store).await;
    let entry = |at, event: &str| JournalEntry { at: Timestamp(at), event: event.to_owned() };
    store.append_event(&study, &entry(1, "one")).await.unwrap();
    store.put_snapshot(&study, "after one").await.unwrap();
    store.append_event(&study, &entry(2, "two")).await.unwrap();
    store.append_event(&study, &entry(3, "three")).await.unwrap();
    store.close().await;

    let store = Store::open(dir.path()).await.unwrap();
    let journal = store.journal(&study).await.unwrap();
    assert_eq!(journal.snapshot.as_deref(), Some("after one"));
    assert_eq!(journal.events, [entry(2, "two"), entry(3, "three")]);
}

#[tokio::test]
async fn a_receipt_is_given_to_its_own_site_only() {
    let (_dir, store) = store().await;
    let study = study(&store).await;
    enrol(&store, "a").await;
    enrol(&store, "b").await;
    let receipt = Receipt {
        attempt: common::ids::AttemptId::from_bytes([7; 16]),
        study,
        site: site("a"),
        round: RoundId(1),
        update: update(0).0.hash(),
        bytes: 12,
        at: NOW,
    };
    store.put_receipt(&receipt).await.unwrap();
    assert_eq!(store.receipt(&receipt.attempt, &site("a")).await.unwrap(), Some(receipt.clone()));
    assert_eq!(store.receipt(&receipt.attempt, &site("b")).await.unwrap(), None);
}

#[tokio::test]
async fn losses_are_told_step_by_step_and_as_means_where_they_are_many() {
    let (_dir, store) = store().await;
    enrol(&store, "north").await;
    enrol(&store, "south").await;
    let study = study(&store).await;
    for (name, round, step, loss) in
        [("south", 1, 5, 0.5), ("north", 2, 5, 1.5), ("north", 1, 9, 2.5), ("north", 1, 10, 2.0)]
    {
        let point = LossPoint { site: site(name), round: RoundId(round), step, steps: 10, loss };
        store.put_loss(&study, &point).await.unwrap();
    }
    let mean = |name, done, loss| LossMean { site: site(name), done, loss };
    assert_eq!(
        store.losses(&study).await.unwrap(),
        [mean("north", 0.9, 2.5), mean("north", 1.0, 2.0), mean("north", 1.5, 1.5), mean("south", 0.5, 0.5)]
    );

    // A hundred rounds of two hundred steps, in which the loss is the number of the round.
    sqlx::query(
        "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 19999)
         INSERT OR REPLACE INTO losses (study, round, site, step, steps, loss)
         SELECT ?, i / 200 + 1, 'north', i % 200 + 1, 200, (i / 200 + 1) * 1.0 FROM n",
    )
    .bind(studies::bytes(&study))
    .execute(&store.pool)
    .await
    .unwrap();
    let mut told = store.losses(&study).await.unwrap();
    told.retain(|mean| mean.site.as_str() == "north");
    assert!((900..=1001).contains(&told.len()), "{}", told.len());
    assert!(told.is_sorted_by(|a, b| a.done < b.done));
    assert!(told.iter().all(|mean| (mean.done.ceil() - mean.loss).abs() <= 1.0), "{told:?}");
}

#[tokio::test]
async fn a_round_that_is_aggregated_again_has_the_contributions_of_the_last_time() {
    let (_dir, store) = store().await;
    let study = study(&store).await;
    let of = |name, share, norm| Contribution { site: site(name), share, norm };
    let first = [of("a", 0.5, 3.0), of("b", 0.5, 4.0)];
    store.note_contributions(&study, RoundId(2), &first).await.unwrap();
    store.note_contributions(&study, RoundId(1), &first).await.unwrap();
    let again = [of("b", 1.0, 4.0)];
    store.note_contributions(&study, RoundId(2), &again).await.unwrap();
    let expected = [(RoundId(1), first.to_vec()), (RoundId(2), again.to_vec())];
    assert_eq!(store.contributions(&study).await.unwrap(), expected.into());
    let of_another = store.contributions(&StudyDigest(Digest::of(b"other"))).await.unwrap();
    assert!(of_another.is_empty(), "{of_another:?}");
}

#[tokio::test]
async fn the_first_report_on_a_model_stays() {
    let (_dir, store) = store().await;
    let study = study(&store).await;
    enrol(&store, "e").await;
    let report = |document: &[u8]| StoredReport {
        site: site("e"),
        model: update(0).0.hash(),
        document: document.to_vec(),
        signature: vec![0; 64],
    };
    assert!(store.put_report(&study, &report(b"1"), NOW).await.unwrap());
    assert!(!store.put_report(&study, &report(b"2"), NOW).await.unwrap());
    assert_eq!(store.reports(&study).await.unwrap(), [report(b"1")]);
    let of = async |name| store.report(&study, &update(0).0.hash(), &site(name)).await.unwrap();
    assert_eq!((of("e").await, of("f").await), (Some(report(b"1")), None));
}

#[tokio::test]
async fn an_artifact_dropped_half_way_leaves_nothing() {
    let (dir, store) = store().await;
    let (manifest, data) = update(1);
    let mut writer = store.artifacts().write(manifest.layout().clone()).unwrap();
    writer.push_chunk(chunk_of(&manifest, &data, 0)).unwrap();
    assert!(writer.push_chunk(b"wrong length").is_err());
    drop(writer);
    assert_eq!(std::fs::read_dir(dir.path().join("artifacts")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_a_crash_left_of_an_artifact_is_removed_at_the_next_start() {
    let (dir, store) = store().await;
    let (manifest, data) = update(1);
    let mut writer = store.artifacts().write(manifest.layout().clone()).unwrap();
    writer.push_chunk(chunk_of(&manifest, &data, 0)).unwrap();
    std::mem::forget(writer); // as `kill -9` would
    store.close().await;

    let store = Store::open(dir.path()).await.unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("artifacts")).unwrap().count(), 0);
    let mut writer = store.artifacts().write(manifest.layout().clone()).unwrap();
    for index in 0..3 {
        writer.push_chunk(chunk_of(&manifest, &data, index)).unwrap();
    }
    assert_eq!(writer.finish().unwrap(), manifest.hash());
    let read = store.artifacts().read(&manifest.hash()).unwrap().unwrap();
    assert_eq!(read.read_chunk(2).unwrap(), chunk_of(&manifest, &data, 2));
    assert!(read.read_chunk(3).is_err());
}

#[tokio::test]
async fn a_changed_byte_on_disk_is_noticed() {
    let (dir, store) = store().await;
    let (manifest, data) = update(1);
    let mut writer = store.artifacts().write(manifest.layout().clone()).unwrap();
    for index in 0..3 {
        writer.push_chunk(chunk_of(&manifest, &data, index)).unwrap();
    }
    let hash = writer.finish().unwrap();
    let path = dir.path().join("artifacts").join(hash.to_string()).join("data");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let read = store.artifacts().read(&hash).unwrap().unwrap();
    assert!(matches!(read.read_chunk(0), Err(StoreError::Corrupt { .. })));
    assert!(read.read_chunk(1).is_ok());
}

#[tokio::test]
async fn an_update_resumes_with_the_chunks_that_are_right() {
    let (dir, store) = store().await;
    let study = study(&store).await;
    let (manifest, data) = update(9);
    let receive =
        |store: &Store| store.spool().receive(&study, RoundId(1), &site("a"), manifest.clone()).unwrap();
    let spooled = receive(&store);
    assert_eq!(spooled.missing().collect::<Vec<_>>(), [0, 1, 2]);
    spooled.write_checked(&checked(&manifest, &data, 1)).unwrap();
    let (other, theirs) = update(3);
    assert!(spooled.write_checked(&checked(&other, &theirs, 0)).is_err(), "of another update");
    drop(spooled);
    store.close().await;

    let store = Store::open(dir.path()).await.unwrap();
    let spooled = receive(&store);
    assert_eq!(spooled.missing().collect::<Vec<_>>(), [0, 2]);
    for index in [2, 0] {
        spooled.write_checked(&checked(&manifest, &data, index)).unwrap();
    }
    let hash = spooled.keep().unwrap();
    let kept = store.spool().read(&study, RoundId(1), &site("a"), &hash).unwrap().unwrap();
    assert_eq!(kept.read_chunk(0).unwrap(), chunk_of(&manifest, &data, 0));
    store.spool().remove_round(&study, RoundId(1)).unwrap();
    assert!(store.spool().read(&study, RoundId(1), &site("a"), &hash).unwrap().is_none());
}

#[tokio::test]
async fn an_update_whose_sync_failed_comes_anew_but_one_that_was_kept_stays() {
    let (_dir, store) = store().await;
    let study = study(&store).await;
    let (manifest, data) = update(9);
    let receive = || store.spool().receive(&study, RoundId(1), &site("a"), manifest.clone()).unwrap();
    let spooled = receive();
    for index in [1, 0] {
        spooled.write_checked(&checked(&manifest, &data, index)).unwrap();
    }
    let error = spooled.failed(std::io::Error::other("the disk lost it"));
    assert!(matches!(error, StoreError::File { .. }));
    spooled.write_checked(&checked(&manifest, &data, 2)).unwrap();
    assert!(spooled.keep().is_err(), "though a later sync says nothing");
    assert_eq!(receive().missing().collect::<Vec<_>>(), [0, 1, 2]);

    keep(&store, &study, &manifest, &data);
    receive().failed(std::io::Error::other("the disk lost it"));
    assert_eq!(receive().missing().count(), 0, "it was synced before it had its name");
}

#[tokio::test]
async fn a_round_writes_over_the_updates_of_the_one_before_and_takes_nothing_of_them() {
    let (dir, store) = store().await;
    let study = study(&store).await;
    let (first, data) = update(9);
    keep(&store, &study, &first, &data);
    let of_first = store.spool().receive(&study, RoundId(1), &site("a"), first.clone()).unwrap();
    store.spool().receive(&study, RoundId(1), &site("b"), first.clone()).unwrap();
    store.spool().recycle_round(&study, RoundId(1)).unwrap();
    assert!(store.spool().rounds().unwrap().is_empty());
    let spares = || std::fs::read_dir(dir.path().join("spool/spare")).map_or(0, Iterator::count);
    assert_eq!(spares(), 1, "what still arrived is removed");
    assert_eq!(store.spool().spare_bytes(), first.layout().bytes());

    // The same but for its first chunk, and shorter by its last.
    let (second, mut new) = update(9);
    new[0] ^= 1;
    let layout = TensorLayout::new(second.layout().tensors()[..1].to_vec()).unwrap();
    new.truncate(usize::try_from(layout.bytes()).unwrap());
    let second = ArtifactManifest::of(layout, &new);
    let spooled = store.spool().receive(&study, RoundId(2), &site("b"), second.clone()).unwrap();
    assert_eq!((spares(), spooled.missing().count()), (0, second.chunks().len()));
    assert_eq!(spooled.data().metadata().unwrap().len(), second.layout().bytes());
    spooled.write_checked(&checked(&second, &new, 0)).unwrap();
    // Who had sent the first sends it again, into a file that is another's now.
    of_first.write_checked(&checked(&first, &data, 0)).unwrap();
    let hash = spooled.keep().unwrap();
    let kept = store.spool().read(&study, RoundId(2), &site("b"), &hash).unwrap().unwrap();
    kept.verify(|_| {}).unwrap();

    store.spool().recycle_round(&study, RoundId(2)).unwrap();
    assert_eq!(spares(), 1);
    store.close().await;
    let _store = Store::open(dir.path()).await.unwrap();
    assert_eq!(spares(), 0, "a start begins with none");
}

/// Receives what is missing of an update of site `a`, and keeps it.
fn keep(store: &Store, study: &StudyDigest, manifest: &ArtifactManifest, data: &[u8]) -> Vec<usize> {
    let spooled = store.spool().receive(study, RoundId(1), &site("a"), manifest.clone()).unwrap();
    let missing: Vec<usize> = spooled.missing().collect();
    for index in &missing {
        spooled.write_checked(&checked(manifest, data, u32::try_from(*index).unwrap())).unwrap();
    }
    assert_eq!(spooled.keep().unwrap(), manifest.hash());
    missing
}

#[tokio::test]
async fn an_update_that_was_kept_and_never_counted_is_not_sent_again() {
    let (dir, store) = store().await;
    let study = study(&store).await;
    let (manifest, data) = update(9);
    assert_eq!(keep(&store, &study, &manifest, &data), [0, 1, 2]);
    store.close().await; // killed before the journal had it

    let store = Store::open(dir.path()).await.unwrap();
    assert_eq!(keep(&store, &study, &manifest, &data), [0usize; 0]);
    let kept = store.spool().read(&study, RoundId(1), &site("a"), &manifest.hash()).unwrap().unwrap();
    kept.verify(|_| {}).unwrap();
    assert_eq!(store.spool().entries().unwrap().len(), 1, "and nothing is begun beside it");
}

#[tokio::test]
async fn a_kept_update_is_replaced_only_when_it_is_corrupt() {
    let (dir, store) = store().await;
    let study = study(&store).await;
    let (manifest, data) = update(9);
    keep(&store, &study, &manifest, &data);
    let folder = store.spool().folder(&study, RoundId(1), &site("a"), &manifest.hash());
    let quarantined = || std::fs::read_dir(dir.path().join(QUARANTINE)).map_or(0, Iterator::count);

    // Found corrupt when it was offered again, and whole (another attempt was faster) when this one was.
    change_a_byte(&folder);
    let spooled = store.spool().receive(&study, RoundId(1), &site("a"), manifest.clone()).unwrap();
    for index in 0..3 {
        spooled.write_checked(&checked(&manifest, &data, index)).unwrap();
    }
    change_a_byte(&folder);
    std::fs::write(folder.join("mark"), b"of the first").unwrap();
    spooled.keep().unwrap();
    assert!(folder.join("mark").exists(), "it may count: it is left where it lies");
    assert_eq!((quarantined(), store.spool().entries().unwrap().len()), (0, 1));

    change_a_byte(&folder);
    assert_eq!(keep(&store, &study, &manifest, &data), [0, 1, 2]);
    let kept = store.spool().read(&study, RoundId(1), &site("a"), &manifest.hash()).unwrap().unwrap();
    kept.verify(|_| {}).unwrap();
    assert!(!folder.join("mark").exists());
    assert_eq!(quarantined(), 1);
}

#[tokio::test]
async fn an_incomplete_update_is_not_kept_and_a_new_attempt_replaces_it() {
    let (_dir, store) = store().await;
    let study = study(&store).await;
    let (first, data) = update(3);
    let spooled = store.spool().receive(&study, RoundId(1), &site("a"), first.clone()).unwrap();
    spooled.write_checked(&checked(&first, &data, 0)).unwrap();
    assert!(spooled.keep().is_err());

    let (second, _) = update(4);
    let spooled = store.spool().receive(&study, RoundId(1), &site("a"), second).unwrap();
    assert_eq!(spooled.missing().count(), 3);
}

#[test]
fn a_full_disk_has_its_own_name() {
    let full = StoreError::file(Path::new("x"))(io::Error::from(io::ErrorKind::StorageFull));
    assert_eq!(full.code(), "disk-full");
    let other = StoreError::file(Path::new("x"))(io::Error::from(io::ErrorKind::PermissionDenied));
    assert_eq!(other.code(), "disk-error");
}

#[test]
fn what_is_gone_or_changed_is_damage_and_what_is_out_of_reach_is_not() {
    let of = |kind| StoreError::file(Path::new("x"))(io::Error::from(kind)).is_damage();
    assert!(of(io::ErrorKind::NotFound) && of(io::ErrorKind::UnexpectedEof));
    assert!(!of(io::ErrorKind::PermissionDenied) && !of(io::ErrorKind::StorageFull));
    assert!(StoreError::corrupt("artifact", "chunk 0 has changed").is_damage());
    assert!(!StoreError::Locked { path: "x".into() }.is_damage());
}

#[test]
fn sqlite_says_in_numbers_what_is_wrong_with_the_disk() {
    let names =
        [Some(13), Some(10 | (19 << 8)), Some(8), Some(8 | (6 << 8)), Some(11), Some(26), Some(10), None];
    let expected = [
        "disk-full",
        "disk-full",
        "disk-read-only",
        "disk-read-only",
        "store-corrupt",
        "store-corrupt",
        "disk-error",
        "disk-error",
    ];
    assert_eq!(names.map(sqlite_name), expected);
    let read_only = StoreError::file(Path::new("x"))(io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
    assert_eq!((read_only.code(), pause_name(read_only.code())), ("disk-read-only", Some("disk read-only")));
    assert!(read_only.words_for_sites().contains("try again later"));
}

#[tokio::test]
async fn a_database_that_is_none_is_said_to_be_corrupt_and_is_not_replaced() {
    let (dir, store) = store().await;
    store.close().await;
    let path = dir.path().join(DATABASE);
    let garbage = vec![0x5a; 8192];
    std::fs::write(&path, &garbage).unwrap();
    let refused = Store::open(dir.path()).await.err().map(|error| error.code());
    assert_eq!(refused, Some("store-corrupt"));
    assert_eq!(std::fs::read(&path).unwrap(), garbage, "left as it was found");
}

#[tokio::test]
async fn an_older_database_in_the_place_of_the_newest_is_refused() {
    let (dir, store) = store().await;
    let study = study(&store).await;
    store.close().await;
    let path = dir.path().join(DATABASE);
    let older = std::fs::read(&path).unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let entry = JournalEntry { at: NOW, event: "one".to_owned() };
    store.append_event(&study, &entry).await.unwrap();
    store.put_snapshot(&study, "after one").await.unwrap();
    store.close().await;
    let newest = std::fs::read(&path).unwrap();

    // As it would look without its write-ahead log.
    std::fs::write(&path, older).unwrap();
    match Store::open(dir.path()).await {
        Err(StoreError::Corrupt { what: "journal", reason }) => {
            assert!(reason.contains("ends at entry 0 and had come to 1"), "{reason}");
        }
        other => panic!("{:?}", other.map(|_| "opened")),
    }
    std::fs::write(&path, newest).unwrap();
    assert!(Store::open(dir.path()).await.is_ok());
}

#[tokio::test]
async fn a_damaged_mark_is_moved_away_and_written_anew() {
    let (dir, store) = store().await;
    let study = study(&store).await;
    let entry = JournalEntry { at: NOW, event: "one".to_owned() };
    store.append_event(&study, &entry).await.unwrap();
    store.put_snapshot(&study, "after one").await.unwrap();
    let mark = store.mark_file();
    let whole = std::fs::read_to_string(&mark).unwrap();
    store.close().await;

    let ahead = whole.replace(":1}", ":9}");
    for (number, text) in (1..).zip(["", &whole[..whole.len() / 2], &ahead]) {
        std::fs::write(&mark, text).unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let quarantined = std::fs::read_dir(dir.path().join(QUARANTINE)).unwrap().count();
        assert_eq!((mark.exists(), quarantined), (false, number));
        // As it looks where it is damaged while the coordinator runs.
        std::fs::write(&mark, text).unwrap();
        store.put_snapshot(&study, "after one").await.unwrap();
        assert_eq!(std::fs::read_to_string(&mark).unwrap(), whole);
        store.close().await;
    }
}

#[tokio::test]
async fn a_database_that_lost_its_end_is_noticed() {
    let (dir, store) = store().await;
    study(&store).await;
    store.close().await;
    let path = dir.path().join(DATABASE);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let problems = match Store::inspect(dir.path()).await {
        Ok(store) => store.integrity().await.map_err(|error| error.code()),
        Err(error) => Err(error.code()),
    };
    assert!(!matches!(&problems, Ok(found) if found.is_empty()), "{problems:?}");
}

fn write_artifact(store: &Store, fill: u8) -> common::ids::ArtifactHash {
    let (manifest, data) = update(fill);
    let mut writer = store.artifacts().write(manifest.layout().clone()).unwrap();
    for index in 0..3 {
        writer.push_chunk(chunk_of(&manifest, &data, index)).unwrap();
    }
    writer.finish().unwrap()
}

fn change_a_byte(folder: &Path) {
    let path = folder.join("data");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

#[tokio::test]
async fn writing_a_corrupt_artifact_again_heals_it_and_keeps_the_corrupt_one() {
    let (dir, store) = store().await;
    let hash = write_artifact(&store, 1);
    change_a_byte(&store.artifacts().folder(&hash));
    assert_eq!(write_artifact(&store, 1), hash);
    let file = store.artifacts().read(&hash).unwrap().unwrap();
    let mut seen = 0;
    file.verify(|bytes| seen += bytes).unwrap();
    assert_eq!(seen, file.manifest().layout().bytes());
    assert_eq!(std::fs::read_dir(dir.path().join(QUARANTINE)).unwrap().count(), 1);

    // One that is whole is kept as it is.
    assert_eq!(write_artifact(&store, 1), hash);
    assert_eq!(std::fs::read_dir(dir.path().join(QUARANTINE)).unwrap().count(), 1);
}

#[tokio::test]
async fn an_artifact_whose_cached_memory_was_given_up_is_read_as_before() {
    let (_dir, store) = store().await;
    let hash = write_artifact(&store, 1);
    let file = store.artifacts().read(&hash).unwrap().unwrap();
    let read = || [0, 1, 2].map(|index| file.read_chunk(index).unwrap());
    let before = read();
    for index in [0, 2, 3] {
        file.give_up_cache(index);
        assert_eq!(read(), before, "after chunk {index}");
    }
}

#[tokio::test]
async fn what_lies_in_the_folders_is_told_by_name() {
    let (dir, store) = store().await;
    let study = study(&store).await;
    let hash = write_artifact(&store, 1);
    let (manifest, data) = update(3);
    let spooled = store.spool().receive(&study, RoundId(3), &site("a"), manifest.clone()).unwrap();
    for index in 0..3 {
        spooled.write_checked(&checked(&manifest, &data, index)).unwrap();
    }
    let update = spooled.keep().unwrap();
    store.spool().receive(&study, RoundId(3), &site("b"), manifest).unwrap();
    std::fs::create_dir(dir.path().join("artifacts/new-9")).unwrap();
    std::fs::write(dir.path().join("spool/notes"), "mine").unwrap();

    let kinds = |entries: Vec<Entry>| entries.into_iter().map(|entry| entry.kind).collect::<Vec<_>>();
    let artifacts = kinds(store.artifacts().entries().unwrap());
    assert_eq!(artifacts, [Kind::Artifact(hash), Kind::Unfinished]);
    let mut updates = kinds(store.spool().entries().unwrap());
    let name = UpdateName { study, round: RoundId(3), site: site("a"), update };
    updates.retain(|kind| !matches!(kind, Kind::Stranger | Kind::Unfinished));
    assert_eq!(updates, [Kind::Update(name)]);
    assert_eq!(store.spool().rounds().unwrap(), [(study, RoundId(3))]);
    assert_eq!(store.spool().entries().unwrap().len(), 3);
}

#[tokio::test]
async fn a_store_in_use_can_be_looked_at_and_copied_whole() {
    let (dir, store) = store().await;
    let digest = study(&store).await;
    let looked = Store::inspect(dir.path()).await.unwrap();
    assert_eq!(looked.studies().await.unwrap().len(), 1);
    assert_eq!(looked.integrity().await.unwrap(), Vec::<String>::new());
    let (found, known) = looked.schema().await.unwrap();
    assert_eq!(found, known);
    let entry = JournalEntry { at: NOW, event: "one".to_owned() };
    store.append_event(&digest, &entry).await.unwrap();

    // Also what lies in the write-ahead log alone.
    let copy = dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    looked.copy_database(&copy.join(DATABASE)).await.unwrap();
    let copied = Store::open(&copy).await.unwrap();
    assert_eq!(copied.journal(&digest).await.unwrap().events, [entry]);
    assert!(looked.append_event(&digest, &JournalEntry { at: NOW, event: "two".to_owned() }).await.is_err());
}

#[tokio::test]
async fn a_closed_store_can_be_looked_at_and_copied_where_no_log_can_be_made() {
    let (dir, store) = store().await;
    let digest = study(&store).await;
    store.close().await;
    forbid_log(dir.path());
    let looked = Store::inspect(dir.path()).await.unwrap();
    assert_eq!(looked.integrity().await.unwrap(), Vec::<String>::new());
    let copy = dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    looked.copy_database(&copy.join(DATABASE)).await.unwrap();
    let copied = Store::open(&copy).await.unwrap();
    assert_eq!(copied.studies().await.unwrap()[0].digest, digest);
    assert!(StoreLock::try_take(dir.path()).is_err(), "nobody may write meanwhile");
    looked.close().await;

    // Where somebody may be at it, or there is a log, the file is not all there is.
    let code = async || Store::inspect(dir.path()).await.err().map(|error| error.code());
    let writer = StoreLock::try_take(dir.path()).unwrap();
    assert_eq!(code().await, Some("disk-error"));
    drop(writer);
    assert_eq!(code().await, None);
    std::fs::write(dir.path().join(format!("{DATABASE}-wal")), "of a killed one").unwrap();
    assert_eq!(code().await, Some("disk-error"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_closed_database_has_no_log_beside_it() {
    let mut left = 0;
    for _ in 0..150 {
        let dir = tempfile::tempdir().unwrap();
        Store::create(dir.path()).await.unwrap().close().await;
        left += usize::from(dir.path().join(format!("{DATABASE}-wal")).exists());
    }
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_database_of_before_contributions_that_is_only_looked_at_has_none() {
    let (dir, store) = store().await;
    let digest = study(&store).await;
    let before = "DROP TABLE contributions; PRAGMA user_version = 1";
    sqlx::raw_sql(before).execute(&store.pool).await.unwrap();
    let looked = Store::inspect(dir.path()).await.unwrap();
    assert!(looked.contributions(&digest).await.unwrap().is_empty());
}
