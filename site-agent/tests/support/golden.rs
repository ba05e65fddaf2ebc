//! The golden files, and which test compares which of them.
//!
//! A test can only open a file that [`COMPARED`] lists under that test's name, and fails unless it opens all of those;
//! `parity_manifest` walks the manifest and fails on a file in no list. So no file can be forgotten, and none listed
//! without being read. Of a JSON file each top key has a test that must ask for it, or a reason why none does. Unit tests
//! of the crate include this file, for the same promise.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    ops::Index,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use serde_json::Value;

/// A golden file and the test that compares it: source file below the crate, function.
pub(crate) type Comparison = (&'static str, &'static str, &'static str);

const MODEL: &str = "tests/parity_model.rs";
const SWIN: &str = "tests/parity_swin.rs";
const FLOAT64: &str = "tests/parity_float64.rs";
const CHECKPOINT: &str = "tests/parity_checkpoint.rs";
const PREPROCESS: &str = "src/data/preprocess/tests.rs";
const LABELS: &str = "src/data/labels/tests.rs";
const SLIDING_WINDOW: &str = "src/infer/sliding_window/tests.rs";
const POSTPROCESS: &str = "src/infer/postprocess/tests.rs";
const MERGE: &str = "src/infer/merge.rs";
const WINDOWS: &str = "src/kernels/windows.rs";
/// Tests of `common`, which opens the files on its own.
const METRICS: &str = "../common/src/metrics/golden.rs";
const MERGE_TABLES: &str = "../common/src/label_map/merge.rs";

/// The files that are compared, once for each test that does.
pub(crate) const COMPARED: &[Comparison] = &[
    ("hash_examples.json", MODEL, "the_hash_fill_gives_the_worked_values"),
    ("a_unet_full.json", MODEL, "the_full_size_model_agrees_in_every_stage"),
    ("a_unet_full.safetensors", MODEL, "the_full_size_model_agrees_in_every_stage"),
    ("a_unet_full.json", MODEL, "the_full_size_model_agrees_in_every_gradient"),
    ("a_unet_full.safetensors", MODEL, "the_full_size_model_agrees_in_every_gradient"),
    ("a_unet_full.json", FLOAT64, "the_full_size_model_agrees_in_float64"),
    ("a_unet_full.safetensors", FLOAT64, "the_full_size_model_agrees_in_float64"),
    ("b_swinunetr_full.json", SWIN, "the_full_size_swin_unetr_agrees_in_every_stage"),
    ("b_swinunetr_full.safetensors", SWIN, "the_full_size_swin_unetr_agrees_in_every_stage"),
    ("d_swin_f12.json", SWIN, "the_small_swin_unetr_agrees_in_every_stage_and_gradient"),
    ("d_swin_f12_forward.safetensors", SWIN, "the_small_swin_unetr_agrees_in_every_stage_and_gradient"),
    ("d_swin_pieces.json", SWIN, "blocks_and_merging_agree_by_themselves"),
    ("d_swin_pieces.safetensors", SWIN, "blocks_and_merging_agree_by_themselves"),
    ("d_swin_pieces.json", WINDOWS, "regions_keep_apart_as_many_pairs_as_in_the_reference"),
    ("d_swin_pieces.json", WINDOWS, "rows_of_relative_positions_are_those_of_the_reference"),
    ("d_swin_f12.json", FLOAT64, "the_small_swin_unetr_agrees_in_float64"),
    ("d_swin_pieces.json", FLOAT64, "blocks_and_merging_agree_in_float64"),
    ("d_swin_pieces.safetensors", FLOAT64, "blocks_and_merging_agree_in_float64"),
    ("c_unet_w8_forward.safetensors", FLOAT64, "the_small_model_agrees_in_float64"),
    ("c_unet_w8_grads_volume_dice.safetensors", FLOAT64, "the_small_model_agrees_in_float64"),
    ("c_unet_w8.json", MODEL, "the_small_model_agrees_in_every_stage"),
    ("c_unet_w8_weights.safetensors", MODEL, "the_small_model_agrees_in_every_stage"),
    ("c_unet_w8_forward.safetensors", MODEL, "the_small_model_agrees_in_every_stage"),
    ("c_unet_w8.json", MODEL, "the_small_model_agrees_in_every_gradient"),
    ("c_unet_w8_forward.safetensors", MODEL, "the_small_model_agrees_in_every_gradient"),
    ("c_unet_w8_grads_volume_dice.safetensors", MODEL, "the_small_model_agrees_in_every_gradient"),
    ("c_unet_w8.json", MODEL, "the_small_model_agrees_with_dice_per_slice"),
    ("c_unet_w8_forward.safetensors", MODEL, "the_small_model_agrees_with_dice_per_slice"),
    ("c_unet_w8.json", MODEL, "one_adamw_step_agrees"),
    ("c_unet_w8_grads_volume_dice.safetensors", MODEL, "one_adamw_step_agrees"),
    ("c_unet_w8_adamw_step1.safetensors", MODEL, "one_adamw_step_agrees"),
    ("e_head.json", MODEL, "the_head_agrees_with_text_and_with_a_learned_table"),
    ("e_head_word.safetensors", MODEL, "the_head_agrees_with_text_and_with_a_learned_table"),
    ("e_head_rand.safetensors", MODEL, "the_head_agrees_with_text_and_with_a_learned_table"),
    ("f_masked_loss.json", MODEL, "the_masked_loss_agrees_in_every_case"),
    ("f_masked_loss.safetensors", MODEL, "the_masked_loss_agrees_in_every_case"),
    ("g_lr_code_default.csv", MODEL, "the_schedules_agree"),
    ("g_lr_paper_50_warmup.csv", MODEL, "the_schedules_agree"),
    ("g_lr_small.csv", MODEL, "the_schedules_agree"),
    ("i_preprocess.json", PREPROCESS, "every_golden_case_is_prepared_as_published"),
    ("i_preprocess.safetensors", PREPROCESS, "every_golden_case_is_prepared_as_published"),
    ("i_lps_oblique_image.nii.gz", PREPROCESS, "every_golden_case_is_prepared_as_published"),
    ("i_ras_plain_image.nii.gz", PREPROCESS, "every_golden_case_is_prepared_as_published"),
    ("i_permuted_image.nii.gz", PREPROCESS, "every_golden_case_is_prepared_as_published"),
    ("i_downsample_image.nii.gz", PREPROCESS, "every_golden_case_is_prepared_as_published"),
    ("i_preprocess.json", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_preprocess.safetensors", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_lps_oblique_image.nii.gz", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_ras_plain_image.nii.gz", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_permuted_image.nii.gz", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_downsample_image.nii.gz", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_lps_oblique_label.nii.gz", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_ras_plain_label.nii.gz", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_permuted_label.nii.gz", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_downsample_label.nii.gz", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_preprocess.json", PREPROCESS, "every_golden_prediction_returns_to_the_grid_of_its_file"),
    ("i_preprocess.safetensors", PREPROCESS, "every_golden_prediction_returns_to_the_grid_of_its_file"),
    ("i_lps_oblique_image.nii.gz", PREPROCESS, "every_golden_prediction_returns_to_the_grid_of_its_file"),
    ("i_ras_plain_image.nii.gz", PREPROCESS, "every_golden_prediction_returns_to_the_grid_of_its_file"),
    ("i_permuted_image.nii.gz", PREPROCESS, "every_golden_prediction_returns_to_the_grid_of_its_file"),
    ("i_downsample_image.nii.gz", PREPROCESS, "every_golden_prediction_returns_to_the_grid_of_its_file"),
    ("j_label_transfer.json", LABELS, "label_transfer_equals_the_reference_in_all_21_cases"),
    ("j_label_transfer.safetensors", LABELS, "label_transfer_equals_the_reference_in_all_21_cases"),
    ("h_sliding_window.json", SLIDING_WINDOW, "importance_maps_equal_the_reference"),
    ("h_sliding_window.safetensors", SLIDING_WINDOW, "importance_maps_equal_the_reference"),
    ("h_sliding_window.json", SLIDING_WINDOW, "windows_start_where_the_reference_starts_them"),
    ("h_sliding_window.safetensors", SLIDING_WINDOW, "windows_start_where_the_reference_starts_them"),
    ("h_sliding_window.json", SLIDING_WINDOW, "blended_logits_equal_the_reference"),
    ("h_sliding_window.safetensors", SLIDING_WINDOW, "blended_logits_equal_the_reference"),
    ("k_postprocess.json", POSTPROCESS, "cleaned_masks_equal_the_reference_in_every_case"),
    ("k_postprocess.safetensors", POSTPROCESS, "cleaned_masks_equal_the_reference_in_every_case"),
    ("k_postprocess.json", MERGE, "merged_label_maps_equal_the_reference"),
    ("k_postprocess.safetensors", MERGE, "merged_label_maps_equal_the_reference"),
    ("k_postprocess.json", MERGE_TABLES, "every_published_merge_table_is_that_of_its_label_map"),
    ("k_postprocess.json", METRICS, "overlap_counts_give_the_reference_numbers"),
    ("k_postprocess.safetensors", METRICS, "overlap_counts_give_the_reference_numbers"),
    ("k_postprocess.json", METRICS, "surface_distances_are_the_reference_numbers"),
    ("k_postprocess.safetensors", METRICS, "surface_distances_are_the_reference_numbers"),
    ("l_unet_w2_layoutA.pth", CHECKPOINT, "both_layouts_are_read_with_every_tensor_as_it_was_made"),
    ("l_swin_f12_layoutB.pth", CHECKPOINT, "both_layouts_are_read_with_every_tensor_as_it_was_made"),
    ("l_unet_w2_layoutA.pth", CHECKPOINT, "both_layouts_come_back_to_the_bit"),
    ("l_swin_f12_layoutB.pth", CHECKPOINT, "both_layouts_come_back_to_the_bit"),
    ("l_unet_w2_genesis.pt", CHECKPOINT, "a_pre_trained_backbone_is_read_without_its_output"),
];

/// Tensors that a test passes over: file, test, part of their names, and why that loses nothing.
pub(crate) const PASSED_OVER: &[(&str, &str, &str, Why)] = &[
    ("a_unet_full.safetensors", "the_full_size_model_agrees_in_every_gradient", "act.", FULL_STAGES),
    ("a_unet_full.safetensors", "the_full_size_model_agrees_in_every_gradient", "logits", FULL_STAGES),
    ("a_unet_full.safetensors", "the_full_size_model_agrees_in_float64", "act.", FULL_STAGES),
    ("c_unet_w8_forward.safetensors", "the_small_model_agrees_in_float64", "act.", SMALL_STAGES),
    ("c_unet_w8_forward.safetensors", "the_small_model_agrees_in_every_gradient", "act.", SMALL_STAGES),
    ("c_unet_w8_forward.safetensors", "the_small_model_agrees_in_every_gradient", "input", SMALL_STAGES),
    ("c_unet_w8_forward.safetensors", "the_small_model_agrees_in_every_gradient", "logits", SMALL_STAGES),
    ("c_unet_w8_forward.safetensors", "the_small_model_agrees_with_dice_per_slice", "act.", SMALL_STAGES),
    ("c_unet_w8_forward.safetensors", "the_small_model_agrees_with_dice_per_slice", "input", SMALL_STAGES),
    ("c_unet_w8_forward.safetensors", "the_small_model_agrees_with_dice_per_slice", "logits", SMALL_STAGES),
    (
        "c_unet_w8_forward.safetensors",
        "the_small_model_agrees_in_every_stage",
        "target",
        Why::ReadBy("the_small_model_agrees_in_every_gradient"),
    ),
    ("c_unet_w8_weights.safetensors", "the_small_model_agrees_in_every_stage", ".running_", NO_BUFFERS),
    ("c_unet_w8_weights.safetensors", "the_small_model_agrees_in_every_stage", ".num_batches_", NO_BUFFERS),
    ("k_postprocess.safetensors", "cleaned_masks_equal_the_reference_in_every_case", "merge.", MERGED),
    ("k_postprocess.safetensors", "cleaned_masks_equal_the_reference_in_every_case", "metric.", MEASURED),
    ("k_postprocess.safetensors", "merged_label_maps_equal_the_reference", ".post", CLEANED),
    ("k_postprocess.safetensors", "merged_label_maps_equal_the_reference", "metric.", MEASURED),
    ("k_postprocess.safetensors", "overlap_counts_give_the_reference_numbers", ".pred", CLEANED),
    ("k_postprocess.safetensors", "overlap_counts_give_the_reference_numbers", ".post", CLEANED),
    ("k_postprocess.safetensors", "overlap_counts_give_the_reference_numbers", "merge.", MERGED),
    ("k_postprocess.safetensors", "surface_distances_are_the_reference_numbers", ".pred", CLEANED),
    ("k_postprocess.safetensors", "surface_distances_are_the_reference_numbers", ".post", CLEANED),
    ("k_postprocess.safetensors", "surface_distances_are_the_reference_numbers", "merge.", MERGED),
];

/// Top keys of JSON files that another test has to ask for than the first that [`COMPARED`] lists for the file, or none has:
/// file, part of their names, and why. Of several entries the first counts.
pub(crate) const ASKED_ELSEWHERE: &[(&str, &str, Why)] = &[
    ("a_unet_full.json", "grads_", Why::ReadBy("the_full_size_model_agrees_in_every_gradient")),
    ("a_unet_full.json", "names", NAMES),
    ("a_unet_full.json", "logits_f32_err", LOGITS),
    ("b_swinunetr_full.json", "logits_f32_err", LOGITS),
    ("b_swinunetr_full.json", "input", WORDS),
    ("c_unet_w8.json", "loss_f32", Why::NotOurs("the reference's own rounding; `loss` is in float64")),
    ("c_unet_w8.json", "loss", SMALL_GRADIENTS),
    ("c_unet_w8.json", "grad_noise", SMALL_GRADIENTS),
    ("c_unet_w8.json", "grads_per_slice", Why::ReadBy("the_small_model_agrees_with_dice_per_slice")),
    ("c_unet_w8.json", "adamw", Why::ReadBy("one_adamw_step_agrees")),
    ("c_unet_w8.json", "running_stats", NO_BUFFERS),
    ("c_unet_w8.json", "names", NAMES),
    ("d_swin_f12.json", "input", WORDS),
    ("d_swin_f12.json", "grad_definition", WORDS),
    ("d_swin_pieces.json", "relative_", Why::ReadBy("rows_of_relative_positions_are_those_of_the_reference")),
    ("h_sliding_window.json", "_gaussian", STARTS),
    ("h_sliding_window.json", "_constant", STARTS),
    ("h_sliding_window.json", "predictor", WORDS),
    (
        "h_sliding_window.json",
        "windows_512x512x300",
        Why::NotOurs("the grid is not told: 294 are 7 x 7 x 6, and 512 x 512 x 300 have 10 x 10 x 6"),
    ),
    ("k_postprocess.json", "merge", MERGED),
    ("k_postprocess.json", "metrics", MEASURED),
];

const SMALL_GRADIENTS: Why = Why::ReadBy("the_small_model_agrees_in_every_gradient");
const STARTS: Why = Why::ReadBy("windows_start_where_the_reference_starts_them");
const NAMES: Why =
    Why::NotOurs("paths by which the reference knows what is annotated; ours are lists of classes");
const LOGITS: Why = Why::NotOurs("the read-me says what the logits may be off by");
const WORDS: Why = Why::NotOurs("a description, which the test follows");
const FULL_STAGES: Why = Why::ReadBy("the_full_size_model_agrees_in_every_stage");
const SMALL_STAGES: Why = Why::ReadBy("the_small_model_agrees_in_every_stage");
const CLEANED: Why = Why::ReadBy("cleaned_masks_equal_the_reference_in_every_case");
const MERGED: Why = Why::ReadBy("merged_label_maps_equal_the_reference");
const MEASURED: Why = Why::ReadBy("overlap_counts_give_the_reference_numbers");
const NO_BUFFERS: Why = Why::NotOurs("our batch normalisation keeps no running statistics");

/// Why a test may pass over a tensor.
pub(crate) enum Why {
    /// This test compares it.
    ReadBy(&'static str),
    /// Our model has no such thing, for this reason.
    NotOurs(&'static str),
}

/// Files of the manifest that hold no numbers.
pub(crate) const PROSE: &[&str] = &["README.md"];

/// The folder of golden files, open for the running test.
pub(crate) struct Golden {
    folder: PathBuf,
    pub(super) test: String,
    opened: RefCell<BTreeSet<String>>,
}

impl Golden {
    /// The golden files beside the project, or `None`, said loudly, where they are absent.
    ///
    /// With `CONSILIUM_REQUIRE_SHARED=1` their absence is a failure.
    pub(crate) fn open() -> Option<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden");
        if folder.is_dir() {
            let thread = std::thread::current().name().unwrap_or_default().to_owned();
            let test = thread.rsplit("::").next().unwrap_or_default().to_owned();
            return Some(Self { folder, test, opened: RefCell::default() });
        }
        let required = std::env::var("CONSILIUM_REQUIRE_SHARED").is_ok_and(|value| value == "1");
        assert!(!required, "golden files are required and absent");
        println!("SKIPPED: no golden files beside the project; nothing was compared");
        None
    }

    /// Where a file is. Only files that are listed for the running test can be had.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        assert!(
            self.listed().any(|name| name == file),
            "`{file}` is not listed as compared by `{}`",
            self.test
        );
        self.opened.borrow_mut().insert(file.to_owned());
        self.folder.join(file)
    }

    /// A file's bytes, as [`Self::path`].
    pub(crate) fn bytes(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// The manifest of all files.
    pub(crate) fn manifest(&self) -> Value {
        let text = std::fs::read(self.folder.join("MANIFEST.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// A JSON file of one form throughout, which is read whole.
    pub(crate) fn json<T: DeserializeOwned>(&self, file: &str) -> T {
        serde_json::from_slice(&self.bytes(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// A JSON file of many things, each by its key.
    pub(crate) fn facts(&self, file: &str) -> Facts {
        let facts: BTreeMap<String, Value> = self.json(file);
        for (_, part, _) in ASKED_ELSEWHERE.iter().filter(|(of, ..)| *of == file) {
            assert!(facts.keys().any(|key| key.contains(part)), "{file} has no key of `{part}`");
        }
        let unasked = facts.keys().filter(|key| asks(file, key) == Some(self.test.as_str())).cloned();
        Facts { file: file.to_owned(), unasked: RefCell::new(unasked.collect()), facts }
    }

    fn listed(&self) -> impl Iterator<Item = &'static str> {
        COMPARED.iter().filter(|&&(.., by)| by == self.test).map(|&(file, ..)| file)
    }
}

/// The test that has to ask for a top key of a JSON file.
fn asks(file: &str, key: &str) -> Option<&'static str> {
    match ASKED_ELSEWHERE.iter().find(|(of, part, _)| *of == file && key.contains(part)) {
        Some((.., Why::ReadBy(test))) => Some(*test),
        Some((.., Why::NotOurs(_))) => None,
        None => COMPARED.iter().find(|(of, ..)| *of == file).map(|&(.., test)| test),
    }
}

/// What a JSON file says, by its top keys. Dropping it fails the test if it did not ask for one that it has to ask for.
pub(crate) struct Facts {
    file: String,
    facts: BTreeMap<String, Value>,
    unasked: RefCell<BTreeSet<String>>,
}

impl<Key: AsRef<str> + ?Sized> Index<&Key> for Facts {
    type Output = Value;

    fn index(&self, key: &Key) -> &Value {
        let key = key.as_ref();
        self.unasked.borrow_mut().remove(key);
        self.facts.get(key).unwrap_or_else(|| panic!("{} has no key `{key}`", self.file))
    }
}

impl Drop for Facts {
    fn drop(&mut self) {
        let (unasked, failed) = (self.unasked.borrow(), std::thread::panicking());
        assert!(failed || unasked.is_empty(), "not asked for in {}: {unasked:?}", self.file);
    }
}

/// The largest difference of two values in the same place; no number where one of them is none, so that no tolerance allows it.
pub(crate) fn farthest(got: &[f32], golden: &[f32]) -> f32 {
    assert_eq!(got.len(), golden.len(), "number of values");
    let apart = got.iter().zip(golden).map(|(got, golden)| (got - golden).abs());
    // To `f32::max` what is no number is nothing; in this order it is the largest.
    apart.max_by(f32::total_cmp).unwrap_or(0.0)
}

/// A test that passed has opened everything that it is listed for.
impl Drop for Golden {
    fn drop(&mut self) {
        let opened = self.opened.borrow();
        let unopened: Vec<_> = self.listed().filter(|&file| !opened.contains(file)).collect();
        let failed = std::thread::panicking();
        assert!(failed || unopened.is_empty(), "listed and not opened by `{}`: {unopened:?}", self.test);
    }
}
