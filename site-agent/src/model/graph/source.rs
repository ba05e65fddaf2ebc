//! What an output is made from when it is made again.
//!
//! burn hands over what is recorded, and an output with a parent that is not is kept, not made again. Parameters that nobody
//! trains are such parents: the ones and zeros of a normalisation without parameters, the bias of a layer that has none.

use std::iter;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};

pub(in crate::model) type Recorded<B, C> = FloatTensor<Autodiff<B, C>>;

/// A tensor that an output is made from.
#[derive(Debug)]
pub(in crate::model) enum Source<B: Backend> {
    /// burn keeps it, or makes it again too.
    Node(NodeId),
    /// It is in no graph, and kept here.
    Constant(FloatTensor<B>),
}

impl<B: Backend> Source<B> {
    pub(in crate::model) fn of<C: CheckpointStrategy>(tensor: &Recorded<B, C>) -> Self {
        if tensor.is_tracked() { Self::Node(tensor.id()) } else { Self::Constant(tensor.primitive().clone()) }
    }

    /// To be called once: burn has counted how often a node is read.
    pub(in crate::model) fn read(&self, states: &mut BackwardStates) -> FloatTensor<B> {
        match self {
            Self::Node(node) => states.get_state::<FloatTensor<B>>(node),
            Self::Constant(tensor) => tensor.clone(),
        }
    }
}

/// The parents that burn has to hand over: the input, without which nothing is made again, and what is recorded of the parameters.
pub(in crate::model) fn recorded<'a, B: Backend, C: CheckpointStrategy>(
    x: &'a Recorded<B, C>,
    parameters: [&'a Recorded<B, C>; 2],
) -> impl Iterator<Item = &'a Recorded<B, C>> {
    iter::once(x).chain(parameters.into_iter().filter(|tensor| tensor.is_tracked()))
}
