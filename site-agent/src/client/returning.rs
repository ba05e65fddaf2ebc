//! A model that the coordinator's disk lost goes back from here (docs/decisions/0024).
//!
//! Nothing of this site depends on it: the machine knows nothing of it, and what does not go back now neither waits nor is tried
//! again. The coordinator asks anew, this site or another. Of what is not here, whole, nothing is said.

use common::ids::{ArtifactHash, AttemptId};
use tokio::task::spawn_blocking;

use super::artifacts::ArtifactFolder;
use super::driver::{Agent, Errand, News};
use crate::egress::{ChunkCarrier, Egress};

impl Agent {
    /// Returns an artifact that the coordinator asks for, if it is here.
    pub(super) fn return_artifact(&mut self, artifact: ArtifactHash) {
        if !self.artifacts.has(artifact) {
            return;
        }
        let (errand, folder, turn) =
            (Errand::Return(artifact), self.artifacts.clone(), self.returning.clone());
        self.run_errand(errand, move |connection, egress| async move {
            let _turn = turn.lock().await;
            let short = artifact.short();
            match give_back(&egress.line(&connection), &egress, folder, artifact).await {
                Ok(()) => tracing::info!("artifact {short}: the coordinator had lost it, and has it again"),
                Err(error) => tracing::warn!(
                    "artifact {short}: the coordinator lost it and asks for it, and it does not go back now: {error:#}"
                ),
            }
            News::Done(errand, None)
        });
    }
}

/// Returns an artifact once every byte of it was looked at.
async fn give_back(
    line: &impl ChunkCarrier,
    egress: &Egress,
    folder: ArtifactFolder,
    artifact: ArtifactHash,
) -> anyhow::Result<()> {
    let (manifest, source) = spawn_blocking(move || folder.whole_source(artifact)).await??;
    Ok(egress.return_model(line, attempt_of(artifact), &manifest, source).await?)
}

/// The key for its chunks and its commit.
fn attempt_of(artifact: ArtifactHash) -> AttemptId {
    // A digest has more than 16 bytes.
    AttemptId::from_bytes(artifact.0.as_bytes().first_chunk().copied().unwrap_or_default())
}
