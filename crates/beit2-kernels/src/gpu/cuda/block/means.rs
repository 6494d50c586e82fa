//! Means over a group of the gradients of blocks, exchanged while those of the blocks before are computed.

use super::super::all_reduce::Exchange;
use super::super::{Queue, Recorded};
use super::backward::Backward;
use crate::Rank;
use crate::block::BlockTensors;
use crate::collective::nccl::Piece;

/// Bytes that a bucket of whole blocks has at least, unless it is the last of a run. An exchange costs some tens of
/// microseconds whatever its size, as long as a ring needs for a few megabytes; a block of a base model has 28 MB.
const BUCKET: usize = 25 << 20;

/// What is exchanged for a run of blocks.
pub(super) struct Means {
    exchange: Exchange,
    /// Elements of each parameter of each block.
    counts: Vec<BlockTensors<usize>>,
}

impl Means {
    /// # Panics
    /// If NCCL is not there: such a group overlaps nothing.
    pub fn new(group: &Rank, parameters: &[BlockTensors<Recorded>]) -> Self {
        let exchange =
            Exchange::means(group).unwrap_or_else(|| panic!("NCCL does not serve {group:?} any more"));
        let count = |tensor: &Recorded| tensor.shape.num_elements();
        Self { exchange, counts: parameters.iter().map(|block| block.each_ref().map(count)).collect() }
    }

    /// Whether these blocks, of whose number `first` is the lowest, are a bucket.
    pub fn is_bucket(&self, first: usize, end: usize) -> bool {
        is_bucket(&self.counts, first, end)
    }

    /// Begins the exchange of the gradients of some blocks, which are complete in the queue's order.
    pub fn begin(&self, queue: &mut Queue<'_>, blocks: &[Backward], first: usize, end: usize) {
        let pieces = (first..end).flat_map(|number| {
            let counts = self.counts[number].clone().list().into_iter().flatten();
            let places = blocks[number].dparameters.clone().list().into_iter().flatten();
            counts.zip(places).map(|(count, at)| Piece { from: at.0, to: at.0, count, bf16: false })
        });
        self.exchange.begin(queue, &pieces.collect::<Vec<_>>());
    }
}

fn is_bucket(counts: &[BlockTensors<usize>], first: usize, end: usize) -> bool {
    let blocks = counts[first..end].iter().flat_map(|block| block.clone().list()).flatten();
    first == 0 || blocks.sum::<usize>() * size_of::<f32>() >= BUCKET
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The buckets of a run of `count` blocks, from the last block to the first.
    fn buckets(count: usize, width: usize) -> Vec<std::ops::Range<usize>> {
        let vector = || [width; 2];
        let layer = |a: usize, b: usize| [a * width * b * width, a * width];
        let block = BlockTensors {
            norm1: vector(),
            qkv: 3 * width * width,
            qv_bias: Some(vector()),
            proj: layer(1, 1),
            norm2: vector(),
            fc1: layer(4, 1),
            fc2: layer(1, 4),
            gammas: Some(vector()),
        };
        let counts = vec![block; count];
        let (mut end, mut buckets) = (count, Vec::new());
        for first in (0..count).rev() {
            if is_bucket(&counts, first, end) {
                buckets.push(first..end);
                end = first;
            }
        }
        buckets
    }

    #[test]
    fn buckets_are_whole_blocks() {
        // Blocks of 28, 7 and 50 MB.
        assert_eq!(buckets(3, 768), [2..3, 1..2, 0..1]);
        assert_eq!(buckets(6, 384), [2..6, 0..2]);
        assert_eq!(buckets(2, 1024), [1..2, 0..1]);
    }
}
