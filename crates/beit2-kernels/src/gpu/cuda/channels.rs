//! Batch normalization: as one operation ([`crate::BatchNormOps`]), and its halves for several devices
//! ([`crate::ChannelMomentsOps`], [`crate::ChannelNormOps`]).
//!
//! Forward, the rows are read three times (mean, deviation from it, result) and written once; backward, rows and gradients
//! are read twice and written once.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;

use super::columns::{self, Partial};
use super::norm::optional;
use super::rows::{Cuda, Tensor, dims, outputs, takes};
use super::{Arg, Element, Ptr, Queue, native};
use crate::batch_norm::{self, BatchNormOps, ChannelAffine, Recorded, RunningMoments, RunningOf};
use crate::channel_moments::{self, ChannelMomentsOps};
use crate::channel_norm::{self, ChannelGradients, ChannelNormOps};

/// Norms of one launch: `RunningTable` in `channels.cu`.
const NORMS: usize = 48;

/// Rows by channels.
#[derive(Debug, Clone, Copy)]
struct Rows {
    count: usize,
    width: usize,
}

impl Rows {
    /// If the kernels take these tensors, of which the first has the rows.
    fn of(tensors: &[&Tensor]) -> Option<Self> {
        let [count, width] = dims(tensors[0]);
        (takes(tensors) && columns::fits(width)).then_some(Self { count, width })
    }

    /// Of one sum.
    fn scratch(&self) -> usize {
        columns::scratch(self.count, self.width).next_multiple_of(512)
    }

    fn launch(&self, queue: &mut Queue<'_>, kernel: &'static str, at: &[Arg], more: &[Arg]) -> [u32; 3] {
        let grid = columns::grid(columns::processors(queue), self.count, self.width);
        let mut args = at.to_vec();
        args.extend([Arg::U64(self.count as u64), Arg::U32(self.width as u32)]);
        args.extend_from_slice(more);
        queue.launch(kernel, grid, [256, 1, 1], 0, &args);
        grid
    }

    fn partial(&self, at: Ptr, grid: [u32; 3], to: Ptr) -> Partial {
        Partial { at, rows: grid[1], width: self.width as u32, pitch: self.width as u32, to }
    }

    /// What one row is of all.
    fn share(&self) -> f32 {
        (1.0 / self.count as f64) as f32
    }

    /// Mean and variance.
    fn moments(&self, queue: &mut Queue<'_>, x: Ptr, [mean, var]: [Ptr; 2], scratch: Ptr) {
        for (around, to) in [(None, mean), (Some(mean), var)] {
            let at = [Arg::Ptr(x), optional(around), Arg::Ptr(scratch)];
            let grid = self.launch(queue, "channels_sums", &at, &[Arg::F32(self.share())]);
            columns::finish(queue, &[self.partial(scratch, grid, to)]);
        }
    }

    fn norm(&self, queue: &mut Queue<'_>, x: Ptr, lines: &Lines, y: Ptr, factors: [f32; 2]) {
        let mut at = vec![Arg::Ptr(x)];
        at.extend(lines.args());
        at.push(Arg::Ptr(y));
        let [scale, shift] = factors.map(Arg::F32);
        let more = [Arg::F32(lines.eps), scale, shift, Arg::U32(u32::from(lines.relu))];
        self.launch(queue, "channels_norm", &at, &more);
    }

    /// Gradients of scale, shift and x, and of the mean where that is a constant.
    fn gradients(
        &self,
        queue: &mut Queue<'_>,
        [x, grad]: [Ptr; 2],
        lines: &Lines,
        [dscale, dshift, dx]: [Ptr; 3],
        dmean: Option<Ptr>,
        scratch: Ptr,
    ) {
        let of_scale = Ptr(scratch.0 + self.scratch() as u64);
        let relu = Arg::U32(u32::from(lines.relu));
        let mut at = vec![Arg::Ptr(x), Arg::Ptr(grad)];
        at.extend(lines.args());
        let mut sums = at.clone();
        sums.extend([scratch, of_scale].map(Arg::Ptr));
        let more = [Arg::F32(lines.eps), relu.clone()];
        let grid = self.launch(queue, "channels_gradient_sums", &sums, &more);
        let partials = [self.partial(scratch, grid, dshift), self.partial(of_scale, grid, dscale)];
        columns::finish(queue, &partials);
        at.extend([dscale, dshift].map(Arg::Ptr));
        at.extend([optional(dmean), Arg::Ptr(dx)]);
        let more = [Arg::F32(lines.eps), Arg::F32(self.share()), relu];
        self.launch(queue, "channels_gradient", &at, &more);
    }
}

/// What a norm does with each channel.
struct Lines {
    mean: Ptr,
    /// The scale still has to be divided by the deviation.
    var: Option<Ptr>,
    scale: Ptr,
    shift: Ptr,
    eps: f32,
    relu: bool,
}

impl Lines {
    fn args(&self) -> [Arg; 4] {
        [Arg::Ptr(self.mean), optional(self.var), Arg::Ptr(self.scale), Arg::Ptr(self.shift)]
    }
}

/// A vector for the channels.
fn vector(width: usize) -> (Shape, DType) {
    (Shape::new([width]), DType::F32)
}

impl<BT: BoolElement> BatchNormOps for Cuda<BT> {
    fn fuses_batch_norm(x: &FloatTensor<Self>) -> bool {
        Rows::of(&[x]).is_some()
    }

    fn fused_batch_norm(
        x: FloatTensor<Self>,
        affine: ChannelAffine<FloatTensor<Self>>,
    ) -> (FloatTensor<Self>, [FloatTensor<Self>; 2]) {
        let ChannelAffine { weight, bias, eps, relu } = affine;
        let [count, width] = dims(&x);
        let rows = Rows { count, width };
        let results = vec![(x.shape.clone(), DType::F32), vector(width), vector(width)];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            rows.moments(queue, i[0], [o[1], o[2]], scratch);
            let var = Some(o[2]);
            let lines = Lines { mean: o[1], var, scale: i[1], shift: i[2], eps: eps as f32, relu };
            rows.norm(queue, i[0], &lines, o[0], [1.0; 2]);
        };
        let found = native::<BT>("batch_norm", vec![x, weight, bias], results, rows.scratch(), run);
        let [y, mean, var] = outputs(found);
        (y, [mean, var])
    }

    fn fused_batch_norm_backward(
        x: FloatTensor<Self>,
        moments: [FloatTensor<Self>; 2],
        affine: ChannelAffine<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, [FloatTensor<Self>; 2]) {
        let ChannelAffine { weight, bias, eps, relu } = affine;
        let [count, width] = dims(&x);
        let rows = Rows { count, width };
        let results = vec![(x.shape.clone(), DType::F32), vector(width), vector(width)];
        let [mean, var] = moments;
        let inputs = vec![x, grad, mean, var, weight, bias];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            let var = Some(i[3]);
            let lines = Lines { mean: i[2], var, scale: i[4], shift: i[5], eps: eps as f32, relu };
            rows.gradients(queue, [i[0], i[1]], &lines, [o[1], o[2], o[0]], None, scratch);
        };
        let found = native::<BT>("batch_norm_backward", inputs, results, 2 * rows.scratch(), run);
        let [dx, dweight, dbias] = outputs(found);
        (dx, [dweight, dbias])
    }

    fn fused_record_moments(
        norms: Vec<RunningOf<Self>>,
        momentum: f64,
    ) -> Vec<Recorded<FloatTensor<Self>, IntTensor<Self>>> {
        let fits = |norm: &RunningOf<Self>| {
            let [mean, var] = &norm.running;
            let [seen_mean, seen_var] = &norm.seen;
            takes(&[mean, var, seen_mean, seen_var]) && norm.batches.dtype == DType::I32
        };
        if !norms.iter().all(fits) {
            return batch_norm::composed::record_moments::<Self>(norms, momentum);
        }
        let mut recorded = Vec::with_capacity(norms.len());
        let mut norms = norms.into_iter();
        loop {
            let (mut inputs, mut results, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
            for RunningMoments { running, batches, seen, unbiased } in norms.by_ref().take(NORMS) {
                let width = running[0].shape.num_elements();
                results.extend([vector(width), vector(width), (batches.shape.clone(), DType::I32)]);
                inputs.extend(running);
                inputs.extend(seen);
                inputs.push(batches);
                sizes.push((width as u32, unbiased as f32));
            }
            if sizes.is_empty() {
                return recorded;
            }
            let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _: Ptr| {
                let mut table = Vec::with_capacity(NORMS * 72 + 8);
                for ((from, to), (width, unbiased)) in i.chunks(5).zip(o.chunks(3)).zip(&sizes) {
                    from.iter().chain(to).for_each(|at| table.extend(at.0.to_le_bytes()));
                    table.extend(width.to_le_bytes());
                    table.extend(unbiased.to_le_bytes());
                }
                table.resize(NORMS * 72, 0);
                for share in [1.0 - momentum, momentum] {
                    table.extend((share as f32).to_le_bytes());
                }
                let grid = [sizes.len() as u32, 1, 1];
                queue.launch("channels_record", grid, [256, 1, 1], 0, &[Arg::Bytes(table)]);
            };
            let mut found = native::<BT>("record_moments", inputs, results, 0, run);
            while let (Some(mean), Some(var), Some(batches)) = (found.next(), found.next(), found.next()) {
                recorded.push(([mean, var], batches));
            }
        }
    }
}

impl<BT: BoolElement> ChannelMomentsOps for Cuda<BT> {
    fn fused_channel_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let Some(rows) = Rows::of(&[&x]) else {
            return channel_moments::composed::channel_moments::<Self>(x);
        };
        let results = vec![(Shape::new([2, rows.width]), DType::F32)];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            rows.moments(queue, i[0], [o[0], o[0].offset(rows.width, Element::F32)], scratch);
        };
        let [moments] = outputs(native::<BT>("channel_moments", vec![x], results, rows.scratch(), run));
        moments
    }

    fn fused_channel_moments_backward(
        x: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let Some(rows) = Rows::of(&[&x, &moments, &grad]) else {
            return channel_moments::composed::channel_moments_backward::<Self>(x, moments, grad);
        };
        let results = vec![(x.shape.clone(), DType::F32)];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _: Ptr| {
            // The gradients of mean and variance are shift and scale of a line through the mean.
            let scale = i[2].offset(rows.width, Element::F32);
            let lines = Lines { mean: i[1], var: None, scale, shift: i[2], eps: 0.0, relu: false };
            rows.norm(queue, i[0], &lines, o[0], [2.0 * rows.share(), rows.share()]);
        };
        let inputs = vec![x, moments, grad];
        let [dx] = outputs(native::<BT>("channel_moments_backward", inputs, results, 0, run));
        dx
    }
}

impl<BT: BoolElement> ChannelNormOps for Cuda<BT> {
    fn fused_channel_norm(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        relu: bool,
    ) -> FloatTensor<Self> {
        let Some(rows) = Rows::of(&[&x, &mean, &scale, &shift]) else {
            return channel_norm::composed::channel_norm::<Self>(x, mean, scale, shift, relu);
        };
        let results = vec![(x.shape.clone(), DType::F32)];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _: Ptr| {
            let lines = Lines { mean: i[1], var: None, scale: i[2], shift: i[3], eps: 0.0, relu };
            rows.norm(queue, i[0], &lines, o[0], [1.0; 2]);
        };
        let inputs = vec![x, mean, scale, shift];
        let [y] = outputs(native::<BT>("channel_norm", inputs, results, 0, run));
        y
    }

    fn fused_channel_norm_backward(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        relu: bool,
    ) -> ChannelGradients<Self> {
        let Some(rows) = Rows::of(&[&x, &mean, &scale, &shift, &grad]) else {
            return channel_norm::composed::channel_norm_backward::<Self>(x, mean, scale, shift, grad, relu);
        };
        let width = rows.width;
        let results = vec![(x.shape.clone(), DType::F32), vector(width), vector(width), vector(width)];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            let lines = Lines { mean: i[2], var: None, scale: i[3], shift: i[4], eps: 0.0, relu };
            rows.gradients(queue, [i[0], i[1]], &lines, [o[2], o[3], o[0]], Some(o[1]), scratch);
        };
        let inputs = vec![x, grad, mean, scale, shift];
        let found = native::<BT>("channel_norm_backward", inputs, results, 2 * rows.scratch(), run);
        let [dx, dmean, dscale, dshift] = outputs(found);
        (dx, [dmean, dscale, dshift])
    }
}
