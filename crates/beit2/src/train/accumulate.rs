//! Gradient accumulation: one step from several micro-batches.

use beit2_kernels::AutodiffBackend;
use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// The sum of the gradients of a step's micro-batches.
///
/// For each micro-batch call [`start`](Self::start) before its forward pass and [`add`](Self::add) after its backward
/// pass.
pub struct GradientSum<B: AutodiffBackend> {
    sum: Option<B::Gradients>,
    /// Flat gradients of the micro-batches before the running one, in the model's order.
    earlier: Flat<B::InnerBackend>,
}

/// One entry for each trained parameter; `None` where it had no gradient.
type Flat<I> = Vec<Option<Tensor<I, 1>>>;

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
            model.visit(&mut Add::<B> { earlier: earlier.into_iter(), grads: &mut grads });
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
    earlier: Flat<B::InnerBackend>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Renew<B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if !param.is_require_grad() {
            return param;
        }
        let (id, value, mapper) = param.consume();
        let count = value.shape().num_elements();
        self.earlier.push(value.grad_remove(&mut self.grads).map(|grad| grad.reshape([count])));
        let value = Tensor::from_inner(value.inner()).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}

struct Add<'a, B: AutodiffBackend> {
    earlier: std::vec::IntoIter<Option<Tensor<B::InnerBackend, 1>>>,
    grads: &'a mut B::Gradients,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Add<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val();
        if !value.is_require_grad() {
            return;
        }
        let Some(earlier) = self.earlier.next().flatten() else { return };
        let earlier = earlier.reshape(value.shape());
        let sum = match value.grad(self.grads) {
            Some(later) => earlier + later,
            None => earlier,
        };
        value.grad_replace(self.grads, sum);
    }
}
