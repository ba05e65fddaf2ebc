//! Every kernel on one core, on each instruction set: `cargo bench -p site-agent --bench kernels`.
//!
//! Shapes are those of the demo's network (width 8, one patch of 24³) and, of convolutions, of the paper's at 32³. The items
//! of a convolution are floating-point operations: `Gitem/s` reads as GF/s. `DIVAN_MIN_TIME=1` steadies the figures.

use std::fmt;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use rayon::ThreadPoolBuilder;
use site_agent::kernels::attention::{self, Attention, Inputs};
use site_agent::kernels::isa::Isa;
use site_agent::kernels::masked_loss::Pairs;
use site_agent::kernels::norm_relu::{Normalisation, Together};
use site_agent::kernels::segmentor::{HIDDEN, HeadExtent, PARAMETERS};
use site_agent::kernels::windows::{OFFSETS, Windows};
use site_agent::kernels::{
    Extent, adamw, conv1, conv3, gelu, layer_norm, masked_loss, norm_relu, pool2, segmentor, up2,
};

fn main() {
    // This thread is the pool: what is timed is the kernel and not the way to another thread.
    ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global().expect("the first pool");
    divan::main();
}

/// Inputs, outputs and side of the 3×3×3 convolutions.
const CONVOLUTIONS: [(usize, usize, usize); 12] = [
    (1, 8, 24),
    (8, 16, 24),
    (48, 16, 24),
    (16, 16, 24),
    (32, 32, 12),
    (96, 32, 12),
    (192, 64, 6),
    (64, 128, 3),
    (64, 64, 64),
    (192, 64, 64),
    (384, 128, 32),
    (256, 256, 8),
];
/// Channels and side before the transposed convolutions.
const UPSAMPLINGS: [(usize, usize); 3] = [(128, 3), (64, 6), (32, 12)];
/// Classes that a hospital of the demo annotates.
const CLASSES: usize = 6;
/// Voxels of the demo's patch.
const VOXELS: usize = 24 * 24 * 24;
/// About as many numbers as the demo's network has.
const WEIGHTS: usize = 1_300_000;

/// A shape on an instruction set.
struct On<T> {
    isa: Isa,
    shape: T,
}

impl fmt::Display for On<(usize, usize, usize)> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ins, outs, side) = self.shape;
        write!(f, "{:?}, {ins} to {outs}, {side}³", self.isa)
    }
}

impl fmt::Display for On<(usize, usize)> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (channels, side) = self.shape;
        write!(f, "{:?}, {channels} channels, {side}³", self.isa)
    }
}

fn each<T: Copy>(shapes: &[T]) -> Vec<On<T>> {
    let on = |isa| shapes.iter().map(move |&shape| On { isa, shape });
    Isa::available().into_iter().flat_map(on).collect()
}

fn convolutions() -> Vec<On<(usize, usize, usize)>> {
    each(&CONVOLUTIONS)
}

fn upsamplings() -> Vec<On<(usize, usize)>> {
    each(&UPSAMPLINGS)
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect()
}

fn volume(channels: usize, side: usize) -> Extent {
    Extent { n: 1, channels, space: [side; 3] }
}

fn operations(&(ins, outs, side): &(usize, usize, usize)) -> ItemsCount {
    ItemsCount::new(2 * 27 * ins * outs * side.pow(3))
}

#[divan::bench(args = convolutions())]
fn conv3_forward(bencher: Bencher<'_, '_>, On { isa, shape }: &On<(usize, usize, usize)>) {
    let &(ins, outs, side) = shape;
    let (extent, weights) = (volume(ins, side), values(ins * outs * 27));
    let x = values(extent.len());
    bencher
        .counter(operations(shape))
        .bench_local(|| conv3::forward(*isa, black_box(&[&x]), extent, &weights, None, outs));
}

#[divan::bench(args = convolutions())]
fn conv3_input_gradient(bencher: Bencher<'_, '_>, On { isa, shape }: &On<(usize, usize, usize)>) {
    let &(ins, outs, side) = shape;
    let (extent, weights) = (volume(outs, side), values(ins * outs * 27));
    let dy = values(extent.len());
    bencher
        .counter(operations(shape))
        .bench_local(|| conv3::input_gradient(*isa, black_box(&dy), extent, &weights, [ins]));
}

#[divan::bench(args = convolutions())]
fn conv3_weight_gradient(bencher: Bencher<'_, '_>, On { isa, shape }: &On<(usize, usize, usize)>) {
    let &(ins, outs, side) = shape;
    let extent = volume(ins, side);
    let (x, dy) = (values(extent.len()), values(extent.with_channels(outs).len()));
    bencher
        .counter(operations(shape))
        .bench_local(|| conv3::weight_gradient(*isa, black_box(&[&x]), extent, &dy, outs));
}

#[divan::bench(args = upsamplings())]
fn up2_forward(bencher: Bencher<'_, '_>, On { isa, shape: (channels, side) }: &On<(usize, usize)>) {
    let (extent, weights, bias) =
        (volume(*channels, *side), values(8 * channels * channels), values(*channels));
    let x = values(extent.len());
    bencher.bench_local(|| up2::forward(*isa, black_box(&x), extent, &weights, &bias));
}

#[divan::bench(args = upsamplings())]
fn up2_gradients(bencher: Bencher<'_, '_>, On { isa, shape: (channels, side) }: &On<(usize, usize)>) {
    let (extent, weights) = (volume(*channels, *side), values(8 * channels * channels));
    let (x, dy) = (values(extent.len()), values(8 * extent.len()));
    bencher.bench_local(|| {
        let dx = up2::input_gradient(*isa, black_box(&dy), extent, &weights);
        (dx, up2::weight_gradient(*isa, &x, extent, &dy))
    });
}

const NORMALISATION: Normalisation = Normalisation { together: Together::Channel, epsilon: 1e-5, slope: 0.0 };

#[divan::bench(args = Isa::available())]
fn norm_relu_forward(bencher: Bencher<'_, '_>, isa: Isa) {
    let (extent, affine) = (volume(16, 24), values(16));
    let x = values(extent.len());
    bencher.bench_local(|| norm_relu::forward(isa, black_box(&x), extent, NORMALISATION, [&affine, &affine]));
}

#[divan::bench(args = Isa::available())]
fn norm_relu_gradients(bencher: Bencher<'_, '_>, isa: Isa) {
    let (extent, affine) = (volume(16, 24), values(16));
    let (x, dy, affine) = (values(extent.len()), values(extent.len()), [affine.as_slice(); 2]);
    let (_, statistics) = norm_relu::forward(isa, &x, extent, NORMALISATION, affine);
    let mut gradient = dy;
    bencher.bench_local(|| {
        norm_relu::backward(isa, black_box(&x), &mut gradient, extent, NORMALISATION, affine, &statistics)
    });
}

/// Shifted windows over 24³ tokens of three heads of sixteen numbers.
struct Attending {
    windows: Windows,
    qkv: Vec<f32>,
    padding: Vec<f32>,
    table: Vec<f32>,
}

impl Attending {
    const WIDTH: usize = 48;
    const HEADS: usize = 3;

    fn new() -> Self {
        let windows = Windows::new([24; 3], true);
        let qkv = values(windows.voxels * 3 * Self::WIDTH);
        Self { windows, qkv, padding: values(3 * Self::WIDTH), table: values(OFFSETS * Self::HEADS) }
    }

    fn attention(&self) -> Attention<'_> {
        Attention { windows: &self.windows, n: 1, width: Self::WIDTH, heads: Self::HEADS }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs { qkv: &self.qkv, padding: &self.padding, table: &self.table }
    }
}

#[divan::bench(args = Isa::available())]
fn window_attention_forward(bencher: Bencher<'_, '_>, isa: Isa) {
    let case = Attending::new();
    bencher.bench_local(|| attention::forward(isa, case.attention(), black_box(case.inputs())));
}

#[divan::bench(args = Isa::available())]
fn window_attention_gradients(bencher: Bencher<'_, '_>, isa: Isa) {
    let case = Attending::new();
    let (y, logs) = attention::forward(isa, case.attention(), case.inputs());
    bencher.bench_local(|| attention::backward(isa, case.attention(), black_box(case.inputs()), &logs, &y));
}

#[divan::bench(args = Isa::available())]
fn row_norm_and_gelu(bencher: Bencher<'_, '_>, isa: Isa) {
    let (x, affine) = (values(VOXELS * Attending::WIDTH), values(Attending::WIDTH));
    bencher.bench_local(|| {
        let (y, _) = layer_norm::forward(isa, black_box(&x), [&affine, &affine], 1e-5);
        gelu::forward(isa, &y)
    });
}

#[divan::bench]
fn pool2_forward(bencher: Bencher<'_, '_>) {
    let x = values(volume(16, 24).len());
    bencher.bench_local(|| pool2::forward(black_box(&x), volume(16, 24)));
}

#[divan::bench]
fn pool2_gradient(bencher: Bencher<'_, '_>) {
    let (y, which) = pool2::forward(&values(volume(16, 24).len()), volume(16, 24));
    bencher.bench_local(|| pool2::backward(black_box(&y), &which, volume(16, 24)));
}

#[divan::bench(args = Isa::available())]
fn conv1_forward(bencher: Bencher<'_, '_>, isa: Isa) {
    let (x, weights, bias) = (values(volume(16, 24).len()), values(16 * HIDDEN), values(HIDDEN));
    bencher.bench_local(|| conv1::forward(isa, black_box(&[&x]), volume(16, 24), &weights, &bias));
}

#[divan::bench(args = Isa::available())]
fn conv1_gradients(bencher: Bencher<'_, '_>, isa: Isa) {
    let (extent, weights) = (volume(16, 24), values(16 * HIDDEN));
    let (x, dy) = (values(extent.len()), values(extent.with_channels(HIDDEN).len()));
    bencher.bench_local(|| {
        let dx = conv1::input_gradient(isa, black_box(&dy), extent.with_channels(HIDDEN), &weights, [16]);
        (dx, conv1::weight_gradient(isa, &[&x], extent, &dy, HIDDEN))
    });
}

#[divan::bench(args = Isa::available())]
fn head_forward(bencher: Bencher<'_, '_>, isa: Isa) {
    let extent = HeadExtent { n: 1, classes: CLASSES, voxels: VOXELS };
    let (features, networks) = (values(HIDDEN * VOXELS), values(CLASSES * PARAMETERS));
    bencher.bench_local(|| segmentor::logits(isa, black_box(&features), &networks, extent));
}

#[divan::bench(args = Isa::available())]
fn head_gradients(bencher: Bencher<'_, '_>, isa: Isa) {
    let extent = HeadExtent { n: 1, classes: CLASSES, voxels: VOXELS };
    let (features, networks) = (values(HIDDEN * VOXELS), values(CLASSES * PARAMETERS));
    let dy = values(CLASSES * VOXELS);
    bencher.bench_local(|| segmentor::gradients(isa, black_box(&features), &networks, &dy, extent));
}

/// Logits and target of [`CLASSES`] annotated classes.
fn logits() -> (Vec<f32>, Vec<f32>) {
    let x = values(CLASSES * VOXELS);
    let y = x.iter().map(|x| if *x > 0.4 { 1.0 } else { 0.0 }).collect();
    (x, y)
}

const PAIRS: Pairs<'_> = Pairs { annotated: &[true; CLASSES], terms: 1 };

#[divan::bench(args = Isa::available())]
fn masked_loss_forward(bencher: Bencher<'_, '_>, isa: Isa) {
    let (x, y) = logits();
    bencher.bench_local(|| masked_loss::loss(isa, black_box(&x), &y, PAIRS));
}

#[divan::bench(args = Isa::available())]
fn masked_loss_gradient(bencher: Bencher<'_, '_>, isa: Isa) {
    let (mut x, y) = logits();
    let found = masked_loss::loss(isa, &x, &y, PAIRS);
    bencher.bench_local(|| masked_loss::gradient(isa, black_box(&mut x), &y, PAIRS, &found, 1.0, 1.0));
}

#[divan::bench(args = Isa::available())]
fn adamw_step(bencher: Bencher<'_, '_>, isa: Isa) {
    let coefficients = adamw::Coefficients {
        beta1: 0.9,
        one_minus_beta1: 0.1,
        beta2: 0.999,
        one_minus_beta2: 0.001,
        epsilon: 1e-8,
        rate: 1e-3,
        second_correction: 1.0,
        decay: 1e-8,
    };
    let (theta, mut gradient) = (values(WEIGHTS), values(WEIGHTS));
    let (mut first, mut second) = (vec![0.0; WEIGHTS], vec![0.0; WEIGHTS]);
    bencher.bench_local(|| {
        adamw::step(isa, black_box(&theta), &mut gradient, [&mut first, &mut second], coefficients);
    });
}
