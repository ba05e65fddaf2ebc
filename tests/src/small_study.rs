//! The smallest study that is one: a narrow network, coarse voxels and small patches. End-to-end tests train it, benchmarks
//! only go through its rounds.

/// Its network, as `site-agent model init` reads it.
pub const SMALL_MODEL: &str = "backbone = \"unet\"\nwidth = 8\n";

/// What differs between two of them.
#[derive(Clone, Copy, Debug)]
pub struct SmallStudy<'a> {
    /// Its name.
    pub name: &'a str,
    /// Rounds.
    pub rounds: u32,
    /// Optimiser steps of a round.
    pub steps: u32,
    /// Sites that every round waits for.
    pub sites: usize,
}

impl SmallStudy<'_> {
    /// The operator's file.
    pub fn toml(&self) -> String {
        let Self { name, rounds, steps, sites } = self;
        format!(
            r#"name = "{name}"
seed = 7
rounds = {rounds}

[model]
{SMALL_MODEL}
[embeddings]
kind = "one-hot"

[preprocessing]
spacing_mm = [16.0, 16.0, 16.0]
window_hu = [-175.0, 250.0]
patch = [16, 16, 16]

[sampling]
foreground_probability = 0.667

[training]
steps_per_round = {steps}
micro_batch = 1

[training.optimizer]
kind = "adamw"
base_lr = 1e-3

[aggregation]

[quorum]
sites = {sites}
deadline_s = 3600
accept_s = 600

[evaluation]

[evaluation.nsd_tolerance_mm]
default = 4.0
"#
        )
    }
}

#[cfg(test)]
mod tests {
    use common::study::StudyDraft;
    use common::taxonomy::Taxonomy;

    use super::*;

    #[test]
    fn the_small_study_is_one() {
        let text = SmallStudy { name: "Small", rounds: 4, steps: 2, sites: 3 }.toml();
        let draft = StudyDraft::parse("study.toml", &text, &Taxonomy::standard()).unwrap();
        assert_eq!((draft.rounds, draft.quorum.sites), (4, 3));
    }
}
