//! Artifacts that a site asks for and that the disk does not give, or has no more: said to the site, to the log and to the operator.

use common::ids::ArtifactHash;
use common::wire::{Refusal, RefusalCode};

use super::session::Session;
use crate::store::{StoreError, causes};

/// Says that an artifact cannot be served, and why, if known by `chunk`; what the site is told.
pub(super) async fn refuse(
    session: &Session,
    artifact: ArtifactHash,
    chunk: Option<u32>,
    error: &StoreError,
) -> Refusal {
    log(artifact, error);
    let shelf = &session.context.shelf;
    shelf.forget(&artifact);
    if !error.is_damage() {
        return Refusal::new(RefusalCode::Internal, error.words_for_sites());
    }
    shelf.damage(&artifact, chunk);
    // Each time: it may have been brought back meanwhile, which the driver knows.
    session.context.driver.artifact_damaged(artifact, causes(error)).await;
    let words =
        "the coordinator's copy is lost or corrupt; its operator is told, and it is tried again later";
    Refusal::new(RefusalCode::Internal, words)
}

/// Says that an artifact is not here: lost, if a study has published it. Of all other names nothing is kept.
pub(super) async fn missing(session: &Session, artifact: ArtifactHash) -> Refusal {
    match session.context.driver.is_published(artifact).await {
        Ok(true) => refuse(session, artifact, None, &StoreError::corrupt("artifact", "it is gone")).await,
        Ok(false) => Refusal::new(RefusalCode::UnknownArtifact, "the coordinator has no such artifact"),
        Err(stopping) => stopping,
    }
}

/// Says that these chunks were served, ascending: an artifact that was corrupt may be whole again.
pub(super) async fn served(session: &Session, artifact: ArtifactHash, chunks: &[u32]) {
    if session.context.shelf.recovers(&artifact, chunks) {
        session.context.driver.artifact_whole(artifact).await;
    }
}

fn log(artifact: ArtifactHash, error: &StoreError) {
    let code = error.code();
    tracing::error!(%artifact, code, error = error as &dyn std::error::Error, "an artifact cannot be served");
}
