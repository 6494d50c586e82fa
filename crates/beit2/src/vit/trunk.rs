//! Patch embedding, tokens, positions and blocks: what every model shares.

use beit2_kernels::{self as kernels, Backend, Precision, TokenChoice};
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};

use super::config::{RelPosKind, VitConfig};
use super::drop_path::KeptSamples;
use super::{
    Block, BlockOptions, DropPath, PatchEmbed, Pixels, PosResize, RelPosBias, resize_pos_embed, run_blocks,
};

/// The tokens of each sample that a caller wants, the same number R for every sample.
#[derive(Debug, Clone)]
pub struct TokenSubset<B: Backend> {
    local: Tensor<B, 1, Int>, // [B·R] into [T]
    per_sample: usize,
}

impl<B: Backend> TokenSubset<B> {
    /// From token indices, `per_sample` of each sample in turn, none of them twice.
    ///
    /// # Panics
    /// If a sample has a token twice: a gradient would be wrong without a word.
    pub fn new(indices: &[u32], per_sample: usize, device: &B::Device) -> Self {
        Self::sent(kernels::upload_ints(Self::values(indices, per_sample), device), per_sample)
    }

    /// What is sent for a subset, to be sent with other values.
    ///
    /// # Panics
    /// As [`TokenSubset::new`].
    pub(crate) fn values(indices: &[u32], per_sample: usize) -> TensorData {
        let mut taken = Vec::new();
        for (at, &index) in indices.iter().enumerate() {
            let (sample, index) = (at / per_sample.max(1), index as usize);
            if taken.len() <= index {
                taken.resize(index + 1, usize::MAX);
            }
            assert!(taken[index] != sample, "a subset of tokens has token {index} of sample {sample} twice");
            taken[index] = sample;
        }
        let local: Vec<i32> = indices.iter().map(|&i| i as i32).collect();
        let count = local.len();
        TensorData::new(local, [count])
    }

    /// From [`TokenSubset::values`] on the device.
    pub(crate) fn sent(local: Tensor<B, 1, Int>, per_sample: usize) -> Self {
        Self { local, per_sample }
    }

    /// Tokens per sample R.
    pub fn per_sample(&self) -> usize {
        self.per_sample
    }

    /// The same subset on the backend that records gradients.
    pub fn record<A>(self) -> TokenSubset<A>
    where
        A: beit2_kernels::AutodiffBackend<InnerBackend = B>,
    {
        TokenSubset { local: Tensor::from_inner(self.local), per_sample: self.per_sample }
    }

    /// The subset of the kept samples.
    pub(crate) fn of_samples(&self, kept: &KeptSamples) -> Self {
        let Some(numbers) = kept.numbers() else {
            return self.clone();
        };
        let (count, per_sample) = (numbers.len(), self.per_sample);
        let kept: Vec<i32> = numbers.iter().map(|&number| number as i32).collect();
        let kept = Tensor::<B, 1, Int>::from_data(TensorData::new(kept, [count]), &self.local.device());
        let batch = self.local.dims()[0] / per_sample.max(1);
        let local = self.local.clone().reshape([batch, per_sample]).select(0, kept); // [K, R]
        Self { local: local.reshape([-1]), per_sample }
    }

    /// `[B, T, D]` → `[B, R, D]`.
    pub fn gather(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        kernels::gather_tokens(x, self.choice())
    }

    /// The same, as the operations take it.
    pub(super) fn choice(&self) -> TokenChoice<B> {
        TokenChoice { local: self.local.clone().into_primitive(), per_sample: self.per_sample }
    }
}

/// Patch embedding, CLS token, positions, blocks.
#[derive(Module, Debug)]
pub struct Trunk<B: burn::tensor::backend::Backend> {
    /// `[1, 1, D]`.
    pub cls_token: Param<Tensor<B, 3>>,
    /// `[1, N+1, D]`.
    pub pos_embed: Option<Param<Tensor<B, 3>>>,
    /// Patch projection.
    pub patch_embed: PatchEmbed<B>,
    /// The table that all blocks share, in pretraining models.
    pub rel_pos_bias: Option<RelPosBias<B>>,
    /// The blocks.
    pub blocks: Vec<Block<B>>,
}

impl<B: Backend> Trunk<B> {
    /// A trunk of zeros with these sizes.
    pub fn new(config: &VitConfig, device: &B::Device) -> Self {
        let grid = config.grid();
        Self {
            cls_token: Param::from_tensor(Tensor::zeros([1, 1, config.width], device)),
            pos_embed: config
                .abs_pos_emb
                .then(|| Param::from_tensor(Tensor::zeros([1, config.patches() + 1, config.width], device))),
            patch_embed: PatchEmbed::new(config.in_chans, config.patch_size, config.width, true, device),
            rel_pos_bias: (config.rel_pos_bias == RelPosKind::Shared)
                .then(|| RelPosBias::new(grid, grid, config.heads, device)),
            blocks: blocks(config, device),
        }
    }

    /// Runs the matmuls in `precision` from now on.
    pub fn set_precision(&mut self, precision: Precision) {
        self.patch_embed.set_precision(precision);
        self.blocks.iter_mut().for_each(|block| block.set_precision(precision));
    }

    /// Makes freezing round the blocks' weights to 8-bit integers ([`Block::set_int8`]).
    pub fn set_int8(&mut self) {
        self.blocks.iter_mut().for_each(Block::set_int8);
    }

    /// For a model whose weights do not change any more ([`Linear::freeze`](super::Linear::freeze)): weights are packed, and
    /// position biases spread over the pairs of tokens once, unless that would take much memory.
    #[must_use]
    pub fn freeze(self) -> Self {
        let mut trunk = self.freeze_matmuls();
        // Where weights stay, the tables stay with them: such a model must not give old biases to new weights.
        if !trunk.blocks.iter().all(|block| block.attn.qkv.packed().is_some()) {
            return trunk;
        }
        let tables = trunk.blocks.iter_mut().filter_map(|block| block.attn.rel_pos.as_mut());
        tables.chain(&mut trunk.rel_pos_bias).for_each(RelPosBias::freeze);
        trunk
    }

    /// [`Trunk::freeze`] without the biases, which then serve other grids.
    #[must_use]
    pub(crate) fn freeze_matmuls(self) -> Self {
        let blocks = self.blocks.into_iter().map(Block::freeze).collect();
        Self { patch_embed: self.patch_embed.freeze(), blocks, ..self }
    }

    /// The shared bias `[1, H, N+1, N+1]`, computed once per forward pass.
    pub fn shared_bias(&self) -> Option<Tensor<B, 4>> {
        self.rel_pos_bias.as_ref().map(RelPosBias::forward)
    }

    /// Images to tokens.
    ///
    /// # Shapes
    /// `x [B, C, H, W]`, or its patches; `mask`: 1 where a patch is replaced, `[B, N, 1]`, with the token to put there
    /// `[1, 1, D]` → `[B, N+1, D]`, CLS first.
    pub fn embed(&self, x: impl Into<Pixels<B>>, mask: Option<(Tensor<B, 3>, Tensor<B, 3>)>) -> Tensor<B, 3> {
        let (patches, [rows, cols]) = self.patch_embed.forward(x.into());
        let positions = self
            .pos_embed
            .as_ref()
            .map(|positions| resize_pos_embed(positions.val(), rows, cols, PosResize::ByPaddedScale));
        kernels::embed_tokens(patches, self.cls_token.val(), mask, positions)
    }

    /// All tokens of unmasked images `[B, C, H, W]` after the first `layer` blocks, un-normalised, `[B, N+1, D]`; after
    /// none of them they are the patch embedding, with CLS and positions.
    pub fn tokens_after(&self, x: Tensor<B, 4>, layer: usize) -> Tensor<B, 3> {
        let bias = self.shared_bias();
        self.run(self.embed(x, None), 0..layer, None, bias.as_ref(), &DropPath::none())
    }

    /// Runs blocks `range` over `x [B, T, D]`; see [`run_blocks`] for the subset.
    pub fn run(
        &self,
        x: Tensor<B, 3>,
        range: std::ops::Range<usize>,
        subset: Option<&TokenSubset<B>>,
        bias: Option<&Tensor<B, 4>>,
        drop: &DropPath<B>,
    ) -> Tensor<B, 3> {
        let first = range.start;
        run_blocks(&self.blocks[range], x, subset, bias, drop, first)
    }
}

/// Blocks of zeros, with one position index among them.
fn blocks<B: Backend>(config: &VitConfig, device: &B::Device) -> Vec<Block<B>> {
    let mut blocks: Vec<Block<B>> = Vec::with_capacity(config.depth);
    for _ in 0..config.depth {
        let mut block = Block::new(block_options(config), device);
        let first = blocks.first().and_then(|first| first.attn.rel_pos.as_ref());
        if let (Some(own), Some(first)) = (&mut block.attn.rel_pos, first) {
            own.share_index(first);
        }
        blocks.push(block);
    }
    blocks
}

pub(crate) fn block_options(config: &VitConfig) -> BlockOptions {
    BlockOptions {
        width: config.width,
        heads: config.heads,
        mlp_hidden: config.mlp_hidden(),
        qkv_bias: config.qkv_bias,
        layer_scale: config.layer_scale_init > 0.0,
        norm_eps: config.norm_eps,
        own_table: (config.rel_pos_bias == RelPosKind::PerBlock).then(|| (config.grid(), config.grid())),
    }
}
