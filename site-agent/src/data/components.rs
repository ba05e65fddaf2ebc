//! Connected components of a mask, 26-neighbourhood, and which of several structures a voxel is nearest to.

/// Components of a mask: a number for each voxel, and how many voxels each number has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Components {
    /// 0 outside the mask, else the component, numbered from 1 in the order of their first voxels.
    pub of_voxel: Vec<u32>,
    /// Voxels of each component; entry 0 is component 1.
    pub sizes: Vec<usize>,
}

impl Components {
    /// Components of `mask` over `shape`, C order.
    ///
    /// # Panics
    /// When the mask does not fill the shape: a mistake of the caller.
    pub fn of(mask: &[bool], shape: [usize; 3]) -> Self {
        assert_eq!(mask.len(), shape.iter().product::<usize>(), "the mask must fill {shape:?}");
        let mut found = Self { of_voxel: vec![0; mask.len()], sizes: Vec::new() };
        let mut frontier = Vec::new();
        for seed in 0..mask.len() {
            if !mask[seed] || found.of_voxel[seed] != 0 {
                continue;
            }
            let label = found.sizes.len() as u32 + 1;
            found.of_voxel[seed] = label;
            frontier.push(seed);
            let mut size = 0;
            while let Some(voxel) = frontier.pop() {
                size += 1;
                for_neighbours(voxel, shape, |neighbour| {
                    if mask[neighbour] && found.of_voxel[neighbour] == 0 {
                        found.of_voxel[neighbour] = label;
                        frontier.push(neighbour);
                    }
                });
            }
            found.sizes.push(size);
        }
        found
    }

    /// The components, largest first; of equal ones the earlier.
    pub fn by_size(&self) -> Vec<u32> {
        let mut labels: Vec<u32> = (1..=self.sizes.len() as u32).collect();
        labels.sort_by_key(|&label| std::cmp::Reverse(self.sizes[label as usize - 1]));
        labels
    }

    /// Mean index of the voxels of `component` along `axis` of `shape`; NaN for a component that does not exist.
    pub fn mean_index(&self, component: u32, shape: [usize; 3], axis: usize) -> f64 {
        let stride: usize = shape[axis + 1..].iter().product();
        let members = self.of_voxel.iter().enumerate().filter(|(_, of)| **of == component);
        let (count, sum) = members.fold((0u64, 0u64), |(count, sum), (voxel, _)| {
            (count + 1, sum + (voxel / stride % shape[axis]) as u64)
        });
        sum as f64 / count as f64
    }
}

/// Lets the seeds (entries other than 0, over `shape` in C order) grow by one voxel to all sides at a time, until each `wanted`
/// voxel has the seed that is fewest steps away. Without any seed all stays 0.
///
/// # Panics
/// When seeds or wanted voxels do not fill the shape: a mistake of the caller.
pub fn grow(seeds: &mut [u8], wanted: &[bool], shape: [usize; 3]) {
    let voxels = shape.iter().product::<usize>();
    assert_eq!((seeds.len(), wanted.len()), (voxels, voxels), "both must fill {shape:?}");
    let mut missing = seeds.iter().zip(wanted).filter(|(seed, wanted)| **seed == 0 && **wanted).count();
    let mut front: Vec<usize> = (0..voxels).filter(|&voxel| seeds[voxel] != 0).collect();
    while missing > 0 && !front.is_empty() {
        let mut next = Vec::new();
        for voxel in front {
            let seed = seeds[voxel];
            for_neighbours(voxel, shape, |neighbour| {
                if seeds[neighbour] == 0 {
                    seeds[neighbour] = seed;
                    missing -= usize::from(wanted[neighbour]);
                    next.push(neighbour);
                }
            });
        }
        front = next;
    }
}

/// Calls `visit` with each voxel of the 3×3×3 cube around `voxel` that lies inside `shape`.
fn for_neighbours(voxel: usize, shape: [usize; 3], mut visit: impl FnMut(usize)) {
    let [_, columns, rows] = shape;
    let index = [voxel / (columns * rows), voxel / rows % columns, voxel % rows];
    let around = |axis: usize| index[axis].saturating_sub(1)..(index[axis] + 2).min(shape[axis]);
    for i in around(0) {
        for j in around(1) {
            for k in around(2) {
                visit((i * columns + j) * rows + k);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voxels_that_touch_at_a_corner_are_one_component() {
        let mut mask = vec![false; 3 * 4 * 5];
        for voxel in [0, (4 + 1) * 5 + 1, (2 * 4 + 3) * 5 + 4] {
            mask[voxel] = true;
        }
        let found = Components::of(&mask, [3, 4, 5]);
        assert_eq!(found.sizes, [2, 1]);
        assert_eq!(found.by_size(), [1, 2]);
    }

    #[test]
    fn the_end_of_a_row_does_not_touch_the_start_of_the_next() {
        let mut mask = vec![false; 2 * 3 * 4];
        mask[3] = true; // [0, 0, 3]
        mask[8] = true; // [0, 2, 0]
        assert_eq!(Components::of(&mask, [2, 3, 4]).sizes, [1, 1]);
    }

    #[test]
    fn seeds_grow_to_all_wanted_voxels_and_meet_half_way() {
        let mut wanted = [true; 10];
        wanted[8..].fill(false);
        let mut seeds = [0, 1, 0, 0, 0, 0, 2, 0, 0, 0];
        grow(&mut seeds, &wanted, [10, 1, 1]);
        assert_eq!(seeds, [1, 1, 1, 1, 2, 2, 2, 2, 2, 0], "no further than wanted");
        let mut around = [0; 27];
        around[13] = 7;
        grow(&mut around, &[true; 27], [3; 3]);
        assert_eq!(around, [7; 27]);
        let mut none = [0; 4];
        grow(&mut none, &[true; 4], [1, 4, 1]);
        assert_eq!(none, [0; 4]);
    }

    #[test]
    fn larger_components_come_first_and_equal_ones_in_order() {
        let mask = [true, false, true, true, false, true, false, true, true];
        let found = Components::of(&mask, [1, 1, 9]);
        assert_eq!(found.by_size(), [2, 4, 1, 3]);
    }
}
