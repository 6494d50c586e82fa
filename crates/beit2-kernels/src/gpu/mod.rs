//! The operations on GPUs: Burn's CubeCL backends under its fusion of element-wise operations.
//!
//! `portable/` serves every GPU: CubeCL's matmuls and kernels written in Rust, compiled for CUDA, Vulkan, Metal and
//! WebGPU. `cuda/` is for NVIDIA's: own kernels in CUDA C and cuBLASLt, on CubeCL's stream and memory. A CUDA device takes
//! the one or the other as a whole. Everything that is not an operation of this crate stays Burn's.

#[cfg(feature = "cuda")]
mod cuda;
mod kept;
mod portable;
mod settings;
#[cfg(test)]
mod tests;

use burn_cubecl::CubeBackend;
use burn_fusion::Fusion;

#[cfg(feature = "cuda")]
pub(crate) use cuda::Recorded;
#[cfg(feature = "cuda")]
pub use cuda::{KernelTime, compile_cuda_kernels, cuda_kernel_times, record_cuda_kernel_times};
pub use settings::{GpuSettings, set_up_gpus};

/// Burn's backend for one GPU runtime (CUDA, or Vulkan, Metal and WebGPU by `wgpu`), without fusion. `BT` holds a bool.
type Plain<R, BT> = CubeBackend<R, f32, i32, BT>;
/// With fusion: `burn::backend::{Cuda, Vulkan, Metal, Wgpu}` are this type.
type Gpu<R, BT> = Fusion<Plain<R, BT>>;

/// Traits whose composed versions are fast enough under fusion, for one runtime.
macro_rules! composed {
    ($runtime:ty: $($ops:ident),+ $(,)?) => {
        $(impl<BT: burn_cubecl::BoolElement> crate::$ops for $crate::gpu::Gpu<$runtime, BT> {})+
    };
}
use composed;
