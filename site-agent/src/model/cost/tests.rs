use super::*;
use crate::kernels::windows::Windows;
use crate::model::{
    ClassEmbeddings, DeviceKind, EmbeddingConfig, EmbeddingKind, PatchMerging, UniversalModel, device,
};

const CLIP: EmbeddingConfig = EmbeddingConfig { kind: EmbeddingKind::Imported, rows: 32, width: 512 };

fn config(backbone: Backbone, width: usize) -> ModelConfig {
    ModelConfig { backbone, width, patch_merging: PatchMerging::default(), embedding: CLIP }
}

fn cost(backbone: Backbone, width: usize, patch: [usize; 3]) -> ModelCost {
    ModelCost::of(&config(backbone, width), patch).unwrap()
}

fn stage(stages: &[Stage], name: &str) -> Cost {
    stages.iter().find(|stage| stage.name == name).unwrap().cost
}

#[test]
fn trainable_numbers_are_the_exact_totals_of_the_specification() {
    for (backbone, width, of_backbone, of_head, of_all) in [
        (Backbone::Unet, 32, 19_073_600, 342_817, 19_416_417),
        (Backbone::SwinUnetr, 48, 62_186_610, 408_705, 62_595_315),
    ] {
        let cost = cost(backbone, width, [96; 3]);
        assert_eq!(total(&cost.backbone).parameters, of_backbone, "{backbone:?}");
        assert_eq!(total(&cost.head).parameters, of_head, "{backbone:?}");
        assert_eq!(cost.total().parameters, of_all, "{backbone:?}");
    }
}

#[test]
fn trainable_numbers_are_those_that_a_built_model_has() {
    let one_hot = ClassEmbeddings::one_hot(32, 1.0).unwrap();
    let fixed = EmbeddingConfig { kind: EmbeddingKind::OneHot, rows: 32, width: 32 };
    let learned = EmbeddingConfig { kind: EmbeddingKind::Learned, rows: 32, width: 256 };
    for (backbone, width) in [(Backbone::Unet, 8), (Backbone::SwinUnetr, 12)] {
        for (embedding, table) in [(fixed, Some(&one_hot)), (learned, None)] {
            let config = ModelConfig { embedding, ..config(backbone, width) };
            let model = UniversalModel::new(&config, table, 0, &device(DeviceKind::Cpu).unwrap()).unwrap();
            let built: usize = model.export().values().map(|tensor| tensor.values().len()).sum();
            let counted = ModelCost::of(&config, [64; 3]).unwrap().total().parameters;
            assert_eq!(counted, built as u64, "{backbone:?} {embedding}");
        }
    }
}

#[test]
fn stages_of_the_unet_cost_what_a_hand_computes() {
    let cost = cost(Backbone::Unet, 32, [96; 3]);
    let (full, half) = (96 * 96 * 96, 48 * 48 * 48);
    // 1 -> 32 and 32 -> 64 channels, 3x3x3; a bias and two numbers of the normalisation for each output channel.
    let down = stage(&cost.backbone, "down_tr64");
    assert_eq!(down.parameters, 27 * 32 + 3 * 32 + 27 * 32 * 64 + 3 * 64);
    assert_eq!(down.multiply_adds, full * (27 * 32 + 27 * 32 * 64));
    assert_eq!(down.multiply_adds, 49_686_773_760);
    // Transposed 128 -> 128, 2x2x2 taps from each voxel of the half grid; then 128 + 64 -> 64 and 64 -> 64 on the full one.
    let up = stage(&cost.backbone, "up_tr64");
    assert_eq!(up.parameters, 8 * 128 * 128 + 128 + 27 * 192 * 64 + 3 * 64 + 27 * 64 * 64 + 3 * 64);
    assert_eq!(up.multiply_adds, half * 8 * 128 * 128 + full * 27 * (192 * 64 + 64 * 64));
    assert_eq!(up.multiply_adds, 405_874_409_472);
}

#[test]
fn stages_of_the_swin_unetr_cost_what_a_hand_computes() {
    let cost = cost(Backbone::SwinUnetr, 48, [96; 3]);
    // 48 tokens along each axis in 7 windows of 7 (the last one padded): 343 windows of 343 tokens.
    let tokens = 48 * 48 * 48;
    let maps = 48 * 144 + 48 * 48 + 48 * 192 + 192 * 48;
    let attention = 2 * 343 * 343 * 343 * 48;
    let merging = 24 * 24 * 24 * 384 * 96;
    let first = stage(&cost.backbone, "swinViT.layers1");
    assert_eq!(first.multiply_adds, 2 * (tokens * maps + attention) + merging);
    assert_eq!(first.multiply_adds, 14_372_795_712);
    let biases = 144 + 48 + 192 + 48;
    let block = 4 * 48 + 2197 * 3 + maps + biases;
    assert_eq!(first.parameters, 2 * block + 2 * 384 + 384 * 96);
    // 6 tokens along each axis are one window of 216.
    let last = stage(&cost.backbone, "swinViT.layers4");
    let maps = 12 * 384 * 384;
    assert_eq!(last.multiply_adds, 2 * (216 * maps + 2 * 216 * 216 * 384) + 27 * 3072 * 768);
    // 1 -> 48 and 48 -> 48, 3x3x3, beside a shortcut 1 -> 48; no bias.
    let encoder = stage(&cost.backbone, "encoder1");
    assert_eq!(encoder.parameters, 27 * 48 + 27 * 48 * 48 + 48);
    assert_eq!(encoder.multiply_adds, 96 * 96 * 96 * (27 * 48 + 27 * 48 * 48 + 48));
}

#[test]
fn stages_of_the_head_cost_what_a_hand_computes() {
    let cost = cost(Backbone::Unet, 32, [96; 3]);
    let full = 96 * 96 * 96;
    assert_eq!(stage(&cost.head, "precls_conv").multiply_adds, full * 64 * 8);
    assert_eq!(stage(&cost.head, "GAP").multiply_adds, 512 * 256);
    assert_eq!(stage(&cost.head, "text_to_vision").multiply_adds, 32 * 512 * 256);
    // The image's half of the map once, the class's half for each of 32 classes.
    let controller = stage(&cost.head, "controller");
    assert_eq!(controller.multiply_adds, 256 * 153 + 32 * 256 * 153);
    assert_eq!(controller.parameters, 512 * 153 + 153);
    // 8 -> 8 -> 8 -> 1 at every voxel, for each of 32 classes.
    assert_eq!(stage(&cost.head, "segmentor").multiply_adds, full * 32 * (64 + 64 + 8));
}

#[test]
fn a_patch_of_twice_the_side_has_eight_times_the_convolutions() {
    let (small, large) = (cost(Backbone::Unet, 32, [64; 3]), cost(Backbone::Unet, 32, [128; 3]));
    assert_eq!(total(&large.backbone).multiply_adds, 8 * total(&small.backbone).multiply_adds);
    assert_eq!(large.total().parameters, small.total().parameters);
    let (small, large) = (cost(Backbone::SwinUnetr, 48, [64; 3]), cost(Backbone::SwinUnetr, 48, [128; 3]));
    let convolutions = |cost: &ModelCost| -> u64 {
        let stages = cost.backbone.iter().filter(|stage| stage.name.contains("coder"));
        stages.map(|stage| stage.cost.multiply_adds).sum()
    };
    assert_eq!(convolutions(&large), 8 * convolutions(&small));
}

#[test]
fn windows_are_counted_as_the_kernel_cuts_them() {
    for space in [[48, 48, 48], [9, 10, 8], [4, 5, 9], [7, 7, 7], [2, 2, 4]] {
        for shifted in [false, true] {
            let cut = Windows::new(space, shifted);
            let counted = swin_unetr::windows(space.map(|side| side as u64));
            assert_eq!(counted, (cut.count() as u64, cut.tokens as u64), "{space:?}");
        }
    }
}

#[test]
fn a_patch_that_the_network_refuses_has_no_cost() {
    for patch in [[8, 8, 8], [16, 16, 12], [0, 16, 16]] {
        let refused = ModelCost::of(&config(Backbone::Unet, 8), patch);
        assert!(matches!(refused, Err(ModelError::Patch { multiple: 8, .. })), "{patch:?}");
    }
    assert!(matches!(ModelCost::of(&config(Backbone::Unet, 7), [16; 3]), Err(ModelError::Width { .. })));
}
