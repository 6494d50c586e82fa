//! Gradient accumulation: one step from several micro-batches.
//!
//! Micro-batches have equal numbers of images, and images equal numbers of patches, of masked patches and of pixels. So the mean
//! of a loss over a step is the mean of its means over the micro-batches.

use beit2_kernels::{self as kernels, AnyRank, ArrivedMeans, AutodiffBackend, Backend, Rank, Recomputing};
use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

use super::TrainConfig;
use crate::error::Error;

/// What the micro-batches of a step gave.
pub(crate) struct Learned<B: AutodiffBackend, M, T> {
    /// With the leaves of the autodiff graph that the gradients belong to.
    pub model: M,
    /// Of the mean loss, as [`kernels::backward`] gives them.
    pub grads: (B::Gradients, ArrivedMeans<B::InnerBackend>),
    /// The rest of what `forward` gave, of each micro-batch.
    pub results: Vec<T>,
}

/// Forward and backward passes of the micro-batches `parts` of a step. `forward` gives the loss of one, a mean over it, and what
/// else the step needs of it; it also gets the number of the micro-batch. `exchanging` is the group of the backward passes
/// (`Division::exchanging`). Where `train` says so, blocks are computed again in the backward pass.
///
/// # Errors
/// Those of `forward`; another rank that ended; no micro-batch.
pub(crate) fn learn<B: AutodiffBackend, M: AutodiffModule<B>, P, T>(
    mut model: M,
    parts: Vec<P>,
    (exchanging, train): (&Rank, TrainConfig),
    mut forward: impl FnMut(&M, usize, P) -> Result<(Tensor<B, 1>, T), Error>,
) -> Result<Learned<B, M, T>, Error> {
    let count = parts.len();
    let (mut sum, mut means) = (GradientSum::<B>::default(), ArrivedMeans::default());
    let mut results = Vec::with_capacity(count);
    for (number, part) in parts.into_iter().enumerate() {
        model = sum.start(model);
        let recomputing = train.recomputes_blocks().then(Recomputing::start);
        let (loss, result) = forward(&model, number, part)?;
        let loss = if count == 1 { loss } else { loss.div_scalar(count as f64) };
        let (grads, exchanged) =
            kernels::backward_recomputing(&loss, exchanging, || trained_parameters(&model))?;
        drop(recomputing);
        sum.add(&model, grads);
        means = exchanged;
        results.push(result);
    }
    match sum.finish() {
        Some(grads) => Ok(Learned { model, grads: (grads, means), results }),
        None => Err(Error::Training("an empty batch".into())),
    }
}

/// All trained parameters, in the model's order.
pub fn trained_parameters<B: AutodiffBackend, M: AutodiffModule<B>>(model: &M) -> Vec<AnyRank<B>> {
    struct Trained<B: AutodiffBackend>(Vec<AnyRank<B>>);
    impl<B: AutodiffBackend> ModuleVisitor<B> for Trained<B> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let value = param.val();
            if value.is_require_grad() {
                self.0.push(value.into());
            }
        }
    }
    let mut trained = Trained(Vec::new());
    model.visit(&mut trained);
    trained.0
}

/// The mean of one number of each micro-batch; of a single one that number, which a GPU need not compute.
pub(crate) fn mean_of<B: Backend>(numbers: impl IntoIterator<Item = Tensor<B, 1>>) -> Tensor<B, 1> {
    let numbers: Vec<_> = numbers.into_iter().collect();
    match <[_; 1]>::try_from(numbers) {
        Ok([number]) => number,
        Err(numbers) => Tensor::cat(numbers, 0).mean(),
    }
}

/// The sum of the gradients of a step's micro-batches.
///
/// For each micro-batch call [`start`](Self::start) before its forward pass and [`add`](Self::add) after its backward
/// pass.
pub struct GradientSum<B: AutodiffBackend> {
    sum: Option<B::Gradients>,
    /// Gradients of the micro-batches before the running one, in the model's order.
    earlier: Earlier<B::InnerBackend>,
}

/// One entry for each trained parameter; `None` where it had no gradient.
type Earlier<I> = Vec<Option<AnyRank<I>>>;

impl<B: AutodiffBackend> Default for GradientSum<B> {
    fn default() -> Self {
        Self { sum: None, earlier: Vec::new() }
    }
}

impl<B: AutodiffBackend> GradientSum<B> {
    /// Prepares the model for a micro-batch: before any but the first, its trained parameters become new leaves of the
    /// autodiff graph, with the same values.
    ///
    /// Why: a backward pass of Burn 0.21 forgets the leaves that it used. The next operations on them then belong to
    /// graphs in which only their own results are held, and a backward pass on another thread (another rank) may clear
    /// such a graph away while it is built. Gradients are lost then, without an error (tracel-ai/burn issue 5573). A
    /// new leaf is registered and held by the model, which keeps its graph.
    #[must_use]
    pub fn start<M: AutodiffModule<B>>(&mut self, model: M) -> M {
        let Some(grads) = self.sum.take() else { return model };
        let mut renew = Renew::<B> { grads, earlier: Vec::new() };
        let model = model.map(&mut renew);
        self.earlier = renew.earlier;
        model
    }

    /// Adds the gradients of a micro-batch of the model that [`start`](Self::start) gave.
    pub fn add<M: AutodiffModule<B>>(&mut self, model: &M, mut grads: B::Gradients) {
        let earlier = std::mem::take(&mut self.earlier);
        if !earlier.is_empty() {
            let mut pair = Pair::<B> {
                earlier: earlier.into_iter(),
                grads: &mut grads,
                pairs: Vec::new(),
                paired: Vec::new(),
            };
            model.visit(&mut pair);
            let Pair { pairs, paired, .. } = pair;
            let sums = kernels::weighted_sums(pairs, [1.0, 1.0]).into_iter();
            model.visit(&mut Put::<B> { sums, paired: paired.into_iter(), grads: &mut grads });
        }
        self.sum = Some(grads);
    }

    /// The sum, by the leaves of the model of the last micro-batch; `None` if there was no micro-batch.
    pub fn finish(self) -> Option<B::Gradients> {
        self.sum
    }
}

struct Renew<B: AutodiffBackend> {
    grads: B::Gradients,
    earlier: Earlier<B::InnerBackend>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Renew<B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if !param.is_require_grad() {
            return param;
        }
        let (id, value, mapper) = param.consume();
        self.earlier.push(value.grad_remove(&mut self.grads).map(AnyRank::from));
        let value = Tensor::from_inner(value.inner()).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}

/// Takes the gradients of parameters that have an earlier one too; all are added in one operation.
struct Pair<'a, B: AutodiffBackend> {
    earlier: std::vec::IntoIter<Option<AnyRank<B::InnerBackend>>>,
    grads: &'a mut B::Gradients,
    pairs: Vec<[AnyRank<B::InnerBackend>; 2]>,
    /// For each trained parameter, whether it is in `pairs`.
    paired: Vec<bool>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Pair<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val();
        if !value.is_require_grad() {
            return;
        }
        let earlier = self.earlier.next().flatten();
        let later = earlier.as_ref().and_then(|_| value.grad_remove(self.grads));
        self.paired.push(later.is_some());
        match (earlier, later) {
            (Some(earlier), Some(later)) => self.pairs.push([earlier, later.into()]),
            (Some(earlier), None) => value.grad_replace(self.grads, earlier.ranked()),
            (None, _) => {}
        }
    }
}

/// Puts the sums where [`Pair`] took the gradients.
struct Put<'a, B: AutodiffBackend> {
    sums: std::vec::IntoIter<AnyRank<B::InnerBackend>>,
    paired: std::vec::IntoIter<bool>,
    grads: &'a mut B::Gradients,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Put<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val();
        if value.is_require_grad()
            && self.paired.next() == Some(true)
            && let Some(sum) = self.sums.next()
        {
            value.grad_replace(self.grads, sum.ranked());
        }
    }
}
