//! How fast the stages run on this machine: what `beit2 bench` measures.
//!
//! A measured step is the step of training: the same models, inputs, losses and optimiser, on images of
//! random bytes or on real ones through the loader. Drop path is off, so that every step is the same work.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod data;
mod flops;
mod images;
mod infer;
pub mod noise;
mod size;
mod train;

use std::time::Instant;

use beit2::Error;
use beit2_kernels::{Backend, Precision, linear};
use burn::tensor::{DType, Distribution, Tensor};

pub use data::{DataRound, DataSetup, Transform, data_round};
pub use images::Images;
pub use infer::InferBench;
pub use size::{Size, Stage};
pub use train::{TrainBench, TrainSetup};

/// Time that a step spends in each of its parts, in seconds. The parts run one after the other here; in
/// training the frozen half (data, tokenizer) of the next step overlaps with the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Parts {
    /// Waiting for images, bringing them to the device, normalising them.
    pub data: f64,
    /// The frozen model: tokenizer or teacher.
    pub tokenizer: f64,
    /// Forward pass and loss.
    pub forward: f64,
    /// Backward pass.
    pub backward: f64,
    /// Clipping, AdamW, the codebook's update.
    pub optimizer: f64,
}

impl Parts {
    /// All parts together.
    pub fn sum(&self) -> f64 {
        self.data + self.tokenizer + self.forward + self.backward + self.optimizer
    }

    /// The mean of each part; zeros for none.
    pub fn mean(all: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| all.iter().map(of).sum::<f64>() / all.len().max(1) as f64;
        Self {
            data: mean(|p| p.data),
            tokenizer: mean(|p| p.tokenizer),
            forward: mean(|p| p.forward),
            backward: mean(|p| p.backward),
            optimizer: mean(|p| p.optimizer),
        }
    }
}

/// Seconds since the last reading, with the device's queue emptied first.
struct Watch<'a, B: Backend> {
    device: &'a B::Device,
    last: Instant,
}

impl<'a, B: Backend> Watch<'a, B> {
    fn start(device: &'a B::Device) -> Result<Self, Error> {
        settle::<B>(device)?;
        Ok(Self { device, last: Instant::now() })
    }

    fn lap(&mut self) -> Result<f64, Error> {
        settle::<B>(self.device)?;
        let now = Instant::now();
        let seconds = (now - self.last).as_secs_f64();
        self.last = now;
        Ok(seconds)
    }
}

/// Waits for the device.
fn settle<B: Backend>(device: &B::Device) -> Result<(), Error> {
    B::sync(device).map_err(|error| Error::Training(format!("the device failed: {error}")))
}

/// Floating-point operations a second of a large square matmul `x·wᵀ` of this software: the measure
/// for shares of the peak on a CPU. The best of a few, a tenth of a second.
///
/// # Errors
/// A device that fails.
pub fn gemm_flops<B: Backend>(precision: Precision, device: &B::Device) -> Result<f64, Error> {
    let mut best = 0.0f64;
    let mut side = 2048;
    loop {
        let (x, w) = (operand::<B>(side, device), operand::<B>(side, device));
        let fastest = fastest_matmul::<B>(4, device, || linear(x.clone(), w.clone(), None, precision))?;
        best = best.max(2.0 * (side as f64).powi(3) / fastest);
        // A matmul that is over in milliseconds is too small for the device.
        if fastest > 5e-3 || side >= 16_384 {
            return Ok(best);
        }
        side *= 2;
    }
}

/// The side of the matmul that fractions of a GPU's peak refer to.
pub const GPU_GEMM_SIDE: usize = 8192;

/// Floating-point operations a second of a matmul `x·wᵀ` of square matrices that are held in the precision: the
/// measure for shares of the peak on a GPU ([`GPU_GEMM_SIDE`]), where [`gemm_flops`] would time the rounding of operands as
/// well. The best of up to twenty, after the device has chosen its kernel; of 2048 rows where `side` takes too long. Memory
/// is given back.
///
/// # Errors
/// A device that fails.
pub fn held_gemm_flops<B: Backend>(
    side: usize,
    precision: Precision,
    device: &B::Device,
) -> Result<f64, Error> {
    /// Seconds that a matmul may take.
    const LONG: f64 = 0.1;
    let dtype = match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    };
    let measure = |side: usize| -> Result<f64, Error> {
        let [x, w] = [(); 2].map(|()| operand::<B>(side, device).cast(dtype));
        let matmul = || linear(x.clone(), w.clone(), None, precision);
        fastest_matmul::<B>(2, device, matmul)?;
        let seconds = fastest_matmul::<B>(20, device, matmul)?;
        Ok(2.0 * (side as f64).powi(3) / seconds)
    };
    let small = measure(side.min(2048))?;
    let fast_enough = 2.0 * (side as f64).powi(3) / small < LONG;
    let flops = if fast_enough { measure(side)? } else { small };
    B::memory_cleanup(device);
    Ok(flops)
}

/// Random numbers: matmuls of zeros need less power and run faster.
fn operand<B: Backend>(side: usize, device: &B::Device) -> Tensor<B, 2> {
    Tensor::random([side, side], Distribution::Uniform(-1.0, 1.0), device)
}

/// Seconds of the fastest of `count` runs, or of as many as take a second. Results are held until they are complete: a
/// backend need not compute what nobody reads.
fn fastest_matmul<B: Backend>(
    count: usize,
    device: &B::Device,
    matmul: impl Fn() -> Tensor<B, 2>,
) -> Result<f64, Error> {
    let (mut fastest, mut total) = (f64::INFINITY, 0.0);
    for _ in 0..count {
        let mut watch = Watch::<B>::start(device)?;
        let result = matmul();
        let seconds = watch.lap()?;
        drop(result);
        fastest = fastest.min(seconds);
        total += seconds;
        if total > 1.0 {
            break;
        }
    }
    Ok(fastest)
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    #[test]
    fn parts_are_averaged_one_by_one() {
        let part = |data, backward| Parts { data, backward, ..Parts::default() };
        let mean = Parts::mean(&[part(1.0, 4.0), part(2.0, 8.0)]);
        assert_eq!((mean, mean.sum()), (part(1.5, 6.0), 7.5));
        assert_eq!(Parts::mean(&[]), Parts::default());
    }

    #[test]
    fn products_are_timed_in_both_precisions() {
        for precision in [Precision::F32, Precision::Bf16] {
            let flops = held_gemm_flops::<Flex>(64, precision, &Default::default()).unwrap();
            assert!((1e6..1e14).contains(&flops), "{precision:?}: {flops}");
        }
    }
}
