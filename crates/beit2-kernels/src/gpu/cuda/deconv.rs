//! Transposed convolutions that double a map ([`crate::DeconvOps`]): a matmul by cuBLASLt, and a pass that puts pixels where they belong.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;

use super::casts::{self, Cast};
use super::conv::{launch, numbered, operands, part};
use super::rows::{Cuda, Tensor, outputs, takes};
use super::{Arg, Element, Epilogue, Gemm, Operand, Ptr, Queue, native};
use crate::deconv2x2::composed;
use crate::{DeconvOps, Precision};

/// The small map, channels of the small and of the large one.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    height: usize,
    width: usize,
    inputs: usize,
    outputs: usize,
    element: Element,
}

impl Sizes {
    fn pixels(&self) -> usize {
        self.batch * self.height * self.width
    }

    /// Numbers of the weight.
    fn weights(&self) -> usize {
        4 * self.inputs * self.outputs
    }

    /// Numbers of the large map.
    fn large(&self) -> usize {
        4 * self.pixels() * self.outputs
    }

    /// The weight `[in, out, 2, 2]` as operands `[in, 2, 2, out]`.
    fn rows(&self, queue: &mut Queue<'_>, weight: Ptr, rows: Ptr) {
        let kernel = if self.element == Element::Bf16 { "deconv_rows_bf16" } else { "deconv_rows_f32" };
        launch(queue, kernel, self.inputs * self.outputs, &self.weight_args(weight, rows));
    }

    fn weight_args(&self, from: Ptr, to: Ptr) -> [Arg; 4] {
        [Arg::Ptr(from), Arg::Ptr(to), Arg::U32(self.inputs as u32), Arg::U32(self.outputs as u32)]
    }

    /// The large map's gradient as operands, the four pixels of each small one side by side.
    fn gather(&self, queue: &mut Queue<'_>, grad: Ptr, four: Ptr) {
        let kernel = if self.element == Element::Bf16 { "deconv_gather_bf16" } else { "deconv_gather_f32" };
        self.over_pixels(queue, kernel, &[grad, four]);
    }

    fn over_pixels(&self, queue: &mut Queue<'_>, kernel: &'static str, at: &[Ptr]) {
        let mut args: Vec<Arg> = at.iter().map(|&at| Arg::Ptr(at)).collect();
        let sizes = [self.batch, self.height, self.width, self.outputs];
        args.extend(sizes.map(|size| Arg::U32(size as u32)));
        launch(queue, kernel, 4 * self.pixels() * self.outputs.div_ceil(8), &args);
    }

    /// A matmul `[m, n]` over `k`.
    fn multiply(&self, queue: &mut Queue<'_>, [m, n, k]: [usize; 3], a: Operand, b: Operand, d: Ptr) {
        queue.gemm(&Gemm {
            m,
            n,
            k,
            a,
            b,
            d,
            ldd: n,
            operands: self.element,
            result: Element::F32,
            batch: None,
            epilogue: Epilogue::None,
            accumulate: false,
        });
    }

    /// The small map as operands: at `scratch` where it has to be rounded.
    fn small(&self, queue: &mut Queue<'_>, x: Ptr, scratch: Ptr) -> Ptr {
        if self.element == Element::F32 {
            return x;
        }
        casts::many(queue, &[Cast::to_bf16(x, scratch, self.pixels() * self.inputs)]);
        scratch
    }

    fn small_bytes(&self) -> usize {
        if self.element == Element::F32 { 0 } else { part(self.pixels() * self.inputs, self.element) }
    }
}

fn fits(x: &Tensor, channels: usize) -> bool {
    takes(&[x]) && numbered(4 * x.shape[0] * x.shape[1] * x.shape[2], channels.max(x.shape[3]))
}

impl<BT: BoolElement> DeconvOps for Cuda<BT> {
    fn fuses_deconv2x2(x: &FloatTensor<Self>) -> bool {
        fits(x, 1 << 13)
    }

    fn fused_deconv2x2(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if !fits(&x, weight.shape[1]) || !takes(&[&weight, &bias]) {
            return composed::deconv2x2::<Self>(x, weight, bias, precision);
        }
        let [batch, height, width, inputs] = [0, 1, 2, 3].map(|axis| x.shape[axis]);
        let (outputs_of, element) = (weight.shape[1], operands(precision));
        let sizes = Sizes { batch, height, width, inputs, outputs: outputs_of, element };
        let result = vec![(Shape::new([batch, 2 * height, 2 * width, outputs_of]), DType::F32)];
        let (small, rows) = (sizes.small_bytes(), part(sizes.weights(), element));
        let scratch = small + rows + part(sizes.large(), Element::F32);
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            let weight = Ptr(scratch.0 + small as u64);
            let four = Ptr(weight.0 + rows as u64);
            let x = sizes.small(queue, i[0], scratch);
            sizes.rows(queue, i[1], weight);
            let wide = 4 * sizes.outputs;
            let a = Operand { at: x, transposed: false, ld: sizes.inputs };
            let b = Operand { at: weight, transposed: false, ld: wide };
            sizes.multiply(queue, [sizes.pixels(), wide, sizes.inputs], a, b, four);
            sizes.over_pixels(queue, "deconv_spread", &[four, i[2], o[0]]);
        };
        let [y] = outputs(native::<BT>("deconv2x2", vec![x, weight, bias], result, scratch, run));
        y
    }

    fn fused_deconv2x2_backward_input(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let [batch, height, width] = [0, 1, 2].map(|axis| grad.shape[axis] / if axis == 0 { 1 } else { 2 });
        let [inputs, outputs_of] = [weight.shape[0], weight.shape[1]];
        let element = operands(precision);
        let sizes = Sizes { batch, height, width, inputs, outputs: outputs_of, element };
        let result = vec![(Shape::new([batch, height, width, inputs]), DType::F32)];
        let rows = part(sizes.weights(), element);
        let scratch = rows + part(sizes.large(), element);
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            let four = Ptr(scratch.0 + rows as u64);
            sizes.rows(queue, i[0], scratch);
            sizes.gather(queue, i[1], four);
            let wide = 4 * sizes.outputs;
            let a = Operand { at: four, transposed: false, ld: wide };
            let b = Operand { at: scratch, transposed: true, ld: wide };
            sizes.multiply(queue, [sizes.pixels(), sizes.inputs, wide], a, b, o[0]);
        };
        let name = "deconv2x2_backward_input";
        let [dx] = outputs(native::<BT>(name, vec![weight, grad], result, scratch, run));
        dx
    }

    fn fused_deconv2x2_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let [batch, height, width, inputs] = [0, 1, 2, 3].map(|axis| x.shape[axis]);
        let (outputs_of, element) = (grad.shape[3], operands(precision));
        let sizes = Sizes { batch, height, width, inputs, outputs: outputs_of, element };
        let result = vec![(Shape::new([inputs, outputs_of, 2, 2]), DType::F32)];
        let (small, large) = (sizes.small_bytes(), part(sizes.large(), element));
        let scratch = small + large + part(sizes.weights(), Element::F32);
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            let four = Ptr(scratch.0 + small as u64);
            let rows = Ptr(four.0 + large as u64);
            let x = sizes.small(queue, i[0], scratch);
            sizes.gather(queue, i[1], four);
            let wide = 4 * sizes.outputs;
            let a = Operand { at: x, transposed: true, ld: sizes.inputs };
            let b = Operand { at: four, transposed: false, ld: wide };
            sizes.multiply(queue, [sizes.inputs, wide, sizes.pixels()], a, b, rows);
            let count = sizes.inputs * sizes.outputs;
            launch(queue, "deconv_weight_of_rows", count, &sizes.weight_args(rows, o[0]));
        };
        let name = "deconv2x2_backward_weight";
        let [dw] = outputs(native::<BT>(name, vec![x, grad], result, scratch, run));
        dw
    }
}
