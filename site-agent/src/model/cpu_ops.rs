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
use crate::kernels::{Extent, conv3, pool2};

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
}

type Host = FloatTensor<Flex>;

fn extent(tensor: &Host) -> Extent {
    let [n, channels, x, y, z] = tensor.shape().dims();
    Extent { n, channels, space: [x, y, z] }
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Host {
    Host::from_data(TensorData::new(values, shape))
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
        let (y, statistics) =
            batch_norm::forward_relu(x.storage(), extent, weight.storage(), bias.storage(), epsilon);
        (volumes(y, extent), statistics)
    }

    fn norm_relu_backward(x: Host, y: Host, dy: Host, weight: Host, statistics: &Statistics) -> [Host; 3] {
        let (x, y) = (x.to_contiguous(), y.to_contiguous());
        let (dy, weight) = (dy.to_contiguous(), weight.to_contiguous());
        let extent = extent(&x);
        let gradients = batch_norm::backward_relu(
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
