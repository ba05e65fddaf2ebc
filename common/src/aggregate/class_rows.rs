//! Rows that belong to a class average over the sites annotating that class alone (design §4): a site that never saw a
//! class must not pull its embedding towards where it was.

use std::collections::{BTreeMap, BTreeSet};

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
        let tensors = base.layout().tensors();
        let tensor = tensors.iter().position(|tensor| tensor.name == name);
        let shape = tensor.and_then(|index| tensors.get(index)).map_or(&[][..], |tensor| &tensor.shape);
        let rows = shape.first().map_or(0, |&rows| rows as usize);
        let classes = annotating.keys().next_back().map_or(1, |class| class.channel() + 1);
        let (Some(tensor), true) = (tensor, rows >= classes) else {
            return Err(AggregateError::ClassTable { tensor: name.to_owned(), classes, rows });
        };
        let weight_in_row = |site: &WeightedUpdate, row: usize| {
            let sites = ClassId::from_channel(row).and_then(|class| annotating.get(&class));
            if sites.is_some_and(|sites| sites.contains(site.update.site())) { site.weight } else { 0.0 }
        };
        let by_site: Vec<Vec<f64>> =
            updates.iter().map(|site| (0..rows).map(|row| weight_in_row(site, row)).collect()).collect();
        let totals = (0..rows).map(|row| by_site.iter().map(|weights| weights[row]).sum()).collect();
        let row_len = shape.iter().skip(1).map(|&axis| u64::from(axis)).product();
        Ok(Self { tensor, row_len, by_site, totals })
    }

    /// Index of the table in the layout.
    pub(super) fn tensor(&self) -> usize {
        self.tensor
    }

    /// Weight of the `site`-th update at each element of the table, from `element` on.
    pub(super) fn weights_from(&self, site: usize, element: u64) -> impl Iterator<Item = f64> {
        self.spread(self.by_site.get(site).map_or(&[][..], Vec::as_slice), element)
    }

    /// Sum of weights at each element of the table, from `element` on.
    pub(super) fn totals_from(&self, element: u64) -> impl Iterator<Item = f64> {
        self.spread(&self.totals, element)
    }

    fn spread<'a>(&self, rows: &'a [f64], element: u64) -> impl Iterator<Item = f64> + use<'a> {
        let row_len = self.row_len;
        // A layout has no empty axis, so a row is not empty; rows fit memory, so the quotient fits `usize`.
        (element..).map_while(move |element| rows.get((element / row_len) as usize).copied())
    }
}
