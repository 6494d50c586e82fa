//! `x·Wᵀ + b` and its gradients by cuBLASLt.
//!
//! Tensors are f32 at the seam. In bf16, operands are cast into scratch memory first, except weights that were packed:
//! those are kept in bf16. Sums and results are f32, and the bias is added to the sums.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;
use cubecl::cuda::CudaRuntime;

use super::super::Gpu;
use super::super::portable::linear::{self as portable, with_last};
use super::casts::Cast;
use super::rows::outputs;
use super::{Element, Epilogue, Gemm, Operand, Ptr, Recorded, casts, columns, is_native, native, one};
use crate::linear::{PackedWeight, composed};
use crate::{LinearOps, Precision};

/// How one operand of a matmul arrives.
#[derive(Debug, Clone, Copy)]
struct Input {
    elements: usize,
    /// As stored.
    element: Element,
}

impl Input {
    fn of(x: &Recorded) -> Self {
        let element = if x.dtype == DType::BF16 { Element::Bf16 } else { Element::F32 };
        Self { elements: x.shape.num_elements(), element }
    }

    /// Scratch memory that it takes to bring it to `wanted`, a multiple of 512 bytes.
    fn scratch(self, wanted: Element) -> usize {
        if self.element == wanted { 0 } else { (self.elements * wanted.bytes()).next_multiple_of(512) }
    }

    /// Where the operand is as `wanted`: at `scratch` where `casts` has to bring it there first.
    fn bring(self, casts: &mut Vec<Cast>, at: Ptr, wanted: Element, scratch: Ptr) -> Ptr {
        if self.element == wanted {
            return at;
        }
        casts.push(Cast::to_bf16(at, scratch, self.elements));
        scratch
    }
}

/// What a matmul does beside multiplying.
enum Extra {
    None,
    /// Adds a bias to each column of the result.
    Bias(Recorded),
    /// Sums the rows of `a`, in f32, into a second output.
    Sums,
}

/// One of the three matmuls; addresses come later.
#[derive(Debug, Clone, Copy)]
struct Matmul {
    dims: [usize; 3],
    /// Whether the operand is stored transposed, and its pitch.
    a: (bool, usize),
    b: (bool, usize),
    operands: Element,
}

impl Matmul {
    /// Records the matmul of `a` and `b`.
    fn record<BT: BoolElement>(
        self,
        name: &'static str,
        operands: [Recorded; 2],
        extra: Extra,
        output: Shape,
    ) -> std::vec::IntoIter<Recorded> {
        let [a, b] = operands;
        let mut results = vec![(output, DType::F32)];
        let bias = match extra {
            Extra::None => None,
            Extra::Bias(bias) => Some(bias),
            Extra::Sums => {
                results.push((Shape::new([self.dims[0]]), DType::F32));
                None
            }
        };
        let (of_a, of_b) = (Input::of(&a), Input::of(&b));
        let of_a_bytes = of_a.scratch(self.operands);
        let scratch = of_a_bytes + of_b.scratch(self.operands);
        let inputs = [a, b].into_iter().chain(bias).collect();
        native::<BT>(name, inputs, results, scratch, move |queue, inputs, outputs, scratch| {
            let mut casts = Vec::new();
            let a = of_a.bring(&mut casts, inputs[0], self.operands, scratch);
            let b = of_b.bring(&mut casts, inputs[1], self.operands, Ptr(scratch.0 + of_a_bytes as u64));
            casts::many(queue, &casts);
            let [m, n, k] = self.dims;
            queue.gemm(&Gemm {
                m,
                n,
                k,
                a: Operand { at: a, transposed: self.a.0, ld: self.a.1 },
                b: Operand { at: b, transposed: self.b.0, ld: self.b.1 },
                d: outputs[0],
                ldd: n,
                operands: self.operands,
                result: Element::F32,
                batch: None,
                epilogue: match (inputs.get(2), outputs.get(1)) {
                    (Some(bias), _) => Epilogue::Bias(*bias),
                    (None, Some(sums)) => Epilogue::BiasGradient(*sums),
                    (None, None) => Epilogue::None,
                },
                accumulate: false,
            });
        })
    }
}

/// The type of operands in a precision.
fn operands(precision: Precision) -> Element {
    match precision {
        Precision::F32 => Element::F32,
        Precision::Bf16 => Element::Bf16,
    }
}

/// Whether these tensors take the native path: those of a native device, in f32, with something to multiply.
fn takes(tensors: &[&Recorded]) -> bool {
    let filled = |x: &&Recorded| x.dtype == DType::F32 && x.shape.num_elements() > 0;
    tensors.iter().all(filled) && is_native(tensors[0].client.device())
}

/// Whether this is an operand that is bf16 already, on a native device: patches, or a tensor by which a peak is measured.
fn narrow(x: &Recorded) -> bool {
    x.dtype == DType::BF16 && x.shape.num_elements() > 0 && is_native(x.client.device())
}

/// Rows of a tensor whose last axis is `width`.
fn rows(x: &Recorded, width: usize) -> usize {
    x.shape.num_elements() / width
}

/// `x·Wᵀ + b` of a weight `[out, inner]` in f32 or bf16.
fn forward<BT: BoolElement>(
    x: Recorded,
    weight: Recorded,
    bias: Option<Recorded>,
    precision: Precision,
) -> Recorded {
    let (out, inner) = (weight.shape[0], weight.shape[1]);
    let matmul = Matmul {
        dims: [rows(&x, inner), out, inner],
        a: (false, inner),
        b: (true, inner),
        operands: operands(precision),
    };
    let output = with_last(&x.shape, out);
    one(matmul.record::<BT>("linear", [x, weight], bias.map_or(Extra::None, Extra::Bias), output))
}

/// Whether the gradient of a weight takes the native path.
fn takes_for_weight(x: &Recorded, grad: &Recorded, precision: Precision) -> bool {
    (takes(&[x]) || (narrow(x) && precision == Precision::Bf16)) && takes(&[grad])
}

/// `gradᵀ·x`, and the sum of the rows of `grad` if asked for.
fn backward_weight<BT: BoolElement>(
    name: &'static str,
    x: Recorded,
    grad: Recorded,
    extra: Extra,
    precision: Precision,
) -> std::vec::IntoIter<Recorded> {
    let [out, inner] = [&grad, &x].map(|x| x.shape[x.shape.num_dims() - 1]);
    let matmul = Matmul {
        dims: [out, inner, rows(&x, inner)],
        a: (true, out),
        b: (false, inner),
        operands: operands(precision),
    };
    matmul.record::<BT>(name, [grad, x], extra, Shape::new([out, inner]))
}

impl<BT: BoolElement> LinearOps for Gpu<CudaRuntime, BT> {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let held = |x: &Recorded| narrow(x) && precision == Precision::Bf16;
        let operands = [&x, &weight].into_iter().all(|x| held(x) || takes(&[x]));
        if operands && bias.iter().all(|bias| takes(&[bias])) {
            forward::<BT>(x, weight, bias, precision)
        } else {
            portable::forward::<CudaRuntime, BT>(x, weight, bias, precision)
        }
    }

    fn pack_weight(weight: FloatTensor<Self>, precision: Precision) -> Option<PackedWeight> {
        if precision == Precision::F32 || !takes(&[&weight]) {
            return None;
        }
        let (shape, count) = (weight.shape.clone(), weight.shape.num_elements());
        let output = vec![(shape, DType::BF16)];
        let mut outputs =
            native::<BT>("pack_weight", vec![weight], output, 0, move |queue, inputs, outputs, _| {
                casts::many(queue, &[Cast::to_bf16(inputs[0], outputs[0], count)]);
            });
        outputs.next().map(PackedWeight::of_cuda)
    }

    fn fused_linear_packed(
        x: FloatTensor<Self>,
        weight: &PackedWeight,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        assert!(takes(&[&x]) || narrow(&x), "linear_packed: expected f32 or bf16, found {:?}", x.dtype);
        forward::<BT>(x, weight.cuda(), bias, Precision::Bf16)
    }

    fn fused_linear_backward_input(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if !takes(&[&weight, &grad]) {
            return portable::backward_input::<CudaRuntime, BT>(weight, grad, precision);
        }
        let (out, inner) = (weight.shape[0], weight.shape[1]);
        let matmul = Matmul {
            dims: [rows(&grad, out), inner, out],
            a: (false, out),
            b: (false, inner),
            operands: operands(precision),
        };
        let output = with_last(&grad.shape, inner);
        one(matmul.record::<BT>("linear_backward_input", [grad, weight], Extra::None, output))
    }

    fn fused_linear_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if !takes_for_weight(&x, &grad, precision) {
            return portable::backward_weight::<CudaRuntime, BT>(x, grad, precision);
        }
        one(backward_weight::<BT>("linear_backward_weight", x, grad, Extra::None, precision))
    }

    fn fused_linear_backward_parameters(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> [FloatTensor<Self>; 2] {
        if !takes_for_weight(&x, &grad, precision) {
            let dw = portable::backward_weight::<CudaRuntime, BT>(x, grad.clone(), precision);
            return [dw, Self::fused_sum_rows(grad)];
        }
        outputs(backward_weight::<BT>("linear_backward_parameters", x, grad, Extra::Sums, precision))
    }

    fn fused_sum_rows(grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let width = grad.shape.last().copied().unwrap_or(1);
        if !takes(&[&grad]) {
            return composed::sum_rows::<Self>(grad);
        }
        let count = rows(&grad, width);
        let output = vec![(Shape::new([width]), DType::F32)];
        let fits = columns::fits(width);
        let scratch =
            if fits { columns::scratch(count, width) } else { columns::scratch_of_any(count, width) };
        one(native::<BT>("sum_rows", vec![grad], output, scratch, move |queue, inputs, outputs, scratch| {
            if fits {
                let x = (inputs[0], Element::F32);
                columns::sums(queue, x, [count, width, width], outputs[0], scratch);
            } else {
                columns::sums_of_any(queue, inputs[0], [count, width], outputs[0], scratch);
            }
        }))
    }
}
