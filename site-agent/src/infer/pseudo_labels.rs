//! Pseudo-labels: masks that a model makes of a site's own scans, written as a data set that says so (specification §12.5).
//!
//! Masks overlap and a label file has one value for each voxel. Merging them as for viewers would cut vessels out of the
//! liver, and a liver with holes is what would be learnt. Here each set of classes that occurs together gets a value of its
//! own, and the label map takes every class from all values whose set has it: nothing of the masks is lost. Which scans are
//! labelled, and where the files go, is for `site-agent pseudo-label`.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::ClassId;
use common::label_map::{Annotated, LabelMap, Provenance, Purpose, RawMask, Target};

use super::masks::ClassMasks;
use crate::data::volume::Volume;

/// Key of the label map: how a label manifest names the data set.
pub const KEY: &str = "pseudo-labels";

/// More sets of classes than a label file of bytes can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the masks overlap in more than 255 ways: name fewer classes, or clean the masks")]
pub struct TooManyOverlaps;

/// The values of one pseudo-labelled data set, each for a set of classes that share voxels.
#[derive(Clone, Debug)]
pub struct OverlapValues {
    /// The set behind each value; that of value 0 is empty.
    sets: Vec<BTreeSet<ClassId>>,
    /// Where one class more leads. Every set that occurs is a way from place 0, its classes ascending.
    steps: BTreeMap<(usize, ClassId), usize>,
    /// The value of the set that ends at each place, if one does.
    ends: Vec<Option<u8>>,
}

/// Background alone.
impl Default for OverlapValues {
    fn default() -> Self {
        Self { sets: vec![BTreeSet::new()], steps: BTreeMap::new(), ends: vec![Some(0)] }
    }
}

impl OverlapValues {
    /// The label file of one scan: the masks of `classes` and no other.
    ///
    /// # Errors
    /// [`TooManyOverlaps`], counted over all scans so far.
    pub fn encode(
        &mut self,
        masks: &ClassMasks,
        classes: &BTreeSet<ClassId>,
    ) -> Result<Volume<u8>, TooManyOverlaps> {
        let mut values: Vec<u8> = vec![0; masks.grid().len()];
        for (offset, value) in values.iter_mut().enumerate() {
            let here = || classes.iter().copied().filter(|&class| masks.contains(class, offset));
            let place = here().fold(0, |place, class| self.step(place, class));
            *value = match self.ends[place] {
                Some(known) => known,
                None => self.add(place, here().collect())?,
            };
        }
        Ok(Volume::new(masks.grid().clone(), values))
    }

    /// The label map of all files that were encoded. What a case annotates is for its entry in the case table to say.
    pub fn label_map(&self, name: &str, provenance: Provenance) -> LabelMap {
        let mut values = BTreeMap::from([(0, Target::Drop)]);
        let mut masks: BTreeMap<ClassId, Vec<i32>> = BTreeMap::new();
        for (value, set) in (0i32..).zip(&self.sets) {
            values.extend(set.last().map(|&class| (value, Target::Class(class))));
            set.iter().for_each(|&class| masks.entry(class).or_default().push(value));
        }
        LabelMap {
            name: name.to_owned(),
            key: KEY.to_owned(),
            purpose: Purpose::Training,
            values,
            annotated: Annotated::PerCase,
            folds: Vec::new(),
            splits: Vec::new(),
            raw_masks: masks.into_iter().map(|(class, values)| RawMask { class, values }).collect(),
            exclusions: Vec::new(),
            crop_ratios: Vec::new(),
            merge: Vec::new(),
            provenance: Some(provenance),
        }
    }

    /// The place one class further on.
    fn step(&mut self, place: usize, class: ClassId) -> usize {
        let new = self.ends.len();
        let next = *self.steps.entry((place, class)).or_insert(new);
        if next == new {
            self.ends.push(None);
        }
        next
    }

    /// A value for the set that ends at `place`.
    fn add(&mut self, place: usize, set: BTreeSet<ClassId>) -> Result<u8, TooManyOverlaps> {
        let value = u8::try_from(self.sets.len()).map_err(|_| TooManyOverlaps)?;
        self.sets.push(set);
        self.ends[place] = Some(value);
        Ok(value)
    }
}

/// The classes of `wanted` that are in the scan, with `min_volume_ml` or more.
///
/// A model that finds nothing of a class is no annotator who looked for it: what is not found is not annotated.
pub fn found(masks: &ClassMasks, wanted: &BTreeSet<ClassId>, min_volume_ml: f64) -> BTreeSet<ClassId> {
    let voxel_ml = masks.grid().affine.linear().determinant().abs() / 1000.0;
    let is_found = |class: &ClassId| {
        let voxels = (0..masks.grid().len()).filter(|&offset| masks.contains(*class, offset)).count();
        voxels > 0 && voxels as f64 * voxel_ml >= min_volume_ml
    };
    wanted.iter().copied().filter(is_found).collect()
}

#[cfg(test)]
mod tests {
    use common::taxonomy::Taxonomy;
    use common::testing::provenance;
    use nalgebra::Matrix4;

    use super::*;
    use crate::data::geometry::Affine;
    use crate::data::labels::LabelledCase;
    use crate::data::volume::Grid;

    fn class(id: u8) -> ClassId {
        ClassId::new(id).unwrap()
    }

    /// Voxels of 1 mm in a row, and on which of them each class lies.
    fn masks(voxels: usize, of: &[(u8, &[usize])]) -> ClassMasks {
        let grid = Grid { shape: [voxels, 1, 1], affine: Affine::new(Matrix4::identity()).unwrap() };
        let mut masks = ClassMasks::empty(grid, 32);
        for (id, offsets) in of {
            masks.replace(class(*id), (0..voxels).map(|offset| offsets.contains(&offset)));
        }
        masks
    }

    #[test]
    fn overlapping_masks_come_back_whole_through_label_file_and_map() {
        // A liver with a vessel and a tumour in it, and a tumour voxel in the vessel; the second scan has another overlap.
        let first = masks(6, &[(6, &[0, 1, 2, 3]), (15, &[1, 2]), (27, &[2, 3])]);
        let second = masks(6, &[(6, &[5]), (27, &[4, 5])]);
        let classes = BTreeSet::from([6, 15, 27].map(class));
        let mut values = OverlapValues::default();
        let files = [&first, &second].map(|masks| values.encode(masks, &classes).unwrap());

        let taxonomy = Taxonomy::standard();
        let text = values.label_map("from a model", provenance()).to_toml(&taxonomy);
        let map = LabelMap::parse("dataset.toml", &text, &taxonomy).unwrap();
        assert_eq!(map.provenance, Some(provenance()));
        for (masks, file) in [first, second].iter().zip(files) {
            let raw = file.map(|&value| i32::from(value));
            let labels = LabelledCase::transfer(raw, &map, &classes, &taxonomy, "labels.nii.gz").unwrap();
            for &class in &classes {
                assert_eq!(labels.mask(class), Some(masks.mask(class)), "class {class}");
            }
        }
    }

    #[test]
    fn a_class_that_is_not_asked_for_leaves_no_trace() {
        let masks = masks(3, &[(1, &[0, 1]), (6, &[1, 2])]);
        let mut values = OverlapValues::default();
        let file = values.encode(&masks, &BTreeSet::from([class(6)])).unwrap();
        assert_eq!(file.voxels(), [0, 1, 1]);
        let map = values.label_map("from a model", provenance());
        assert_eq!(map.producible(&Taxonomy::standard()), BTreeSet::from([class(6)]));
    }

    #[test]
    fn only_sets_that_occur_use_up_values() {
        // 250 sets of three classes each, and with them many more pairs that no voxel has alone.
        let triples: Vec<[u8; 3]> = (1..=14)
            .flat_map(|a| (1..a).flat_map(move |b| (1..b).map(move |c| [a, b, c])))
            .take(250)
            .collect();
        let mut many = masks(triples.len(), &[]);
        let classes: BTreeSet<ClassId> = (1..=14).map(class).collect();
        for &class in &classes {
            many.replace(class, triples.iter().map(|triple| triple.contains(&class.get())));
        }
        let mut values = OverlapValues::default();
        let file = values.encode(&many, &classes).unwrap();
        assert_eq!(file.voxels().iter().collect::<BTreeSet<_>>().len(), 250);
        assert_eq!(values.label_map("from a model", provenance()).values.len(), 1 + 250);
    }

    #[test]
    fn more_overlaps_than_values_are_an_error_and_no_wrong_label() {
        // Voxel v has the classes of the bits of v + 1: 511 sets of nine classes.
        let mut many = masks(511, &[]);
        for bit in 0..9 {
            many.replace(class(bit + 1), (1..=511usize).map(|set| set & (1 << bit) != 0));
        }
        let classes: BTreeSet<ClassId> = (1..=9).map(class).collect();
        assert_eq!(OverlapValues::default().encode(&many, &classes), Err(TooManyOverlaps));
    }

    #[test]
    fn what_is_too_small_or_absent_is_not_found() {
        let masks = masks(9, &[(1, &[0]), (6, &[1, 2, 3])]);
        let wanted = BTreeSet::from([1, 6, 7].map(class));
        assert_eq!(found(&masks, &wanted, 0.0), BTreeSet::from([1, 6].map(class)));
        assert_eq!(found(&masks, &wanted, 0.003), BTreeSet::from([class(6)]));
        assert_eq!(found(&masks, &wanted, 0.0031), BTreeSet::new());
    }
}
