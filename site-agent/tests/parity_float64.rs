//! Agreement of the full-size model (the paper's width) with the reference in float64: golden case (a).
//!
//! In float64 nothing hides behind rounding: every gradient has to agree to 1e-7. burn's default number format is one
//! per process and can be set once, hence a test binary with this test alone.

#![allow(clippy::unwrap_used, reason = "a failed step of a test ends it")]

mod support;

use burn::tensor::{Device, DeviceConfig, FloatDType};
use serde_json::Value;
use site_agent::train::loss::{DiceKind, masked_loss};
use support::{
    compare::{assert_gradient_stats_agree, assert_within, number},
    golden::Golden,
    hash_fill,
    under_test::{BTCV, all_classes, annotated, hash_filled, scalar, to_device, to_host},
};

#[test]
fn the_full_size_model_agrees_in_float64() {
    let Some(golden) = Golden::open() else { return };
    let json: Value = golden.json("a_unet_full.json");
    let tensors = golden.tensors("a_unet_full.safetensors");
    Device::flex().configure(DeviceConfig::default().float_dtype(FloatDType::F64)).unwrap();

    let model = hash_filled(32);
    let input = hash_fill::unit("case_a.input", &[1, 1, 32, 32, 32]);
    let logits = model.forward(to_device(&input, &Device::flex()), &all_classes()).unwrap();
    for (i, (got, golden)) in to_host(logits.clone()).iter().zip(tensors["logits"].values()).enumerate() {
        assert!((got - golden).abs() <= 1e-5, "logit {i}: {got}, golden {golden}");
    }
    let target = to_device(&tensors["target"], &Device::flex());
    let loss = masked_loss(logits, target, &annotated(&[&BTCV]), DiceKind::Volume).unwrap();
    assert_within("bce", scalar(&loss.bce), number(&json["loss"]["bce"]), 1e-6);
    assert_within("dice", scalar(&loss.dice), number(&json["loss"]["dice_volume"]), 1e-6);
    assert_gradient_stats_agree(&model, &loss, &json["grads_bce_plus_dice_volume"], |_, _| 1e-7);
}
