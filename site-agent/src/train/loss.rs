//! Masked back-propagation: binary cross-entropy and Dice over the (sample, class) pairs that are annotated.
//!
//! A pair that is not annotated is never read: neither its logits nor its target can change the loss or, bit for bit,
//! any gradient. The gradient with respect to the logits is computed in closed form together with the loss, which is
//! stable for any logit and leaves no graph of elementwise steps behind.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::model::ops;

/// Over what a Dice term sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiceKind {
    /// The whole patch.
    #[default]
    Volume,
    /// Each plane across the first axis by itself; the pair's Dice is the mean over planes.
    Slice,
}

/// The loss of a micro-batch.
#[derive(Clone, Debug)]
pub struct MaskedLoss {
    /// Mean cross-entropy of the annotated pairs; its backward pass carries the closed-form gradient to the logits.
    pub bce: Tensor<1>,
    /// Mean Dice loss of the annotated pairs; as above.
    pub dice: Tensor<1>,
    /// Number of annotated pairs: the weight of this micro-batch among others.
    pub pairs: usize,
}

impl MaskedLoss {
    /// What is minimised: both parts with equal weight.
    pub fn total(&self) -> Tensor<1> {
        self.bce.clone() + self.dice.clone()
    }
}

/// Logits, target and mask that do not belong together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("logits {logits:?} need a target of that shape and a mask of {pairs} pairs; got {target:?} and {mask}", pairs = .logits[0] * .logits[1])]
pub struct LossShapeError {
    /// `[n, k, x, y, z]` of the logits.
    pub logits: [usize; 5],
    /// Shape of the target.
    pub target: [usize; 5],
    /// Length of the mask.
    pub mask: usize,
}

/// The masked loss of logits `[n, k, x, y, z]` against a target of 0 and 1 of the same shape.
///
/// `annotated` says for each (sample, class) pair, `n * k` in C order, whether its data set annotates the class. Every
/// annotated pair weighs the same, whichever sample it is of. Without any pair the loss is 0 and so is its gradient.
/// What the target holds for other pairs does not matter.
///
/// # Errors
///
/// [`LossShapeError`] if the shapes do not belong together.
pub fn masked_loss(
    logits: Tensor<5>,
    target: Tensor<5>,
    annotated: &[bool],
    dice: DiceKind,
) -> Result<MaskedLoss, LossShapeError> {
    let shape = logits.dims();
    let [n, k, sx, ..] = shape;
    if target.dims() != shape || annotated.len() != n * k {
        return Err(LossShapeError { logits: shape, target: target.dims(), mask: annotated.len() });
    }
    let dice_terms = match dice {
        DiceKind::Volume => 1,
        DiceKind::Slice => sx,
    };
    let [bce, dice] = ops::masked_loss(logits, target, annotated, dice_terms);
    Ok(MaskedLoss { bce, dice, pairs: annotated.iter().filter(|&&counts| counts).count() })
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use proptest::prelude::*;

    use super::*;

    const SHAPE: [usize; 5] = [2, 3, 2, 3, 2];
    const PAIR: usize = 12;

    fn tensor(values: &[f32], device: &Device) -> Tensor<5> {
        Tensor::<1>::from_floats(values, device).reshape(SHAPE)
    }

    /// Loss, and gradient with respect to the logits.
    fn evaluate(x: &[f32], y: &[f32], annotated: &[bool], dice: DiceKind) -> (f32, Vec<f32>) {
        let x = tensor(x, &Device::flex().autodiff()).require_grad();
        let loss = masked_loss(x.clone(), tensor(y, &Device::flex()), annotated, dice).unwrap();
        let gradient = x.grad(&loss.total().backward()).unwrap();
        (loss.total().into_scalar(), gradient.into_data().try_to_vec().unwrap())
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-6f32..6.0, 6 * PAIR)
    }

    fn targets() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(prop::bool::ANY.prop_map(f32::from), 6 * PAIR)
    }

    fn masks() -> impl Strategy<Value = Vec<bool>> {
        prop::collection::vec(prop::bool::ANY, 6)
    }

    fn kinds() -> impl Strategy<Value = DiceKind> {
        prop_oneof![Just(DiceKind::Volume), Just(DiceKind::Slice)]
    }

    proptest! {
        #[test]
        fn what_is_not_annotated_changes_no_bit(
            x in logits(), y in targets(), other in logits(), annotated in masks(), dice in kinds(),
        ) {
            let (loss, gradient) = evaluate(&x, &y, &annotated, dice);
            let (mut x2, mut y2) = (x.clone(), y.clone());
            for (pair, _) in annotated.iter().enumerate().filter(|(_, counts)| !**counts) {
                let voxels = pair * PAIR..(pair + 1) * PAIR;
                prop_assert!(gradient[voxels.clone()].iter().all(|g| g.to_bits() == 0));
                x2[voxels.clone()].copy_from_slice(&other[voxels.clone()]);
                y2[voxels].fill(255.0);
            }
            let (loss2, gradient2) = evaluate(&x2, &y2, &annotated, dice);
            prop_assert_eq!(loss.to_bits(), loss2.to_bits());
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&gradient), bits(&gradient2));
        }

        #[test]
        fn the_gradient_is_the_slope_of_the_loss(
            x in logits(), y in targets(), annotated in masks(), dice in kinds(), at in 0..6 * PAIR,
        ) {
            const STEP: f32 = 0.05;
            let (_, gradient) = evaluate(&x, &y, &annotated, dice);
            let moved = |by: f32| {
                let mut x = x.clone();
                x[at] += by;
                evaluate(&x, &y, &annotated, dice).0
            };
            let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            prop_assert!((slope - gradient[at]).abs() < 1e-4, "{} against {}", slope, gradient[at]);
        }
    }

    #[test]
    fn without_any_annotation_loss_and_gradient_are_zero() {
        let (loss, gradient) = evaluate(&[1.5; 6 * PAIR], &[1.0; 6 * PAIR], &[false; 6], DiceKind::Volume);
        assert_eq!(loss, 0.0);
        assert!(gradient.iter().all(|&g| g == 0.0));
    }

    #[test]
    fn a_logit_of_zero_has_the_slope_of_the_smooth_loss() {
        // A composition of relu and abs has slope 0 - y here.
        let (_, gradient) = evaluate(&[0.0; 6 * PAIR], &[0.0; 6 * PAIR], &[true; 6], DiceKind::Volume);
        let expected = 0.5 / (6 * PAIR) as f32;
        assert!(gradient.iter().all(|&g| (g - expected).abs() < 1e-8));
    }

    #[test]
    fn shapes_that_do_not_belong_together_are_refused() {
        let device = Device::flex();
        let ones = Tensor::ones(SHAPE, &device);
        let other = Tensor::ones([2, 3, 2, 3, 1], &device);
        assert!(masked_loss(ones.clone(), other, &[true; 6], DiceKind::Volume).is_err());
        assert!(masked_loss(ones.clone(), ones, &[true; 5], DiceKind::Volume).is_err());
    }
}
