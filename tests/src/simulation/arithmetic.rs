//! What the artifacts of a simulated study are: hashes in place of tensors, as deterministic as the real ones.
//!
//! A site that trains twice from the same model for the same round gets the same bits, and the same updates with the same
//! shares make the same model. So the model of a round can be computed again from the list of those who took part.

use common::ids::{ArtifactHash, Digest, ModelHash, RoundId, SiteId, StudyDigest};

/// The artifact with this content.
pub(super) fn artifact(parts: &str) -> ArtifactHash {
    ArtifactHash(Digest::of(parts.as_bytes()))
}

pub(super) fn study() -> StudyDigest {
    StudyDigest(Digest::of(b"study"))
}

/// Another study, of which a round may come to a trainer in between.
pub(super) fn other_study() -> StudyDigest {
    StudyDigest(Digest::of(b"other study"))
}

pub(super) fn initial_model() -> ModelHash {
    artifact("initial")
}

/// What every task needs beside its model.
pub(super) fn embeddings() -> ArtifactHash {
    artifact("embeddings")
}

/// What training gives at a site, however often it is begun anew.
pub(super) fn update_of(site: &SiteId, round: RoundId, base: ModelHash) -> ArtifactHash {
    artifact(&format!("update {} {site} {round} {base}", study()))
}

/// What an evaluator signs about a model.
pub(super) fn report_of(site: &SiteId, model: ModelHash) -> Digest {
    Digest::of(format!("report {site} {model}").as_bytes())
}

/// The aggregate of these updates with their shares, in whatever order they come.
pub(super) fn aggregate(
    base: ModelHash,
    summands: impl IntoIterator<Item = (SiteId, ArtifactHash, f64)>,
) -> ModelHash {
    let line = |(site, update, share): (SiteId, ArtifactHash, f64)| {
        format!("{site} {update} {:016x}\n", share.to_bits())
    };
    let mut lines: Vec<String> = summands.into_iter().map(line).collect();
    lines.sort_unstable();
    artifact(&format!("model {base}\n{}", lines.concat()))
}

/// A short id made of `text`.
pub(super) fn short(text: &str) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&Digest::of(text.as_bytes()).as_bytes()[..16]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_depends_on_its_summands_and_not_on_their_order() {
        let a: SiteId = "a".parse().unwrap();
        let b: SiteId = "b".parse().unwrap();
        let update = |site: &SiteId| update_of(site, RoundId(1), initial_model());
        let (of_a, of_b) = ((a.clone(), update(&a), 0.25), (b.clone(), update(&b), 0.75));
        let model = aggregate(initial_model(), [of_a.clone(), of_b.clone()]);
        assert_eq!(model, aggregate(initial_model(), [of_b.clone(), of_a.clone()]));
        assert_ne!(model, aggregate(initial_model(), [of_a.clone()]));
        assert_ne!(model, aggregate(initial_model(), [of_a, (b, of_b.1, 0.5)]));
    }
}
