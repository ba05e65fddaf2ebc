//! 2×2×2 transposed convolution, stride 2, and its gradients: every voxel becomes a block of eight.
//!
//! Blocks do not overlap, so all three are one matrix product over voxels: `[voxels, ins] × [ins, outs · 8]`. The weights
//! `[ins, outs, 2, 2, 2]` are that second matrix as they are.

use rayon::prelude::*;

use super::Extent;
use super::isa::Isa;
use super::micro::{Product, Shape, add_product};
use super::pack::{Channels, by_plane, matrix_panels, slabs, voxel_rows, write_columns};

/// Voxels of a block.
const BLOCK: usize = 8;

/// `y[n, o, 2x + a, …] = bias[o] + Σ_i x[n, i, x, …] · weights[i, o, a, …]`; returns `[n, outs, 2x, 2y, 2z]`.
pub fn forward(isa: Isa, x: &[f32], extent: Extent, weights: &[f32], bias: &[f32]) -> Vec<f32> {
    let (ins, outs) = (extent.channels, bias.len());
    let x = Channels::of(&[x], extent);
    let product = Panels::new(isa, ins, outs * BLOCK, |i, column| weights[i * outs * BLOCK + column]);
    let [nx, ny, nz] = extent.space;
    let area = ny * nz;
    // Two planes of the output lie one after the other: here they are one.
    let mut y = vec![0.0; extent.n * outs * nx * BLOCK * area];
    let planes = by_plane([&mut y], extent.n, [nx, BLOCK, area]).into_par_iter().enumerate();
    let buffers = || (vec![0.0; area * ins], Vec::new());
    planes.for_each_init(buffers, |(rows, sums), (plane, mut blocks)| {
        voxel_rows(&x, [plane / nx, plane % nx], rows);
        for panel in 0..product.count() {
            product.multiply(isa, rows, panel, sums);
            for (lane, column) in product.columns_of(panel).enumerate() {
                let (o, [a, b, c]) = (column / BLOCK, corner(column % BLOCK));
                let to = &mut blocks[o][a * 4 * area..][..4 * area];
                for (y, line) in sums.chunks_exact(nz * product.width()).enumerate() {
                    let to = to[(2 * y + b) * 2 * nz..][..2 * nz].chunks_exact_mut(2);
                    for (to, row) in to.zip(line.chunks_exact(product.width())) {
                        to[c] = row[lane] + bias[o];
                    }
                }
            }
        }
    });
    y
}

/// Gradient with respect to the input, `extent`, from `dy` `[n, outs, 2x, 2y, 2z]`.
pub fn input_gradient(isa: Isa, dy: &[f32], extent: Extent, weights: &[f32]) -> Vec<f32> {
    let ins = extent.channels;
    let terms = weights.len() / ins;
    let product = Panels::new(isa, terms, ins, |term, i| weights[i * terms + term]);
    let [nx, ny, nz] = extent.space;
    let area = ny * nz;
    let zeros = vec![0.0; ins];
    let mut dx = vec![0.0; extent.len()];
    let planes = by_plane([&mut dx], extent.n, extent.space).into_par_iter().enumerate();
    let buffers = || (vec![0.0; area * terms], Vec::new());
    planes.for_each_init(buffers, |(blocks, sums), (plane, mut parts)| {
        block_rows(dy, extent, [plane / nx, plane % nx], terms, terms, blocks);
        for panel in 0..product.count() {
            product.multiply(isa, blocks, panel, sums);
            let columns = product.columns_of(panel);
            write_columns(&mut parts[columns.clone()], sums, product.width(), &zeros[columns]);
        }
    });
    dx
}

/// Gradient with respect to the weights, `[ins, outs, 2, 2, 2]`. `extent` is that of `x`.
pub fn weight_gradient(isa: Isa, x: &[f32], extent: Extent, dy: &[f32]) -> Vec<f32> {
    let (ins, terms) = (extent.channels, dy.len() / (extent.n * extent.voxels()));
    let shape = Shape::for_columns(isa, terms);
    let width = shape.columns();
    let stride = terms.next_multiple_of(width);
    let area = extent.space[1] * extent.space[2];
    let strips = shape.strips(ins);
    let mut tasks: Vec<Task> = (0..strips.len() * (stride / width))
        .map(|task| {
            let (first, height) = strips[task % strips.len()];
            Task { first, panel: task / strips.len(), sums: vec![0.0; height * width] }
        })
        .collect();
    let x = Channels::of(&[x], extent);
    for (n, run) in slabs(extent, ins + stride) {
        let mut rows = vec![0.0; run.len() * area * ins];
        let mut blocks = vec![0.0; run.len() * area * stride];
        let planes = rows.par_chunks_mut(area * ins).zip(blocks.par_chunks_mut(area * stride));
        planes.zip(run.clone()).for_each(|((rows, blocks), plane)| {
            voxel_rows(&x, [n, plane], rows);
            block_rows(dy, extent, [n, plane], terms, stride, blocks);
        });
        tasks.par_iter_mut().for_each(|Task { first, panel, sums }| {
            let product = Product {
                left: &rows,
                start: *first,
                row: 1,
                step: ins,
                segments: &[0],
                terms: run.len() * area,
                right: &blocks[*panel * width..],
                right_step: stride,
            };
            add_product(isa, product, shape, sums.len() / width, sums);
        });
    }
    let mut gradient = vec![0.0; ins * terms];
    for Task { first, panel, sums } in tasks {
        for (i, lanes) in (first..).zip(sums.chunks_exact(width)) {
            let row = &mut gradient[i * terms..][..terms];
            row.iter_mut().skip(panel * width).zip(lanes).for_each(|(to, &sum)| *to = sum);
        }
    }
    gradient
}

/// A part of the weights' gradient: a strip of inputs, from the first, and a panel of outputs' places.
struct Task {
    first: usize,
    panel: usize,
    sums: Vec<f32>,
}

/// Place of a voxel in its block.
fn corner(index: usize) -> [usize; 3] {
    [index >> 2, index >> 1 & 1, index & 1]
}

/// `dy` `[n, outs, 2x, 2y, 2z]` → `[y · z][stride]`, a row holding the blocks of all outputs that a voxel of plane `[n, x]` of the
/// input became; `extent` is the input's.
fn block_rows(dy: &[f32], extent: Extent, [n, x]: [usize; 2], terms: usize, stride: usize, to: &mut [f32]) {
    let [nx, ny, nz] = extent.space;
    let outs = terms / BLOCK;
    for (y, line) in to.chunks_exact_mut(nz * stride).enumerate() {
        for pair in 0..terms / 2 {
            let (o, [a, b, _]) = (pair * 2 / BLOCK, corner(pair * 2 % BLOCK));
            let from = ((n * outs + o) * 2 * nx + 2 * x + a) * 2 * ny + 2 * y + b;
            let from = dy[from * 2 * nz..][..2 * nz].chunks_exact(2);
            for (row, two) in line.chunks_exact_mut(stride).zip(from) {
                row[2 * pair..][..2].copy_from_slice(two);
            }
        }
    }
}

/// The right factor of a product, cut into panels as wide as a tile.
struct Panels {
    shape: Shape,
    terms: usize,
    columns: usize,
    packed: Vec<f32>,
}

impl Panels {
    fn new(isa: Isa, terms: usize, columns: usize, value: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let shape = Shape::for_columns(isa, columns);
        Self { shape, terms, columns, packed: matrix_panels(terms, columns, shape.columns(), value) }
    }

    fn width(&self) -> usize {
        self.shape.columns()
    }

    fn count(&self) -> usize {
        self.columns.div_ceil(self.width())
    }

    /// The columns of a panel that are columns of the matrix.
    fn columns_of(&self, panel: usize) -> std::ops::Range<usize> {
        panel * self.width()..((panel + 1) * self.width()).min(self.columns)
    }

    /// `left` `[rows, terms]` times a panel: `[rows, width]`.
    fn multiply(&self, isa: Isa, left: &[f32], panel: usize, sums: &mut Vec<f32>) {
        let rows = left.len() / self.terms;
        let width = self.width();
        sums.clear();
        sums.resize(rows * width, 0.0);
        let mut row = 0;
        while row < rows {
            let height = self.shape.fit(rows - row);
            let product = Product {
                left,
                start: row * self.terms,
                row: self.terms,
                step: 1,
                segments: &[0],
                terms: self.terms,
                right: &self.packed[panel * self.terms * width..][..self.terms * width],
                right_step: width,
            };
            add_product(isa, product, self.shape, height, &mut sums[row * width..][..height * width]);
            row += height;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn assert_close(what: &str, isa: Isa, got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (index, (&g, &e)) in got.iter().zip(expected).enumerate() {
            assert!(
                (f64::from(g) - e).abs() < 1e-4 * (1.0 + e.abs()),
                "{what}[{index}], {isa:?}: {g} against {e}"
            );
        }
    }

    #[test]
    fn every_instruction_set_computes_the_definition_and_its_gradients() {
        for seed in 0..60 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let space: [usize; 3] = std::array::from_fn(|_| rng.random_range(1..6));
            let extent = Extent { n: rng.random_range(1..3), channels: rng.random_range(1..20), space };
            let outs = rng.random_range(1..9);
            let mut fill = |len: usize| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let (x, weights, bias) = (fill(extent.len()), fill(extent.channels * outs * BLOCK), fill(outs));
            let dy = fill(extent.n * outs * extent.voxels() * BLOCK);

            let [nx, ny, nz] = extent.space;
            let mut y: Vec<f64> = vec![0.0; dy.len()];
            let (mut dx, mut dw) = (vec![0.0f64; x.len()], vec![0.0f64; weights.len()]);
            for (out, y) in y.iter_mut().enumerate() {
                let at = [out / (4 * ny * nz) % (2 * nx), out / (2 * nz) % (2 * ny), out % (2 * nz)];
                let (n, o) = (out / (outs * 8 * extent.voxels()), out / (8 * extent.voxels()) % outs);
                *y = f64::from(bias[o]);
                for i in 0..extent.channels {
                    let input =
                        (((n * extent.channels + i) * nx + at[0] / 2) * ny + at[1] / 2) * nz + at[2] / 2;
                    let weight = (i * outs + o) * BLOCK + (at[0] % 2 * 4 + at[1] % 2 * 2 + at[2] % 2);
                    *y += f64::from(x[input]) * f64::from(weights[weight]);
                    dx[input] += f64::from(dy[out]) * f64::from(weights[weight]);
                    dw[weight] += f64::from(dy[out]) * f64::from(x[input]);
                }
            }
            for isa in Isa::available() {
                assert_close("y", isa, &forward(isa, &x, extent, &weights, &bias), &y);
                assert_close("dx", isa, &input_gradient(isa, &dy, extent, &weights), &dx);
                assert_close("dw", isa, &weight_gradient(isa, &x, extent, &dy), &dw);
            }
        }
    }

    #[test]
    fn neither_threads_nor_the_slabs_of_a_volume_change_a_bit() {
        let (extent, outs) = (Extent { n: 1, channels: 3, space: [9, 32, 33] }, 64);
        let wave = |len: usize| (0..len).map(|i| ((i * 37) % 101) as f32 / 101.0 - 0.5).collect::<Vec<f32>>();
        let (x, weights, bias) = (wave(extent.len()), wave(3 * outs * BLOCK), wave(outs));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let isa = Isa::detect();
                let y = forward(isa, &x, extent, &weights, &bias);
                let gradients =
                    (input_gradient(isa, &y, extent, &weights), weight_gradient(isa, &x, extent, &y));
                (slabs(extent, 3 + outs * BLOCK).count(), y, gradients)
            })
        };
        let (one, nine) = (run(1), run(9));
        assert!(one.0 > nine.0, "{} slabs and {}", one.0, nine.0);
        assert!((one.1, one.2) == (nine.1, nine.2));
    }
}
