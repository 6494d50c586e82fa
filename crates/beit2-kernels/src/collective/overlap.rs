//! Gradients that ranks exchange while the backward pass that makes them goes on.
//!
//! [`backward`] is a backward pass whose gradients are to become means over a group. Burn's graph gives gradients of
//! parameters last, but a block is one node of it: its operation knows when the block's gradients are complete, and
//! a backend that can ([`AllReduceOps::overlaps_all_reduce`]) sends them while it computes those of the block before.
//!
//! Nobody can take a mean for a rank's own gradient, or the other way round, or read one that is still on its way: such
//! tensors are never among Burn's gradients. They are in [`PendingMeans`], which has one way out, and come to the caller as
//! [`ArrivedMeans`]. Means are taken of leaves of the graph only, because nothing there reads a leaf's gradient. If an
//! operation outside of blocks uses the same parameter, its share is among Burn's gradients, and the caller has both.
//!
//! Meeting inside a backward pass is safe under two conditions, which [`backward`] makes true. No rank is still at the end
//! of an earlier pass, where it waits for the graphs of all others: hence the meeting before. No rank waits for the list of
//! all graphs, which another may hold at its end: hence the meeting in the first node, when every rank has passed it.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use super::{AllReduceOps, PeerLeft, Rank};
use crate::interrupt;
use crate::tensor::{unwrap, wrap};
use crate::{AnyRank, AutodiffBackend};

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// The backward pass of this thread.
struct Running {
    rank: Rank,
    /// Whether the ranks met in its first node; `None` before it.
    met: Option<bool>,
    /// [`PendingMeans`] of the pass's inner backend.
    means: Box<dyn Any>,
}

/// Means that may still be on their way.
struct PendingMeans<I: AllReduceOps> {
    keys: Vec<Option<u64>>,
    tensors: Vec<FloatTensor<I>>,
}

impl<I: AllReduceOps> Default for PendingMeans<I> {
    fn default() -> Self {
        Self { keys: Vec::new(), tensors: Vec::new() }
    }
}

impl<I: AllReduceOps> PendingMeans<I> {
    /// The means, to be read by whatever comes later.
    fn arrive(mut self) -> ArrivedMeans<I> {
        if self.tensors.is_empty() {
            return ArrivedMeans::default();
        }
        let (keys, tensors) = (std::mem::take(&mut self.keys), std::mem::take(&mut self.tensors));
        let mut arrived = HashMap::new();
        for (key, mean) in keys.into_iter().zip(I::arrived_means(tensors)) {
            let Some(key) = key else { continue };
            // A parameter of two blocks: the sum of means is the mean of the sum.
            let mean = match arrived.remove(&key) {
                Some(other) => I::float_add(other, mean),
                None => mean,
            };
            arrived.insert(key, mean);
        }
        ArrivedMeans(arrived)
    }
}

impl<I: AllReduceOps> Drop for PendingMeans<I> {
    /// Their memory must not be used for something else while they are written.
    fn drop(&mut self) {
        let tensors = std::mem::take(&mut self.tensors);
        if !tensors.is_empty() {
            // A device that has failed panics here too, and has said so already.
            let _ = catch_unwind(AssertUnwindSafe(|| I::arrived_means(tensors)));
        }
    }
}

/// The means that a backward pass took itself, by parameter.
#[must_use = "without them parameters have no gradients"]
#[derive(Debug)]
pub struct ArrivedMeans<I: AllReduceOps>(HashMap<u64, FloatTensor<I>>);

impl<I: AllReduceOps> Default for ArrivedMeans<I> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<I: AllReduceOps> ArrivedMeans<I> {
    /// The mean of a parameter's gradient; `None` if the backward pass did not take it.
    pub fn take<B: AutodiffBackend<InnerBackend = I>, const D: usize>(
        &mut self,
        parameter: &Tensor<B, D>,
    ) -> Option<Tensor<I, D>> {
        let key = B::graph_key(&unwrap(parameter.clone()))?;
        self.0.remove(&key).map(wrap)
    }

    /// How many nobody has taken.
    pub fn left(&self) -> usize {
        self.0.len()
    }
}

impl Rank {
    /// Whether [`backward`] exchanges gradients of this group while it runs. The same on all ranks.
    pub fn overlaps<I: AllReduceOps>(&self) -> bool {
        self.world() > 1 && I::overlaps_all_reduce(self)
    }
}

/// The gradients of a loss, and apart from them the means over the group of those that the backward pass exchanged itself:
/// none where [`Rank::overlaps`] is false. All ranks call it at the same point of their work, and none is cut off in it.
///
/// # Errors
/// Another rank has ended.
///
/// # Panics
/// Under a [`Watch`](crate::Watch), which could end one rank's pass and not another's.
pub fn backward<B: AutodiffBackend, const D: usize>(
    loss: &Tensor<B, D>,
    rank: &Rank,
) -> Result<(B::Gradients, ArrivedMeans<B::InnerBackend>), PeerLeft> {
    backward_recomputing(loss, rank, Vec::new)
}

/// [`backward`] of a loss before which parts of the model were cut off to be [recomputed](crate::Recomputing). `leaves` are the
/// model's trained parameters; other leaves get no gradients from what is before the parts.
///
/// # Errors
/// Another rank has ended.
///
/// # Panics
/// As [`backward`].
pub fn backward_recomputing<B: AutodiffBackend, const D: usize>(
    loss: &Tensor<B, D>,
    rank: &Rank,
    leaves: impl Fn() -> Vec<AnyRank<B>>,
) -> Result<(B::Gradients, ArrivedMeans<B::InnerBackend>), PeerLeft> {
    let leaves = || -> Vec<FloatTensor<B>> { leaves().into_iter().map(|leaf| leaf.0).collect() };
    let complete = |grads| B::backward_of_parts(grads, &leaves);
    if !rank.overlaps::<B::InnerBackend>() {
        return Ok((complete(loss.backward()), ArrivedMeans::default()));
    }
    assert!(!interrupt::is_watched(), "a backward pass in which ranks meet must not be cut off");
    rank.gather(())?;
    /// Ends with the pass, however that ends.
    struct Scope;
    impl Drop for Scope {
        fn drop(&mut self) {
            drop(RUNNING.take());
        }
    }
    let scope = Scope;
    let means = Box::new(PendingMeans::<B::InnerBackend>::default());
    RUNNING.set(Some(Running { rank: rank.clone(), met: None, means }));
    let grads = complete(loss.backward());
    let means = RUNNING.take().and_then(|running| running.means.downcast::<PendingMeans<_>>().ok());
    drop(scope);
    Ok((grads, means.map_or_else(ArrivedMeans::default, |means| means.arrive())))
}

/// In the backward pass of a block: the group over which it takes the means of its parameters' gradients, if it
/// shall. Whoever asks must give them to [`keep`].
pub(crate) fn group() -> Option<Rank> {
    // Not held while waiting: a thread that waits may help with other operations.
    let (rank, met) = RUNNING.with_borrow(|running| {
        let running = running.as_ref()?;
        Some((running.rank.clone(), running.met))
    })?;
    let met = met.unwrap_or_else(|| rank.gather(()).is_ok());
    RUNNING.with_borrow_mut(|running| {
        if let Some(running) = running {
            running.met = Some(met);
        }
    });
    met.then_some(rank)
}

/// Keeps what such a backward pass gave: means of leaves by their keys in the graph, and without a key those that nobody
/// wants, which are on their way too.
pub(crate) fn keep<I: AllReduceOps>(means: impl IntoIterator<Item = (Option<u64>, FloatTensor<I>)>) {
    RUNNING.with_borrow_mut(|running| {
        let kept = running.as_mut().and_then(|running| running.means.downcast_mut::<PendingMeans<I>>());
        let Some(kept) = kept else { unreachable!("kept by the backward pass that `group` gave a group to") };
        for (key, mean) in means {
            kept.keys.push(key);
            kept.tensors.push(mean);
        }
    });
}
