//! The fast loss: bands of label rows, each row enlarged, compared and differentiated while it is in the
//! cache.

use super::PixelLoss;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::IGNORE;
use crate::bilinear::{Between, positions};
use crate::flex::{integers, owned, tensor, view};
use crate::memory::Buffer;
use crate::simd::{LANES, dispatch, exp, madd, max, reduce};

/// Bands that an image's labels are cut into: enough for many threads, and each much longer than the two
/// rows of gradient that neighbours share.
const BANDS: usize = 8;

pub(crate) fn forward(logits: FlexTensor, labels: FlexTensor) -> (FlexTensor, FlexTensor) {
    let (loss, share, _) = run(logits, labels, false);
    (loss, share)
}

pub(crate) fn forward_train(logits: FlexTensor, labels: FlexTensor) -> PixelLoss<burn::backend::Flex> {
    let (loss, share, gradient) = run(logits, labels, true);
    PixelLoss { loss, share, gradient }
}

/// Some rows of one image's labels.
struct Task<'a> {
    logits: &'a [f32],
    labels: &'a [u32],
    rows: &'a [Row],
}

/// Where a row of labels lies between two rows of logits.
type Row = (usize, usize, f32);

/// What a task found: sums over its pixels, and the gradient of the rows of logits from `first` on.
struct Found {
    loss: f64,
    right: u64,
    first: usize,
    gradient: Buffer,
}

fn run(logits: FlexTensor, labels: FlexTensor, train: bool) -> (FlexTensor, FlexTensor, FlexTensor) {
    let logits = owned(logits);
    let shape = logits.layout().shape().clone();
    let [batch, small_rows, small_cols, classes] = [shape[0], shape[1], shape[2], shape[3]];
    let size = labels.layout().shape().clone();
    let (height, width) = (size[1], size[2]);
    let labels = checked(&labels, classes);
    let place = |Between { low, high, share }: Between| (low, high, share as f32);
    let rows: Vec<Row> = positions(small_rows, height).map(place).collect();
    let cols: Vec<Row> = positions(small_cols, width).map(place).collect();
    let stride = small_cols * classes;
    let band = height.div_ceil(BANDS);
    let images = view(&logits).chunks_exact(small_rows * stride).zip(labels.chunks_exact(height * width));
    let tasks: Vec<Task<'_>> = images
        .flat_map(|(logits, labels)| {
            let parts = rows.chunks(band).zip(labels.chunks(band * width));
            parts.map(move |(rows, labels)| Task { logits, labels, rows })
        })
        .collect();
    let scale = 1.0 / labels.len() as f32;
    let found: Vec<Found> = tasks.par_iter().map(|task| task.run(&cols, classes, scale, train)).collect();
    let mut gradient = Buffer::zeros(if train { shape.num_elements() } else { 0 });
    if train {
        let per_image = found.len() / batch;
        gradient.par_chunks_mut(small_rows * stride).zip(found.par_chunks(per_image)).for_each(
            |(total, found)| {
                for part in found {
                    let total = &mut total[part.first * stride..][..part.gradient.len()];
                    total.iter_mut().zip(part.gradient.iter()).for_each(|(total, part)| *total += part);
                }
            },
        );
    }
    let n = labels.len() as f64;
    let number = |value: f64| {
        let mut one = Buffer::any(1);
        one[0] = (value / n) as f32;
        tensor(one, [1])
    };
    let loss = found.iter().map(|part| part.loss).sum();
    let right = found.iter().map(|part| part.right).sum::<u64>() as f64;
    let gradient = if train { tensor(gradient, shape) } else { tensor(gradient, [0]) };
    (number(loss), number(right), gradient)
}

/// The labels, each a class or [`IGNORE`].
fn checked(labels: &FlexTensor, classes: usize) -> Vec<u32> {
    let check = |label: i64| match usize::try_from(label) {
        Ok(id) if id < classes || id == usize::from(IGNORE) => id as u32,
        _ => panic!("pixel_cross_entropy: label {label} is not one of {classes} classes"),
    };
    integers(labels).into_iter().map(check).collect()
}

impl Task<'_> {
    fn run(&self, cols: &[Row], classes: usize, scale: f32, train: bool) -> Found {
        let width = cols.len();
        let stride = cols.last().map_or(1, |col| col.1 + 1) * classes;
        let (first, last) = match (self.rows.first(), self.rows.last()) {
            (Some(first), Some(last)) => (first.0, last.1),
            _ => (0, 0),
        };
        let count = if train { (last + 1 - first) * stride } else { 0 };
        let mut found = Found { loss: 0.0, right: 0, first, gradient: Buffer::zeros(count) };
        let (mut line, mut dline) = (Buffer::any(stride), Buffer::any(stride));
        let mut pixel = Buffer::any(classes);
        for (&(low, high, share), labels) in self.rows.iter().zip(self.labels.chunks_exact(width)) {
            let row = |at: usize| &self.logits[at * stride..][..stride];
            blend(row(low), row(high), share, &mut line);
            dline.fill(0.0);
            let dline = if train { &mut dline[..] } else { &mut [] };
            let (loss, right) = pixels(&line, cols, labels, scale, &mut pixel, dline);
            found.loss += loss;
            found.right += right;
            if train {
                add_scaled(dline, 1.0 - share, &mut found.gradient[(low - first) * stride..][..stride]);
                add_scaled(dline, share, &mut found.gradient[(high - first) * stride..][..stride]);
            }
        }
        found
    }
}

dispatch!(fn blend(a: &[f32], b: &[f32], share: f32, y: &mut [f32]) => blend_body);

#[inline(always)]
fn blend_body<const FMA: bool>(a: &[f32], b: &[f32], share: f32, y: &mut [f32]) {
    for (y, (a, b)) in y.iter_mut().zip(a.iter().zip(b)) {
        *y = madd::<FMA>(b - a, share, *a);
    }
}

dispatch!(fn add_scaled(x: &[f32], factor: f32, total: &mut [f32]) => add_scaled_body);

#[inline(always)]
fn add_scaled_body<const FMA: bool>(x: &[f32], factor: f32, total: &mut [f32]) {
    for (total, x) in total.iter_mut().zip(x) {
        *total = madd::<FMA>(*x, factor, *total);
    }
}

dispatch!(
    /// Loss and right pixels of a row of labels whose logits are `line`; the gradient of `line` is added to
    /// `dline` unless that is empty. `pixel` is room for one pixel's logits.
    fn pixels(
        line: &[f32],
        cols: &[Row],
        labels: &[u32],
        scale: f32,
        pixel: &mut [f32],
        dline: &mut [f32],
    ) -> (f64, u64) => pixels_body
);

#[inline(always)]
fn pixels_body<const FMA: bool>(
    line: &[f32],
    cols: &[Row],
    labels: &[u32],
    scale: f32,
    pixel: &mut [f32],
    dline: &mut [f32],
) -> (f64, u64) {
    let classes = pixel.len();
    let (mut loss, mut right) = (0.0, 0);
    for (&(low, high, share), &label) in cols.iter().zip(labels) {
        if label == u32::from(IGNORE) {
            continue;
        }
        let label = label as usize;
        blend_body::<FMA>(
            &line[low * classes..][..classes],
            &line[high * classes..][..classes],
            share,
            pixel,
        );
        let top = max(pixel);
        let own = pixel[label];
        // Of equal logits the first class counts.
        right += u64::from(own == top && !pixel[..label].contains(&top));
        let total = exponentials::<FMA>(pixel, top);
        loss += f64::from(total.ln() - (own - top));
        if dline.is_empty() {
            continue;
        }
        let factor = scale / total;
        pixel.iter_mut().for_each(|p| *p *= factor);
        pixel[label] -= scale;
        add_scaled_body::<FMA>(pixel, 1.0 - share, &mut dline[low * classes..][..classes]);
        add_scaled_body::<FMA>(pixel, share, &mut dline[high * classes..][..classes]);
    }
    (loss, right)
}

/// Logits become `e^(logit − top)`; gives their sum.
#[inline(always)]
fn exponentials<const FMA: bool>(pixel: &mut [f32], top: f32) -> f32 {
    let (chunks, tail) = pixel.as_chunks_mut::<LANES>();
    let mut acc = [0.0; LANES];
    for c in chunks {
        for i in 0..LANES {
            c[i] = exp::<FMA>(c[i] - top);
            acc[i] += c[i];
        }
    }
    for (a, x) in acc.iter_mut().zip(tail) {
        *x = exp::<FMA>(*x - top);
        *a += *x;
    }
    reduce(acc)
}
