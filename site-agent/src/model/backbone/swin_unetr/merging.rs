//! Patch merging: eight neighbours become one token of twice the width.

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor},
};
use common::study::sections::PatchMerging;

use crate::model::layers::{LayerNorm, PlainLinear};

/// Parities of the neighbours along x, y and z, in the order in which they are joined.
const fn parities(merging: PatchMerging) -> [[usize; 3]; 8] {
    const SHARED: [[usize; 3]; 5] = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]];
    let [a, b, c, d, e] = SHARED;
    match merging {
        // 110 and 011 are left out, 010 and 001 come twice: a slip that every published checkpoint was trained with.
        PatchMerging::Monai0_9 => [a, b, c, d, e, [0, 1, 0], [0, 0, 1], [1, 1, 1]],
        PatchMerging::Corrected => [a, b, c, d, e, [1, 1, 0], [0, 1, 1], [1, 1, 1]],
    }
}

/// Joins, normalises, projects: `[n, x · y · z, c]` to `[n, x · y · z / 8, 2 c]`.
#[derive(Module, Debug)]
pub struct Downsample {
    norm: LayerNorm,
    reduction: PlainLinear,
    #[module(skip)]
    merging: PatchMerging,
}

impl Downsample {
    /// A merging of zeros, of tokens with `width` numbers.
    pub fn new(width: usize, merging: PatchMerging, device: &Device) -> Self {
        let (norm, reduction) =
            (LayerNorm::new(8 * width, device), PlainLinear::new(8 * width, 2 * width, device));
        Self { norm, reduction, merging }
    }

    /// `space` are the sides before, all even.
    pub fn forward(&self, x: Tensor<3>, space: [usize; 3]) -> Tensor<3> {
        let [n, _, width] = x.dims();
        let rows = neighbours(space, self.merging);
        let rows = Tensor::<1, Int>::from_ints(rows.as_slice(), &x.device());
        let merged = x.select(1, rows).reshape([n, space.iter().product::<usize>() / 8, 8 * width]);
        self.reduction.forward(self.norm.forward(merged))
    }
}

/// For each token after merging, the eight tokens before it.
fn neighbours([nx, ny, nz]: [usize; 3], merging: PatchMerging) -> Vec<i32> {
    let after = [nx / 2, ny / 2, nz / 2];
    let tokens = (0..after.iter().product::<usize>())
        .map(|i| [i / (after[1] * after[2]), i / after[2] % after[1], i % after[2]]);
    let row = |[x, y, z]: [usize; 3], [a, b, c]: [usize; 3]| ((2 * x + a) * ny + 2 * y + b) * nz + 2 * z + c;
    tokens.flat_map(|at| parities(merging).map(|parity| row(at, parity) as i32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corrected_merging_reads_each_token_once_and_that_of_monai_does_not() {
        let space = [4, 2, 6];
        let mut corrected = neighbours(space, PatchMerging::Corrected);
        corrected.sort_unstable();
        assert!(corrected.into_iter().eq(0..48));
        let mut monai = neighbours(space, PatchMerging::Monai0_9);
        monai.sort_unstable();
        monai.dedup();
        assert_eq!(monai.len(), 36);
    }
}
