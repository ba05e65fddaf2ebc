//! Binds [`crate::kernels`] to burn's automatic differentiation on the CPU device.
//!
//! [`CpuOps`] is what a network calls; [`CpuGradients`] is what its backward passes call on the device below the
//! differentiating one. Nothing outside `model::ops` uses either: there the device decides between these and burn's own.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, TensorMetadata, backend_extension};
use burn::tensor::TensorData;

use crate::kernels::batch_norm::{self, Statistics};
use crate::kernels::isa::Isa;
use crate::kernels::masked_loss::{self, Loss, Pairs};
use crate::kernels::segmentor::{self, HIDDEN, HeadExtent};
use crate::kernels::{Extent, conv3, pool2, up2};

/// Operations with a kernel of ours. Tensors are `[n, channel, x, y, z]`, f32.
#[backend_extension(Flex, Autodiff)]
pub(super) trait CpuOps: Backend {
    /// 3×3×3 convolution, stride 1, padding 1, with bias; `weight` is `[outs, ins, 3, 3, 3]`.
    fn conv3(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Batch normalisation by the statistics of this batch, then the rectifier.
    fn norm_relu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;
    /// Maximum of each 2×2×2 block.
    fn pool2(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// 2×2×2 transposed convolution, stride 2, with bias; `weight` is `[ins, outs, 2, 2, 2]`.
    fn up2(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
    /// The generated networks: features `[n, 8, x, y, z]`, parameters `[n, classes, 153]`; logits `[n, classes, x, y, z]`.
    fn segment(features: FloatTensor<Self>, parameters: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Mean cross-entropy and mean Dice loss, `[2]`, over the annotated (sample, class) pairs of `[n, class, x, y, z]`.
    fn masked_loss(
        x: FloatTensor<Self>,
        target: FloatTensor<Self>,
        annotated: Vec<bool>,
        dice_terms: usize,
    ) -> FloatTensor<Self>;
}

/// The gradients of [`CpuOps`], first order only.
pub(super) trait CpuGradients: Backend {
    /// From the output's gradient to the input's.
    fn conv3_input(dy: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    /// From the output's gradient to the weight's.
    fn conv3_weight(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Sum per channel.
    fn channel_sums(dy: FloatTensor<Self>) -> FloatTensor<Self>;
    /// [`CpuOps::norm_relu`], and the statistics that its gradient needs.
    fn norm_relu_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f32,
    ) -> (FloatTensor<Self>, Statistics);
    /// Gradients with respect to input, weight and bias.
    fn norm_relu_backward(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        statistics: &Statistics,
    ) -> [FloatTensor<Self>; 3];
    /// [`CpuOps::pool2`], and which voxel of each block it took.
    fn pool2_forward(x: FloatTensor<Self>) -> (FloatTensor<Self>, Vec<u8>);
    /// From the output's gradient to the input's, whose shape is `[n, channel, x, y, z]`.
    fn pool2_backward(dy: FloatTensor<Self>, which: &[u8], shape: [usize; 5]) -> FloatTensor<Self>;
    /// From the output's gradient to the input's, whose shape is `[n, channel, x, y, z]`.
    fn up2_input(dy: FloatTensor<Self>, weight: FloatTensor<Self>, shape: [usize; 5]) -> FloatTensor<Self>;
    /// From the output's gradient to the weight's.
    fn up2_weight(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Gradients with respect to features and parameters.
    fn segment_backward(
        features: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2];
    /// [`CpuOps::masked_loss`], and what its gradient needs.
    fn masked_loss_forward(
        x: FloatTensor<Self>,
        target: FloatTensor<Self>,
        annotated: &[bool],
        dice_terms: usize,
    ) -> (FloatTensor<Self>, Loss);
    /// Gradient with respect to the logits, from the slopes `[2]` of the two means.
    fn masked_loss_backward(
        x: FloatTensor<Self>,
        target: FloatTensor<Self>,
        counted: &Counted,
        slopes: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// What the gradient of the masked loss needs beside its inputs.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    annotated: Vec<bool>,
    dice_terms: usize,
    loss: Loss,
}

type Host = FloatTensor<Flex>;

fn extent(tensor: &Host) -> Extent {
    let [n, channels, x, y, z] = tensor.shape().dims();
    Extent { n, channels, space: [x, y, z] }
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

impl CpuOps for Flex {
    fn conv3(x: Host, weight: Host, bias: Host) -> Host {
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let (extent, outs) = (extent(&x), bias.shape().num_elements());
        let y =
            conv3::forward(Isa::detect(), x.storage(), extent, weight.storage(), Some(bias.storage()), outs);
        volumes(y, extent.with_channels(outs))
    }

    fn norm_relu(x: Host, weight: Host, bias: Host, epsilon: f32) -> Host {
        Self::norm_relu_forward(x, weight, bias, epsilon).0
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
    fn conv3_input(dy: Host, weight: Host) -> Host {
        let (dy, weight) = (dy.to_contiguous(), weight.to_contiguous());
        let [_, ins, ..] = weight.shape().dims::<5>();
        let extent = extent(&dy);
        let dx = conv3::input_gradient(Isa::detect(), dy.storage(), extent, weight.storage(), ins);
        volumes(dx, extent.with_channels(ins))
    }

    fn conv3_weight(x: Host, dy: Host) -> Host {
        let (x, dy) = (x.to_contiguous(), dy.to_contiguous());
        let (extent, [_, outs, ..]) = (extent(&x), dy.shape().dims::<5>());
        let dw = conv3::weight_gradient(Isa::detect(), x.storage(), extent, dy.storage(), outs);
        tensor(dw, [outs, extent.channels, 3, 3, 3])
    }

    fn channel_sums(dy: Host) -> Host {
        let dy = dy.to_contiguous();
        let extent = extent(&dy);
        tensor(conv3::bias_gradient(dy.storage(), extent), [extent.channels])
    }

    fn norm_relu_forward(x: Host, weight: Host, bias: Host, epsilon: f32) -> (Host, Statistics) {
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let extent = extent(&x);
        let (y, statistics) = batch_norm::forward_relu(
            Isa::detect(),
            x.storage(),
            extent,
            weight.storage(),
            bias.storage(),
            epsilon,
        );
        (volumes(y, extent), statistics)
    }

    fn norm_relu_backward(x: Host, y: Host, dy: Host, weight: Host, statistics: &Statistics) -> [Host; 3] {
        let (x, y) = (x.to_contiguous(), y.to_contiguous());
        let (dy, weight) = (dy.to_contiguous(), weight.to_contiguous());
        let extent = extent(&x);
        let gradients = batch_norm::backward_relu(
            Isa::detect(),
            x.storage(),
            y.storage(),
            dy.storage(),
            extent,
            weight.storage(),
            statistics,
        );
        let channels = [extent.channels];
        [
            volumes(gradients.input, extent),
            tensor(gradients.weight, channels),
            tensor(gradients.bias, channels),
        ]
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
        let (x, target, slopes) = (x.to_contiguous(), target.to_contiguous(), slopes.to_contiguous());
        let Counted { annotated, dice_terms, loss } = counted;
        let pairs = Pairs { annotated, terms: *dice_terms };
        let slopes: &[f32] = slopes.storage();
        let dx = masked_loss::gradient(
            Isa::detect(),
            x.storage(),
            target.storage(),
            pairs,
            loss,
            slopes[0],
            slopes[1],
        );
        volumes(dx, extent(&x))
    }
}

impl<B: CpuOps + CpuGradients, C: CheckpointStrategy> CpuOps for Autodiff<B, C> {
    fn conv3(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        match Conv3.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&weight));
                prep.finish(
                    state,
                    B::conv3(x.into_primitive(), weight.into_primitive(), bias.into_primitive()),
                )
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::conv3(x.into_primitive(), weight.into_primitive(), bias.into_primitive()))
            }
        }
    }

    fn norm_relu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        match NormRelu.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let (input, gamma) = (prep.checkpoint(&x), prep.checkpoint(&weight));
                let (weight, bias) = (weight.into_primitive(), bias.into_primitive());
                let (y, statistics) = B::norm_relu_forward(x.into_primitive(), weight, bias, epsilon);
                prep.finish((input, gamma, y.clone(), statistics), y)
            }
            OpsKind::UnTracked(prep) => {
                let (weight, bias) = (weight.into_primitive(), bias.into_primitive());
                prep.finish(B::norm_relu(x.into_primitive(), weight, bias, epsilon))
            }
        }
    }

    fn pool2(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = x.shape().dims();
        match Pool2.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (y, which) = B::pool2_forward(x.into_primitive());
                prep.finish((which, shape), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::pool2(x.into_primitive())),
        }
    }

    fn up2(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = x.shape().dims();
        match Up2.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&weight), shape);
                prep.finish(state, B::up2(x.into_primitive(), weight.into_primitive(), bias.into_primitive()))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::up2(x.into_primitive(), weight.into_primitive(), bias.into_primitive()))
            }
        }
    }

    fn segment(features: FloatTensor<Self>, parameters: FloatTensor<Self>) -> FloatTensor<Self> {
        match Segment.prepare::<C>([features.node(), parameters.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&features), prep.checkpoint(&parameters));
                prep.finish(state, B::segment(features.into_primitive(), parameters.into_primitive()))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::segment(features.into_primitive(), parameters.into_primitive()))
            }
        }
    }

    fn masked_loss(
        x: FloatTensor<Self>,
        target: FloatTensor<Self>,
        annotated: Vec<bool>,
        dice_terms: usize,
    ) -> FloatTensor<Self> {
        let target = target.into_primitive();
        match MaskedLoss.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let logits = prep.checkpoint(&x);
                let (means, loss) =
                    B::masked_loss_forward(x.into_primitive(), target.clone(), &annotated, dice_terms);
                prep.finish((logits, target, Counted { annotated, dice_terms, loss }), means)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::masked_loss(x.into_primitive(), target, annotated, dice_terms))
            }
        }
    }
}

#[derive(Debug)]
struct Conv3;

impl<B: CpuGradients> Backward<B, 3> for Conv3 {
    type State = (NodeId, NodeId);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [x_node, weight_node, bias_node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let x: FloatTensor<B> = checkpointer.retrieve_node_output(ops.state.0);
        let weight: FloatTensor<B> = checkpointer.retrieve_node_output(ops.state.1);
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, B::channel_sums(dy.clone()));
        }
        if let Some(node) = weight_node {
            grads.register::<B>(node.id, B::conv3_weight(x, dy.clone()));
        }
        // The first layer's input is the scan: nobody asks for its gradient, which would cost most of that layer.
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::conv3_input(dy, weight));
        }
    }
}

#[derive(Debug)]
struct NormRelu;

impl<B: CpuGradients> Backward<B, 3> for NormRelu {
    type State = (NodeId, NodeId, FloatTensor<B>, Statistics);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (x, weight, y, statistics) = ops.state;
        let x: FloatTensor<B> = checkpointer.retrieve_node_output(x);
        let weight: FloatTensor<B> = checkpointer.retrieve_node_output(weight);
        let gradients = B::norm_relu_backward(x, y, dy, weight, &statistics);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct Pool2;

impl<B: CpuGradients> Backward<B, 1> for Pool2 {
    type State = (Vec<u8>, [usize; 5]);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let [x_node] = ops.parents;
        let (which, shape) = ops.state;
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::pool2_backward(dy, &which, shape));
        }
    }
}

#[derive(Debug)]
struct Up2;

impl<B: CpuGradients> Backward<B, 3> for Up2 {
    type State = (NodeId, NodeId, [usize; 5]);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [x_node, weight_node, bias_node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (x, weight, shape) = ops.state;
        let x: FloatTensor<B> = checkpointer.retrieve_node_output(x);
        let weight: FloatTensor<B> = checkpointer.retrieve_node_output(weight);
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, B::channel_sums(dy.clone()));
        }
        if let Some(node) = weight_node {
            grads.register::<B>(node.id, B::up2_weight(x, dy.clone()));
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::up2_input(dy, weight, shape));
        }
    }
}

#[derive(Debug)]
struct Segment;

impl<B: CpuGradients> Backward<B, 2> for Segment {
    type State = (NodeId, NodeId);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let features: FloatTensor<B> = checkpointer.retrieve_node_output(ops.state.0);
        let parameters: FloatTensor<B> = checkpointer.retrieve_node_output(ops.state.1);
        let gradients = B::segment_backward(features, parameters, dy);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct MaskedLoss;

impl<B: CpuGradients> Backward<B, 1> for MaskedLoss {
    type State = (NodeId, FloatTensor<B>, Counted);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let slopes = grads.consume::<B>(&ops.node);
        let [x_node] = ops.parents;
        let (x, target, counted) = ops.state;
        let x: FloatTensor<B> = checkpointer.retrieve_node_output(x);
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::masked_loss_backward(x, target, &counted, slopes));
        }
    }
}
