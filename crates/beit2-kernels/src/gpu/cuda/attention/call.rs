//! Launches of the attention kernels: `kernels/attention.cu` for bf16, `kernels/attention_f32.cu` for f32.

use super::super::{Arg, Element, Ptr, Queue};

/// Tokens of a tile in shared memory and rows of a warp, bf16.
const TILE: usize = 64;
const WARP_ROWS: usize = 16;
/// Tokens of a tile, f32.
const SIDE: usize = 32;
/// The head width of the bf16 kernels, and the widest of the f32 kernels.
const HEAD: usize = 64;
const WIDEST: usize = 128;
/// Dynamic shared memory of the bf16 kernels: two stages of two tiles, with what is known about the queries, or with
/// the queries of a tile of the bias.
const SHARED: usize = 4 * TILE * 2 * (HEAD + 8);
const SHARED_KEYS: usize = SHARED + 2 * TILE * 16;
const SHARED_BIAS: usize = SHARED + TILE * 4;
/// Blocks that the gradient of the bias is spread over, and slices of the batch at most. Not the card's: results do
/// not depend on it.
const BLOCKS: usize = 1056;
const SLICES: usize = 16;
/// Of a grid's second and third side, from CUDA.
const GRID: usize = 65_535;

/// Where the tokens of a tensor lie: element `i` of head `h` of token `t` of sample `b` is at
/// `b·sample + t·row + h·depth + i`, in elements. The address and both distances are multiples of 16 bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tokens {
    pub at: Ptr,
    /// From one sample to the next.
    pub sample: usize,
    /// From one token to the next.
    pub row: usize,
}

impl Tokens {
    /// Columns `part·width ..` of a contiguous tensor `[B, tokens, parts·width]`.
    pub(crate) fn part(
        at: Ptr,
        element: Element,
        tokens: usize,
        width: usize,
        (part, parts): (usize, usize),
    ) -> Self {
        let row = parts * width;
        Self { at: at.offset(part * width, element), sample: tokens * row, row }
    }

    /// A contiguous tensor `[B, tokens, width]`.
    pub(crate) fn whole(at: Ptr, tokens: usize, width: usize) -> Self {
        Self { at, sample: tokens * width, row: width }
    }
}

/// The form of a bias `[1 or B, H, rows, keys]` in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BiasLayout {
    /// One for the whole batch. Else one for each sample, with one row for each query.
    pub shared: bool,
    /// Rows of a head: the queries, or all tokens if `query_rows` says which row a query reads.
    pub rows: usize,
    /// From one row to the next, in elements. With an even pitch and an address that is a multiple of 8 bytes it is read
    /// in pairs; what lies between the keys and the next row is never used.
    pub pitch: usize,
}

/// The sizes of one attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AttentionSizes {
    pub batch: usize,
    pub heads: usize,
    /// Width of a head.
    pub depth: usize,
    /// Queries of a sample R.
    pub queries: usize,
    /// Keys and values of a sample T.
    pub keys: usize,
    /// Factor on q·k; positive.
    pub scale: f32,
    /// The type of q, k, v and of the output's gradient.
    pub operands: Element,
    pub bias: Option<BiasLayout>,
}

/// One forward pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionCall {
    pub sizes: AttentionSizes,
    pub q: Tokens,
    pub k: Tokens,
    pub v: Tokens,
    /// Of the layout in `sizes`; there if that is.
    pub bias: Option<Ptr>,
    /// `[B, R]` int32, each from 0 to rows − 1: which row of a shared bias each query reads. The rows of a sample's queries
    /// differ. Without it query r reads row r.
    pub query_rows: Option<Ptr>,
    /// Written by `forward`, read by `backward`.
    pub output: Tokens,
    /// f32 if the operands are.
    pub output_element: Element,
    /// `[B, H, R]` f32, the log of each row's softmax sum: written by `forward`, read by `backward`.
    pub lse: Ptr,
}

/// One backward pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionBackwardCall {
    pub forward: AttentionCall,
    /// Of the output, in the operands' type.
    pub grad: Tokens,
    pub dq: Tokens,
    pub dk: Tokens,
    pub dv: Tokens,
    /// The type of dq, dk and dv; f32 if the operands are.
    pub gradients: Element,
    /// Without it that gradient is not computed.
    pub dbias: Option<BiasGradient>,
    /// [`AttentionSizes::scratch`] bytes.
    pub scratch: Ptr,
}

/// Where the gradient of the bias goes, of one backward pass or of several that read one bias.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BiasGradient {
    /// Like the bias, with the same pitch; every row is written.
    pub to: Ptr,
    /// [`AttentionSizes::parts_bytes`] bytes, which hold what the passes before found.
    pub parts: Ptr,
    /// Whether this is the first of the passes, and the last: the others add to it, and that one leaves the sum.
    pub first: bool,
    pub last: bool,
}

impl BiasGradient {
    /// Of one backward pass.
    pub(crate) fn alone(to: Ptr, parts: Ptr) -> Self {
        Self { to, parts, first: true, last: true }
    }
}

impl AttentionSizes {
    /// Whether the kernels can do it: head width 64 in bf16, any multiple of 8 up to 128 in f32.
    pub(crate) fn is_supported(&self) -> bool {
        let depth = match self.operands {
            Element::Bf16 => self.depth == HEAD,
            Element::F32 => self.depth.is_multiple_of(8) && (8..=WIDEST).contains(&self.depth),
        };
        let grid = self.batch <= GRID && self.heads * self.parts().0.max(1) <= GRID;
        depth && self.scale > 0.0 && self.queries > 0 && self.keys > 0 && grid
    }

    /// Bytes that a backward pass needs beside its tensors: what the first kernel tells the others of each query.
    pub(crate) fn scratch(&self) -> usize {
        self.batch * self.heads * self.queries.next_multiple_of(TILE) * 16
    }

    /// Bytes that the gradient of the bias needs beside itself.
    pub(crate) fn parts_bytes(&self) -> usize {
        if self.parts_are_summed() { self.parts().0 * self.bias_bytes() } else { 0 }
    }

    /// One gradient of the bias.
    fn bias_bytes(&self) -> usize {
        self.bias.map_or(0, |bias| 4 * self.heads * bias.rows * bias.pitch)
    }

    /// Parts of the gradient of the bias, and samples of each.
    fn parts(&self) -> (usize, usize) {
        let tile = self.bias_tile();
        match self.bias {
            Some(bias) if bias.shared => {
                let tiles = self.heads * bias.rows.div_ceil(tile) * self.keys.div_ceil(tile);
                let parts = BLOCKS.div_ceil(tiles.max(1)).min(SLICES).clamp(1, self.batch.max(1));
                let slice = self.batch.div_ceil(parts).max(1);
                (self.batch.div_ceil(slice), slice)
            }
            _ => (self.batch, 1),
        }
    }

    fn parts_are_summed(&self) -> bool {
        self.bias.is_some_and(|bias| bias.shared) && self.parts().0 > 1
    }

    fn bias_tile(&self) -> usize {
        match self.operands {
            Element::Bf16 => TILE,
            Element::F32 => SIDE,
        }
    }

    /// Dynamic shared memory of an f32 kernel that holds `tiles` tiles of tokens and `scores` tiles of scores.
    fn shared_f32(&self, tiles: usize, scores: usize) -> usize {
        4 * SIDE * (tiles * (self.depth + 4) + scores * (SIDE + 4))
    }

    /// Blocks and threads for this many rows, of which a warp has 16 and a block at most `warps` times as many; as few
    /// blocks as possible, then as few warps.
    fn blocks(rows: usize, warps: usize) -> (u32, u32) {
        let groups = rows.div_ceil(WARP_ROWS);
        let blocks = groups.div_ceil(warps);
        (blocks as u32, 32 * groups.div_ceil(blocks) as u32)
    }

    /// A grid over rows, heads and samples.
    fn grid(&self, blocks: u32) -> [u32; 3] {
        [blocks, self.heads as u32, self.batch as u32]
    }
}

/// Attention: writes the output and the log sums.
pub(crate) fn forward(queue: &mut Queue<'_>, call: &AttentionCall) {
    let s = &call.sizes;
    let argument = [argument(call, None, 1)];
    match s.operands {
        Element::Bf16 => {
            let (blocks, threads) = AttentionSizes::blocks(s.queries, 8);
            let grid = s.grid(blocks);
            queue.launch("attention_forward_bf16", grid, [threads, 1, 1], SHARED as u32, &argument);
        }
        Element::F32 => {
            let grid = s.grid(s.queries.div_ceil(SIDE) as u32);
            queue.launch("attention_forward_f32", grid, [128, 1, 1], s.shared_f32(2, 1) as u32, &argument);
        }
    }
}

/// Gradients of q, k, v and, if there is a place for it, of the bias.
pub(crate) fn backward(queue: &mut Queue<'_>, call: &AttentionBackwardCall) {
    let s = &call.forward.sizes;
    let (parts, slice) = s.parts();
    let argument = [argument(&call.forward, Some(call), slice)];
    let tile = s.bias_tile();
    let bias_grid = s.bias.map(|bias| {
        [s.keys.div_ceil(tile) as u32, bias.rows.div_ceil(tile) as u32, (s.heads * parts) as u32]
    });
    let bias_grid = call.dbias.and(bias_grid);
    match s.operands {
        Element::Bf16 => {
            let (blocks, threads) = AttentionSizes::blocks(s.queries, 8);
            let (grid, block) = (s.grid(blocks), [threads, 1, 1]);
            queue.launch("attention_queries_backward_bf16", grid, block, SHARED as u32, &argument);
            let (blocks, threads) = AttentionSizes::blocks(s.keys, 4);
            let (grid, block) = (s.grid(blocks), [threads, 1, 1]);
            queue.launch("attention_keys_backward_bf16", grid, block, SHARED_KEYS as u32, &argument);
            if let Some(grid) = bias_grid {
                let shared = SHARED_BIAS as u32;
                queue.launch("attention_bias_backward_bf16", grid, [128, 1, 1], shared, &argument);
            }
        }
        Element::F32 => {
            let (block, grid) = ([128, 1, 1], s.grid(s.queries.div_ceil(SIDE) as u32));
            let shared = s.shared_f32(4, 1) as u32;
            queue.launch("attention_queries_backward_f32", grid, block, shared, &argument);
            let (grid, shared) = (s.grid(s.keys.div_ceil(SIDE) as u32), s.shared_f32(4, 2) as u32);
            queue.launch("attention_keys_backward_f32", grid, block, shared, &argument);
            if let Some(grid) = bias_grid {
                let shared = (s.shared_f32(4, 0) + 4 * SIDE) as u32;
                queue.launch("attention_bias_backward_f32", grid, block, shared, &argument);
            }
        }
    }
    if let Some(dbias) = call.dbias.filter(|dbias| dbias.last && s.parts_are_summed()) {
        let count = s.bias_bytes() / 4;
        let [to, from] = [dbias.to, dbias.parts].map(Arg::Ptr);
        let arguments = [to, from, Arg::U64(count as u64), Arg::I32(parts as i32)];
        let grid = [count.div_ceil(256) as u32, 1, 1];
        queue.launch("attention_add_parts", grid, [256, 1, 1], 0, &arguments);
    }
}

/// `struct Attention` of `kernels/attention.cuh`, field by field.
fn argument(call: &AttentionCall, backward: Option<&AttentionBackwardCall>, slice: usize) -> Arg {
    let s = &call.sizes;
    let none = Tokens { at: Ptr(0), sample: 0, row: 0 };
    let null = |x: Option<Ptr>| x.unwrap_or(Ptr(0)).0;
    let (grad, dq, dk, dv) = backward.map_or((none, none, none, none), |b| (b.grad, b.dq, b.dk, b.dv));
    let rows = backward.map(|b| b.scratch);
    let dbias = backward.and_then(|b| b.dbias);
    let at = dbias.map(|dbias| if s.parts_are_summed() { dbias.parts } else { dbias.to });
    let bias = s.bias.unwrap_or(BiasLayout { shared: true, rows: 0, pitch: 0 });
    let bias_sample = if bias.shared { 0 } else { s.heads * bias.rows * bias.pitch };

    let mut bytes = Vec::with_capacity(264);
    let pointers = [call.q.at.0, call.k.at.0, call.v.at.0, call.output.at.0, call.lse.0, null(call.bias)];
    let more = [null(call.query_rows), grad.at.0, null(rows), dq.at.0, dk.at.0, dv.at.0, null(at)];
    let tokens = [call.q, call.k, call.v, call.output, grad, dq, dk, dv];
    let samples = tokens.iter().map(|x| x.sample as u64).chain([bias_sample as u64]);
    for value in pointers.into_iter().chain(more).chain(samples) {
        bytes.extend(value.to_le_bytes());
    }
    let sizes = [bias.pitch, bias.pitch, bias.rows, s.batch, s.heads, s.queries, s.keys, slice];
    for value in tokens.iter().map(|x| x.row).chain(sizes) {
        bytes.extend((value as i32).to_le_bytes());
    }
    bytes.extend(s.scale.to_le_bytes());
    let f32 = |element: Element| usize::from(element == Element::F32);
    let gradients = backward.map_or(Element::F32, |b| b.gradients);
    let add = usize::from(dbias.is_some_and(|dbias| !dbias.first));
    for value in [f32(call.output_element), f32(gradients), s.depth, add, 0] {
        bytes.extend((value as i32).to_le_bytes());
    }
    Arg::Bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(batch: usize, queries: usize, keys: usize, operands: Element, shared: bool) -> AttentionSizes {
        let bias = Some(BiasLayout { shared, rows: queries, pitch: keys });
        AttentionSizes { batch, heads: 12, depth: 64, queries, keys, scale: 0.125, operands, bias }
    }

    #[test]
    fn blocks_are_few_and_even() {
        let blocks = |rows, warps| AttentionSizes::blocks(rows, warps);
        assert_eq!(blocks(1, 8), (1, 32));
        assert_eq!(blocks(75, 8), (1, 160));
        assert_eq!(blocks(197, 8), (2, 224));
        assert_eq!(blocks(197, 4), (4, 128));
        assert_eq!(blocks(1025, 8), (9, 256));
    }

    /// What a base-size layer takes beside its tensors: 18 MB, whatever the batch of the bias's gradient.
    #[test]
    fn scratch_memory_does_not_grow_with_the_square_of_tokens_times_the_batch() {
        let base = sizes(128, 197, 197, Element::Bf16, true);
        let rows = 128 * 12 * 256 * 16;
        assert_eq!(base.parts(), (6, 22));
        assert_eq!((base.scratch(), base.parts_bytes()), (rows, 6 * 12 * 197 * 197 * 4));
        // Enough tiles: one part, which is the gradient itself.
        let large = sizes(128, 1025, 1025, Element::Bf16, true);
        assert_eq!(large.parts(), (1, 128));
        assert_eq!(large.parts_bytes(), 0);
        // A bias of each sample has a gradient of each sample.
        let each = sizes(3, 197, 197, Element::F32, false);
        assert_eq!(each.parts(), (3, 1));
        assert_eq!(each.parts_bytes(), 0);
    }

    #[test]
    fn widths_that_the_kernels_have() {
        let with =
            |depth, operands| AttentionSizes { depth, ..sizes(1, 3, 3, operands, true) }.is_supported();
        assert!(with(64, Element::Bf16) && !with(32, Element::Bf16));
        assert!(with(8, Element::F32) && with(128, Element::F32));
        assert!(!with(5, Element::F32) && !with(136, Element::F32));
    }

    #[test]
    fn the_argument_has_the_size_of_the_structure() {
        let tokens = Tokens::whole(Ptr(0), 3, 64);
        let call = AttentionCall {
            sizes: sizes(2, 3, 3, Element::Bf16, true),
            q: tokens,
            k: tokens,
            v: tokens,
            bias: None,
            query_rows: None,
            output: tokens,
            output_element: Element::Bf16,
            lse: Ptr(0),
        };
        let Arg::Bytes(bytes) = argument(&call, None, 1) else { panic!("not a structure") };
        assert_eq!(bytes.len(), 264);
    }
}
