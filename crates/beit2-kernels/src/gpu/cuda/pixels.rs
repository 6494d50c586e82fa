//! Cross entropy of every pixel of a map of logits that is enlarged to the size of the labels.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;

use super::loss::means;
use super::rows::{Cuda, Tensor, outputs, takes};
use super::{Arg, Element, Ptr, Queue, native, native_reusing};
use crate::pixel_cross_entropy::{PixelCrossEntropyOps, PixelLoss, composed};

/// Pixels of a block of the forward pass.
const PIXELS: usize = 256;
/// Small pixels of a block of the backward pass.
const SMALL: usize = 8;

/// `PixelMap` of `pixels.cu`: batch, rows, columns and classes of the logits, height and width of the labels.
#[derive(Debug, Clone, Copy)]
struct Map([usize; 6], bool);

impl Map {
    /// Of logits `[B, h, w, C]` in f32 and labels `[B, H, W]` in i32 or u8, if the kernels take them.
    fn of(logits: &Tensor, labels: &Tensor) -> Option<Self> {
        let bytes = labels.dtype == DType::U8;
        let [b, h, w, c] = [0, 1, 2, 3].map(|axis| logits.shape[axis]);
        let sizes = [b, h, w, c, labels.shape[1], labels.shape[2]];
        // Positions are whole numbers of 32 bits.
        let small = sizes[1..].iter().all(|&size| size < 1 << 15);
        let known = bytes || labels.dtype == DType::I32;
        (known && small && takes(&[logits])).then_some(Self(sizes, bytes))
    }

    fn pixels(&self) -> usize {
        self.0[0] * self.0[4] * self.0[5]
    }

    fn blocks(&self) -> usize {
        self.pixels().div_ceil(PIXELS)
    }

    /// Arguments of a kernel: the map, whether labels are bytes.
    fn args(&self) -> [Arg; 2] {
        let bytes = self.0.iter().flat_map(|&size| (size as u32).to_le_bytes()).collect();
        [Arg::Bytes(bytes), Arg::U32(u32::from(self.1))]
    }

    /// Loss and share of right pixels. `scratch` keeps what [`Map::backward`] reads, two numbers a pixel, first.
    fn forward(&self, queue: &mut Queue<'_>, i: &[Ptr], loss: Ptr, right: Ptr, scratch: Ptr) {
        let losses = scratch.offset(2 * self.pixels(), Element::F32);
        let hits = losses.offset(self.blocks(), Element::F32);
        let mut args = [i[0], i[1], scratch, losses].map(Arg::Ptr).to_vec();
        args.extend(self.args());
        let grid = [self.blocks() as u32, 1, 1];
        queue.launch("pixel_cross_entropy_forward", grid, [256, 1, 1], 0, &args);
        means(queue, [losses, hits], [loss, right], self.blocks(), self.pixels());
    }

    fn backward(&self, queue: &mut Queue<'_>, i: &[Ptr], grad: Ptr, scratch: Ptr) {
        let mut args = [i[0], i[1], scratch, grad].map(Arg::Ptr).to_vec();
        args.extend(self.args());
        args.push(Arg::F32((1.0 / self.pixels() as f64) as f32));
        let [batch, rows, cols, ..] = self.0;
        let grid = [(batch * rows * cols).div_ceil(SMALL) as u32, 1, 1];
        queue.launch("pixel_cross_entropy_backward", grid, [256, 1, 1], 0, &args);
    }

    fn scratch(&self) -> usize {
        (2 * self.pixels() + 2 * self.blocks()) * 4
    }
}

/// A vector of one number.
fn single() -> (Shape, DType) {
    (Shape::new([1]), DType::F32)
}

impl<BT: BoolElement> PixelCrossEntropyOps for Cuda<BT> {
    fn fused_pixel_cross_entropy(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let Some(map) = Map::of(&logits, &labels) else {
            return composed::pixel_cross_entropy::<Self>(logits, labels);
        };
        let (inputs, results) = (vec![logits, labels], vec![single(), single()]);
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            map.forward(queue, i, o[0], o[1], scratch);
        };
        let found = native::<BT>("pixel_cross_entropy", inputs, results, map.scratch(), run);
        let [loss, share] = outputs(found);
        (loss, share)
    }

    fn fused_pixel_cross_entropy_train(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
    ) -> PixelLoss<Self> {
        let Some(map) = Map::of(&logits, &labels) else {
            return composed::pixel_cross_entropy_train::<Self>(logits, labels);
        };
        let results = vec![single(), single(), (logits.shape.clone(), DType::F32)];
        let inputs = vec![logits, labels];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            map.forward(queue, i, o[0], o[1], scratch);
            map.backward(queue, i, o[2], scratch);
        };
        let found = native::<BT>("pixel_cross_entropy_train", inputs, results, map.scratch(), run);
        let [loss, share, gradient] = outputs(found);
        PixelLoss { loss, share, gradient }
    }

    fn fused_pixel_cross_entropy_backward(
        gradient: FloatTensor<Self>,
        upstream: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if !takes(&[&gradient, &upstream]) {
            return composed::pixel_cross_entropy_backward::<Self>(gradient, upstream);
        }
        let (count, results) = (gradient.shape.num_elements(), vec![(gradient.shape.clone(), DType::F32)]);
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _: Ptr| {
            let args = [Arg::Ptr(i[0]), Arg::Ptr(i[1]), Arg::Ptr(o[0]), Arg::U64(count as u64)];
            let grid = [count.div_ceil(2048) as u32, 1, 1];
            queue.launch("pixel_cross_entropy_scale", grid, [256, 1, 1], 0, &args);
        };
        let inputs = vec![gradient, upstream];
        let name = "pixel_cross_entropy_backward";
        let [scaled] = outputs(native_reusing::<BT>(name, inputs, results, 0, &[(0, 0)], run));
        scaled
    }
}
