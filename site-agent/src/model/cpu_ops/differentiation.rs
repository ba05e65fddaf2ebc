//! The operations in a graph: what each keeps for its backward pass, and that pass.
//!
//! Where the device says so (`gradient_checkpointing`), normalisations are not kept for those who read them: they are made
//! again, to the bit, from what was read to make them. A step then holds the outputs of its convolutions.

use std::marker::PhantomData;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, TensorMetadata};

use super::{Counted, CpuGradients, CpuOps};
use crate::kernels::norm_relu::{Statistics, Together};

impl<B: CpuOps + CpuGradients, C: CheckpointStrategy> CpuOps for Autodiff<B, C> {
    fn conv1(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        match Conv1.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&weight));
                prep.finish(
                    state,
                    B::conv1(x.into_primitive(), weight.into_primitive(), bias.into_primitive()),
                )
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::conv1(x.into_primitive(), weight.into_primitive(), bias.into_primitive()))
            }
        }
    }

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

    fn conv3_pair(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [a.node(), b.node(), weight.node(), bias.node()];
        let channels = [&a, &b].map(|x| x.shape()[1]);
        match Conv3Pair.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = ([&a, &b, &weight].map(|tensor| prep.checkpoint(tensor)), channels);
                let (weight, bias) = (weight.into_primitive(), bias.into_primitive());
                prep.finish(state, B::conv3_pair(a.into_primitive(), b.into_primitive(), weight, bias))
            }
            OpsKind::UnTracked(prep) => {
                let (weight, bias) = (weight.into_primitive(), bias.into_primitive());
                prep.finish(B::conv3_pair(a.into_primitive(), b.into_primitive(), weight, bias))
            }
        }
    }

    fn norm_relu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        together: Together,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node()];
        let primitives = [&x, &weight, &bias].map(|tensor| tensor.clone().into_primitive());
        let [input, gamma, beta] = primitives;
        let (y, statistics) = B::norm_relu_forward(input, gamma, beta, together, epsilon);
        let again = NormReluAgain::<B> {
            parents: [x.node().id(), weight.node().id(), bias.node().id()],
            together,
            statistics: statistics.clone(),
            backend: PhantomData,
        };
        let prep = NormRelu.prepare::<C>(nodes).memory_bound().retro_forward(again);
        match prep.parents([&x, &weight, &bias]).stateful() {
            OpsKind::Tracked(mut prep) => {
                let parents = [&x, &weight, &bias].map(|tensor| prep.checkpoint(tensor));
                prep.finish((parents, together, statistics), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
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
struct Conv1;

impl<B: CpuGradients> Backward<B, 3> for Conv1 {
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
            grads.register::<B>(node.id, B::conv1_weight(x, dy.clone()));
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::conv1_input(dy, weight));
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
            grads.register::<B>(node.id, B::conv3_weight([x], dy.clone()));
        }
        // The first layer's input is the scan: nobody asks for its gradient, which would cost most of that layer.
        if let Some(node) = x_node {
            let [_, channels, ..] = weight.shape().dims::<5>();
            let [dx] = B::conv3_input(dy, weight, [channels]);
            grads.register::<B>(node.id, dx);
        }
    }
}

#[derive(Debug)]
struct Conv3Pair;

impl<B: CpuGradients> Backward<B, 4> for Conv3Pair {
    type State = ([NodeId; 3], [usize; 2]);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [a_node, b_node, weight_node, bias_node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (saved, channels) = ops.state;
        let [a, b, weight] = saved.map(|node| checkpointer.retrieve_node_output::<FloatTensor<B>>(node));
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, B::channel_sums(dy.clone()));
        }
        if let Some(node) = weight_node {
            grads.register::<B>(node.id, B::conv3_weight([a, b], dy.clone()));
        }
        if a_node.is_some() || b_node.is_some() {
            let gradients = B::conv3_input(dy, weight, channels);
            for (node, gradient) in [a_node, b_node].into_iter().zip(gradients) {
                if let Some(node) = node {
                    grads.register::<B>(node.id, gradient);
                }
            }
        }
    }
}

#[derive(Debug)]
struct NormRelu;

impl<B: CpuGradients> Backward<B, 3> for NormRelu {
    type State = ([NodeId; 3], Together, Statistics);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (parents, together, statistics) = ops.state;
        let [x, weight, bias] = parents.map(|node| checkpointer.retrieve_node_output(node));
        let gradients = B::norm_relu_backward(x, dy, weight, bias, together, &statistics);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct NormReluAgain<B> {
    parents: [NodeId; 3],
    together: Together,
    statistics: Statistics,
    backend: PhantomData<B>,
}

impl<B: CpuGradients> RetroForward for NormReluAgain<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let [x, weight, bias] = self.parents.map(|node| states.get_state::<FloatTensor<B>>(&node));
        states.save(out_node, B::norm_relu_again(x, weight, bias, self.together, &self.statistics));
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
