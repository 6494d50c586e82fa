//! The weights of one direction, as Pillow computes them.

use std::ops::Range;

use crate::transform::resize::Interpolation;

/// Bits behind the point of a weight: what is left of 32 after 8 for the value and 2 for overshoot.
pub(super) const PRECISION: u32 = 32 - 8 - 2;

/// Half a level, added before the bits behind the point are cut off.
pub(super) const HALF: i32 = 1 << (PRECISION - 1);

/// One direction of a resize, of which a part of the outputs may be wanted and a part of the inputs given.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// Length of the whole input.
    pub from: usize,
    /// Length of the whole output.
    pub to: usize,
    /// The outputs that are wanted.
    pub outputs: Range<usize>,
    /// Where in the whole input the given part begins.
    pub origin: usize,
}

impl Axis {
    /// All outputs of all inputs.
    pub fn whole(from: usize, to: usize) -> Self {
        Self { from, to, outputs: 0..to, origin: 0 }
    }

    /// The inputs that the outputs look at, in the whole input.
    pub fn inputs(&self, filter: Interpolation) -> Range<usize> {
        if self.from == self.to || self.outputs.is_empty() {
            return self.outputs.clone();
        }
        let shape = Shape::new(self.from, self.to, filter);
        shape.inputs(self.outputs.start).start..shape.inputs(self.outputs.end - 1).end
    }
}

/// The weights of one direction: for each output pixel, where its inputs start and how much each
/// counts.
pub(super) struct Kernel {
    /// First input of each output, counted from the first that is given.
    pub starts: Vec<usize>,
    /// Inputs of each output, at least 1.
    pub lengths: Vec<usize>,
    /// Fixed point, output after output.
    pub weights: Vec<i32>,
}

impl Kernel {
    pub fn new(axis: &Axis, filter: Interpolation) -> Self {
        let shape = Shape::new(axis.from, axis.to, filter);
        let count = axis.outputs.len();
        let most = (2.0 * shape.support) as usize + 2;
        let mut kernel = Self {
            starts: Vec::with_capacity(count),
            lengths: Vec::with_capacity(count),
            weights: Vec::with_capacity(count * most),
        };
        let mut exact: Vec<f64> = Vec::with_capacity(most);
        for out in axis.outputs.clone() {
            let (center, inputs) = (shape.center(out), shape.inputs(out));
            exact.clear();
            exact.extend(
                inputs.clone().map(|x| filter_value(filter, (x as f64 - center + 0.5) * (1.0 / shape.widen))),
            );
            let sum: f64 = exact.iter().sum();
            let fixed = |w: f64| {
                let scaled = w / sum * f64::from(1 << PRECISION);
                (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
            };
            kernel.starts.push(inputs.start - axis.origin);
            kernel.lengths.push(inputs.len());
            kernel.weights.extend(exact.iter().map(|&w| fixed(w)));
        }
        kernel
    }

    /// Start and weights of each output pixel.
    #[inline(always)]
    pub fn outputs(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let mut rest = self.weights.as_slice();
        self.starts.iter().zip(&self.lengths).map(move |(&start, &length)| {
            let (weights, behind) = rest.split_at(length);
            rest = behind;
            (start, weights)
        })
    }

    /// The inputs that any output looks at, counted from the first that is given.
    pub fn inputs(&self) -> Range<usize> {
        let ends = self.starts.iter().zip(&self.lengths).map(|(start, length)| start + length);
        self.starts.iter().copied().min().unwrap_or(0)..ends.max().unwrap_or(0)
    }
}

/// How outputs lie over inputs.
struct Shape {
    from: usize,
    /// Inputs per output.
    scale: f64,
    /// Why: when shrinking, the kernel is widened so that every input pixel counts (no aliasing).
    widen: f64,
    /// How far the widened kernel reaches on each side, in inputs.
    support: f64,
}

impl Shape {
    fn new(from: usize, to: usize, filter: Interpolation) -> Self {
        let scale = from as f64 / to as f64;
        let widen = scale.max(1.0);
        Self { from, scale, widen, support: filter_support(filter) * widen }
    }

    fn center(&self, out: usize) -> f64 {
        (out as f64 + 0.5) * self.scale
    }

    fn inputs(&self, out: usize) -> Range<usize> {
        let center = self.center(out);
        let start = (center - self.support + 0.5).max(0.0) as usize;
        start..((center + self.support + 0.5) as usize).min(self.from)
    }
}

/// How far the filter reaches on each side, in output pixels when shrinking and input pixels when
/// growing.
fn filter_support(filter: Interpolation) -> f64 {
    match filter {
        Interpolation::Bilinear => 1.0,
        Interpolation::Bicubic => 2.0,
        Interpolation::Lanczos => 3.0,
    }
}

#[inline(always)]
fn filter_value(filter: Interpolation, x: f64) -> f64 {
    let d = x.abs();
    match filter {
        Interpolation::Bilinear => (1.0 - d).max(0.0),
        // Keys 1981, "Cubic convolution interpolation for digital image processing", a = -0.5.
        Interpolation::Bicubic => {
            const A: f64 = -0.5;
            if d < 1.0 {
                ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0
            } else if d < 2.0 {
                (((d - 5.0) * d + 8.0) * d - 4.0) * A
            } else {
                0.0
            }
        }
        Interpolation::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
        Interpolation::Lanczos => 0.0,
    }
}

fn sinc(x: f64) -> f64 {
    let angle = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { angle.sin() / angle }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTERS: [Interpolation; 3] =
        [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos];

    #[test]
    fn weights_sum_to_one() {
        for (from, to) in [(1, 7), (500, 224), (224, 500), (4000, 3), (64, 64)] {
            for filter in FILTERS {
                for (start, weights) in Kernel::new(&Axis::whole(from, to), filter).outputs() {
                    let sum: i32 = weights.iter().sum();
                    assert!((sum - (1 << PRECISION)).unsigned_abs() as usize <= weights.len());
                    assert!(!weights.is_empty() && start + weights.len() <= from);
                }
            }
        }
    }

    #[test]
    fn a_part_of_the_outputs_has_the_weights_of_the_whole() {
        for filter in FILTERS {
            let whole = Kernel::new(&Axis::whole(50, 23), filter);
            let mut part = Axis { outputs: 7..15, ..Axis::whole(50, 23) };
            let inputs = part.inputs(filter);
            part.origin = inputs.start;
            let kernel = Kernel::new(&part, filter);
            assert_eq!(kernel.inputs(), 0..inputs.len());
            for ((start, weights), (expected, same)) in kernel.outputs().zip(whole.outputs().skip(7)) {
                assert_eq!((start + part.origin, weights), (expected, same));
            }
        }
    }
}
