//! Attention between Flex tensors and the kernels: what lies where.

use burn::backend::Flex;
use burn_flex::FlexTensor;

use super::AttentionSpec;
use super::fast::{Saved, Shape, Target, Tokens, backward, forward, with_tokens};
use crate::backend::{AttentionGradients, AttentionOutput};
use crate::flex::{owned, tensor, view};
use crate::memory::Buffer;

pub(crate) fn attention_f32(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    bias: Option<FlexTensor>,
    spec: AttentionSpec,
) -> AttentionOutput<Flex> {
    let s = shape(&q, &k, spec);
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
    spec: AttentionSpec,
    bias_grad: bool,
) -> AttentionGradients<Flex> {
    let s = shape(&q, &k, spec);
    let width = s.width();
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
    spec: AttentionSpec,
) -> AttentionOutput<Flex> {
    let qkv = owned(qkv);
    let s = fused_shape(&qkv, spec);
    let [q, k, v] = parts(&qkv, &s);
    forward(q, k, v, bias, s)
}

pub(crate) fn attention_qkv_backward_f32(
    qkv: FlexTensor,
    bias: Option<FlexTensor>,
    (output, lse): AttentionOutput<Flex>,
    grad: FlexTensor,
    spec: AttentionSpec,
    bias_grad: bool,
) -> (FlexTensor, Option<FlexTensor>) {
    let (qkv, lse) = (owned(qkv), owned(lse));
    let s = fused_shape(&qkv, spec);
    let [q, k, v] = parts(&qkv, &s);
    let width = s.width();
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

fn shape(q: &FlexTensor, k: &FlexTensor, spec: AttentionSpec) -> Shape {
    let (q, k) = (q.layout().shape(), k.layout().shape());
    Shape::new(q[0], q[1], k[1], q[2], spec)
}

fn fused_shape(qkv: &FlexTensor, spec: AttentionSpec) -> Shape {
    let dims = qkv.layout().shape();
    Shape::new(dims[0], dims[1], dims[1], dims[2] / 3, spec)
}

fn parts<'a>(qkv: &'a FlexTensor, s: &Shape) -> [Tokens<'a>; 3] {
    let width = s.width();
    [0, 1, 2].map(|i| Tokens::part(view(qkv), s.keys, 3 * width, i * width))
}
