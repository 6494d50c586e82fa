//! What operations over rows with f32 tensors have in common.

use burn::tensor::DType;
use cubecl::cuda::CudaRuntime;

use super::super::Gpu;
use super::super::portable::Recorded;
use super::is_native;

/// Burn's CUDA backend.
pub(super) type Cuda<BT> = Gpu<CudaRuntime, BT>;
/// A tensor of that backend, of any type of elements.
pub(super) type Tensor = Recorded<CudaRuntime>;

/// Whether these f32 tensors take the native path: none is empty, and the device is a native one.
pub(super) fn takes(tensors: &[&Tensor]) -> bool {
    let plain = |x: &&Tensor| x.dtype == DType::F32 && x.shape.num_elements() > 0;
    tensors.iter().all(plain) && is_native(tensors[0].client.device())
}

/// Rows and width of a tensor that is not empty.
pub(super) fn dims(x: &Tensor) -> [usize; 2] {
    let width = x.shape[x.shape.num_dims() - 1];
    [x.shape.num_elements() / width.max(1), width]
}

/// The outputs of an operation that has `N`.
pub(super) fn outputs<const N: usize>(of: impl Iterator<Item = Tensor>) -> [Tensor; N] {
    let outputs: Vec<Tensor> = of.collect();
    outputs.try_into().unwrap_or_else(|_| unreachable!("an operation gives what was recorded"))
}
