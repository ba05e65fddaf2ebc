//! Rows that belong to a class average over the sites annotating that class alone (design §4): a site that never saw a
//! class must not pull its embedding towards where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{AggregateError, WeightedUpdate};
use crate::artifact::ArtifactManifest;
use crate::ids::{ClassId, SiteId};

/// The weights of a class table: by row and site instead of by site.
#[derive(Debug)]
pub(super) struct ClassRows {
    tensor: usize,
    row_len: u64,
    /// Of each site, in order, the weight in each row: its weight, or 0 where it does not annotate the row's class.
    by_site: Vec<Vec<f64>>,
    /// Of each row, the sum over sites.
    totals: Vec<f64>,
}

impl ClassRows {
    pub(super) fn new(
        base: &ArtifactManifest,
        name: &str,
        annotating: &BTreeMap<ClassId, BTreeSet<SiteId>>,
        updates: &[WeightedUpdate],
    ) -> Result<Self, AggregateError> {
        let found = base.layout().tensors().iter().enumerate().find(|(_, tensor)| tensor.name == name);
        let Some((tensor, [rows, row @ ..])) = found.map(|(index, tensor)| (index, &tensor.shape[..])) else {
            return Err(AggregateError::ClassTable { tensor: name.to_owned() });
        };
        let rows = *rows as usize;
        let weight_in_row = |site: &WeightedUpdate, row: usize| {
            let sites = ClassId::from_channel(row).and_then(|class| annotating.get(&class));
            if sites.is_some_and(|sites| sites.contains(site.update.site())) { site.weight } else { 0.0 }
        };
        let by_site: Vec<Vec<f64>> =
            updates.iter().map(|site| (0..rows).map(|row| weight_in_row(site, row)).collect()).collect();
        let totals = (0..rows).map(|row| by_site.iter().map(|weights| weights[row]).sum()).collect();
        let row_len = row.iter().map(|&axis| u64::from(axis)).product();
        Ok(Self { tensor, row_len, by_site, totals })
    }

    /// Index of the table in the layout.
    pub(super) fn tensor(&self) -> usize {
        self.tensor
    }

    /// Weight of the `site`-th update in `row`.
    pub(super) fn weight(&self, site: usize, row: usize) -> f64 {
        self.by_site.get(site).and_then(|rows| rows.get(row)).copied().unwrap_or(0.0)
    }

    /// Sum of the weights in `row`.
    pub(super) fn total(&self, row: usize) -> f64 {
        self.totals.get(row).copied().unwrap_or(0.0)
    }

    /// The rows of `len` elements of the table, from `first` on, each with its place among these.
    pub(super) fn rows(&self, first: u64, len: usize) -> Vec<(usize, Range<usize>)> {
        let mut rows = Vec::new();
        let mut start = 0;
        while start < len {
            // A layout has no empty axis, so a row is not empty; rows fit memory, so the quotient fits `usize`.
            let row = (first + start as u64) / self.row_len;
            let end = usize::try_from((row + 1) * self.row_len - first).map_or(len, |end| end.min(len));
            rows.push((row as usize, start..end));
            start = end;
        }
        rows
    }
}
