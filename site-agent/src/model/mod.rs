//! The universal model in burn: one network, one output channel for each class that is asked for.
//!
//! [`UniversalModel`] joins a `backbone` and the text-driven [`head`]. Its tensors go in and out by name
//! ([`parameters`], [`record`], and the reference's files in [`checkpoint`]); class embeddings ([`embedding`]) are given to
//! it and never trained, unless the configuration says so. [`text`] makes them of prompts, [`similarity`] compares their
//! rows, and [`adapt`] makes of a trained model one for other classes. [`cost`] counts numbers and products without a
//! tensor. Nothing outside this folder and `train` names burn's modules. Losses and optimisers are in
//! [`train`](crate::train).

pub mod adapt;
mod backbone;
mod card_ops;
pub mod checkpoint;
pub mod config;
pub mod cost;
mod cpu_ops;
mod cpu_step;
pub mod device;
pub mod embedding;
pub mod error;
mod graph;
pub mod head;
pub mod init;
mod layers;
pub mod live;
mod loss_parts;
pub(crate) mod ops;
pub mod parameters;
pub mod record;
pub mod similarity;
pub mod tensors;
pub mod text;
mod window;

use std::collections::BTreeMap;

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor},
};
use common::ids::ClassId;
pub use common::study::sections::{Backbone, PatchMerging};

use self::{
    backbone::{BackboneNetwork, Show},
    head::{ClassSource, Head},
    layers::Samples,
};
pub use self::{
    backbone::{
        Features,
        swin_unetr::{Block as SwinBlock, Downsample as SwinMerging},
    },
    config::{EmbeddingConfig, ModelConfig},
    device::{DeviceKind, device, training_device},
    embedding::{ClassEmbeddings, EmbeddingKind},
    error::ModelError,
    live::{LiveTensor, LiveTensors},
    parameters::Gradients,
    tensors::{HostTensor, NamedTensors},
    window::{FeatureLayer, WindowNetwork},
};

/// The CLIP-driven universal model (Liu et al., ICCV 2023).
#[derive(Module, Debug)]
pub struct UniversalModel {
    backbone: BackboneNetwork,
    head: Head,
    #[module(skip)]
    config: ModelConfig,
}

impl UniversalModel {
    /// The initial model of a seed. On an autodiff device it can be trained.
    ///
    /// `embeddings` is `None` exactly when the configuration has a learned table.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the configuration is impossible or the embeddings are not those that it names.
    pub fn new(
        config: &ModelConfig,
        embeddings: Option<&ClassEmbeddings>,
        seed: u64,
        device: &Device,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        let source = class_source(config, embeddings)?;
        let (bottleneck, decoder) = backbone::channels(config);
        let head = Head::new(bottleneck, decoder, source, device)?;
        let blank = Self { backbone: BackboneNetwork::new(config, device), head, config: config.clone() };
        let initial = init::initial_tensors(&parameters::shapes(&blank), seed);
        parameters::load(blank, &initial)
    }

    /// What the model was built from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The head, for those who evaluate its stages by themselves.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Names of the trainable tensors, ascending. Buffers, such as fixed class embeddings, are not among them.
    pub fn trainable_names(&self) -> Vec<String> {
        self.shapes().into_keys().collect()
    }

    /// Shape of each trainable tensor.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        parameters::shapes(self)
    }

    /// The trainable tensors where they are: to be read and let go before the next step.
    pub fn live(&self) -> LiveTensors {
        parameters::live(self)
    }

    /// A copy of the trainable tensors.
    pub fn export(&self) -> NamedTensors {
        parameters::export(self)
    }

    /// Replaces the values of all trainable tensors. Parameter ids stay, and so does the state of an optimiser.
    ///
    /// # Errors
    ///
    /// [`ModelError::Mismatch`] with every difference unless names and shapes are exactly this model's; the model is
    /// then unchanged.
    pub fn load(&mut self, tensors: &NamedTensors) -> Result<(), ModelError> {
        *self = parameters::load(self.clone(), tensors)?;
        Ok(())
    }

    /// Changes every trainable tensor, given flat with its name.
    pub fn update(&mut self, change: impl FnMut(&str, Tensor<1>) -> Tensor<1>) {
        *self = parameters::update(self.clone(), change);
    }

    /// Logits `[n, classes.len(), x, y, z]` of the classes asked for, in that order; no sigmoid.
    ///
    /// `x` is `[n, 1, x, y, z]`. Batch normalisation sees the n patches together: this is the training pass.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the patch or a class does not suit the model.
    pub fn forward(&self, x: Tensor<5>, classes: &[ClassId]) -> Result<Tensor<5>, ModelError> {
        let channels = self.channels(classes)?;
        Ok(self.head.forward(self.features(x)?, &channels))
    }

    /// As [`Self::forward`], without gradients and each window normalised by itself. On the CPU, the logits of a window are the
    /// same bits whatever windows come with it; another device may choose other kernels for a batch, which round otherwise.
    ///
    /// # Errors
    ///
    /// As [`Self::forward`].
    pub fn infer(&self, windows: Tensor<5>, classes: &[ClassId]) -> Result<Tensor<5>, ModelError> {
        let (model, channels) = (self.valid(), self.channels(classes)?);
        let features = model.extract(windows.inner(), Samples::Apart, &mut |_, _| ())?;
        Ok(model.head.forward_apart(features, &channels))
    }

    /// What a layer holds for some voxels of one window `[1, 1, x, y, z]`, without gradients: `[channels, voxels.len()]`.
    ///
    /// A voxel is its place in the window, C order, and must lie in it, which [`WindowNetwork`] checks.
    ///
    /// # Errors
    ///
    /// As [`Self::features`].
    pub fn features_at(
        &self,
        window: Tensor<5>,
        layer: FeatureLayer,
        voxels: &[usize],
    ) -> Result<Tensor<2>, ModelError> {
        let model = self.valid();
        let decoder = model.features(window.inner())?.decoder;
        let values = match layer {
            FeatureLayer::Decoder => decoder,
            FeatureLayer::Head => model.head.voxel_features(decoder),
        };
        let [_, channels, x, y, z] = values.dims();
        let chosen: Vec<i32> = voxels.iter().map(|&voxel| voxel as i32).collect();
        let chosen = Tensor::<1, Int>::from_ints(chosen.as_slice(), &values.device());
        Ok(values.reshape([channels, x * y * z]).select(1, chosen))
    }

    /// The backbone's output for `[n, 1, x, y, z]`.
    ///
    /// # Errors
    ///
    /// [`ModelError::Patch`] or [`ModelError::InputChannels`].
    pub fn features(&self, x: Tensor<5>) -> Result<Features, ModelError> {
        self.features_by_stage(x, |_, _| ())
    }

    /// As [`Self::features`], for those who look into the backbone: `show` is given the reference's name and the output
    /// of each stage, in the order of the forward pass.
    ///
    /// # Errors
    ///
    /// As [`Self::features`].
    pub fn features_by_stage(
        &self,
        x: Tensor<5>,
        mut show: impl FnMut(&'static str, &Tensor<5>),
    ) -> Result<Features, ModelError> {
        self.extract(x, Samples::Together, &mut show)
    }

    fn extract(&self, x: Tensor<5>, samples: Samples, show: &mut Show<'_>) -> Result<Features, ModelError> {
        let [_, channels, sx, sy, sz] = x.dims();
        if channels != 1 {
            return Err(ModelError::InputChannels { got: channels });
        }
        self.config.check_patch([sx, sy, sz])?;
        Ok(self.backbone.forward(x, samples, show))
    }

    /// Gradients of an objective that was computed with this model.
    pub fn gradients(&self, objective: &Tensor<1>) -> Gradients {
        Gradients::of(self, objective)
    }

    fn channels(&self, classes: &[ClassId]) -> Result<Vec<usize>, ModelError> {
        if classes.is_empty() {
            return Err(ModelError::NoClass);
        }
        let rows = self.head.rows();
        let channel = |&class: &ClassId| {
            let channel = class.channel();
            if channel < rows { Ok(channel) } else { Err(ModelError::Class { class, rows }) }
        };
        classes.iter().map(channel).collect()
    }
}

fn class_source<'a>(
    config: &ModelConfig,
    embeddings: Option<&'a ClassEmbeddings>,
) -> Result<ClassSource<'a>, ModelError> {
    let expected = config.embedding;
    match embeddings {
        None if expected.kind == EmbeddingKind::Learned => Ok(ClassSource::Learned { rows: expected.rows }),
        Some(given)
            if given.kind() == expected.kind && given.table().shape() == [expected.rows, expected.width] =>
        {
            Ok(ClassSource::Fixed(given))
        }
        given => Err(ModelError::Embedding {
            expected: expected.to_string(),
            got: given.map_or("absent".to_owned(), |e| format!("{:?} {:?}", e.kind(), e.table().shape())),
        }),
    }
}

#[cfg(test)]
mod tests;
