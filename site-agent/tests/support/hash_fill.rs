//! The hash fill: synthetic weights and inputs that are a function of a tensor's name (golden README, "The hash fill").

use burn::module::Module;
use site_agent::model::{HostTensor, NamedTensors, parameters};

/// FNV-1a, 64 bit.
pub(crate) fn fnv1a(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// 24 random bits of flat index `i`: splitmix64 started at `seed`.
pub(crate) fn u24(seed: u64, i: usize) -> u32 {
    let z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as u32
}

/// An input: uniform in [0, 1).
pub(crate) fn unit(name: &str, shape: &[usize]) -> HostTensor {
    let seed = fnv1a(name);
    HostTensor::from_fn(shape.to_vec(), |i| u24(seed, i) as f32 / (1 << 24) as f32)
}

/// An input or an upstream gradient: uniform in [-1, 1).
pub(crate) fn sym(name: &str, shape: &[usize]) -> HostTensor {
    let seed = fnv1a(name);
    HostTensor::from_fn(shape.to_vec(), |i| u24(seed, i) as f32 / (1 << 23) as f32 - 1.0)
}

/// Weights for every tensor of `module`, hashed by its name below `prefix`.
pub(crate) fn weights_below<M: Module>(prefix: &str, module: &M) -> NamedTensors {
    let shapes = parameters::shapes(module).into_iter();
    shapes.map(|(name, shape)| (name.clone(), weight(&format!("{prefix}{name}"), &shape))).collect()
}

/// A weight: offset and scale follow from its name and shape.
pub(crate) fn weight(name: &str, shape: &[usize]) -> HostTensor {
    let (seed, (offset, scale)) = (fnv1a(name), offset_and_scale(name, shape));
    HostTensor::from_fn(shape.to_vec(), |i| {
        let sym = u24(seed, i) as f32 / (1 << 23) as f32 - 1.0;
        offset + scale * sym
    })
}

/// As the README lists them, first match first.
pub(crate) fn offset_and_scale(name: &str, shape: &[usize]) -> (f32, f32) {
    let last = name.rsplit('.').next().unwrap_or(name);
    match last {
        "running_mean" => return (0.0, 0.05),
        "running_var" => return (1.0, 0.25),
        "relative_position_bias_table" => return (0.0, 0.5),
        _ if name.ends_with("organ_embedding") || name.ends_with("organ_embedding.weight") => {
            return (0.0, 0.7);
        }
        "weight" if shape.len() == 1 => return (1.0, 0.25),
        _ if shape.len() == 1 => return (0.0, 0.1),
        _ => {}
    }
    let transposed = name.contains("up_conv") || name.contains("transp_conv");
    let fan_in: usize = if transposed { shape[0] } else { shape[1..].iter().product() };
    (0.0, (6.0 / fan_in as f64).sqrt() as f32)
}
