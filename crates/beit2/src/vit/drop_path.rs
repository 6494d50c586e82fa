//! Stochastic depth: whole residual branches dropped per sample.

use beit2_kernels::Backend;
use burn::tensor::{Tensor, TensorData};
use rand::{Rng, RngExt};

/// Rates that rise linearly from 0 to `rate` over `depth` blocks.
pub fn drop_path_rates(rate: f64, depth: usize) -> Vec<f64> {
    let last = depth.saturating_sub(1).max(1) as f64;
    (0..depth).map(|block| rate * block as f64 / last).collect()
}

/// The factors on one block's two branches, each `[B, 1, 1]`: 0 for a dropped sample, `1/(1−p)` for
/// a kept one.
#[derive(Debug, Clone, Default)]
pub struct BranchDrop<B: Backend> {
    /// Factor on the attention branch.
    pub attn: Option<Tensor<B, 3>>,
    /// Factor on the MLP branch.
    pub mlp: Option<Tensor<B, 3>>,
}

/// The factors of all blocks in one forward pass, in order of execution.
#[derive(Debug, Clone, Default)]
pub struct DropPath<B: Backend> {
    blocks: Vec<BranchDrop<B>>,
}

impl<B: Backend> DropPath<B> {
    /// Nothing is dropped (evaluation, rate 0).
    pub fn none() -> Self {
        Self { blocks: Vec::new() }
    }

    /// Draws independent factors for blocks with these rates.
    pub fn sample(rates: &[f64], batch: usize, rng: &mut impl Rng, device: &B::Device) -> Self {
        Self::from_uniform(rates, batch, || rng.random::<f64>(), device)
    }

    /// Factors from given uniform draws in `[0, 1)`: a sample is kept when `⌊1 − p + u⌋ = 1`. Blocks
    /// with rate 0 take no draws.
    pub fn from_uniform(
        rates: &[f64],
        batch: usize,
        mut uniform: impl FnMut() -> f64,
        device: &B::Device,
    ) -> Self {
        let mut factor = |rate: f64| {
            let keep = 1.0 - rate;
            let factors: Vec<f32> = (0..batch).map(|_| ((keep + uniform()).floor() / keep) as f32).collect();
            Tensor::from_data(TensorData::new(factors, [batch, 1, 1]), device)
        };
        let blocks = rates
            .iter()
            .map(|&rate| match rate > 0.0 {
                true => BranchDrop { attn: Some(factor(rate)), mlp: Some(factor(rate)) },
                false => BranchDrop { attn: None, mlp: None },
            })
            .collect();
        Self { blocks }
    }

    /// The factors of block number `index` in order of execution.
    pub fn block(&self, index: usize) -> BranchDrop<B> {
        self.blocks.get(index).cloned().unwrap_or(BranchDrop { attn: None, mlp: None })
    }
}

pub(crate) fn apply<B: Backend>(branch: Tensor<B, 3>, factor: &Option<Tensor<B, 3>>) -> Tensor<B, 3> {
    match factor {
        Some(factor) => {
            let dtype = branch.dtype();
            branch * factor.clone().cast(dtype)
        }
        None => branch,
    }
}
