//! What a hospital's scanner makes of a body: contrast phase, blur, gain, offset and noise.

use common::rng::Rng;

/// Correlation length of the slow part of the noise, mm.
const SLOW_NOISE_MM: f64 = 12.0;
/// Strength of the slow part against the fast part.
const SLOW_NOISE_SHARE: f64 = 0.4;

/// A scanner and its protocol.
#[derive(Clone, Copy, Debug)]
pub struct Scanner {
    /// Standard deviation of the voxel noise, HU.
    pub noise_hu: f64,
    /// Constant error, HU.
    pub offset_hu: f64,
    /// Factor on the attenuation.
    pub gain: f64,
    /// Standard deviation of the Gaussian blur, mm.
    pub blur_mm: f64,
    /// Added to organs that take up contrast, HU.
    pub contrast_hu: f64,
}

impl Scanner {
    /// Image of the attenuations `hu` (C order over `shape`, voxels of `spacing_mm`), in whole HU.
    pub(super) fn acquire(
        &self,
        mut hu: Vec<f32>,
        shape: [usize; 3],
        spacing_mm: [f64; 3],
        rng: &mut impl Rng,
    ) -> Vec<i16> {
        blur(&mut hu, shape, spacing_mm.map(|s| self.blur_mm / s));
        let mut slow = normals(hu.len(), rng);
        blur(&mut slow, shape, spacing_mm.map(|s| SLOW_NOISE_MM / s));
        let slow_scale = (SLOW_NOISE_SHARE * self.noise_hu) as f32 / deviation(&slow);
        let fast = normals(hu.len(), rng);
        let image = hu.iter().zip(slow).zip(fast).map(|((&hu, slow), fast)| {
            let clean = hu * self.gain as f32 + self.offset_hu as f32;
            let noisy = clean + self.noise_hu as f32 * fast + slow_scale * slow;
            noisy.round().clamp(-1024.0, 3071.0) as i16
        });
        image.collect()
    }
}

/// `count` draws of the standard normal distribution (Box and Muller 1958, both values of each pair).
fn normals(count: usize, rng: &mut impl Rng) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
        let angle = std::f32::consts::TAU * rng.random::<f32>();
        values.extend([radius * angle.cos(), radius * angle.sin()]);
    }
    values.truncate(count);
    values
}

/// Standard deviation about zero.
fn deviation(values: &[f32]) -> f32 {
    let squares: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    (squares / values.len().max(1) as f64).sqrt() as f32
}

/// Gaussian blur along each axis in turn; `sigma` in voxels, the border voxel continues outside.
fn blur(values: &mut [f32], shape: [usize; 3], sigma: [f64; 3]) {
    let strides = [shape[1] * shape[2], shape[2], 1];
    for axis in 0..3 {
        let kernel = gaussian(sigma[axis]);
        if kernel.len() > 1 {
            blur_axis(values, shape[axis], strides[axis], &kernel);
        }
    }
}

/// Weights of a Gaussian cut off at three standard deviations, of sum 1 and odd length.
fn gaussian(sigma: f64) -> Vec<f32> {
    let reach = (3.0 * sigma).ceil() as i32;
    let raw: Vec<f64> = (-reach..=reach).map(|k| (-0.5 * (f64::from(k) / sigma).powi(2)).exp()).collect();
    let sum: f64 = raw.iter().sum();
    if sum.is_finite() { raw.iter().map(|w| (w / sum) as f32).collect() } else { vec![1.0] }
}

/// Convolves each line of `length` voxels, `stride` apart, with `kernel`.
fn blur_axis(values: &mut [f32], length: usize, stride: usize, kernel: &[f32]) {
    let reach = kernel.len() / 2;
    let mut padded = vec![0.0; length + 2 * reach];
    for block in values.chunks_mut(length * stride) {
        for start in 0..stride {
            for (k, value) in padded.iter_mut().enumerate() {
                let index = k.saturating_sub(reach).min(length - 1);
                *value = block[start + index * stride];
            }
            for index in 0..length {
                let window = &padded[index..index + kernel.len()];
                block[start + index * stride] = window.iter().zip(kernel).map(|(v, w)| v * w).sum();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::rng::{ChaCha8Rng, SeedableRng};

    #[test]
    fn blur_keeps_a_constant_and_spreads_a_point_alike_in_millimetres() {
        let mut flat = vec![7.0; 5 * 6 * 7];
        blur(&mut flat, [5, 6, 7], [0.5, 1.0, 2.0]);
        assert!(flat.iter().all(|v| (v - 7.0).abs() < 1e-4));
        let mut point = vec![0.0; 11];
        point[5] = 1.0;
        blur(&mut point, [1, 1, 11], [0.0, 0.0, 1.0]);
        assert!((point[6] / point[5] - (-0.5f32).exp()).abs() < 1e-5);
    }

    #[test]
    fn noise_has_the_stated_deviation() {
        let scanner = Scanner { noise_hu: 20.0, offset_hu: 10.0, gain: 1.0, blur_mm: 0.0, contrast_hu: 0.0 };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let image = scanner.acquire(vec![100.0; 32 * 32 * 32], [32; 3], [4.0; 3], &mut rng);
        let mean = image.iter().map(|&v| f64::from(v)).sum::<f64>() / image.len() as f64;
        let variance = image.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / image.len() as f64;
        let expected = 20.0 * (1.0f64 + SLOW_NOISE_SHARE.powi(2)).sqrt();
        assert!((mean - 110.0).abs() < 2.0, "{mean}");
        assert!((variance.sqrt() - expected).abs() < 1.0, "{}", variance.sqrt());
    }
}
