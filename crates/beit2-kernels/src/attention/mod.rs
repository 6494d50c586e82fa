//! Multi-head attention with an additive bias on the logits.
//!
//! Contract: no `[B, H, Tq, T]` tensor is stored. The forward pass keeps the log of each row's
//! softmax sum; the backward pass recomputes the weights from it, one head at a time. The
//! gradient of a bias that is shared by the batch is summed over the batch inside, in a fixed order.

mod fast;
mod flex;
mod graph;
mod reference;
mod softmax;
#[cfg(test)]
mod tests;

use burn::tensor::Tensor;

use crate::backend::Backend;
use crate::composed::{unwrap, wrap};
use crate::precision::Precision;
pub(crate) use flex::{attention_backward_f32, attention_f32, attention_qkv_backward_f32, attention_qkv_f32};
pub(crate) use graph::{autodiff, autodiff_qkv};
pub use reference::{attention_weights, reference};
pub(crate) use reference::{reference_backward, reference_train, split_qkv};

/// The numbers of one attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Heads H.
    pub heads: usize,
    /// Factor on the queries, `d^-½` in the paper.
    pub scale: f64,
    /// Of the products, forward and backward. Logits, softmax and sums are not rounded; its weights are,
    /// where they are multiplied.
    pub precision: Precision,
}

/// Multi-head attention with an additive bias on the logits.
///
/// # Shapes
/// `q [B, Tq, H·d]`, `k`, `v [B, T, H·d]`, `bias [1 or B, H, Tq, T]` → `[B, Tq, H·d]`; `q` is
/// multiplied by the scale before the product with `k`.
///
/// # Panics
/// If the shapes do not fit, or the width is not a multiple of `heads`.
pub fn attention<B: Backend>(
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
    wrap(B::fused_attention(unwrap(q), unwrap(k), unwrap(v), bias, spec).0)
}

/// [`attention`] of a fused projection: `qkv [B, T, 3·H·d]` holds queries, keys and values side by
/// side → `[B, T, H·d]`. The gradient is one tensor too, which saves three zero-filled copies of it.
///
/// # Panics
/// If the shapes do not fit, or the width is not a multiple of `3·heads`.
pub fn attention_qkv<B: Backend>(
    qkv: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    spec: AttentionSpec,
) -> Tensor<B, 3> {
    let [batch, tokens, width] = qkv.dims();
    assert!(width % 3 == 0, "attention_qkv: width of {:?} is not three equal parts", qkv.dims());
    check([batch, tokens, width / 3], tokens, bias.as_ref(), spec.heads);
    wrap(B::fused_attention_qkv(unwrap(qkv), bias.map(unwrap), spec).0)
}

fn check<B: Backend>(q: [usize; 3], keys: usize, bias: Option<&Tensor<B, 4>>, heads: usize) {
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
