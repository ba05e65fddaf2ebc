//! Label transfer: from a data set's own numbers to the classes of the taxonomy, with what the case annotates.
//!
//! The order of operations is the reference's (specification §3.3): values → folds → split of left and right, at native
//! resolution, on axes R, A, S; resampling is the way of the image ([`LabelledCase::prepared`]); then one mask for each annotated
//! class, from the mapped volume or, where the label map says so, from the raw values. A class that is not annotated has
//! no mask at all: nothing downstream can mistake it for background.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::ClassId;
use common::label_map::{Fold, LabelMap, Target};
use common::taxonomy::Taxonomy;

use super::components::{Components, grow};
use super::geometry::GeometryMismatch;
use super::preprocess::{Journey, preprocess_labels};
use super::volume::{Grid, Volume};

/// A label file that its label map does not explain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Values that the map does not list, not even as `drop`.
    #[error("{file}: {}: the label map lists no such value", describe(.unlisted))]
    Unlisted {
        /// The label file.
        file: String,
        /// Each value and its number of voxels.
        unlisted: BTreeMap<i32, usize>,
    },
}

/// A copy of the scan in the place of its labels has thousands of values.
fn describe(unlisted: &BTreeMap<i32, usize>) -> String {
    const SHOWN: usize = 8;
    let each = unlisted.iter().take(SHOWN).map(|(value, count)| format!("value {value} ({count} voxels)"));
    let mut text = each.collect::<Vec<_>>().join(", ");
    if unlisted.len() > SHOWN {
        let others = unlisted.len() - SHOWN;
        text += &format!(" and {others} others (is this a scan, and not its labels?)");
    }
    text
}

/// Where the mask of an annotated class comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MaskSource {
    /// The voxels that were mapped to the class.
    Mapped,
    /// The voxels with these raw values, whatever the folds made of them.
    Raw(Vec<i32>),
}

/// The labels of one case: which classes it annotates, and where each of them is. Masks may overlap.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledCase {
    mapped: Volume<u8>,
    raw: Volume<i32>,
    masks: BTreeMap<ClassId, MaskSource>,
}

impl LabelledCase {
    /// Transfers the labels `raw` (axes R, A, S, native resolution) of a case that annotates `annotated`.
    ///
    /// `file` names the label file in errors.
    ///
    /// # Errors
    /// [`LabelError`] names every value that the label map does not list, with its count.
    pub fn transfer(
        raw: Volume<i32>,
        map: &LabelMap,
        annotated: &BTreeSet<ClassId>,
        taxonomy: &Taxonomy,
        file: &str,
    ) -> Result<Self, LabelError> {
        let mut mapped = map_values(&raw, map, file)?;
        fold_lesions(&mut mapped, &map.folds);
        for &right in &map.splits {
            // Invariant: a label map splits only the right one of a pair.
            if let Some(left) = taxonomy.left_of(right) {
                split_sides(&mut mapped, right, left);
            }
        }
        Ok(Self::new(mapped, raw, annotated.iter().map(|&class| (class, mask_source(map, class))).collect()))
    }

    /// Joins volumes over one grid and the sources of their masks.
    ///
    /// # Panics
    /// When the grids differ: a mistake of the caller.
    pub fn new(mapped: Volume<u8>, raw: Volume<i32>, masks: BTreeMap<ClassId, MaskSource>) -> Self {
        assert_eq!(mapped.shape(), raw.shape(), "both volumes lie on the grid of the case");
        Self { mapped, raw, masks }
    }

    /// The same labels on the grid that the image of the case was prepared on, by nearest voxel.
    ///
    /// # Errors
    /// Labels that do not lie on the image.
    pub fn prepared(&self, journey: &Journey) -> Result<Self, GeometryMismatch> {
        let mapped = preprocess_labels(&self.mapped, journey)?;
        let raw = preprocess_labels(&self.raw, journey)?;
        Ok(Self::new(mapped, raw, self.masks.clone()))
    }

    /// The grid of all masks.
    pub fn grid(&self) -> &Grid {
        self.mapped.grid()
    }

    /// The annotated classes, ascending.
    pub fn annotated(&self) -> impl Iterator<Item = ClassId> + '_ {
        self.masks.keys().copied()
    }

    /// Each annotated class and where its mask comes from.
    pub fn masks(&self) -> &BTreeMap<ClassId, MaskSource> {
        &self.masks
    }

    /// Whether voxel `offset` belongs to `class`; never, if the class is not annotated.
    #[inline]
    pub fn contains(&self, class: ClassId, offset: usize) -> bool {
        match self.masks.get(&class) {
            Some(MaskSource::Mapped) => self.mapped.voxels()[offset] == class.get(),
            Some(MaskSource::Raw(values)) => values.contains(&self.raw.voxels()[offset]),
            None => false,
        }
    }

    /// The mask of `class`, C order, if the case annotates it.
    pub fn mask(&self, class: ClassId) -> Option<Vec<bool>> {
        self.masks
            .contains_key(&class)
            .then(|| (0..self.grid().len()).map(|offset| self.contains(class, offset)).collect())
    }

    /// Whether `class` has a large piece on either side of the grid's middle, as both organs of a pair have; never, if the class is
    /// not annotated.
    pub fn is_on_both_sides(&self, class: ClassId) -> bool {
        /// How many times larger one of two organs of a pair may be.
        const RATIO: usize = 4;
        let Some(mask) = self.mask(class) else { return false };
        let shape = self.grid().shape;
        let pieces = Components::of(&mask, shape);
        let &[first, second, ..] = pieces.by_size().as_slice() else { return false };
        let size = |piece: u32| pieces.sizes[piece as usize - 1];
        let middle = (shape[0] as f64 - 1.0) / 2.0;
        let is_left = |piece| pieces.mean_index(piece, shape, 0) < middle;
        size(first) <= RATIO * size(second) && is_left(first) != is_left(second)
    }

    /// The class of each voxel after folds and splits, 0 where the map drops the value: the reference's single channel.
    pub fn mapped(&self) -> &Volume<u8> {
        &self.mapped
    }

    /// The values of the label file.
    pub fn raw(&self) -> &Volume<i32> {
        &self.raw
    }
}

fn map_values(raw: &Volume<i32>, map: &LabelMap, file: &str) -> Result<Volume<u8>, LabelError> {
    let mut unlisted = BTreeMap::new();
    let mapped = raw.map(|&value| match map.target(value) {
        Some(Target::Class(class)) => class.get(),
        Some(Target::Drop) => 0,
        None => {
            *unlisted.entry(value).or_insert(0) += 1;
            0
        }
    });
    if unlisted.is_empty() {
        Ok(mapped)
    } else {
        Err(LabelError::Unlisted { file: file.to_owned(), unlisted })
    }
}

fn mask_source(map: &LabelMap, class: ClassId) -> MaskSource {
    let raw = map.raw_masks.iter().find(|mask| mask.class == class);
    raw.map_or(MaskSource::Mapped, |mask| MaskSource::Raw(mask.values.clone()))
}

/// Makes lesions part of their organ; those that several folds name, of one of the organs, piece by piece.
fn fold_lesions(mapped: &mut Volume<u8>, folds: &[Fold]) {
    for (index, fold) in folds.iter().enumerate() {
        let later = &folds[index + 1..];
        let is_shared = |lesion: &ClassId| later.iter().any(|other| other.from.contains(lesion));
        let (shared, own): (Vec<ClassId>, Vec<ClassId>) = fold.from.iter().copied().partition(is_shared);
        let folded = mapped.voxels_mut().iter_mut().filter(|id| is_one_of(&own, **id));
        folded.for_each(|id| *id = fold.into.get());
        if !shared.is_empty() {
            let others = later.iter().filter(|other| other.from.iter().any(|lesion| shared.contains(lesion)));
            let organs: Vec<ClassId> =
                std::iter::once(fold.into).chain(others.map(|other| other.into)).collect();
            give_to_nearest(mapped, &shared, &organs);
        }
    }
}

fn is_one_of(classes: &[ClassId], id: u8) -> bool {
    classes.iter().any(|class| class.get() == id)
}

/// Gives each connected piece of the lesions to the organ that most of its voxels are nearest to: what lies in or at the left
/// kidney is part of that one. Nearest is counted in voxels, which tells sides apart on any grid. Where none of the organs is to
/// be seen, the first has it, as a single kidney is the right one (specification §3.4).
fn give_to_nearest(mapped: &mut Volume<u8>, lesions: &[ClassId], organs: &[ClassId]) {
    let shape = mapped.shape();
    let is_lesion: Vec<bool> = mapped.voxels().iter().map(|&id| is_one_of(lesions, id)).collect();
    let pieces = Components::of(&is_lesion, shape);
    if pieces.sizes.is_empty() {
        return;
    }
    let mut nearest = mapped.map(|&id| if is_one_of(organs, id) { id } else { 0 }).into_voxels();
    grow(&mut nearest, &is_lesion, shape);
    let mut voxels: BTreeMap<(u32, u8), usize> = BTreeMap::new();
    for (&piece, &organ) in pieces.of_voxel.iter().zip(&nearest).filter(|(piece, _)| **piece != 0) {
        *voxels.entry((piece, organ)).or_default() += 1;
    }
    // Of equals, `max_by_key` keeps the last: backwards, that is the first.
    let organ_of = |piece: u32| organs.iter().rev().max_by_key(|organ| voxels.get(&(piece, organ.get())));
    let organ_of: Vec<Option<&ClassId>> = (1..=pieces.sizes.len() as u32).map(organ_of).collect();
    for (id, &piece) in mapped.voxels_mut().iter_mut().zip(&pieces.of_voxel).filter(|(_, of)| **of != 0) {
        if let Some(organ) = organ_of[piece as usize - 1] {
            *id = organ.get();
        }
    }
}

/// Gives the left one of the two largest components of `right` to the class `left` (specification §3.4).
///
/// The one whose mean index along R is lower is the left one; on equal means, the smaller. A single component stays
/// right, and so does every further fragment, wherever it lies.
fn split_sides(mapped: &mut Volume<u8>, right: ClassId, left: ClassId) {
    let mask: Vec<bool> = mapped.voxels().iter().map(|&id| id == right.get()).collect();
    let shape = mapped.shape();
    let components = Components::of(&mask, shape);
    let &[first, second, ..] = components.by_size().as_slice() else { return };
    let mean = |component| components.mean_index(component, shape, 0);
    let left_part = if mean(first) < mean(second) { first } else { second };
    for (id, &component) in mapped.voxels_mut().iter_mut().zip(&components.of_voxel) {
        if component == left_part {
            *id = left.get();
        }
    }
}

#[cfg(test)]
mod tests;
