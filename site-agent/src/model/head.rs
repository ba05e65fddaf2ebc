//! The text-driven segmentor: a global image feature and a class embedding together generate, for each class, the
//! weights of a three-layer network that reads 8 numbers per voxel.
//!
//! Only the classes asked for are evaluated, all at once, and the voxel features are shared between them.

use burn::{
    module::{Module, Param},
    tensor::{Device, Int, Tensor, TensorData, activation::relu},
};

use super::{
    backbone::Features,
    embedding::ClassEmbeddings,
    error::ModelError,
    layers::{GroupNorm, Linear, Pointwise, SMALLEST_GROUPS},
    ops,
    tensors::HostTensor,
};
use crate::kernels::segmentor::{HIDDEN, PARAMETERS};

/// Width of the image feature and of the class vector.
pub const FEATURE_WIDTH: usize = 256;

/// Group normalisation, ReLU, linear map per voxel.
#[derive(Module, Debug)]
struct NormedPointwise {
    norm: GroupNorm,
    conv: Pointwise,
}

/// A fixed table, and the map from its width to the width of the image feature.
#[derive(Module, Debug)]
struct TextBranch {
    /// `[rows, any width]`: a buffer, never trained and never in an update.
    table: Tensor<2>,
    projection: Linear,
}

/// A table trained with the network, at the width of the image feature.
#[derive(Module, Debug)]
struct LearnedTable {
    weight: Param<Tensor<2>>,
}

#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "one of them in a process, and a module cannot be boxed")]
enum ClassVectors {
    Text(TextBranch),
    Learned(LearnedTable),
}

/// Where a head takes its class vectors from.
#[derive(Clone, Copy, Debug)]
pub enum ClassSource<'a> {
    /// A fixed table of any width.
    Fixed(&'a ClassEmbeddings),
    /// A trainable table of this many rows.
    Learned {
        /// Number of classes.
        rows: usize,
    },
}

/// The head.
#[derive(Module, Debug)]
pub struct Head {
    precls: NormedPointwise,
    gap: NormedPointwise,
    controller: Pointwise,
    classes: ClassVectors,
}

impl Head {
    /// A head of zeros for a backbone with these numbers of channels.
    ///
    /// # Errors
    ///
    /// [`ModelError::Groups`] if a number of channels is not a positive multiple of 4.
    pub fn new(
        bottleneck_channels: usize,
        decoder_channels: usize,
        source: ClassSource<'_>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        for channels in [bottleneck_channels, decoder_channels] {
            if channels == 0 || channels % SMALLEST_GROUPS != 0 {
                return Err(ModelError::Groups { channels });
            }
        }
        let normed = |input, output| NormedPointwise {
            norm: GroupNorm::new(input, device),
            conv: Pointwise::new(input, output, device),
        };
        Ok(Self {
            precls: normed(decoder_channels, HIDDEN),
            gap: normed(bottleneck_channels, FEATURE_WIDTH),
            controller: Pointwise::new(2 * FEATURE_WIDTH, PARAMETERS, device),
            classes: ClassVectors::new(source, device),
        })
    }

    /// Number of classes that the head can be asked for.
    pub fn rows(&self) -> usize {
        self.classes.rows()
    }

    /// The fixed table, if there is one.
    pub fn fixed_table(&self) -> Option<HostTensor> {
        match &self.classes {
            ClassVectors::Text(text) => {
                let values = text
                    .table
                    .to_data_as::<f32>()
                    .try_to_vec()
                    .expect("invariant: the values were read as f32");
                HostTensor::new(text.table.dims().to_vec(), values).ok()
            }
            ClassVectors::Learned(_) => None,
        }
    }

    /// Logits `[n, channels.len(), x, y, z]` of the classes with these channels, in the order asked for.
    ///
    /// Each channel must be below [`Self::rows`], which [`UniversalModel`](super::UniversalModel) checks.
    pub fn forward(&self, features: Features, channels: &[usize]) -> Tensor<5> {
        let parameters = self.class_parameters(self.image_feature(features.bottleneck), channels);
        ops::segment(self.voxel_features(features.decoder), parameters)
    }

    /// As [`Self::forward`], the same bits for a sample whatever comes with it: how burn rounds a product depends on its number of
    /// rows, so that of the small products each sample has its own.
    pub(super) fn forward_apart(&self, features: Features, channels: &[usize]) -> Tensor<5> {
        let generate = |bottleneck| self.class_parameters(self.image_feature(bottleneck), channels);
        let parameters = features.bottleneck.split(1, 0).into_iter().map(generate).collect();
        ops::segment(self.voxel_features(features.decoder), Tensor::cat(parameters, 0))
    }

    /// The global image feature `[n, 256]`.
    pub fn image_feature(&self, bottleneck: Tensor<5>) -> Tensor<2> {
        let normed = self.gap.norm.forward_relu(bottleneck);
        let [n, channels, x, y, z] = normed.dims();
        let mean = normed.reshape([n, channels, x * y * z]).mean_dim(2).reshape([n, channels]);
        let (weight, bias) = self.gap.conv.matrix();
        mean.matmul(weight) + bias
    }

    /// The 8 numbers per voxel that all classes read, `[n, 8, x, y, z]`.
    pub fn voxel_features(&self, decoder: Tensor<5>) -> Tensor<5> {
        self.precls.conv.forward(self.precls.norm.forward_relu(decoder))
    }

    /// The generated numbers `[n, classes, 153]`.
    ///
    /// The controller is linear in (image feature, class vector), image first: the two halves are mapped apart and
    /// added, instead of joining each of the n features with each of the class vectors.
    pub fn class_parameters(&self, image: Tensor<2>, channels: &[usize]) -> Tensor<3> {
        let (weight, bias) = self.controller.matrix();
        let image_part = image.matmul(weight.clone().narrow(0, 0, FEATURE_WIDTH)) + bias;
        let class_part =
            self.classes.vectors(channels).matmul(weight.narrow(0, FEATURE_WIDTH, FEATURE_WIDTH));
        image_part.unsqueeze_dim::<3>(1) + class_part.unsqueeze_dim::<3>(0)
    }
}

impl ClassVectors {
    fn new(source: ClassSource<'_>, device: &Device) -> Self {
        match source {
            ClassSource::Learned { rows } => {
                let weight = Param::from_tensor(Tensor::zeros([rows, FEATURE_WIDTH], device));
                Self::Learned(LearnedTable { weight })
            }
            ClassSource::Fixed(embeddings) => {
                let (shape, values) = embeddings.table().clone().into_parts();
                let table = Tensor::<2>::from_data(TensorData::new(values, shape), device);
                let projection = Linear::new(table.dims()[1], FEATURE_WIDTH, device);
                Self::Text(TextBranch { table, projection })
            }
        }
    }

    fn rows(&self) -> usize {
        match self {
            Self::Text(text) => text.table.dims()[0],
            Self::Learned(learned) => learned.weight.dims()[0],
        }
    }

    /// `[channels.len(), 256]`.
    fn vectors(&self, channels: &[usize]) -> Tensor<2> {
        let select = |table: Tensor<2>| {
            let rows: Vec<i32> = channels.iter().map(|&channel| channel as i32).collect();
            let rows = Tensor::<1, Int>::from_ints(rows.as_slice(), &table.device());
            table.select(0, rows)
        };
        match self {
            Self::Text(text) => relu(text.projection.forward(select(text.table.clone()))),
            Self::Learned(learned) => select(learned.weight.val()),
        }
    }
}
