//! Means over a group of a block's gradients, exchanged while those of the blocks before are computed.

use super::super::all_reduce::Exchange;
use super::super::{Ptr, Queue, Recorded};
use crate::Rank;
use crate::block::BlockTensors;
use crate::collective::nccl::Piece;

/// What is exchanged for a block: one exchange of all its gradients, 28 MB for a block of a base model.
pub(super) struct Means {
    exchange: Exchange,
    /// Elements of each parameter.
    counts: BlockTensors<usize>,
}

impl Means {
    /// # Panics
    /// If NCCL is not there: such a group overlaps nothing.
    pub fn new(group: &Rank, parameters: &BlockTensors<Recorded>) -> Self {
        let exchange =
            Exchange::means(group).unwrap_or_else(|| panic!("NCCL does not serve {group:?} any more"));
        Self { exchange, counts: parameters.each_ref().map(|tensor| tensor.shape.num_elements()) }
    }

    /// Begins the exchange of gradients that are complete in the queue's order.
    pub fn begin(&self, queue: &mut Queue<'_>, gradients: &BlockTensors<Ptr>) {
        let counts = self.counts.clone().list().into_iter().flatten();
        let places = gradients.clone().list().into_iter().flatten();
        let piece = |(count, at): (usize, Ptr)| Piece { from: at.0, to: at.0, count, bf16: false };
        self.exchange.begin(queue, &counts.zip(places).map(piece).collect::<Vec<_>>());
    }
}
