use super::*;
use crate::model::HostTensor;

fn tensors() -> NamedTensors {
    let ramp = |n: usize| HostTensor::from_fn(vec![n], |i| i as f32);
    NamedTensors::from([("a".to_owned(), ramp(300_000)), ("b".to_owned(), ramp(3))])
}

#[tokio::test]
async fn a_fetch_goes_on_where_it_stopped_even_after_a_crash() {
    let (source_folder, sink_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (ArtifactFolder::open(source_folder.path()), ArtifactFolder::open(sink_folder.path()));
    let (from, to) = (from.unwrap(), to.unwrap());
    let manifest = from.store(&tensors()).unwrap();
    let (_, mut chunks) = from.source(manifest.hash()).unwrap();
    let mut buffer = Vec::new();
    let mut sink = to.begin(&manifest).unwrap();
    assert_eq!(sink.missing(), [0, 1, 2]);
    chunks.read_chunk(1, &mut buffer).await.unwrap();
    sink.keep_chunk(1, &buffer).await.unwrap();
    drop(sink);
    assert!(!to.has(manifest.hash()));

    let mut sink = to.begin(&manifest).unwrap();
    assert_eq!(sink.missing(), [0, 2]);
    for index in [0, 2] {
        chunks.read_chunk(index, &mut buffer).await.unwrap();
        sink.keep_chunk(index, &buffer).await.unwrap();
    }
    sink.finish().unwrap();
    assert_eq!(to.load(manifest.hash()).unwrap(), tensors());
}

#[test]
fn an_artifact_is_what_its_tensors_are_however_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = ArtifactFolder::open(folder.path()).unwrap();
    let (manifest, data) = crate::train::tensors::to_artifact(&tensors()).unwrap();
    assert_eq!(artifacts.store(&tensors()).unwrap(), manifest);
    assert_eq!(std::fs::read(artifacts.data(manifest.hash())).unwrap(), data);
    assert_eq!(artifacts.load(manifest.hash()).unwrap(), tensors());
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 2, "the manifest, the data, and nothing beside");
}

#[test]
fn a_tensor_that_did_not_change_is_not_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = ArtifactFolder::open(folder.path()).unwrap();
    let old = artifacts.store(&tensors()).unwrap();
    // `b` changed, and so did the second chunk of `a`; `c` is a copy of the first.
    let mut next = tensors();
    let first: Vec<f32> = next["a"].values()[..NUMBERS_OF_A_CHUNK].to_vec();
    next.insert("c".to_owned(), HostTensor::new(vec![NUMBERS_OF_A_CHUNK], first).unwrap());
    next.get_mut("a").unwrap().values_mut()[299_999] += 1.0;
    next.get_mut("b").unwrap().values_mut()[0] += 1.0;
    let (manifest, _) = crate::train::tensors::to_artifact(&next).unwrap();
    assert_eq!(artifacts.begin(&manifest).unwrap().missing(), [1, 2]);
    // A damaged copy helps nobody.
    let other = tempfile::tempdir().unwrap();
    let artifacts = ArtifactFolder::open(other.path()).unwrap();
    artifacts.store(&tensors()).unwrap();
    let path = artifacts.data(old.hash());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[77] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(artifacts.begin(&manifest).unwrap().missing(), [0, 1, 2, 3]);
}

#[test]
fn what_goes_back_to_the_coordinator_was_looked_at_to_its_last_byte() {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = ArtifactFolder::open(folder.path()).unwrap();
    let manifest = artifacts.store(&tensors()).unwrap();
    let (hash, path) = (manifest.hash(), artifacts.data(manifest.hash()));
    assert_eq!(artifacts.whole_source(hash).unwrap().0, manifest);
    let whole = std::fs::read(&path).unwrap();
    let (last, before) = whole.split_last().unwrap();
    let changed = [before, &[last ^ 1]].concat();
    for wrong in [changed.as_slice(), before] {
        std::fs::write(&path, wrong).unwrap();
        let error = artifacts.whole_source(hash).unwrap_err();
        assert!(matches!(error, ArtifactError::Damaged(damaged) if damaged == hash), "{error:?}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(artifacts.whole_source(hash), Err(ArtifactError::Absent(_))));
}

#[test]
fn a_damaged_artifact_is_noticed_and_fetched_anew() {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = ArtifactFolder::open(folder.path()).unwrap();
    let hash = artifacts.store(&tensors()).unwrap().hash();
    let path = artifacts.data(hash);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[77] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(artifacts.load(hash), Err(ArtifactError::Damaged(_))));
    assert!(!artifacts.has(hash));
    assert!(matches!(artifacts.source(hash), Err(ArtifactError::Absent(_))), "nor can it be sent");
}

/// What a loss of power can leave of files that were not synced.
#[tokio::test]
async fn a_torn_artifact_is_found_when_it_is_used_and_only_what_is_torn_is_fetched_again() {
    let kept = tempfile::tempdir().unwrap();
    let kept = ArtifactFolder::open(kept.path()).unwrap();
    let manifest = kept.store(&tensors()).unwrap();
    let hash = manifest.hash();
    let (_, mut chunks) = kept.source(hash).unwrap();
    let whole = std::fs::read(kept.data(hash)).unwrap();
    let (mut zeroed, mut cut) = (whole.clone(), whole.clone());
    zeroed[4096..8192].fill(0);
    cut.truncate(whole.len() - 12);
    let cases = [(zeroed, vec![0]), (cut, vec![2]), (Vec::new(), vec![0, 1, 2])];
    for (torn, missing) in cases {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = ArtifactFolder::open(folder.path()).unwrap();
        artifacts.store(&tensors()).unwrap();
        std::fs::write(artifacts.data(hash), torn).unwrap();
        assert!(artifacts.has(hash), "by its name");
        let error = anyhow::Error::from(artifacts.load(hash).unwrap_err()).context("the round");
        assert_eq!(lost_artifact(&error), Some(hash));
        assert!(!artifacts.has(hash));
        let mut sink = artifacts.begin(&manifest).unwrap();
        assert_eq!(sink.missing(), missing);
        let mut buffer = Vec::new();
        for index in missing {
            chunks.read_chunk(index, &mut buffer).await.unwrap();
            sink.keep_chunk(index, &buffer).await.unwrap();
        }
        sink.finish().unwrap();
        assert_eq!(artifacts.load(hash).unwrap(), tensors());
    }
}

#[tokio::test]
async fn a_chunk_that_found_no_room_is_still_missing() {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = ArtifactFolder::open(folder.path()).unwrap();
    let (manifest, data) = crate::train::tensors::to_artifact(&tensors()).unwrap();
    let chunk = &data[..NUMBERS_OF_A_CHUNK * 4];
    let mut sink = artifacts.begin(&manifest).unwrap();
    assert_eq!(sink.missing_bytes(), data.len() as u64);
    let mut full = PartialArtifact(Arc::new(Fetched {
        file: OpenOptions::new().write(true).open("/dev/full").unwrap(),
        manifest: manifest.clone(),
        missing: Mutex::new(sink.missing().into_iter().collect()),
        path: artifacts.part(manifest.hash()),
        done: artifacts.data(manifest.hash()),
    }));
    let refused = full.keep_chunk(0, chunk).await.unwrap_err();
    assert_eq!(files::disk_trouble(&refused.into()), Some(files::DISK_FULL));
    assert_eq!(full.missing(), [0, 1, 2]);
    assert!(full.finish().is_err() && !artifacts.has(manifest.hash()));
    sink.keep_chunk(0, chunk).await.unwrap();
    assert_eq!(sink.missing_bytes(), (data.len() - chunk.len()) as u64);
}

#[test]
fn a_torn_manifest_is_as_good_as_none() {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = ArtifactFolder::open(folder.path()).unwrap();
    let manifest = artifacts.store(&tensors()).unwrap();
    let hash = manifest.hash();
    std::fs::write(artifacts.manifest_path(hash), "").unwrap();
    assert_eq!(artifacts.manifest(hash).unwrap(), None);
    assert!(matches!(artifacts.load(hash), Err(ArtifactError::Absent(_))));
    assert!(!artifacts.has(hash));
    // Asked for again, the manifest shows that all of the data is here.
    let sink = artifacts.begin(&manifest).unwrap();
    assert_eq!(sink.missing(), [0; 0]);
    sink.finish().unwrap();
    assert_eq!(artifacts.load(hash).unwrap(), tensors());
    assert_eq!(lost_artifact(&anyhow::anyhow!("something else")), None);
}

/// A file that is there and gives no byte, as on a bad sector: address 0 of a process is nobody's.
const BAD: &str = "/proc/self/mem";

#[tokio::test]
async fn what_the_disk_does_not_give_is_damaged_and_had_again() {
    use nix::errno::Errno;

    let folder = tempfile::tempdir().unwrap();
    let artifacts = ArtifactFolder::open(folder.path()).unwrap();
    let manifest = artifacts.store(&tensors()).unwrap();
    let hash = manifest.hash();
    let fail = |errno: Errno| artifacts.unread(hash, io::Error::from_raw_os_error(errno as i32));
    assert!(matches!(fail(Errno::EMFILE), ArtifactError::File(_)) && artifacts.has(hash), "it passes");
    let error = anyhow::Error::from(fail(Errno::EIO));
    assert_eq!((lost_artifact(&error), artifacts.has(hash)), (Some(hash), false));
    assert!(matches!(artifacts.source(hash), Err(ArtifactError::Absent(_))), "nor can it be sent");
    // While it is being sent.
    let mut chunks = StoredChunks::new(File::open(BAD).unwrap(), manifest.clone());
    let sent = chunks.clone();
    assert!(chunks.read_chunk(0, &mut Vec::new()).await.is_err() && sent.is_unread());
    // A manifest is asked for again, and takes the place of the one that cannot be read.
    std::fs::remove_file(artifacts.manifest_path(hash)).unwrap();
    std::os::unix::fs::symlink(BAD, artifacts.manifest_path(hash)).unwrap();
    assert_eq!(artifacts.manifest(hash).unwrap(), None);
    drop(artifacts.begin(&manifest).unwrap());
    assert_eq!(artifacts.manifest(hash).unwrap(), Some(manifest));
}

#[test]
fn pruning_keeps_what_is_needed_and_what_is_here_in_part() {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = ArtifactFolder::open(folder.path()).unwrap();
    let store = |value: f32| {
        let tensor = HostTensor::new(vec![1], vec![value]).unwrap();
        artifacts.store(&NamedTensors::from([("a".to_owned(), tensor)])).unwrap().hash()
    };
    let hashes = [1.0, 2.0, 3.0, 4.0].map(store);
    for hash in &hashes[1..3] {
        artifacts.put_aside(*hash).unwrap();
    }
    let kept = |unfinished| {
        artifacts.prune(&BTreeSet::from([hashes[0]]), unfinished).unwrap();
        let here: BTreeSet<_> = artifacts.newest_first().unwrap().into_iter().collect();
        hashes.map(|hash| here.contains(&hash))
    };
    assert_eq!(kept(2), [true, true, true, false], "a whole one that nobody needs goes");
    assert_eq!(kept(1).iter().filter(|here| **here).count(), 2);
    assert_eq!(kept(0), [true, false, false, false]);
}
