//! Multi-head attention with an additive bias on the logits.
//!
//! Contract: no `[B, H, Tq, T]` tensor is stored. The forward pass keeps the log of each row's
//! softmax sum; the backward pass recomputes the weights from it, one head at a time. The
//! gradient of a bias that is shared by the batch is summed over the batch inside, in a fixed order.

pub(crate) mod composed;
mod fast;
mod flex;
mod graph;
mod reference;
mod softmax;
#[cfg(test)]
mod tests;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};

use crate::interrupt::tick;
use crate::precision::Precision;
use crate::tensor::{unwrap, wrap};
use crate::tokens::{TokenChoice, TokenOps, gather_bias};

pub use reference::{attention_weights, reference};

/// The numbers of one attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Heads H.
    pub heads: usize,
    /// Factor on the queries, `d^-½` in the paper.
    pub scale: f64,
    /// Of the matmuls, forward and backward. Logits, softmax and sums are not rounded; its weights are,
    /// where they are multiplied.
    pub precision: Precision,
}

/// What a backward pass must keep of an attention: its output and the log of each row's softmax
/// sum `[B, H, Tq]`, a constant to a graph.
pub type AttentionOutput<B> = (FloatTensor<B>, FloatTensor<B>);

/// Gradients of an attention with respect to q, k, v and, on request, the bias.
pub type AttentionGradients<B> = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, Option<FloatTensor<B>>);

/// Attention on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait AttentionOps: BurnBackend {
    /// [`attention`](crate::attention).
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        composed::attention::<Self>(q, k, v, bias, spec)
    }

    /// Gradients of [`attention`](crate::attention); the bias's only if `bias_grad`.
    #[allow(clippy::too_many_arguments)]
    fn fused_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> AttentionGradients<Self> {
        composed::attention_backward::<Self>(q, k, v, bias, output, grad, spec, bias_grad)
    }

    /// [`attention_qkv`](crate::attention_qkv).
    fn fused_attention_qkv(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        composed::attention_qkv::<Self>(qkv, bias, spec)
    }

    /// Gradients of [`attention_qkv`](crate::attention_qkv): of `qkv` and, if `bias_grad`, the bias.
    fn fused_attention_qkv_backward(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        composed::attention_qkv_backward::<Self>(qkv, bias, output, grad, spec, bias_grad)
    }

    /// Whether [`attention_subset`](crate::attention_subset) of tensors such as these reads the bias by rows. If not, the
    /// rows are gathered for an [`attention`](crate::attention).
    fn reads_bias_by_rows(_q: &FloatTensor<Self>, _kv: &FloatTensor<Self>, _spec: AttentionSpec) -> bool {
        false
    }

    /// [`attention_subset`](crate::attention_subset); only where it reads the bias by rows. `rows [B·R]`: the token of each query.
    fn fused_attention_subset(
        _q: FloatTensor<Self>,
        _kv: FloatTensor<Self>,
        _bias: Option<FloatTensor<Self>>,
        _rows: IntTensor<Self>,
        _spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        panic!("attention_subset: this backend gathers the rows of the bias");
    }

    /// Gradients of [`attention_subset`](crate::attention_subset): of `q`, `kv` and, if `bias_grad`, the bias; only where it
    /// reads the bias by rows.
    #[allow(clippy::too_many_arguments)]
    fn fused_attention_subset_backward(
        _q: FloatTensor<Self>,
        _kv: FloatTensor<Self>,
        _bias: Option<FloatTensor<Self>>,
        _rows: IntTensor<Self>,
        _output: AttentionOutput<Self>,
        _grad: FloatTensor<Self>,
        _spec: AttentionSpec,
        _bias_grad: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, Option<FloatTensor<Self>>) {
        panic!("attention_subset: this backend gathers the rows of the bias");
    }
}

/// Multi-head attention with an additive bias on the logits.
///
/// # Shapes
/// `q [B, Tq, H·d]`, `k`, `v [B, T, H·d]`, `bias [1 or B, H, Tq, T]` → `[B, Tq, H·d]`; `q` is
/// multiplied by the scale before the matmul with `k`.
///
/// # Panics
/// If the shapes do not fit, or the width is not a multiple of `heads`.
pub fn attention<B: AttentionOps>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    v: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    spec: AttentionSpec,
) -> Tensor<B, 3> {
    let (dims, keys, values) = (q.dims(), k.dims(), v.dims());
    assert!(
        keys == values && dims[0] == keys[0] && dims[2] == keys[2],
        "attention: q {dims:?}, k {keys:?} and v {values:?} do not fit"
    );
    check(dims, keys[1], bias.as_ref(), spec.heads);
    let bias = bias.map(unwrap);
    let y = wrap(B::fused_attention(unwrap(q), unwrap(k), unwrap(v), bias, spec).0);
    tick(operations(dims.iter().product(), keys[1]));
    y
}

/// Operations of both matmuls for this many values of the queries.
fn operations(values: usize, keys: usize) -> usize {
    4 * values * keys
}

/// [`attention`] of a fused projection: `qkv [B, T, 3·H·d]` holds queries, keys and values side by
/// side → `[B, T, H·d]`. The gradient is one tensor too, which saves three zero-filled copies of it.
///
/// # Panics
/// If the shapes do not fit, or the width is not a multiple of `3·heads`.
pub fn attention_qkv<B: AttentionOps>(
    qkv: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    spec: AttentionSpec,
) -> Tensor<B, 3> {
    let [batch, tokens, width] = qkv.dims();
    assert!(width % 3 == 0, "attention_qkv: width of {:?} is not three equal parts", qkv.dims());
    check([batch, tokens, width / 3], tokens, bias.as_ref(), spec.heads);
    let y = wrap(B::fused_attention_qkv(unwrap(qkv), bias.map(unwrap), spec).0);
    tick(operations(batch * tokens * width / 3, tokens));
    y
}

/// [`attention`] for the queries of some tokens: `q [B, R, H·d]` of the tokens in `choice`, keys and values of all
/// tokens side by side in `kv [B, T, 2·H·d]`, the bias of all tokens `[1, H, T, T]` → `[B, R, H·d]`. Where a backend reads
/// the bias by rows, none is gathered.
///
/// The tokens of a sample must differ: where the bias is read by rows, only one of several equal ones adds to its gradient.
///
/// # Panics
/// If the shapes do not fit, or the width is not a multiple of `heads`.
pub fn attention_subset<B: AttentionOps + TokenOps>(
    q: Tensor<B, 3>,
    kv: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    choice: TokenChoice<B>,
    spec: AttentionSpec,
) -> Tensor<B, 3> {
    let ([batch, queries, width], keys) = (q.dims(), kv.dims());
    assert!(
        keys[0] == batch && keys[2] == 2 * width && choice.per_sample == queries,
        "attention_subset: q {:?}, kv {keys:?} and {} tokens of a sample do not fit",
        q.dims(),
        choice.per_sample
    );
    let tokens = keys[1];
    if let Some(bias) = &bias {
        let (dims, want) = (bias.dims(), [1, spec.heads, tokens, tokens]);
        assert!(dims == want, "attention_subset: bias {dims:?} is not {want:?}");
    }
    check::<B>(q.dims(), tokens, None, spec.heads);
    let (q, kv) = (unwrap(q), unwrap(kv));
    if B::reads_bias_by_rows(&q, &kv, spec) {
        let y = wrap(B::fused_attention_subset(q, kv, bias.map(unwrap), choice.local, spec).0);
        tick(operations(batch * queries * width, tokens));
        return y;
    }
    let [k, v] = [0, 1].map(|i| wrap::<B, 3>(kv.clone()).narrow(2, i * width, width));
    attention(wrap(q), k, v, bias.map(|bias| gather_bias(bias, choice)), spec)
}

fn check<B: AttentionOps>(q: [usize; 3], keys: usize, bias: Option<&Tensor<B, 4>>, heads: usize) {
    let [batch, queries, width] = q;
    assert!(heads > 0 && width % heads == 0, "attention: width {width} is not a multiple of {heads} heads");
    if let Some(bias) = bias {
        let dims = bias.dims();
        assert!(
            (dims[0] == 1 || dims[0] == batch) && dims[1..] == [heads, queries, keys],
            "attention: bias {dims:?} is not [1 or {batch}, {heads}, {queries}, {keys}]"
        );
    }
}
