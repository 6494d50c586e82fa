//! Parts of a model whose values are not kept for the backward pass but computed again in it: activation checkpointing.
//!
//! Contract: while a [`Recomputing`] lives on a thread, [`recompute`] keeps a part's inputs and nothing of what is computed
//! from them, and [`backward_recomputing`] runs the part again when its gradients are due. Values and gradients are those of
//! the part as it is, to the bit. Everywhere else, and on backends without a graph, [`recompute`] runs the part as it is.
//!
//! Why not one node of Burn's graph for a part: its backward pass would have to run a backward pass of its own, and Burn holds
//! the graph of the outer one locked meanwhile. So the graph is cut instead. A part's output is a new leaf. The backward pass
//! of the loss ends there; then the parts follow from the last to the first, each in a graph of its own, which begins with the
//! part's inputs and ends with the gradient of its output.
//!
//! An input that is no leaf (the patch embedding, a position bias) has a graph before it. Its backward pass runs when the last
//! part that reads it has been through. Nothing but such parts may read it: the backward pass of the loss would have used its
//! graph up. That is noticed, and panics; [`cut`] makes a tensor that anything may read.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use crate::AnyRank;
use crate::graph::{record, register};
use crate::tensor::{unwrap, wrap};

thread_local! {
    static IS_ON: Cell<bool> = const { Cell::new(false) };
    /// A `Vec<Part<B>>`.
    static PARTS: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// While it lives, this thread recomputes.
#[must_use = "it ends when it is dropped"]
#[derive(Debug)]
pub struct Recomputing(PhantomData<*const ()>);

impl Recomputing {
    /// Begins.
    pub fn start() -> Self {
        IS_ON.set(true);
        Self(PhantomData)
    }
}

impl Drop for Recomputing {
    fn drop(&mut self) {
        IS_ON.set(false);
        // Of a forward pass that was cut off, or failed.
        drop(PARTS.take());
    }
}

/// Whether parts of a model are recomputed here and now.
pub fn recomputes<B: RecomputeOps>() -> bool {
    B::HAS_GRAPH && IS_ON.get()
}

/// `forward` of `inputs`, of which only the inputs are kept where this thread [recomputes](Recomputing). It must give the same
/// every time, may read no other tensor that needs a gradient, and draw no random numbers.
///
/// `late` are the numbers of inputs with a graph before them whose gradients are added after those of all other parts. A graph
/// without parts does so where a part reads the input by a short way, and sums must have its order.
pub fn recompute<B: RecomputeOps, const D: usize>(
    inputs: Vec<AnyRank<B>>,
    late: &[usize],
    forward: impl Fn(Vec<AnyRank<B>>) -> Tensor<B, D> + 'static,
) -> Tensor<B, D> {
    let inputs = inputs.into_iter().map(|input| input.0).collect();
    let forward =
        move |inputs: Vec<FloatTensor<B>>| unwrap(forward(inputs.into_iter().map(AnyRank).collect()));
    wrap(B::recompute(inputs, late, Box::new(forward)))
}

/// The same tensor, read by recomputed parts and by other operations too.
pub fn cut<B: RecomputeOps, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    wrap(B::recompute(
        vec![unwrap(x)],
        &[],
        Box::new(|inputs| inputs.into_iter().next().unwrap_or_else(|| unreachable!("there is one"))),
    ))
}

/// The output of a recomputed part, for a reader whose gradient is added after that of the next part, as a graph without parts adds
/// it. Any other tensor is given back as it is.
pub fn cut_output<B: RecomputeOps, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let x = unwrap(x);
    if recomputes::<B>() && B::begins_graph(&x) { cut(wrap(x)) } else { wrap(x) }
}

/// From a part's inputs to its output.
pub type Forward<B> = Box<dyn Fn(Vec<FloatTensor<B>>) -> FloatTensor<B>>;

/// Recomputation on a backend's own tensors.
pub trait RecomputeOps: BurnBackend {
    /// Whether it records gradients.
    const HAS_GRAPH: bool = false;

    /// Whether a tensor that needs a gradient has no graph before it: a parameter, or the output of a part.
    fn begins_graph(_x: &FloatTensor<Self>) -> bool {
        false
    }

    /// [`recompute`].
    fn recompute(
        inputs: Vec<FloatTensor<Self>>,
        _late: &[usize],
        forward: Forward<Self>,
    ) -> FloatTensor<Self> {
        forward(inputs)
    }

    /// Completes the gradients of a loss by those of the parts before it. `leaves` are the tensors whose gradients matter.
    fn backward_of_parts(grads: Gradients, _leaves: &dyn Fn() -> Vec<FloatTensor<Self>>) -> Gradients {
        grads
    }
}

/// One part of a forward pass.
struct Part<B: BurnBackend> {
    inputs: Vec<FloatTensor<B>>,
    late: Vec<usize>,
    output: FloatTensor<B>,
    forward: Forward<B>,
}

/// Where a backward pass begins: gives its parents the gradients that they have already.
#[derive(Debug)]
struct Seed;

impl<B: BurnBackend> Backward<B, 2> for Seed {
    type State = [Option<FloatTensor<B>>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        grads.consume::<B>(&ops.node);
        register!(B, grads, ops.parents, ops.state);
    }
}

/// The gradients of the graph before two tensors of these gradients.
fn backward_from<B: BurnBackend, C: CheckpointStrategy>(
    [x, y]: [FloatTensor<Autodiff<B, C>>; 2],
    gradients: [Option<FloatTensor<B>>; 2],
) -> Gradients {
    // Its value does not matter.
    let value = || B::float_zeros([1].into(), &B::float_device(&x.primitive), x.primitive.dtype().into());
    let root: FloatTensor<Autodiff<B, C>> =
        record!(B, C, Seed, [x, y], tracked { (value(), gradients) }, untracked { value() });
    <Autodiff<B, C> as burn::tensor::backend::AutodiffBackend>::backward(root)
}

fn is_leaf<B: BurnBackend, C: CheckpointStrategy>(x: &FloatTensor<Autodiff<B, C>>) -> bool {
    x.node.parents.is_empty()
}

impl<B: BurnBackend, C: CheckpointStrategy> RecomputeOps for Autodiff<B, C> {
    const HAS_GRAPH: bool = true;

    fn begins_graph(x: &FloatTensor<Self>) -> bool {
        x.is_tracked() && is_leaf::<B, C>(x)
    }

    fn recompute(
        inputs: Vec<FloatTensor<Self>>,
        late: &[usize],
        forward: Forward<Self>,
    ) -> FloatTensor<Self> {
        if !IS_ON.get() || !inputs.iter().any(|input| input.is_tracked()) {
            return forward(inputs);
        }
        let constants =
            inputs.iter().map(|input| FloatTensor::<Self>::new(input.primitive.clone())).collect();
        let output = FloatTensor::<Self>::new(forward(constants).primitive).require_grad();
        let part = Part::<Self> { inputs, late: late.to_vec(), output: output.clone(), forward };
        PARTS.with_borrow_mut(|parts| {
            let parts = parts.get_or_insert_with(|| Box::new(Vec::<Part<Self>>::new()));
            match parts.downcast_mut::<Vec<Part<Self>>>() {
                Some(parts) => parts.push(part),
                None => unreachable!("a forward pass is on one backend"),
            }
        });
        output
    }

    fn backward_of_parts(mut grads: Gradients, leaves: &dyn Fn() -> Vec<FloatTensor<Self>>) -> Gradients {
        let Some(parts) = PARTS.take().and_then(|parts| parts.downcast::<Vec<Part<Self>>>().ok()) else {
            return grads;
        };
        let leaves = leaves();
        // The first part that reads each input with a graph before it, which is the last one in the backward pass.
        let mut first_reader: HashMap<u64, usize> = HashMap::new();
        for (number, part) in parts.iter().enumerate() {
            for input in part.inputs.iter().filter(|input| input.is_tracked() && !is_leaf::<B, C>(input)) {
                first_reader.entry(input.node.id.value).or_insert(number);
            }
        }
        // Their gradients so far, and those that are added at the end.
        let mut open: BTreeMap<u64, (FloatTensor<Self>, FloatTensor<B>)> = BTreeMap::new();
        let mut postponed: Vec<(u64, FloatTensor<B>)> = Vec::new();
        let mut outputs: Vec<_> = parts.iter().map(|part| part.output.clone()).collect();
        for (number, Part { inputs, late, output, forward }) in parts.into_iter().enumerate().rev() {
            outputs.truncate(number);
            // Nothing reads the output of a part without a gradient.
            if let Some(grad) = grads.remove::<B>(&output) {
                let own: Vec<_> = inputs
                    .iter()
                    .map(|input| {
                        let own = FloatTensor::<Self>::new(input.primitive.clone());
                        if input.is_tracked() { own.require_grad() } else { own }
                    })
                    .collect();
                let y = forward(own.clone());
                // What others gave to the first input is there first, as in a graph without parts, so that sums have one order.
                let others = match open.remove(&inputs[0].node.id.value) {
                    Some((_, grad)) => Some(grad),
                    None => grads.remove::<B>(&inputs[0]),
                };
                if y.is_tracked() {
                    let mut found = backward_from::<B, C>([y, own[0].clone()], [Some(grad), others]);
                    for (at, (input, own)) in inputs.iter().zip(&own).enumerate() {
                        let grad = if input.is_tracked() { found.remove::<B>(own) } else { None };
                        let Some(grad) = grad else { continue };
                        let id = input.node.id;
                        if is_leaf::<B, C>(input) {
                            grads.register::<B>(id, grad);
                        } else if late.contains(&at) && first_reader.get(&id.value) != Some(&number) {
                            postponed.push((id.value, grad));
                        } else {
                            let grad = match open.remove(&id.value) {
                                Some((_, before)) => B::float_add(grad, before),
                                None => grad,
                            };
                            open.insert(id.value, (input.clone(), grad));
                        }
                    }
                }
            }
            let due: Vec<u64> =
                open.keys().copied().filter(|id| first_reader.get(id) == Some(&number)).collect();
            for (id, (input, mut grad)) in due.iter().filter_map(|id| Some((id, open.remove(id)?))) {
                for (_, late) in postponed.extract_if(.., |(of, _)| of == id) {
                    grad = B::float_add(late, grad);
                }
                let mut found = backward_from::<B, C>([input.clone(), input.clone()], [Some(grad), None]);
                assert!(
                    found.remove::<B>(&input).is_none(),
                    "recompute: an input of a recomputed part is read by something else too, which used its graph up"
                );
                for leaf in leaves.iter().chain(&outputs) {
                    if let Some(grad) = found.remove::<B>(leaf) {
                        grads.register::<B>(leaf.node.id, grad);
                    }
                }
            }
        }
        grads
    }
}

impl RecomputeOps for burn::backend::Flex {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rank, backward_recomputing};
    use burn::backend::Flex;

    type Recording = Autodiff<Flex>;
    type Leaf = Tensor<Recording, 2>;

    fn leaf(values: [[f32; 2]; 2]) -> Leaf {
        Leaf::from_data(values, &Default::default()).require_grad()
    }

    fn part(x: Leaf, weight: &Leaf, bias: &Leaf) -> Leaf {
        recompute(vec![x.into(), weight.clone().into(), bias.clone().into()], &[], |inputs| {
            let [x, weight, bias] = inputs.try_into().unwrap();
            let (x, weight, bias): (Leaf, Leaf, Leaf) = (x.ranked(), weight.ranked(), bias.ranked());
            x.clone() + (x.matmul(weight) + bias).tanh()
        })
    }

    /// Gradients of two parts over an input and a bias that have graphs before them, the output of the first one read by
    /// something else too.
    fn gradients(recomputes: bool, reads_input: bool, cuts: bool) -> Vec<Vec<f32>> {
        let x = leaf([[0.3, -0.2], [1.1, 0.7]]);
        let [first, second] = [leaf([[0.5, -0.4], [0.2, 0.9]]), leaf([[-0.3, 0.8], [0.6, 0.1]])];
        let table = leaf([[0.1, 0.2], [0.3, 0.4]]);
        let recomputing = recomputes.then(Recomputing::start);
        let (input, bias) = (x.clone().exp(), table.clone() * 3.0);
        let input = if cuts { cut(input) } else { input };
        let between = part(input.clone(), &first, &bias);
        let output = part(between.clone(), &second, &bias);
        let mut loss = (output * between.sin()).sum();
        if reads_input {
            loss = loss + input.sum();
        }
        let leaves = [&x, &first, &second, &table];
        let of_leaves = || leaves.map(|leaf| AnyRank::from(leaf.clone())).into();
        let (grads, _) = backward_recomputing(&loss, &Rank::alone(), of_leaves).unwrap();
        drop(recomputing);
        leaves.map(|leaf| leaf.grad(&grads).unwrap().into_data().to_vec().unwrap()).into()
    }

    #[test]
    fn gradients_are_those_of_kept_values() {
        let expected = gradients(false, false, false);
        assert_eq!(gradients(true, false, false), expected);
        assert_eq!(gradients(false, false, false), expected, "nothing is left of it");
        assert_eq!(gradients(true, true, true), gradients(false, true, false));
    }

    #[test]
    #[should_panic(expected = "is read by something else too")]
    fn an_input_that_is_read_elsewhere_is_noticed() {
        gradients(true, true, false);
    }

    #[test]
    fn a_pass_that_is_given_up_leaves_nothing_behind() {
        let recomputing = Recomputing::start();
        let weight = leaf([[1.0, 0.0], [0.0, 1.0]]);
        part(weight.clone(), &weight, &weight);
        assert!(recomputes::<Recording>() && !recomputes::<Flex>());
        drop(recomputing);
        assert!(!recomputes::<Recording>());
        assert!(PARTS.with_borrow(Option::is_none));
    }
}
