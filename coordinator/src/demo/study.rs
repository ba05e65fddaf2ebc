//! What the demo trains: a small universal model at 8 mm, with settings that learn on phantoms in minutes.

use super::Options;

/// A network that the demo can train, small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Network {
    /// Convolutions alone.
    Unet,
    /// A transformer of shifted windows beside convolutions.
    SwinUnetr,
}

impl Network {
    /// The model's configuration, as `site-agent model init` reads it; the same as in the study.
    pub(super) const fn to_toml(self) -> &'static str {
        match self {
            Self::Unet => "backbone = \"unet\"\nwidth = 8\n",
            Self::SwinUnetr => "backbone = \"swin_unetr\"\nwidth = 12\n",
        }
    }

    /// Side of a patch: the transformer halves it five times, and the last time two voxels must be left.
    const fn patch(self) -> u32 {
        match self {
            Self::Unet => 24,
            Self::SwinUnetr => 64,
        }
    }
}

/// Class embeddings that the demo can train with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Embedding {
    /// Classes know nothing of each other.
    OneHot,
    /// A tumour's row also has the bits of the organs that it may lie in.
    FewHot,
    /// Sentence embeddings of a small public language model.
    Minilm,
}

impl Embedding {
    /// All, from no knowledge to words.
    pub(super) const ALL: [Self; 3] = [Self::OneHot, Self::FewHot, Self::Minilm];

    /// In a word, as on the command line.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::OneHot => "one-hot",
            Self::FewHot => "few-hot",
            Self::Minilm => "minilm",
        }
    }

    /// How the study, and with it the report, calls them.
    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::OneHot => "one-hot",
            Self::FewHot => "few-hot",
            Self::Minilm => "imported:minilm-l6-v2",
        }
    }
}

/// The table of [`Embedding::Minilm`]: the demo runs from anywhere.
pub(super) const MINILM: &[u8] = include_bytes!("../../../configs/embeddings/minilm-l6-v2.safetensors");

/// Value of a set bit, and length of a row of words: larger rows make the controller listen to the class sooner.
pub(super) const EMBEDDING_SCALE: &str = "4";

/// What may differ between runs.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) seed: u64,
    pub(super) rounds: u32,
    pub(super) steps: u32,
    pub(super) network: Network,
    pub(super) embedding: Embedding,
    /// `masked` or `background`.
    pub(super) unlabelled: &'static str,
    /// Rounds between evaluations; 0: the last alone.
    pub(super) evaluate_every: u32,
    /// Fewest scans of which a number is told.
    pub(super) min_count: u32,
}

impl Settings {
    pub(super) fn of(options: &Options) -> Self {
        let name = if options.data.is_some() { "Abdomen on real CT" } else { "Abdomen on phantoms" };
        Self {
            name: name.to_owned(),
            seed: options.seed,
            rounds: options.rounds,
            steps: options.steps,
            network: options.backbone,
            embedding: options.embedding,
            unlabelled: "masked",
            // Four points make a curve, and an evaluation costs as much as a round.
            evaluate_every: options.rounds.div_ceil(4),
            // Real scans at hand are few, and nothing leaves the machine of the one who owns them all.
            min_count: if options.data.is_some() { 1 } else { 3 },
        }
    }

    /// As these, with the steps of so many sites at once: in samples one site must do the work of all.
    pub(super) fn with_the_work_of(&self, sites: usize) -> Self {
        let sites = u32::try_from(sites).unwrap_or(u32::MAX);
        Self { steps: self.steps.saturating_mul(sites), ..self.clone() }
    }

    /// The study's TOML for `trainers` sites.
    pub(super) fn to_toml(&self, trainers: usize) -> String {
        let Self { name, seed, rounds, steps, network, embedding, unlabelled, evaluate_every, min_count } =
            self;
        let (model, side, embedding) = (network.to_toml(), network.patch(), embedding.kind());
        format!(
            r#"name = "{name}"
seed = {seed}
rounds = {rounds}

[model]
{model}
[embeddings]
kind = "{embedding}"

[preprocessing]
spacing_mm = [8.0, 8.0, 8.0]
window_hu = [-175.0, 250.0]
patch = [{side}, {side}, {side}]

[sampling]
foreground_probability = 0.9

# The held-out hospital has larger patients, and its scanner is outside of the trainers' range.
[sampling.augmentation]
zoom_probability = 0.5
zoom_range = [1.0, 1.2]
intensity_shift_probability = 0.5
intensity_shift_max = 0.1

[training]
steps_per_round = {steps}
# Batch norm then sees in training what it sees in inference: one window.
micro_batch = 1
optimizer_state = "keep"
unlabelled = "{unlabelled}"

[training.optimizer]
kind = "adamw"
base_lr = 2e-3
weight_decay = 1e-5

[aggregation]
weights = "samples"
server_lr = 1.25

[quorum]
sites = {trainers}
deadline_s = 1800
accept_s = 60

[evaluation]
every_rounds = {evaluate_every}
min_count = {min_count}
upsampling = "linear"

[evaluation.nsd_tolerance_mm]
default = 4.0
"#
        )
    }
}

/// A hospital's policy in a demo: every study is welcome, nothing but the usual kinds may leave.
pub(super) const POLICY: &str = r#"[studies]
# A demonstration: nobody sits there to approve.
approve = "any"

[egress]
allow = ["label-manifest", "progress", "update", "evaluation-report"]
max_update_mib = 512
max_mib_per_day = 65536
progress_every_s = 1
"#;

#[cfg(test)]
pub(super) mod tests {
    use common::study::StudyDraft;
    use common::taxonomy::Taxonomy;

    use super::*;

    /// Settings of a run that nobody waits for.
    pub(in crate::demo) fn settings() -> Settings {
        Settings {
            name: "demo".to_owned(),
            seed: 1,
            rounds: 4,
            steps: 2,
            network: Network::Unet,
            embedding: Embedding::FewHot,
            unlabelled: "background",
            evaluate_every: 1,
            min_count: 3,
        }
    }

    #[test]
    fn the_demos_study_is_one() {
        for network in [Network::Unet, Network::SwinUnetr] {
            for embedding in Embedding::ALL {
                let text = Settings { network, embedding, ..settings() }.to_toml(3);
                let draft = StudyDraft::parse("study.toml", &text, &Taxonomy::standard()).unwrap();
                assert_eq!((draft.rounds, draft.quorum.sites), (4, 3));
                assert!(text.contains(embedding.kind()));
            }
        }
    }

    #[test]
    fn the_table_of_words_has_a_row_for_each_class() {
        let file = safetensors::SafeTensors::deserialize(MINILM).unwrap();
        let shapes: Vec<_> = file.iter().map(|(_, tensor)| tensor.shape().to_vec()).collect();
        assert_eq!(shapes, [[Taxonomy::standard().len(), 384]]);
    }

    #[test]
    fn a_pooled_site_does_the_work_of_all() {
        assert_eq!(settings().with_the_work_of(3).steps, 6);
    }
}
