//! The golden files, and which test compares which of them.
//!
//! A test can only open a file that [`COMPARED`] lists under that test's name; `parity_manifest` walks the manifest and
//! fails on a file in neither list. So no file can be forgotten, and none listed without being read.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::de::DeserializeOwned;
use site_agent::model::HostTensor;

/// A golden file and the test that compares it: source file below the crate, function.
pub(crate) type Comparison = (&'static str, &'static str, &'static str);

const MODEL: &str = "tests/parity_model.rs";
const FLOAT64: &str = "tests/parity_float64.rs";
const PREPROCESS: &str = "src/data/preprocess/tests.rs";
const LABELS: &str = "src/data/labels/tests.rs";
const SLIDING_WINDOW: &str = "src/infer/sliding_window/tests.rs";

/// Files that the parity tests of this folder compare.
pub(crate) const COMPARED: &[Comparison] = &[
    ("hash_examples.json", MODEL, "the_hash_fill_gives_the_worked_values"),
    ("a_unet_full.json", MODEL, "the_full_size_model_agrees_in_every_stage_and_gradient"),
    ("a_unet_full.safetensors", MODEL, "the_full_size_model_agrees_in_every_stage_and_gradient"),
    ("a_unet_full.json", FLOAT64, "the_full_size_model_agrees_in_float64"),
    ("a_unet_full.safetensors", FLOAT64, "the_full_size_model_agrees_in_float64"),
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
];

/// Files that unit tests of other modules compare.
pub(crate) const COMPARED_ELSEWHERE: &[Comparison] = &[
    ("i_preprocess.json", PREPROCESS, "every_golden_case_is_prepared_as_published"),
    ("i_preprocess.safetensors", PREPROCESS, "every_golden_case_is_prepared_as_published"),
    ("i_lps_oblique_image.nii.gz", PREPROCESS, "every_golden_case_is_prepared_as_published"),
    ("i_ras_plain_image.nii.gz", PREPROCESS, "every_golden_case_is_prepared_as_published"),
    ("i_permuted_image.nii.gz", PREPROCESS, "every_golden_case_is_prepared_as_published"),
    ("i_downsample_image.nii.gz", PREPROCESS, "every_golden_case_is_prepared_as_published"),
    ("i_lps_oblique_label.nii.gz", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_ras_plain_label.nii.gz", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_permuted_label.nii.gz", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_downsample_label.nii.gz", PREPROCESS, "every_golden_label_goes_the_way_of_its_image"),
    ("i_preprocess.safetensors", PREPROCESS, "every_golden_prediction_returns_to_the_grid_of_its_file"),
    ("j_label_transfer.json", LABELS, "label_transfer_equals_the_reference_in_all_21_cases"),
    ("j_label_transfer.safetensors", LABELS, "label_transfer_equals_the_reference_in_all_21_cases"),
    ("h_sliding_window.json", SLIDING_WINDOW, "blended_logits_equal_the_reference"),
    ("h_sliding_window.safetensors", SLIDING_WINDOW, "blended_logits_equal_the_reference"),
];

/// Files left to the issue "The Universal Model, whole and faithful": the Swin backbone,
/// post-processing, checkpoints of the reference.
pub(crate) const LEFT: &[&str] = &[
    "b_swinunetr_full.json",
    "b_swinunetr_full.safetensors",
    "d_swin_f12.json",
    "d_swin_f12_forward.safetensors",
    "d_swin_pieces.json",
    "d_swin_pieces.safetensors",
    "k_postprocess.json",
    "k_postprocess.safetensors",
    "l_swin_f12_layoutB.pth",
    "l_unet_w2_genesis.pt",
    "l_unet_w2_layoutA.pth",
];

/// Files of the manifest that hold no numbers.
pub(crate) const PROSE: &[&str] = &["README.md"];

/// The folder of golden files.
pub(crate) struct Golden {
    folder: PathBuf,
}

impl Golden {
    /// The golden files beside the project, or `None`, said loudly, where they are absent.
    ///
    /// With `CONSILIUM_REQUIRE_SHARED=1` their absence is a failure.
    pub(crate) fn open() -> Option<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden");
        if folder.is_dir() {
            return Some(Self { folder });
        }
        let required = std::env::var("CONSILIUM_REQUIRE_SHARED").is_ok_and(|value| value == "1");
        assert!(!required, "golden files are required and absent");
        println!("SKIPPED: no golden files beside the project; nothing was compared");
        None
    }

    /// A file's bytes. Only files that are listed for the running test can be read.
    pub(crate) fn bytes(&self, file: &str) -> Vec<u8> {
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        let listed = COMPARED.iter().any(|&(name, _, by)| name == file && by == test);
        assert!(listed, "`{file}` is not listed as compared by `{test}`");
        self.unlisted(file)
    }

    /// A file's bytes, for the walk over the manifest.
    pub(crate) fn unlisted(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, file: &str) -> T {
        serde_json::from_slice(&self.bytes(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// The F32 tensors of a file, and its U8 tensors widened. Integer buffers (batch counters) are left out: our model
    /// has none.
    pub(crate) fn tensors(&self, file: &str) -> BTreeMap<String, HostTensor> {
        let bytes = self.bytes(file);
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let decode = |(name, view): (&str, TensorView<'_>)| {
            let values = match view.dtype() {
                Dtype::F32 => view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
                Dtype::U8 => view.data().iter().map(|&b| f32::from(b)).collect(),
                Dtype::I64 => return None,
                other => panic!("{file}: {name} is {other:?}"),
            };
            Some((name.to_owned(), HostTensor::new(view.shape().to_vec(), values).unwrap()))
        };
        tensors.iter().filter_map(decode).collect()
    }
}
