//! Binds the optimiser's kernel to burn's CPU device. No gradient passes through a step, so there is no autodiff here.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, TensorMetadata, backend_extension};
use burn::tensor::TensorData;

use super::cpu_ops::whole;
use crate::kernels::adamw::{self, Coefficients};
use crate::kernels::isa::Isa;

/// Steps with a kernel of ours. Tensors are flat, f32.
#[backend_extension(Flex)]
pub(super) trait CpuStep: Backend {
    /// Values, first and second moment after one step of AdamW.
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
        let (theta, gradient) = (theta.to_contiguous(), gradient.to_contiguous());
        let (mut first, mut second) = (whole(first), whole(second));
        // The optimiser has given its moments away: they are changed where they lie, unless somebody kept a copy.
        let moments = [first.storage_mut(), second.storage_mut()];
        let stepped = adamw::step(Isa::detect(), theta.storage(), gradient.storage(), moments, coefficients);
        let shape = [theta.shape().num_elements()];
        (Host::from_data(TensorData::new(stepped, shape)), first, second)
    }
}
