//! Sums and means over the ranks of a group by NCCL.

use std::sync::Arc;

use burn::tensor::DType;
use burn::tensor::ops::FloatTensor;
use burn_cubecl::BoolElement;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::device::Device;

use super::super::Gpu;
use super::{Ptr, Queue, Recorded, is_native, native_reusing};
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
}

/// The communicator of a rank, where all of its group can use NCCL for such tensors.
fn serving(xs: &[Recorded], rank: &Rank) -> Option<Arc<Communicator>> {
    let types = xs.iter().all(|x| matches!(x.dtype, DType::F32 | DType::BF16));
    // The same answer on all ranks.
    let native = |id: &_| is_native(&CudaDevice::from_id(*id));
    let native = types && rank.devices().iter().all(native);
    native.then(|| communicator(rank)).flatten()
}

/// All tensors in one launch. No copies into one buffer: NCCL joins the calls of a group itself.
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
    let outputs: Vec<_> = xs.iter().map(|x| (x.shape.clone(), x.dtype)).collect();
    let reuse: Vec<(usize, usize)> = (0..xs.len()).map(|i| (i, i)).collect();
    let of = |x: &Recorded| (x.shape.num_elements(), x.dtype == DType::BF16);
    let pieces: Vec<(usize, bool)> = xs.iter().map(of).collect();
    let run = move |queue: &mut Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], _: Ptr| {
        let addresses = inputs.iter().zip(outputs);
        let pieces: Vec<Piece> = pieces
            .iter()
            .zip(addresses)
            .map(|(&(count, bf16), (from, to))| Piece { from: from.0, to: to.0, count, bf16 })
            .collect();
        queue.call(|stream| communicator.all_reduce(&pieces, reduction, stream));
    };
    native_reusing::<BT>("all_reduce", xs, outputs, 0, &reuse, run).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::tensor::{Tensor, TensorData};
    use cudarc::driver::sys as driver;

    use super::*;
    use crate::PeerLeft;
    use crate::collective::nccl;

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
        let ids: Vec<_> = devices.iter().map(Device::to_id).collect();
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
        assert_eq!(found, [Ok(()), Err(PeerLeft)]);
    }
}
