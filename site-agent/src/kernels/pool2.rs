//! 2×2×2 maximum pooling, stride 2.

use rayon::prelude::*;

use super::Extent;

/// The largest of each 2×2×2 block, and which of the eight it was (the first, in C order, among equals).
///
/// # Panics
/// When an axis is odd: the model's configuration has checked the patch.
pub fn forward(x: &[f32], extent: Extent) -> (Vec<f32>, Vec<u8>) {
    let pooled = pooled(extent);
    let mut y = vec![0.0; pooled.len()];
    let mut which = vec![0; pooled.len()];
    let cells = y.par_chunks_mut(pooled.voxels()).zip(which.par_chunks_mut(pooled.voxels()));
    cells.zip(x.par_chunks(extent.voxels())).for_each(|((y, which), x)| {
        for (index, (y, which)) in y.iter_mut().zip(which).enumerate() {
            let origin = origin(index, extent, pooled);
            (*y, *which) = (x[origin], 0);
            for corner in 1..8u8 {
                let value = x[origin + offset(corner, extent)];
                if value > *y {
                    (*y, *which) = (value, corner);
                }
            }
        }
    });
    (y, which)
}

/// Sends each gradient back to the voxel that was the largest. `extent` is that of the input.
pub fn backward(dy: &[f32], which: &[u8], extent: Extent) -> Vec<f32> {
    let pooled = pooled(extent);
    let mut dx = vec![0.0; extent.len()];
    let cells = dx.par_chunks_mut(extent.voxels()).zip(dy.par_chunks(pooled.voxels()));
    cells.zip(which.par_chunks(pooled.voxels())).for_each(|((dx, dy), which)| {
        for (index, (&dy, &which)) in dy.iter().zip(which).enumerate() {
            dx[origin(index, extent, pooled) + offset(which, extent)] = dy;
        }
    });
    dx
}

/// The extent after pooling.
pub fn pooled(extent: Extent) -> Extent {
    assert!(extent.space.iter().all(|axis| axis % 2 == 0), "pooling halves every axis of {:?}", extent.space);
    Extent { space: extent.space.map(|axis| axis / 2), ..extent }
}

#[inline]
fn origin(index: usize, extent: Extent, pooled: Extent) -> usize {
    let [_, py, pz] = pooled.space;
    let (i, j, k) = (index / (py * pz), index / pz % py, index % pz);
    (2 * i * extent.space[1] + 2 * j) * extent.space[2] + 2 * k
}

#[inline]
fn offset(corner: u8, extent: Extent) -> usize {
    let (i, j, k) = (usize::from(corner >> 2), usize::from(corner >> 1 & 1), usize::from(corner & 1));
    (i * extent.space[1] + j) * extent.space[2] + k
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_returns_to_the_largest_voxel() {
        let extent = Extent { n: 1, channels: 2, space: [2, 4, 2] };
        let mut x: Vec<f32> = (0..extent.len()).map(|i| ((i * 37) % 32) as f32).collect();
        x[5] = 99.0;
        let (y, which) = forward(&x, extent);
        assert_eq!(y.len(), 4);
        let dx = backward(&[1.0, 2.0, 3.0, 4.0], &which, extent);
        assert_eq!(dx.iter().sum::<f32>(), 10.0);
        for (&x, &d) in x.iter().zip(&dx) {
            assert!(d == 0.0 || y.contains(&x));
        }
    }

    #[test]
    fn among_equals_the_first_wins() {
        let extent = Extent { n: 1, channels: 1, space: [2, 2, 2] };
        assert_eq!(forward(&[0.0; 8], extent).1, [0]);
    }
}
