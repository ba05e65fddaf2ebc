//! The door to the heavy kernels: every convolution and pooling of the model goes through here.
//!
//! All volumes are `[batch, channel, x, y, z]`. Faster kernels replace the bodies of these functions, nothing else.

use burn::tensor::{
    Tensor,
    module::{self, max_pool2d},
    ops::{ConvOptions, ConvTransposeOptions, MaxPoolOptions},
};

/// 3x3x3 convolution, padding 1: `[n, in, x, y, z]` to `[n, out, x, y, z]`; weight `[out, in, 3, 3, 3]`.
pub(super) fn conv3d(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Tensor<5> {
    module::conv3d(x, weight, Some(bias), ConvOptions::new([1; 3], [1; 3], [1; 3], 1))
}

/// Transposed convolution, kernel 2, stride 2: doubles each side; weight `[in, out, 2, 2, 2]`.
pub(super) fn conv_transpose3d(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Tensor<5> {
    module::conv_transpose3d(
        x,
        weight,
        Some(bias),
        ConvTransposeOptions::new([2; 3], [0; 3], [0; 3], [1; 3], 1),
    )
}

/// 1x1x1 convolution: one matrix product per sample; weight `[out, in, 1, 1, 1]`.
pub(super) fn pointwise(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Tensor<5> {
    let [n, channels, sx, sy, sz] = x.dims();
    let out = bias.dims()[0];
    let flat = x.reshape([n, channels, sx * sy * sz]);
    let y = weight.reshape([1, out, channels]).matmul(flat) + bias.reshape([1, out, 1]);
    y.reshape([n, out, sx, sy, sz])
}

/// Maximum over 2x2x2 blocks; sides must be even.
///
/// burn 0.22 pools in two dimensions only: (y, z) first, then x with each yz plane as one row.
pub(super) fn max_pool(x: Tensor<5>) -> Tensor<5> {
    let [n, c, sx, sy, sz] = x.dims();
    let planes = max_pool2d(x.reshape([n * c, sx, sy, sz]), MaxPoolOptions::new([2, 2]));
    let rows = planes.reshape([1, n * c, sx, sy / 2 * (sz / 2)]);
    max_pool2d(rows, MaxPoolOptions::new([2, 1])).reshape([n, c, sx / 2, sy / 2, sz / 2])
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn max_pool_takes_the_maximum_of_each_block_and_routes_its_gradient_there() {
        let shape = [2, 3, 4, 6, 2];
        let value = |i: usize| ((i * 7919) % 288) as f32;
        let values: Vec<f32> = (0..288).map(value).collect();
        let device = Device::flex().autodiff();
        let x = Tensor::<1>::from_floats(values.as_slice(), &device).reshape(shape).require_grad();
        let pooled = max_pool(x.clone());
        assert_eq!(pooled.dims(), [2, 3, 2, 3, 1]);
        let gradient = x.grad(&pooled.clone().sum().backward()).unwrap();
        let gradient = gradient.into_data().try_to_vec::<f32>().unwrap();
        let pooled = pooled.into_data().try_to_vec::<f32>().unwrap();

        let mut expected = vec![f32::MIN; pooled.len()];
        for (i, &v) in values.iter().enumerate() {
            let (z, y, x, channel) = (i % 2, i / 2 % 6, i / 12 % 4, i / 48);
            let block = ((channel * 2 + x / 2) * 3 + y / 2) + z / 2;
            expected[block] = expected[block].max(v);
        }
        assert_eq!(pooled, expected);
        for (v, g) in values.iter().zip(gradient) {
            assert_eq!(g, if expected.contains(v) { 1.0 } else { 0.0 });
        }
    }
}
