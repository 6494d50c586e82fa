//! Multi-head self-attention with BEiT's biases.

use std::ops::Range;

use beit2_kernels::{self as kernels, AttentionSpec, Backend, Precision};
use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::trunk::TokenSubset;
use super::{Linear, RelPosBias};

/// Self-attention with one `qkv` weight, learned query and value biases and a zero key bias.
#[derive(Module, Debug)]
pub struct Attention<B: burn::tensor::backend::Backend> {
    /// `[3D, D]`: rows of q, then k, then v.
    pub qkv: Linear<B>,
    /// `[D]`.
    pub q_bias: Option<Param<Tensor<B, 1>>>,
    /// `[D]`.
    pub v_bias: Option<Param<Tensor<B, 1>>>,
    /// Output projection.
    pub proj: Linear<B>,
    /// This block's own table, in fine-tuning models.
    pub rel_pos: Option<RelPosBias<B>>,
    heads: usize,
    scale: f64,
}

impl<B: Backend> Attention<B> {
    /// Attention of zeros.
    pub fn new(
        width: usize,
        heads: usize,
        qkv_bias: bool,
        rel_pos: Option<RelPosBias<B>>,
        device: &B::Device,
    ) -> Self {
        let bias = || qkv_bias.then(|| Param::from_tensor(Tensor::zeros([width], device)));
        Self {
            qkv: Linear::new(width, 3 * width, false, device),
            q_bias: bias(),
            v_bias: bias(),
            proj: Linear::new(width, width, true, device),
            rel_pos,
            heads,
            scale: ((width / heads) as f64).powf(-0.5),
        }
    }

    /// Runs the matmuls in `precision` from now on.
    pub fn set_precision(&mut self, precision: Precision) {
        self.qkv.set_precision(precision);
        self.proj.set_precision(precision);
    }

    /// For a model whose weights do not change any more ([`Linear::freeze`]).
    #[must_use]
    pub fn freeze(self) -> Self {
        Self { qkv: self.qkv.freeze(), proj: self.proj.freeze(), ..self }
    }

    /// Attention heads H.
    pub fn heads(&self) -> usize {
        self.heads
    }

    pub(super) fn spec(&self) -> AttentionSpec {
        AttentionSpec { heads: self.heads, scale: self.scale, precision: self.qkv.precision() }
    }

    fn qkv_bias(&self) -> Option<Tensor<B, 1>> {
        match (&self.q_bias, &self.v_bias) {
            (Some(q), Some(v)) => Some(kernels::qkv_bias(q.val(), v.val())),
            _ => None,
        }
    }

    /// Queries, keys and values of all tokens, each `[B, T, D]`, before the scale.
    pub fn project(&self, x: Tensor<B, 3>) -> [Tensor<B, 3>; 3] {
        let width = x.dims()[2];
        let qkv = self.qkv.forward_with(x, self.qkv_bias());
        [0, 1, 2].map(|part| qkv.clone().narrow(2, part * width, width))
    }

    /// The bias of the logits, `[1, H, T, T]`.
    pub(super) fn total_bias(&self, shared: Option<&Tensor<B, 4>>) -> Option<Tensor<B, 4>> {
        match (&self.rel_pos, shared) {
            (Some(own), Some(shared)) => Some(own.forward() + shared.clone()),
            (Some(own), None) => Some(own.forward()),
            (None, shared) => shared.cloned(),
        }
    }

    /// # Shapes
    /// `x [B, T, D]`, `shared [1, H, T, T]` → `[B, T, D]`.
    pub fn forward(&self, x: Tensor<B, 3>, shared: Option<&Tensor<B, 4>>) -> Tensor<B, 3> {
        let qkv = self.qkv.forward_with(x, self.qkv_bias());
        self.proj.forward(kernels::attention_qkv(qkv, self.total_bias(shared), self.spec()))
    }

    /// As [`Attention::forward`] for the queries of some tokens only → `[B, R, D]`.
    pub fn forward_subset(
        &self,
        x: Tensor<B, 3>,
        subset: &TokenSubset<B>,
        shared: Option<&Tensor<B, 4>>,
    ) -> Tensor<B, 3> {
        let width = x.dims()[2];
        let bias = self.total_bias(shared);
        let attention = |q: Tensor<B, 3>, kv| {
            self.proj.forward(kernels::attention_subset(q, kv, bias, subset.choice(), self.spec()))
        };
        if self.qkv.packed().is_some() {
            let qkv = self.qkv.forward_with(x, self.qkv_bias());
            let (q, kv) = (qkv.clone().narrow(2, 0, width), qkv.narrow(2, width, 2 * width));
            return attention(subset.gather(q), kv);
        }
        let (weight, bias) = (self.qkv.weight.val(), self.qkv_bias());
        let part = |range: Range<usize>| {
            let bias = bias.clone().map(|bias| kernels::narrow(bias, 0, range.clone()));
            (kernels::narrow(weight.clone(), 0, range), bias)
        };
        let (q_weight, q_bias) = part(0..width);
        let (kv_weight, kv_bias) = part(width..3 * width);
        let precision = self.qkv.precision();
        let q = kernels::linear(subset.gather(x.clone()), q_weight, q_bias, precision);
        attention(q, kernels::linear(x, kv_weight, kv_bias, precision))
    }

    /// The softmax weights `[B, H, T, T]`.
    pub fn weights(&self, x: Tensor<B, 3>, shared: Option<&Tensor<B, 4>>) -> Tensor<B, 4> {
        let [q, k, _] = self.project(x);
        kernels::attention_weights(q, k, self.total_bias(shared), self.heads, self.scale)
    }
}
