//! A backward pass in which ranks exchange gradients gives what it gives with the exchange afterwards.

use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::DeviceId;
use burn::tensor::{Device, Tensor, TensorData};

use super::*;
use crate::block::tests::Fused;
use crate::testing::random;
use crate::{AutodiffBackend, BlockParameters, BlockSpec, Precision};

/// Blocks, samples, tokens, width, hidden units, heads.
const SIZES: [usize; 6] = [3, 2, 5, 64, 64, 1];
/// Tensors of a block.
const TENSORS: usize = 15;

/// What `work` gives on each rank of a group, a thread each.
pub(crate) fn on_ranks<D: Sync, T: Send>(
    devices: &[D],
    id: impl Fn(&D) -> DeviceId,
    work: impl Fn(Rank, &D) -> T + Sync,
) -> Vec<T> {
    let ids: Vec<_> = devices.iter().map(id).collect();
    std::thread::scope(|scope| {
        let start = |(rank, device): (Rank, _)| {
            let work = &work;
            scope.spawn(move || {
                let _stay = rank.stay();
                work(rank, device)
            })
        };
        let threads: Vec<_> = Rank::group(&ids).into_iter().zip(devices).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A rank's model: two runs of blocks. The first vector of the first block is used outside of blocks too; the bias of
/// the last layer of the last block is used by both runs, in another block each.
struct Model<B: AutodiffBackend> {
    matrices: Vec<Tensor<B, 2>>,
    vectors: Vec<Tensor<B, 1>>,
}

impl<B: AutodiffBackend> Model<B> {
    fn new(device: &Device<B>) -> Self {
        let [blocks, _, _, d, f, _] = SIZES;
        let data = |seed: u64, dims: &[usize]| {
            let values = random(dims.iter().product(), seed, 0.3);
            TensorData::new(values.into_iter().map(|x| x as f32).collect::<Vec<_>>(), dims.to_vec())
        };
        let (mut matrices, mut vectors) = (Vec::new(), Vec::new());
        for block in 0..blocks as u64 {
            for (at, dims) in [[3 * d, d], [d, d], [f, d], [d, f]].iter().enumerate() {
                let data = data(100 * block + at as u64, dims);
                matrices.push(Tensor::from_data(data, device).require_grad());
            }
            for at in 0..11 {
                let length = if at == 7 { f } else { d };
                let data = data(100 * block + 10 + at, &[length]);
                vectors.push(Tensor::from_data(data, device).require_grad());
            }
        }
        Self { matrices, vectors }
    }

    /// `derived`: γ of all blocks are no leaves.
    fn parameters(&self, block: usize, derived: bool) -> BlockParameters<B> {
        let matrix = |at: usize| self.matrices[4 * block + at].clone();
        let vector = |at: usize| self.vectors[11 * block + at].clone();
        let gamma = |at: usize| if derived { vector(at).mul_scalar(2.0) } else { vector(at) };
        BlockParameters {
            norm1: [vector(0), vector(1)],
            qkv: matrix(0),
            qv_bias: Some([vector(2), vector(3)]),
            proj: (matrix(1), vector(4)),
            norm2: [vector(5), vector(6)],
            fc1: (matrix(2), vector(7)),
            fc2: (matrix(3), vector(8)),
            gammas: Some([gamma(9), gamma(10)]),
        }
    }

    fn loss(&self, rank: &Rank, derived: bool) -> Tensor<B, 1> {
        let [blocks, batch, tokens, width, _, heads] = SIZES;
        let device = self.matrices[0].device();
        let values = |seed: usize| {
            let values = random(batch * tokens * width, (seed + rank.index()) as u64, 1.0);
            let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
            Tensor::<B, 3>::from_data(TensorData::new(values, [batch, tokens, width]), &device)
        };
        let scale = ((width / heads) as f64).powf(-0.5);
        let spec = BlockSpec {
            heads,
            scale,
            eps: 1e-5,
            activation: Default::default(),
            precision: Precision::Bf16,
            recompute: false,
        };
        let parameters: Vec<_> = (0..blocks).map(|block| self.parameters(block, derived)).collect();
        let run = |x, parameters: &[BlockParameters<B>]| {
            crate::blocks(x, Vec::new(), parameters.to_vec(), None, None, spec)
        };
        let x = run(values(1000), &parameters[..2]);
        let mut last = parameters[2].clone();
        last.fc2.1 = parameters[0].fc2.1.clone();
        let y = run(x, &[last]);
        let outside = self.vectors[0].clone().mul_scalar(1.0 + rank.index() as f64).sum();
        (y * values(2000)).sum() + outside
    }
}

/// Means of all parameters' gradients: all exchanged afterwards, and what [`backward`] gives with the number of means that
/// it took itself.
fn both<B: AutodiffBackend>(
    rank: &Rank,
    device: &Device<B>,
    derived: bool,
) -> (Vec<Vec<f64>>, Vec<Vec<f64>>, usize) {
    let floats = |data: TensorData| data.convert::<f64>().into_vec::<f64>().unwrap();
    fn mean<I: AllReduceOps, const D: usize>(rank: &Rank, x: Option<Tensor<I, D>>) -> Option<Tensor<I, 1>> {
        let x = x?;
        let count = x.shape().num_elements();
        Some(rank.mean(x.reshape([count])))
    }
    let model = Model::<B>::new(device);
    let grads = model.loss(rank, derived).backward();
    let mut after = Vec::new();
    for x in &model.matrices {
        after.extend(mean(rank, x.grad(&grads)).map(|x| floats(x.into_data())));
    }
    for x in &model.vectors {
        after.extend(mean(rank, x.grad(&grads)).map(|x| floats(x.into_data())));
    }

    let model = Model::<B>::new(device);
    let (grads, mut means) = backward(&model.loss(rank, derived), rank).unwrap();
    let count = means.left();
    let mut during = Vec::new();
    let mut add = |early: Option<Tensor<B::InnerBackend, 1>>, own: Option<Tensor<B::InnerBackend, 1>>| {
        let parts = [early, mean(rank, own)].into_iter().flatten();
        during.extend(parts.reduce(|a, b| a + b).map(|x| floats(x.into_data())));
    };
    for x in &model.matrices {
        add(means.take(x).map(|mean| mean.flatten(0, 1)), x.grad(&grads).map(|own| own.flatten(0, 1)));
    }
    for x in &model.vectors {
        add(means.take(x), x.grad(&grads));
    }
    assert_eq!(means.left(), 0, "a mean belongs to no parameter");
    (after, during, count)
}

/// The same gradients on all ranks, and the same as afterwards.
pub(crate) fn check<B: AutodiffBackend>(rank: &Rank, device: &Device<B>) {
    let [blocks, ..] = SIZES;
    // The bias of the last block is not used, which is that of another.
    let used = blocks * TENSORS - 1;
    for (derived, expected) in [(false, used), (true, 0)] {
        let (after, during, count) = both::<B>(rank, device, derived);
        assert_eq!((count, after.len(), during.len()), (expected, used, used), "derived {derived}");
        for (number, (after, during)) in after.iter().zip(&during).enumerate() {
            let size = after.iter().map(|x| x * x).sum::<f64>().sqrt();
            let difference = after.iter().zip(during).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            assert!(size > 0.0, "tensor {number} has no gradient");
            assert!(difference <= 1e-5 * size, "tensor {number} differs by {difference:e} of {size:e}");
        }
        let all = rank.gather(during.clone()).unwrap();
        assert!(all.iter().all(|other| *other == during), "ranks have other means");
    }
}

type B = Autodiff<Flex>;

fn cpu(count: usize, work: impl Fn(Rank) + Sync) {
    let device = burn::backend::flex::FlexDevice;
    on_ranks(&vec![device; count], burn::tensor::backend::Device::to_id, |rank, _| {
        let _fused = Fused::new();
        work(rank);
    });
}

#[test]
fn gradients_exchanged_in_the_backward_pass_are_the_means() {
    for count in [2, 3] {
        cpu(count, |rank| check::<B>(&rank, &Default::default()));
    }
}

/// The exchange belongs to one pass: what comes before and after is the rank's own.
#[test]
fn other_backward_passes_are_not_exchanged() {
    cpu(2, |rank| {
        let model = Model::<B>::new(&Default::default());
        let (_, means) = backward(&model.loss(&rank, false), &rank).unwrap();
        assert!(means.left() > 0);
        let model = Model::<B>::new(&Default::default());
        let grads = model.loss(&rank, false).backward();
        let own = model.matrices[0].grad(&grads).unwrap().into_data();
        let all = rank.gather(own).unwrap();
        assert_ne!(all[0], all[1]);
        let (grads, means) = backward(&model.loss(&rank, false), &Rank::alone()).unwrap();
        assert!(means.left() == 0 && model.matrices[0].grad(&grads).is_some());
    });
}

#[test]
fn a_rank_that_left_holds_up_no_backward_pass() {
    cpu(2, |rank| {
        if rank.leads() {
            let model = Model::<B>::new(&Default::default());
            assert_eq!(backward(&model.loss(&rank, false), &rank).err(), Some(PeerLeft::default()));
        }
    });
    // It leaves between the meeting before the pass and the first block.
    cpu(2, |rank| {
        if !rank.leads() {
            rank.gather(()).unwrap();
            return;
        }
        let model = Model::<B>::new(&Default::default());
        let (grads, means) = backward(&model.loss(&rank, false), &rank).unwrap();
        assert!(means.left() == 0 && model.matrices[0].grad(&grads).is_some());
        assert_eq!(rank.gather(()).err(), Some(PeerLeft::default()));
    });
}

/// A device whose queue failed is told from one that is late, with its reason.
#[cfg(feature = "cuda")]
#[test]
fn queues_do_not_wait_for_a_device_that_failed() {
    let id = |index| DeviceId { type_id: 77, index_id: index };
    let ranks = Rank::group(&[id(0), id(1)]);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ranks[0].meet_on_queues(vec![3]));
        device_failed(id(1), "device 1 is full");
        assert_eq!(waiting.join().unwrap(), Err("device 1 is full".into()));
    });
    let ranks = Rank::group(&[id(0), id(1)]);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ranks[0].meet_on_queues(vec![3]));
        let other = ranks[1].meet_on_queues(vec![4]);
        assert!(other.is_err() && waiting.join().unwrap() == other, "different tensors");
    });
}
