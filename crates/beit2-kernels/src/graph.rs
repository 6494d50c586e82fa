//! Recording an operation as one node of Burn's graph.
//!
//! An operation describes its backward pass (Burn's `Backward`) and uses the macros here for the rest. They are macros
//! because Burn does not name the type of a graph's nodes.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;

/// `record!(B, C, op, [parents], tracked { (output, state) }, untracked { output })`: the output as a tensor of the graph.
///
/// `tracked` runs when a parent needs a gradient and gives the output with what `op` keeps for its backward pass;
/// `untracked` runs when none does. Both may take the parents' `primitive` away.
macro_rules! record {
    ($B:ident, $C:ident, $op:expr, [$($parent:ident),+], tracked $train:block, untracked $run:block) => {{
        use burn::backend::autodiff::ops::{Backward, OpsKind};
        let node = Backward::<$B, _>::prepare::<$C>($op, [$($parent.node.clone()),+]);
        match node.compute_bound().stateful() {
            OpsKind::Tracked(node) => {
                let (output, state) = $train;
                node.finish(state, output)
            }
            OpsKind::UnTracked(node) => node.finish($run),
        }
    }};
}

/// As [`record!`], for an operation with more outputs, which get no gradients: `tracked { (output, rest, state) }` and
/// `untracked { (output, rest) }` give `(output, rest)`.
macro_rules! record_with {
    ($B:ident, $C:ident, $op:expr, [$($parent:ident),+], tracked $train:block, untracked $run:block) => {{
        use burn::backend::autodiff::ops::{Backward, OpsKind};
        let node = Backward::<$B, _>::prepare::<$C>($op, [$($parent.node.clone()),+]);
        match node.compute_bound().stateful() {
            OpsKind::Tracked(node) => {
                let (output, rest, state) = $train;
                (node.finish(state, output), rest)
            }
            OpsKind::UnTracked(node) => {
                let (output, rest) = $run;
                (node.finish(output), rest)
            }
        }
    }};
}

/// Gives each parent of a node that needs it its gradient: `register!(B, grads, parents, [gradients])`. A gradient may be
/// an `Option`; `None` was not computed.
macro_rules! register {
    ($B:ident, $grads:expr, $parents:expr, $gradients:expr) => {
        for (parent, gradient) in $parents.into_iter().zip($gradients) {
            if let (Some(parent), Some(gradient)) = (parent, Option::from(gradient)) {
                $grads.register::<$B>(parent.id, gradient);
            }
        }
    };
}

/// As `grads.register`, for a parent that may have other children: what they gave already is added by the backend's own sum.
/// `accumulate!(B, grads, parent, gradient)`.
macro_rules! accumulate {
    ($B:ident, $grads:expr, $parent:expr, $gradient:expr) => {{
        use burn::tensor::ops::FloatTensor;
        let (parent, gradient): (_, FloatTensor<$B>) = ($parent, $gradient);
        // Burn finds a gradient by a tensor of the graph, of which only the node counts.
        let mut place = FloatTensor::<burn::backend::Autodiff<$B>>::new(gradient.clone());
        place.node = parent.clone();
        let there = $grads.remove::<$B>(&place);
        drop(place);
        let gradient = match there {
            Some(there) => $B::fused_sum(gradient, there),
            None => gradient,
        };
        $grads.register::<$B>(parent.id, gradient);
    }};
}

pub(crate) use {accumulate, record, record_with, register};

/// The inner tensor of one without gradient; for backward passes that use statistics of the forward pass, which are
/// constants to a graph: they refuse instead of losing a part of the second derivative.
///
/// # Panics
/// If the tensor needs a gradient.
pub(crate) fn constant<B: BurnBackend, C: CheckpointStrategy>(
    op: &str,
    x: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<B> {
    assert!(!x.is_tracked(), "{op}: second derivatives are not implemented");
    x.primitive
}
