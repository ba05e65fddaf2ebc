//! 3×3×3 convolution, stride 1, padding 1, and its two gradients.

use rayon::prelude::*;

use super::Extent;
use super::isa::Isa;
use super::micro::{Product, Shape, add_product};
use super::pack::{Halo, TAPS, append_columns, channels_first, channels_last, mirrored_panels, panels};

/// A panel of weights beyond this size is read tap row by tap row, so that what is being reused stays in the L2 cache.
const PANEL_BYTES: usize = 512 << 10;

/// `y[n, o] = bias[o] + Σ_i weights[o, i] ⋆ x[n, i]`, `[outs, ins, 3, 3, 3]` weights; returns `[n, outs, x, y, z]`.
pub fn forward(
    isa: Isa,
    x: &[f32],
    extent: Extent,
    weights: &[f32],
    bias: Option<&[f32]>,
    outs: usize,
) -> Vec<f32> {
    let shape = Shape::for_columns(isa, outs);
    let panels = panels(weights, outs, extent.channels, shape.columns());
    convolve(isa, x, extent, &panels, bias, outs, shape)
}

/// Gradient with respect to the input, from `dy` with `extent.channels` = outputs of the convolution; `ins` its inputs.
pub fn input_gradient(isa: Isa, dy: &[f32], extent: Extent, weights: &[f32], ins: usize) -> Vec<f32> {
    let shape = Shape::for_columns(isa, ins);
    let panels = mirrored_panels(weights, extent.channels, ins, shape.columns());
    convolve(isa, dy, extent, &panels, None, ins, shape)
}

fn convolve(
    isa: Isa,
    x: &[f32],
    extent: Extent,
    panels: &[f32],
    bias: Option<&[f32]>,
    outs: usize,
    shape: Shape,
) -> Vec<f32> {
    let ins = extent.channels;
    let packed = channels_last(x, extent, ins);
    let (halo, columns) = (Halo::new(extent.space), shape.columns());
    let [nx, ny, nz] = extent.space;
    let zeros = vec![0.0; outs];
    let bias = bias.unwrap_or(&zeros);
    // Three taps along z lie side by side in channels-last order: nine segments of 3·ins terms.
    let corner = |t: usize| ((t / 3) * halo.plane() + (t % 3) * halo.line()) * ins;
    let segments: [usize; 9] = std::array::from_fn(corner);
    let at_once = if TAPS * ins * columns * size_of::<f32>() > PANEL_BYTES { 1 } else { segments.len() };

    let plane = |sums: &mut Vec<f32>, index: usize| {
        let (n, i) = (index / nx, index % nx);
        let volume = &packed[n * halo.voxels() * ins..][..halo.voxels() * ins];
        let mut plane = Vec::with_capacity(outs * ny * nz);
        for (weights, bias) in panels.chunks_exact(TAPS * ins * columns).zip(bias.chunks(columns)) {
            sums.clear();
            sums.resize(ny * nz * columns, 0.0);
            let slices = segments.chunks(at_once).zip(weights.chunks(at_once * 3 * ins * columns));
            for (segments, right) in slices {
                for (j, line) in sums.chunks_exact_mut(nz * columns).enumerate() {
                    let mut k = 0;
                    while k < nz {
                        let rows = shape.fit(nz - k);
                        let start = (halo.position(i, j) + k - halo.plane() - halo.line() - 1) * ins;
                        let product = Product {
                            left: volume,
                            start,
                            row: ins,
                            step: 1,
                            segments,
                            terms: 3 * ins,
                            right,
                            right_step: columns,
                        };
                        add_product(isa, product, shape, rows, &mut line[k * columns..][..rows * columns]);
                        k += rows;
                    }
                }
            }
            append_columns(&mut plane, sums, columns, bias);
        }
        plane
    };
    let planes: Vec<_> = (0..extent.n * nx).into_par_iter().map_init(Vec::new, plane).collect();
    channels_first(&planes, extent.with_channels(outs))
}

/// Gradient with respect to the weights: `[outs, ins, 3, 3, 3]`. `extent` is that of `x`; `dy` has `outs` channels.
pub fn weight_gradient(isa: Isa, x: &[f32], extent: Extent, dy: &[f32], outs: usize) -> Vec<f32> {
    let ins = extent.channels;
    let shape = Shape::for_columns(isa, outs);
    let columns = shape.columns();
    let stride = outs.div_ceil(columns) * columns;
    let packed_x = channels_last(x, extent, ins);
    let packed_dy = channels_last(dy, extent.with_channels(outs), stride);
    let halo = Halo::new(extent.space);
    // A plane of x is one run of voxels; the halo columns inside it add zeros, for `dy` is zero there.
    let run = extent.space[1] * halo.line() - 2;
    let blocks = shape.strips(ins);

    // One task: some inputs, some outputs, the nine taps of one x. Planes outside, taps inside: what is read stays near.
    let tasks = (0..stride / columns * blocks.len() * 3).into_par_iter().map(|task| {
        let (panel, dx) = (task / 3 / blocks.len(), task % 3);
        let (row, rows) = blocks[task / 3 % blocks.len()];
        let mut sums = vec![0.0; 9 * rows * columns];
        for n in 0..extent.n {
            for i in 0..extent.space[0] {
                let position = n * halo.voxels() + halo.position(i, 0);
                for (tap, sums) in sums.chunks_exact_mut(rows * columns).enumerate() {
                    let shift = dx * halo.plane() + (tap / 3) * halo.line() + tap % 3;
                    let origin = position + shift - halo.plane() - halo.line() - 1;
                    let product = Product {
                        left: &packed_x,
                        start: origin * ins + row,
                        row: 1,
                        step: ins,
                        segments: &[0],
                        terms: run,
                        right: &packed_dy[position * stride + panel * columns..],
                        right_step: stride,
                    };
                    add_product(isa, product, shape, rows, sums);
                }
            }
        }
        (panel, dx, row, sums)
    });

    let mut gradient = vec![0.0; outs * ins * TAPS];
    for (panel, dx, row, sums) in tasks.collect::<Vec<_>>() {
        let rows = sums.len() / (9 * columns);
        for (index, lanes) in sums.chunks_exact(columns).enumerate() {
            let (tap, i) = (9 * dx + index / rows, row + index % rows);
            for (o, &sum) in (panel * columns..outs).zip(lanes) {
                gradient[(o * ins + i) * TAPS + tap] = sum;
            }
        }
    }
    gradient
}

/// Gradient with respect to the bias: the sum of `dy` per channel, in f64.
pub fn bias_gradient(dy: &[f32], extent: Extent) -> Vec<f32> {
    let voxels = extent.voxels();
    let channel_sum = |channel: usize| {
        let of_volume = |n: usize| &dy[(n * extent.channels + channel) * voxels..][..voxels];
        let sum: f64 = (0..extent.n)
            .flat_map(|n| of_volume(n).chunks(256))
            .map(|c| f64::from(c.iter().sum::<f32>()))
            .sum();
        sum as f32
    };
    (0..extent.channels).into_par_iter().map(channel_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    struct Case {
        extent: Extent,
        outs: usize,
        x: Vec<f32>,
        weights: Vec<f32>,
        bias: Vec<f32>,
        dy: Vec<f32>,
    }

    fn case(seed: u64) -> Case {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let channels = *[1, 2, 3, 5, 8, 13, 16, 24].get(rng.random_range(0..8)).unwrap();
        let outs = *[1, 4, 8, 9, 16, 17, 33, 40].get(rng.random_range(0..8)).unwrap();
        let space = std::array::from_fn(|_| rng.random_range(1..8));
        let extent = Extent { n: rng.random_range(1..3), channels, space };
        let mut fill = |len: usize| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
        let (x, weights) = (fill(extent.len()), fill(outs * channels * TAPS));
        let (bias, dy) = (fill(outs), fill(extent.with_channels(outs).len()));
        Case { extent, outs, x, weights, bias, dy }
    }

    /// Calls `visit(n, o, i, tap, output voxel, input voxel)` for every product of the convolution's definition.
    fn products(c: &Case, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let ([nx, ny, nz], v) = (c.extent.space, c.extent.voxels());
        for n in 0..c.extent.n {
            for o in 0..c.outs {
                for i in 0..c.extent.channels {
                    for out in 0..v {
                        let at = [out / (ny * nz), out / nz % ny, out % nz];
                        for tap in 0..TAPS {
                            let shift = [tap / 9, tap / 3 % 3, tap % 3];
                            let from: [usize; 3] = std::array::from_fn(|a| at[a] + shift[a]);
                            if (0..3).all(|a| from[a] >= 1 && from[a] <= [nx, ny, nz][a]) {
                                let voxel = ((from[0] - 1) * ny + from[1] - 1) * nz + from[2] - 1;
                                visit(
                                    (n * c.outs + o) * v + out,
                                    (n * c.extent.channels + i) * v + voxel,
                                    (o * c.extent.channels + i) * TAPS + tap,
                                    o,
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    fn assert_close(what: &str, seed: u64, isa: Isa, got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (index, (&g, &e)) in got.iter().zip(expected).enumerate() {
            let tolerance = 1e-4 * (1.0 + e.abs());
            assert!(
                (f64::from(g) - e).abs() < tolerance,
                "{what}[{index}], seed {seed}, {isa:?}: {g} against {e}"
            );
        }
    }

    #[test]
    fn every_instruction_set_computes_the_definition_and_its_gradients() {
        for seed in 0..60 {
            let c = case(seed);
            let output = c.extent.with_channels(c.outs);
            let mut y: Vec<f64> = vec![0.0; output.len()];
            let (mut dx, mut dw) = (vec![0.0f64; c.x.len()], vec![0.0f64; c.weights.len()]);
            products(&c, |out, input, weight, _| {
                y[out] += f64::from(c.x[input]) * f64::from(c.weights[weight]);
                dx[input] += f64::from(c.dy[out]) * f64::from(c.weights[weight]);
                dw[weight] += f64::from(c.dy[out]) * f64::from(c.x[input]);
            });
            for (index, y) in y.iter_mut().enumerate() {
                *y += f64::from(c.bias[index / c.extent.voxels() % c.outs]);
            }
            for isa in Isa::available() {
                assert_close(
                    "y",
                    seed,
                    isa,
                    &forward(isa, &c.x, c.extent, &c.weights, Some(&c.bias), c.outs),
                    &y,
                );
                let ins = c.extent.channels;
                assert_close("dx", seed, isa, &input_gradient(isa, &c.dy, output, &c.weights, ins), &dx);
                assert_close("dw", seed, isa, &weight_gradient(isa, &c.x, c.extent, &c.dy, c.outs), &dw);
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let c = case(7);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let isa = Isa::detect();
                let y = forward(isa, &c.x, c.extent, &c.weights, None, c.outs);
                (y, weight_gradient(isa, &c.x, c.extent, &c.dy, c.outs))
            })
        };
        assert_eq!(run(1), run(3));
    }
}
