//! Row normalisation and activation, whose output is cheap to make beside the memory that it takes: where the device says so, it is
//! made again for those who read it.

use std::marker::PhantomData;
use std::sync::Arc;

use burn::backend::Backend;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::tensor::FloatTensor;

use crate::kernels::layer_norm;
use crate::model::cpu_ops::{CpuGradients, CpuOps};
use crate::model::graph::{Source, register};

#[derive(Debug)]
pub(super) struct LayerNorm;

impl<B: CpuGradients> Backward<B, 3> for LayerNorm {
    type State = ([NodeId; 2], Arc<layer_norm::Statistics>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (parents, statistics) = ops.state;
        let [x, weight] = parents.map(|node| checkpointer.retrieve_node_output(node));
        register::<B, 3>(
            grads,
            ops.parents.map(|node| node.map(|node| node.id)),
            B::row_norm_backward(x, dy, weight, &statistics),
        );
    }
}

#[derive(Debug)]
pub(super) struct LayerNormAgain<B: Backend> {
    pub(super) sources: [Source<B>; 3],
    pub(super) statistics: Arc<layer_norm::Statistics>,
}

impl<B: CpuGradients> RetroForward for LayerNormAgain<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let [x, weight, bias] = self.sources.each_ref().map(|source| source.read(states));
        states.save(out_node, B::row_norm_again(x, weight, bias, &self.statistics));
    }
}

#[derive(Debug)]
pub(super) struct Gelu;

impl<B: CpuGradients> Backward<B, 1> for Gelu {
    type State = NodeId;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let x = checkpointer.retrieve_node_output(ops.state);
        register::<B, 1>(
            grads,
            ops.parents.map(|node| node.map(|node| node.id)),
            [B::exact_gelu_backward(x, dy)],
        );
    }
}

#[derive(Debug)]
pub(super) struct GeluAgain<B> {
    pub(super) parent: NodeId,
    pub(super) backend: PhantomData<B>,
}

impl<B: CpuOps> RetroForward for GeluAgain<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FloatTensor<B>>(&self.parent);
        states.save(out_node, B::exact_gelu(x));
    }
}
