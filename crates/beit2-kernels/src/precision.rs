//! Which element type the operands of matmuls have.
//!
//! Tensors, master weights, sums, softmax, norms and losses are f32 in both policies. There is no
//! fp16 and no loss scaling: bf16 has the exponents of f32.

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// How the matmuls of an operation treat their operands. A value that the caller passes to
/// each operation, so two models of one process may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As they are. On NVIDIA GPUs Burn may choose TF32 matmuls, which read 11 bits of an operand.
    #[default]
    F32,
    /// Rounded to bf16 (nearest, ties to even), summed in f32. A CPU without bf16 matmuls
    /// (AVX-512-BF16) leaves operands as they are: not slower than [`Precision::F32`], and more exact.
    Bf16,
}

impl Precision {
    /// Whether the device can hold what matmuls of this precision see.
    pub fn is_supported<B: BurnBackend>(self, device: &B::Device) -> bool {
        self == Self::F32 || B::supports_dtype(device, DType::BF16)
    }

    /// The values that a matmul of this precision sees.
    pub fn round<B: BurnBackend, const D: usize>(self, x: Tensor<B, D>) -> Tensor<B, D> {
        match self {
            Self::F32 => x,
            Self::Bf16 => {
                let dtype = x.dtype();
                x.cast(DType::BF16).cast(dtype)
            }
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}
