//! The operations for every GPU.
//!
//! Fusion joins chains of Burn's element-wise operations and sums, so everything that is composed from them (norms, GELU,
//! residuals, losses, AdamW) stays composed. Two things it cannot do: a matmul of bf16 operands that comes out as f32,
//! and an attention whose softmax reads the scores once. Those are custom operations ([`custom`]).

pub(super) mod attention;
mod custom;
mod kernels;
pub(super) mod linear;
pub(super) mod matmul;
#[cfg(any(feature = "vulkan", feature = "metal", feature = "wgpu"))]
mod wgpu;

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;

#[cfg(feature = "cuda")]
pub(super) use custom::Recorded;

use super::{Gpu, Plain};
use crate::Precision;

/// The element type of operands that are multiplied.
fn operands(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    }
}

/// Whether matmuls of this runtime are tuned: some twenty kernels are tried for each kind. CUDA's compiler takes a second or
/// more for each of them, one after the other, so there one good kernel is taken untried.
fn is_tuned<R: CubeRuntime>() -> bool {
    #[cfg(feature = "cuda")]
    if std::any::TypeId::of::<R>() == std::any::TypeId::of::<cubecl::cuda::CudaRuntime>() {
        return false;
    }
    true
}
