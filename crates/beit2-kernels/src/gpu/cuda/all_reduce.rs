//! Sums and means over the ranks of a group by NCCL.
//!
//! A sum is put on the device's second stream ([`super::communication`]). Where operations ask for one
//! ([`AllReduceOps`]), the first stream waits for it right there; the backward pass of blocks puts the means of its buckets
//! ([`Exchange`]) there while it goes on, and the wait is an operation of its own.
//!
//! The threads that fill the queues meet before each sum. So that no rank keeps such a thread of another waiting while it
//! waits for that rank itself, operations with sums do not stay in Burn's list, nor on the way to the device's thread:
//! [`settle`] runs the list, [`Options::prompt`] the rest.

use std::sync::Arc;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::device::Device;

use super::super::Gpu;
use super::{Options, Ptr, Queue, Recorded, is_native, native_with};
use crate::AllReduceOps;
use crate::collective::nccl::{Communicator, Piece, Reduction, communicator};
use crate::collective::{self, Rank};

impl<BT: BoolElement> AllReduceOps for Gpu<CudaRuntime, BT> {
    fn all_reduce_sum(x: FloatTensor<Self>, rank: &Rank) -> FloatTensor<Self> {
        match serving(std::slice::from_ref(&x), rank) {
            Some(communicator) => {
                let mut sums = reduced::<BT>(vec![x], communicator, Reduction::Sum, rank);
                sums.pop().unwrap_or_else(|| unreachable!("one tensor"))
            }
            None => collective::through_host::<Self>(x, rank),
        }
    }

    fn all_reduce_means(xs: Vec<FloatTensor<Self>>, rank: &Rank) -> Vec<FloatTensor<Self>> {
        match serving(&xs, rank) {
            Some(communicator) => reduced::<BT>(xs, communicator, Reduction::Mean, rank),
            None => collective::means_of_buckets::<Self>(xs, rank),
        }
    }

    fn overlaps_all_reduce(rank: &Rank) -> bool {
        serving(&[], rank).is_some()
    }

    fn arrived_means(pending: Vec<FloatTensor<Self>>) -> Vec<FloatTensor<Self>> {
        let (outputs, reuse) = (alike(&pending), in_place(&pending));
        let sizes: Vec<usize> = pending.iter().map(bytes).collect();
        let run = move |queue: &mut Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], _: Ptr| {
            queue.join_exchanges();
            for ((from, to), &bytes) in inputs.iter().zip(outputs).zip(&sizes) {
                if from.0 != to.0 {
                    queue.join_rows(*from, bytes, *to, bytes, 1);
                }
            }
        };
        let options = Options { reuse, ..Options::default() };
        settle(native_with::<BT>("means_arrived", pending, outputs, options, run).collect())
    }
}

/// Hands over what is still in Burn's list of operations, up to these tensors: devices may wait for a part of it.
fn settle(xs: Vec<Recorded>) -> Vec<Recorded> {
    if let Some(x) = xs.first() {
        x.client.sync(|| ());
    }
    xs
}

/// The communicator of a rank, where all of its group can use NCCL for such tensors.
fn serving(xs: &[Recorded], rank: &Rank) -> Option<Arc<Communicator>> {
    // The same answers on all ranks. The communicator first: finding it may be an exchange.
    let communicator = own_end(rank);
    let types = xs.iter().all(|x| matches!(x.dtype, DType::F32 | DType::BF16));
    communicator.filter(|_| types)
}

fn own_end(rank: &Rank) -> Option<Arc<Communicator>> {
    communicator(rank, |id| is_native(&CudaDevice::from_id(*id)))
}

/// The way to NCCL of an operation that exchanges data.
#[derive(Clone)]
pub(super) struct Exchange {
    communicator: Arc<Communicator>,
    rank: Rank,
    reduction: Reduction,
}

impl Exchange {
    /// For the means over a group that [`AllReduceOps::overlaps_all_reduce`] is true of.
    pub fn means(rank: &Rank) -> Option<Self> {
        let (communicator, rank) = (own_end(rank)?, rank.clone());
        Some(Self { communicator, rank, reduction: Reduction::Mean })
    }

    /// Begins one exchange of all pieces; NCCL launches it as one. No copies into one buffer: it joins the calls of a group
    /// itself.
    pub fn begin(&self, queue: &mut Queue<'_>, pieces: &[Piece]) {
        queue.exchange(|stream| {
            self.rank.meet_on_queues(pieces.iter().map(|piece| piece.count).collect())?;
            self.communicator.all_reduce(pieces, self.reduction, stream)
        });
    }
}

/// Outputs like the inputs.
fn alike(xs: &[Recorded]) -> Vec<(Shape, DType)> {
    xs.iter().map(|x| (x.shape.clone(), x.dtype)).collect()
}

/// Each output in the memory of its input, where nobody else holds that.
fn in_place(xs: &[Recorded]) -> Vec<(usize, usize)> {
    (0..xs.len()).map(|i| (i, i)).collect()
}

fn bytes(x: &Recorded) -> usize {
    x.shape.num_elements() * x.dtype.size()
}

/// All tensors in one exchange.
fn reduced<BT: BoolElement>(
    xs: Vec<Recorded>,
    communicator: Arc<Communicator>,
    reduction: Reduction,
    rank: &Rank,
) -> Vec<Recorded> {
    // The threads meet first: a sum that one of them will never ask for would hold up the other devices for ever.
    if xs.is_empty() || rank.gather(()).is_err() {
        return xs;
    }
    let (outputs, reuse) = (alike(&xs), in_place(&xs));
    let of = |x: &Recorded| (x.shape.num_elements(), x.dtype == DType::BF16);
    let pieces: Vec<(usize, bool)> = xs.iter().map(of).collect();
    let exchange = Exchange { communicator, rank: rank.clone(), reduction };
    let run = move |queue: &mut Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], _: Ptr| {
        let addresses = inputs.iter().zip(outputs);
        let pieces: Vec<Piece> = pieces
            .iter()
            .zip(addresses)
            .map(|(&(count, bf16), (from, to))| Piece { from: from.0, to: to.0, count, bf16 })
            .collect();
        exchange.begin(queue, &pieces);
        queue.join_exchanges();
    };
    let options = Options { reuse, prompt: true, ..Options::default() };
    settle(native_with::<BT>("all_reduce", xs, outputs, options, run).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::tensor::{Tensor, TensorData};
    use cudarc::driver::sys as driver;

    use super::*;
    use crate::PeerLeft;
    use crate::collective::{nccl, overlap_tests};

    type B = burn::backend::Cuda<f32, i32>;

    /// The first two devices; `None`, and a line, if they or NCCL aren't there.
    fn two() -> Option<[CudaDevice; 2]> {
        let mut count = 0;
        // SAFETY: NVIDIA's driver may be opened in any process; `count` is written.
        unsafe {
            if driver::is_culib_present() && driver::cuInit(0) == driver::CUresult::CUDA_SUCCESS {
                let _ = driver::cuDeviceGetCount(&mut count);
            }
        }
        let devices = [0, 1].map(CudaDevice::new);
        if count < 2 || !devices.iter().all(is_native) || !nccl::present() {
            println!("skipped: {count} CUDA devices, of two that NCCL and cuBLASLt can use");
            return None;
        }
        Some(devices)
    }

    /// What `work` gives on each of the two, a thread each.
    fn on_ranks<T: Send>(devices: &[CudaDevice; 2], work: impl Fn(Rank, &CudaDevice) -> T + Sync) -> Vec<T> {
        overlap_tests::on_ranks(devices, Device::to_id, work)
    }

    fn tensor<const D: usize>(
        values: &[f32],
        dims: [usize; D],
        dtype: DType,
        device: &CudaDevice,
    ) -> Tensor<B, D> {
        Tensor::from_data(TensorData::new(values.to_vec(), dims), (device, dtype))
    }

    fn floats<const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
        x.into_data().convert::<f32>().into_vec().unwrap()
    }

    /// Small integers, which both types hold exactly.
    fn values(count: usize, rank: usize) -> Vec<f32> {
        (0..count).map(|i| (i % 17) as f32 - 8.0 * rank as f32).collect()
    }

    #[test]
    fn sums_and_means_of_two_devices_on_cuda() {
        let Some(devices) = two() else { return };
        for dtype in [DType::F32, DType::BF16] {
            let found = on_ranks(&devices, |rank, device| {
                let x = tensor(&values(15, rank.index()), [3, 5], dtype, device);
                let sum = rank.sum(x.clone());
                assert_eq!((sum.dims(), sum.dtype()), ([3, 5], dtype));
                let many: Vec<_> = [1, 70_001, 16]
                    .map(|count| tensor(&values(count, rank.index()), [count], dtype, device))
                    .into();
                // Held by somebody else, one can't be reduced in place.
                let held = many[2].clone();
                let means: Vec<Vec<f32>> = rank.means(many).into_iter().map(floats).collect();
                // Read after the reduction: it still has what it had.
                (floats(sum), floats(x), floats(held), means)
            });
            let expected = |count: usize, divisor: f32| -> Vec<f32> {
                let both = values(count, 0).into_iter().zip(values(count, 1));
                both.map(|(a, b)| (a + b) / divisor).collect()
            };
            for (index, (sum, x, held, means)) in found.into_iter().enumerate() {
                assert_eq!(sum, expected(15, 1.0), "{dtype:?}");
                assert_eq!((x, held), (values(15, index), values(16, index)), "{dtype:?}");
                assert_eq!(means, [1, 70_001, 16].map(|count| expected(count, 2.0)), "{dtype:?}");
            }
        }
    }

    /// With buckets of whole runs: their blocks are small.
    #[test]
    fn gradients_are_exchanged_in_the_backward_pass_on_cuda() {
        let Some(devices) = two() else { return };
        on_ranks(&devices, |rank, device| {
            overlap_tests::check::<burn::backend::Autodiff<B>>(&rank, device);
        });
    }

    #[test]
    fn nobody_waits_for_a_device_that_left_on_cuda() {
        let Some(devices) = two() else { return };
        let found = on_ranks(&devices, |rank, device| {
            if rank.leads() {
                return Ok(());
            }
            let x = tensor(&[1.0, 2.0], [2], DType::F32, device);
            // Its own part, and the reason when it asks.
            assert_eq!(floats(rank.sum(x)), [1.0, 2.0]);
            rank.gather(()).map(drop)
        });
        assert_eq!(found, [Ok(()), Err(PeerLeft::default())]);
    }
}
