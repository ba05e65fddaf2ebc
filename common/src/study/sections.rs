//! The sections of a study, as they stand in its JSON document and in the operator's TOML.
//!
//! These types derive `Serialize` because a study *is* its document: there is no second form to keep in step. Ranges are
//! checked in `check`; a value of these types outside a [`StudyDocument`](super::StudyDocument) may still be wrong.

use serde::{Deserialize, Serialize};

pub use super::strategy::{Aggregation, Strategy};
use crate::config::{Diagnostics, Document, Problems};
use crate::ids::{ArtifactHash, ClassId, SiteId};

/// The network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Which backbone.
    pub backbone: Backbone,
    /// Channels of the first convolution: 32 is the paper's U-Net, 48 its Swin UNETR.
    pub width: u32,
    /// How a Swin UNETR merges patches.
    #[serde(default, skip_serializing_if = "PatchMerging::is_published")]
    pub patch_merging: PatchMerging,
}

impl ModelConfig {
    /// Parses the text of a model file, `configs/models/*.toml`; `file` is the name shown in messages.
    ///
    /// # Errors
    /// All mistakes, each with its line.
    pub fn parse(file: &str, text: &str) -> Result<Self, Diagnostics> {
        let document = Document::parse(file, text)?;
        let model = document.read()?;
        let mut problems = Problems::new();
        super::check::model("", &model, &mut problems);
        document.locate(problems)?;
        Ok(model)
    }
}

/// The backbones that a study may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backbone {
    /// The U-Net of specification §8.
    Unet,
    /// The Swin UNETR of specification §9.
    SwinUnetr,
}

impl Backbone {
    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Unet => "U-Net",
            Self::SwinUnetr => "Swin UNETR",
        }
    }

    /// Widths are multiples of this: of the groups of the head's normalisation, and of the heads of the attention.
    pub const fn width_multiple(self) -> u32 {
        match self {
            Self::Unet => 8,
            Self::SwinUnetr => 12,
        }
    }

    /// Sides of a patch are multiples of this, and twice as long at least: a bottleneck of one voxel has no statistics.
    pub const fn side_multiple(self) -> u32 {
        match self {
            Self::Unet => 8,
            Self::SwinUnetr => 32,
        }
    }

    /// Whether it merges neighbouring patches, so that [`PatchMerging`] means something.
    pub const fn merges_patches(self) -> bool {
        match self {
            Self::Unet => false,
            Self::SwinUnetr => true,
        }
    }

    /// The tensor of the first convolution, `[width, 1, …]`.
    pub const fn first_tensor(self) -> &'static str {
        match self {
            Self::Unet => "backbone.down_tr64.ops.0.conv1.weight",
            Self::SwinUnetr => "backbone.swinViT.patch_embed.proj.weight",
        }
    }
}

/// Which of eight neighbouring patches a Swin UNETR merges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatchMerging {
    /// As in MONAI 0.9.0, and so in every published checkpoint: two of them are left out, two are read twice.
    #[default]
    #[serde(rename = "monai-0.9")]
    Monai0_9,
    /// Each once. For new studies only.
    Corrected,
}

impl PatchMerging {
    /// Whether it is that of the published checkpoints.
    pub fn is_published(&self) -> bool {
        *self == Self::default()
    }
}

/// The class embeddings: an artifact with one tensor `organ_embedding` of shape `[rows, width]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embeddings {
    /// The artifact.
    pub artifact: ArtifactHash,
    /// How it was made; the report prints it.
    pub kind: EmbeddingKind,
    /// One row per class.
    pub rows: u32,
    /// Numbers per row.
    pub width: u32,
    /// Whether the table is trained too: its rows then average over the sites that annotate their class.
    pub trainable: bool,
}

/// How class embeddings were made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EmbeddingKind {
    /// One bit per class.
    OneHot,
    /// A class's own bit and those of its parents.
    FewHot,
    /// A table made elsewhere, such as a text encoder's, under its name.
    Imported(String),
}

/// From scan to network input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Voxel spacing after resampling, millimetres, `[x, y, z]`.
    pub spacing_mm: [f64; 3],
    /// Hounsfield units that become 0 and 1.
    pub window_hu: [f64; 2],
    /// Voxels of a training patch and of an inference window, `[x, y, z]`.
    pub patch: [u32; 3],
}

/// From case to patch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Share of patches centred on foreground.
    #[serde(default = "two_thirds")]
    pub foreground_probability: f64,
    /// What such a centre is drawn from.
    #[serde(default)]
    pub foreground: Foreground,
    /// Random changes of a patch.
    #[serde(default)]
    pub augmentation: Augmentation,
}

/// What the centre of a foreground patch is drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Foreground {
    /// First a class that the case shows, each as likely, then one of its voxels: small organs are seen as often as large.
    #[default]
    EachClass,
    /// Any labelled voxel, as in the reference.
    AnyVoxel,
}

/// Random changes of a patch. All are off unless set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augmentation {
    /// Chance of an isotropic enlargement.
    pub zoom_probability: f64,
    /// Its factor, lowest and highest.
    pub zoom_range: [f64; 2],
    /// Chance of a rotation by 90, 180 or 270 degrees in the axial plane. It swaps the sides without swapping the labels:
    /// leave it 0 where the taxonomy has left/right pairs.
    pub rotate_90_probability: f64,
    /// Chance of adding one offset to the whole windowed image.
    pub intensity_shift_probability: f64,
    /// Largest such offset, of the windowed range 0 to 1.
    pub intensity_shift_max: f64,
}

/// Local work of one round, the same at every site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Optimiser steps of one round: never epochs, because unequal steps bias the mean.
    pub steps_per_round: u32,
    /// Patches in one forward pass. Batch norm sees these.
    pub micro_batch: u32,
    /// Forward passes whose gradients are averaged into one step.
    #[serde(default = "one")]
    pub accumulation: u32,
    /// Rounds of rising learning rate.
    #[serde(default)]
    pub warmup_rounds: u32,
    /// What becomes of the optimiser's moments between rounds.
    #[serde(default)]
    pub optimizer_state: OptimizerState,
    /// What unannotated classes mean.
    #[serde(default)]
    pub unlabelled: Unlabelled,
    /// Whether sites may train on data sets that a model labelled. Not written where they may not: such a study keeps the
    /// digest that it always had.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pseudo_labels: bool,
    /// The optimiser.
    pub optimizer: Optimizer,
    /// The loss.
    #[serde(default)]
    pub loss: Loss,
}

/// The optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// Which one.
    pub kind: OptimizerKind,
    /// Learning rate at the end of the warm-up.
    pub base_lr: f64,
    /// Decoupled weight decay of AdamW.
    #[serde(default)]
    pub weight_decay: f64,
}

/// The optimisers that a study may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW, betas 0.9 and 0.999, epsilon 1e-8.
    AdamW,
    /// Stochastic gradient descent, without momentum or decay.
    Sgd,
}

/// What becomes of the optimiser's moments between rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerState {
    /// They stay at the site and go on.
    #[default]
    Keep,
    /// They start anew: an update is a pure function of global model, data, seed and round.
    Reset,
}

/// What a class that a case does not annotate means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unlabelled {
    /// Nothing: no loss, no gradient.
    #[default]
    Masked,
    /// Background. Only for showing what masking is worth.
    Background,
}

/// The loss: a mean over annotated (sample, class) pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    /// Weight of the binary cross-entropy.
    pub bce: f64,
    /// The Dice term, weight 1.
    pub dice: DiceTerm,
}

impl Default for Loss {
    fn default() -> Self {
        Self { bce: 1.0, dice: DiceTerm::Volume }
    }
}

/// Over what the Dice term sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiceTerm {
    /// The whole patch.
    Volume,
    /// Each slice of the first axis, then their mean.
    Slice,
    /// No Dice term.
    None,
}

/// How sites weigh; n_s training volumes of site s, n_sc of them annotated for class c.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// All the same.
    Uniform,
    /// n_s.
    #[default]
    Samples,
    /// Σ_c n_sc: what pooled masked training amounts to.
    Annotations,
    /// Each class counts the same, shared out by n_sc.
    ClassBalanced,
}

/// When a round may close.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quorum {
    /// Fewest updates.
    pub sites: u32,
    /// Fewest of them for each class that anybody in the round annotates, of sites that annotate it; 0: none in particular.
    /// Not written where it is 0: such a study keeps the digest that it always had.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sites_per_class: u32,
    /// Seconds from the round's opening after which it closes with the updates it has.
    pub deadline_s: u32,
    /// Seconds within which a site must accept the round.
    pub accept_s: u32,
    /// What becomes of an update that comes after its round has closed. Not written where it is refused.
    #[serde(default, skip_serializing_if = "Late::is_refused")]
    pub late: Late,
    /// Under `next-round`, what such an update weighs, of what it would have weighed in time. Not written where it is half.
    #[serde(default = "half", skip_serializing_if = "is_half")]
    pub staleness_weight: f64,
}

/// What becomes of an update that comes after its round has closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Late {
    /// It is refused, and the site begins the next round at once.
    #[default]
    Refuse,
    /// It counts in the next round, for less, unless the site has sent one of that round by then.
    NextRound,
}

impl Late {
    /// Whether late updates are refused.
    pub fn is_refused(&self) -> bool {
        *self == Self::Refuse
    }
}

/// Who takes part. Every trainer may, unless it is named here or has too little to train on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Participants {
    /// Trainers that the study leaves out: nothing is taken of them, and nobody waits for them.
    pub leave_out: Vec<SiteId>,
    /// Fewest annotated training volumes of a trainer: one with fewer is told, and not asked.
    #[serde(skip_serializing_if = "is_one")]
    pub min_volumes: u32,
}

impl Default for Participants {
    fn default() -> Self {
        Self { leave_out: Vec::new(), min_volumes: one() }
    }
}

impl Participants {
    /// Whether every trainer with a training volume may take part.
    pub fn is_everyone(&self) -> bool {
        *self == Self::default()
    }
}

/// How models are scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// The model of each so many rounds is scored, and always the last; 0 scores the last alone.
    #[serde(default)]
    pub every_rounds: u32,
    /// A voxel belongs to a class when its probability is above this.
    #[serde(default = "half")]
    pub threshold: f64,
    /// Overlap of neighbouring inference windows, share of the window.
    #[serde(default = "half")]
    pub overlap: f64,
    /// How predictions come back to the scan's own voxels.
    #[serde(default)]
    pub upsampling: Upsampling,
    /// Fewest patients behind a reported number.
    #[serde(default = "five")]
    pub min_count: u32,
    /// Evaluators that are sealed: they score promoted models alone and have no say in which one that is. Not written where
    /// there are none: such a study keeps the digest that it always had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<SiteId>,
    /// Tolerance of the surface distance.
    pub nsd_tolerance_mm: Tolerances,
    /// Evaluators that must report before the next round opens.
    #[serde(default)]
    pub gate: Option<Gate>,
}

/// How predictions come back to the scan's own voxels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Upsampling {
    /// Each voxel takes the nearest prediction, as in the reference.
    #[default]
    Nearest,
    /// Logits are interpolated and then compared with the threshold: smoother where the network's grid is coarse.
    Linear,
}

/// Tolerance of the surface distance per class, millimetres.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerances {
    /// For classes without their own.
    pub default: f64,
    /// Classes with their own.
    #[serde(default)]
    pub classes: Vec<ClassTolerance>,
}

/// Tolerance of one class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassTolerance {
    /// The class.
    pub class: ClassId,
    /// Millimetres.
    pub mm: f64,
}

impl Tolerances {
    /// Tolerance of `class`, millimetres.
    pub fn of(&self, class: ClassId) -> f64 {
        self.classes.iter().find(|own| own.class == class).map_or(self.default, |own| own.mm)
    }
}

/// Evaluators that must report before the next round opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// The evaluators.
    pub evaluators: Vec<SiteId>,
    /// Seconds after which the next round opens without them.
    pub timeout_s: u32,
}

impl EmbeddingKind {
    /// Whether embeddings may be called so whose file says that they were `made` like that. `site-agent embed` begins with the kind of what it
    /// makes; anything else is said of a table made elsewhere.
    pub fn agrees_with(&self, made: &str) -> bool {
        match made.split([',', ';']).next() {
            Some("one-hot") => *self == Self::OneHot,
            Some("few-hot") => *self == Self::FewHot,
            _ => matches!(self, Self::Imported(_)),
        }
    }
}

impl TryFrom<String> for EmbeddingKind {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        match (text.as_str(), text.strip_prefix("imported:")) {
            ("one-hot", _) => Ok(Self::OneHot),
            ("few-hot", _) => Ok(Self::FewHot),
            (_, Some(name)) if (1..=60).contains(&name.len()) && name.chars().all(plain) => {
                Ok(Self::Imported(name.to_owned()))
            }
            _ => Err(format!("embedding kind `{text}`: expected `one-hot`, `few-hot` or `imported:NAME`")),
        }
    }
}

impl From<EmbeddingKind> for String {
    fn from(kind: EmbeddingKind) -> Self {
        kind.to_string()
    }
}

impl std::fmt::Display for EmbeddingKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OneHot => f.write_str("one-hot"),
            Self::FewHot => f.write_str("few-hot"),
            Self::Imported(name) => write!(f, "imported:{name}"),
        }
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_one(number: &u32) -> bool {
    *number == one()
}

fn one() -> u32 {
    1
}

fn five() -> u32 {
    5
}

fn half() -> f64 {
    0.5
}

fn is_half(number: &f64) -> bool {
    number.to_bits() == half().to_bits()
}

fn two_thirds() -> f64 {
    2.0 / 3.0
}
