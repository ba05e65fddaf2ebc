//! The cost of the U-Net of specification §8.

use super::{BLOCK, Cost, Stage, TAPS, map, norm, trained, voxels};

/// Stages of a U-Net of width `w`, for a patch with these sides.
pub(super) fn stages(w: u64, sides: [u64; 3]) -> Vec<Stage> {
    let at = |halvings| voxels(sides, halvings);
    let stage = |name, cost| Stage { name, cost };
    vec![
        stage("down_tr64", down([1, w, 2 * w], at(0))),
        stage("down_tr128", down([2 * w, 2 * w, 4 * w], at(1))),
        stage("down_tr256", down([4 * w, 4 * w, 8 * w], at(2))),
        stage("down_tr512", down([8 * w, 8 * w, 16 * w], at(3))),
        stage("up_tr256", up(16 * w, 8 * w, at(3))),
        stage("up_tr128", up(8 * w, 4 * w, at(2))),
        stage("up_tr64", up(4 * w, 2 * w, at(1))),
    ]
}

/// Convolution with bias, batch normalisation.
fn unit(input: u64, output: u64, voxels: u64) -> Cost {
    map(TAPS, input, output, voxels) + trained(output) + norm(output)
}

fn down([input, middle, output]: [u64; 3], voxels: u64) -> Cost {
    unit(input, middle, voxels) + unit(middle, output, voxels)
}

/// From `coarse` voxels to eight times as many; the skip connection has the channels of the output.
fn up(input: u64, output: u64, coarse: u64) -> Cost {
    let doubled = map(BLOCK, input, input, coarse) + trained(input);
    doubled + unit(input + output, output, 8 * coarse) + unit(output, output, 8 * coarse)
}
