//! The operations in a graph: what each keeps for its backward pass, and that pass.
//!
//! Where the device says so (`gradient_checkpointing`), normalisations and transposed convolutions are not kept for those who read
//! them: they are made again, to the bit, from what was read to make them. A step then holds the outputs of its other
//! convolutions.
//!
//! Every operation is recorded here. The backward passes are in `graph` where they are of any device, in `recomputed`, and the
//! rest of them below.

mod recomputed;

use std::marker::PhantomData;
use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, TensorMetadata};

use self::recomputed::{Gelu, GeluAgain, LayerNorm, LayerNormAgain};
use super::{Counted, CpuGradients, CpuOps};
use crate::kernels::norm_relu::{Normalisation, Statistics};
use crate::kernels::windows::Windows;
use crate::model::graph::{Convolution, NormRelu, PairConvolution, Source, recorded, register};

impl<B: CpuOps + CpuGradients, C: CheckpointStrategy> CpuOps for Autodiff<B, C> {
    fn conv1(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let convolution = Convolution::<B> {
            forward: B::conv1,
            input: |dy, w, shapes| {
                let [dx] = B::conv1_input(dy, w, [shapes.input[1]]);
                dx
            },
            weight: |x, dy, _| B::conv1_weight([x], dy),
            bias: |dy, _| B::channel_sums(dy),
            made_again: false,
        };
        convolution.record::<C>(x, weight, bias)
    }

    fn conv1_pair(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let convolution = PairConvolution::<B> {
            forward: |[a, b, weight, bias]| B::conv1_pair(a, b, weight, bias),
            input: B::conv1_input::<2>,
            weight: B::conv1_weight::<2>,
            bias: B::channel_sums,
        };
        convolution.record::<C>([a, b, weight, bias])
    }

    fn conv3(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let convolution = Convolution::<B> {
            forward: B::conv3,
            input: |dy, w, shapes| {
                let [dx] = B::conv3_input(dy, w, [shapes.input[1]]);
                dx
            },
            weight: |x, dy, _| B::conv3_weight([x], dy),
            bias: |dy, _| B::channel_sums(dy),
            made_again: false,
        };
        convolution.record::<C>(x, weight, bias)
    }

    fn conv3_pair(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let convolution = PairConvolution::<B> {
            forward: |[a, b, weight, bias]| B::conv3_pair(a, b, weight, bias),
            input: B::conv3_input::<2>,
            weight: B::conv3_weight::<2>,
            bias: B::channel_sums,
        };
        convolution.record::<C>([a, b, weight, bias])
    }

    fn norm_relu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        how: Normalisation,
    ) -> FloatTensor<Self> {
        let norm = NormRelu::<B, Statistics> {
            forward: B::norm_relu_forward,
            again: B::norm_relu_again,
            backward: B::norm_relu_backward,
        };
        norm.record::<C>([x, weight, bias], how)
    }

    fn row_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node()];
        let [input, gamma, beta] = [&x, &weight, &bias].map(|tensor| tensor.clone().into_primitive());
        let (y, statistics) = B::row_norm_forward(input, gamma, beta, epsilon);
        let statistics = Arc::new(statistics);
        let sources = [&x, &weight, &bias].map(Source::<B>::of::<C>);
        let again = LayerNormAgain { sources, statistics: Arc::clone(&statistics) };
        let prep = LayerNorm.prepare::<C>(nodes).memory_bound().retro_forward(again);
        match prep.parents(recorded::<B, C>(&x, [&weight, &bias])).stateful() {
            OpsKind::Tracked(mut prep) => {
                let parents = [&x, &weight].map(|tensor| prep.checkpoint(tensor));
                prep.finish((parents, statistics), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn exact_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let y = B::exact_gelu(x.clone().into_primitive());
        let again = GeluAgain::<B> { parent: x.node().id(), backend: PhantomData };
        match Gelu.prepare::<C>([x.node()]).memory_bound().retro_forward(again).parents([&x]).stateful() {
            OpsKind::Tracked(mut prep) => {
                let parent = prep.checkpoint(&x);
                prep.finish(parent, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn window_attention(
        qkv: FloatTensor<Self>,
        padding: FloatTensor<Self>,
        table: FloatTensor<Self>,
        windows: Arc<Windows>,
    ) -> FloatTensor<Self> {
        let nodes = [qkv.node(), padding.node(), table.node()];
        match WindowAttention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let inputs = [&qkv, &padding, &table].map(|tensor| prep.checkpoint(tensor));
                let [qkv, padding, table] = [qkv, padding, table].map(|tensor| tensor.into_primitive());
                let (y, logs) = B::window_attention_forward(qkv, padding, table, &windows);
                prep.finish((inputs, windows, logs), y)
            }
            OpsKind::UnTracked(prep) => {
                let [qkv, padding, table] = [qkv, padding, table].map(|tensor| tensor.into_primitive());
                prep.finish(B::window_attention(qkv, padding, table, windows))
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
        let convolution = Convolution::<B> {
            forward: B::up2,
            input: |dy, w, shapes| B::up2_input(dy, w, shapes.input.dims()),
            weight: |x, dy, _| B::up2_weight(x, dy),
            bias: |dy, _| B::channel_sums(dy),
            made_again: true,
        };
        convolution.record::<C>(x, weight, bias)
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
struct WindowAttention;

impl<B: CpuGradients> Backward<B, 3> for WindowAttention {
    type State = ([NodeId; 3], Arc<Windows>, Vec<f32>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (inputs, windows, logs) = ops.state;
        let inputs = inputs.map(|node| checkpointer.retrieve_node_output(node));
        register::<B, 3>(
            grads,
            ops.parents.map(|node| node.map(|node| node.id)),
            B::window_attention_backward(inputs, dy, &windows, &logs),
        );
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
struct Segment;

impl<B: CpuGradients> Backward<B, 2> for Segment {
    type State = (NodeId, NodeId);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let features: FloatTensor<B> = checkpointer.retrieve_node_output(ops.state.0);
        let parameters: FloatTensor<B> = checkpointer.retrieve_node_output(ops.state.1);
        let gradients = B::segment_backward(features, parameters, dy);
        register::<B, 2>(grads, ops.parents.map(|node| node.map(|node| node.id)), gradients);
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
