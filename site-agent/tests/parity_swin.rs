//! Numeric agreement of the Swin UNETR backbone with the reference (golden cases b and d), in f32.

#![allow(clippy::unwrap_used, reason = "a failed step of a test ends it")]

mod support;

use burn::module::Module as _;
use burn::tensor::Tensor;
use site_agent::model::{Backbone, HostTensor};
use support::{
    compare::{
        assert_agrees, assert_all_within, assert_stats_agree, assert_weights_agree, assert_within, number,
        stats,
    },
    golden::Golden,
    hash_fill,
    stages::{self, assert_parts_agree, assert_stage_stats_agree, every_nth},
    swin::{assert_pieces_agree, small_swin_gradients},
    under_test::{
        CLASSES, all_classes, device_under_test, exported_to_pytorch, hash_filled_backbone, rounding,
        to_device, to_host, training_device,
    },
};

#[test]
fn the_full_size_swin_unetr_agrees_in_every_stage() {
    let Some(golden) = Golden::open() else { return };
    let json = golden.facts("b_swinunetr_full.json");
    let tensors = golden.tensors("b_swinunetr_full.safetensors");
    let model = hash_filled_backbone(Backbone::SwinUnetr, 48);
    let weights = model.export();
    let numbers: usize = weights.values().map(|t| t.values().len()).sum();
    assert_eq!(numbers as f64, number(&json["param_count"]));
    assert_eq!(weights.len(), 161);
    assert_eq!(exported_to_pytorch(Backbone::SwinUnetr) as f64, number(&json["n_state"]));
    assert_weights_agree(&weights, &json["weights"]);

    let input = hash_fill::unit("case_b.input", &[1, 1, 64, 64, 64]);
    let stages = stages::of_model(&model.valid(), to_device(&input, &device_under_test()));
    assert_stage_stats_agree(&stages, &json["acts"]);
    let parts = [
        ("act.encoder10", "encoder10", 2, 1),
        ("act.layers3_out_raw", "swinViT.layers3.0", 2, 1),
        ("act.layers4_out_raw", "swinViT.layers4.0", 2, 1),
        ("act.decoder1_subsampled_8", "decoder1", 2, 8),
        ("act.layers1_block1_subsampled_4", "swinViT.layers1.0.blocks.1", 1, 4),
        ("act.gap", "gap", 2, 1),
        ("act.params", "params", 2, 1),
    ];
    assert_parts_agree(&stages, &tensors, &parts, |stage| number(&json["acts"][stage]["f32_err"]));

    let logits = model.infer(to_device(&input, &device_under_test()), &all_classes()).unwrap();
    let close = |what: &str, got: Tensor<5>, golden: &HostTensor| {
        assert_all_within(what, &to_host(got), golden.values(), |_| 5e-3);
    };
    close("class 6", logits.clone().narrow(1, 5, 1), &tensors["logits_class6"]);
    close("logits", every_nth(logits.clone(), 2, 1, 4), &tensors["logits_subsampled_4_offset1"]);
    let logits = to_host(logits);
    assert_stats_agree("logits", &logits, &stats(&json["logits"]), 5e-3);
    let of_classes = json["logits_per_class"].as_array().unwrap();
    assert_eq!(of_classes.len(), CLASSES);
    for (channel, (logits, golden)) in logits.chunks(64 * 64 * 64).zip(of_classes).enumerate() {
        let (n, values) = (logits.len() as f64, || logits.iter().copied().map(f64::from));
        let mean = values().sum::<f64>() / n;
        let deviation = (values().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        let what = format!("logits of channel {channel}");
        assert_within(&what, mean, number(&golden["mean"]), 5e-3);
        assert_within(&what, deviation, number(&golden["std"]), 5e-3);
        assert_within(&what, values().map(f64::abs).sum(), number(&golden["sum_abs"]), 5e-3 * n);
    }
}

#[test]
fn the_small_swin_unetr_agrees_in_every_stage_and_gradient() {
    let Some(golden) = Golden::open() else { return };
    let json = golden.facts("d_swin_f12.json");
    let tensors = golden.tensors("d_swin_f12_forward.safetensors");
    let model = hash_filled_backbone(Backbone::SwinUnetr, 12);
    let weights = model.export();
    let of_backbone = weights.iter().filter(|(name, _)| name.starts_with("backbone."));
    let numbers: usize = of_backbone.map(|(_, t)| t.values().len()).sum();
    assert_eq!(numbers as f64, number(&json["param_count_backbone"]));

    let input = hash_fill::unit("case_d.input", &[1, 1, 64, 64, 96]);
    let (stages, features) = stages::of_backbone(&model, to_device(&input, &training_device()));
    assert_stage_stats_agree(&stages, &json["acts"]);
    assert_stage_stats_agree(&stages, &json["hidden"]);
    let error = number(&json["out_f32_err"]);
    let parts = [
        ("act.swinViT.layers1.0.blocks.0_sub4", "swinViT.layers1.0.blocks.0", 1, 4),
        ("act.swinViT.layers1.0.blocks.1_sub4", "swinViT.layers1.0.blocks.1", 1, 4),
        ("act.swinViT.layers2.0", "swinViT.layers2.0", 2, 1),
        ("hidden2", "hidden2", 2, 1),
        ("hidden3", "hidden3", 2, 1),
        ("hidden4", "hidden4", 2, 1),
        ("dec4", "encoder10", 2, 1),
        ("out_subsampled_2", "decoder1", 2, 2),
    ];
    assert_parts_agree(&stages, &tensors, &parts, |_| error);
    assert_stats_agree("out", &to_host(features.decoder.clone()), &stats(&json["out"]), 10.0 * error);
    assert_stats_agree("dec4", &to_host(features.bottleneck.clone()), &stats(&json["dec4"]), 10.0 * error);

    let gradients = small_swin_gradients(&model, features);
    for (name, golden) in json["grads"].as_object().unwrap() {
        let got = gradients[&format!("backbone.{name}")].values();
        // Some rectifiers are, in f32, on the other side of zero than in float64. That the float64 run agrees to 1e-6 is shown
        // by `parity_float64`.
        let statistics = stats(golden);
        let largest = statistics.max.abs().max(statistics.min.abs());
        let allowed = rounding() * (2e-3 * largest).max(100.0 * number(&golden["f32_err"]));
        assert_stats_agree(name, got, &statistics, allowed);
        if let Some(whole) = tensors.get(&format!("grad.{name}")) {
            assert_agrees(name, got, whole.values(), allowed / 10.0);
        }
    }
}

#[test]
fn blocks_and_merging_agree_by_themselves() {
    let Some(golden) = Golden::open() else { return };
    // Gradients of weights are sums over up to 720 tokens.
    assert_pieces_agree(&golden, 1e-4, &training_device());
}
