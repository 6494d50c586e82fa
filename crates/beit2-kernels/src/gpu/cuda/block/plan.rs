//! Where the values of blocks lie: offsets in bytes into a few pieces of memory, from the sizes alone.
//!
//! What a forward pass keeps, in bytes for each of the n rows of width D with F hidden units (F = 4D in brackets):
//!
//! | kept | bytes | why |
//! |---|---|---|
//! | x, f32 | 4D | the input itself; the block before keeps no copy of its output |
//! | norms' means and deviations, f32 | 16 | |
//! | norm outputs, bf16 | 2D + 2D | operands of weight gradients; made again from x they cost as much traffic as they take |
//! | q, k, v, bf16 | 6D | |
//! | attention output, bf16, and log sums, f32 | 2D + 4H | |
//! | x after attention, f32 | 4D | norm 2 is differentiated at it |
//! | hidden values before GELU, bf16 | 2F (8D) | |
//! | not kept: GELU's output, bf16 | 2F (8D) | the pass that differentiates GELU makes it again, for one more write |
//! | not kept: both branches, bf16 | 2D + 2D | only γ's gradient would need them; it comes from the weights' |
//!
//! 28D bytes and the input's 4D: 7.2 GB for 12 blocks of width 768 and 128 images of 197 tokens. The parameters as
//! matmuls read them are kept too, 14 MB a block.

use super::super::attention::{AttentionSizes, BiasLayout};
use super::super::{Element, Ptr, columns, norm};
use crate::block::BlockSizes;

/// Pieces begin at multiples of this.
const ALIGNMENT: usize = 256;

/// Hands out places one after the other.
#[derive(Default)]
struct Places {
    end: usize,
}

impl Places {
    fn bytes(&mut self, bytes: usize) -> usize {
        let start = self.end;
        self.end += bytes.next_multiple_of(ALIGNMENT);
        start
    }

    fn f32(&mut self, count: usize) -> usize {
        self.bytes(4 * count)
    }

    fn bf16(&mut self, count: usize) -> usize {
        self.bytes(2 * count)
    }
}

/// The parameters in the form that matmuls and norms read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed {
    /// Scale and shift, f32.
    pub norm1: [usize; 2],
    pub norm2: [usize; 2],
    /// Weight and bias in bf16, the last two times γ.
    pub qkv: [usize; 2],
    pub proj: [usize; 2],
    pub fc1: [usize; 2],
    pub fc2: [usize; 2],
    pub bytes: usize,
}

/// The values of a forward pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Values {
    pub statistics1: [usize; 2],
    pub norm1: usize,
    /// With chosen tokens: their rows of norm 1's output, and of x in f32.
    pub chosen: [usize; 2],
    /// q, k and v side by side; with chosen tokens their q, and k and v of all tokens in `kv`.
    pub qkv: usize,
    pub kv: usize,
    pub attended: usize,
    pub lse: usize,
    /// x after attention, f32. Not used where no backward pass follows: it then takes the place of x, or of the result.
    pub middle: usize,
    pub statistics2: [usize; 2],
    pub norm2: usize,
    pub hidden: usize,
    /// Bytes of all these.
    pub kept: usize,
    /// In a second piece: what no backward pass reads.
    pub branch: usize,
    pub activated: usize,
    /// Bytes of that.
    pub passing: usize,
}

/// Memory for the middle of a backward pass of one block; the block before it uses the same again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gradients {
    /// Of a branch, `[n, D]` bf16. It lies first, whatever the sizes: the pass that ends a block leaves there that of the
    /// branch of all tokens with which the block before begins.
    pub branch: usize,
    /// Of hidden values, `[n, F]`, and later of q, k and v as [`Values`] has them.
    pub wide: usize,
    /// With chosen tokens: where `kv` begins in `wide`; gradients of their rows of norm 1's output, and of x, f32.
    pub kv: usize,
    pub chosen: [usize; 2],
    /// GELU's output, `[n, F]`.
    pub activated: usize,
    /// Of norm outputs and of the attention's, `[n, D]`.
    pub narrow: usize,
    pub attention: usize,
    pub bytes: usize,
}

/// Sums over rows, which each block of a run keeps until all are finished at its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums {
    /// Column sums of the gradient of q, k and v, `[3D]` f32.
    pub qkv: usize,
    /// Partial sums: of fc2's bias, where no norm follows in the run; fc1's bias; norm 2 and proj's bias; norm 1 and the
    /// bias of the fc2 before it.
    pub fc2: usize,
    pub fc1: usize,
    pub norm2: usize,
    pub norm1: usize,
    pub bytes: usize,
}

/// All offsets of a block of some sizes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub sizes: BlockSizes,
    /// Tokens of a sample that the block is computed for, if not for all.
    pub chosen: Option<usize>,
    pub attention: AttentionSizes,
    pub packed: Packed,
    /// Of a forward pass whose backward pass follows, and of one alone.
    pub values: Values,
    pub alone: Values,
}

impl Plan {
    pub fn new(sizes: BlockSizes, chosen: Option<usize>, scale: f64, bias: bool) -> Self {
        let layout = BiasLayout { shared: true, rows: sizes.tokens, pitch: sizes.tokens };
        let attention = AttentionSizes {
            batch: sizes.batch,
            heads: sizes.heads,
            depth: sizes.width / sizes.heads.max(1),
            queries: chosen.unwrap_or(sizes.tokens),
            keys: sizes.tokens,
            scale: scale as f32,
            operands: Element::Bf16,
            bias: bias.then_some(layout),
        };
        let values = Values::kept(&sizes, chosen);
        // What chosen tokens leave for reuse is not worth another layout.
        let alone = if chosen.is_some() { values } else { Values::alone(&sizes) };
        Self { sizes, chosen, attention, packed: Packed::new(&sizes), values, alone }
    }

    /// Whether all kernels take these sizes.
    pub fn is_supported(&self) -> bool {
        let BlockSizes { width, hidden, heads, .. } = self.sizes;
        columns::fits(width)
            && hidden > 0
            && hidden.is_multiple_of(8)
            && width == heads * self.attention.depth
            && self.attention.is_supported()
    }

    /// Tokens of a sample that the block is computed for.
    pub fn queries(&self) -> usize {
        self.attention.queries
    }

    /// Rows that the block is computed for.
    pub fn rows(&self) -> usize {
        self.sizes.batch * self.queries()
    }

    /// How one pass stands in a run where `keep` says whether a backward pass follows.
    pub fn places(&self, keep: bool) -> &Values {
        if keep { &self.values } else { &self.alone }
    }

    pub fn gradients(&self) -> Gradients {
        let BlockSizes { width, hidden, .. } = self.sizes;
        let (all, n) = (self.sizes.rows(), self.rows());
        let mut places = Places::default();
        let branch = places.bf16(all * width);
        let kv = (2 * n * width).next_multiple_of(ALIGNMENT);
        let wide = match self.chosen {
            Some(_) => places.bytes((kv + 4 * all * width).max(2 * n * hidden)),
            None => places.bf16(n * hidden.max(3 * width)),
        };
        let activated = places.bf16(n * hidden);
        let narrow = places.bf16(all * width);
        let chosen = match self.chosen {
            Some(_) => [places.bf16(n * width), places.f32(n * width)],
            None => [0; 2],
        };
        let attention = places.bytes(self.attention.scratch());
        Gradients { branch, wide, kv, chosen, activated, narrow, attention, bytes: places.end }
    }

    /// Memory for the gradient of the bias, with what keeps the next piece in its place.
    pub fn parts_bytes(&self) -> usize {
        self.attention.parts_bytes().next_multiple_of(ALIGNMENT)
    }

    pub fn sums(&self) -> Sums {
        let BlockSizes { width, hidden, .. } = self.sizes;
        let (all, n) = (self.sizes.rows(), self.rows());
        let mut places = Places::default();
        // Three vectors a block instead of the norm's two.
        let norm = |rows| norm::backward_scratch(rows, width) * 3 / 2;
        Sums {
            qkv: places.f32(3 * width),
            fc2: places.bytes(columns::scratch(n, width)),
            fc1: places.bytes(columns::scratch(n, hidden)),
            norm2: places.bytes(norm(n)),
            norm1: places.bytes(norm(all)),
            bytes: places.end,
        }
    }
}

/// A run of blocks of the same sizes, the last perhaps for chosen tokens alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunPlan {
    pub blocks: usize,
    /// Of every block but the last.
    inner: Plan,
    pub last: Plan,
}

impl RunPlan {
    pub fn new(blocks: usize, sizes: BlockSizes, chosen: Option<usize>, scale: f64, bias: bool) -> Self {
        let plan = |chosen| Plan::new(sizes, chosen, scale, bias);
        Self { blocks, inner: plan(None), last: plan(chosen) }
    }

    /// The plan of block `number`.
    pub fn of(&self, number: usize) -> &Plan {
        if number + 1 == self.blocks { &self.last } else { &self.inner }
    }

    /// The largest of something that blocks take one after the other.
    pub fn most(&self, of: impl Fn(&Plan) -> usize) -> usize {
        // A run of one has no inner block.
        of(self.of(0)).max(of(&self.last))
    }
}

impl Packed {
    fn new(&BlockSizes { width, hidden, .. }: &BlockSizes) -> Self {
        let mut places = Places::default();
        let [norm1, norm2] = [0, 1].map(|_| [places.f32(width), places.f32(width)]);
        let mut layer = |outputs, inputs| [places.bf16(outputs * inputs), places.bf16(outputs)];
        let (qkv, proj) = (layer(3 * width, width), layer(width, width));
        let (fc1, fc2) = (layer(hidden, width), layer(width, hidden));
        Self { norm1, norm2, qkv, proj, fc1, fc2, bytes: places.end }
    }
}

impl Values {
    fn kept(sizes: &BlockSizes, chosen: Option<usize>) -> Self {
        let (all, width, hidden) = (sizes.rows(), sizes.width, sizes.hidden);
        let n = sizes.batch * chosen.unwrap_or(sizes.tokens);
        let mut places = Places::default();
        let (statistics1, statistics2) = ([places.f32(all), places.f32(all)], [places.f32(n), places.f32(n)]);
        let norm1 = places.bf16(all * width);
        let (chosen, qkv, kv) = match chosen {
            Some(_) => {
                let chosen = [places.bf16(n * width), places.f32(n * width)];
                (chosen, places.bf16(n * width), places.bf16(all * 2 * width))
            }
            None => ([0; 2], places.bf16(n * 3 * width), 0),
        };
        let attended = places.bf16(n * width);
        let lse = places.f32(n * sizes.heads);
        let middle = places.f32(n * width);
        let norm2 = places.bf16(n * width);
        let hidden_values = places.bf16(n * hidden);
        let mut passing = Places::default();
        Self {
            statistics1,
            norm1,
            chosen,
            qkv,
            kv,
            attended,
            lse,
            middle,
            statistics2,
            norm2,
            hidden: hidden_values,
            kept: places.end,
            branch: passing.bf16(n * width),
            activated: passing.bf16(n * hidden),
            passing: passing.end,
        }
    }

    /// What is read for the last time makes place for what comes next.
    fn alone(sizes: &BlockSizes) -> Self {
        let (n, width, hidden) = (sizes.rows(), sizes.width, sizes.hidden);
        let mut places = Places::default();
        let narrow = places.bf16(n * width);
        let wide = places.bf16(n * hidden.max(3 * width));
        let lse = places.f32(n * sizes.heads);
        let mut passing = Places::default();
        Self {
            statistics1: [0; 2],
            norm1: narrow,
            chosen: [0; 2],
            qkv: wide,
            kv: 0,
            attended: narrow,
            lse,
            middle: 0,
            statistics2: [0; 2],
            norm2: narrow,
            hidden: wide,
            kept: places.end,
            branch: passing.bf16(n * width),
            activated: passing.bf16(n * hidden),
            passing: passing.end,
        }
    }
}

/// The address `offset` bytes further on.
pub(super) fn at(base: Ptr, offset: usize) -> Ptr {
    Ptr(base.0 + offset as u64)
}
