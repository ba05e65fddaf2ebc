//! Golden case (d): the gradients of the small Swin UNETR, and its pieces by themselves.

use burn::tensor::{Device, Tensor};
use site_agent::model::{
    Features, Gradients, HostTensor, NamedTensors, PatchMerging, SwinBlock, SwinMerging, UniversalModel,
    parameters,
};

use super::compare::assert_all_within;
use super::golden::Golden;
use super::hash_fill;
use super::under_test::{to_device, to_host};

/// Gradients of the objective that the golden file defines.
pub(crate) fn small_swin_gradients(model: &UniversalModel, features: Features) -> NamedTensors {
    let weighted = |name: &str, x: Tensor<5>| {
        let upstream = hash_fill::sym(name, &x.dims());
        let numbers = upstream.values().len() as f64;
        (x.clone() * to_device(&upstream, &x.device())).sum().div_scalar(numbers.sqrt())
    };
    let decoder = weighted("case_d.grad_out", features.decoder);
    model.gradients(&(decoder + weighted("case_d.grad_dec4", features.bottleneck))).export()
}

/// Compares all pieces in the number format of the device, which is one to train on; `allowed` is the absolute difference,
/// beside as much relative.
pub(crate) fn assert_pieces_agree(golden: &Golden, allowed: f64, device: &Device) {
    let json = golden.facts("d_swin_pieces.json");
    let tensors = golden.tensors("d_swin_pieces.safetensors");
    let close = |what: &str, got: &[f32], golden: &HostTensor| {
        assert_all_within(what, got, golden.values(), |golden| allowed * (1.0 + golden.abs()));
    };
    for (tag, space) in [("blk_9_10_8", [9, 10, 8]), ("blk_4_5_9", [4, 5, 9]), ("blk_6_6_6", [6, 6, 6])] {
        assert_eq!(json[tag]["dims"], serde_json::json!(space));
        for (prefix, shifted) in [(format!("{tag}.s0."), false), (format!("{tag}.s3."), true)] {
            let tensor = |name: &str| &tensors[&format!("{prefix}{name}")];
            let block = SwinBlock::new(12, 3, device);
            let weights = hash_fill::weights_below(&prefix, &block);
            let block = parameters::load(block, &weights).unwrap();
            let voxels = space.iter().product();
            let tokens = |x: &HostTensor| -> Tensor<3> { to_device::<5>(x, device).reshape([1, voxels, 12]) };
            let x = tokens(tensor("x")).require_grad();
            let y = block.forward(x.clone(), space, shifted);
            close(&format!("{prefix}y"), &to_host(y.clone()), tensor("y"));

            let [sx, sy, sz] = space;
            let upstream = hash_fill::sym(&format!("{prefix}g"), &[1, sx, sy, sz, 12]);
            let backward = (y * tokens(&upstream)).sum().backward();
            close(&format!("{prefix}x"), &to_host(x.grad(&backward).unwrap()), tensor("grad_x"));
            let gradients = Gradients::from_backward(&block, &backward).export();
            let table = &gradients["attn.relative_position_bias_table"];
            close(&format!("{prefix}table"), table.values(), tensor("grad_table"));
            close(&format!("{prefix}qkv"), gradients["attn.qkv.weight"].values(), tensor("grad_qkv_w"));
        }
    }
    let device = &device.clone().without_autodiff();
    let merging = SwinMerging::new(12, PatchMerging::Monai0_9, device);
    let weights = hash_fill::weights_below("merge.", &merging);
    let merging = parameters::load(merging, &weights).unwrap();
    let x = to_device::<5>(&tensors["merge.x"], device).reshape([1, 48, 12]);
    close("merge", &to_host(merging.forward(x, [4, 6, 2])), &tensors["merge.y"]);
}
