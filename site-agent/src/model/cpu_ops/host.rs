//! The operations on the CPU device: tensors in, slices to the kernels, tensors out.

use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::TensorData;

use super::{Counted, CpuGradients, CpuOps};
use crate::kernels::attention::{self, Attention};
use crate::kernels::isa::Isa;
use crate::kernels::masked_loss::{self, Loss, Pairs};
use crate::kernels::norm_relu::{self, Normalisation, Statistics};
use crate::kernels::segmentor::{self, HIDDEN, HeadExtent};
use crate::kernels::windows::Windows;
use crate::kernels::{Extent, conv1, conv3, gelu, layer_norm, pool2, up2};

type Host = FloatTensor<Flex>;

fn extent(tensor: &Host) -> Extent {
    let [n, channels, x, y, z] = tensor.shape().dims();
    Extent { n, channels, space: [x, y, z] }
}

/// The extent of all channels of several volumes.
fn joint_extent(x: &[Host]) -> Extent {
    let of_one = extent(&x[0]);
    of_one.with_channels(x.iter().map(|x| extent(x).channels).sum())
}

/// A convolution from the values of its inputs, weights and bias.
type Forward = fn(Isa, &[&[f32]], Extent, &[f32], &[f32]) -> Vec<f32>;
/// Its inputs' gradients, from that of the output and the weights, for inputs of so many channels.
type InputGradient<const N: usize> = fn(Isa, &[f32], Extent, &[f32], [usize; N]) -> [Vec<f32>; N];
/// Its weights' gradient, from its inputs and the gradient of so many outputs.
type WeightGradient = fn(Isa, &[&[f32]], Extent, &[f32], usize) -> Vec<f32>;

fn convolve<const N: usize>(kernel: Forward, x: [Host; N], weight: Host, bias: Host) -> Host {
    let x = x.map(|x| x.to_contiguous());
    let (weight, bias) = (weight.to_contiguous(), bias.to_contiguous());
    let (extent, outs) = (joint_extent(&x), bias.shape().num_elements());
    let parts = x.each_ref().map(|x| x.storage::<f32>());
    let y = kernel(Isa::detect(), &parts, extent, weight.storage(), bias.storage());
    volumes(y, extent.with_channels(outs))
}

fn conv3_with_bias(isa: Isa, x: &[&[f32]], extent: Extent, weights: &[f32], bias: &[f32]) -> Vec<f32> {
    conv3::forward(isa, x, extent, weights, Some(bias), bias.len())
}

/// The gradients of a convolution's inputs, which have so many channels each.
fn differentiate_inputs<const N: usize>(
    kernel: InputGradient<N>,
    dy: Host,
    weight: Host,
    channels: [usize; N],
) -> [Host; N] {
    let (dy, weight) = (dy.to_contiguous(), weight.to_contiguous());
    let extent = extent(&dy);
    let mut dx = kernel(Isa::detect(), dy.storage(), extent, weight.storage(), channels).into_iter();
    channels.map(|channels| volumes(dx.next().unwrap_or_default(), extent.with_channels(channels)))
}

/// The gradient of a convolution's weights, whose kernel has sides of `side` voxels.
fn differentiate_weights<const N: usize>(
    kernel: WeightGradient,
    x: [Host; N],
    dy: Host,
    side: usize,
) -> Host {
    let (x, dy) = (x.map(|x| x.to_contiguous()), dy.to_contiguous());
    let (extent, [_, outs, ..]) = (joint_extent(&x), dy.shape().dims::<5>());
    let parts = x.each_ref().map(|x| x.storage::<f32>());
    let dw = kernel(Isa::detect(), &parts, extent, dy.storage(), outs);
    tensor(dw, [outs, extent.channels, side, side, side])
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Host {
    Host::from_data(TensorData::new(values, shape))
}

fn head_extent(features: &Host, parameters: &Host) -> HeadExtent {
    let [n, _, x, y, z] = features.shape().dims();
    let [_, classes, _] = parameters.shape().dims();
    HeadExtent { n, classes, voxels: x * y * z }
}

fn volumes(values: Vec<f32>, extent: Extent) -> Host {
    let [x, y, z] = extent.space;
    tensor(values, [extent.n, extent.channels, x, y, z])
}

/// A tensor whose storage is its values in order, to be written where it lies unless somebody else keeps it.
/// `to_contiguous` alone would share what it need not copy.
pub(in crate::model) fn whole(tensor: Host) -> Host {
    let fills = tensor.bytes().len() == tensor.shape().num_elements() * size_of::<f32>();
    if fills && tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

fn of_shape(values: Vec<f32>, like: &Host) -> Host {
    Host::from_data(TensorData::new(values, like.shape()))
}

/// The attention over `[qkv, padding, table]`.
fn attention_of<'a>([qkv, _, table]: &[Host; 3], windows: &'a Windows) -> Attention<'a> {
    let ([n, _, triple], [_, heads]) = (qkv.shape().dims(), table.shape().dims());
    Attention { windows, n, width: triple / 3, heads }
}

fn attention_inputs([qkv, padding, table]: &[Host; 3]) -> attention::Inputs<'_> {
    attention::Inputs { qkv: qkv.storage(), padding: padding.storage(), table: table.storage() }
}

impl CpuOps for Flex {
    fn conv1(x: Host, weight: Host, bias: Host) -> Host {
        convolve(conv1::forward, [x], weight, bias)
    }

    fn conv1_pair(a: Host, b: Host, weight: Host, bias: Host) -> Host {
        convolve(conv1::forward, [a, b], weight, bias)
    }

    fn conv3(x: Host, weight: Host, bias: Host) -> Host {
        convolve(conv3_with_bias, [x], weight, bias)
    }

    fn conv3_pair(a: Host, b: Host, weight: Host, bias: Host) -> Host {
        convolve(conv3_with_bias, [a, b], weight, bias)
    }

    fn norm_relu(x: Host, weight: Host, bias: Host, how: Normalisation) -> Host {
        Self::norm_relu_forward(x, weight, bias, how).0
    }

    fn row_norm(x: Host, weight: Host, bias: Host, epsilon: f32) -> Host {
        Self::row_norm_forward(x, weight, bias, epsilon).0
    }

    fn exact_gelu(x: Host) -> Host {
        let x = x.to_contiguous();
        of_shape(gelu::forward(Isa::detect(), x.storage()), &x)
    }

    fn window_attention(qkv: Host, padding: Host, table: Host, windows: Arc<Windows>) -> Host {
        Self::window_attention_forward(qkv, padding, table, &windows).0
    }

    fn pool2(x: Host) -> Host {
        Self::pool2_forward(x).0
    }

    fn up2(x: Host, weight: Host, bias: Host) -> Host {
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let (extent, outs) = (extent(&x), bias.shape().num_elements());
        let y = up2::forward(Isa::detect(), x.storage(), extent, weight.storage(), bias.storage());
        let space = extent.space.map(|side| 2 * side);
        volumes(y, Extent { n: extent.n, channels: outs, space })
    }

    fn segment(features: Host, parameters: Host) -> Host {
        let (features, parameters) = (features.to_contiguous(), parameters.to_contiguous());
        let head = head_extent(&features, &parameters);
        let logits = segmentor::logits(Isa::detect(), features.storage(), parameters.storage(), head);
        volumes(logits, extent(&features).with_channels(head.classes))
    }

    fn masked_loss(x: Host, target: Host, annotated: Vec<bool>, dice_terms: usize) -> Host {
        Self::masked_loss_forward(x, target, &annotated, dice_terms).0
    }
}

impl CpuGradients for Flex {
    fn conv1_input<const N: usize>(dy: Host, weight: Host, channels: [usize; N]) -> [Host; N] {
        differentiate_inputs(conv1::input_gradient, dy, weight, channels)
    }

    fn conv1_weight<const N: usize>(x: [Host; N], dy: Host) -> Host {
        differentiate_weights(conv1::weight_gradient, x, dy, 1)
    }

    fn conv3_input<const N: usize>(dy: Host, weight: Host, channels: [usize; N]) -> [Host; N] {
        differentiate_inputs(conv3::input_gradient, dy, weight, channels)
    }

    fn conv3_weight<const N: usize>(x: [Host; N], dy: Host) -> Host {
        differentiate_weights(conv3::weight_gradient, x, dy, 3)
    }

    fn channel_sums(dy: Host) -> Host {
        let dy = dy.to_contiguous();
        let extent = extent(&dy);
        tensor(conv3::bias_gradient(dy.storage(), extent), [extent.channels])
    }

    fn norm_relu_forward(x: Host, weight: Host, bias: Host, how: Normalisation) -> (Host, Statistics) {
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let (extent, affine) = (extent(&x), [weight.storage(), bias.storage()]);
        let (y, statistics) = norm_relu::forward(Isa::detect(), x.storage(), extent, how, affine);
        (volumes(y, extent), statistics)
    }

    fn norm_relu_again(
        x: Host,
        weight: Host,
        bias: Host,
        how: Normalisation,
        statistics: &Statistics,
    ) -> Host {
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let (extent, affine) = (extent(&x), [weight.storage(), bias.storage()]);
        let y = norm_relu::again(Isa::detect(), x.storage(), extent, how, affine, statistics);
        volumes(y, extent)
    }

    fn norm_relu_backward(
        x: Host,
        dy: Host,
        weight: Host,
        bias: Host,
        how: Normalisation,
        statistics: &Statistics,
    ) -> [Host; 3] {
        let (x, mut dy) = (x.to_contiguous(), whole(dy));
        let (weight, bias) = (weight.to_contiguous(), bias.to_contiguous());
        let (extent, affine) = (extent(&x), [weight.storage(), bias.storage()]);
        let [of_weight, of_bias] = norm_relu::backward(
            Isa::detect(),
            x.storage(),
            dy.storage_mut(),
            extent,
            how,
            affine,
            statistics,
        );
        [dy, of_shape(of_weight, &weight), of_shape(of_bias, &bias)]
    }

    fn row_norm_forward(x: Host, weight: Host, bias: Host, epsilon: f32) -> (Host, layer_norm::Statistics) {
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let affine = [weight.storage(), bias.storage()];
        let (y, statistics) = layer_norm::forward(Isa::detect(), x.storage(), affine, epsilon);
        (of_shape(y, &x), statistics)
    }

    fn row_norm_again(x: Host, weight: Host, bias: Host, statistics: &layer_norm::Statistics) -> Host {
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let affine = [weight.storage(), bias.storage()];
        of_shape(layer_norm::again(Isa::detect(), x.storage(), affine, statistics), &x)
    }

    fn row_norm_backward(x: Host, dy: Host, weight: Host, statistics: &layer_norm::Statistics) -> [Host; 3] {
        let (x, mut dy, weight) = (x.to_contiguous(), whole(dy), weight.to_contiguous());
        let [of_weight, of_bias] =
            layer_norm::backward(Isa::detect(), x.storage(), dy.storage_mut(), weight.storage(), statistics);
        [dy, of_shape(of_weight, &weight), of_shape(of_bias, &weight)]
    }

    fn exact_gelu_backward(x: Host, dy: Host) -> Host {
        let (x, mut dy) = (x.to_contiguous(), whole(dy));
        gelu::backward(Isa::detect(), x.storage(), dy.storage_mut());
        dy
    }

    fn window_attention_forward(
        qkv: Host,
        padding: Host,
        table: Host,
        windows: &Windows,
    ) -> (Host, Vec<f32>) {
        let inputs = [qkv, padding, table].map(|tensor| tensor.to_contiguous());
        let (a, [n, voxels, triple]) = (attention_of(&inputs, windows), inputs[0].shape().dims());
        let (y, logs) = attention::forward(Isa::detect(), a, attention_inputs(&inputs));
        (tensor(y, [n, voxels, triple / 3]), logs)
    }

    fn window_attention_backward(inputs: [Host; 3], dy: Host, windows: &Windows, logs: &[f32]) -> [Host; 3] {
        let (inputs, dy) = (inputs.map(|tensor| tensor.to_contiguous()), dy.to_contiguous());
        let a = attention_of(&inputs, windows);
        let gradients = attention::backward(Isa::detect(), a, attention_inputs(&inputs), logs, dy.storage());
        let [qkv, padding, table] = &inputs;
        [of_shape(gradients.qkv, qkv), of_shape(gradients.padding, padding), of_shape(gradients.table, table)]
    }

    fn pool2_forward(x: Host) -> (Host, Vec<u8>) {
        let x = x.to_contiguous();
        let extent = extent(&x);
        let (y, which) = pool2::forward(x.storage(), extent);
        (volumes(y, pool2::pooled(extent)), which)
    }

    fn pool2_backward(dy: Host, which: &[u8], [n, channels, x, y, z]: [usize; 5]) -> Host {
        let extent = Extent { n, channels, space: [x, y, z] };
        volumes(pool2::backward(dy.to_contiguous().storage(), which, extent), extent)
    }

    fn up2_input(dy: Host, weight: Host, [n, channels, x, y, z]: [usize; 5]) -> Host {
        let (dy, weight) = (dy.to_contiguous(), weight.to_contiguous());
        let extent = Extent { n, channels, space: [x, y, z] };
        volumes(up2::input_gradient(Isa::detect(), dy.storage(), extent, weight.storage()), extent)
    }

    fn up2_weight(x: Host, dy: Host) -> Host {
        let (x, dy) = (x.to_contiguous(), dy.to_contiguous());
        let ([_, outs, ..], extent) = (dy.shape().dims::<5>(), extent(&x));
        let dw = up2::weight_gradient(Isa::detect(), x.storage(), extent, dy.storage());
        tensor(dw, [extent.channels, outs, 2, 2, 2])
    }

    fn segment_backward(features: Host, parameters: Host, dy: Host) -> [Host; 2] {
        let (features, parameters) = (features.to_contiguous(), parameters.to_contiguous());
        let (head, shape) = (head_extent(&features, &parameters), parameters.shape().dims::<3>());
        let dy = dy.to_contiguous();
        let gradients =
            segmentor::gradients(Isa::detect(), features.storage(), parameters.storage(), dy.storage(), head);
        [
            volumes(gradients.features, extent(&features).with_channels(HIDDEN)),
            tensor(gradients.parameters, shape),
        ]
    }

    fn masked_loss_forward(x: Host, target: Host, annotated: &[bool], dice_terms: usize) -> (Host, Loss) {
        let (x, target) = (x.to_contiguous(), target.to_contiguous());
        let pairs = Pairs { annotated, terms: dice_terms };
        let loss = masked_loss::loss(Isa::detect(), x.storage(), target.storage(), pairs);
        (tensor(vec![loss.bce, loss.dice], [2]), loss)
    }

    fn masked_loss_backward(x: Host, target: Host, counted: &Counted, slopes: Host) -> Host {
        let (mut x, target, slopes) = (whole(x), target.to_contiguous(), slopes.to_contiguous());
        let Counted { annotated, dice_terms, loss } = counted;
        let pairs = Pairs { annotated, terms: *dice_terms };
        let slopes: &[f32] = slopes.storage();
        // The logits are not needed any more: their gradient takes their place, unless somebody keeps them.
        masked_loss::gradient(
            Isa::detect(),
            x.storage_mut(),
            target.storage(),
            pairs,
            loss,
            slopes[0],
            slopes[1],
        );
        x
    }
}
