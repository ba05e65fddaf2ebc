//! Normalisation by the statistics at hand, with the rectifier that follows it, and its gradients: as
//! [`kernels::norm_relu`](crate::kernels::norm_relu), of which it is the same in burn's operations.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Scalar, TensorMetadata};
use burn::tensor::Shape;

use super::sums;
use crate::kernels::norm_relu::{Normalisation, Together};

/// Of each set, `[1, set, 1]`.
#[derive(Clone, Debug)]
pub(super) struct Statistics<B: Backend> {
    mean: FloatTensor<B>,
    /// `1 / sqrt(biased variance + ε)`.
    scale: FloatTensor<B>,
}

/// What is normalised together, as the middle axis of `[many, set, many]`.
#[derive(Clone, Copy, Debug)]
struct Sets([usize; 3]);

impl Sets {
    fn of(shape: &Shape, how: Normalisation) -> Self {
        let (n, channels, all) = (shape[0], shape[1], shape.num_elements());
        match how.together {
            Together::Channel => Self([n, channels, all / (n * channels)]),
            Together::Groups(groups) => Self([1, n * groups, all / (n * groups)]),
        }
    }

    fn view<B: Backend>(self, x: FloatTensor<B>) -> FloatTensor<B> {
        B::float_reshape(x, Shape::new(self.0))
    }

    /// The mean of each set, `[1, set, 1]`.
    fn means<B: Backend>(self, x: FloatTensor<B>) -> FloatTensor<B> {
        let [apart, sets, together] = self.0;
        let sums = sums::of_channels::<B>(self.view::<B>(x));
        let means = B::float_div_scalar(sums, Scalar::from(apart * together));
        B::float_reshape(means, Shape::new([1, sets, 1]))
    }
}

/// The output, and the statistics that its gradients need.
pub(super) fn forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    how: Normalisation,
) -> (FloatTensor<B>, Statistics<B>) {
    let shape = x.shape();
    let sets = Sets::of(&shape, how);
    let mean = sets.means::<B>(x.clone());
    let centred = B::float_sub(sets.view::<B>(x), mean.clone());
    let variance = sets.means::<B>(B::float_mul(centred.clone(), centred.clone()));
    let scale = B::float_recip(B::float_sqrt(B::float_add_scalar(variance, Scalar::from(how.epsilon))));
    let normal = B::float_reshape(B::float_mul(centred, scale.clone()), shape);
    (rectified::<B>(affine::<B>(normal, weight, bias), how), Statistics { mean, scale })
}

/// The output once more.
pub(super) fn again<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    how: Normalisation,
    statistics: &Statistics<B>,
) -> FloatTensor<B> {
    rectified::<B>(affine::<B>(normal::<B>(x, how, statistics), weight, bias), how)
}

/// Gradients with respect to input, weight and bias.
pub(super) fn backward<B: Backend>(
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    how: Normalisation,
    statistics: &Statistics<B>,
) -> [FloatTensor<B>; 3] {
    let shape = x.shape();
    let sets = Sets::of(&shape, how);
    let normal = normal::<B>(x, how, statistics);
    let before = affine::<B>(normal.clone(), weight.clone(), bias);
    let dy = rectifier_gradient::<B>(before, dy, how);
    let dw = sums::of_channels::<B>(B::float_mul(dy.clone(), normal.clone()));
    let db = sums::of_channels::<B>(dy.clone());

    let dn = B::float_mul(dy, per_channel::<B>(weight, &shape));
    let along = sets.means::<B>(B::float_mul(dn.clone(), normal.clone()));
    let away = B::float_add(B::float_mul(sets.view::<B>(normal), along), sets.means::<B>(dn.clone()));
    let dx = B::float_mul(B::float_sub(sets.view::<B>(dn), away), statistics.scale.clone());
    [B::float_reshape(dx, shape), dw, db]
}

fn normal<B: Backend>(x: FloatTensor<B>, how: Normalisation, statistics: &Statistics<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let centred = B::float_sub(Sets::of(&shape, how).view::<B>(x), statistics.mean.clone());
    B::float_reshape(B::float_mul(centred, statistics.scale.clone()), shape)
}

fn affine<B: Backend>(
    normal: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
) -> FloatTensor<B> {
    let shape = normal.shape();
    let (weight, bias) = (per_channel::<B>(weight, &shape), per_channel::<B>(bias, &shape));
    B::float_add(B::float_mul(normal, weight), bias)
}

fn per_channel<B: Backend>(values: FloatTensor<B>, shape: &Shape) -> FloatTensor<B> {
    B::float_reshape(values, Shape::new([1, shape[1], 1, 1, 1]))
}

fn rectified<B: Backend>(x: FloatTensor<B>, how: Normalisation) -> FloatTensor<B> {
    if how.slope == 0.0 { B::relu(x) } else { B::leaky_relu(x, Scalar::from(how.slope)) }
}

/// From what was rectified and the gradient of the result. burn has this for a slope of zero alone.
fn rectifier_gradient<B: Backend>(
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
    how: Normalisation,
) -> FloatTensor<B> {
    let above = B::relu_backward(x, dy.clone());
    if how.slope == 0.0 {
        return above;
    }
    let everywhere = B::float_mul_scalar(dy, Scalar::from(how.slope));
    B::float_add(B::float_mul_scalar(above, Scalar::from(1.0 - how.slope)), everywhere)
}
