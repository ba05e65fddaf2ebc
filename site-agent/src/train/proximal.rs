//! FedProx: local steps are pulled back towards the global model (Li et al., 2020, algorithm 2).

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};

use crate::model::{Gradients, HostTensor, NamedTensors, UniversalModel};

/// The gradient of `μ/2 · ‖w − w_global‖²` over every trainable tensor.
#[derive(Debug)]
pub(super) struct Proximal {
    mu: f64,
    /// Flat and on the device.
    global: BTreeMap<String, Tensor<1>>,
}

impl Proximal {
    /// A pull of strength `mu` towards `global`. Where it is 0, do without: that costs no memory and changes no bit.
    pub(super) fn new(mu: f64, global: &NamedTensors, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        let flat = |(name, tensor): (&String, &HostTensor)| {
            (name.clone(), Tensor::from_floats(tensor.values(), &device))
        };
        Self { mu, global: global.iter().map(flat).collect() }
    }

    /// Adds `μ (w − w_global)` to the gradients at the weights `w` of `model`, which stays as it is.
    pub(super) fn pull(&self, gradients: &mut Gradients, model: &mut UniversalModel) {
        model.update(|name, theta| {
            if let Some(global) = self.global.get(name) {
                gradients.add_flat(name, (theta.clone() - global.clone()).mul_scalar(self.mu));
            }
            theta
        });
    }
}
