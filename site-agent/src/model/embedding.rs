//! Class embeddings: one row of numbers for each class of the taxonomy, in channel order.
//!
//! They are an artifact of a study, not part of an update. One-hot and few-hot tables are made here; those of a language
//! model are imported. The trainable table of the reference's ablation is [`EmbeddingKind::Learned`] and part of the model; its artifact
//! says how it began.

use serde::{Deserialize, Serialize};

use super::{error::ModelError, record::read_safetensors, tensors::HostTensor};

/// Name of the table in the reference's files.
pub const EMBEDDING_NAME: &str = "organ_embedding";

/// Where the rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmbeddingKind {
    /// Own bit only.
    OneHot,
    /// Own bit and the bits of the parents.
    FewHot,
    /// From a file, such as the text encoder of CLIP.
    Imported,
    /// Trained with the network, at the width of the image feature; no text layer.
    Learned,
}

/// A fixed table `[rows, width]`, finite.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassEmbeddings {
    kind: EmbeddingKind,
    table: HostTensor,
}

impl ClassEmbeddings {
    /// Row i has `scale` at column i.
    ///
    /// # Errors
    ///
    /// [`ModelError::EmbeddingValues`] if there is no row or `scale` is not finite.
    pub fn one_hot(rows: usize, scale: f32) -> Result<Self, ModelError> {
        let own = |i: usize| if i / rows == i % rows { scale } else { 0.0 };
        Self::new(EmbeddingKind::OneHot, HostTensor::from_fn(vec![rows, rows], own))
    }

    /// Row i has `scale` at column i and at the column of each of its parents (all are channels).
    ///
    /// # Errors
    ///
    /// [`ModelError::EmbeddingValues`] if there is no row, a parent is none of the rows, or `scale` is not finite.
    pub fn few_hot(parents: &[Vec<usize>], scale: f32) -> Result<Self, ModelError> {
        let rows = parents.len();
        if let Some(parent) = parents.iter().flatten().find(|&&parent| parent >= rows) {
            return Err(ModelError::EmbeddingValues(format!("parent row {parent} of {rows} rows")));
        }
        let mut table = Self::one_hot(rows, scale)?.table;
        for (row, parents) in table.values_mut().chunks_mut(rows).zip(parents) {
            for &parent in parents {
                row[parent] = scale;
            }
        }
        Self::new(EmbeddingKind::FewHot, table)
    }

    /// The table of a safetensors file that holds one tensor `[rows, width]`.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the bytes are no such file, or a value is not finite.
    pub fn from_safetensors(kind: EmbeddingKind, bytes: &[u8]) -> Result<Self, ModelError> {
        let tensors = read_safetensors(bytes)?;
        let count = tensors.len();
        match tensors.into_values().next() {
            Some(table) if count == 1 => Self::new(kind, table),
            _ => Err(ModelError::EmbeddingValues(format!("{count} tensors in the file, expected 1"))),
        }
    }

    /// A table of finite values.
    ///
    /// # Errors
    ///
    /// [`ModelError::EmbeddingValues`] otherwise.
    pub fn new(kind: EmbeddingKind, table: HostTensor) -> Result<Self, ModelError> {
        let &[rows, width] = table.shape() else {
            return Err(ModelError::EmbeddingValues(format!(
                "shape {:?}, expected [rows, width]",
                table.shape()
            )));
        };
        if rows == 0 || width == 0 {
            return Err(ModelError::EmbeddingValues(format!("a table of {rows} x {width}")));
        }
        if table.values().iter().any(|value| !value.is_finite()) {
            return Err(ModelError::EmbeddingValues("a value is not finite".to_owned()));
        }
        Ok(Self { kind, table })
    }

    /// Where the rows come from.
    pub fn kind(&self) -> EmbeddingKind {
        self.kind
    }

    /// The table `[rows, width]`.
    pub fn table(&self) -> &HostTensor {
        &self.table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_hot_has_the_own_bit_and_the_parents() {
        let embeddings = ClassEmbeddings::few_hot(&[vec![], vec![0], vec![0, 1]], 4.0).unwrap();
        assert_eq!(embeddings.table().values(), [4.0, 0.0, 0.0, 4.0, 4.0, 0.0, 4.0, 4.0, 4.0]);
        assert!(ClassEmbeddings::few_hot(&[vec![], vec![0, 2]], 4.0).is_err());
    }

    #[test]
    fn a_table_without_rows_or_with_nan_is_refused() {
        assert!(matches!(ClassEmbeddings::one_hot(0, 1.0), Err(ModelError::EmbeddingValues(_))));
        assert!(matches!(ClassEmbeddings::one_hot(2, f32::NAN), Err(ModelError::EmbeddingValues(_))));
    }

    #[test]
    fn embeddings_of_any_width_are_read_from_safetensors() {
        let table = HostTensor::from_fn(vec![4, 7], |i| i as f32);
        let file =
            super::super::record::write_safetensors(&[(EMBEDDING_NAME.to_owned(), table.clone())].into());
        let read = ClassEmbeddings::from_safetensors(EmbeddingKind::Imported, &file.unwrap()).unwrap();
        assert_eq!(read.table(), &table);
        assert!(ClassEmbeddings::from_safetensors(EmbeddingKind::Imported, b"not safetensors").is_err());
    }
}
