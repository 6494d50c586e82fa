//! Attention with an additive bias: f32 tensors at the seam, the kernels of [`call`] inside. In bf16 the inputs are
//! rounded into scratch memory first.

mod call;

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;
use cubecl::cuda::CudaRuntime;

use super::super::Gpu;
use super::super::portable::{Recorded, attention};
use super::casts::{self, Cast};
use super::{Element, Ptr, Queue, is_native, native};
use crate::{AttentionGradients, AttentionOps, AttentionOutput, AttentionSpec, Precision};

pub(crate) use call::{
    AttentionBackwardCall, AttentionCall, AttentionSizes, BiasGradient, BiasLayout, Tokens, backward, forward,
};

type Tensor = Recorded<CudaRuntime>;

/// How queries, keys and values arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One tensor, side by side.
    Qkv,
    /// Queries, and keys and values side by side.
    QAndKv,
    /// Three tensors.
    Separate,
}

impl Form {
    /// Of this many tensors.
    fn of(inputs: usize) -> Self {
        match inputs {
            1 => Self::Qkv,
            2 => Self::QAndKv,
            _ => Self::Separate,
        }
    }

    /// For q, k and v: which tensor, which part of it, and of how many parts.
    fn places(self) -> [(usize, usize, usize); 3] {
        match self {
            Self::Qkv => [(0, 0, 3), (0, 1, 3), (0, 2, 3)],
            Self::QAndKv => [(0, 0, 1), (1, 0, 2), (1, 1, 2)],
            Self::Separate => [(0, 0, 1), (1, 0, 1), (2, 0, 1)],
        }
    }
}

/// One attention at the seam.
#[derive(Debug, Clone, Copy)]
struct Seam {
    form: Form,
    sizes: AttentionSizes,
    /// Whether queries say which row of the bias they read.
    by_rows: bool,
}

impl Seam {
    /// If the kernels can do it on the device of `inputs`.
    fn new(inputs: &[Tensor], bias: Option<&Tensor>, by_rows: bool, spec: AttentionSpec) -> Option<Self> {
        let form = Form::of(inputs.len());
        let [(first, _, parts), (second, ..), _] = form.places();
        let (q, k) = (&inputs[first].shape, &inputs[second].shape);
        let [batch, queries, width, keys] = [q[0], q[1], q[2] / parts, k[1]];
        let bias_layout = bias.map(|bias| {
            let [lead, _, rows, pitch] = [0, 1, 2, 3].map(|axis| bias.shape[axis]);
            BiasLayout { shared: lead == 1, rows, pitch }
        });
        let sizes = AttentionSizes {
            batch,
            heads: spec.heads,
            depth: width / spec.heads,
            queries,
            keys,
            scale: spec.scale as f32,
            operands: match spec.precision {
                Precision::F32 => Element::F32,
                Precision::Bf16 => Element::Bf16,
            },
            bias: bias_layout,
        };
        let f32 = inputs.iter().chain(bias).all(|x| x.dtype == DType::F32);
        let seam = Self { form, sizes, by_rows };
        (f32 && batch > 0 && sizes.is_supported() && is_native(inputs[0].client.device())).then_some(seam)
    }

    fn width(&self) -> usize {
        self.sizes.heads * self.sizes.depth
    }

    fn inputs(&self) -> usize {
        match self.form {
            Form::Qkv => 1,
            Form::QAndKv => 2,
            Form::Separate => 3,
        }
    }

    /// Numbers of input `at`.
    fn numbers(&self, at: usize) -> usize {
        let parts = self.form.places().iter().filter(|place| place.0 == at).count();
        let tokens = if at == 0 { self.sizes.queries } else { self.sizes.keys };
        self.sizes.batch * tokens * parts * self.width()
    }

    /// Numbers of the output.
    fn output(&self) -> usize {
        self.sizes.batch * self.sizes.queries * self.width()
    }

    /// Bytes of the rounded inputs, with the output's gradient if `grad`.
    fn rounded(&self, grad: bool) -> usize {
        match self.sizes.operands {
            Element::F32 => 0,
            Element::Bf16 => {
                let inputs: usize = (0..self.inputs()).map(|at| self.numbers(at)).sum();
                2 * (inputs + if grad { self.output() } else { 0 })
            }
        }
    }

    /// Tensors of the operands' type with `numbers` numbers each: these themselves, or rounded copies from `scratch` on.
    fn operands(
        &self,
        queue: &mut Queue<'_>,
        tensors: &[Ptr],
        numbers: &[usize],
        scratch: &mut Ptr,
    ) -> Vec<Ptr> {
        if self.sizes.operands == Element::F32 {
            return tensors.to_vec();
        }
        let copy = |(&from, &count): (&Ptr, &usize)| {
            let to = *scratch;
            *scratch = to.offset(count, Element::Bf16);
            Cast::to_bf16(from, to, count)
        };
        let casts: Vec<Cast> = tensors.iter().zip(numbers).map(copy).collect();
        casts::many(queue, &casts);
        casts.iter().map(|cast| cast.to).collect()
    }

    /// q, k and v in tensors of this type at these addresses.
    fn parts(&self, at: &[Ptr], element: Element) -> [Tokens; 3] {
        let s = &self.sizes;
        let [q, k, v] = self.form.places();
        [(q, s.queries), (k, s.keys), (v, s.keys)].map(|((tensor, part, parts), tokens)| {
            Tokens::part(at[tensor], element, tokens, self.width(), (part, parts))
        })
    }

    /// A forward pass over operands at these addresses; `extra` is the bias and the rows, as far as they are there.
    fn call(&self, operands: &[Ptr], extra: &[Ptr], output: Ptr, lse: Ptr) -> AttentionCall {
        let s = self.sizes;
        let [q, k, v] = self.parts(operands, s.operands);
        let bias = s.bias.and_then(|_| extra.first().copied());
        AttentionCall {
            sizes: s,
            q,
            k,
            v,
            bias,
            query_rows: if self.by_rows && bias.is_some() { extra.get(1).copied() } else { None },
            output: Tokens::whole(output, s.queries, self.width()),
            output_element: Element::F32,
            lse,
        }
    }

    fn forward<BT: BoolElement>(
        self,
        mut inputs: Vec<Tensor>,
        bias: Option<Tensor>,
        rows: Option<Tensor>,
    ) -> (Tensor, Tensor) {
        let s = self.sizes;
        let count = inputs.len();
        inputs.extend(bias);
        inputs.extend(rows);
        let outputs = vec![
            (Shape::new([s.batch, s.queries, self.width()]), DType::F32),
            (Shape::new([s.batch, s.heads, s.queries]), DType::F32),
        ];
        let scratch = self.rounded(false);
        let run = move |queue: &mut Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], mut scratch: Ptr| {
            let (inputs, extra) = inputs.split_at(count);
            let numbers: Vec<usize> = (0..count).map(|at| self.numbers(at)).collect();
            let operands = self.operands(queue, inputs, &numbers, &mut scratch);
            forward(queue, &self.call(&operands, extra, outputs[0], outputs[1]));
        };
        let mut outputs = native::<BT>("attention", inputs, outputs, scratch, run);
        let mut next = || outputs.next().unwrap_or_else(|| unreachable!("two outputs"));
        (next(), next())
    }

    /// Gradients of the `N` inputs and, on request, of the bias.
    fn backward<BT: BoolElement, const N: usize>(
        self,
        mut inputs: Vec<Tensor>,
        bias: Option<Tensor>,
        rows: Option<Tensor>,
        (output, lse): (Tensor, Tensor),
        grad: Tensor,
        bias_grad: bool,
    ) -> ([Tensor; N], Option<Tensor>) {
        let s = self.sizes;
        let mut outputs: Vec<_> = inputs.iter().map(|x| (x.shape.clone(), DType::F32)).collect();
        let dbias = bias.as_ref().filter(|_| bias_grad);
        outputs.extend(dbias.map(|bias| (bias.shape.clone(), DType::F32)));
        let parts = if dbias.is_some() { s.parts_bytes() } else { 0 };
        let scratch = self.rounded(true) + s.scratch() + parts;
        inputs.extend([output, lse, grad]);
        inputs.extend(bias);
        inputs.extend(rows);
        let run = move |queue: &mut Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], mut scratch: Ptr| {
            let (inputs, rest) = inputs.split_at(N);
            let (saved, extra) = rest.split_at(3);
            let (gradients, dbias) = outputs.split_at(N);
            let tensors: Vec<Ptr> = inputs.iter().chain([&saved[2]]).copied().collect();
            let numbers: Vec<usize> = (0..N).map(|at| self.numbers(at)).chain([self.output()]).collect();
            let operands = self.operands(queue, &tensors, &numbers, &mut scratch);
            let [dq, dk, dv] = self.parts(gradients, Element::F32);
            let call = AttentionBackwardCall {
                forward: self.call(&operands, extra, saved[0], saved[1]),
                grad: Tokens::whole(operands[N], s.queries, self.width()),
                dq,
                dk,
                dv,
                gradients: Element::F32,
                dbias: dbias.first().map(|to| BiasGradient::alone(*to, Ptr(scratch.0 + s.scratch() as u64))),
                scratch,
            };
            backward(queue, &call);
        };
        let mut outputs = native::<BT>("attention_backward", inputs, outputs, scratch, run);
        let mut next = || outputs.next();
        let gradients = std::array::from_fn(|_| next().unwrap_or_else(|| unreachable!("{N} outputs")));
        (gradients, next())
    }
}

impl<BT: BoolElement> AttentionOps for Gpu<CudaRuntime, BT> {
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        let inputs = vec![q, k, v];
        match Seam::new(&inputs, bias.as_ref(), false, spec) {
            Some(seam) => seam.forward::<BT>(inputs, bias, None),
            None => attention::forward::<CudaRuntime, BT>(inputs, bias, spec),
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
        let inputs = vec![q, k, v];
        let (gradients, dbias) = match Seam::new(&inputs, bias.as_ref(), false, spec) {
            Some(seam) => seam.backward::<BT, 3>(inputs, bias, None, output, grad, bias_grad),
            None => attention::backward::<CudaRuntime, BT, 3>(inputs, bias, output, grad, spec, bias_grad),
        };
        let [dq, dk, dv] = gradients;
        (dq, dk, dv, dbias)
    }

    fn fused_attention_qkv(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        let inputs = vec![qkv];
        match Seam::new(&inputs, bias.as_ref(), false, spec) {
            Some(seam) => seam.forward::<BT>(inputs, bias, None),
            None => attention::forward::<CudaRuntime, BT>(inputs, bias, spec),
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
        let inputs = vec![qkv];
        let ([dqkv], dbias) = match Seam::new(&inputs, bias.as_ref(), false, spec) {
            Some(seam) => seam.backward::<BT, 1>(inputs, bias, None, output, grad, bias_grad),
            None => attention::backward::<CudaRuntime, BT, 1>(inputs, bias, output, grad, spec, bias_grad),
        };
        (dqkv, dbias)
    }

    fn reads_bias_by_rows(q: &FloatTensor<Self>, kv: &FloatTensor<Self>, spec: AttentionSpec) -> bool {
        Seam::new(&[q.clone(), kv.clone()], None, true, spec).is_some()
    }

    /// # Panics
    /// Where [`AttentionOps::reads_bias_by_rows`] is false.
    fn fused_attention_subset(
        q: FloatTensor<Self>,
        kv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        rows: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        let inputs = vec![q, kv];
        let seam = subset(Seam::new(&inputs, bias.as_ref(), true, spec));
        let rows = bias.is_some().then_some(rows);
        seam.forward::<BT>(inputs, bias, rows)
    }

    fn fused_attention_subset_backward(
        q: FloatTensor<Self>,
        kv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        rows: IntTensor<Self>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let inputs = vec![q, kv];
        let seam = subset(Seam::new(&inputs, bias.as_ref(), true, spec));
        let rows = bias.is_some().then_some(rows);
        let ([dq, dkv], dbias) = seam.backward::<BT, 2>(inputs, bias, rows, output, grad, bias_grad);
        (dq, dkv, dbias)
    }
}

fn subset(seam: Option<Seam>) -> Seam {
    seam.unwrap_or_else(|| {
        panic!("attention_subset: the native kernels cannot do it; gather the bias's rows")
    })
}
