//! Speed of the convolution kernels on one core: `cargo run --release -p site-agent --example kernel_speed`.
//!
//! Shapes are those of the demo's network (width 8, patches of 24³, two at a time). Each figure is the best of several runs.

#![expect(clippy::print_stdout, reason = "an example prints")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::ThreadPoolBuilder;
use site_agent::kernels::isa::Isa;
use site_agent::kernels::{Extent, conv3};

const SHAPES: [(usize, usize, usize); 8] = [
    (1, 8, 24),
    (8, 16, 24),
    (48, 16, 24),
    (16, 16, 24),
    (32, 32, 12),
    (96, 32, 12),
    (192, 64, 6),
    (64, 128, 3),
];
const RUNS: usize = 7;

fn main() {
    let pool = ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    pool.install(|| {
        for isa in Isa::available() {
            println!("{isa:?}\n  ins outs side   forward  input  weight   GF/s, one core");
            for (ins, outs, side) in SHAPES {
                let extent = Extent { n: 2, channels: ins, space: [side; 3] };
                let values = |len: usize| (0..len).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect::<Vec<_>>();
                let (x, weights) = (values(extent.len()), values(ins * outs * 27));
                let dy = values(extent.with_channels(outs).len());
                let products = (2 * 27 * ins * outs * extent.voxels() * extent.n) as f64;
                let speed = |work: &dyn Fn() -> Vec<f32>| products / best(work).as_secs_f64() / 1e9;
                let output = extent.with_channels(outs);
                println!(
                    "  {ins:4} {outs:4} {side:4}  {:7.1} {:7.1} {:7.1}",
                    speed(&|| conv3::forward(isa, &x, extent, &weights, None, outs)),
                    speed(&|| conv3::input_gradient(isa, &dy, output, &weights, ins)),
                    speed(&|| conv3::weight_gradient(isa, &x, extent, &dy, outs)),
                );
            }
        }
    });
}

fn best(work: &dyn Fn() -> Vec<f32>) -> Duration {
    let timed = || {
        let start = Instant::now();
        black_box(work());
        start.elapsed()
    };
    (0..RUNS).map(|_| timed()).min().expect("several runs")
}
