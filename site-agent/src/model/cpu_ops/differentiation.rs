//! The operations in a graph: what each keeps for its backward pass, and that pass.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, TensorMetadata};

use super::{Counted, CpuGradients, CpuOps};
use crate::kernels::batch_norm::Statistics;

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
