//! The masked loss in burn's own operations, for devices that [`kernels`](crate::kernels) do not serve.
//!
//! The gradient with respect to the logits is computed in closed form together with the means: stable for any logit, and no
//! graph of elementwise steps is left behind.

use burn::tensor::{
    IndexingUpdateOp, Int, Tensor,
    activation::{relu, sigmoid},
};

use super::ops::row_sums;

/// Mean cross-entropy and mean Dice loss of logits `[n, k, x, y, z]` over the annotated pairs, each of `dice_terms` terms.
pub(super) fn masked_loss(
    logits: Tensor<5>,
    target: Tensor<5>,
    annotated: &[bool],
    dice_terms: usize,
) -> [Tensor<1>; 2] {
    let shape = logits.dims();
    let [n, k, sx, sy, sz] = shape;
    let pairs: Vec<i32> = (0..).zip(annotated).filter_map(|(pair, &counts)| counts.then_some(pair)).collect();
    let rows = [n * k, dice_terms, sx * sy * sz / dice_terms];
    let (x, y) = (logits.clone().inner().reshape(rows), target.inner().reshape(rows));
    let Parts { bce, dice } = masked_parts(x, y, &pairs);
    [bce, dice].map(|term| with_gradient(term.value, logits.clone(), term.gradient.reshape(shape)))
}

/// The two means over rows `[pairs, Dice terms per pair, voxels per term]`.
struct Parts {
    bce: Term,
    dice: Term,
}

/// A mean and its gradient with respect to the logits.
struct Term {
    value: Tensor<1>,
    gradient: Tensor<3>,
}

/// [`parts`] of the rows in `pairs`; every other row gets a gradient of zero.
fn masked_parts(x: Tensor<3>, y: Tensor<3>, pairs: &[i32]) -> Parts {
    if pairs.len() == x.dims()[0] {
        return parts(x, y);
    }
    let blank = x.zeros_like();
    if pairs.is_empty() {
        let nothing = || Term { value: Tensor::zeros([1], &blank.device()), gradient: blank.clone() };
        return Parts { bce: nothing(), dice: nothing() };
    }
    let index = Tensor::<1, Int>::from_ints(pairs, &x.device());
    let scatter = |Term { value, gradient }| Term {
        value,
        gradient: blank.clone().select_assign(0, index.clone(), gradient, IndexingUpdateOp::Add),
    };
    let Parts { bce, dice } = parts(x.select(0, index.clone()), y.select(0, index.clone()));
    Parts { bce: scatter(bce), dice: scatter(dice) }
}

/// Specification §10, with the smoothing of Dice in the denominator only.
fn parts(x: Tensor<3>, y: Tensor<3>) -> Parts {
    let shape = x.dims();
    let dice_terms = (shape[0] * shape[1]) as f64;
    let voxels = shape.iter().product::<usize>() as f64;
    let p = sigmoid(x.clone());

    let cross_entropy = relu(x.clone()) - x.clone() * y.clone() + x.abs().neg().exp().log1p();
    let sum = |x: Tensor<3>| {
        let sums = row_sums(x.reshape([shape[0] * shape[1], shape[2]]));
        sums.reshape([shape[0], shape[1], 1])
    };
    let bce = Term { value: sum(cross_entropy).sum() / voxels, gradient: (p.clone() - y.clone()) / voxels };

    let overlap = sum(p.clone() * y.clone());
    let size = sum(p.clone() + y.clone()) + 1.0;
    let value = (overlap.clone() / size.clone() * 2.0).mean().neg() + 1.0;
    // d dice/dp = 2 overlap/size² - 2 y/size, and dp/dx = p (1 - p).
    let shrink = overlap / (size.clone() * size.clone()) * (2.0 / dice_terms);
    let reward = size.recip() * (2.0 / dice_terms);
    let slope = p.clone() * (p.neg() + 1.0);
    Parts { bce, dice: Term { value, gradient: slope * (shrink - reward * y) } }
}

/// `value` as a node of the autodiff graph whose gradient with respect to `input` is `gradient`.
fn with_gradient(value: Tensor<1>, input: Tensor<5>, gradient: Tensor<5>) -> Tensor<1> {
    let [n, k, x, y, z] = input.dims();
    let linear = row_sums((input * gradient).reshape([n * k, x * y * z])).sum();
    linear.clone() - linear.detach() + value
}
