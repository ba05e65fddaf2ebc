//! What operations of ours record in burn's automatic differentiation, whatever the device that computes them.
//!
//! `convolution` and `normalisation` are what each of these records, with its backward pass; `source` is what is read to make
//! something again.

mod convolution;
mod normalisation;
mod source;

use burn::backend::Backend;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::tensor::FloatTensor;

pub(super) use self::convolution::{Convolution, PairConvolution};
pub(super) use self::normalisation::NormRelu;
pub(super) use self::source::{Source, recorded};

/// Hands each gradient to the node that asks for it.
pub(super) fn register<B: Backend, const N: usize>(
    grads: &mut Gradients,
    nodes: [Option<NodeId>; N],
    gradients: [FloatTensor<B>; N],
) {
    for (node, gradient) in nodes.into_iter().zip(gradients) {
        if let Some(node) = node {
            grads.register::<B>(node, gradient);
        }
    }
}
