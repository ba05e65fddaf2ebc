//! The study's network as a [`Predictor`]: from artifacts on disk to logits.

use common::study::Study;
use common::study::sections as study;

use super::features::ReadFeatures;
use super::{InferError, Predictor};
use crate::model::embedding::EMBEDDING_NAME;
use crate::model::{
    ClassEmbeddings, DeviceKind, EmbeddingConfig, EmbeddingKind, FeatureLayer, ModelConfig, ModelError,
    NamedTensors, UniversalModel, WindowNetwork, device,
};
use crate::train::trainer::Cancel;

/// The configuration of a study's network.
pub fn model_config(study: &Study) -> ModelConfig {
    let embeddings = &study.embeddings;
    let kind = match embeddings.kind {
        _ if embeddings.trainable => EmbeddingKind::Learned,
        study::EmbeddingKind::OneHot => EmbeddingKind::OneHot,
        study::EmbeddingKind::FewHot => EmbeddingKind::FewHot,
        study::EmbeddingKind::Imported(_) => EmbeddingKind::Imported,
    };
    let embedding =
        EmbeddingConfig { kind, rows: embeddings.rows as usize, width: embeddings.width as usize };
    ModelConfig::of_study(&study.model, embedding)
}

/// The class embeddings of an artifact, for a model of this configuration; none where the model trains its own.
///
/// # Errors
/// [`ModelError`] when the artifact holds no such table.
pub fn class_embeddings(
    config: &ModelConfig,
    tensors: &NamedTensors,
) -> Result<Option<ClassEmbeddings>, ModelError> {
    if config.embedding.kind == EmbeddingKind::Learned {
        return Ok(None);
    }
    let table = tensors.get(EMBEDDING_NAME).ok_or_else(|| ModelError::Embedding {
        expected: format!("a tensor `{EMBEDDING_NAME}`"),
        got: tensors.keys().cloned().collect::<Vec<_>>().join(", "),
    })?;
    ClassEmbeddings::new(config.embedding.kind, table.clone()).map(Some)
}

/// A study's network with these weights, ready to be asked; it stops when `cancel` says so.
pub struct StudyNetwork {
    network: WindowNetwork,
    cancel: Cancel,
}

impl StudyNetwork {
    /// Builds the network on a device and loads its tensors.
    ///
    /// # Errors
    /// [`ModelError`] when tensors or embeddings are not of this study.
    pub fn build(
        study: &Study,
        weights: &NamedTensors,
        embeddings: &NamedTensors,
        on: DeviceKind,
        cancel: Cancel,
    ) -> Result<Self, ModelError> {
        let (config, device) = (model_config(study), device(on)?);
        let table = class_embeddings(&config, embeddings)?;
        let mut model = UniversalModel::new(&config, table.as_ref(), study.seed, &device)?;
        model.load(weights)?;
        let classes = study.taxonomy.len();
        Ok(Self { network: WindowNetwork::new(model, device, classes), cancel })
    }

    /// Reads the features of a layer, as [`feature_points`](super::features::feature_points) asks for them.
    pub fn feature_reader(&self, layer: FeatureLayer) -> Box<ReadFeatures<'_>> {
        Box::new(move |patch: &[f32], shape: [usize; 3], voxels: &[usize]| {
            self.ask(|network| network.features_at(patch, shape, layer, voxels))
        })
    }

    /// One question to the network, unless it shall stop.
    fn ask<T>(
        &self,
        question: impl FnOnce(&WindowNetwork) -> Result<T, ModelError>,
    ) -> Result<T, InferError> {
        if self.cancel.is_cancelled() {
            return Err(InferError::Cancelled);
        }
        question(&self.network).map_err(|error| InferError::Network(Box::new(error)))
    }
}

impl Predictor for StudyNetwork {
    fn classes(&self) -> usize {
        self.network.classes()
    }

    fn logits(&self, patch: &[f32], shape: [usize; 3]) -> Result<Vec<f32>, InferError> {
        self.batch_logits(patch, shape)
    }

    fn batch_logits(&self, patches: &[f32], shape: [usize; 3]) -> Result<Vec<f32>, InferError> {
        self.ask(|network| network.logits(patches, shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::sliding_window::{WindowPlan, sliding_window};
    use crate::model::Backbone;

    fn network(config: &ModelConfig) -> StudyNetwork {
        let (table, device) = (ClassEmbeddings::one_hot(4, 1.0).unwrap(), device(DeviceKind::Cpu).unwrap());
        let model = UniversalModel::new(config, Some(&table), 3, &device).unwrap();
        StudyNetwork { network: WindowNetwork::new(model, device, 4), cancel: Cancel::default() }
    }

    #[test]
    fn a_scan_has_the_same_logits_to_the_bit_however_many_windows_are_seen_at_once() {
        let embedding = EmbeddingConfig { kind: EmbeddingKind::OneHot, rows: 4, width: 4 };
        let unet = ModelConfig::unet(8, embedding);
        let swin = ModelConfig { backbone: Backbone::SwinUnetr, width: 12, ..unet.clone() };
        // Six windows begin at each of two x, and four at one.
        let scans = [(unet, [16, 8, 8], [20_usize, 16, 12]), (swin, [64, 32, 32], [64, 40, 48])];
        for (config, window, shape) in scans {
            let network = network(&config);
            let voxels = shape.iter().product::<usize>();
            let image: Vec<f32> = (0..voxels).map(|i| ((i * 37) % 101) as f32 / 101.0).collect();
            let logits = |batch: usize| {
                let plan = WindowPlan::gaussian(window, 0.5).with_batch(batch);
                let mut all: Vec<f32> = Vec::new();
                sliding_window(&image, shape, &plan, &network, |_, plane| all.extend(plane)).unwrap();
                all
            };
            let one_by_one = logits(1);
            assert_eq!(one_by_one.len(), 4 * voxels);
            for batch in [2, 5] {
                assert!(logits(batch) == one_by_one, "{:?}, {batch} at a time", config.backbone);
            }
        }
    }
}
