//! 3×3 convolutions ([`crate::Conv3x3Ops`]) by cuBLASLt, on padded maps.
//!
//! With a border of zeros around each image, a tap of the kernel is the whole map moved by some rows of its flat form
//! `[B·(H+2)·(W+2), C]`. A convolution is three matmuls that add to one result: each pixel has its two neighbours beside it, so
//! that a row of taps is one product, and the three rows read the same copy of the map. More matmuls would read and write the
//! f32 result more often, and that would cost more than the copy. In f32 it is nine all the same, because that copy would take
//! gigabytes. The gradient of the weight is nine matmuls of two
//! padded maps, each with a result of its own. Results on the border are computed for nothing and dropped.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;
use cubecl::cuda::CudaDevice;

use super::rows::{Cuda, Tensor, outputs, takes};
use super::{Arg, Element, Epilogue, Gemm, Operand, Ptr, Queue, is_native, native};
use crate::conv3x3::composed;
use crate::{Conv3x3Ops, Precision};

/// Threads of a block of the kernels in `conv.cu`.
const THREADS: usize = 256;

/// Bytes from one part of scratch memory to the next.
pub(super) fn part(elements: usize, element: Element) -> usize {
    (elements * element.bytes()).next_multiple_of(512)
}

/// The type of operands in a precision.
pub(super) fn operands(precision: Precision) -> Element {
    match precision {
        Precision::F32 => Element::F32,
        Precision::Bf16 => Element::Bf16,
    }
}

/// One thread for each of `count` pieces.
pub(super) fn launch(queue: &mut Queue<'_>, kernel: &'static str, count: usize, args: &[Arg]) {
    queue.launch(kernel, [count.div_ceil(THREADS) as u32, 1, 1], [THREADS as u32, 1, 1], 0, args);
}

/// Whether threads can be numbered in 32 bits: one for 8 channels of each of so many pixels.
pub(super) fn numbered(pixels: usize, channels: usize) -> bool {
    pixels * channels.div_ceil(8) < 1 << 31
}

/// A map by its sizes.
#[derive(Debug, Clone, Copy)]
struct Map {
    batch: usize,
    height: usize,
    width: usize,
}

impl Map {
    fn of(x: &Tensor) -> Self {
        Self { batch: x.shape[0], height: x.shape[1], width: x.shape[2] }
    }

    fn pixels(&self) -> usize {
        self.batch * self.height * self.width
    }

    /// Pixels with those of the border.
    fn padded(&self) -> usize {
        self.batch * (self.height + 2) * (self.width + 2)
    }

    /// The first pixel that is not of a border, in the flat padded map; as many lie after the last.
    fn first(&self) -> usize {
        self.width + 3
    }

    /// Pixels from the first to the last that are not of a border.
    fn inner(&self) -> usize {
        self.padded() - 2 * self.first()
    }

    /// Where tap `tap` of a pixel lies in the flat padded map, seen from the first pixel of all.
    fn tap(&self, tap: usize) -> usize {
        tap / 3 * (self.width + 2) + tap % 3
    }

    fn args(&self, from: Ptr, to: Ptr, channels: usize) -> [Arg; 6] {
        let sizes = [self.batch, self.height, self.width, channels];
        let [b, h, w, c] = sizes.map(|size| Arg::U32(size as u32));
        [Arg::Ptr(from), Arg::Ptr(to), b, h, w, c]
    }

    /// A map with its border as operands, `[B·(H+2)·(W+2), taps, C]`: with three taps, neighbours beside each pixel.
    fn pad(
        &self,
        queue: &mut Queue<'_>,
        x: Ptr,
        padded: Ptr,
        [channels, taps]: [usize; 2],
        element: Element,
    ) {
        let kernel = if element == Element::Bf16 { "conv_pad_bf16" } else { "conv_pad_f32" };
        let mut args = self.args(x, padded, channels).to_vec();
        args.push(Arg::U32(taps as u32));
        launch(queue, kernel, self.padded() * taps * channels.div_ceil(8), &args);
    }

    fn crop(&self, queue: &mut Queue<'_>, padded: Ptr, y: Ptr, channels: usize) {
        let args = self.args(padded, y, channels);
        launch(queue, "conv_crop", self.pixels() * channels.div_ceil(8), &args);
    }
}

/// The weight `[out, in, 3, 3]` as operands `[3, out, 3, in]`, or flipped, `[3, 3, out, in]`.
fn taps(
    queue: &mut Queue<'_>,
    weight: Ptr,
    taps: Ptr,
    [outputs, inputs]: [usize; 2],
    flipped: bool,
    element: Element,
) {
    let kernel = if element == Element::Bf16 { "conv_taps_bf16" } else { "conv_taps_f32" };
    let sizes = [outputs, inputs, usize::from(flipped)].map(|number| Arg::U32(number as u32));
    let args: Vec<Arg> = [weight, taps].map(Arg::Ptr).into_iter().chain(sizes).collect();
    launch(queue, kernel, outputs * inputs, &args);
}

/// A convolution of `x` with `from` channels to one of `to`: of the input forward, of the gradient (`flipped`) backward.
fn convolve<BT: BoolElement>(
    name: &'static str,
    x: Tensor,
    weight: Tensor,
    precision: Precision,
    flipped: bool,
) -> Tensor {
    let (map, element) = (Map::of(&x), operands(precision));
    let [outputs_of, inputs_of] = [weight.shape[0], weight.shape[1]];
    let (from, to) = if flipped { (outputs_of, inputs_of) } else { (inputs_of, outputs_of) };
    let pairs = from * to;
    let result = vec![(Shape::new([map.batch, map.height, map.width, to]), DType::F32)];
    // Taps of one matmul: a row in bf16. In f32 one, because neighbours beside each pixel would take gigabytes.
    let side = if element == Element::Bf16 { 3 } else { 1 };
    let wide = side * from;
    let padded_bytes = part(map.padded() * wide, element);
    let taps_bytes = part(9 * pairs, element);
    let scratch = padded_bytes + taps_bytes + part(map.padded() * to, Element::F32);
    let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
        let padded = scratch;
        let weights = Ptr(padded.0 + padded_bytes as u64);
        let sums = Ptr(weights.0 + taps_bytes as u64);
        map.pad(queue, i[0], padded, [from, side], element);
        taps(queue, i[1], weights, [outputs_of, inputs_of], flipped, element);
        for first in (0..9).step_by(side) {
            let weight = if flipped { first * pairs } else { first / 3 * 3 * pairs + first % 3 * from };
            queue.gemm(&Gemm {
                m: map.inner(),
                n: to,
                k: wide,
                a: Operand {
                    at: padded.offset(map.tap(first + side / 2) * wide, element),
                    transposed: false,
                    ld: wide,
                },
                b: Operand {
                    at: weights.offset(weight, element),
                    transposed: !flipped,
                    ld: if flipped { to } else { 3 * from },
                },
                d: sums.offset(map.first() * to, Element::F32),
                ldd: to,
                operands: element,
                result: Element::F32,
                batch: None,
                epilogue: Epilogue::None,
                accumulate: first > 0,
            });
        }
        map.crop(queue, sums, o[0], to);
    };
    let [y] = outputs(native::<BT>(name, vec![x, weight], result, scratch, run));
    y
}

/// Whether these tensors take the native path: a map and a weight, or two maps.
fn fits(map: &Tensor, other: &Tensor) -> bool {
    let channels = map.shape[3].max(other.shape[0].max(other.shape[3]).max(other.shape[1]));
    takes(&[map, other]) && numbered(3 * Map::of(map).padded(), channels) && 9 * channels * channels < 1 << 31
}

impl<BT: BoolElement> Conv3x3Ops for Cuda<BT> {
    fn conv_precision(device: &CudaDevice, precision: Precision) -> Precision {
        if is_native(device) { precision } else { Precision::F32 }
    }

    fn fused_conv3x3(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if !fits(&x, &weight) {
            return composed::conv3x3::<Self>(x, weight);
        }
        convolve::<BT>("conv3x3", x, weight, precision, false)
    }

    fn fused_conv3x3_backward_input(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if !fits(&grad, &weight) {
            return composed::conv3x3_backward_input::<Self>(weight, grad);
        }
        convolve::<BT>("conv3x3_backward_input", grad, weight, precision, true)
    }

    fn fused_conv3x3_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if !fits(&x, &grad) {
            return composed::conv3x3_backward_weight::<Self>(x, grad);
        }
        let (map, element) = (Map::of(&x), operands(precision));
        let [inputs_of, outputs_of] = [&x, &grad].map(|x| x.shape[3]);
        let pairs = inputs_of * outputs_of;
        let result = vec![(Shape::new([outputs_of, inputs_of, 3, 3]), DType::F32)];
        let x_bytes = part(map.padded() * inputs_of, element);
        let grad_bytes = part(map.padded() * outputs_of, element);
        let scratch = x_bytes + grad_bytes + part(9 * pairs, Element::F32);
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            let padded = scratch;
            let padded_grad = Ptr(padded.0 + x_bytes as u64);
            let sums = Ptr(padded_grad.0 + grad_bytes as u64);
            map.pad(queue, i[0], padded, [inputs_of, 1], element);
            map.pad(queue, i[1], padded_grad, [outputs_of, 1], element);
            // The gradient is 0 on the border, so that what lies there in the moved map does not count.
            let grad = padded_grad.offset(map.first() * outputs_of, element);
            for tap in 0..9 {
                queue.gemm(&Gemm {
                    m: outputs_of,
                    n: inputs_of,
                    k: map.inner(),
                    a: Operand { at: grad, transposed: true, ld: outputs_of },
                    b: Operand {
                        at: padded.offset(map.tap(tap) * inputs_of, element),
                        transposed: false,
                        ld: inputs_of,
                    },
                    d: sums.offset(tap * pairs, Element::F32),
                    ldd: inputs_of,
                    operands: element,
                    result: Element::F32,
                    batch: None,
                    epilogue: Epilogue::None,
                    accumulate: false,
                });
            }
            let args = [Arg::Ptr(sums), Arg::Ptr(o[0]), Arg::U32(pairs as u32)];
            launch(queue, "conv_weight_of_taps", pairs, &args);
        };
        let [dw] = outputs(native::<BT>("conv3x3_backward_weight", vec![x, grad], result, scratch, run));
        dw
    }
}
