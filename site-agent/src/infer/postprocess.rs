//! Post-processing of raw masks by the rules of the reference (specification §12.2): on the network's grid as there, or, where a
//! study brings logits to the scan's own grid (`upsampling = "linear"`), on that one. Pieces are those of its voxels.
//!
//! The rules know anatomy, not images: most organs are one piece, lungs are two, a tumour lies in its organ. They are a
//! table over the standard taxonomy's classes; a study with its own taxonomy gets the rules of the classes that it shares by
//! name, as far as it has the other classes that they need, and every other class is left as it is. Two rules are strict:
//! a scan that shows one lung alone loses it, and the veins below the pancreas go. Who wants what the network said takes
//! the raw masks.

use std::collections::BTreeMap;

use common::ids::ClassId;
use common::taxonomy::Taxonomy;

use super::masks::ClassMasks;
use super::morphology::{close, dilate};
use crate::data::components::Components;

/// What becomes of a class. Other classes are named by their ids in the standard taxonomy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Nothing.
    AsItIs,
    /// The largest component stays.
    Largest,
    /// The largest component stays, and `veins` lose their slices below its lowest one, if they are asked for too.
    LargestAboveVeins {
        /// What ends where this organ ends.
        veins: u8,
    },
    /// Of this right class and its left one together, the two largest components stay, each on its side; with fewer
    /// than two, nothing stays of either.
    BothSides {
        /// The left class.
        left: u8,
    },
    /// The rule of the right class fills it.
    WithItsRight {
        /// The right class.
        right: u8,
    },
    /// What lies in the organs stays; they are closed and grown by [`MARGIN_MM`] first.
    Within {
        /// The organs, as many components of them as there are organs.
        organs: &'static [u8],
    },
}

/// The rules by class id of the standard taxonomy.
const TABLE: &[(&[u8], Rule)] = &[
    (&[1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14], Rule::Largest),
    (&[18, 19, 20, 21, 22, 23, 24, 25], Rule::Largest),
    (&[11], Rule::LargestAboveVeins { veins: 10 }),
    (&[16], Rule::BothSides { left: 17 }),
    (&[17], Rule::WithItsRight { right: 16 }),
    (&[26], Rule::Within { organs: &[2, 3] }),
    (&[27], Rule::Within { organs: &[6] }),
    (&[10, 15, 28, 29, 30, 31, 32], Rule::AsItIs),
];

/// How far organs are closed and grown to hold their tumours, mm: the reference's cube of five voxels of 1.5 mm.
pub const MARGIN_MM: f64 = 3.0;

/// The rules for the classes of one taxonomy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    classes: Vec<ClassId>,
    /// The taxonomy's class for each id of the standard one that it shares by name.
    shared: BTreeMap<u8, ClassId>,
}

impl Rules {
    /// The rules for `taxonomy`.
    pub fn of(taxonomy: &Taxonomy) -> Self {
        let standard = Taxonomy::standard();
        let known = standard.classes().iter();
        let shared = known.filter_map(|class| Some((class.id.get(), taxonomy.find(&class.name)?.id)));
        Self { classes: taxonomy.classes().iter().map(|class| class.id).collect(), shared: shared.collect() }
    }

    /// All classes of the taxonomy, ascending: the list that leaves none out.
    pub fn classes(&self) -> &[ClassId] {
        &self.classes
    }

    /// The rule of a class. One that needs classes which the taxonomy does not have would empty it: then there is none.
    pub fn rule(&self, class: ClassId) -> Rule {
        let standard = self.shared.iter().find(|(_, shared)| **shared == class).map(|(id, _)| *id);
        let row = TABLE.iter().find(|(ids, _)| standard.is_some_and(|id| ids.contains(&id)));
        let has_any = |needed: &[u8]| needed.iter().any(|&standard| self.class(standard).is_some());
        match row.map_or(Rule::AsItIs, |(_, rule)| *rule) {
            Rule::BothSides { left: other } | Rule::WithItsRight { right: other } if !has_any(&[other]) => {
                Rule::AsItIs
            }
            Rule::Within { organs } if !has_any(organs) => Rule::AsItIs,
            rule => rule,
        }
    }

    /// The taxonomy's class for an id of the table.
    fn class(&self, standard: u8) -> Option<ClassId> {
        self.shared.get(&standard).copied()
    }
}

/// Cleans the masks of the classes in `list`, in its order; all others come out empty. Axes are R, A, S.
///
/// A rule that changes two classes writes both when its own is visited, and a class visited later is written again: only
/// with the veins before the pancreas do they end above it, as in an ascending list.
pub fn postprocess(raw: &ClassMasks, list: &[ClassId], rules: &Rules) -> ClassMasks {
    let mut cleaned = ClassMasks::empty(raw.grid().clone(), raw.classes());
    let mut put = |class: ClassId, mask: Vec<bool>| {
        if class.channel() < raw.classes() {
            cleaned.replace(class, mask.into_iter());
        }
    };
    let shape = raw.grid().shape;
    for &class in list {
        match rules.rule(class) {
            Rule::AsItIs => put(class, raw.mask(class)),
            Rule::Largest => put(class, largest(&raw.mask(class), shape, 1)),
            Rule::LargestAboveVeins { veins } => {
                let organ = largest(&raw.mask(class), shape, 1);
                let veins = rules.class(veins).filter(|veins| list.contains(veins));
                if let (Some(veins), Some(lowest)) = (veins, lowest_slice(&organ, shape)) {
                    put(veins, from_slice(raw.mask(veins), shape, lowest));
                }
                put(class, organ);
            }
            Rule::BothSides { left } => {
                // There is no such rule without the left class.
                let Some(left) = rules.class(left) else { continue };
                let [left_mask, right_mask] = both_sides(&union(raw, &[class, left]), shape);
                put(left, left_mask);
                put(class, right_mask);
            }
            Rule::WithItsRight { .. } => {}
            Rule::Within { organs } => {
                let organs: Vec<ClassId> = organs.iter().filter_map(|&organ| rules.class(organ)).collect();
                put(class, within(raw, class, &organs));
            }
        }
    }
    cleaned
}

/// The `count` largest 26-connected components; of equal ones the earlier.
fn largest(mask: &[bool], shape: [usize; 3], count: usize) -> Vec<bool> {
    let components = Components::of(mask, shape);
    let mut kept = components.by_size();
    kept.truncate(count);
    components.of_voxel.iter().map(|component| kept.contains(component)).collect()
}

/// The first index along S that holds a voxel of the mask.
fn lowest_slice(mask: &[bool], shape: [usize; 3]) -> Option<usize> {
    let voxels = mask.iter().enumerate().filter(|(_, inside)| **inside);
    voxels.map(|(offset, _)| offset % shape[2]).min()
}

/// The mask from slice `lowest` along S on.
fn from_slice(mut mask: Vec<bool>, shape: [usize; 3], lowest: usize) -> Vec<bool> {
    mask.iter_mut().enumerate().for_each(|(offset, inside)| *inside &= offset % shape[2] >= lowest);
    mask
}

fn union(raw: &ClassMasks, classes: &[ClassId]) -> Vec<bool> {
    let inside = |offset| classes.iter().any(|&class| raw.contains(class, offset));
    (0..raw.grid().len()).map(inside).collect()
}

/// Left and right part of a mask that holds both: the two largest components, the one further left by its mean.
fn both_sides(mask: &[bool], shape: [usize; 3]) -> [Vec<bool>; 2] {
    let components = Components::of(mask, shape);
    let &[first, second, ..] = components.by_size().as_slice() else {
        return [vec![false; mask.len()], vec![false; mask.len()]];
    };
    let mean = |component| components.mean_index(component, shape, 0);
    let (left, right) = if mean(first) < mean(second) { (first, second) } else { (second, first) };
    [left, right].map(|side| components.of_voxel.iter().map(|&component| component == side).collect())
}

/// The part of a tumour that lies in its organs, or so close that rounding could have put it outside.
fn within(raw: &ClassMasks, tumour: ClassId, organs: &[ClassId]) -> Vec<bool> {
    let mut mask = raw.mask(tumour);
    if !mask.contains(&true) {
        return mask;
    }
    let (shape, spacing_mm) = (raw.grid().shape, raw.grid().affine.spacing());
    let radius = std::array::from_fn(|axis| margin(spacing_mm[axis], shape[axis]));
    let organ = largest(&union(raw, organs), shape, organs.len());
    let region = dilate(&close(&organ, shape, radius), shape, radius);
    mask.iter_mut().zip(region).for_each(|(inside, near)| *inside &= near);
    mask
}

/// [`MARGIN_MM`] along an axis: at least a voxel, however coarse the grid, but no box longer than the axis, or closing would
/// leave nothing of any organ and no tumour in it.
fn margin(spacing_mm: f64, length: usize) -> usize {
    let voxels = (MARGIN_MM / spacing_mm).round().max(1.0) as usize;
    voxels.min(length.saturating_sub(1) / 2)
}

#[cfg(test)]
mod tests;
