//! The settings of a study as people read them before they agree to it: every key that decides something, its value, whether
//! that is the default, and what it means. One list for the operator, for the hospitals, and for what their policies allow.
//!
//! A key that another one puts out of force is left out: the clipping factor beside a fixed norm, the keys of other strategies.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Study;
use super::sections::{
    Aggregation, Augmentation, Embeddings, Evaluation, Gate, Late, Loss, ModelConfig, Optimizer,
    Participants, Preprocessing, Quorum, Sampling, Strategy, Tolerances, Training, Weighting,
};
use crate::taxonomy::Taxonomy;

// Everything is taken apart without `..`: a key that is added to a study does not compile until it is listed here.

/// The dotted keys of all settings that a study can have, but for the tolerances of single classes, which are called as the class.
pub const KEYS: [&str; 65] = [
    "seed",
    "rounds",
    "classes",
    "initial_model",
    "model.backbone",
    "model.width",
    "model.patch_merging",
    "embeddings.kind",
    "embeddings.artifact",
    "embeddings.rows",
    "embeddings.width",
    "embeddings.trainable",
    "preprocessing.spacing_mm",
    "preprocessing.window_hu",
    "preprocessing.patch",
    "sampling.foreground_probability",
    "sampling.foreground",
    "sampling.augmentation.zoom_probability",
    "sampling.augmentation.zoom_range",
    "sampling.augmentation.rotate_90_probability",
    "sampling.augmentation.intensity_shift_probability",
    "sampling.augmentation.intensity_shift_max",
    "training.steps_per_round",
    "training.micro_batch",
    "training.accumulation",
    "training.warmup_rounds",
    "training.optimizer_state",
    "training.unlabelled",
    "training.pseudo_labels",
    "training.optimizer.kind",
    "training.optimizer.base_lr",
    "training.optimizer.weight_decay",
    "training.loss.bce",
    "training.loss.dice",
    "aggregation.strategy",
    "aggregation.proximal_mu",
    "aggregation.momentum",
    "aggregation.beta_1",
    "aggregation.beta_2",
    "aggregation.tau",
    "aggregation.trim",
    "aggregation.server_lr",
    "aggregation.weights",
    "aggregation.max_site_weight",
    "aggregation.max_update_norm",
    "aggregation.clip_norm",
    "aggregation.clip_median_factor",
    "aggregation.update_dtype",
    "quorum.sites",
    "quorum.sites_per_class",
    "quorum.deadline_s",
    "quorum.accept_s",
    "quorum.late",
    "quorum.staleness_weight",
    "participants.leave_out",
    "participants.min_volumes",
    "evaluation.every_rounds",
    "evaluation.threshold",
    "evaluation.overlap",
    "evaluation.upsampling",
    "evaluation.min_count",
    "evaluation.test",
    "evaluation.nsd_tolerance_mm.default",
    "evaluation.gate.evaluators",
    "evaluation.gate.timeout_s",
];

/// A setting of a study.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    section: &'static str,
    key: String,
    /// As in the study's document: a word, a number, a list of them, or null for none.
    pub value: Value,
    is_default: bool,
    meaning: &'static str,
}

impl Setting {
    /// Its dotted key.
    pub fn path(&self) -> String {
        if self.section.is_empty() { self.key.clone() } else { format!("{}.{}", self.section, self.key) }
    }

    /// Its line below the name of its section.
    fn in_words(&self) -> String {
        let Self { key, value, is_default, meaning, .. } = self;
        let value = format!("{}{}", in_words(value), if *is_default { " (default)" } else { "" });
        format!("  {key:<27}  {value:<24}  {meaning}")
    }
}

impl Study {
    /// Every setting that decides something, a line each, below the names of the sections of the study's file.
    pub fn settings_in_words(&self) -> Vec<String> {
        let (mut lines, mut section) = (Vec::new(), "");
        for setting in self.settings() {
            if setting.section != section {
                section = setting.section;
                lines.push(format!("[{section}]"));
            }
            lines.push(setting.in_words());
        }
        lines
    }

    /// Every setting that decides something.
    pub fn settings(&self) -> Vec<Setting> {
        let Self {
            format: _,
            name: _,
            seed,
            rounds,
            model,
            initial_model,
            embeddings,
            preprocessing,
            sampling,
            training,
            aggregation,
            quorum,
            participants,
            evaluation,
            taxonomy,
        } = self;
        let mut list = Settings::default();
        list.stated("seed", seed, "every random draw follows from it");
        list.stated("rounds", rounds, "training rounds");
        list.stated("classes", &taxonomy.len(), "of the taxonomy");
        list.stated("initial_model", initial_model, "what round 1 begins from");
        network(&mut list, model);
        class_embeddings(&mut list, embeddings);
        from_scan_to_patch(&mut list, preprocessing, sampling);
        local_work(&mut list, training);
        averaging(&mut list, aggregation);
        round_end(&mut list, quorum);
        who(&mut list, participants);
        scoring(&mut list, evaluation, taxonomy);
        list.list
    }
}

fn network(list: &mut Settings, model: &ModelConfig) {
    let ModelConfig { backbone, width, patch_merging } = model;
    list.section("model");
    list.stated("backbone", backbone, "the network");
    list.stated("width", width, "channels of its first convolution");
    if backbone.merges_patches() {
        let default = unstated::<ModelConfig>(json!({ "backbone": backbone, "width": width }));
        list.optional("patch_merging", patch_merging, &default.patch_merging, "how patches are merged");
    }
}

fn class_embeddings(list: &mut Settings, embeddings: &Embeddings) {
    let Embeddings { artifact, kind, rows, width, trainable } = embeddings;
    list.section("embeddings");
    list.stated("kind", kind, "how the table of the classes was made");
    list.stated("artifact", artifact, "the table");
    list.stated("rows", rows, "one for each class");
    list.stated("width", width, "numbers in a row");
    list.optional("trainable", trainable, &false, "whether the table is trained too");
}

fn from_scan_to_patch(list: &mut Settings, preprocessing: &Preprocessing, sampling: &Sampling) {
    let Preprocessing { spacing_mm, window_hu, patch } = preprocessing;
    list.section("preprocessing");
    list.stated("spacing_mm", spacing_mm, "scans are resampled to this");
    list.stated("window_hu", window_hu, "Hounsfield units that become 0 and 1");
    list.stated("patch", patch, "voxels of a patch");

    let Sampling { foreground_probability, foreground, augmentation } = sampling;
    let default = unstated::<Sampling>(json!({}));
    list.section("sampling");
    let (key, meaning) = ("foreground_probability", "share of patches centred on a labelled voxel");
    list.optional(key, foreground_probability, &default.foreground_probability, meaning);
    list.optional("foreground", foreground, &default.foreground, "how that voxel is drawn");

    let off = default.augmentation;
    let Augmentation {
        zoom_probability,
        zoom_range,
        rotate_90_probability,
        intensity_shift_probability,
        intensity_shift_max,
    } = augmentation;
    list.section("sampling.augmentation");
    list.optional("zoom_probability", zoom_probability, &off.zoom_probability, "chance of an enlargement");
    if *zoom_probability > 0.0 {
        list.stated("zoom_range", zoom_range, "its factor, lowest and highest");
    }
    let meaning = "chance of a quarter turn in the axial plane, which swaps left and right";
    list.optional("rotate_90_probability", rotate_90_probability, &off.rotate_90_probability, meaning);
    let (key, meaning) = ("intensity_shift_probability", "chance of brighter or darker");
    list.optional(key, intensity_shift_probability, &off.intensity_shift_probability, meaning);
    if *intensity_shift_probability > 0.0 {
        list.stated("intensity_shift_max", intensity_shift_max, "by how much, of the range 0 to 1");
    }
}

fn local_work(list: &mut Settings, training: &Training) {
    let Training {
        steps_per_round,
        micro_batch,
        accumulation,
        warmup_rounds,
        optimizer_state,
        unlabelled,
        pseudo_labels,
        optimizer: Optimizer { kind, base_lr, weight_decay },
        loss: Loss { bce, dice },
    } = training;
    let default = unstated::<Training>(json!({
        "steps_per_round": 1, "micro_batch": 1, "optimizer": { "kind": "adamw", "base_lr": 1.0 }
    }));
    list.section("training");
    list.stated("steps_per_round", steps_per_round, "optimiser steps, equal at every site");
    list.stated("micro_batch", micro_batch, "patches in one forward pass");
    list.optional("accumulation", accumulation, &default.accumulation, "forward passes of one step");
    list.optional("warmup_rounds", warmup_rounds, &default.warmup_rounds, "rounds of rising learning rate");
    let meaning = "the optimiser's memory from round to round";
    list.optional("optimizer_state", optimizer_state, &default.optimizer_state, meaning);
    list.optional("unlabelled", unlabelled, &default.unlabelled, "what a class that nobody annotated means");
    let meaning = "whether sites may train on what a model labelled";
    list.optional("pseudo_labels", pseudo_labels, &default.pseudo_labels, meaning);
    list.section("training.optimizer");
    list.stated("kind", kind, "the optimiser");
    list.stated("base_lr", base_lr, "learning rate after the warm-up");
    list.optional("weight_decay", weight_decay, &default.optimizer.weight_decay, "decay of the weights");
    list.section("training.loss");
    list.optional("bce", bce, &default.loss.bce, "weight of the cross-entropy");
    list.optional("dice", dice, &default.loss.dice, "over what the Dice term sums");
}

fn averaging(list: &mut Settings, aggregation: &Aggregation) {
    let default = unstated::<Aggregation>(json!({ "strategy": aggregation.strategy })).stated();
    let aggregation = aggregation.clone().stated();
    let Aggregation {
        strategy,
        server_lr,
        weights,
        max_site_weight,
        max_update_norm,
        clip_median_factor,
        clip_norm,
        proximal_mu,
        momentum,
        beta_1,
        beta_2,
        tau,
        trim,
        update_dtype,
    } = &aggregation;
    list.section("aggregation");
    let usual = unstated::<Aggregation>(json!({})).strategy;
    list.optional("strategy", strategy, &usual, "the rule that makes one model of the updates");
    let own_keys = [
        ("proximal_mu", proximal_mu, &default.proximal_mu, "how strongly training is held near the model"),
        ("momentum", momentum, &default.momentum, "how much of the rounds before goes on"),
        ("beta_1", beta_1, &default.beta_1, "memory of the mean"),
        ("beta_2", beta_2, &default.beta_2, "memory of its square"),
        ("tau", tau, &default.tau, "smallest divisor"),
        ("trim", trim, &default.trim, "share left out at each end"),
    ];
    for (key, value, default, meaning) in own_keys {
        if value.is_some() {
            list.optional(key, value, default, meaning);
        }
    }
    list.optional("server_lr", server_lr, &default.server_lr, "how much of the step is taken");
    // A rule that sorts takes no notice of weights.
    let weighs = !matches!(strategy, Strategy::TrimmedMean | Strategy::CoordinateMedian);
    if weighs {
        list.optional("weights", weights, &default.weights, "what a site's share goes by");
    }
    if weighs && *weights == Weighting::ClassBalanced {
        let meaning = "largest share of one site";
        list.optional("max_site_weight", max_site_weight, &default.max_site_weight, meaning);
    }
    let meaning = "a longer update (L2 norm) is refused";
    list.optional("max_update_norm", max_update_norm, &default.max_update_norm, meaning);
    if clip_norm.is_some() {
        list.stated("clip_norm", clip_norm, "a longer update is scaled down to this");
    } else {
        let meaning = "an update so many times as long as the round's median is scaled down; 0: never";
        list.optional("clip_median_factor", clip_median_factor, &default.clip_median_factor, meaning);
    }
    let meaning = "numbers that an update travels in";
    list.optional("update_dtype", update_dtype, &default.update_dtype, meaning);
}

fn round_end(list: &mut Settings, quorum: &Quorum) {
    let Quorum { sites, sites_per_class, deadline_s, accept_s, late, staleness_weight } = quorum;
    let default = unstated::<Quorum>(json!({ "sites": 1, "deadline_s": 1, "accept_s": 1 }));
    list.section("quorum");
    list.stated("sites", sites, "fewest updates that are averaged");
    let meaning = "fewest of them for each class, of sites that annotate it; 0: none in particular";
    list.optional("sites_per_class", sites_per_class, &default.sites_per_class, meaning);
    list.stated("deadline_s", deadline_s, "seconds after which a round closes with what it has");
    list.stated("accept_s", accept_s, "seconds within which a site must answer");
    list.optional("late", late, &default.late, "what becomes of an update that comes too late");
    if *late == Late::NextRound {
        let meaning = "what it weighs then, of what it would have weighed";
        list.optional("staleness_weight", staleness_weight, &default.staleness_weight, meaning);
    }
}

fn who(list: &mut Settings, participants: &Participants) {
    let Participants { leave_out, min_volumes } = participants;
    let default = Participants::default();
    list.section("participants");
    list.optional("leave_out", leave_out, &default.leave_out, "trainers of which nothing is taken");
    list.optional("min_volumes", min_volumes, &default.min_volumes, "fewest training scans of a site");
}

fn scoring(list: &mut Settings, evaluation: &Evaluation, taxonomy: &Taxonomy) {
    let Evaluation {
        every_rounds,
        threshold,
        overlap,
        upsampling,
        min_count,
        test,
        nsd_tolerance_mm: Tolerances { default: tolerance, classes },
        gate,
    } = evaluation;
    let default = unstated::<Evaluation>(json!({ "nsd_tolerance_mm": { "default": 1.0 } }));
    list.section("evaluation");
    let meaning = "models of each so many rounds are scored, and the last; 0: the last alone";
    list.optional("every_rounds", every_rounds, &default.every_rounds, meaning);
    list.optional(
        "threshold",
        threshold,
        &default.threshold,
        "probability above which a voxel is of a class",
    );
    list.optional("overlap", overlap, &default.overlap, "of neighbouring windows");
    list.optional("upsampling", upsampling, &default.upsampling, "how labels come back to the scan's voxels");
    list.optional("min_count", min_count, &default.min_count, "fewest patients behind a number that leaves");
    list.optional("test", test, &default.test, "sealed evaluators: they score promoted models alone");
    list.section("evaluation.nsd_tolerance_mm");
    list.stated("default", tolerance, "tolerance of the surface distance");
    for own in classes {
        list.stated(&taxonomy.name(own.class), &own.mm, "that of this class");
    }
    list.section("evaluation.gate");
    match gate {
        None => list.optional("evaluators", gate, &default.gate, "who must report before the next round"),
        Some(Gate { evaluators, timeout_s }) => {
            list.stated("evaluators", evaluators, "who must report before the next round");
            list.stated("timeout_s", timeout_s, "seconds after which it opens without them");
        }
    }
}

/// A section that states what it must, and so has the default of every other key.
fn unstated<T: DeserializeOwned>(required: Value) -> T {
    // Invariant: each caller states what its section requires; the tests go through all of them.
    serde_json::from_value(required).expect("what a section requires is stated")
}

/// The list, as it grows.
#[derive(Default)]
struct Settings {
    section: &'static str,
    list: Vec<Setting>,
}

impl Settings {
    fn section(&mut self, name: &'static str) {
        self.section = name;
    }

    /// A key that has no default.
    fn stated(&mut self, key: &str, value: &impl Serialize, meaning: &'static str) {
        self.add(key, json_of(value), false, meaning);
    }

    /// A key that need not be written.
    fn optional<T: Serialize>(&mut self, key: &str, value: &T, default: &T, meaning: &'static str) {
        let (value, default) = (json_of(value), json_of(default));
        let is_default = in_words(&value) == in_words(&default);
        self.add(key, value, is_default, meaning);
    }

    fn add(&mut self, key: &str, value: Value, is_default: bool, meaning: &'static str) {
        let (section, key) = (self.section, key.to_owned());
        self.list.push(Setting { section, key, value, is_default, meaning });
    }
}

fn json_of(value: &impl Serialize) -> Value {
    // Settings are words, numbers and lists of them, all of which have a JSON form.
    serde_json::to_value(value).unwrap_or_default()
}

/// The value of a setting as people read it: `none` for null and for an empty list.
pub fn in_words(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(word) => word.clone(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(in_words).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::ids::SiteId;
    use crate::study::sections::Backbone;
    use crate::study::{StudyDocument, StudyDraft};
    use crate::testing::{example_study, example_study_with};

    /// The value of `key` in `section`, as shown.
    fn value(document: &StudyDocument, section: &str, key: &str) -> Option<String> {
        let lines = document.study().settings_in_words();
        let section = format!("[{section}]");
        let below = lines.iter().skip_while(|line| **line != section).skip(1);
        let own = below.take_while(|line| !line.starts_with('['));
        let named =
            own.map(|line| line.trim_start()).find_map(|line| line.strip_prefix(key)?.strip_prefix("  "));
        named.map(|rest| rest.trim_start().split("  ").next().unwrap_or_default().to_owned())
    }

    #[test]
    fn what_nobody_wrote_is_shown_and_marked() {
        let document = example_study();
        let shown = |section, key| value(&document, section, key).unwrap();
        assert_eq!(shown("aggregation", "strategy"), "fedavg (default)");
        assert_eq!(shown("aggregation", "clip_median_factor"), "3.0 (default)");
        assert_eq!(shown("aggregation", "max_update_norm"), "none (default)");
        assert_eq!(shown("quorum", "sites"), "2");
        assert_eq!(shown("quorum", "sites_per_class"), "0 (default)");
        assert_eq!(shown("quorum", "late"), "refuse (default)");
        assert_eq!(shown("participants", "leave_out"), "none (default)");
        assert_eq!(shown("evaluation.gate", "evaluators"), "none (default)");
        assert_eq!(shown("preprocessing", "patch"), "96, 96, 96");
        assert_eq!(shown("sampling", "foreground_probability"), "0.667");
    }

    #[test]
    fn what_was_chosen_is_shown_without_what_it_puts_out_of_force() {
        let site = |name: &str| -> SiteId { name.parse().unwrap() };
        let document = example_study_with(|draft: &mut StudyDraft| {
            draft.aggregation.strategy = Strategy::FedProx;
            draft.aggregation.proximal_mu = Some(0.1);
            draft.aggregation.clip_norm = Some(5.0);
            draft.quorum.late = Late::NextRound;
            draft.quorum.sites_per_class = 1;
            draft.participants.leave_out = vec![site("north"), site("west")];
            draft.evaluation.gate = Some(Gate { evaluators: vec![site("st-mary")], timeout_s: 60 });
        });
        let shown = |section, key| value(&document, section, key);
        assert_eq!(shown("aggregation", "strategy").unwrap(), "fedprox");
        assert_eq!(shown("aggregation", "proximal_mu").unwrap(), "0.1");
        assert_eq!(shown("aggregation", "clip_norm").unwrap(), "5.0");
        assert_eq!(shown("aggregation", "clip_median_factor"), None);
        assert_eq!(shown("aggregation", "momentum"), None);
        assert_eq!(shown("quorum", "late").unwrap(), "next-round");
        assert_eq!(shown("quorum", "staleness_weight").unwrap(), "0.5 (default)");
        assert_eq!(shown("quorum", "sites_per_class").unwrap(), "1");
        assert_eq!(shown("participants", "leave_out").unwrap(), "north, west");
        assert_eq!(shown("evaluation.gate", "timeout_s").unwrap(), "60");
    }

    #[test]
    fn every_key_that_a_study_can_show_is_listed() {
        let mut study = example_study().study().clone();
        study.evaluation.nsd_tolerance_mm.classes.clear();
        let mut shown = BTreeSet::new();
        let mut show = |study: &Study| shown.extend(study.settings().iter().map(Setting::path));
        for strategy in [
            Strategy::FedAvg,
            Strategy::FedProx,
            Strategy::ServerMomentum,
            Strategy::FedAdam,
            Strategy::TrimmedMean,
        ] {
            study.aggregation.strategy = strategy;
            show(&study);
        }
        study.model.backbone = Backbone::SwinUnetr;
        (study.aggregation.strategy, study.aggregation.weights) =
            (Strategy::FedAvg, Weighting::ClassBalanced);
        study.aggregation.clip_norm = Some(5.0);
        study.sampling.augmentation.zoom_probability = 0.5;
        study.sampling.augmentation.intensity_shift_probability = 0.5;
        study.quorum.late = Late::NextRound;
        study.evaluation.gate = Some(Gate { evaluators: Vec::new(), timeout_s: 60 });
        show(&study);
        assert_eq!(shown, BTreeSet::from(KEYS.map(str::to_owned)));
    }

    #[test]
    fn a_strategy_shows_its_own_keys_with_their_defaults() {
        let document = example_study_with(|draft| {
            draft.aggregation.strategy = Strategy::FedAdam;
            draft.aggregation.server_lr = 0.01;
        });
        let shown = |key| value(&document, "aggregation", key);
        assert_eq!(shown("beta_1").unwrap(), "0.9 (default)");
        assert_eq!(shown("tau").unwrap(), "0.001 (default)");
        assert_eq!(shown("server_lr").unwrap(), "0.01");
        assert_eq!(shown("trim"), None);
    }
}
