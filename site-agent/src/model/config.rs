//! What a model is: backbone, width, class embeddings. A study pins it.

use common::study::sections::{self, Backbone, PatchMerging};
use serde::{Deserialize, Serialize};

use super::{embedding::EmbeddingKind, error::ModelError, head::FEATURE_WIDTH};

/// Configuration of a universal model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The feature extractor.
    pub backbone: Backbone,
    /// Channels of the first convolution: 32 is the paper's U-Net (a multiple of 8), 48 its Swin UNETR (a multiple of 12).
    pub width: usize,
    /// How a Swin UNETR merges patches; a U-Net has none.
    #[serde(default, skip_serializing_if = "PatchMerging::is_published")]
    pub patch_merging: PatchMerging,
    /// The class embeddings that the model is used with.
    pub embedding: EmbeddingConfig,
}

/// Kind and shape of the class embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingConfig {
    /// Where the rows come from.
    pub kind: EmbeddingKind,
    /// Number of classes.
    pub rows: usize,
    /// Numbers per class.
    pub width: usize,
}

impl ModelConfig {
    /// The network that a study names, with these class embeddings.
    pub fn of_study(network: &sections::ModelConfig, embedding: EmbeddingConfig) -> Self {
        let &sections::ModelConfig { backbone, width, patch_merging } = network;
        Self { backbone, width: width as usize, patch_merging, embedding }
    }

    /// A U-Net as published.
    pub fn unet(width: usize, embedding: EmbeddingConfig) -> Self {
        Self { backbone: Backbone::Unet, width, patch_merging: PatchMerging::default(), embedding }
    }

    /// Checks what the types do not say.
    ///
    /// # Errors
    ///
    /// [`ModelError::Width`] or [`ModelError::Embedding`].
    pub fn validate(&self) -> Result<(), ModelError> {
        let multiple = self.backbone.width_multiple() as usize;
        if self.width == 0 || !self.width.is_multiple_of(multiple) {
            return Err(ModelError::Width { width: self.width, multiple });
        }
        let EmbeddingConfig { kind, rows, width } = self.embedding;
        let learned_at_wrong_width = kind == EmbeddingKind::Learned && width != FEATURE_WIDTH;
        if rows == 0 || width == 0 || learned_at_wrong_width {
            return Err(ModelError::Embedding {
                expected: format!("at least one row; a learned table has width {FEATURE_WIDTH}"),
                got: self.embedding.to_string(),
            });
        }
        Ok(())
    }

    /// Checks the sides `[x, y, z]` of an input, in voxels.
    ///
    /// # Errors
    ///
    /// [`ModelError::Patch`] if they cannot be halved as often as the backbone does, or end in one voxel.
    pub fn check_patch(&self, sides: [usize; 3]) -> Result<(), ModelError> {
        let multiple = self.backbone.side_multiple() as usize;
        let suits = |&side: &usize| side > 0 && side.is_multiple_of(multiple);
        if !sides.iter().all(suits) || sides == [multiple; 3] {
            return Err(ModelError::Patch { got: sides, multiple });
        }
        Ok(())
    }
}

impl std::fmt::Display for EmbeddingConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {} x {}", self.kind, self.rows, self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(width: usize) -> ModelConfig {
        let embedding = EmbeddingConfig { kind: EmbeddingKind::OneHot, rows: 32, width: 32 };
        ModelConfig::unet(width, embedding)
    }

    #[test]
    fn a_width_that_does_not_split_into_sixteen_groups_is_refused() {
        assert!(config(8).validate().is_ok());
        for width in [0, 4, 12] {
            assert!(matches!(config(width).validate(), Err(ModelError::Width { .. })), "{width}");
        }
    }

    #[test]
    fn a_learned_table_has_the_width_of_the_image_feature() {
        let mut config = config(8);
        config.embedding.kind = EmbeddingKind::Learned;
        assert!(matches!(config.validate(), Err(ModelError::Embedding { .. })));
        config.embedding.width = 256;
        assert!(config.validate().is_ok());
    }

    #[test]
    fn a_configuration_reads_back_from_toml_and_unknown_keys_are_refused() {
        let text = "backbone = \"unet\"\nwidth = 8\n[embedding]\nkind = \"one-hot\"\nrows = 32\nwidth = 32\n";
        assert_eq!(toml::from_str::<ModelConfig>(text).unwrap(), config(8));
        assert!(toml::from_str::<ModelConfig>(&format!("depth = 3\n{text}")).is_err());
    }
}
