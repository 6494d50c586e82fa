//! How fast the stages run on this machine: what `beit2 bench` measures.
//!
//! A measured step is the step of training: the same models, inputs, losses and optimiser, on pictures of
//! random bytes or on real ones through the loader. Drop path is off, so that every step is the same work.

mod flops;
mod infer;
mod pictures;
mod size;
mod train;

use std::time::Instant;

use beit2_kernels::{Backend, Precision, linear};
use burn::tensor::{Distribution, Tensor};

use crate::error::Error;

pub use infer::InferBench;
pub use pictures::Pictures;
pub use size::{Size, Stage};
pub use train::{TrainBench, TrainSetup};

/// Time that a step spends in each of its parts, in seconds. The parts run one after the other here; in
/// training the frozen half (data, tokenizer) of the next step overlaps with the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Parts {
    /// Waiting for pictures, bringing them to the device, normalising them.
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

/// Floating-point operations a second of a large square matrix product `x·wᵀ` of this software: the measure
/// for shares of the peak. The best of a few, a tenth of a second on a CPU.
///
/// # Errors
/// A device that fails.
pub fn gemm_flops<B: Backend>(precision: Precision, device: &B::Device) -> Result<f64, Error> {
    let mut best = 0.0f64;
    let mut side = 2048;
    loop {
        let random = || Tensor::<B, 2>::random([side, side], Distribution::Uniform(-1.0, 1.0), device);
        let (x, w) = (random(), random());
        let mut fastest = f64::INFINITY;
        for _ in 0..4 {
            let mut watch = Watch::<B>::start(device)?;
            drop(linear(x.clone(), w.clone(), None, precision));
            fastest = fastest.min(watch.lap()?);
        }
        best = best.max(2.0 * (side as f64).powi(3) / fastest);
        // A product that is over in milliseconds is too small for the device.
        if fastest > 5e-3 || side >= 16_384 {
            return Ok(best);
        }
        side *= 2;
    }
}
