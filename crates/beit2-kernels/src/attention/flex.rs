//! Attention between Flex tensors and the kernels: what lies where.

use burn::backend::Flex;
use burn_flex::FlexTensor;

use super::fast::{Saved, Shape, Target, Tokens, backward, forward, with_tokens};
use crate::backend::{AttentionGradients, AttentionOutput};
use crate::flex::{owned, tensor, view};
use crate::memory::Buffer;

pub(crate) fn attention_f32(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    bias: Option<FlexTensor>,
    heads: usize,
    scale: f64,
) -> AttentionOutput<Flex> {
    let s = shape(&q, &k, heads, scale);
    with_tokens(&q, |q| with_tokens(&k, |k| with_tokens(&v, |v| forward(q, k, v, bias, s))))
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn attention_backward_f32(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    bias: Option<FlexTensor>,
    (output, lse): AttentionOutput<Flex>,
    grad: FlexTensor,
    heads: usize,
    scale: f64,
    bias_grad: bool,
) -> AttentionGradients<Flex> {
    let s = shape(&q, &k, heads, scale);
    let width = heads * s.depth;
    let lse = owned(lse);
    let mut dq = Buffer::any(s.batch * s.queries * width);
    let mut dk = Buffer::any(s.batch * s.keys * width);
    let mut dv = Buffer::any(s.batch * s.keys * width);
    let targets = [
        Target::part(&mut dq, s.queries, width, 0),
        Target::part(&mut dk, s.keys, width, 0),
        Target::part(&mut dv, s.keys, width, 0),
    ];
    let dbias = with_tokens(&q, |q| {
        with_tokens(&k, |k| {
            with_tokens(&v, |v| {
                with_tokens(&output, |output| {
                    with_tokens(&grad, |grad| {
                        let lse = view(&lse);
                        let saved = Saved { q, k, v, output, grad, lse };
                        backward(saved, bias, bias_grad, targets, s)
                    })
                })
            })
        })
    });
    (
        tensor(dq, [s.batch, s.queries, width]),
        tensor(dk, [s.batch, s.keys, width]),
        tensor(dv, [s.batch, s.keys, width]),
        dbias,
    )
}

pub(crate) fn attention_qkv_f32(
    qkv: FlexTensor,
    bias: Option<FlexTensor>,
    heads: usize,
    scale: f64,
) -> AttentionOutput<Flex> {
    let qkv = owned(qkv);
    let s = fused_shape(&qkv, heads, scale);
    let [q, k, v] = parts(&qkv, &s);
    forward(q, k, v, bias, s)
}

pub(crate) fn attention_qkv_backward_f32(
    qkv: FlexTensor,
    bias: Option<FlexTensor>,
    (output, lse): AttentionOutput<Flex>,
    grad: FlexTensor,
    heads: usize,
    scale: f64,
    bias_grad: bool,
) -> (FlexTensor, Option<FlexTensor>) {
    let (qkv, lse) = (owned(qkv), owned(lse));
    let s = fused_shape(&qkv, heads, scale);
    let [q, k, v] = parts(&qkv, &s);
    let width = heads * s.depth;
    let mut dqkv = Buffer::any(s.batch * s.keys * 3 * width);
    let targets = [0, 1, 2].map(|i| Target::part(&mut dqkv, s.keys, 3 * width, i * width));
    let dbias = with_tokens(&output, |output| {
        with_tokens(&grad, |grad| {
            let lse = view(&lse);
            let saved = Saved { q, k, v, output, grad, lse };
            backward(saved, bias, bias_grad, targets, s)
        })
    });
    (tensor(dqkv, [s.batch, s.keys, 3 * width]), dbias)
}

fn shape(q: &FlexTensor, k: &FlexTensor, heads: usize, scale: f64) -> Shape {
    let (q, k) = (q.layout().shape(), k.layout().shape());
    Shape { batch: q[0], queries: q[1], keys: k[1], heads, depth: q[2] / heads, scale: scale as f32 }
}

fn fused_shape(qkv: &FlexTensor, heads: usize, scale: f64) -> Shape {
    let dims = qkv.layout().shape();
    Shape {
        batch: dims[0],
        queries: dims[1],
        keys: dims[1],
        heads,
        depth: dims[2] / 3 / heads,
        scale: scale as f32,
    }
}

fn parts<'a>(qkv: &'a FlexTensor, s: &Shape) -> [Tokens<'a>; 3] {
    let width = s.heads * s.depth;
    [0, 1, 2].map(|i| Tokens::part(view(qkv), s.keys, 3 * width, i * width))
}
