//! One label per voxel out of masks that overlap (specification §12.3).

use common::label_map::MergeTable;
use common::taxonomy::Taxonomy;

use super::masks::ClassMasks;
use crate::data::volume::Volume;

/// The values of a table painted in its order, later classes over earlier ones; 0 where there is none.
pub fn merge(masks: &ClassMasks, table: &MergeTable) -> Volume<u8> {
    let mut merged = vec![0; masks.grid().len()];
    for &(class, value) in table.pairs() {
        paint(&mut merged, value, |offset| masks.contains(class, offset));
    }
    Volume::new(masks.grid().clone(), merged)
}

/// One class per voxel, by its id; 0 where there is none. Tumours and cysts are painted over the organs around them.
pub fn merge_labels(masks: &ClassMasks, taxonomy: &Taxonomy) -> Volume<u8> {
    merge(masks, &MergeTable::universal(taxonomy))
}

/// Gives `value` to the voxels that belong.
pub(super) fn paint(merged: &mut [u8], value: u8, belongs: impl Fn(usize) -> bool) {
    let voxels = merged.iter_mut().enumerate().filter(|(offset, _)| belongs(*offset));
    voxels.for_each(|(_, voxel)| *voxel = value);
}

#[cfg(test)]
mod tests {
    use common::label_map::LabelMap;
    use nalgebra::Matrix4;
    use safetensors::SafeTensors;

    use super::*;
    use crate::data::geometry::Affine;
    use crate::data::volume::Grid;
    use crate::golden::Golden;

    fn grid(shape: [usize; 3]) -> Grid {
        Grid { shape, affine: Affine::new(Matrix4::identity()).unwrap() }
    }

    #[test]
    fn merged_label_maps_equal_the_reference() {
        let Some(golden) = Golden::open() else { return };
        let bytes = golden.bytes("k_postprocess.safetensors");
        let facts = golden.facts("k_postprocess.json");
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let taxonomy = Taxonomy::standard();
        let stacked = file.tensor("all.pred").unwrap();
        let shape: [usize; 3] = stacked.shape()[2..].try_into().unwrap();
        let mut masks = ClassMasks::empty(grid(shape), 32);
        for (channel, mask) in stacked.data().chunks_exact(shape.iter().product()).enumerate() {
            masks.insert(channel, 0, mask.iter().map(|&voxel| voxel != 0));
        }
        let keys: Vec<&String> = facts["merge"]["names"].as_object().unwrap().keys().collect();
        let stored = file.names().into_iter().filter(|name| name.starts_with("merge.")).count();
        assert_eq!(stored, 2 * keys.len(), "every merged map of the file is compared");
        for key in keys {
            let map = LabelMap::standard(key).unwrap();
            let expected = |version: &str| file.tensor(&format!("merge.{key}.{version}")).unwrap().data();
            let ours = merge(&masks, &MergeTable::of(&map, &taxonomy).unwrap());
            assert!(ours.voxels() == expected("v1"), "{key}");
            let mut ours = merge(&masks, &MergeTable::with_sides(&map, &taxonomy).unwrap());
            if key == "05" {
                // Published: the left kidney gets the value of the cyst. Ours has the next free one.
                ours.voxels_mut().iter_mut().filter(|value| **value == 4).for_each(|value| *value = 3);
            }
            assert!(ours.voxels() == expected("v2"), "{key} with sides");
        }
    }

    #[test]
    fn tumours_are_painted_over_their_organ() {
        let mut masks = ClassMasks::empty(grid([1, 1, 2]), 32);
        masks.insert(26, 1, [true].into_iter());
        masks.insert(5, 0, [true, true].into_iter());
        assert_eq!(merge_labels(&masks, &Taxonomy::standard()).voxels(), [6, 27]);
    }

    #[test]
    fn a_class_without_a_value_of_its_own_is_not_painted() {
        let mut masks = ClassMasks::empty(grid([1, 1, 3]), 32);
        masks.insert(5, 0, [true, true, false].into_iter());
        masks.insert(0, 1, [true, true].into_iter());
        let taxonomy = Taxonomy::standard();
        let table = MergeTable::of(&LabelMap::standard("chaos").unwrap(), &taxonomy).unwrap();
        assert_eq!(merge(&masks, &table).voxels(), [1, 1, 0]);
    }
}
