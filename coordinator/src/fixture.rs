//! For tests alone: a consortium in a folder, with a study whose first round counts the update of one site.

use std::path::Path;

use common::aggregate::weights::SiteCounts;
use common::artifact::ArtifactManifest;
use common::ids::{ArtifactHash, AttemptId, ClassId, RoundId, SiteId, StudyDigest};
use common::round::{Event, UpdateOffer};
use common::study::{EMBEDDING_TENSOR, StudyDocument};
use common::testing::{artifact_of_zeros, example_study_with};
use common::time::Timestamp;
use common::update::CheckedChunk;

use crate::config::Config;
use crate::pki::Authority;
use crate::store::{DATABASE, JournalEntry, Store, StoredStudy};

pub(crate) const NOW: Timestamp = Timestamp(1_800_000_000_000);

pub(crate) struct Fixture {
    /// Goes with it.
    _dir: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) study: StudyDocument,
    /// The update of [`site`] that counts in round 1.
    pub(crate) update: ArtifactHash,
}

pub(crate) fn site() -> SiteId {
    "north".parse().unwrap()
}

pub(crate) fn attempt() -> AttemptId {
    AttemptId::from_bytes([1; 16])
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = "consortium = \"thorax\"\nlisten = \"127.0.0.1:0\"\n";
        std::fs::write(dir.path().join("coordinator.toml"), settings).unwrap();
        let config = Config::read(&dir.path().join("coordinator.toml")).unwrap();
        Authority::create(&config.certs, "thorax", crate::clock::now()).unwrap();
        let study = example_study_with(|draft| draft.quorum.sites = 1);
        let store = Store::create(&config.state).await.unwrap();
        let model = artifact_of_zeros(&[
            ("backbone.down_tr64.ops.0.conv1.weight", &[study.study().model.width, 1, 3, 3, 3]),
            ("controller.bias", &[153]),
            ("text_to_vision.weight", &[256, 32]),
        ]);
        assert_eq!(write(&store, &model), study.study().initial_model);
        write(&store, &artifact_of_zeros(&[(EMBEDDING_TENSOR, &[32, 32])]));
        let update = keep_update(&store, study.digest(), RoundId(1), model.clone());
        let (digest, name) = (study.digest(), study.study().name.clone());
        let document = study.bytes().to_vec();
        store.add_study(&StoredStudy { digest, name, document, added_at: NOW }).await.unwrap();
        let offer = UpdateOffer {
            study: digest,
            round: RoundId(1),
            base: study.study().initial_model,
            attempt: attempt(),
            steps: study.study().training.steps_per_round,
            update,
        };
        let counts = SiteCounts { volumes: 3, annotated: [(ClassId::new(1).unwrap(), 3)].into() };
        let events = [
            Event::Start,
            Event::SiteReady { site: site(), counts },
            Event::UpdateStored { site: site(), offer },
        ];
        for event in events {
            let event = serde_json::json!({ "round": event }).to_string();
            store.append_event(&digest, &JournalEntry { at: NOW, event }).await.unwrap();
        }
        store.close().await;
        Self { _dir: dir, config, study, update }
    }

    pub(crate) async fn store(&self) -> Store {
        Store::open(&self.config.state).await.unwrap()
    }

    pub(crate) fn digest(&self) -> StudyDigest {
        self.study.digest()
    }
}

/// Keeps an update of [`site`], all zeros.
pub(crate) fn keep_update(
    store: &Store,
    study: StudyDigest,
    round: RoundId,
    manifest: ArtifactManifest,
) -> ArtifactHash {
    let spans = manifest.layout().spans().to_vec();
    let update = store.spool().receive(&study, round, &site(), manifest).unwrap();
    for (index, span) in (0u32..).zip(&spans) {
        let bytes = vec![0; span.len as usize];
        update.write_checked(&CheckedChunk::check(update.manifest(), index, &bytes).unwrap()).unwrap();
    }
    update.keep().unwrap()
}

/// Writes an artifact of zeros.
pub(crate) fn write(store: &Store, manifest: &ArtifactManifest) -> ArtifactHash {
    let mut writer = store.artifacts().write(manifest.layout().clone()).unwrap();
    for span in manifest.layout().spans() {
        writer.push_chunk(&vec![0; span.len as usize]).unwrap();
    }
    writer.finish().unwrap()
}

/// Keeps SQLite from making what it wants beside the database in `state` to read it, as a disk does that takes nothing.
pub(crate) fn forbid_log(state: &Path) {
    // It follows no link.
    std::os::unix::fs::symlink("nowhere", state.join(format!("{DATABASE}-shm"))).unwrap();
}

/// Changes a byte of the data in `folder`, as a bad disk would.
pub(crate) fn change_a_byte(folder: &Path) {
    let path = folder.join("data");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}
