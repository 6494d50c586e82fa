//! The suites on GPUs, when this test is built with their features: `cargo test --release --features vulkan golden_on`.
//!
//! A device that is not there is skipped with a printed line. The executable runs anywhere with `BEIT2_GOLDEN` set to
//! the folder of the recordings: `golden-… golden_on_cuda --nocapture`.

use beit2_kernels::{AutodiffBackend, Precision};
use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor};

use super::bf16::{self, Rounding};
use super::checks::{golden, skip};
use super::folder::cases;
use super::{classification, pretraining, tokenizer};

/// Whether the device is there and computes. Drivers panic where there is none.
fn answers<B: AutodiffBackend>(name: &str) -> bool {
    let sum = || Tensor::<B, 1>::ones([8], &Default::default()).sum().into_data();
    let sum = std::panic::catch_unwind(sum).ok().and_then(|sum| sum.convert::<f32>().into_vec::<f32>().ok());
    match sum.as_deref() {
        Some(&[8.0]) => true,
        Some(other) => panic!("{name} computes wrong sums: {other:?}"),
        None => {
            skip(format!("no {name} device here"));
            false
        }
    }
}

/// What exact f32 arithmetic must give, by the tolerances of the CPU: all of suites A and B, and C without its steps.
#[cfg_attr(not(feature = "vulkan"), allow(dead_code))] // Its only user.
fn in_exact_f32<B: AutodiffBackend>() {
    for case in &cases("A") {
        if case.has("eval/z") {
            case.in_type(DType::F32, tokenizer::forward_and_gradients::<B>);
        }
        if case.has("traj/loss") {
            case.in_type(DType::F32, tokenizer::five_steps::<B>);
        }
    }
    for case in &cases("B") {
        case.in_type(DType::F32, pretraining::forward_and_gradients::<B>);
        if case.has("traj/loss") {
            case.in_type(DType::F32, pretraining::five_steps::<B>);
        }
    }
    for case in &cases("C") {
        case.in_type(DType::F32, classification::forward_losses_and_gradients::<B>);
    }
}

/// Forward passes, losses and gradients with rounded operands.
fn rounded<B: AutodiffBackend>(rounding: Rounding) {
    bf16::tokenizer::<B>(rounding);
    bf16::pretraining::<B>(rounding);
    bf16::classification::<B>(rounding);
    bf16::segmentation::<B>(rounding);
    bf16::steps::<B>(rounding);
}

#[cfg(feature = "vulkan")]
#[test]
fn golden_on_vulkan() {
    type B = Autodiff<burn::backend::Vulkan>;
    if !answers::<B>("Vulkan") {
        return;
    }
    golden(|| {
        in_exact_f32::<B>();
        if Precision::Bf16.is_supported::<B>(&Default::default()) {
            rounded::<B>(Rounding::BF16);
        }
    });
}

/// f32 on an NVIDIA GPU may be TF32: Burn's tuning chooses tensor cores where they are faster, and they read 11 of an
/// operand's 24 bits, three more than of bf16. So errors are an eighth of bf16's, and a quarter is allowed.
#[cfg(feature = "cuda")]
const TF32: Rounding = Rounding { precision: Precision::F32, share: 0.25 };

#[cfg(feature = "cuda")]
#[test]
fn golden_on_cuda_in_f32() {
    type B = Autodiff<burn::backend::Cuda<f32, i32>>;
    if answers::<B>("CUDA") {
        golden(|| rounded::<B>(TF32));
    }
}

#[cfg(feature = "cuda")]
#[test]
fn golden_on_cuda_in_bf16() {
    type B = Autodiff<burn::backend::Cuda<f32, i32>>;
    if answers::<B>("CUDA") {
        golden(|| rounded::<B>(Rounding::BF16));
    }
}
