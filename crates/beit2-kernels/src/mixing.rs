//! What augmentation does on the device: boxes that are replaced, and images that are mixed in pairs.
//!
//! Contract: as Burn's slices, products and sums; one launch each where that is many.

use std::ops::Range;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorData};

use crate::tensor::{unwrap, wrap};

/// A box of one image of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBox {
    /// Number of the image.
    pub image: usize,
    /// Rows of pixels.
    pub rows: Range<usize>,
    /// Columns of pixels.
    pub columns: Range<usize>,
}

/// How an image and its partner are mixed.
#[derive(Debug, Clone, PartialEq)]
pub enum PairMix {
    /// A box is the partner's.
    Cut {
        /// Rows of pixels.
        rows: Range<usize>,
        /// Columns of pixels.
        columns: Range<usize>,
    },
    /// λ times the image plus 1 − λ times the partner.
    Blend(f64),
}

/// Augmentation on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait MixingOps: BurnBackend {
    /// [`paste_boxes`].
    fn paste_boxes(x: FloatTensor<Self>, boxes: &[ImageBox], values: Vec<f32>) -> FloatTensor<Self> {
        composed::paste_boxes::<Self>(x, boxes, values)
    }

    /// [`mix_pairs`].
    fn mix_pairs(x: FloatTensor<Self>, mix: PairMix) -> FloatTensor<Self> {
        composed::mix_pairs::<Self>(x, mix)
    }
}

/// Replaces boxes of `x [B, C, H, W]` by `values`, `[C, rows, columns]` of each box in turn.
///
/// # Panics
/// If a box leaves the images, boxes are not in the order of their images with one for each at most, or there are not as many
/// values as the boxes have.
pub fn paste_boxes<B: MixingOps>(x: Tensor<B, 4>, boxes: &[ImageBox], values: Vec<f32>) -> Tensor<B, 4> {
    let [batch, channels, height, width] = x.dims();
    for place in boxes {
        let inside = place.image < batch && place.rows.end <= height && place.columns.end <= width;
        assert!(inside, "paste_boxes: {place:?} is not in [{batch}, {channels}, {height}, {width}]");
    }
    assert!(
        boxes.is_sorted_by(|a, b| a.image < b.image),
        "paste_boxes: an image has two boxes, or a later one"
    );
    let count: usize = boxes.iter().map(|place| channels * place.rows.len() * place.columns.len()).sum();
    assert!(count == values.len(), "paste_boxes: {} values for boxes of {count}", values.len());
    match boxes.is_empty() {
        true => x,
        false => wrap(B::paste_boxes(unwrap(x), boxes, values)),
    }
}

/// Mixes each image of `x [B, C, H, W]` with its partner, image B − 1 − i.
///
/// # Panics
/// If a box leaves the images.
pub fn mix_pairs<B: MixingOps>(x: Tensor<B, 4>, mix: PairMix) -> Tensor<B, 4> {
    let [_, _, height, width] = x.dims();
    if let PairMix::Cut { rows, columns } = &mix {
        let inside = rows.end <= height && columns.end <= width;
        assert!(inside, "mix_pairs: {rows:?} × {columns:?} is not in {height} × {width} pixels");
    }
    wrap(B::mix_pairs(unwrap(x), mix))
}

/// Burn's primitives on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn paste_boxes<B: BurnBackend>(
        x: FloatTensor<B>,
        boxes: &[ImageBox],
        values: Vec<f32>,
    ) -> FloatTensor<B> {
        let mut x = wrap::<B, 4>(x);
        let (channels, mut values, device) = (x.dims()[1], values.into_iter(), x.device());
        for ImageBox { image, rows, columns } in boxes.iter().cloned() {
            let dims = [1, channels, rows.len(), columns.len()];
            let own: Vec<f32> = values.by_ref().take(dims.iter().product()).collect();
            let own = Tensor::from_data(TensorData::new(own, dims), &device);
            x = x.slice_assign([image..image + 1, 0..channels, rows, columns], own);
        }
        unwrap(x)
    }

    pub(crate) fn mix_pairs<B: BurnBackend>(x: FloatTensor<B>, mix: PairMix) -> FloatTensor<B> {
        let x = wrap::<B, 4>(x);
        unwrap(match mix {
            PairMix::Cut { rows, columns } => {
                let [batch, channels, ..] = x.dims();
                let place = [0..batch, 0..channels, rows, columns];
                let patch = x.clone().slice(place.clone()).flip([0]);
                x.slice_assign(place, patch)
            }
            PairMix::Blend(lambda) => {
                let partner = x.clone().flip([0]);
                x.mul_scalar(lambda) + partner.mul_scalar(1.0 - lambda)
            }
        })
    }
}

impl<B: MixingOps, C: CheckpointStrategy> MixingOps for Autodiff<B, C> {}

impl MixingOps for Flex {}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{Int, Tensor};

    use super::{ImageBox, PairMix, mix_pairs, paste_boxes};

    /// 0, 1, 2, …
    fn numbers(dims: [usize; 4]) -> Tensor<Flex, 4> {
        Tensor::<Flex, 1, Int>::arange(0..dims.iter().product::<usize>() as i64, &Default::default())
            .float()
            .reshape(dims)
    }

    fn values(x: Tensor<Flex, 4>) -> Vec<f32> {
        x.into_data().into_vec().unwrap()
    }

    #[test]
    fn boxes_hold_their_values_and_nothing_else_changes() {
        let boxes = [
            ImageBox { image: 0, rows: 1..2, columns: 0..2 },
            ImageBox { image: 2, rows: 0..2, columns: 2..3 },
        ];
        let new: Vec<f32> = (1..=8).map(|value| -(value as f32)).collect();
        let found = values(paste_boxes(numbers([3, 2, 2, 3]), &boxes, new));
        let mut expected: Vec<f32> = (0..36).map(|value| value as f32).collect();
        // Image, channel, row, column: ((image · 2 + channel) · 2 + row) · 3 + column.
        for (at, value) in [3, 4, 9, 10, 26, 29, 32, 35].into_iter().zip(1..) {
            expected[at] = -(value as f32);
        }
        assert_eq!(found, expected);
        assert_eq!(values(paste_boxes(numbers([1, 1, 1, 2]), &[], vec![])), [0.0, 1.0]);
    }

    #[test]
    #[should_panic(expected = "an image has two boxes")]
    fn two_boxes_of_an_image_are_refused() {
        let place = ImageBox { image: 0, rows: 0..1, columns: 0..1 };
        paste_boxes(numbers([1, 1, 1, 2]), &[place.clone(), place], vec![1.0, 2.0]);
    }

    #[test]
    fn partners_are_mixed_from_the_ends() {
        let blended = values(mix_pairs(numbers([3, 1, 1, 2]), PairMix::Blend(0.75)));
        assert_eq!(blended, [1.0, 2.0, 2.0, 3.0, 3.0, 4.0]);
        let cut = values(mix_pairs(numbers([3, 1, 1, 2]), PairMix::Cut { rows: 0..1, columns: 1..2 }));
        assert_eq!(cut, [0.0, 5.0, 2.0, 3.0, 4.0, 1.0]);
    }
}
