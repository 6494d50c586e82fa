//! Data parallel: what the ranks of a group tell each other. Each has a device and is a thread of this process, or a process
//! of its own (`peers`).
//!
//! Contract: every rank calls the same functions in the same order. Sums go over the ranks in their order, so all of them
//! get the same bits, again in every run, and as threads the same as in processes. A rank that ends early releases the
//! others; what they then get is their own part, and [`Rank::gather`] reports it.
//!
//! Tensors go through the memory of the host, unless the backend has collectives of its own (NCCL). Such a backend may
//! exchange gradients while the backward pass that makes them goes on (`overlap`).

#[cfg(feature = "cuda")]
pub(crate) mod nccl;
pub(crate) mod overlap;
#[cfg(test)]
pub(crate) mod overlap_tests;
mod peers;
mod rendezvous;
mod sum;
#[cfg(test)]
mod tests;

use std::sync::Arc;
#[cfg(feature = "cuda")]
use std::sync::{Mutex, PoisonError, Weak};

use beit2_ranks::{Channel, Group};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, unary};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::backend::DeviceId;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorMetadata};
use peers::Peers;
use rendezvous::Rendezvous;

use crate::graph::record;
use crate::tensor::{from_rows, rows, unwrap, wrap};

pub use overlap::{ArrivedMeans, backward, backward_recomputing};
pub use peers::{Message, PeerLeft};

/// One device's place in a group that trains together. Clones are the same place.
#[derive(Clone)]
pub struct Rank {
    index: usize,
    world: usize,
    /// Of a group of threads those of all ranks, of a process its own.
    devices: Arc<[DeviceId]>,
    /// `None`: alone.
    peers: Option<Arc<Peers>>,
    /// Where the threads that the devices' queues are filled by meet, which run behind those of the ranks.
    #[cfg(feature = "cuda")]
    queues: Option<Arc<Peers>>,
    /// This process's end of NCCL, once it is known whether all processes have it.
    #[cfg(feature = "cuda")]
    of_process: Arc<std::sync::OnceLock<Option<Arc<nccl::Communicator>>>>,
}

/// The devices of a group, and where their queues meet.
#[cfg(feature = "cuda")]
type Queues = (Arc<[DeviceId]>, Weak<Peers>);

/// The groups that there are: for devices that fail outside of a rank's own thread.
#[cfg(feature = "cuda")]
static GROUPS: Mutex<Vec<Queues>> = Mutex::new(Vec::new());

#[cfg(feature = "cuda")]
fn remember(devices: &Arc<[DeviceId]>, queues: &Arc<Peers>) {
    let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
    groups.retain(|(_, queues)| queues.strong_count() > 0);
    groups.push((devices.clone(), Arc::downgrade(queues)));
}

/// Releases the queues of all groups with `device` from waiting for it; they fail with its reason.
#[cfg(feature = "cuda")]
pub(crate) fn device_failed(device: DeviceId, why: &str) {
    for (devices, queues) in GROUPS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if let Some(queues) = queues.upgrade().filter(|_| devices.contains(&device)) {
            queues.leave(Some(why));
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
        self.0.leave(None);
    }
}

impl Rank {
    /// A group of one.
    pub fn alone() -> Self {
        Self::new(0, 1, Arc::new([]), None)
    }

    fn new(index: usize, world: usize, devices: Arc<[DeviceId]>, peers: Option<Arc<Peers>>) -> Self {
        Self {
            index,
            world,
            devices,
            peers,
            #[cfg(feature = "cuda")]
            queues: None,
            #[cfg(feature = "cuda")]
            of_process: Arc::default(),
        }
    }

    /// The places of a group of threads, one for each device; a device may be named twice.
    pub fn group(devices: &[DeviceId]) -> Vec<Self> {
        let world = devices.len();
        if world < 2 {
            return vec![Self::alone()];
        }
        let peers = Arc::new(Peers::Threads(Rendezvous::new(world)));
        let devices: Arc<[DeviceId]> = devices.into();
        #[cfg(feature = "cuda")]
        let queues = Arc::new(Peers::Threads(Rendezvous::new(world)));
        #[cfg(feature = "cuda")]
        remember(&devices, &queues);
        let place = |index| Self {
            #[cfg(feature = "cuda")]
            queues: Some(queues.clone()),
            ..Self::new(index, world, devices.clone(), Some(peers.clone()))
        };
        (0..world).map(place).collect()
    }

    /// The place of this process in a group of processes.
    pub fn of_process(group: Group) -> Self {
        let (index, world, group) = (group.rank(), group.world(), Arc::new(group));
        let peers = |channel| Some(Arc::new(Peers::Processes { group: group.clone(), channel }));
        Self {
            #[cfg(feature = "cuda")]
            queues: peers(Channel::Queue),
            ..Self::new(index, world, Arc::new([]), peers(Channel::Training))
        }
    }

    /// Whether the group's ranks are processes.
    pub fn is_process(&self) -> bool {
        matches!(self.peers.as_deref(), Some(Peers::Processes { .. }))
    }

    /// This place with the device that the process trains on.
    #[must_use]
    pub fn on(self, device: DeviceId) -> Self {
        let devices: Arc<[DeviceId]> = Arc::new([device]);
        #[cfg(feature = "cuda")]
        if let Some(queues) = &self.queues {
            remember(&devices, queues);
        }
        Self { devices, ..self }
    }

    /// Tells the others that this rank is done, or why it cannot go on, which they then say too.
    pub fn leave(&self, why: Option<&str>) {
        if let Some(peers) = &self.peers {
            peers.leave(why);
        }
        #[cfg(feature = "cuda")]
        if let Some(queues) = &self.queues {
            queues.leave(why);
        }
    }

    /// This place, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Places in the group.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Whether this is the one that writes, evaluates and decides.
    pub fn leads(&self) -> bool {
        self.index == 0
    }

    /// Devices of a group of threads in the order of ranks; of a process its own; none when alone.
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
    pub fn gather<T: Message>(&self, value: T) -> Result<Arc<Vec<T>>, PeerLeft> {
        match &self.peers {
            Some(peers) => peers.gather(self.index, value),
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
        let all = queues.gather(self.index, sizes).map_err(|left| left.to_string())?;
        match all.windows(2).all(|pair| pair[0] == pair[1]) {
            true => Ok(()),
            false => Err("the devices of a group were asked to sum different tensors".into()),
        }
    }

    /// What the leader brings; the other ranks bring `None`.
    ///
    /// # Errors
    /// Another rank has ended.
    pub fn broadcast<T: Clone + Message>(&self, value: Option<T>) -> Result<T, PeerLeft> {
        let brought = self.gather(value)?;
        brought.first().cloned().flatten().ok_or_else(PeerLeft::default)
    }

    /// The sum over the ranks of tensors of one shape; `x` itself when alone. Each rank's gradient is the sum of all
    /// ranks': that of the sum of the ranks' losses.
    pub fn sum<B: AllReduceOps, const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        match self.peers {
            Some(_) => wrap(B::all_reduce_sum(unwrap(x), self)),
            None => x,
        }
    }

    /// The means over the ranks of several tensors each; `xs` itself when alone. Few large exchanges instead of many small
    /// ones: what gradients are averaged by.
    pub fn means<B: AllReduceOps>(&self, xs: Vec<Tensor<B, 1>>) -> Vec<Tensor<B, 1>> {
        if self.peers.is_none() {
            return xs;
        }
        let means = B::all_reduce_means(xs.into_iter().map(unwrap).collect(), self);
        means.into_iter().map(wrap).collect()
    }

    /// The mean over the ranks of tensors of one shape; `x` itself when alone.
    pub fn mean<B: AllReduceOps, const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        match self.peers {
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

/// Between processes: small enough that the system's allocator keeps the memory of parts, which fresh pages would cost more than
/// the exchange.
const BUCKET_OF_PROCESSES: usize = 1 << 22;

/// [`Rank::means`] through flat buckets.
pub(crate) fn means_of_buckets<B: AllReduceOps>(xs: Vec<FloatTensor<B>>, rank: &Rank) -> Vec<FloatTensor<B>> {
    let (mut means, mut bucket, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    let full = if rank.is_process() { BUCKET_OF_PROCESSES } else { BUCKET };
    let mut xs = xs.into_iter().map(wrap::<B, 1>).peekable();
    while let Some(x) = xs.next() {
        sizes.push(x.dims()[0]);
        bucket.push(x);
        if sizes.iter().sum::<usize>() >= full || xs.peek().is_none() {
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
    let Ok(mut sum) = rank.sum_on_host(data) else {
        return from_rows::<B>(shape, own);
    };
    sum.shape = own.shape();
    from_rows::<B>(shape, Tensor::from_data(sum, (&device, dtype)))
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
