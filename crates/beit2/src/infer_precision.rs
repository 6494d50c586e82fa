//! How a model that is only run computes.

use beit2_kernels::{Backend, Precision};
use serde::{Deserialize, Serialize};

use crate::error::{Error, config_error};
use crate::train::check_precision;

/// How the matmuls of a frozen model treat their operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InferPrecision {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16 ([`Precision::Bf16`]).
    Bf16,
    /// The four linear layers of each block in 8-bit integers, with a scale for each output of a weight and for each row of
    /// activations (a token), found as it comes; everything else as in f32. CPUs only; fast with AVX-512 VNNI.
    Int8,
}

impl InferPrecision {
    /// Of everything that is not in 8-bit integers.
    #[must_use]
    pub fn of_floats(self) -> Precision {
        match self {
            Self::F32 | Self::Int8 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
        }
    }

    /// Whether blocks are rounded to 8-bit integers.
    #[must_use]
    pub fn is_int8(self) -> bool {
        self == Self::Int8
    }

    /// Checks that a model can be run so on this device.
    ///
    /// # Errors
    /// The device does not have it.
    pub fn check<B: Backend>(self, device: &B::Device) -> Result<(), Error> {
        if self.is_int8() && !B::HAS_INT8 {
            return config_error("precision `int8` is for the CPU; use `bf16` on this device");
        }
        check_precision::<B>(self.of_floats(), device)
    }
}

impl From<Precision> for InferPrecision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

impl std::fmt::Display for InferPrecision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}
