//! Attention on the CPU, one head of one sample at a time.
//!
//! Queries are taken in blocks so that a block's logits stay in the second-level cache. Queries,
//! keys and values are read where they lie, also as parts of a fused projection, and results are
//! written where they belong.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::AttentionSpec;
use super::softmax::{backward_rows, softmax_rows};
use crate::flex::{owned, tensor, view};
use crate::interrupt::Rest;
use crate::matmul::{MatmulOptions, matmul, matmul_at};
use crate::matrix::{Accumulate, Matrix};
use crate::memory::Buffer;
use crate::rows::Rows;

/// Logits of a block: 256 KiB.
const BLOCK: usize = 64 * 1024;

/// Partial bias gradients, in elements: 16 MiB, unless one per head needs more.
const PARTIALS: usize = 4 << 20;

/// Dimensions and numbers of one call.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    /// Width of one head.
    pub(crate) depth: usize,
    pub(crate) scale: f32,
    /// How a head's matmuls are computed: on its own thread.
    pub(crate) how: MatmulOptions,
}

impl Shape {
    pub(crate) fn new(
        batch: usize,
        queries: usize,
        keys: usize,
        width: usize,
        AttentionSpec { heads, scale, precision }: AttentionSpec,
    ) -> Self {
        let (depth, scale) = (width / heads, scale as f32);
        Self { batch, queries, keys, heads, depth, scale, how: MatmulOptions::alone(precision) }
    }

    /// Width of all heads.
    pub(crate) fn width(&self) -> usize {
        self.heads * self.depth
    }

    fn block(&self) -> usize {
        (BLOCK / self.keys.max(1)).clamp(1, self.queries.max(1))
    }
}

/// `[B, T, D]` inside a slice: where a sample, a row and the first column are.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    data: &'a [f32],
    sample: usize,
    row: usize,
    first: usize,
}

impl<'a> Tokens<'a> {
    /// Columns from `first` of a contiguous `[B, T, row]`.
    pub(crate) fn part(data: &'a [f32], tokens: usize, row: usize, first: usize) -> Self {
        Self { data, sample: tokens * row, row, first }
    }

    /// Rows `from..from + n` of head `h` of sample `b`.
    fn head(&self, s: &Shape, b: usize, h: usize, from: usize, n: usize) -> Matrix<'a> {
        let start = b * self.sample + from * self.row + self.first + h * s.depth;
        Matrix::new(&self.data[start..], n, s.depth, self.row)
    }
}

/// Runs `f` on a tensor `[B, T, D]`, copied first if its rows are not plain.
pub(crate) fn with_tokens<R>(x: &FlexTensor, f: impl FnOnce(Tokens<'_>) -> R) -> R {
    let strides = x.layout().strides();
    if strides[2] == 1 && strides[1] > 0 && strides[0] > 0 {
        return f(Tokens {
            data: x.storage::<f32>(),
            sample: strides[0] as usize,
            row: strides[1] as usize,
            first: x.layout().start_offset(),
        });
    }
    let copy = owned(x.to_contiguous());
    let dims = copy.layout().shape();
    f(Tokens::part(view(&copy), dims[1], dims[2], 0))
}

/// A result `[B, T, row]` of which tasks write different rows and columns.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    data: *mut f32,
    len: usize,
    sample: usize,
    row: usize,
    first: usize,
}

// SAFETY: only `Target::write` and `scale` touch the memory; their callers keep to places of their own.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// Columns from `first` of a contiguous `[B, tokens, row]`.
    pub(crate) fn part(data: &mut [f32], tokens: usize, row: usize, first: usize) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), sample: tokens * row, row, first }
    }

    /// First element of rows `from..from + n` of head `h` of sample `b`.
    fn head(&self, s: &Shape, b: usize, h: usize, from: usize, n: usize) -> *mut f32 {
        let start = b * self.sample + from * self.row + self.first + h * s.depth;
        assert!(n == 0 || start + (n - 1) * self.row + s.depth <= self.len);
        // SAFETY: inside the allocation, as just checked.
        unsafe { self.data.add(start) }
    }
}

/// Bias `[1 or B, H, Tq, T]`.
#[derive(Clone, Copy)]
struct Bias<'a> {
    data: &'a [f32],
    shared: bool,
}

impl<'a> Bias<'a> {
    fn of(bias: Option<&'a FlexTensor>) -> Option<Self> {
        bias.map(|bias| Self { data: view(bias), shared: bias.layout().shape()[0] == 1 })
    }

    fn rows(&self, s: &Shape, b: usize, h: usize, from: usize, n: usize) -> &'a [f32] {
        let b = if self.shared { 0 } else { b };
        let start = ((b * s.heads + h) * s.queries + from) * s.keys;
        &self.data[start..start + n * s.keys]
    }
}

/// → output `[B, Tq, D]`, log of the softmax sums `[B, H, Tq]`.
pub(crate) fn forward(
    q: Tokens<'_>,
    k: Tokens<'_>,
    v: Tokens<'_>,
    bias: Option<FlexTensor>,
    s: Shape,
) -> (FlexTensor, FlexTensor) {
    let bias = bias.map(owned);
    let bias = Bias::of(bias.as_ref());
    let mut y = Buffer::any(s.batch * s.queries * s.width());
    let mut lse = Buffer::any(s.batch * s.heads * s.queries);
    let out = Target::part(&mut y, s.queries, s.width(), 0);
    let block = s.block();
    let rest = Rest::here();
    lse.par_chunks_mut(s.queries.max(1)).enumerate().for_each_init(
        || (vec![0.0; block * s.keys], vec![0.0; block]),
        |(logits, inverse), (task, lse)| {
            if rest.is_left_out() {
                return;
            }
            let (b, h) = (task / s.heads, task % s.heads);
            let keys = k.head(&s, b, h, 0, s.keys).transposed();
            let values = v.head(&s, b, h, 0, s.keys);
            for from in (0..s.queries).step_by(block) {
                let n = block.min(s.queries - from);
                let logits = &mut logits[..n * s.keys];
                let queries = q.head(&s, b, h, from, n);
                matmul(logits, s.keys, Accumulate::Zero, s.scale, queries, keys, s.how);
                let bias = bias.map(|bias| bias.rows(&s, b, h, from, n));
                softmax_rows(logits, bias, &mut lse[from..from + n], inverse);
                let weights = Matrix::new(logits, n, s.keys, s.keys);
                let place = out.head(&s, b, h, from, n);
                // SAFETY: `head` checked the place; no other task writes these columns of
                // these rows of this sample.
                unsafe {
                    matmul_at(place, out.row, Accumulate::Zero, 1.0, weights, values, s.how);
                    for (i, &inverse) in inverse[..n].iter().enumerate() {
                        let row = std::slice::from_raw_parts_mut(place.add(i * out.row), s.depth);
                        for y in row {
                            *y *= inverse;
                        }
                    }
                }
            }
        },
    );
    (tensor(y, [s.batch, s.queries, s.width()]), tensor(lse, [s.batch, s.heads, s.queries]))
}

/// What the forward pass left and what came from behind.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'a> {
    pub(crate) q: Tokens<'a>,
    pub(crate) k: Tokens<'a>,
    pub(crate) v: Tokens<'a>,
    pub(crate) output: Tokens<'a>,
    pub(crate) grad: Tokens<'a>,
    /// `[B, H, Tq]`.
    pub(crate) lse: &'a [f32],
}

/// Writes the gradients of q, k and v to `targets` and gives that of the bias, on request.
pub(crate) fn backward(
    saved: Saved<'_>,
    bias: Option<FlexTensor>,
    bias_grad: bool,
    targets: [Target; 3],
    s: Shape,
) -> Option<FlexTensor> {
    let bias = bias.map(owned);
    let bias = Bias::of(bias.as_ref());
    let shared = bias.is_none_or(|bias| bias.shared);
    let area = s.queries * s.keys;
    // Samples that one task adds up: a function of the shape alone, so that sums do not depend on
    // the number of threads.
    let groups = if bias_grad && shared {
        let most = (PARTIALS / (s.heads * area).max(1)).max(1);
        32usize.div_ceil(s.heads).min(most).min(s.batch.max(1))
    } else {
        s.batch
    };
    let samples = s.batch.div_ceil(groups.max(1)).max(1);
    let groups = s.batch.div_ceil(samples);
    let mut partial = Buffer::zeros(if bias_grad { groups * s.heads * area } else { 0 });
    let area_grad = if bias_grad { area } else { 0 };
    let places = Rows::new(&mut partial, area_grad);
    let block = s.block();
    let rest = Rest::here();
    (0..groups * s.heads).into_par_iter().for_each_init(
        || (vec![0.0; block * s.keys], vec![0.0; block * s.keys]),
        |(weights, slopes), task| {
            let (group, h) = (task / s.heads, task % s.heads);
            // SAFETY: every task has a range of its own, inside `partial`.
            let dbias = unsafe { places.some(&(task..task + 1)) };
            for b in group * samples..((group + 1) * samples).min(s.batch) {
                if rest.is_left_out() {
                    return;
                }
                one_head(&saved, bias, &targets, &s, (b, h), weights, slopes, dbias);
            }
        },
    );
    bias_grad.then(|| {
        let lead = if shared { 1 } else { s.batch };
        let shape = [lead, s.heads, s.queries, s.keys];
        if groups == lead {
            return tensor(partial, shape);
        }
        let mut total = Buffer::zeros(s.heads * area);
        total.par_chunks_mut(4096).enumerate().for_each(|(i, total)| {
            for group in 0..groups {
                let start = group * s.heads * area + i * 4096;
                for (t, p) in total.iter_mut().zip(&partial[start..]) {
                    *t += p;
                }
            }
        });
        tensor(total, shape)
    })
}

/// Gradients of one head of one sample; that of the bias is added to `dbias` unless it is empty.
#[allow(clippy::too_many_arguments)]
fn one_head(
    saved: &Saved<'_>,
    bias: Option<Bias<'_>>,
    [dq, dk, dv]: &[Target; 3],
    s: &Shape,
    (b, h): (usize, usize),
    weights: &mut [f32],
    slopes: &mut [f32],
    dbias: &mut [f32],
) {
    let block = s.block();
    let keys = saved.k.head(s, b, h, 0, s.keys);
    let values = saved.v.head(s, b, h, 0, s.keys);
    let (dk_place, dv_place) = (dk.head(s, b, h, 0, s.keys), dv.head(s, b, h, 0, s.keys));
    for from in (0..s.queries).step_by(block) {
        let n = block.min(s.queries - from);
        let (weights, slopes) = (&mut weights[..n * s.keys], &mut slopes[..n * s.keys]);
        let queries = saved.q.head(s, b, h, from, n);
        let grad = saved.grad.head(s, b, h, from, n);
        let output = saved.output.head(s, b, h, from, n);
        matmul(weights, s.keys, Accumulate::Zero, s.scale, queries, keys.transposed(), s.how);
        matmul(slopes, s.keys, Accumulate::Zero, 1.0, grad, values.transposed(), s.how);
        let start = (b * s.heads + h) * s.queries + from;
        let lse = &saved.lse[start..start + n];
        let bias = bias.map(|bias| bias.rows(s, b, h, from, n));
        let rows = (0..n).map(|i| (grad.row(i), output.row(i)));
        for (i, (grad, output)) in rows.enumerate() {
            let range = i * s.keys..(i + 1) * s.keys;
            let dbias = match dbias.len() {
                0 => &mut [][..],
                _ => &mut dbias[(from + i) * s.keys..(from + i + 1) * s.keys],
            };
            backward_rows(
                &mut weights[range.clone()],
                &mut slopes[range.clone()],
                bias.map(|bias| &bias[range]),
                lse[i],
                grad,
                output,
                dbias,
            );
        }
        let weights = Matrix::new(weights, n, s.keys, s.keys);
        let slopes = Matrix::new(slopes, n, s.keys, s.keys);
        let start = if from == 0 { Accumulate::Zero } else { Accumulate::There };
        let dq_place = dq.head(s, b, h, from, n);
        // SAFETY: `head` checked the places; no other task writes these columns of these rows of
        // this sample.
        unsafe {
            matmul_at(dv_place, dv.row, start, 1.0, weights.transposed(), grad, s.how);
            matmul_at(dk_place, dk.row, start, s.scale, slopes.transposed(), queries, s.how);
            matmul_at(dq_place, dq.row, Accumulate::Zero, s.scale, slopes, keys, s.how);
        }
    }
}
