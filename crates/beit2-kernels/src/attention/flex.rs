//! Attention between Flex tensors and the kernels: what lies where.

use burn::backend::Flex;
use burn::tensor::ops::FloatTensor;
use burn_flex::FlexTensor;

use super::fast::{Saved, Shape, Target, Tokens, backward, forward, with_tokens};
use super::{AttentionGradients, AttentionOps, AttentionOutput, AttentionSpec, composed};
use crate::flex::{is_f32, owned, tensor, view};
use crate::memory::Buffer;

impl AttentionOps for Flex {
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        if is_f32(&[&q, &k, &v]) && bias.as_ref().is_none_or(|b| is_f32(&[b])) {
            attention_f32(q, k, v, bias, spec)
        } else {
            composed::attention::<Self>(q, k, v, bias, spec)
        }
    }

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
        let plain = bias.as_ref().is_none_or(|b| is_f32(&[b]));
        if plain && is_f32(&[&q, &k, &v, &output.0, &output.1, &grad]) {
            attention_backward_f32(q, k, v, bias, output, grad, spec, bias_grad)
        } else {
            composed::attention_backward::<Self>(q, k, v, bias, output, grad, spec, bias_grad)
        }
    }

    fn fused_attention_qkv(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        if is_f32(&[&qkv]) && bias.as_ref().is_none_or(|b| is_f32(&[b])) {
            attention_qkv_f32(qkv, bias, spec)
        } else {
            composed::attention_qkv::<Self>(qkv, bias, spec)
        }
    }

    fn fused_attention_qkv_backward(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let plain = bias.as_ref().is_none_or(|b| is_f32(&[b]));
        if plain && is_f32(&[&qkv, &output.0, &output.1, &grad]) {
            attention_qkv_backward_f32(qkv, bias, output, grad, spec, bias_grad)
        } else {
            composed::attention_qkv_backward::<Self>(qkv, bias, output, grad, spec, bias_grad)
        }
    }
}

fn attention_f32(
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
fn attention_backward_f32(
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

fn attention_qkv_f32(
    qkv: FlexTensor,
    bias: Option<FlexTensor>,
    spec: AttentionSpec,
) -> AttentionOutput<Flex> {
    let qkv = owned(qkv);
    let s = fused_shape(&qkv, spec);
    let [q, k, v] = parts(&qkv, &s);
    forward(q, k, v, bias, s)
}

fn attention_qkv_backward_f32(
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
