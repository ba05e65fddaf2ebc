//! What each stage of a model gives, by the reference's names, and the golden values of it.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, s};
use serde_json::Value;
use site_agent::model::{Features, UniversalModel};

use super::compare::{assert_agrees, assert_stats_agree, number, stats};
use super::golden_tensors::GoldenTensors;
use super::under_test::{all_channels, to_host};

pub(crate) type Stages = BTreeMap<&'static str, Tensor<5>>;

/// The stages of the backbone, and its features.
pub(crate) fn of_backbone(model: &UniversalModel, x: Tensor<5>) -> (Stages, Features) {
    let mut stages = Stages::new();
    let show = |name, output: &Tensor<5>| assert!(stages.insert(name, output.clone()).is_none(), "{name}");
    let features = model.features_by_stage(x, show).unwrap();
    (stages, features)
}

/// The stages of the backbone and of the head.
pub(crate) fn of_model(model: &UniversalModel, x: Tensor<5>) -> Stages {
    let (mut stages, features) = of_backbone(model, x);
    let image = model.head().image_feature(features.bottleneck);
    let parameters = model.head().class_parameters(image.clone(), &all_channels());
    stages.insert("gap", image.unsqueeze());
    stages.insert("params", parameters.unsqueeze());
    stages.insert("precls", model.head().voxel_features(features.decoder));
    stages
}

/// Every `n`-th voxel of each axis, from `first` on; the axes begin at `axis`.
pub(crate) fn every_nth(x: Tensor<5>, axis: usize, first: isize, n: isize) -> Tensor<5> {
    (axis..axis + 3).fold(x, |x, axis| x.slice_dim(axis, s![first..;n]))
}

/// Compares the statistics of every stage that the file tells of.
pub(crate) fn assert_stage_stats_agree(stages: &Stages, golden: &Value) {
    for (name, stage) in golden.as_object().unwrap() {
        let Some(got) = stages.get(name.as_str()) else { panic!("no stage is called `{name}`") };
        let allowed = (10.0 * number(&stage["f32_err"])).max(1e-5);
        assert_stats_agree(name, &to_host(got.clone()), &stats(&stage["stats"]), allowed);
    }
}

/// A tensor of the file, the stage that it is of, the axis at which that one's space begins, and every how many-th voxel it
/// has.
pub(crate) type Part<'a> = (&'a str, &'a str, usize, isize);

/// Compares the stages that the file has, in whole or in part; `error` is that of the reference's f32 for a stage.
pub(crate) fn assert_parts_agree(
    stages: &Stages,
    golden: &GoldenTensors,
    parts: &[Part<'_>],
    error: impl Fn(&str) -> f64,
) {
    for &(name, stage, axis, every) in parts {
        let got = to_host(every_nth(stages[stage].clone(), axis, 0, every));
        assert_agrees(name, &got, golden[name].values(), error(stage));
    }
}
