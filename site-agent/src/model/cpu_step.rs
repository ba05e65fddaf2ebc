//! Binds the optimiser's kernel to burn's CPU device. No gradient passes through a step, so there is no autodiff here.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, backend_extension};

use super::cpu_ops::whole;
use crate::kernels::adamw::{self, Coefficients};
use crate::kernels::isa::Isa;

/// Steps with a kernel of ours. Tensors are flat, f32.
#[backend_extension(Flex)]
pub(super) trait CpuStep: Backend {
    /// Values, in the place of the gradient, and first and second moment after one step of AdamW.
    fn adamw(
        theta: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        coefficients: Coefficients,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

type Host = FloatTensor<Flex>;

impl CpuStep for Flex {
    fn adamw(
        theta: Host,
        gradient: Host,
        first: Host,
        second: Host,
        coefficients: Coefficients,
    ) -> (Host, Host, Host) {
        let theta = theta.to_contiguous();
        let (mut gradient, mut first, mut second) = (whole(gradient), whole(first), whole(second));
        // The optimiser has given these three away: they are changed where they lie, unless somebody kept a copy.
        let moments = [first.storage_mut(), second.storage_mut()];
        adamw::step(Isa::detect(), theta.storage(), gradient.storage_mut(), moments, coefficients);
        (gradient, first, second)
    }
}
