//! Ranges of a study's settings, and what must fit together. One function per section, all mistakes collected.

use std::collections::BTreeSet;

use super::sections::{
    Augmentation, Backbone, Embeddings, Evaluation, ModelConfig, OptimizerKind, Participants, Preprocessing,
    Quorum, Training,
};
use super::{Study, StudyDraft};
use crate::config::Problems;
use crate::taxonomy::Taxonomy;

/// The `format` of a study document.
pub(super) const FORMAT: &str = "consilium study 1";
/// Longest time that a study may name: 30 days, in seconds.
const MAX_SECONDS: u32 = 30 * 24 * 3600;

/// Everything that is wrong with a study document.
pub(super) fn study(study: &Study) -> Problems {
    let mut problems = draft(&StudyDraft::from(study), &study.taxonomy);
    if study.format != FORMAT {
        problems.add_allowed("format", format!("`{}`", study.format), FORMAT);
    }
    embeddings(&study.embeddings, &study.taxonomy, &mut problems);
    problems
}

/// Everything that is wrong with what the operator wrote.
pub(super) fn draft(draft: &StudyDraft, taxonomy: &Taxonomy) -> Problems {
    let mut problems = Problems::new();
    let named =
        !draft.name.trim().is_empty() && draft.name.len() <= 100 && !draft.name.contains(char::is_control);
    if !named {
        problems.add_allowed("name", "is not a name", "1 to 100 printable characters");
    }
    // TOML integers are signed: a larger seed could not be written in a study file.
    problems.in_range("seed", draft.seed, 0..=i64::MAX as u64);
    problems.in_range("rounds", draft.rounds, 1..=100_000);
    model("model.", &draft.model, &mut problems);
    preprocessing(&draft.preprocessing, draft.model.backbone, &mut problems);
    problems.in_range("sampling.foreground_probability", draft.sampling.foreground_probability, 0.0..=1.0);
    augmentation(&draft.sampling.augmentation, &mut problems);
    training(&draft.training, draft.rounds, &mut problems);
    draft.aggregation.check(&draft.quorum, &mut problems);
    quorum(&draft.quorum, &mut problems);
    participants(&draft.participants, &draft.evaluation, &mut problems);
    evaluation(&draft.evaluation, draft.rounds, taxonomy, &mut problems);
    problems
}

/// `prefix` is where the section stands: a model file has no section around it.
pub(super) fn model(prefix: &str, model: &ModelConfig, problems: &mut Problems) {
    let multiple = model.backbone.width_multiple();
    if !(multiple..=256).contains(&model.width) || !model.width.is_multiple_of(multiple) {
        problems.add_allowed(
            format!("{prefix}width"),
            model.width.to_string(),
            format!("a multiple of {multiple} from {multiple} to 256"),
        );
    }
    if !model.backbone.merges_patches() && !model.patch_merging.is_published() {
        problems.add(format!("{prefix}patch_merging"), "only a `swin_unetr` merges patches");
    }
}

fn preprocessing(preprocessing: &Preprocessing, backbone: Backbone, problems: &mut Problems) {
    for (axis, spacing) in preprocessing.spacing_mm.into_iter().enumerate() {
        problems.in_range(&format!("preprocessing.spacing_mm[{axis}]"), spacing, 0.1..=20.0);
    }
    let [low, high] = preprocessing.window_hu;
    problems.in_range("preprocessing.window_hu[0]", low, -2000.0..=10_000.0);
    problems.in_range("preprocessing.window_hu[1]", high, -2000.0..=10_000.0);
    if low >= high {
        problems
            .add("preprocessing.window_hu", format!("the first, {low}, must be below the second, {high}"));
    }
    for (axis, voxels) in preprocessing.patch.into_iter().enumerate() {
        let multiple = backbone.side_multiple();
        if !(2 * multiple..=512).contains(&voxels) || !voxels.is_multiple_of(multiple) {
            let (key, least) = (format!("preprocessing.patch[{axis}]"), 2 * multiple);
            let allowed = format!("a multiple of {multiple} from {least} to 512");
            problems.add_allowed(key, voxels.to_string(), allowed);
        }
    }
}

fn augmentation(augmentation: &Augmentation, problems: &mut Problems) {
    let key = |field: &str| format!("sampling.augmentation.{field}");
    let Augmentation { zoom_probability, zoom_range: [low, high], rotate_90_probability, .. } = *augmentation;
    problems.in_range(&key("zoom_probability"), zoom_probability, 0.0..=1.0);
    problems.in_range(&key("rotate_90_probability"), rotate_90_probability, 0.0..=1.0);
    problems.in_range(
        &key("intensity_shift_probability"),
        augmentation.intensity_shift_probability,
        0.0..=1.0,
    );
    problems.in_range(&key("intensity_shift_max"), augmentation.intensity_shift_max, 0.0..=1.0);
    if zoom_probability > 0.0 && !(1.0 <= low && low <= high && high <= 4.0) {
        problems.add_allowed(
            key("zoom_range"),
            format!("[{low}, {high}]"),
            "two ascending factors from 1 to 4",
        );
    }
}

fn training(training: &Training, rounds: u32, problems: &mut Problems) {
    problems.in_range("training.steps_per_round", training.steps_per_round, 1..=100_000);
    problems.in_range("training.micro_batch", training.micro_batch, 1..=64);
    problems.in_range("training.accumulation", training.accumulation, 1..=1024);
    problems.in_range("training.warmup_rounds", training.warmup_rounds, 0..=rounds);
    let optimizer = &training.optimizer;
    positive("training.optimizer.base_lr", optimizer.base_lr, 10.0, problems);
    problems.in_range("training.optimizer.weight_decay", optimizer.weight_decay, 0.0..=1.0);
    if optimizer.kind == OptimizerKind::Sgd && optimizer.weight_decay != 0.0 {
        problems.add("training.optimizer.weight_decay", "belongs to `adamw`; `sgd` has none");
    }
    problems.in_range("training.loss.bce", training.loss.bce, 0.0..=100.0);
    if training.loss.bce == 0.0 && training.loss.dice == super::sections::DiceTerm::None {
        problems.add("training.loss", "has no term: nothing would be learnt");
    }
}

fn quorum(quorum: &Quorum, problems: &mut Problems) {
    problems.in_range("quorum.sites", quorum.sites, 1..=10_000);
    problems.in_range("quorum.sites_per_class", quorum.sites_per_class, 0..=10_000);
    problems.in_range("quorum.deadline_s", quorum.deadline_s, 1..=MAX_SECONDS);
    problems.in_range("quorum.accept_s", quorum.accept_s, 1..=quorum.deadline_s.max(1));
    positive("quorum.staleness_weight", quorum.staleness_weight, 1.0, problems);
}

fn participants(participants: &Participants, evaluation: &Evaluation, problems: &mut Problems) {
    problems.in_range("participants.min_volumes", participants.min_volumes, 1..=1_000_000);
    let key = "participants.leave_out";
    let left_out: BTreeSet<_> = participants.leave_out.iter().collect();
    if left_out.len() < participants.leave_out.len() {
        problems.add_allowed(key, "names a site twice", "each site once");
    }
    let gated = evaluation.gate.iter().flat_map(|gate| &gate.evaluators);
    for site in evaluation.test.iter().chain(gated).filter(|site| left_out.contains(site)) {
        problems.add_allowed(key, format!("`{site}` scores models, and never trains"), "names of trainers");
    }
}

fn evaluation(evaluation: &Evaluation, rounds: u32, taxonomy: &Taxonomy, problems: &mut Problems) {
    problems.in_range("evaluation.every_rounds", evaluation.every_rounds, 0..=rounds);
    problems.in_range("evaluation.threshold", evaluation.threshold, 0.0..=0.999);
    problems.in_range("evaluation.overlap", evaluation.overlap, 0.0..=0.9);
    problems.in_range("evaluation.min_count", evaluation.min_count, 1..=1000);
    let tolerances = &evaluation.nsd_tolerance_mm;
    problems.in_range("evaluation.nsd_tolerance_mm.default", tolerances.default, 0.0..=100.0);
    let mut seen = BTreeSet::new();
    for (index, own) in tolerances.classes.iter().enumerate() {
        let key = format!("evaluation.nsd_tolerance_mm.classes[{index}]");
        problems.in_range(&format!("{key}.mm"), own.mm, 0.0..=100.0);
        if taxonomy.class(own.class).is_none() {
            problems.add(format!("{key}.class"), format!("the taxonomy has no class {}", own.class));
        }
        if !seen.insert(own.class) {
            problems.add(format!("{key}.class"), format!("class {} has two tolerances", own.class));
        }
    }
    let sealed: BTreeSet<_> = evaluation.test.iter().collect();
    if sealed.len() < evaluation.test.len() {
        problems.add_allowed("evaluation.test", "names a site twice", "each site once");
    }
    let Some(gate) = &evaluation.gate else { return };
    for site in gate.evaluators.iter().filter(|site| sealed.contains(site)) {
        problems.add(
            "evaluation.gate.evaluators",
            format!("`{site}` is a test site: it scores promoted models alone"),
        );
    }
    problems.in_range("evaluation.gate.timeout_s", gate.timeout_s, 1..=MAX_SECONDS);
    let different: BTreeSet<_> = gate.evaluators.iter().collect();
    if gate.evaluators.is_empty() || different.len() < gate.evaluators.len() {
        let found = format!("{} names, {} different", gate.evaluators.len(), different.len());
        problems.add_allowed("evaluation.gate.evaluators", found, "at least one site, each once");
    }
}

fn embeddings(embeddings: &Embeddings, taxonomy: &Taxonomy, problems: &mut Problems) {
    if embeddings.rows as usize != taxonomy.len() {
        let allowed = format!("{}, one per class", taxonomy.len());
        problems.add_allowed("embeddings.rows", embeddings.rows.to_string(), allowed);
    }
    problems.in_range("embeddings.width", embeddings.width, 1..=8192);
}

/// Notes a value that is not above 0, or above `most` (a NaN is neither).
pub(super) fn positive(key: &str, value: f64, most: f64, problems: &mut Problems) {
    if !(value > 0.0 && value <= most) {
        problems.add_allowed(key, format!("{value} is out of range"), format!("above 0, at most {most}"));
    }
}
