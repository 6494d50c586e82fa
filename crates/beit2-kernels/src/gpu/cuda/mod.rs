//! NVIDIA's GPUs: own kernels in CUDA C and cuBLASLt, among CubeCL's operations and on its stream and memory.
//!
//! A device takes this native path or the portable one ([`super::portable`]) as a whole, decided once ([`is_native`]). Each
//! operation is one file here: it implements the operation's trait for Burn's CUDA backend, records a native operation
//! ([`native()`]) where the device is native, and calls the portable function otherwise. The way of such an operation:
//! recorded among Burn's (`native.rs`), run on the device's thread (`engine.rs`), put on CubeCL's stream (`stream.rs`,
//! `launch.rs`) from modules that NVRTC compiled once (`module.rs`, `kernels/`).

mod all_reduce;
mod attention;
mod blas;
mod block;
mod cards;
mod casts;
mod channels;
mod codes;
mod columns;
mod communication;
mod concat;
mod conv;
mod cosine_loss;
mod cubin;
mod deconv;
mod engine;
mod failure;
mod gelu;
mod head_loss;
mod images;
mod kernels;
mod launch;
mod linear;
mod loss;
#[cfg(test)]
mod map_tests;
mod maps;
mod mixing;
mod module;
mod native;
mod norm;
mod nvrtc;
mod parameters;
mod pinned;
mod pixels;
mod quantize;
mod residual;
#[cfg(test)]
mod row_tests;
mod rows;
mod spare;
mod stream;
mod tanh_mlp;
#[cfg(test)]
mod tests;
mod times;
mod tokens;
mod upload;

use burn_cubecl::BoolElement;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::{CudaDevice, CudaRuntime};

use super::{Gpu, composed};
use crate::Backend;

pub(super) use cards::write_cards;
pub use cubin::compile_cuda_kernels;
pub use times::{KernelTime, cuda_kernel_times, record_cuda_kernel_times};

pub(crate) use blas::{Element, Epilogue, Gemm, Operand, Ptr};
pub(crate) use launch::{Arg, Queue};
pub(crate) use native::{Options, native, native_reusing, native_with};

/// A tensor of a CUDA device whose values may still be a list of operations.
pub(crate) type Recorded = super::portable::Recorded<CudaRuntime>;
/// One with memory.
pub(crate) type CudaTensor = CubeTensor<CudaRuntime>;

/// Whether the operations of `device` are native ones.
pub(crate) fn is_native(device: &CudaDevice) -> bool {
    engine::choice(device).is_ok()
}

/// The only output of an operation.
fn one<T>(mut outputs: impl Iterator<Item = T>) -> T {
    outputs.next().unwrap_or_else(|| unreachable!("an operation has an output"))
}

composed!(
    CudaRuntime: AdamwOps,
    NormMlpOps,
    RecomputeOps,
    SampleOps,
);

impl<BT: BoolElement> Backend for Gpu<CudaRuntime, BT> {
    fn kernels(device: &CudaDevice) -> Option<String> {
        Some(match engine::choice(device) {
            Ok(native) => native.clone(),
            Err(why) => format!("portable kernels, slower than native ones: {why}"),
        })
    }
}
