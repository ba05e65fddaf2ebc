//! How alike the rows of class embeddings are: what the text-driven head can know before it is trained (the paper's
//! Figure 1).

use super::embedding::ClassEmbeddings;

/// Cosine similarity of each two rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Similarity {
    rows: usize,
    /// `[rows, rows]`.
    cosines: Vec<f64>,
}

/// Two rows, the smaller first, and their cosine.
pub type AlikePair = (usize, usize, f64);

impl Similarity {
    /// Compares the rows of a table. A row of zeros points nowhere: its cosines are 0.
    pub fn of(embeddings: &ClassEmbeddings) -> Self {
        let table = embeddings.table();
        // Invariant: `ClassEmbeddings` has two axes, both at least 1.
        let (rows, width) = (table.shape()[0], table.shape()[1]);
        let directions: Vec<Vec<f64>> = table.values().chunks(width).map(direction).collect();
        let cosine = |i: usize| dot(&directions[i / rows], &directions[i % rows]).clamp(-1.0, 1.0);
        Self { rows, cosines: (0..rows * rows).map(cosine).collect() }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The cosines of one row with every row; empty for a row that there is not.
    pub fn row(&self, row: usize) -> &[f64] {
        self.cosines.chunks(self.rows).nth(row).unwrap_or_default()
    }

    /// Every two different rows, the most alike first.
    pub fn pairs(&self) -> Vec<AlikePair> {
        let cosines = self.cosines.iter().enumerate();
        let pairs = cosines.map(|(i, &cosine)| (i / self.rows, i % self.rows, cosine));
        let mut pairs: Vec<AlikePair> = pairs.filter(|(a, b, _)| a < b).collect();
        pairs.sort_by(|a, b| b.2.total_cmp(&a.2));
        pairs
    }
}

fn direction(row: &[f32]) -> Vec<f64> {
    let row: Vec<f64> = row.iter().map(|&value| f64::from(value)).collect();
    let length = dot(&row, &row).sqrt();
    if length > 0.0 { row.into_iter().map(|value| value / length).collect() } else { row }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::super::{embedding::EmbeddingKind, tensors::HostTensor};
    use super::*;

    fn similarity(rows: usize, values: &[f32]) -> Similarity {
        let table = HostTensor::new(vec![rows, values.len() / rows], values.to_vec()).unwrap();
        Similarity::of(&ClassEmbeddings::new(EmbeddingKind::Imported, table).unwrap())
    }

    #[test]
    fn the_most_alike_rows_come_first_whatever_their_length() {
        let similarity = similarity(3, &[1.0, 0.0, 0.0, 2.0, 30.0, 30.0]);
        let pairs = similarity.pairs();
        assert_eq!(pairs.iter().map(|&(a, b, _)| (a, b)).collect::<Vec<_>>(), [(0, 2), (1, 2), (0, 1)]);
        assert!((pairs[0].2 - 0.5f64.sqrt()).abs() < 1e-12);
        assert!((similarity.row(2)[2] - 1.0).abs() < 1e-12);
        assert!(similarity.row(3).is_empty());
    }

    #[test]
    fn a_row_of_zeros_is_like_nothing() {
        assert_eq!(similarity(2, &[0.0, 0.0, 1.0, 1.0]).row(0), [0.0, 0.0]);
    }
}
