//! What a model is: backbone, width, class embeddings. A study pins it.

use serde::{Deserialize, Serialize};

use super::{embedding::EmbeddingKind, error::ModelError, head::FEATURE_WIDTH};

/// Configuration of a universal model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The feature extractor.
    pub backbone: Backbone,
    /// Channels of the first convolution: 32 is the paper's network. A multiple of 8.
    pub width: usize,
    /// The class embeddings that the model is used with.
    pub embedding: EmbeddingConfig,
}

/// The feature extractor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backbone {
    /// Convolutional, three poolings.
    Unet,
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
    /// Checks what the types do not say.
    ///
    /// # Errors
    ///
    /// [`ModelError::Width`] or [`ModelError::Embedding`].
    pub fn validate(&self) -> Result<(), ModelError> {
        if self.width == 0 || !self.width.is_multiple_of(8) {
            return Err(ModelError::Width { width: self.width });
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
        ModelConfig { backbone: Backbone::Unet, width, embedding }
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
