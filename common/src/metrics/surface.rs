//! Normalised surface distance (specification §13), by an exact Euclidean distance transform with voxel spacing.
//!
//! A surface voxel is one of the mask with a 6-neighbour outside it; outside the grid counts as outside. This counts
//! voxels: it is not the area-weighted surface Dice of the Medical Segmentation Decathlon.

/// Shape and spacing of a mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Voxels along `[x, y, z]`.
    pub shape: [usize; 3],
    /// Millimetres between voxel centres along the same axes.
    pub spacing_mm: [f64; 3],
}

impl Grid {
    /// Number of voxels.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no voxel.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Distance in the flat slice between neighbours along each axis.
    fn strides(&self) -> [usize; 3] {
        [self.shape[1] * self.shape[2], self.shape[2], 1]
    }
}

/// A distance that exceeds the tolerance by no more than this is within it. Distances are sums of voxel sizes, so one that is
/// the tolerance exactly is common, and a header's `f32` says 3 mm as 2.9999998 or 3.0000002.
const ROUNDING_MM: f64 = 1e-4;

/// Mean of two fractions: of `a`'s surface within `tau_mm` of `b`'s, and of `b`'s within `tau_mm` of `a`'s; up to the rounding of
/// a header, 0.0001 mm. None when both masks are empty; 0 when only one is.
///
/// # Panics
/// When a mask does not fill the grid: a mistake of the caller.
pub fn normalised_surface_distance(a: &[bool], b: &[bool], grid: &Grid, tau_mm: f64) -> Option<f64> {
    assert!(a.len() == grid.len() && b.len() == grid.len(), "masks must fill the grid");
    let (surface_a, surface_b) = (surface(a, grid), surface(b, grid));
    let (count_a, count_b) = (count(&surface_a), count(&surface_b));
    if count_a == 0 || count_b == 0 {
        return if count_a + count_b == 0 { None } else { Some(0.0) };
    }
    let near = |from: &[bool], to: &[bool]| {
        let squared = squared_distances(to, grid);
        let within =
            |&(&surface, &squared): &(&bool, &f64)| surface && squared.sqrt() <= tau_mm + ROUNDING_MM;
        from.iter().zip(&squared).filter(within).count() as f64
    };
    let near_a = near(&surface_a, &surface_b) / count_a as f64;
    let near_b = near(&surface_b, &surface_a) / count_b as f64;
    Some((near_a + near_b) / 2.0)
}

fn count(mask: &[bool]) -> usize {
    mask.iter().filter(|&&inside| inside).count()
}

/// Voxels of the mask with a 6-neighbour outside it.
fn surface(mask: &[bool], grid: &Grid) -> Vec<bool> {
    let (shape, strides) = (grid.shape, grid.strides());
    let is_surface = |index: usize| {
        let at = |axis: usize| index / strides[axis] % shape[axis];
        (0..3).any(|axis| {
            let (position, stride) = (at(axis), strides[axis]);
            position == 0 || position + 1 == shape[axis] || !mask[index - stride] || !mask[index + stride]
        })
    };
    mask.iter().enumerate().map(|(index, &inside)| inside && is_surface(index)).collect()
}

/// Squared distance in mm² from each voxel to the nearest one of `targets`; infinite when there is none.
///
/// Felzenszwalb and Huttenlocher, "Distance transforms of sampled functions" (2012): one lower envelope of parabolas per
/// line, axis by axis. Linear in the number of voxels.
fn squared_distances(targets: &[bool], grid: &Grid) -> Vec<f64> {
    let mut squared: Vec<f64> =
        targets.iter().map(|&target| if target { 0.0 } else { f64::INFINITY }).collect();
    for (axis, stride) in grid.strides().into_iter().enumerate() {
        let len = grid.shape[axis];
        let mut envelope = Envelope::new(len, grid.spacing_mm[axis]);
        for start in (0..grid.len()).filter(|index| (index / stride).is_multiple_of(len)) {
            envelope.transform_line(&mut squared, start, stride);
        }
    }
    squared
}

/// Lower envelope of the parabolas `height[q] + (x - q·spacing)²` of one line; its buffers are reused line by line.
struct Envelope {
    len: usize,
    spacing: f64,
    heights: Vec<f64>,
    /// Vertices of the envelope, as positions in the line.
    vertices: Vec<usize>,
    /// Where each vertex's parabola begins to be lowest, millimetres.
    begins: Vec<f64>,
}

impl Envelope {
    fn new(len: usize, spacing: f64) -> Self {
        Self { len, spacing, heights: Vec::new(), vertices: Vec::new(), begins: Vec::new() }
    }

    /// Replaces the line of `values` from `start` in steps of `stride` by its transform.
    fn transform_line(&mut self, values: &mut [f64], start: usize, stride: usize) {
        self.build(values, start, stride);
        if self.vertices.is_empty() {
            return;
        }
        let mut lowest = 0;
        for position in 0..self.len {
            let x = position as f64 * self.spacing;
            while lowest + 1 < self.vertices.len() && self.begins[lowest + 1] < x {
                lowest += 1;
            }
            let vertex = self.vertices[lowest];
            let distance = x - vertex as f64 * self.spacing;
            values[start + position * stride] = self.heights[vertex] + distance * distance;
        }
    }

    fn build(&mut self, values: &[f64], start: usize, stride: usize) {
        self.vertices.clear();
        self.begins.clear();
        self.heights.clear();
        self.heights.extend((0..self.len).map(|position| values[start + position * stride]));
        for position in 0..self.len {
            if self.heights[position].is_infinite() {
                continue;
            }
            let begin = loop {
                let Some(&last) = self.vertices.last() else { break f64::NEG_INFINITY };
                let crossing = self.crossing(last, position);
                if crossing > self.begins[self.vertices.len() - 1] {
                    break crossing;
                }
                self.vertices.pop();
                self.begins.pop();
            };
            self.vertices.push(position);
            self.begins.push(begin);
        }
    }

    /// Where the parabola of `right` becomes lower than that of `left`, millimetres.
    fn crossing(&self, left: usize, right: usize) -> f64 {
        let (x_left, x_right) = (left as f64 * self.spacing, right as f64 * self.spacing);
        let rise = (self.heights[right] + x_right * x_right) - (self.heights[left] + x_left * x_left);
        rise / (2.0 * (x_right - x_left))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn brute_force(targets: &[bool], grid: &Grid) -> Vec<f64> {
        let strides = grid.strides();
        let at = |index: usize| [0, 1, 2].map(|axis| (index / strides[axis] % grid.shape[axis]) as f64);
        let squared = |a: usize, b: usize| {
            (0..3).map(|axis| ((at(a)[axis] - at(b)[axis]) * grid.spacing_mm[axis]).powi(2)).sum::<f64>()
        };
        let targets: Vec<usize> = (0..grid.len()).filter(|&index| targets[index]).collect();
        let nearest = |index| targets.iter().map(|&t| squared(index, t)).fold(f64::INFINITY, f64::min);
        (0..grid.len()).map(nearest).collect()
    }

    #[test]
    fn only_voxels_beside_the_outside_are_surface() {
        let grid = Grid { shape: [5, 5, 5], spacing_mm: [1.0; 3] };
        let inner = |index: usize| [25, 5, 1].iter().all(|stride| (1..4).contains(&(index / stride % 5)));
        let cube: Vec<bool> = (0..125).map(inner).collect();
        assert_eq!(count(&surface(&cube, &grid)), 26);
        // The border of the grid is outside.
        assert_eq!(count(&surface(&[true; 125], &grid)), 98);
    }

    #[test]
    fn a_distance_of_the_tolerance_exactly_is_within_it_however_a_header_rounds() {
        // One voxel each, five apart: 3 mm. 0.6 as `f32` is a little more than 0.6, 0.7 a little less.
        for (size, tau_mm) in [(0.6f32, 3.0), (0.7, 3.5), (0.8, 4.0)] {
            let grid = Grid { shape: [7, 1, 1], spacing_mm: [f64::from(size); 3] };
            let [a, b] = [1, 6].map(|at| (0..grid.len()).map(|index| index == at).collect::<Vec<_>>());
            assert_eq!(normalised_surface_distance(&a, &b, &grid, tau_mm), Some(1.0), "{size}");
            assert_eq!(normalised_surface_distance(&a, &b, &grid, tau_mm - 0.001), Some(0.0), "{size}");
        }
    }

    #[test]
    fn an_empty_mask_is_at_no_distance() {
        let grid = Grid { shape: [2, 1, 1], spacing_mm: [1.0; 3] };
        assert_eq!(normalised_surface_distance(&[false; 2], &[false; 2], &grid, 1.0), None);
        assert_eq!(normalised_surface_distance(&[true, false], &[false; 2], &grid, 9.0), Some(0.0));
        assert_eq!(normalised_surface_distance(&[true, false], &[false, true], &grid, 1.0), Some(1.0));
        assert_eq!(normalised_surface_distance(&[true, false], &[false, true], &grid, 0.9), Some(0.0));
    }

    proptest! {
        #[test]
        fn the_distance_transform_is_exact(
            shape in [1usize..7, 1usize..6, 1usize..8],
            spacing_mm in [0.3..4.0f64, 0.3..4.0f64, 0.3..4.0f64],
            bits in proptest::collection::vec(proptest::bool::weighted(0.1), 6 * 5 * 7),
        ) {
            let grid = Grid { shape, spacing_mm };
            let targets = &bits[..grid.len()];
            for (fast, slow) in squared_distances(targets, &grid).into_iter().zip(brute_force(targets, &grid)) {
                prop_assert!(fast == slow || (fast - slow).abs() <= 1e-9 * slow.max(1.0), "{fast} {slow}");
            }
        }
    }
}
