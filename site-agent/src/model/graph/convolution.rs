//! Convolutions: what they read is kept, and their gradients are made one after the other, that of the input last: by then what was
//! read is given back.
//!
//! The output of most is kept for the normalisation that follows. A transposed convolution's is several times as large as
//! what it was made from, and costs little to make: where the device says so, it is made again.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Shape;

use super::register;
use super::source::{Recorded, Source, recorded};

/// From input, weight and bias.
type Forward<B> = fn(FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) -> FloatTensor<B>;

/// A convolution of one volume and its gradients, whatever its kernel.
#[derive(Debug)]
pub(in crate::model) struct Convolution<B: Backend> {
    pub(in crate::model) forward: Forward<B>,
    /// From the output's gradient and the weight.
    pub(in crate::model) input: fn(FloatTensor<B>, FloatTensor<B>, &Shapes) -> FloatTensor<B>,
    /// From the input and the output's gradient.
    pub(in crate::model) weight: fn(FloatTensor<B>, FloatTensor<B>, &Shapes) -> FloatTensor<B>,
    /// From the output's gradient.
    pub(in crate::model) bias: fn(FloatTensor<B>, &Shapes) -> FloatTensor<B>,
    /// Whether its output is made again for those who read it.
    pub(in crate::model) made_again: bool,
}

/// What a gradient cannot always tell from the tensors that it is made of.
#[derive(Clone, Debug)]
pub(in crate::model) struct Shapes {
    pub(in crate::model) input: Shape,
    pub(in crate::model) weight: Shape,
}

impl<B: Backend> Convolution<B> {
    /// Runs the convolution and records it if anybody will ask for its gradients.
    pub(in crate::model) fn record<C: CheckpointStrategy>(
        self,
        x: Recorded<B, C>,
        weight: Recorded<B, C>,
        bias: Recorded<B, C>,
    ) -> Recorded<B, C> {
        let (forward, made_again) = (self.forward, self.made_again);
        let shapes = Shapes { input: x.shape(), weight: weight.shape() };
        let prep = self.prepare::<C>([x.node(), weight.node(), bias.node()]);
        let prep = if made_again {
            let sources = [&x, &weight, &bias].map(Source::<B>::of::<C>);
            let prep = prep.memory_bound().retro_forward(ConvolutionAgain { forward, sources });
            prep.parents(recorded::<B, C>(&x, [&weight, &bias]))
        } else {
            prep.compute_bound()
        };
        let run = |x: Recorded<B, C>, weight: Recorded<B, C>, bias: Recorded<B, C>| {
            forward(x.into_primitive(), weight.into_primitive(), bias.into_primitive())
        };
        match prep.stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&weight), shapes);
                prep.finish(state, run(x, weight, bias))
            }
            OpsKind::UnTracked(prep) => prep.finish(run(x, weight, bias)),
        }
    }
}

impl<B: Backend> Backward<B, 3> for Convolution<B> {
    type State = (NodeId, NodeId, Shapes);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [x_node, weight_node, bias_node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (x, weight, shapes) = ops.state;
        let [x, weight] = [x, weight].map(|node| checkpointer.retrieve_node_output::<FloatTensor<B>>(node));
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, (self.bias)(dy.clone(), &shapes));
        }
        if let Some(node) = weight_node {
            grads.register::<B>(node.id, (self.weight)(x, dy.clone(), &shapes));
        }
        // The first layer's input is the scan: nobody asks for its gradient, which would cost most of that layer.
        if let Some(node) = x_node {
            grads.register::<B>(node.id, (self.input)(dy, weight, &shapes));
        }
    }
}

/// The output of a [`Convolution`] once more.
#[derive(Debug)]
struct ConvolutionAgain<B: Backend> {
    forward: Forward<B>,
    sources: [Source<B>; 3],
}

impl<B: Backend> RetroForward for ConvolutionAgain<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let [x, weight, bias] = self.sources.each_ref().map(|source| source.read(states));
        states.save(out_node, (self.forward)(x, weight, bias));
    }
}

/// Two volumes or their gradients.
type Pair<B> = [FloatTensor<B>; 2];

/// A convolution of two volumes that are never joined and its gradients, whatever its kernel.
#[derive(Debug)]
pub(in crate::model) struct PairConvolution<B: Backend> {
    /// From both inputs, weight and bias.
    pub(in crate::model) forward: fn([FloatTensor<B>; 4]) -> FloatTensor<B>,
    /// From the output's gradient, the weight and the channels of the inputs.
    pub(in crate::model) input: fn(FloatTensor<B>, FloatTensor<B>, [usize; 2]) -> Pair<B>,
    /// From the inputs and the output's gradient.
    pub(in crate::model) weight: fn(Pair<B>, FloatTensor<B>) -> FloatTensor<B>,
    /// From the output's gradient.
    pub(in crate::model) bias: fn(FloatTensor<B>) -> FloatTensor<B>,
}

impl<B: Backend> PairConvolution<B> {
    /// Runs the convolution of both inputs, weight and bias, and records it if anybody will ask for its gradients.
    pub(in crate::model) fn record<C: CheckpointStrategy>(
        self,
        tensors: [Recorded<B, C>; 4],
    ) -> Recorded<B, C> {
        let forward = self.forward;
        let run = |tensors: [Recorded<B, C>; 4]| forward(tensors.map(|tensor| tensor.into_primitive()));
        let nodes = tensors.each_ref().map(|tensor| tensor.node());
        match self.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let [a, b, weight, _] = &tensors;
                let channels = [a, b].map(|x| x.shape()[1]);
                let state = ([a, b, weight].map(|tensor| prep.checkpoint(tensor)), channels);
                prep.finish(state, run(tensors))
            }
            OpsKind::UnTracked(prep) => prep.finish(run(tensors)),
        }
    }
}

impl<B: Backend> Backward<B, 4> for PairConvolution<B> {
    type State = ([NodeId; 3], [usize; 2]);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [a_node, b_node, weight_node, bias_node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (saved, channels) = ops.state;
        let [a, b, weight] = saved.map(|node| checkpointer.retrieve_node_output::<FloatTensor<B>>(node));
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, (self.bias)(dy.clone()));
        }
        if let Some(node) = weight_node {
            grads.register::<B>(node.id, (self.weight)([a, b], dy.clone()));
        }
        if a_node.is_some() || b_node.is_some() {
            register::<B, 2>(
                grads,
                [a_node, b_node].map(|node| node.map(|node| node.id)),
                (self.input)(dy, weight, channels),
            );
        }
    }
}
