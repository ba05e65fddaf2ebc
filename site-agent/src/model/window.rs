//! The network as inference uses it: host numbers in, host numbers out, some windows at a time, without gradients.

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

/// Where the features of a voxel are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureLayer {
    /// The decoder's output.
    Decoder,
    /// The 8 numbers that the head makes of it and that all classes read.
    Head,
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

    /// Logits `[n, classes, x, y, z]` of patches `[n, 1, x, y, z]`, C order, in one pass; as [`UniversalModel::infer`], each as if
    /// it were alone.
    ///
    /// # Errors
    /// [`ModelError`] for patches that do not suit the network.
    pub fn logits(&self, patches: &[f32], shape: [usize; 3]) -> Result<Vec<f32>, ModelError> {
        let logits = self.model.infer(self.windows(patches, shape)?, &self.classes)?;
        Ok(logits.into_data().try_to_vec().expect("invariant: every tensor of the model is f32"))
    }

    /// What a layer holds for some voxels of a patch `[1, x, y, z]`: a list of numbers for each, in the order asked for.
    /// A voxel is its place in the patch, C order.
    ///
    /// # Errors
    /// As [`Self::logits`].
    ///
    /// # Panics
    /// When a voxel does not lie in the patch: a mistake of the caller.
    pub fn features_at(
        &self,
        patch: &[f32],
        shape: [usize; 3],
        layer: FeatureLayer,
        voxels: &[usize],
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        assert!(voxels.iter().all(|&voxel| voxel < patch.len()), "voxels lie in their patch");
        if voxels.is_empty() {
            return Ok(Vec::new());
        }
        let by_channel = self.model.features_at(self.windows(patch, shape)?, layer, voxels)?;
        let by_channel: Vec<f32> =
            by_channel.into_data().try_to_vec().expect("invariant: every tensor of the model is f32");
        let of = |voxel: usize| -> Vec<f32> {
            by_channel.iter().skip(voxel).step_by(voxels.len()).copied().collect()
        };
        Ok((0..voxels.len()).map(of).collect())
    }

    /// `[n, 1, x, y, z]`; at least one.
    fn windows(&self, patches: &[f32], [x, y, z]: [usize; 3]) -> Result<Tensor<5>, ModelError> {
        let n = (patches.len() / (x * y * z).max(1)).max(1);
        let patches = HostTensor::new(vec![n, 1, x, y, z], patches.to_vec())?;
        let (shape, values) = patches.into_parts();
        Ok(Tensor::from_data(TensorData::new(values, shape), &self.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClassEmbeddings, EmbeddingConfig, EmbeddingKind, ModelConfig};

    #[test]
    fn features_of_chosen_voxels_are_those_of_the_whole_window() {
        let embeddings = ClassEmbeddings::one_hot(32, 1.0).unwrap();
        let embedding = EmbeddingConfig { kind: EmbeddingKind::OneHot, rows: 32, width: 32 };
        let device = Device::flex();
        let config = ModelConfig::unet(8, embedding);
        let model = UniversalModel::new(&config, Some(&embeddings), 3, &device).unwrap();
        let network = WindowNetwork::new(model.clone(), device, 32);
        let (shape, voxels) = ([16, 8, 8], [1000, 0, 77]);
        let patch: Vec<f32> = (0..16 * 8 * 8).map(|i| ((i * 37) % 101) as f32 / 101.0).collect();
        let decoder = model.features(network.windows(&patch, shape).unwrap()).unwrap().decoder;
        let head = model.head().voxel_features(decoder.clone());
        for (layer, whole, channels) in [(FeatureLayer::Decoder, decoder, 16), (FeatureLayer::Head, head, 8)]
        {
            let whole: Vec<f32> = whole.into_data().try_to_vec().unwrap();
            let chosen = network.features_at(&patch, shape, layer, &voxels).unwrap();
            for (&voxel, features) in voxels.iter().zip(&chosen) {
                let expected: Vec<f32> = (0..channels).map(|c| whole[c * patch.len() + voxel]).collect();
                assert_eq!(features, &expected, "{layer:?}, voxel {voxel}");
            }
        }
        assert!(network.features_at(&patch, shape, FeatureLayer::Head, &[]).unwrap().is_empty());
    }
}
