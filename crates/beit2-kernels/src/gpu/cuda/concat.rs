//! Concatenation and its inverse ([`crate::ConcatOps`]), one launch each.

use std::ops::Range;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;

use super::rows::{Cuda, Tensor, takes};
use super::{Arg, Ptr, Queue, native, one};
use crate::concat::{ConcatOps, MOST, Part, composed};

/// Blocks over the rows of a call; each takes more where there are more rows.
const ROWS: usize = 4096;
/// Where parts of tensors begin that CubeCL does not copy: a multiple of its alignment of memory, bytes.
const VIEWS: usize = 512;

/// Elements of a row of each part, in order; a part with an address is read or written.
#[derive(Debug, Clone)]
struct Call {
    rows: usize,
    parts: Vec<(usize, bool)>,
}

impl Call {
    fn put(&self, queue: &mut Queue<'_>, kernel: &'static str, x: Ptr, parts: &[Ptr]) {
        let mut addresses = parts.iter();
        let (mut table, mut first) = (Vec::with_capacity(MOST * 16 + 8), 0);
        for &(width, there) in &self.parts {
            let at = if there { addresses.next().map_or(0, |at| at.0) } else { 0 };
            table.extend(at.to_le_bytes());
            table.extend([width as u32, first].map(u32::to_le_bytes).concat());
            first += width as u32;
        }
        table.resize(MOST * 16, 0);
        table.extend([self.parts.len() as u32, first].map(u32::to_le_bytes).concat());
        let by_four = self.parts.iter().all(|(width, _)| width.is_multiple_of(4));
        let of_block = 256 * if by_four { 4 } else { 1 };
        let grid = [first.div_ceil(of_block), self.rows.min(ROWS) as u32, 1];
        let args = [Arg::Bytes(table), Arg::Ptr(x), Arg::U32(self.rows as u32), Arg::U32(by_four.into())];
        queue.launch(kernel, grid, [256, 1, 1], 0, &args);
    }

    /// Whether its numbers fit a kernel's.
    fn fits(&self) -> bool {
        let joint: usize = self.parts.iter().map(|(width, _)| width).sum();
        self.parts.len() <= MOST && joint < 1 << 31 && self.rows < 1 << 31
    }
}

/// What lies before an axis, as one number, and what lies behind.
fn around(shape: &Shape, axis: usize) -> [usize; 2] {
    [shape[..axis].iter().product(), shape[axis + 1..].iter().product()]
}

impl<BT: BoolElement> ConcatOps for Cuda<BT> {
    fn fused_concat(parts: Vec<Part<FloatTensor<Self>>>, axis: usize) -> FloatTensor<Self> {
        let tensors: Vec<&Tensor> = parts.iter().filter_map(Part::tensor).collect();
        let mut shape = tensors[0].shape.clone();
        let [rows, behind] = around(&shape, axis);
        let call = Call {
            rows,
            parts: parts.iter().map(|part| (part.length(axis) * behind, part.tensor().is_some())).collect(),
        };
        if !takes(&tensors) || !call.fits() {
            return composed::concat::<Self>(parts, axis);
        }
        shape[axis] = parts.iter().map(|part| part.length(axis)).sum();
        let inputs = parts.into_iter().filter_map(|part| match part {
            Part::Tensor(tensor) => Some(tensor),
            Part::Zeros(_) => None,
        });
        let run =
            move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _| call.put(queue, "concat_f32", o[0], i);
        one(native::<BT>("concat", inputs.collect(), vec![(shape, DType::F32)], 0, run))
    }

    fn fused_split(x: FloatTensor<Self>, axis: usize, pieces: &[(usize, bool)]) -> Vec<FloatTensor<Self>> {
        let [rows, behind] = around(&x.shape, axis);
        let call =
            Call { rows, parts: pieces.iter().map(|(length, there)| (length * behind, *there)).collect() };
        let mut wanted = pieces.iter().filter(|(_, there)| *there).map(|(length, _)| *length).peekable();
        if !takes(&[&x]) || !call.fits() || wanted.peek().is_none() || wanted.any(|length| length == 0) {
            return composed::split::<Self>(x, axis, pieces);
        }
        let shape = |length: usize| {
            let mut shape: Shape = x.shape.clone();
            shape[axis] = length;
            (shape, DType::F32)
        };
        let results = pieces.iter().filter(|(_, there)| *there).map(|(length, _)| shape(*length)).collect();
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _| call.put(queue, "split_f32", i[0], o);
        native::<BT>("split", vec![x], results, 0, run).collect()
    }

    fn fused_narrow(x: FloatTensor<Self>, axis: usize, range: Range<usize>) -> FloatTensor<Self> {
        let ([_, behind], length) = (around(&x.shape, axis), x.shape[axis]);
        let bytes = [range.start, length - range.end].map(|count| count * behind * 4);
        // CubeCL gives a view of what lies at such places, and copies the rest by a kernel that needs its shape sent.
        if bytes.iter().all(|bytes| bytes.is_multiple_of(VIEWS)) || !takes(&[&x]) {
            return composed::narrow::<Self>(x, axis, range);
        }
        let pieces = [(range.start, false), (range.len(), true), (length - range.end, false)];
        let pieces: Vec<(usize, bool)> = pieces.into_iter().filter(|(length, _)| *length > 0).collect();
        one(Self::fused_split(x, axis, &pieces).into_iter())
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Cuda, Flex};
    use burn::tensor::DType;

    use crate::concat::tests as of;
    use crate::gpu::tests::{compare, on_cuda, run};
    use crate::testing::random;
    use crate::{narrow, qkv_bias};

    type Recording = Autodiff<Cuda<f32, i32>>;
    type Wide = Autodiff<Flex>;

    #[test]
    fn concatenations_on_cuda() {
        on_cuda(|_| {
            for (dims, axis) in
                [([2, 3, 5], 0), ([2, 3, 5], 1), ([70, 9, 5], 2), ([5000, 1, 4], 1), ([2, 700, 8], 1)]
            {
                let inputs = of::inputs(dims, axis);
                let got = run::<Recording>(&inputs, DType::F32, |x| of::run(x, dims, axis));
                let want = run::<Wide>(&inputs, DType::F64, |x| of::run(x, dims, axis));
                compare(&format!("concat {dims:?} along {axis}"), &got, &want, 1e-6);
            }
            for (axis, range) in [(0, 1..2), (1, 0..2), (2, 1..4), (2, 0..5)] {
                let inputs = [random(30, 1, 1.0)];
                let got = run::<Recording>(&inputs, DType::F32, |x| {
                    narrow(x[0].clone().reshape([2, 3, 5]), axis, range.clone()).reshape([-1])
                });
                let want = run::<Wide>(&inputs, DType::F64, |x| {
                    x[0].clone().reshape([2, 3, 5]).narrow(axis, range.start, range.len()).reshape([-1])
                });
                compare(&format!("narrow {range:?} of axis {axis}"), &got, &want, 0.0);
            }
            for width in [1, 7, 64, 768, 5000] {
                let inputs = [random(width, 1, 1.0), random(width, 2, 1.0)];
                let got = run::<Recording>(&inputs, DType::F32, |x| qkv_bias(x[0].clone(), x[1].clone()));
                let want = run::<Wide>(&inputs, DType::F64, |x| qkv_bias(x[0].clone(), x[1].clone()));
                compare(&format!("qkv_bias {width}"), &got, &want, 0.0);
            }
        });
    }
}
