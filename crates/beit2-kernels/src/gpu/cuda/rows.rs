//! What operations over rows with f32 tensors have in common.
//!
//! Memory bandwidth is what all of them cost. Bytes that kernels move per number of `[rows, width]` (values of a column or a
//! row, and partial sums, come on top: below 3 % from 1,000 rows on):
//!
//! | kernel | in | out |
//! |---|---|---|
//! | `norm_forward_bf16`, `_f32` | 4 | 2, 4 |
//! | `residual_norm_forward_bf16` | 4 + 2 | 4 + 2 |
//! | `norm_backward_bf16` with what is added | 4 + 2 + 4 | 4 |
//! | `residual_forward_bf16` | 4 + 2 | 4 |
//! | `residual_backward_f32` | 4 + 4 | 4 |
//! | `gelu_forward_bf16` | 2 | 2 |
//! | `tanh_forward_bf16`, `_f32` | 2, 4 | 2, 4 |
//! | `tanh_backward_bf16`, `_f32` | 4, 8 | 2, 4 |
//! | `cosine_loss_forward_f32`, `_backward_f32` | 4 + 4 | none, 4 |
//! | `unit_rows_forward`, `_backward` | 4, 4 + 4 | 4 |
//! | `columns_bf16`, `_f32` | 2, 4 | |
//! | `cast_many` to bf16 | 4 | 2 |
//! | `cross_entropy_forward_f32`, classes as the width | 4 | |
//! | `cross_entropy_backward_f32` | 4 | 4 |
//! | `nearest_code_part`, by arithmetic: `2·rows·codes·width` FLOP in f32 | | |

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
