//! Data parallel: what the ranks of a group, one thread for each device, tell each other.
//!
//! Contract: every rank calls the same functions in the same order. Sums go over the ranks in their order, so all of them
//! get the same bits, again in every run. A rank that ends early releases the others; what they then get is their
//! own part, and [`Rank::gather`] reports it.
//!
//! Tensors go through the memory of the host, unless the backend has collectives of its own (NCCL). Such a backend may
//! exchange gradients while the backward pass that makes them goes on (`overlap`).

#[cfg(feature = "cuda")]
pub(crate) mod nccl;
pub(crate) mod overlap;
#[cfg(test)]
pub(crate) mod overlap_tests;
mod rendezvous;

use std::ops::Add;
use std::sync::Arc;
#[cfg(feature = "cuda")]
use std::sync::{Mutex, PoisonError, Weak};

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, unary};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::backend::DeviceId;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Element, Tensor, TensorData, TensorMetadata};
use rayon::prelude::*;
use rendezvous::Rendezvous;

use crate::graph::record;
use crate::tensor::{from_rows, rows, unwrap, wrap};

pub use overlap::{ArrivedMeans, backward, backward_recomputing};
pub use rendezvous::PeerLeft;

/// One thread's place in a group that trains together. Clones are the same place.
#[derive(Clone)]
pub struct Rank {
    index: usize,
    devices: Arc<[DeviceId]>,
    /// `None`: alone.
    rendezvous: Option<Arc<Rendezvous>>,
    /// Where the threads that the devices' queues are filled by meet, which run behind those of the ranks.
    #[cfg(feature = "cuda")]
    queues: Option<Arc<Rendezvous>>,
}

/// The devices of a group, and where their queues meet.
#[cfg(feature = "cuda")]
type Queues = (Arc<[DeviceId]>, Weak<Rendezvous>);

/// The groups that there are: for devices that fail outside of a rank's own thread.
#[cfg(feature = "cuda")]
static GROUPS: Mutex<Vec<Queues>> = Mutex::new(Vec::new());

/// Releases the queues of all groups with `device` from waiting for it; they fail with its reason.
#[cfg(feature = "cuda")]
pub(crate) fn device_failed(device: DeviceId, why: &str) {
    for (devices, queues) in GROUPS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if let Some(queues) = queues.upgrade().filter(|_| devices.contains(&device)) {
            queues.leave_because(why);
        }
    }
}

impl std::fmt::Debug for Rank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.index, self.world())
    }
}

/// Releases the other ranks when this thread ends, however it ends.
#[derive(Debug)]
pub struct Leave(Rank);

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some(rendezvous) = &self.0.rendezvous {
            rendezvous.leave();
        }
        #[cfg(feature = "cuda")]
        if let Some(queues) = &self.0.queues {
            queues.leave();
        }
    }
}

impl Rank {
    /// A group of one.
    pub fn alone() -> Self {
        Self {
            index: 0,
            devices: Arc::new([]),
            rendezvous: None,
            #[cfg(feature = "cuda")]
            queues: None,
        }
    }

    /// The places of a group, one for each device; a device may be named twice.
    pub fn group(devices: &[DeviceId]) -> Vec<Self> {
        if devices.len() < 2 {
            return vec![Self::alone()];
        }
        let rendezvous = Arc::new(Rendezvous::new(devices.len()));
        let devices: Arc<[DeviceId]> = devices.into();
        #[cfg(feature = "cuda")]
        let queues = {
            let queues = Arc::new(Rendezvous::new(devices.len()));
            let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
            groups.retain(|(_, queues)| queues.strong_count() > 0);
            groups.push((devices.clone(), Arc::downgrade(&queues)));
            queues
        };
        let place = |index| Self {
            index,
            devices: devices.clone(),
            rendezvous: Some(rendezvous.clone()),
            #[cfg(feature = "cuda")]
            queues: Some(queues.clone()),
        };
        (0..devices.len()).map(place).collect()
    }

    /// This place, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Places in the group.
    pub fn world(&self) -> usize {
        self.devices.len().max(1)
    }

    /// Whether this is the one that writes, evaluates and decides.
    pub fn leads(&self) -> bool {
        self.index == 0
    }

    /// Devices of the group in the order of ranks; empty when alone.
    pub fn devices(&self) -> &[DeviceId] {
        &self.devices
    }

    /// To be kept by the rank's thread until it ends.
    pub fn stay(&self) -> Leave {
        Leave(self.clone())
    }

    /// What every rank brings, in the order of ranks.
    ///
    /// # Errors
    /// Another rank has ended.
    pub fn gather<T: Send + Sync + 'static>(&self, value: T) -> Result<Arc<Vec<T>>, PeerLeft> {
        match &self.rendezvous {
            Some(rendezvous) => rendezvous.gather(self.index, value),
            None => Ok(Arc::new(vec![value])),
        }
    }

    /// On the threads that fill the devices' queues: waits until all of them are about to sum tensors of these sizes. What
    /// a device is asked to sum is then summed: without this, one whose queue failed would be waited for by the others for
    /// ever, in a kernel that nobody can end.
    ///
    /// # Errors
    /// Why another device does not come, or that it sums something else: one sentence.
    #[cfg(feature = "cuda")]
    pub(crate) fn meet_on_queues(&self, sizes: Vec<usize>) -> Result<(), String> {
        let Some(queues) = &self.queues else { return Ok(()) };
        let all = queues.gather(self.index, sizes).map_err(|PeerLeft| queues.why())?;
        match all.windows(2).all(|pair| pair[0] == pair[1]) {
            true => Ok(()),
            false => Err("the devices of a group were asked to sum different tensors".into()),
        }
    }

    /// What the leader brings; the other ranks bring `None`.
    ///
    /// # Errors
    /// Another rank has ended.
    pub fn broadcast<T: Clone + Send + Sync + 'static>(&self, value: Option<T>) -> Result<T, PeerLeft> {
        let brought = self.gather(value)?;
        brought.first().cloned().flatten().ok_or(PeerLeft)
    }

    /// The sum over the ranks of tensors of one shape; `x` itself when alone. Each rank's gradient is the sum of all
    /// ranks': that of the sum of the ranks' losses.
    pub fn sum<B: AllReduceOps, const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        match self.rendezvous {
            Some(_) => wrap(B::all_reduce_sum(unwrap(x), self)),
            None => x,
        }
    }

    /// The means over the ranks of several tensors each; `xs` itself when alone. Few large exchanges instead of many small
    /// ones: what gradients are averaged by.
    pub fn means<B: AllReduceOps>(&self, xs: Vec<Tensor<B, 1>>) -> Vec<Tensor<B, 1>> {
        if self.rendezvous.is_none() {
            return xs;
        }
        let means = B::all_reduce_means(xs.into_iter().map(unwrap).collect(), self);
        means.into_iter().map(wrap).collect()
    }

    /// The mean over the ranks of tensors of one shape; `x` itself when alone.
    pub fn mean<B: AllReduceOps, const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        match self.rendezvous {
            Some(_) => self.sum(x).div_scalar(self.world() as f64),
            None => x,
        }
    }
}

/// All-reduce on a backend's own tensors.
pub trait AllReduceOps: BurnBackend {
    /// [`Rank::sum`], in a group of more than one.
    fn all_reduce_sum(x: FloatTensor<Self>, rank: &Rank) -> FloatTensor<Self> {
        through_host::<Self>(x, rank)
    }

    /// [`Rank::means`], in a group of more than one, of tensors with one axis.
    fn all_reduce_means(xs: Vec<FloatTensor<Self>>, rank: &Rank) -> Vec<FloatTensor<Self>> {
        means_of_buckets::<Self>(xs, rank)
    }

    /// Whether backward passes of blocks take the ranks' means of their parameters' gradients themselves, when they are
    /// told to ([`backward`]). The same on all ranks.
    fn overlaps_all_reduce(_rank: &Rank) -> bool {
        false
    }

    /// Makes means that such a backward pass gave readable: whatever comes later waits for them. In order.
    fn arrived_means(pending: Vec<FloatTensor<Self>>) -> Vec<FloatTensor<Self>> {
        pending
    }

    /// What tells a parameter from others in a graph; `None` of backends without graphs.
    fn graph_key(_x: &FloatTensor<Self>) -> Option<u64> {
        None
    }
}

/// Values of a bucket.
const BUCKET: usize = 1 << 24;

/// [`Rank::means`] through flat buckets.
pub(crate) fn means_of_buckets<B: AllReduceOps>(xs: Vec<FloatTensor<B>>, rank: &Rank) -> Vec<FloatTensor<B>> {
    let (mut means, mut bucket, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    let mut xs = xs.into_iter().map(wrap::<B, 1>).peekable();
    while let Some(x) = xs.next() {
        sizes.push(x.dims()[0]);
        bucket.push(x);
        if sizes.iter().sum::<usize>() >= BUCKET || xs.peek().is_none() {
            let mean = rank.mean(Tensor::cat(std::mem::take(&mut bucket), 0));
            means.extend(mean.split_with_sizes(std::mem::take(&mut sizes), 0).into_iter().map(unwrap));
        }
    }
    means
}

/// [`Rank::sum`] through the memory of the host.
pub(crate) fn through_host<B: BurnBackend>(x: FloatTensor<B>, rank: &Rank) -> FloatTensor<B> {
    let (shape, device) = (x.shape(), B::float_device(&x));
    let own: Tensor<B, 2> = rows(x);
    let dtype = own.dtype();
    let data = match dtype {
        DType::F32 | DType::F64 => own.clone().into_data(),
        _ => own.clone().cast(DType::F32).into_data(),
    };
    let Ok(parts) = rank.gather(data) else {
        return from_rows::<B>(shape, own);
    };
    let mut sum = match dtype {
        DType::F64 => sum_of::<f64>(&parts),
        _ => sum_of::<f32>(&parts),
    };
    sum.shape = own.shape();
    from_rows::<B>(shape, Tensor::from_data(sum, (&device, dtype)))
}

/// Elements of a piece that one thread sums: enough to be worth a thread.
const GRAIN: usize = 1 << 16;

fn sum_of<E>(parts: &[TensorData]) -> TensorData
where
    E: Element + Add<Output = E> + Sync,
{
    let parts: Vec<&[E]> = parts.iter().filter_map(|part| part.as_slice().ok()).collect();
    let mut sum = parts[0].to_vec();
    sum.par_chunks_mut(GRAIN).enumerate().for_each(|(at, sum)| {
        for part in &parts[1..] {
            let part = &part[at * GRAIN..][..sum.len()];
            sum.iter_mut().zip(part).for_each(|(sum, x)| *sum = *sum + *x);
        }
    });
    let count = sum.len();
    TensorData::new(sum, [count])
}

#[derive(Debug)]
struct SumBackward;

impl<B: AllReduceOps> Backward<B, 1> for SumBackward {
    type State = Rank;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::all_reduce_sum(grad, &ops.state));
    }
}

impl<B: AllReduceOps, C: CheckpointStrategy> AllReduceOps for Autodiff<B, C> {
    fn all_reduce_sum(x: FloatTensor<Self>, rank: &Rank) -> FloatTensor<Self> {
        record!(B, C, SumBackward, [x],
            tracked { (B::all_reduce_sum(x.primitive, rank), rank.clone()) },
            untracked { B::all_reduce_sum(x.primitive, rank) })
    }

    fn graph_key(x: &FloatTensor<Self>) -> Option<u64> {
        Some(x.node.id.value)
    }
}

impl AllReduceOps for Flex {
    // Tests run the seam on the CPU, where blocks take the means at once.
    #[cfg(test)]
    fn overlaps_all_reduce(rank: &Rank) -> bool {
        rank.world() > 1 && crate::block::rounded::FUSED.with(std::cell::Cell::get)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use burn::backend::Flex;
    use burn::tensor::backend::Device;

    use super::*;

    type B = Autodiff<Flex>;

    /// What `work` gives on each rank of a group of `world` threads.
    fn on_ranks<T: Send>(world: usize, work: impl Fn(Rank) -> T + Sync) -> Vec<T> {
        let id = burn::backend::flex::FlexDevice.to_id();
        std::thread::scope(|scope| {
            let work = &work;
            let start = |rank: Rank| {
                scope.spawn(move || {
                    let _stay = rank.stay();
                    work(rank)
                })
            };
            let threads: Vec<_> = Rank::group(&vec![id; world]).into_iter().map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn all_ranks_get_all_values_in_order_round_after_round() {
        let found = on_ranks(3, |rank| {
            (0..200).map(|round| rank.gather(10 * round + rank.index()).unwrap().to_vec()).collect::<Vec<_>>()
        });
        let expected: Vec<_> =
            (0..200).map(|round| (0..3).map(|r| 10 * round + r).collect::<Vec<_>>()).collect();
        assert_eq!(found, vec![expected; 3]);
        let received = on_ranks(2, |rank| rank.broadcast(rank.leads().then(|| "value".to_owned())).unwrap());
        assert_eq!(received, ["value", "value"]);
    }

    /// Of Σ_r mean_r'(x_r')²·weight_r: the gradient is averaged as the values are, and a second group member's loss
    /// reaches this one's input.
    #[test]
    fn means_and_their_gradients() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let found = on_ranks(2, |rank| {
                let device = Default::default();
                let own = [[1.0, 2.0, 3.0], [5.0, -2.0, 1.0]][rank.index()];
                let weight = [1.0, 10.0][rank.index()];
                let x = Tensor::<B, 1>::from_data(own, (&device, dtype)).require_grad();
                let mean = rank.mean(x.clone());
                let loss = (mean.clone() * mean.clone()).sum().mul_scalar(weight);
                let grads = loss.backward();
                let values = |t: TensorData| t.convert::<f64>().into_vec::<f64>().unwrap();
                assert_eq!(mean.dtype(), dtype);
                let sum = rank.sum(x.clone().inner());
                (
                    values(mean.into_data()),
                    values(x.grad(&grads).unwrap().into_data()),
                    values(sum.into_data()),
                )
            });
            // mean (3, 0, 2); gradients 2·mean·(1 + 10)/2.
            let expected = (vec![3.0, 0.0, 2.0], vec![33.0, 0.0, 22.0], vec![6.0, 0.0, 4.0]);
            assert_eq!(found, vec![expected; 2], "{dtype:?}");
        }
    }

    #[test]
    fn large_tensors_and_shapes() {
        let dims = [3, 70_001];
        let found = on_ranks(3, |rank| {
            let x = Tensor::<Flex, 2>::full(dims, 1.5 * rank.index() as f64, &Default::default());
            let mean = rank.mean(x);
            (mean.dims(), mean.into_data().into_vec::<f32>().unwrap())
        });
        for (shape, values) in found {
            assert!(shape == dims && values.iter().all(|&x| x == 1.5));
        }
    }

    #[test]
    fn no_rank_waits_for_one_that_left() {
        let met = AtomicUsize::new(0);
        let found = on_ranks(3, |rank| {
            if rank.index() == 1 {
                return Ok(());
            }
            let x = Tensor::<Flex, 1>::ones([2], &Default::default());
            assert_eq!(rank.sum(x).into_data().into_vec::<f32>().unwrap(), [1.0, 1.0]);
            met.fetch_add(1, Ordering::SeqCst);
            rank.gather(0).map(drop)
        });
        assert_eq!(found, [Err(PeerLeft), Ok(()), Err(PeerLeft)]);
        assert_eq!(met.into_inner(), 2);
    }

    #[test]
    fn alone_nothing_changes() {
        let rank = Rank::alone();
        let x = Tensor::<Flex, 1>::ones([2], &Default::default());
        assert_eq!(rank.sum(x.clone()).into_data(), rank.mean(x).into_data());
        assert!(rank.leads() && rank.world() == 1);
        assert_eq!(*rank.gather(5).unwrap(), [5]);
        assert_eq!(rank.broadcast(Some(6)), Ok(6));
    }
}
