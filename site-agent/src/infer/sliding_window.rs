//! Overlapping windows over a volume, their logits blended with a Gaussian importance map.
//!
//! One window at a time, or some that begin at the same x, first axis slowest. Because windows advance along the first axis,
//! a plane is final as soon as no later window covers it: it is handed on and forgotten. Memory is therefore one window's depth
//! of planes and what the network needs for a batch, whatever the length of the scan. Logits are added in the order of the
//! windows, so that the batch changes no bit. Thresholds and classes are the caller's business.

use super::{InferError, Predictor};

/// Size, overlap and weights of the windows, and how many the network sees at once.
#[derive(Clone, Debug)]
pub struct WindowPlan {
    roi: [usize; 3],
    overlap: f64,
    importance: Vec<f32>,
    batch: usize,
}

impl WindowPlan {
    /// Windows of `roi` voxels whose neighbours share the fraction `overlap` (in `[0, 1)`), blended with
    /// [`gaussian_importance`]; one at a time.
    pub fn gaussian(roi: [usize; 3], overlap: f64) -> Self {
        debug_assert!((0.0..1.0).contains(&overlap) && roi.iter().all(|&n| n > 0));
        Self { roi, overlap, importance: gaussian_importance(roi), batch: 1 }
    }

    /// The same windows, up to `batch` of them (at least one) at a time.
    #[must_use]
    pub fn with_batch(self, batch: usize) -> Self {
        Self { batch: batch.max(1), ..self }
    }

    /// Voxels of a window along each axis.
    pub fn roi(&self) -> [usize; 3] {
        self.roi
    }

    /// First voxels of the windows along each axis, in a volume of `shape` (padded to the window where shorter).
    pub fn starts(&self, shape: [usize; 3]) -> [Vec<usize>; 3] {
        std::array::from_fn(|axis| axis_starts(shape[axis].max(self.roi[axis]), self.roi[axis], self.overlap))
    }

    /// Number of windows over a volume of `shape`.
    pub fn windows(&self, shape: [usize; 3]) -> usize {
        self.starts(shape).iter().map(Vec::len).product()
    }
}

/// Starts `0, I, 2I, …` until a window reaches the end; the last one is shifted back to end with the volume.
fn axis_starts(size: usize, roi: usize, overlap: f64) -> Vec<usize> {
    let interval = if size == roi { roi } else { ((roi as f64 * (1.0 - overlap)) as usize).max(1) };
    let last = size - roi;
    let mut starts: Vec<usize> = (0..last).step_by(interval).collect();
    starts.push(last);
    starts
}

/// Weight of each voxel of a window, `[x, y, z]`, largest at index `roi / 2`: the integral of a Gaussian of standard
/// deviation `roi / 8` over the voxel, cut off at four deviations, relative to the largest, and at least 1e-3.
///
/// The map is not symmetric for even windows: the centre of 96 voxels is voxel 48.
pub fn gaussian_importance(roi: [usize; 3]) -> Vec<f32> {
    let [kx, ky, kz] = roi.map(axis_kernel);
    let mut map = Vec::with_capacity(roi.iter().product());
    for x in &kx {
        for y in &ky {
            map.extend(kz.iter().map(|z| x * y * z));
        }
    }
    let largest = map.iter().copied().fold(0.0, f64::max);
    let relative = |v: f64| v / largest;
    let smallest = map.iter().copied().filter(|&v| v > 0.0).map(relative).fold(f64::INFINITY, f64::min);
    let floor = smallest.max(1e-3);
    map.into_iter().map(|v| relative(v).max(floor) as f32).collect()
}

fn axis_kernel(roi: usize) -> Vec<f64> {
    let sigma = 0.125 * roi as f64;
    let support = (4.0 * sigma).max(0.5) + 0.5;
    let centre = (roi / 2) as f64;
    let edge = |x: f64| erf(x / (std::f64::consts::SQRT_2 * sigma));
    let weight = |index: usize| {
        let x = index as f64 - centre;
        if x.abs() <= support.trunc() { 0.5 * (edge(x + 0.5) - edge(x - 0.5)) } else { 0.0 }
    };
    (0..roi).map(weight).collect()
}

/// Error function by the series of Abramowitz and Stegun 7.1.6, all terms of one sign: no cancellation. Exact to 1e-15
/// for the arguments here, which stay below 4.
fn erf(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    let mut n = 0.0;
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// Passes every window of `image` (`[x, y, z]`, C order) through the network, and each plane of blended logits, in order
/// of `x`, to `plane(x, logits)` with logits `[classes, y, z]`.
///
/// An image shorter than a window is padded with zeros, half before and the rest after, and the padding cut off again.
///
/// # Errors
/// What the predictor reports, [`InferError::Logits`] when it answers with another number of logits than it should, and
/// [`InferError::NotFinite`] when one of them is no number.
///
/// # Panics
/// When `image` does not fill `shape`: a mistake of the caller.
pub fn sliding_window(
    image: &[f32],
    shape: [usize; 3],
    plan: &WindowPlan,
    network: &dyn Predictor,
    mut plane: impl FnMut(usize, &[f32]),
) -> Result<(), InferError> {
    assert_eq!(image.len(), shape.iter().product::<usize>(), "the image must fill its shape");
    let padded = Padded::new(image, shape, plan.roi);
    let [xs, ys, zs] = plan.starts(shape);
    let places: Vec<[usize; 2]> = ys.iter().flat_map(|&y| zs.iter().map(move |&z| [y, z])).collect();
    let mut blend = Blend::new(plan, padded.size, network.classes());
    network.begin(xs.len() * places.len());
    for (at, &x) in xs.iter().enumerate() {
        for places in places.chunks(plan.batch) {
            let mut patches = Vec::with_capacity(places.len() * plan.importance.len());
            for &[y, z] in places {
                patches.extend(padded.window([x, y, z], plan.roi));
            }
            blend.add_all(&network.batch_logits(&patches, plan.roi)?, places)?;
        }
        let done = xs.get(at + 1).map_or(plan.roi[0], |next| next - x);
        for row in 0..done {
            if let Some(source) = padded.source_row(x + row) {
                plane(source, &blend.finish_row(row, &padded));
            }
        }
        blend.drop_rows(done);
    }
    Ok(())
}

/// An image inside its zero padding, which is never stored.
pub(super) struct Padded<'a> {
    image: &'a [f32],
    shape: [usize; 3],
    /// Zeros before the image along each axis.
    pub(super) before: [usize; 3],
    size: [usize; 3],
}

impl<'a> Padded<'a> {
    /// `image` fills `shape`, C order.
    pub(super) fn new(image: &'a [f32], shape: [usize; 3], roi: [usize; 3]) -> Self {
        let before = std::array::from_fn(|axis| roi[axis].saturating_sub(shape[axis]) / 2);
        let size = std::array::from_fn(|axis| shape[axis].max(roi[axis]));
        Self { image, shape, before, size }
    }

    /// Index along the first axis of the image for a row of the padded volume.
    fn source_row(&self, row: usize) -> Option<usize> {
        row.checked_sub(self.before[0]).filter(|&x| x < self.shape[0])
    }

    /// The voxels of a window that starts at `start`, counted with the padding.
    pub(super) fn window(&self, start: [usize; 3], roi: [usize; 3]) -> Vec<f32> {
        let mut patch = vec![0.0; roi.iter().product()];
        let [nx, ny, nz] = self.shape;
        // Overlap of window and image along z, in the window's and in the image's coordinates.
        let first = self.before[2].saturating_sub(start[2]);
        let from = (start[2] + first) - self.before[2];
        let len = (roi[2] - first).min(nz.saturating_sub(from));
        for i in 0..roi[0] {
            let Some(x) = (start[0] + i).checked_sub(self.before[0]).filter(|&x| x < nx) else { continue };
            for j in 0..roi[1] {
                let Some(y) = (start[1] + j).checked_sub(self.before[1]).filter(|&y| y < ny) else {
                    continue;
                };
                let to = (i * roi[1] + j) * roi[2] + first;
                let source = (x * ny + y) * nz + from;
                patch[to..to + len].copy_from_slice(&self.image[source..source + len]);
            }
        }
        patch
    }
}

/// Weighted sums for one window's depth of rows, laid out `[row, class, y, z]` so that finished rows leave in one move.
struct Blend<'a> {
    plan: &'a WindowPlan,
    classes: usize,
    /// Extent along y and z of the padded volume.
    extent: [usize; 2],
    logits: Vec<f32>,
    weights: Vec<f32>,
}

impl<'a> Blend<'a> {
    fn new(plan: &'a WindowPlan, [_, ny, nz]: [usize; 3], classes: usize) -> Self {
        let voxels = plan.roi[0] * ny * nz;
        Self {
            plan,
            classes,
            extent: [ny, nz],
            logits: vec![0.0; classes * voxels],
            weights: vec![0.0; voxels],
        }
    }

    /// Adds the logits of the windows at these places, one after the other.
    fn add_all(&mut self, logits: &[f32], places: &[[usize; 2]]) -> Result<(), InferError> {
        let of_window = self.classes * self.plan.importance.len();
        let expected = places.len() * of_window;
        if logits.len() != expected {
            return Err(InferError::Logits { expected, got: logits.len() });
        }
        let count = logits.iter().filter(|logit| !logit.is_finite()).count();
        if count > 0 {
            return Err(InferError::NotFinite { count });
        }
        for (logits, &place) in logits.chunks_exact(of_window).zip(places) {
            self.add(logits, place);
        }
        Ok(())
    }

    fn add(&mut self, logits: &[f32], [y, z]: [usize; 2]) {
        let [rx, ry, rz] = self.plan.roi;
        let [ny, nz] = self.extent;
        for i in 0..rx {
            for j in 0..ry {
                let importance = &self.plan.importance[(i * ry + j) * rz..][..rz];
                let line = (y + j) * nz + z;
                add_weighted(&mut self.weights[i * ny * nz + line..][..rz], importance, None);
                for class in 0..self.classes {
                    let source = &logits[((class * rx + i) * ry + j) * rz..][..rz];
                    let to = (i * self.classes + class) * ny * nz + line;
                    add_weighted(&mut self.logits[to..][..rz], importance, Some(source));
                }
            }
        }
    }

    /// The blended logits of one row, without padding: `[class, y, z]`.
    fn finish_row(&self, row: usize, padded: &Padded<'_>) -> Vec<f32> {
        let [ny, nz] = self.extent;
        let [_, sy, sz] = padded.shape;
        let mut plane = Vec::with_capacity(self.classes * sy * sz);
        for class in 0..self.classes {
            for y in padded.before[1]..padded.before[1] + sy {
                let line = y * nz + padded.before[2];
                let sums = &self.logits[(row * self.classes + class) * ny * nz + line..][..sz];
                let weights = &self.weights[row * ny * nz + line..][..sz];
                plane.extend(sums.iter().zip(weights).map(|(sum, weight)| sum / weight));
            }
        }
        plane
    }

    fn drop_rows(&mut self, rows: usize) {
        let voxels = self.extent[0] * self.extent[1];
        shift_down(&mut self.logits, rows * self.classes * voxels);
        shift_down(&mut self.weights, rows * voxels);
    }
}

fn add_weighted(to: &mut [f32], importance: &[f32], values: Option<&[f32]>) {
    match values {
        Some(values) => to.iter_mut().zip(importance).zip(values).for_each(|((t, w), v)| *t += w * v),
        None => to.iter_mut().zip(importance).for_each(|(t, w)| *t += w),
    }
}

fn shift_down(sums: &mut [f32], by: usize) {
    let kept = sums.len() - by;
    sums.copy_within(by.., 0);
    sums[kept..].fill(0.0);
}

#[cfg(test)]
mod tests;
