//! Agreement of the model with the reference in float64: golden cases (a), the paper's width, (c), and the pieces of (d).
//!
//! In float64 nothing hides behind rounding: every gradient has to agree to 1e-7. What is proved so is the network, and what cards
//! compute it with (`model::card_ops`): the processor's kernels are f32, and held against it beside each of them. burn's default number format is one
//! per process and can be set once, hence a test binary of its own. It is of the processor whatever device is under test: a
//! graphics card need not have float64.

#![allow(clippy::unwrap_used, reason = "a failed step of a test ends it")]

mod support;

use std::sync::Once;

use burn::tensor::{Device, DeviceConfig, FloatDType};
use site_agent::model::Backbone;
use site_agent::train::loss::{DiceKind, masked_loss};
use support::{
    compare::{
        assert_all_within, assert_gradient_stats_agree, assert_stats_agree, assert_within,
        has_no_true_gradient, number, stats,
    },
    golden::Golden,
    hash_fill,
    swin::{assert_pieces_agree, small_swin_gradients},
    under_test::{BTCV, MSD_LIVER, all_classes, annotated, hash_filled_on, scalar, to_device, to_host},
};

fn compute_in_float64() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        Device::flex().configure(DeviceConfig::default().float_dtype(FloatDType::F64)).unwrap();
    });
}

fn cpu() -> Device {
    Device::flex().autodiff()
}

#[test]
fn the_small_model_agrees_in_float64() {
    let Some(golden) = Golden::open() else { return };
    let forward = golden.tensors("c_unet_w8_forward.safetensors");
    let expected = golden.tensors("c_unet_w8_grads_volume_dice.safetensors");
    compute_in_float64();
    let model = hash_filled_on(&cpu(), Backbone::Unet, 8);
    let input = hash_fill::unit("case_c.input", &[2, 1, 16, 16, 24]);
    assert_eq!(input, forward["input"]);
    let logits = model.forward(to_device(&input, &cpu()), &all_classes()).unwrap();
    assert_all_within("logits", &to_host(logits.clone()), forward["logits"].values(), |_| 1e-5);
    let target = to_device(&forward["target"], &cpu());
    let loss = masked_loss(logits, target, &annotated(&[&BTCV, &MSD_LIVER]), DiceKind::Volume).unwrap();
    let gradients = model.gradients(&loss.total()).export();
    assert!(gradients.keys().eq(expected.names()));
    for (name, gradient) in gradients {
        let mut golden = expected[&name].values().to_vec();
        if has_no_true_gradient(&name) {
            // What is stored of 0 is the noise of the reference.
            golden.fill(0.0);
        }
        assert_all_within(&name, gradient.values(), &golden, |golden| 1e-7 + 1e-6 * golden.abs());
    }
}

#[test]
fn the_full_size_model_agrees_in_float64() {
    let Some(golden) = Golden::open() else { return };
    let json = golden.facts("a_unet_full.json");
    let tensors = golden.tensors("a_unet_full.safetensors");
    compute_in_float64();

    let model = hash_filled_on(&cpu(), Backbone::Unet, 32);
    let input = hash_fill::unit("case_a.input", &[1, 1, 32, 32, 32]);
    assert_eq!(input, tensors["input"]);
    let logits = model.forward(to_device(&input, &cpu()), &all_classes()).unwrap();
    assert_all_within("logits", &to_host(logits.clone()), tensors["logits"].values(), |_| 1e-5);
    let target = to_device(&tensors["target"], &cpu());
    let loss = masked_loss(logits, target, &annotated(&[&BTCV]), DiceKind::Volume).unwrap();
    assert_within("bce", scalar(&loss.bce), number(&json["loss"]["bce"]), 1e-6);
    assert_within("dice", scalar(&loss.dice), number(&json["loss"]["dice_volume"]), 1e-6);
    assert_gradient_stats_agree(&model, &loss, &json["grads_bce_plus_dice_volume"], |_, _| 1e-7);
}

#[test]
fn the_small_swin_unetr_agrees_in_float64() {
    let Some(golden) = Golden::open() else { return };
    let json = golden.facts("d_swin_f12.json");
    compute_in_float64();
    let model = hash_filled_on(&cpu(), Backbone::SwinUnetr, 12);
    let input = hash_fill::unit("case_d.input", &[1, 1, 64, 64, 96]);
    let features = model.features(to_device(&input, &cpu())).unwrap();
    assert_stats_agree("out", &to_host(features.decoder.clone()), &stats(&json["out"]), 1e-6);
    assert_stats_agree("dec4", &to_host(features.bottleneck.clone()), &stats(&json["dec4"]), 1e-6);
    let gradients = small_swin_gradients(&model, features);
    for (name, golden) in json["grads"].as_object().unwrap() {
        assert_stats_agree(name, gradients[&format!("backbone.{name}")].values(), &stats(golden), 1e-6);
    }
}

#[test]
fn blocks_and_merging_agree_in_float64() {
    let Some(golden) = Golden::open() else { return };
    compute_in_float64();
    assert_pieces_agree(&golden, 1e-6, &cpu());
}
