//! Sums over NVIDIA GPUs by NCCL, which Burn's CUDA backend opens at run time. No thread waits for a device.

use std::sync::OnceLock;

use burn::tensor::backend::distributed::{DistributedBackend, ReduceOperation};
use burn::tensor::ops::FloatTensor;

use super::Rank;

/// Whether NCCL can serve this group: the library is there, and no device is named twice.
pub(crate) fn serves(rank: &Rank) -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let devices = rank.devices();
    let distinct = devices.iter().enumerate().all(|(at, device)| !devices[..at].contains(device));
    // SAFETY: opens a shared library of NVIDIA's, whose start-up code has no preconditions.
    distinct && *FOUND.get_or_init(|| unsafe { cudarc::nccl::sys::is_culib_present() })
}

pub(crate) fn sum<B: DistributedBackend>(x: FloatTensor<B>, rank: &Rank) -> FloatTensor<B> {
    // The threads meet first: a sum that one of them will never ask for would hold up the other devices for ever.
    if rank.gather(()).is_err() {
        return x;
    }
    B::all_reduce(x, ReduceOperation::Sum, rank.devices().to_vec()).resolve()
}
