//! Speed of the kernels on one core: `cargo run --release -p site-agent --example kernel_speed`.
//!
//! Shapes are those of the demo's network (width 8, patches of 24³), two patches at a time. Each figure is the best of several
//! runs.

#![expect(clippy::print_stdout, reason = "an example prints")]

use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::ThreadPoolBuilder;
use site_agent::kernels::isa::Isa;
use site_agent::kernels::masked_loss::{self, Pairs};
use site_agent::kernels::norm_relu::Together;
use site_agent::kernels::segmentor::{self, HIDDEN, HeadExtent, PARAMETERS};
use site_agent::kernels::{Extent, adamw, conv3, norm_relu, pool2, up2};

/// Inputs, outputs and side of the 3×3×3 convolutions.
const CONVOLUTIONS: [(usize, usize, usize); 8] = [
    (1, 8, 24),
    (8, 16, 24),
    (48, 16, 24),
    (16, 16, 24),
    (32, 32, 12),
    (96, 32, 12),
    (192, 64, 6),
    (64, 128, 3),
];
/// Channels and side before the transposed convolutions.
const UPSAMPLINGS: [(usize, usize); 3] = [(128, 3), (64, 6), (32, 12)];
/// Classes that a hospital of the demo annotates.
const CLASSES: usize = 6;
/// About as many numbers as the demo's network has.
const PARAMETERS_IN_ALL: usize = 1_300_000;
const RUNS: usize = 7;

fn main() {
    let pool = ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    pool.install(|| {
        for isa in Isa::available() {
            println!("{isa:?}\n  ins outs side   forward  input  weight   GF/s");
            for (ins, outs, side) in CONVOLUTIONS {
                convolution(isa, ins, outs, side);
            }
            println!("                    forward  backward   ms");
            for (channels, side) in UPSAMPLINGS {
                upsampling(isa, channels, side);
            }
            normalisation(isa);
            pooling();
            head(isa);
            loss(isa);
            step(isa);
        }
    });
}

fn convolution(isa: Isa, ins: usize, outs: usize, side: usize) {
    let extent = Extent { n: 2, channels: ins, space: [side; 3] };
    let output = extent.with_channels(outs);
    let (x, dy, weights) = (values(extent.len()), values(output.len()), values(ins * outs * 27));
    let products = (2 * 27 * ins * outs * extent.voxels() * extent.n) as f64;
    let speed = |work: &dyn Fn() -> Vec<f32>| products / best(work).as_secs_f64() / 1e9;
    println!(
        "  {ins:4} {outs:4} {side:4}  {:7.1} {:7.1} {:7.1}",
        speed(&|| conv3::forward(isa, &[&x], extent, &weights, None, outs)),
        speed(&|| {
            let [dx] = conv3::input_gradient(isa, &dy, output, &weights, [ins]);
            dx
        }),
        speed(&|| conv3::weight_gradient(isa, &[&x], extent, &dy, outs)),
    );
}

fn upsampling(isa: Isa, channels: usize, side: usize) {
    let extent = Extent { n: 2, channels, space: [side; 3] };
    let (x, dy) = (values(extent.len()), values(8 * extent.len()));
    let (weights, bias) = (values(8 * channels * channels), values(channels));
    told(
        &format!("upsampling {channels:3} {side:2}"),
        best(&|| up2::forward(isa, &x, extent, &weights, &bias)),
        best(&|| {
            (up2::input_gradient(isa, &dy, extent, &weights), up2::weight_gradient(isa, &x, extent, &dy))
        }),
    );
}

fn normalisation(isa: Isa) {
    let extent = Extent { n: 2, channels: 16, space: [24; 3] };
    let (x, dy, affine) = (values(extent.len()), values(extent.len()), values(16));
    let (together, affine) = (Together::Channel, [affine.as_slice(); 2]);
    let (_, statistics) = norm_relu::forward(isa, &x, extent, together, affine, 1e-5);
    told(
        "batch norm  16 24",
        best(&|| norm_relu::forward(isa, &x, extent, together, affine, 1e-5)),
        best(&|| norm_relu::backward(isa, &x, &dy, extent, together, affine, &statistics)),
    );
}

fn pooling() {
    let extent = Extent { n: 2, channels: 16, space: [24; 3] };
    let x = values(extent.len());
    let (y, which) = pool2::forward(&x, extent);
    told(
        "max pool    16 24",
        best(&|| pool2::forward(&x, extent)),
        best(&|| pool2::backward(&y, &which, extent)),
    );
}

fn head(isa: Isa) {
    let extent = HeadExtent { n: 2, classes: CLASSES, voxels: 24 * 24 * 24 };
    let (features, networks) = (values(2 * HIDDEN * extent.voxels), values(2 * CLASSES * PARAMETERS));
    let dy = values(2 * CLASSES * extent.voxels);
    told(
        "head      6 cl 24",
        best(&|| segmentor::logits(isa, &features, &networks, extent)),
        best(&|| segmentor::gradients(isa, &features, &networks, &dy, extent)),
    );
}

fn loss(isa: Isa) {
    let x = values(2 * CLASSES * 24 * 24 * 24);
    let y: Vec<f32> = x.iter().map(|x| if *x > 0.4 { 1.0 } else { 0.0 }).collect();
    let pairs = Pairs { annotated: &[true; 2 * CLASSES], terms: 1 };
    let found = masked_loss::loss(isa, &x, &y, pairs);
    told(
        "loss      6 cl 24",
        best(&|| masked_loss::loss(isa, &x, &y, pairs)),
        best(&|| masked_loss::gradient(isa, &x, &y, pairs, &found, 1.0, 1.0)),
    );
}

fn step(isa: Isa) {
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
    let (theta, moments) = (values(PARAMETERS_IN_ALL), vec![0.0; PARAMETERS_IN_ALL]);
    let moments = [RefCell::new(moments.clone()), RefCell::new(moments)];
    let took = best(&|| {
        let [mut first, mut second] = moments.each_ref().map(RefCell::borrow_mut);
        adamw::step(isa, &theta, &theta, [&mut first, &mut second], coefficients)
    });
    println!("  AdamW, 1.3 million  {:7.2}", took.as_secs_f64() * 1e3);
}

fn told(what: &str, forward: Duration, backward: Duration) {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    println!("  {what}  {:7.2}   {:7.2}", ms(forward), ms(backward));
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect()
}

fn best<R>(work: &dyn Fn() -> R) -> Duration {
    let timed = || {
        let start = Instant::now();
        black_box(work());
        start.elapsed()
    };
    (0..RUNS).map(|_| timed()).min().expect("several runs")
}
