//! A Vision Transformer's parameters, operations and memory.

use std::ops::{Add, Mul, Sub};

use beit2_kernels::Precision;

use crate::train::TrainConfig;
use crate::vit::{RelPosKind, VitConfig, relative_table_len};

/// One part of a model in training, for one image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Values that are trained.
    pub parameters: usize,
    /// Operations of the forward pass.
    pub flops: f64,
    /// What the backward pass needs of the forward pass.
    pub kept: Kept,
}

/// Values kept for a backward pass.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kept {
    /// In f32.
    pub values: f64,
    /// In the precision of the matmuls.
    pub operands: f64,
}

impl Kept {
    /// Their bytes.
    pub fn bytes(self, precision: Precision) -> f64 {
        let each = match precision {
            Precision::F32 => 4.0,
            Precision::Bf16 => 2.0,
        };
        4.0 * self.values + each * self.operands
    }
}

impl Add for Kept {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { values: self.values + other.values, operands: self.operands + other.operands }
    }
}

impl Sub for Kept {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + other * -1.0
    }
}

impl Mul<f64> for Kept {
    type Output = Self;

    fn mul(self, times: f64) -> Self {
        Self { values: times * self.values, operands: times * self.operands }
    }
}

/// A frozen Vision Transformer beside a model in training: a teacher, or a tokenizer's encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrozenVit {
    /// Values of its weights.
    pub parameters: usize,
    /// Operations of a forward pass on one image.
    pub flops: f64,
    /// Width of its tokens.
    pub width: usize,
    /// Tokens of an image.
    pub tokens: usize,
    /// Side of its images, in pixels.
    pub side: usize,
}

impl FrozenVit {
    /// Of these sizes, with a head of `outputs` values for each patch; 0: none.
    pub fn of(vit: &VitConfig, outputs: usize) -> Self {
        let (tokens, width) = (vit.patches() + 1, vit.width);
        let head = if outputs > 0 { dense(width, outputs) } else { 0 };
        Self {
            parameters: trunk(vit).parameters + 2 * width + head,
            flops: trunk(vit).flops + matmul(vit.patches(), width, outputs),
            width,
            tokens,
            side: vit.image_size,
        }
    }

    /// Bytes of its packed weights.
    pub(super) fn fixed_bytes(&self, precision: Precision) -> f64 {
        Kept { values: 0.0, operands: self.parameters as f64 }.bytes(precision)
    }

    /// Bytes of a forward pass at its widest place, for one image.
    pub(super) fn bytes_per_image(&self) -> f64 {
        4.0 * (self.tokens * 4 * self.width) as f64
    }
}

/// Operations of a matmul.
pub fn matmul(rows: usize, inner: usize, columns: usize) -> f64 {
    2.0 * rows as f64 * inner as f64 * columns as f64
}

/// Parameters of a linear layer with a bias.
pub(super) fn dense(inputs: usize, outputs: usize) -> usize {
    inputs * outputs + outputs
}

/// Operations of the patch embedding.
pub(super) fn embedding_flops(vit: &VitConfig) -> f64 {
    matmul(vit.patches(), patch_values(vit), vit.width)
}

fn patch_values(vit: &VitConfig) -> usize {
    vit.in_chans * vit.patch_size * vit.patch_size
}

/// Bytes of the position biases that are spread over all pairs of tokens, and of their gradients; only of models that have a
/// table in every block are they worth counting.
pub(super) fn biases(vit: &VitConfig) -> f64 {
    let pairs = (vit.patches() + 1).pow(2) as f64;
    match vit.rel_pos_bias {
        RelPosKind::None => 0.0,
        RelPosKind::Shared => 4.0 * 3.0 * vit.heads as f64 * pairs,
        RelPosKind::PerBlock => 4.0 * (vit.heads * (vit.depth + 3)) as f64 * pairs,
    }
}

/// Embedding and blocks.
pub(super) fn trunk(vit: &VitConfig) -> Part {
    let (tokens, width) = (vit.patches() + 1, vit.width);
    let positions = if vit.abs_pos_emb { tokens * width } else { 0 };
    let table = match vit.rel_pos_bias {
        RelPosKind::Shared => table(vit),
        _ => 0,
    };
    let each = block(vit, tokens, tokens);
    let patches = (vit.patches() * (patch_values(vit) + 2 * width)) as f64;
    // Gradients inside one block, and the memory between buffers of rounded sizes: measured, whatever the depth.
    let gradients =
        Kept { values: (10 * tokens * width) as f64, operands: (5 * tokens * vit.mlp_hidden()) as f64 };
    // Dropped branches keep nothing; their rate rises from 0.
    let computed = 1.0 - vit.drop_path / 2.0;
    Part {
        parameters: width + positions + dense(patch_values(vit), width) + table + vit.depth * each.parameters,
        flops: embedding_flops(vit) + vit.depth as f64 * each.flops,
        kept: each.kept * (computed * vit.depth as f64) + gradients + Kept { values: patches, operands: 0.0 },
    }
}

/// What training keeps of embedding and blocks for its backward pass.
pub(super) fn kept(vit: &VitConfig, train: TrainConfig) -> Kept {
    let part = trunk(vit);
    if !train.recomputes_blocks() {
        return part.kept;
    }
    let each = block(vit, vit.patches() + 1, vit.patches() + 1).kept;
    let computed = 1.0 - vit.drop_path / 2.0;
    // Of every block its input, and all values of the one that is being computed again.
    part.kept - each * (computed * vit.depth as f64) + block_input(vit) * vit.depth as f64 + each
}

/// The input of a block.
pub(super) fn block_input(vit: &VitConfig) -> Kept {
    Kept { values: ((vit.patches() + 1) * vit.width) as f64, operands: 0.0 }
}

fn table(vit: &VitConfig) -> usize {
    relative_table_len(vit.grid(), vit.grid()) * vit.heads
}

/// A block over `tokens` of which `rows` are read afterwards.
pub(super) fn block(vit: &VitConfig, tokens: usize, rows: usize) -> Part {
    let (width, hidden) = (vit.width, vit.mlp_hidden());
    let scales = if vit.layer_scale_init > 0.0 { 2 * width } else { 0 };
    let biases = if vit.qkv_bias { 2 * width } else { 0 };
    let own_table = if vit.rel_pos_bias == RelPosKind::PerBlock { table(vit) } else { 0 };
    let parameters = scales
        + 4 * width
        + (3 * width * width + biases)
        + dense(width, width)
        + own_table
        + dense(width, hidden)
        + dense(hidden, width);
    let keys = matmul(tokens, width, 2 * width);
    let queries = matmul(rows, width, width);
    let attention = 2.0 * matmul(rows, width, tokens);
    let flops = keys + queries + attention + matmul(rows, width, width) + 2.0 * matmul(rows, width, hidden);
    // Input, normalised input, keys and values of all tokens; of the rows queries, the attention's output and the sum, and
    // the branches that are scaled; and in the matmuls' precision the MLP's normalised input, activations and slopes.
    let values = tokens * 4 * width + rows * (3 * width + scales + vit.heads);
    let operands = rows * (width + 2 * hidden);
    Part { parameters, flops, kept: Kept { values: values as f64, operands: operands as f64 } }
}
