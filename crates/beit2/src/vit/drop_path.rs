//! Stochastic depth: whole residual branches dropped per sample.
//!
//! A dropped branch is not computed: norm, attention or MLP see the kept samples only, and what they
//! give is added to those. Equal to computing all and multiplying by 0 or `1/(1−p)` (tested), which is
//! what backends do that pay for shapes that change from step to step. Those get the factors of all branches by
//! one transfer.

use std::sync::OnceLock;

use beit2_kernels::{self as kernels, Backend};
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use rand::{Rng, RngExt};

/// Rates that rise linearly from 0 to `rate` over `depth` blocks.
pub fn drop_path_rates(rate: f64, depth: usize) -> Vec<f64> {
    let last = depth.saturating_sub(1).max(1) as f64;
    (0..depth).map(|block| rate * block as f64 / last).collect()
}

/// Which samples of a batch keep one branch, and the factor `1/(1−p)` on theirs.
#[derive(Debug, Clone)]
pub struct SampleDrop<B: Backend> {
    keeps: Vec<bool>,
    /// f32, as the reference's factors are.
    factor: f32,
    /// Whether dropped samples are left out of the computation.
    leave_out: bool,
    /// Unless dropped samples are left out: the factors of all branches, and which row is this one's.
    factors: Option<(Tensor<B, 2>, usize)>,
}

impl<B: Backend> SampleDrop<B> {
    /// 0 for a dropped sample, the factor for a kept one.
    fn values(&self) -> impl Iterator<Item = f32> {
        self.keeps.iter().map(|&kept| if kept { self.factor } else { 0.0 })
    }
}

/// Which samples keep one block's two branches; `None`: all.
#[derive(Debug, Clone, Default)]
pub struct BranchDrop<B: Backend> {
    /// Of the attention branch.
    pub attn: Option<SampleDrop<B>>,
    /// Of the MLP branch.
    pub mlp: Option<SampleDrop<B>>,
}

impl<B: Backend> BranchDrop<B> {
    /// For a run of blocks that is one operation: the factors of all branches, and which rows are those of this block's.
    /// `None` inside: nothing is dropped. `None`: dropped samples are left out.
    #[allow(clippy::type_complexity)]
    pub(super) fn fused(&self) -> Option<Option<(Tensor<B, 2>, [usize; 2])>> {
        match (&self.attn, &self.mlp) {
            (None, None) => Some(None),
            (Some(attn), Some(mlp)) => {
                let ((factors, attn), (_, mlp)) = (attn.factors.as_ref()?, mlp.factors.as_ref()?);
                Some(Some((factors.clone(), [*attn, *mlp])))
            }
            _ => None,
        }
    }
}

/// Which samples keep which branches in one forward pass, by block in order of execution.
#[derive(Debug, Clone, Default)]
pub struct DropPath<B: Backend> {
    blocks: Vec<BranchDrop<B>>,
    /// Where the factors go, and those of all branches once they are there, `[2·blocks, B]`.
    device: B::Device,
    factors: OnceLock<Tensor<B, 2>>,
}

impl<B: Backend> DropPath<B> {
    /// Nothing is dropped (evaluation, rate 0).
    pub fn none() -> Self {
        Self::default()
    }

    /// Samples independently for blocks with these rates.
    pub fn sample(rates: &[f64], batch: usize, rng: &mut impl Rng, device: &B::Device) -> Self {
        Self::from_uniform(rates, batch, || rng.random::<f64>(), device)
    }

    /// From uniform random numbers in `[0, 1)`: a sample is kept when `⌊1 − p + u⌋ = 1`. Blocks with rate 0
    /// take none.
    pub fn from_uniform(
        rates: &[f64],
        batch: usize,
        mut uniform: impl FnMut() -> f64,
        device: &B::Device,
    ) -> Self {
        let mut draw = |rate: f64| {
            let keep = 1.0 - rate;
            let keeps = (0..batch).map(|_| keep + uniform() >= 1.0).collect();
            let factor = (1.0 / keep) as f32;
            Some(SampleDrop { keeps, factor, leave_out: B::SKIPS_DROPPED_SAMPLES, factors: None })
        };
        let blocks = rates
            .iter()
            .map(|&rate| match rate > 0.0 {
                true => BranchDrop { attn: draw(rate), mlp: draw(rate) },
                false => BranchDrop::default(),
            })
            .collect();
        Self { blocks, device: device.clone(), factors: OnceLock::new() }
    }

    /// The part of `count` samples from number `from` on: a rank's part of a batch.
    #[must_use]
    pub fn narrow(mut self, from: usize, count: usize) -> Self {
        for block in &mut self.blocks {
            for drop in block.attn.iter_mut().chain(&mut block.mlp) {
                drop.keeps = drop.keeps[from..from + count].to_vec();
            }
        }
        self.factors = OnceLock::new();
        self
    }

    /// The same, but with every branch computed for all samples and multiplied by 0 or `1/(1−p)`: the
    /// reference's form.
    #[must_use]
    pub fn multiplied(mut self) -> Self {
        for block in &mut self.blocks {
            block.attn.iter_mut().chain(&mut block.mlp).for_each(|drop| drop.leave_out = false);
        }
        self
    }

    /// The part of block number `index` in order of execution.
    pub fn block(&self, index: usize) -> BranchDrop<B> {
        let mut block = self.blocks.get(index).cloned().unwrap_or_default();
        for (branch, drop) in [&mut block.attn, &mut block.mlp].into_iter().enumerate() {
            if let Some(drop) = drop
                && !drop.leave_out
            {
                drop.factors = Some((self.factors(drop.keeps.len()), 2 * index + branch));
            }
        }
        block
    }

    /// Of all branches, `[2·blocks, B]`; 1 in those that drop nothing.
    fn factors(&self, batch: usize) -> Tensor<B, 2> {
        let factors = || {
            let branches = self.blocks.iter().flat_map(|block| [&block.attn, &block.mlp]);
            let values: Vec<f32> = branches
                .flat_map(|drop| match drop {
                    Some(drop) => drop.values().collect(),
                    None => vec![1.0; batch],
                })
                .collect();
            kernels::upload(TensorData::new(values, [2 * self.blocks.len(), batch]), &self.device)
        };
        self.factors.get_or_init(factors).clone()
    }
}

/// The samples that a branch is computed for, ascending.
pub(crate) struct KeptSamples(Option<Vec<usize>>);

impl KeptSamples {
    /// Their part of `x [B, ..]`.
    pub(crate) fn take<B: Backend>(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.0 {
            Some(kept) => kernels::gather_samples(x, kept),
            None => x,
        }
    }

    /// Their numbers in the batch; `None`: all.
    pub(crate) fn numbers(&self) -> Option<&[usize]> {
        self.0.as_deref()
    }
}

/// `x + factor⊙γ⊙branch`, where `branch` gives the branch of the samples it is given.
pub(crate) fn add_branch<B: Backend>(
    x: Tensor<B, 3>,
    gamma: &Option<Param<Tensor<B, 1>>>,
    drop: &Option<SampleDrop<B>>,
    branch: impl FnOnce(&KeptSamples) -> Tensor<B, 3>,
) -> Tensor<B, 3> {
    let scaled = |x: Tensor<B, 3>, branch: Tensor<B, 3>| match gamma {
        Some(gamma) => kernels::residual_scale(x, branch, gamma.val()),
        None => kernels::residual(x, branch),
    };
    let Some(drop) = drop else { return scaled(x, branch(&KeptSamples(None))) };
    if let Some((factors, row)) = &drop.factors {
        let branch = branch(&KeptSamples(None));
        // As a map of one channel, which a GPU multiplies without the framework's kernels.
        let ([batch, tokens, width], dtype) = (branch.dims(), branch.dtype());
        let factors = kernels::narrow(factors.clone(), 0, *row..row + 1).reshape([batch, 1, 1, 1]);
        let factors = if factors.dtype() == dtype { factors } else { factors.cast(dtype) };
        let branch = kernels::scale_channels(branch.reshape([batch, tokens, width, 1]), factors);
        return scaled(x, branch.reshape([batch, tokens, width]));
    }
    let kept: Vec<usize> = (0..drop.keeps.len()).filter(|&at| drop.keeps[at]).collect();
    if kept.is_empty() {
        return x; // The optimiser takes a missing gradient as zeros.
    }
    let gamma = match gamma {
        Some(gamma) => gamma.val(),
        None => Tensor::ones([x.dims()[2]], (&x.device(), x.dtype())),
    };
    let gamma = gamma.mul_scalar(drop.factor); // [D]
    if kept.len() == drop.keeps.len() {
        return kernels::residual_scale(x, branch(&KeptSamples(None)), gamma);
    }
    let branch = branch(&KeptSamples(Some(kept.clone())));
    kernels::scatter_add_samples(x, branch, gamma, &kept)
}
