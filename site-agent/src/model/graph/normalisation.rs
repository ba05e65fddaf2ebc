//! Normalisation with its rectifier: its output is cheap to make beside the memory that it takes, so where the device says so, it is
//! made again for those who read it.

use std::fmt::Debug;

use burn::backend::Backend;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;

use super::register;
use super::source::{Recorded, Source, recorded};
use crate::kernels::norm_relu::Normalisation;

/// The output and what is kept of it, from input, weight and bias.
type Forward<B, S> = fn(FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, Normalisation) -> (FloatTensor<B>, S);
/// From input, the output's gradient, weight and bias, to the gradients of input, weight and bias.
type Gradient<B, S> = fn(
    FloatTensor<B>,
    FloatTensor<B>,
    FloatTensor<B>,
    FloatTensor<B>,
    Normalisation,
    &S,
) -> [FloatTensor<B>; 3];
/// The output once more, from input, weight, bias and the statistics of the first time.
type Again<B, S> = fn(FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, Normalisation, &S) -> FloatTensor<B>;

/// A normalisation and its gradients, of which statistics of type `S` are kept.
#[derive(Debug)]
pub(in crate::model) struct NormRelu<B: Backend, S> {
    pub(in crate::model) forward: Forward<B, S>,
    pub(in crate::model) again: Again<B, S>,
    pub(in crate::model) backward: Gradient<B, S>,
}

/// What can be kept of a normalisation until its gradients are asked for.
pub(in crate::model) trait Kept: Clone + Debug + Send + 'static {}
impl<S: Clone + Debug + Send + 'static> Kept for S {}

impl<B: Backend, S: Kept> NormRelu<B, S> {
    /// Normalises the input by weight and bias, and records it if anybody will ask for its gradients.
    pub(in crate::model) fn record<C: CheckpointStrategy>(
        self,
        tensors: [Recorded<B, C>; 3],
        how: Normalisation,
    ) -> Recorded<B, C> {
        let [x, weight, bias] = tensors.each_ref();
        let [input, gamma, beta] = tensors.each_ref().map(|tensor| tensor.clone().into_primitive());
        let (y, statistics) = (self.forward)(input, gamma, beta, how);
        let sources = tensors.each_ref().map(Source::<B>::of::<C>);
        let again = NormReluAgain { again: self.again, sources, how, statistics: statistics.clone() };
        let nodes = tensors.each_ref().map(|tensor| tensor.node());
        let prep = self.prepare::<C>(nodes).memory_bound().retro_forward(again);
        match prep.parents(recorded::<B, C>(x, [weight, bias])).stateful() {
            OpsKind::Tracked(mut prep) => {
                let parents = tensors.each_ref().map(|tensor| prep.checkpoint(tensor));
                prep.finish((parents, how, statistics), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

impl<B: Backend, S: Kept> Backward<B, 3> for NormRelu<B, S> {
    type State = ([NodeId; 3], Normalisation, S);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (parents, how, statistics) = ops.state;
        let [x, weight, bias] = parents.map(|node| checkpointer.retrieve_node_output(node));
        let gradients = (self.backward)(x, dy, weight, bias, how, &statistics);
        register::<B, 3>(grads, ops.parents.map(|node| node.map(|node| node.id)), gradients);
    }
}

#[derive(Debug)]
struct NormReluAgain<B: Backend, S> {
    again: Again<B, S>,
    sources: [Source<B>; 3],
    how: Normalisation,
    statistics: S,
}

impl<B: Backend, S: Kept> RetroForward for NormReluAgain<B, S> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let [x, weight, bias] = self.sources.each_ref().map(|source| source.read(states));
        states.save(out_node, (self.again)(x, weight, bias, self.how, &self.statistics));
    }
}
