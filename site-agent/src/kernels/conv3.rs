//! 3×3×3 convolution, stride 1, padding 1, and its two gradients.

use rayon::prelude::*;

use super::Extent;
use super::isa::Isa;
use super::micro::{Product, Shape, add_product};
use super::pack::{
    Channels, Halo, TAPS, by_plane, channels_last, mirrored_panels, panels, slabs, write_columns,
};

/// A panel of weights beyond this size is read tap row by tap row, so that what is being reused stays in the L2 cache.
const PANEL_BYTES: usize = 512 << 10;
/// Outputs that all taps of a task use before the next are read: they stay in the nearest cache.
const SLICE_BYTES: usize = 24 << 10;

/// `y[n, o] = bias[o] + Σ_i weights[o, i] ⋆ x[n, i]`, `[outs, ins, 3, 3, 3]` weights; returns `[n, outs, x, y, z]`.
///
/// The inputs may lie in several arrays, first the channels of the first; `extent` counts all of them.
pub fn forward(
    isa: Isa,
    x: &[&[f32]],
    extent: Extent,
    weights: &[f32],
    bias: Option<&[f32]>,
    outs: usize,
) -> Vec<f32> {
    let shape = Shape::for_columns(isa, outs);
    let panels = panels(weights, outs, extent.channels, shape.columns());
    let zeros = vec![0.0; outs];
    let mut y = vec![0.0; extent.with_channels(outs).len()];
    convolve(isa, x, extent, &panels, bias.unwrap_or(&zeros), shape, [&mut y]);
    y
}

/// Gradient with respect to the inputs, from `dy` with `extent.channels` = outputs of the convolution; one array for each of
/// `ins`, which are their channels.
pub fn input_gradient<const N: usize>(
    isa: Isa,
    dy: &[f32],
    extent: Extent,
    weights: &[f32],
    ins: [usize; N],
) -> [Vec<f32>; N] {
    let all: usize = ins.iter().sum();
    let shape = Shape::for_columns(isa, all);
    let panels = mirrored_panels(weights, extent.channels, all, shape.columns());
    let mut dx = ins.map(|ins| vec![0.0; extent.with_channels(ins).len()]);
    convolve(isa, &[dy], extent, &panels, &vec![0.0; all], shape, &mut dx);
    dx
}

/// Writes the convolution, one output for each bias, to `to`: the first outputs to the first array.
fn convolve<'a>(
    isa: Isa,
    x: &[&[f32]],
    extent: Extent,
    panels: &[f32],
    bias: &[f32],
    shape: Shape,
    to: impl IntoIterator<Item = &'a mut Vec<f32>>,
) {
    let ins = extent.channels;
    let (halo, columns) = (Halo::new(extent.space), shape.columns());
    let [nx, ny, nz] = extent.space;
    // Three taps along z lie side by side in channels-last order: nine segments of 3·ins terms.
    let corner = |t: usize| ((t / 3) * halo.plane() + (t % 3) * halo.line()) * ins;
    let segments: [usize; 9] = std::array::from_fn(corner);
    let at_once = if TAPS * ins * columns * size_of::<f32>() > PANEL_BYTES { 1 } else { segments.len() };

    let x = Channels::of(x, extent);
    let mut to = by_plane(to, extent.n, extent.space);
    for (n, run) in slabs(extent, ins) {
        let packed = channels_last(&x, ins, n, &run);
        let plane = |sums: &mut Vec<f32>, (i, plane): (usize, &mut Vec<&mut [f32]>)| {
            let parts = plane.chunks_mut(columns).zip(bias.chunks(columns));
            for (weights, (part, bias)) in panels.chunks_exact(TAPS * ins * columns).zip(parts) {
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
                                left: &packed,
                                start,
                                row: ins,
                                step: 1,
                                segments,
                                terms: 3 * ins,
                                right,
                                right_step: columns,
                            };
                            add_product(
                                isa,
                                product,
                                shape,
                                rows,
                                &mut line[k * columns..][..rows * columns],
                            );
                            k += rows;
                        }
                    }
                }
                write_columns(part, sums, columns, bias);
            }
        };
        let to = &mut to[n * nx + run.start..n * nx + run.end];
        to.par_iter_mut().enumerate().for_each_init(Vec::new, plane);
    }
}

/// Gradient with respect to the weights: `[outs, ins, 3, 3, 3]`. `x` and `extent` are as in [`forward`]; `dy` has `outs`
/// channels.
pub fn weight_gradient(isa: Isa, x: &[&[f32]], extent: Extent, dy: &[f32], outs: usize) -> Vec<f32> {
    let ins = extent.channels;
    let shape = Shape::for_columns(isa, outs);
    let columns = shape.columns();
    let panels: Vec<_> = (0..outs).step_by(columns).map(|first| first..(first + columns).min(outs)).collect();
    let halo = Halo::new(extent.space);
    let [_, ny, _] = extent.space;
    let blocks = shape.strips(ins);
    // Lines that are used by all taps of a task before the next: their outputs stay in the nearest cache.
    let lines = (SLICE_BYTES / (halo.line() * columns * size_of::<f32>())).clamp(1, ny);

    // One task: some inputs, some outputs, the nine taps of one x. Planes outside, taps inside: what is read stays near.
    let mut tasks: Vec<Task> = (0..panels.len() * blocks.len() * 3)
        .map(|task| {
            let (panel, block, dx) = (task / 3 / blocks.len(), task / 3 % blocks.len(), task % 3);
            Task { panel, block, dx, sums: vec![0.0; 9 * blocks[block].1 * columns] }
        })
        .collect();
    let (x, dy) = (Channels::of(x, extent), Channels::of(&[dy], extent.with_channels(outs)));
    for (n, run) in slabs(extent, ins + panels.len() * columns) {
        let pack = |channels: Channels<'_>, stride: usize| channels_last(&channels, stride, n, &run);
        let packed_x: Vec<_> =
            blocks.iter().map(|&(first, rows)| pack(x.range(first..first + rows), rows)).collect();
        let packed_dy: Vec<_> = panels.iter().map(|panel| pack(dy.range(panel.clone()), columns)).collect();
        tasks.par_iter_mut().for_each(|Task { panel, block, dx, sums }| {
            let rows = blocks[*block].1;
            for (i, first) in (0..run.len()).flat_map(|i| (0..ny).step_by(lines).map(move |first| (i, first)))
            {
                // Lines are one run of voxels; the halo columns inside it add zeros, for `dy` is zero there.
                let terms = lines.min(ny - first) * halo.line() - 2;
                let position = halo.position(i, first);
                for (tap, sums) in sums.chunks_exact_mut(rows * columns).enumerate() {
                    let shift = *dx * halo.plane() + (tap / 3) * halo.line() + tap % 3;
                    let origin = position + shift - halo.plane() - halo.line() - 1;
                    let product = Product {
                        left: &packed_x[*block],
                        start: origin * rows,
                        row: 1,
                        step: rows,
                        segments: &[0],
                        terms,
                        right: &packed_dy[*panel][position * columns..],
                        right_step: columns,
                    };
                    add_product(isa, product, shape, rows, sums);
                }
            }
        });
    }

    let mut gradient = vec![0.0; outs * ins * TAPS];
    for Task { panel, block, dx, sums } in tasks {
        let (row, rows) = blocks[block];
        for (index, lanes) in sums.chunks_exact(columns).enumerate() {
            let (tap, i) = (9 * dx + index / rows, row + index % rows);
            for (o, &sum) in panels[panel].clone().zip(lanes) {
                gradient[(o * ins + i) * TAPS + tap] = sum;
            }
        }
    }
    gradient
}

/// A part of the weights' gradient: a block of inputs, a panel of outputs, the nine taps of one x.
struct Task {
    panel: usize,
    block: usize,
    dx: usize,
    sums: Vec<f32>,
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

    impl Case {
        fn parts(&self) -> [&[f32]; 1] {
            [&self.x]
        }
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

    /// The output, and the gradients of inputs and weights.
    fn definition(c: &Case) -> [Vec<f64>; 3] {
        let mut y = vec![0.0f64; c.dy.len()];
        let (mut dx, mut dw) = (vec![0.0f64; c.x.len()], vec![0.0f64; c.weights.len()]);
        products(c, |out, input, weight, _| {
            y[out] += f64::from(c.x[input]) * f64::from(c.weights[weight]);
            dx[input] += f64::from(c.dy[out]) * f64::from(c.weights[weight]);
            dw[weight] += f64::from(c.dy[out]) * f64::from(c.x[input]);
        });
        for (index, y) in y.iter_mut().enumerate() {
            *y += f64::from(c.bias[index / c.extent.voxels() % c.outs]);
        }
        [y, dx, dw]
    }

    #[test]
    fn every_instruction_set_computes_the_definition_and_its_gradients() {
        for seed in 0..60 {
            let c = case(seed);
            let output = c.extent.with_channels(c.outs);
            let [y, dx, dw] = definition(&c);
            for isa in Isa::available() {
                assert_close(
                    "y",
                    seed,
                    isa,
                    &forward(isa, &c.parts(), c.extent, &c.weights, Some(&c.bias), c.outs),
                    &y,
                );
                let ins = c.extent.channels;
                let [got] = input_gradient(isa, &c.dy, output, &c.weights, [ins]);
                assert_close("dx", seed, isa, &got, &dx);
                assert_close(
                    "dw",
                    seed,
                    isa,
                    &weight_gradient(isa, &c.parts(), c.extent, &c.dy, c.outs),
                    &dw,
                );
            }
        }
    }

    /// Only of a volume of this size are copies made in slabs, and gradients of weights some lines at a time. Sums of whole
    /// numbers that fit the 24 bits of an f32 are exact in whatever order they are made.
    #[test]
    fn a_patch_that_is_packed_in_slabs_is_convolved_exactly() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        for (channels, outs) in [(12, 1), (1, 12)] {
            let extent = Extent { n: 1, channels, space: [64, 64, 96] };
            let output = extent.with_channels(outs);
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let mut fill =
                |len: usize| (0..len).map(|_| rng.random_range(-2i32..=2) as f32).collect::<Vec<f32>>();
            let (x, weights) = (fill(extent.len()), fill(outs * channels * TAPS));
            let (bias, dy) = (fill(outs), fill(output.len()));
            let c = Case { extent, outs, x, weights, bias, dy };
            let [y, dx, dw] = definition(&c);
            pool.install(|| {
                assert!(slabs(extent, 12).count() > 1, "the larger copy is cut");
                for isa in Isa::available() {
                    let assert_exact = |what: &str, got: Vec<f32>, expected: &[f64]| {
                        let same = got.into_iter().map(f64::from).eq(expected.iter().copied());
                        assert!(same, "{what}, {channels} to {outs} channels, {isa:?}");
                    };
                    assert_exact("y", forward(isa, &c.parts(), extent, &c.weights, Some(&c.bias), outs), &y);
                    let [got] = input_gradient(isa, &c.dy, output, &c.weights, [channels]);
                    assert_exact("dx", got, &dx);
                    assert_exact("dw", weight_gradient(isa, &c.parts(), extent, &c.dy, outs), &dw);
                }
            });
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let c = case(7);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let isa = Isa::detect();
                let y = forward(isa, &c.parts(), c.extent, &c.weights, None, c.outs);
                (y, weight_gradient(isa, &c.parts(), c.extent, &c.dy, c.outs))
            })
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn inputs_in_two_arrays_are_one_input_to_the_bit() {
        let isa = Isa::detect();
        for (first, second) in [(3, 5), (8, 16), (1, 24)] {
            let mut rng = ChaCha8Rng::seed_from_u64(first as u64);
            let extent = Extent { n: 2, channels: first + second, space: [4, 3, 5] };
            let mut fill = |len: usize| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let (x, weights) = (fill(extent.len()), fill(9 * extent.channels * TAPS));
            let dy = fill(extent.with_channels(9).len());
            // Volume by volume, the first channels and the rest.
            let part = |from: usize, to: usize| -> Vec<f32> {
                let v = extent.voxels();
                x.chunks_exact(extent.channels * v).flat_map(|x| x[from * v..to * v].to_vec()).collect()
            };
            let (a, b) = (part(0, first), part(first, first + second));
            let (one, two) = ([x.as_slice()], [a.as_slice(), b.as_slice()]);

            let y = |x: &[&[f32]]| forward(isa, x, extent, &weights, None, 9);
            assert_eq!(y(&one), y(&two));
            let dw = |x: &[&[f32]]| weight_gradient(isa, x, extent, &dy, 9);
            assert_eq!(dw(&one), dw(&two));
            let [dx] = input_gradient(isa, &dy, extent.with_channels(9), &weights, [first + second]);
            let [da, db] = input_gradient(isa, &dy, extent.with_channels(9), &weights, [first, second]);
            let joined = da.chunks_exact(first * 60).zip(db.chunks_exact(second * 60));
            assert_eq!(joined.flat_map(|(a, b)| [a, b].concat()).collect::<Vec<_>>(), dx);
        }
    }
}
