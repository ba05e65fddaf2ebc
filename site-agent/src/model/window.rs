//! The network as inference uses it: host numbers in, host numbers out, one window at a time, without gradients.

use burn::tensor::{Device, Tensor, TensorData};
use common::ids::ClassId;

use super::error::ModelError;
use super::{HostTensor, UniversalModel};

/// A model on its device, asked for all of its classes in one pass.
pub struct WindowNetwork {
    model: UniversalModel,
    device: Device,
    classes: Vec<ClassId>,
}

impl WindowNetwork {
    /// Asks `model`, which lives on `device`, for classes 1 to `classes`.
    pub fn new(model: UniversalModel, device: Device, classes: usize) -> Self {
        let classes = (0..classes).map_while(ClassId::from_channel).collect();
        Self { model, device, classes }
    }

    /// Number of channels of the logits.
    pub fn classes(&self) -> usize {
        self.classes.len()
    }

    /// Logits `[classes, x, y, z]` of a patch `[1, x, y, z]`, C order.
    ///
    /// # Errors
    /// [`ModelError`] for a patch that does not suit the network.
    pub fn logits(&self, patch: &[f32], [x, y, z]: [usize; 3]) -> Result<Vec<f32>, ModelError> {
        let patch = HostTensor::new(vec![1, 1, x, y, z], patch.to_vec())?;
        let (shape, values) = patch.into_parts();
        let windows = Tensor::from_data(TensorData::new(values, shape), &self.device);
        let logits = self.model.infer(windows, &self.classes)?;
        Ok(logits.into_data().try_to_vec().expect("invariant: every tensor of the model is f32"))
    }
}
