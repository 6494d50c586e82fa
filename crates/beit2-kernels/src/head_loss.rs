//! Layer norm, prediction head and mean cross entropy as one operation: the losses of masked image modeling.
//!
//! Both predictions of a model with patch aggregation go through the same norm and head against the same ids (paper,
//! section 3.3). One matmul takes the rows of both, and no gradient of the logits is kept in f32 in bf16.
//!
//! Contract: the gradients of norm and head are sums over all sets. Where a backend has nothing better than its single
//! operations ([`fuses_head_loss`](crate::fuses_head_loss)), callers use those.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::{AutodiffBackend, Backend as BurnBackend};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorMetadata};

use crate::cross_entropy::{CrossEntropyOps, CrossEntropySaved};
use crate::graph::register;
use crate::interrupt::tick;
use crate::layer_norm::LayerNormOps;
use crate::linear::LinearOps;
use crate::precision::Precision;
use crate::tensor::{unwrap, wrap};

/// Most sets of rows of one call.
pub(crate) const MOST: usize = 2;

/// What [`head_loss`](crate::head_loss) reads, on a backend's own tensors.
#[derive(Debug, Clone)]
pub struct HeadTensors<T> {
    /// One or two sets of rows, `[n, D]` each.
    pub sets: Vec<T>,
    /// Scale and shift of the norm, `[D]`.
    pub norm: [T; 2],
    /// Of the head, `[K, D]`.
    pub weight: T,
    /// Of the head, `[K]`.
    pub bias: T,
}

impl<T> HeadTensors<T> {
    fn map<U>(self, f: impl Fn(T) -> U) -> HeadTensors<U> {
        HeadTensors {
            sets: self.sets.into_iter().map(&f).collect(),
            norm: self.norm.map(&f),
            weight: f(self.weight),
            bias: f(self.bias),
        }
    }
}

/// How [`head_loss`](crate::head_loss) computes.
#[derive(Debug, Clone, Copy)]
pub struct HeadSpec {
    /// Added to the variance of a row.
    pub eps: f64,
    /// Of the head's three matmuls.
    pub precision: Precision,
}

/// Losses, and how often the largest logit (the first of equals) is the target's.
#[derive(Debug, Clone)]
pub struct HeadLosses<T> {
    /// Sum of the losses, `[1]`; the only one with a gradient.
    pub total: T,
    /// Mean cross entropy of each set, `[1]`.
    pub losses: Vec<T>,
    /// Share of the rows of each set, `[1]`.
    pub accuracies: Vec<T>,
}

impl<T> HeadLosses<T> {
    fn map<U>(self, f: impl Fn(T) -> U) -> HeadLosses<U> {
        HeadLosses {
            total: f(self.total),
            losses: self.losses.into_iter().map(&f).collect(),
            accuracies: self.accuracies.into_iter().map(&f).collect(),
        }
    }
}

/// What the backward pass needs beside the inputs; a backend knows what its own means.
#[derive(Debug, Clone)]
pub struct HeadSaved<B: BurnBackend> {
    /// By default of each set: the norm's output, mean and inverse deviation.
    pub floats: Vec<FloatTensor<B>>,
    /// By default of each set.
    pub losses: Vec<CrossEntropySaved<B>>,
}

/// [`head_loss`](crate::head_loss) on a backend's own tensors.
pub trait HeadLossOps: CrossEntropyOps + LayerNormOps + LinearOps {
    /// [`fuses_head_loss`](crate::fuses_head_loss) of a head with so many classes over rows of so many values.
    fn fuses_head_loss(_device: &Self::Device, _width: usize, _classes: usize) -> bool {
        false
    }

    /// The losses, and what the backward pass needs.
    fn fused_head_loss(
        inputs: HeadTensors<FloatTensor<Self>>,
        targets: IntTensor<Self>,
        spec: HeadSpec,
    ) -> (HeadLosses<FloatTensor<Self>>, HeadSaved<Self>) {
        composed::head_loss::<Self>(inputs, targets, spec)
    }

    /// Gradients of all inputs from that of the total, `upstream [1]`.
    fn fused_head_loss_backward(
        inputs: HeadTensors<FloatTensor<Self>>,
        targets: IntTensor<Self>,
        spec: HeadSpec,
        saved: HeadSaved<Self>,
        upstream: FloatTensor<Self>,
    ) -> HeadTensors<FloatTensor<Self>> {
        let _ = targets; // the default's saved tensors hold it
        composed::head_loss_backward::<Self>(inputs, spec, saved, upstream)
    }
}

/// Whether [`head_loss`](crate::head_loss) by a head `[K, D]` is one computation on this device. If not, a caller may as well
/// compose it.
pub fn fuses_head_loss<B: HeadLossOps>(device: &B::Device, [classes, width]: [usize; 2]) -> bool {
    B::fuses_head_loss(device, width, classes)
}

/// `CE(LN(rows)·Wᵀ + b, targets)` of one or two sets of rows `[n, D]` against the same ids `targets [n]`: of each set the mean
/// loss, and their sum. Norm `[D]`, head `[K, D]` and `[K]` are those of all sets.
///
/// # Panics
/// If a shape does not fit, or there are no or more than two sets.
pub fn head_loss<B: HeadLossOps>(
    sets: Vec<Tensor<B, 2>>,
    norm: [Tensor<B, 1>; 2],
    (weight, bias): (Tensor<B, 2>, Tensor<B, 1>),
    targets: Tensor<B, 1, Int>,
    spec: HeadSpec,
) -> HeadLosses<Tensor<B, 1>> {
    let ([rows], [classes, width]) = (targets.dims(), weight.dims());
    let dims: Vec<_> = sets.iter().map(Tensor::dims).collect();
    assert!(
        (1..=MOST).contains(&sets.len()) && dims.iter().all(|&dims| dims == [rows, width]),
        "head_loss: sets {dims:?} do not fit {rows} targets and a head [{classes}, {width}]"
    );
    assert!(
        norm.iter().all(|vector| vector.dims() == [width]) && bias.dims() == [classes],
        "head_loss: norm {:?} or bias {:?} do not fit a head [{classes}, {width}]",
        norm[0].dims(),
        bias.dims()
    );
    let count = sets.len();
    let inputs = HeadTensors {
        sets: sets.into_iter().map(unwrap).collect(),
        norm: norm.map(unwrap),
        weight: unwrap(weight),
        bias: unwrap(bias),
    };
    let (found, _) = B::fused_head_loss(inputs, targets.into_primitive(), spec);
    tick(operations(count * rows, width, classes));
    found.map(wrap)
}

/// Operations of the head's matmul.
fn operations(rows: usize, width: usize, classes: usize) -> usize {
    2 * rows * width * classes
}

/// From a backend's other operations.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn head_loss<B: HeadLossOps>(
        inputs: HeadTensors<FloatTensor<B>>,
        targets: IntTensor<B>,
        spec: HeadSpec,
    ) -> (HeadLosses<FloatTensor<B>>, HeadSaved<B>) {
        let HeadTensors { sets, norm: [scale, shift], weight, bias } = inputs;
        let mut saved = HeadSaved { floats: Vec::new(), losses: Vec::new() };
        let (mut losses, mut accuracies) = (Vec::new(), Vec::new());
        for x in sets {
            let (y, mean, rstd) = B::fused_layer_norm(x, scale.clone(), shift.clone(), spec.eps);
            let logits = B::fused_linear(y.clone(), weight.clone(), Some(bias.clone()), spec.precision);
            let (loss, accuracy, of_loss) = B::fused_cross_entropy_train(logits, targets.clone(), true);
            saved.floats.extend([y, mean, rstd]);
            saved.losses.push(of_loss);
            losses.push(loss);
            accuracies.push(accuracy.unwrap_or_else(|| unreachable!("it was asked for")));
        }
        let total = sum::<B>(&losses);
        (HeadLosses { total, losses, accuracies }, saved)
    }

    pub(crate) fn head_loss_backward<B: HeadLossOps>(
        inputs: HeadTensors<FloatTensor<B>>,
        spec: HeadSpec,
        saved: HeadSaved<B>,
        upstream: FloatTensor<B>,
    ) -> HeadTensors<FloatTensor<B>> {
        let HeadTensors { sets, norm: [scale, _], weight, .. } = inputs;
        let mut found = Vec::new();
        for ((x, floats), losses) in sets.into_iter().zip(saved.floats.chunks(3)).zip(saved.losses) {
            let [y, mean, rstd] = [0, 1, 2].map(|i| floats[i].clone());
            let grad = B::fused_cross_entropy_backward(losses, upstream.clone());
            let dweight = B::fused_linear_backward_weight(y, grad.clone(), spec.precision);
            let dbias = B::fused_sum_rows(grad.clone());
            let dy = B::fused_linear_backward_input(weight.clone(), grad, spec.precision);
            let (dx, dscale, dshift) = B::fused_layer_norm_backward(x, scale.clone(), mean, rstd, dy);
            found.push([dx, dscale, dshift, dweight, dbias]);
        }
        let of = |i: usize| found.iter().map(|set| set[i].clone()).collect::<Vec<_>>();
        HeadTensors {
            sets: of(0),
            norm: [sum::<B>(&of(1)), sum::<B>(&of(2))],
            weight: sum::<B>(&of(3)),
            bias: sum::<B>(&of(4)),
        }
    }

    fn sum<B: BurnBackend>(tensors: &[FloatTensor<B>]) -> FloatTensor<B> {
        let first = tensors[0].clone();
        tensors[1..].iter().fold(first, |sum, next| B::float_add(sum, next.clone()))
    }
}

/// Parents: the sets, norm and head. Where there is one set, it stands for the second and gets nothing there: the number of
/// parents is part of the type.
const PARENTS: usize = MOST + 4;

#[derive(Debug)]
struct HeadLossBackward;

/// What the backward pass needs.
#[derive(Debug, Clone)]
struct State<B: HeadLossOps> {
    inputs: HeadTensors<FloatTensor<B>>,
    targets: IntTensor<B>,
    spec: HeadSpec,
    saved: HeadSaved<B>,
}

impl<B: HeadLossOps> Backward<B, PARENTS> for HeadLossBackward {
    type State = State<B>;

    fn backward(self, ops: Ops<Self::State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<B>(&ops.node);
        let State { inputs, targets, spec, saved } = ops.state;
        let (rows, weight) = (inputs.sets[0].shape()[0] * inputs.sets.len(), inputs.weight.shape());
        let HeadTensors { sets, norm: [scale, shift], weight: dweight, bias } =
            B::fused_head_loss_backward(inputs, targets, spec, saved, upstream);
        let sets = sets.into_iter().map(Some).chain([None]).take(MOST);
        let gradients = sets.chain([scale, shift, dweight, bias].map(Some));
        register!(B, grads, ops.parents, gradients);
        tick(2 * operations(rows, weight[1], weight[0]));
    }
}

impl<B: HeadLossOps, C: CheckpointStrategy> HeadLossOps for Autodiff<B, C> {
    fn fuses_head_loss(device: &Self::Device, width: usize, classes: usize) -> bool {
        B::fuses_head_loss(device, width, classes)
    }

    fn fused_head_loss(
        inputs: HeadTensors<FloatTensor<Self>>,
        targets: IntTensor<Self>,
        spec: HeadSpec,
    ) -> (HeadLosses<FloatTensor<Self>>, HeadSaved<Self>) {
        let nodes = {
            let HeadTensors { sets, norm: [scale, shift], weight, bias } = &inputs;
            let second = sets.last().unwrap_or(&sets[0]);
            [&sets[0], second, scale, shift, weight, bias].map(|tensor| tensor.node.clone())
        };
        let inputs = inputs.map(|tensor| tensor.primitive);
        let (found, saved) = B::fused_head_loss(inputs.clone(), targets.clone(), spec);
        let HeadLosses { total, losses, accuracies } = found;
        let node = Backward::<B, PARENTS>::prepare::<C>(HeadLossBackward, nodes);
        let total = match node.compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish(State { inputs, targets, spec, saved }, total),
            OpsKind::UnTracked(node) => node.finish(total),
        };
        let constants = |list: Vec<FloatTensor<B>>| list.into_iter().map(Self::from_inner).collect();
        let found = HeadLosses { total, losses: constants(losses), accuracies: constants(accuracies) };
        // A graph keeps what its node needs itself.
        (found, HeadSaved { floats: Vec::new(), losses: Vec::new() })
    }

    fn fused_head_loss_backward(
        _: HeadTensors<FloatTensor<Self>>,
        _: IntTensor<Self>,
        _: HeadSpec,
        _: HeadSaved<Self>,
        _: FloatTensor<Self>,
    ) -> HeadTensors<FloatTensor<Self>> {
        // Why a panic, not a composed form: whoever asks for a second derivative would get it without the node's first.
        panic!("head_loss: second derivatives are not implemented")
    }
}

impl HeadLossOps for Flex {}

#[cfg(test)]
pub(crate) mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::testing::{Checked, check, random};
    use crate::{Backend, layer_norm, linear};

    /// Inputs, one vector each: the sets, norm, head.
    pub(crate) fn inputs(sets: usize, [n, width, classes]: [usize; 3]) -> Vec<Vec<f64>> {
        let rows = (0..sets).map(|set| random(n * width, 10 + set as u64, 2.0));
        let parameters =
            [(width, 1.0), (width, 0.5), (classes * width, 0.3), (classes, 0.5)].into_iter().enumerate();
        rows.chain(parameters.map(|(i, (n, spread))| random(n, i as u64 + 1, spread))).collect()
    }

    fn targets<B: BurnBackend>(n: usize, classes: usize) -> Tensor<B, 1, Int> {
        let ids: Vec<i32> = (0..n).map(|i| (i * 31 % classes) as i32).collect();
        Tensor::from_data(TensorData::new(ids, [n]), &Default::default())
    }

    fn parts<B: Backend>(x: &[Tensor<B, 1>], [n, width, classes]: [usize; 3]) -> HeadTensors<Tensor<B, 1>> {
        let (sets, rest) = x.split_at(x.len() - 4);
        assert!(sets.iter().all(|set| set.dims() == [n * width]) && rest[3].dims() == [classes]);
        let [scale, shift, weight, bias] = [0, 1, 2, 3].map(|i| rest[i].clone());
        HeadTensors { sets: sets.to_vec(), norm: [scale, shift], weight, bias }
    }

    /// The total; with `all`, losses and accuracies too, which have no gradients.
    pub(crate) fn run<B: Backend>(
        x: &[Tensor<B, 1>],
        dims: [usize; 3],
        precision: Precision,
        all: bool,
    ) -> Tensor<B, 1> {
        let [n, width, classes] = dims;
        let HeadTensors { sets, norm, weight, bias } = parts(x, dims);
        let sets = sets.into_iter().map(|set| set.reshape([n, width])).collect();
        let head = (weight.reshape([classes, width]), bias);
        let spec = HeadSpec { eps: 1e-6, precision };
        let HeadLosses { total, losses, accuracies } = head_loss(sets, norm, head, targets(n, classes), spec);
        let dtype = total.dtype();
        let more = losses.into_iter().chain(accuracies).map(|x| x.cast(dtype)).filter(|_| all);
        Tensor::cat([total].into_iter().chain(more).collect(), 0)
    }

    /// Norm, layer and loss one by one.
    pub(crate) fn one_by_one<B: Backend>(x: &[Tensor<B, 1>], dims: [usize; 3]) -> Tensor<B, 1> {
        let [n, width, classes] = dims;
        let HeadTensors { sets, norm: [scale, shift], weight, bias } = parts(x, dims);
        let loss = |set: Tensor<B, 1>| {
            let y = layer_norm(set.reshape([n, width]), scale.clone(), shift.clone(), 1e-6);
            let weight = weight.clone().reshape([classes, width]);
            let logits = linear(y, weight, Some(bias.clone()), Precision::F32);
            crate::reference::cross_entropy(logits, targets(n, classes))
        };
        sets.into_iter().map(loss).reduce(|a, b| a + b).unwrap()
    }

    #[test]
    fn matches_single_operations_and_differences() {
        for (sets, dims) in [(1, [3, 5, 7]), (2, [4, 8, 16]), (2, [1, 3, 2]), (1, [1, 1, 1])] {
            check(
                "head_loss",
                &inputs(sets, dims),
                |x| run(x, dims, Precision::F32, false),
                |x| one_by_one(x, dims),
                3e-6,
            );
        }
    }

    #[test]
    fn losses_and_shares_are_those_of_each_set() {
        let dims @ [n, _, classes] = [6, 4, 5];
        let x: Vec<_> = inputs(2, dims)
            .into_iter()
            .map(|values| Tensor::<Checked, 1>::from_data(&values[..], &Default::default()))
            .collect();
        let found = run(&x, dims, Precision::F32, true).into_data().into_vec::<f32>().unwrap();
        for set in 0..2 {
            let alone: Vec<_> = [set, 2, 3, 4, 5].map(|i| x[i].clone()).into();
            let alone = run(&alone, dims, Precision::F32, true).into_data().into_vec::<f32>().unwrap();
            assert_eq!([found[1 + set], found[3 + set]], [alone[1], alone[2]]);
        }
        assert!((found[0] - found[1] - found[2]).abs() < 1e-6);
        assert!(targets::<Flex>(n, classes).dims() == [n]);
    }

    #[test]
    #[should_panic(expected = "head_loss: sets [[2, 3]] do not fit 4 targets and a head [5, 3]")]
    fn names_the_shapes_that_do_not_fit() {
        let zeros = |dims| Tensor::<Flex, 2>::zeros(dims, &Default::default());
        let vector = |n| Tensor::<Flex, 1>::zeros([n], &Default::default());
        let (norm, head) = ([vector(3), vector(3)], (zeros([5, 3]), vector(5)));
        let spec = HeadSpec { eps: 1e-6, precision: Precision::F32 };
        let _ = head_loss(vec![zeros([2, 3])], norm, head, targets(4, 5), spec);
    }
}
