//! Gradients that are averaged over the ranks while the backward pass still runs.
//!
//! Burn's backward pass visits a node when everything behind it is done. So a node that does nothing, between a parameter
//! and its first use, is visited when the parameter's gradient is final. It keeps the gradient from the parameter and
//! hands it to an exchange, which sends it with others as soon as a bucket is full.

use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use super::{AllReduceOps, PeerLeft, Rank};
use crate::graph::record;
use crate::tensor::{unwrap, wrap};

/// Values of a bucket: 32 MB of f32. Fewer cost more for each, and the last one, which nothing hides, should be small.
const BUCKET: usize = 1 << 23;

/// The order in which gradients become final, and the buckets that follow from it. The same on all ranks.
#[derive(Debug, Clone)]
struct Schedule {
    /// Numbers of parameters.
    order: Vec<usize>,
    /// Of places in `order`.
    buckets: Vec<Range<usize>>,
}

impl Schedule {
    fn new(order: Vec<usize>, counts: &[usize]) -> Self {
        let (mut buckets, mut begin, mut values) = (Vec::new(), 0, 0);
        for (place, number) in order.iter().enumerate() {
            values += counts[*number];
            if values >= BUCKET || place + 1 == order.len() {
                buckets.push(begin..place + 1);
                (begin, values) = (place + 1, 0);
            }
        }
        Self { order, buckets }
    }
}

/// Averages the gradients of one model, step after step.
#[derive(Debug, Default)]
pub struct GradientExchange {
    schedule: Option<Schedule>,
}

/// The gradients of one backward pass.
#[derive(Clone)]
pub struct GradientWatch(Arc<Mutex<State>>);

struct State {
    rank: Rank,
    schedule: Option<Schedule>,
    /// Numbers in the order in which they came.
    came: Vec<usize>,
    /// By number: gradients that wait for their bucket, then means that are on their way. Tensors of one backend.
    waiting: Vec<Option<Box<dyn Any + Send>>>,
    sent: Vec<Option<Box<dyn Any + Send>>>,
    /// Buckets that are on their way.
    begun: usize,
}

impl std::fmt::Debug for GradientWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GradientWatch")
    }
}

impl GradientExchange {
    /// For one backward pass over `parameters` parameters.
    pub fn watch(&self, parameters: usize, rank: &Rank) -> GradientWatch {
        let none = || (0..parameters).map(|_| None).collect();
        GradientWatch(Arc::new(Mutex::new(State {
            rank: rank.clone(),
            schedule: self.schedule.clone(),
            came: Vec::new(),
            waiting: none(),
            sent: none(),
            begun: 0,
        })))
    }

    /// The means over the ranks, by number. `missing` gives what counts as the gradient of a parameter that has none.
    ///
    /// # Errors
    /// Another rank has ended.
    pub fn finish<B: AllReduceOps>(
        &mut self,
        watch: GradientWatch,
        missing: impl Fn(usize) -> Tensor<B, 1>,
    ) -> Result<Vec<Tensor<B, 1>>, PeerLeft> {
        let mut state = watch.lock();
        for number in 0..state.waiting.len() {
            if state.waiting[number].is_none() && state.sent[number].is_none() {
                state.waiting[number] = Some(Box::new(unwrap(missing(number))));
                state.came.push(number);
            }
        }
        if state.schedule.is_none() {
            // The first pass: nothing is on its way yet. The leader's order counts for all.
            let counts: Vec<usize> =
                (0..state.waiting.len()).map(|number| missing(number).dims()[0]).collect();
            let order = state.rank.broadcast(state.rank.leads().then(|| state.came.clone()))?;
            state.schedule = Some(Schedule::new(order, &counts));
        }
        state.send::<B>();
        self.schedule = state.schedule.clone();
        let sent: Vec<FloatTensor<B>> =
            state.sent.iter_mut().filter_map(|sent| tensor::<B>(sent.take()?)).collect();
        let rank = state.rank.clone();
        Ok(B::all_reduce_means_end(sent, &rank).into_iter().map(wrap).collect())
    }
}

fn tensor<B: AllReduceOps>(any: Box<dyn Any + Send>) -> Option<FloatTensor<B>> {
    any.downcast().ok().map(|tensor| *tensor)
}

impl GradientWatch {
    /// A parameter as the model should use it in this pass; its gradient goes to the watch, as tensor number `number`.
    pub fn parameter<B: AllReduceOps, const D: usize>(&self, number: usize, x: Tensor<B, D>) -> Tensor<B, D> {
        wrap(B::watch_gradient(unwrap(x), self, number))
    }

    /// A thread that panicked in here ends the run.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrive<B: AllReduceOps>(&self, number: usize, grad: FloatTensor<B>) {
        let count = grad.shape().num_elements();
        let flat = B::float_reshape(grad, [count].into());
        let mut state = self.lock();
        state.came.push(number);
        state.waiting[number] = Some(Box::new(flat));
        state.send::<B>();
    }
}

impl State {
    /// Sends every bucket whose turn has come: all ranks send them in one order, whatever the order in which
    /// gradients come.
    fn send<B: AllReduceOps>(&mut self) {
        let Some(Schedule { order, buckets }) = &self.schedule else { return };
        while let Some(bucket) = buckets.get(self.begun) {
            let numbers = &order[bucket.clone()];
            if !numbers.iter().all(|number| self.waiting[*number].is_some()) {
                return;
            }
            let gradients = numbers.iter().filter_map(|number| tensor::<B>(self.waiting[*number].take()?));
            let means = B::all_reduce_means_begin(gradients.collect(), &self.rank);
            for (number, mean) in numbers.iter().zip(means) {
                self.sent[*number] = Some(Box::new(mean));
            }
            self.begun += 1;
        }
    }
}

#[derive(Debug)]
struct WatchBackward;

impl<B: AllReduceOps> Backward<B, 1> for WatchBackward {
    type State = (GradientWatch, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        // The parameter itself gets none: the gradient has one owner, so the mean can take its place in memory.
        let (watch, number) = ops.state;
        watch.arrive::<B>(number, grads.consume::<B>(&ops.node));
    }
}

/// The version of [`AllReduceOps::watch_gradient`] that records gradients.
pub(super) fn watch_gradient<B: AllReduceOps, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    watch: &GradientWatch,
    number: usize,
) -> FloatTensor<Autodiff<B, C>> {
    record!(B, C, WatchBackward, [x],
        tracked { (x.primitive, (watch.clone(), number)) },
        untracked { x.primitive })
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::backend::Device;

    use super::*;

    type B = Autodiff<Flex>;

    /// Two ranks with different values: the means over ranks, and what a single device has that sees both.
    #[test]
    fn gradients_are_averaged_as_they_come() {
        let id = burn::backend::flex::FlexDevice.to_id();
        let found: Vec<Vec<Vec<Vec<f32>>>> = std::thread::scope(|scope| {
            let start = |rank: Rank| {
                scope.spawn(move || {
                    let _stay = rank.stay();
                    let device = Default::default();
                    let mut exchange = GradientExchange::default();
                    (0..3).map(|step| pass(&mut exchange, &rank, step, &device)).collect()
                })
            };
            let threads: Vec<_> = Rank::group(&[id, id]).into_iter().map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (step, (a, b)) in found[0].iter().zip(&found[1]).enumerate() {
            assert_eq!(a, b);
            let s = step as f32;
            // The loss of rank r is Σ (1 + r + step)·a² + a·b, of which c takes no part.
            let weight = 1.5 + s;
            assert_eq!(*a, [vec![2.0 * weight + 3.0, 4.0 * weight - 1.0], vec![1.0, 2.0], vec![0.0]]);
        }
    }

    fn pass(
        exchange: &mut GradientExchange,
        rank: &Rank,
        step: usize,
        device: &burn::backend::flex::FlexDevice,
    ) -> Vec<Vec<f32>> {
        let leaf = |values: &[f32]| Tensor::<B, 1>::from_floats(values, device).require_grad();
        let parameters = [leaf(&[1.0, 2.0]), leaf(&[3.0, -1.0]), leaf(&[5.0])];
        let watch = exchange.watch(parameters.len(), rank);
        let [a, b, _] = [0, 1, 2].map(|number| watch.parameter(number, parameters[number].clone()));
        let weight = (1 + rank.index() + step) as f64;
        let loss = (a.clone() * a.clone()).mul_scalar(weight).sum() + (a * b).sum();
        let grads = loss.backward();
        assert!(parameters.iter().all(|leaf| leaf.grad(&grads).is_none()));
        let missing = |number: usize| parameters[number].clone().inner().zeros_like();
        let means = exchange.finish::<Flex>(watch, missing).unwrap();
        means.into_iter().map(|mean| mean.into_data().into_vec().unwrap()).collect()
    }

    #[test]
    fn buckets_hold_all_and_end_when_they_are_full() {
        let counts = [BUCKET, 1, 2, BUCKET - 1, 7];
        let schedule = Schedule::new(vec![4, 3, 2, 1, 0], &counts);
        assert_eq!(schedule.buckets, [0..2, 2..5]);
        assert!(Schedule::new(vec![], &[]).buckets.is_empty());
    }
}
