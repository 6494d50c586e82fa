//! What segmentation heads do with channels-last maps beside convolutions and norms: resizing, putting side by side, pooling,
//! factors for channels.
//!
//! Contract: [`resize_concat`] and [`resize_add`] resize as [`bilinear`](crate::bilinear) does; no resized map is
//! kept beside the result. A GPU does each in a pass or two, with a backward pass of its own that adds in a fixed order;
//! elsewhere they are Burn's primitives.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorData, TensorMetadata};

use crate::bilinear::bilinear;
use crate::graph::{accumulate, constant, record};
use crate::residual_scale::ResidualScaleOps;
use crate::tensor::{unwrap, wrap};

/// Batch, height, width and channels.
pub type MapDims = [usize; 4];

/// Operations on maps on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait MapOps: ResidualScaleOps {
    /// Whether these operations are one computation each for such a map, with backward passes of their own.
    fn fuses_maps(_x: &FloatTensor<Self>) -> bool {
        false
    }

    /// [`resize_concat`](crate::resize_concat).
    fn fused_resize_concat(maps: Vec<FloatTensor<Self>>, size: [usize; 2]) -> FloatTensor<Self> {
        composed::resize_concat::<Self>(maps, size)
    }

    /// Gradients of the maps of these sizes, where `wanted`; only where it is one computation.
    fn fused_resize_concat_backward(
        _grad: FloatTensor<Self>,
        _maps: Vec<MapDims>,
        _wanted: Vec<bool>,
    ) -> Vec<Option<FloatTensor<Self>>> {
        unreachable!("resize_concat is composed here")
    }

    /// [`resize_add`](crate::resize_add). The gradient of the small map is that of [`resize_concat`](crate::resize_concat) alone.
    fn fused_resize_add(x: FloatTensor<Self>, small: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::resize_add::<Self>(x, small)
    }

    /// [`cell_means`](crate::cell_means).
    fn fused_cell_means(x: FloatTensor<Self>, side: usize) -> FloatTensor<Self> {
        composed::cell_means::<Self>(x, side)
    }

    /// The gradient of a map of `size`; only where it is one computation.
    fn fused_cell_means_backward(_grad: FloatTensor<Self>, _size: [usize; 2]) -> FloatTensor<Self> {
        unreachable!("cell_means is composed here")
    }

    /// [`max_pool`](crate::max_pool).
    fn fused_max_pool(x: FloatTensor<Self>, side: usize) -> FloatTensor<Self> {
        composed::max_pool::<Self>(x, side)
    }

    /// The gradient of `x`; only where it is one computation.
    fn fused_max_pool_backward(
        _x: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
        _side: usize,
    ) -> FloatTensor<Self> {
        unreachable!("max_pool is composed here")
    }

    /// [`scale_channels`](crate::scale_channels), which is its own gradient.
    fn fused_scale_channels(x: FloatTensor<Self>, factors: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::scale_channels::<Self>(x, factors)
    }
}

fn dims<T: TensorMetadata>(x: &T) -> MapDims {
    std::array::from_fn(|axis| x.shape()[axis])
}

/// Maps `[B, hᵢ, wᵢ, Cᵢ]`, each resized, side by side: `[B, height, width, ΣCᵢ]`.
///
/// # Panics
/// If there are none, their batches differ, or a size is 0.
pub fn resize_concat<B: MapOps>(maps: Vec<Tensor<B, 4>>, height: usize, width: usize) -> Tensor<B, 4> {
    let sizes: Vec<_> = maps.iter().map(Tensor::dims).collect();
    assert!(
        sizes.iter().all(|map| map[0] == sizes[0][0] && map[1] * map[2] > 0) && height * width > 0,
        "resize_concat: cannot resize {sizes:?} to {height}×{width}"
    );
    wrap(B::fused_resize_concat(maps.into_iter().map(unwrap).collect(), [height, width]))
}

/// `x [B, H, W, C]` plus `small [B, h, w, C]` resized to its size.
///
/// # Panics
/// If batches or channels differ, or a size is 0.
pub fn resize_add<B: MapOps>(x: Tensor<B, 4>, small: Tensor<B, 4>) -> Tensor<B, 4> {
    let (map, other) = (x.dims(), small.dims());
    assert!(
        [map[0], map[3]] == [other[0], other[3]] && map[1] * map[2] * other[1] * other[2] > 0,
        "resize_add: cannot add {other:?} to {map:?}"
    );
    wrap(B::fused_resize_add(unwrap(x), unwrap(small)))
}

/// The means over a grid of cells that may overlap by a pixel, `[B, H, W, C]` → `[B, side, side, C]`: cell i goes
/// from ⌊i·H/side⌋ to ⌈(i+1)·H/side⌉ (PyTorch's adaptive average pooling).
pub fn cell_means<B: MapOps>(x: Tensor<B, 4>, side: usize) -> Tensor<B, 4> {
    wrap(B::fused_cell_means(unwrap(x), side))
}

/// The largest values of squares of `side` pixels, `[B, H, W, C]` → `[B, H/side, W/side, C]`; what is left at the
/// end is dropped.
pub fn max_pool<B: MapOps>(x: Tensor<B, 4>, side: usize) -> Tensor<B, 4> {
    wrap(B::fused_max_pool(unwrap(x), side))
}

/// `x [B, H, W, C]` times `factors [B, 1, 1, C]`, which are a constant to a graph.
///
/// # Panics
/// If the factors are not of that shape.
pub fn scale_channels<B: MapOps>(x: Tensor<B, 4>, factors: Tensor<B, 4>) -> Tensor<B, 4> {
    let (map, other) = (x.dims(), factors.dims());
    assert!(other == [map[0], 1, 1, map[3]], "scale_channels: factors {other:?} do not fit {map:?}");
    wrap(B::fused_scale_channels(unwrap(x), unwrap(factors)))
}

/// By Burn's primitives.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn resize_concat<B: BurnBackend>(
        maps: Vec<FloatTensor<B>>,
        [height, width]: [usize; 2],
    ) -> FloatTensor<B> {
        let resized = maps.into_iter().map(|map| bilinear(wrap::<B, 4>(map), height, width)).collect();
        unwrap(Tensor::cat(resized, 3))
    }

    pub(crate) fn resize_add<B: BurnBackend>(x: FloatTensor<B>, small: FloatTensor<B>) -> FloatTensor<B> {
        let [_, height, width, _] = dims(&x);
        unwrap(wrap::<B, 4>(x) + bilinear(wrap(small), height, width))
    }

    pub(crate) fn cell_means<B: BurnBackend>(x: FloatTensor<B>, side: usize) -> FloatTensor<B> {
        let x: Tensor<B, 4> = wrap(x);
        let [batch, height, width, channels] = x.dims();
        let options = (&x.device(), x.dtype());
        let matrix = |from: usize| {
            let mut weights = vec![0.0; side * from];
            for (cell, row) in weights.chunks_exact_mut(from).enumerate() {
                let own = cell * from / side..((cell + 1) * from).div_ceil(side);
                let share = 1.0 / own.len() as f64;
                row[own].fill(share);
            }
            Tensor::<B, 3>::from_data(TensorData::new(weights, [1, side, from]), options)
        };
        let rows = matrix(height).matmul(x.reshape([batch, height, width * channels]));
        let cells = matrix(width).matmul(rows.reshape([batch * side, width, channels]));
        unwrap(cells.reshape([batch, side, side, channels]))
    }

    pub(crate) fn max_pool<B: BurnBackend>(x: FloatTensor<B>, side: usize) -> FloatTensor<B> {
        let x: Tensor<B, 4> = wrap(x);
        let [batch, height, width, channels] = x.dims();
        let (rows, cols) = (height / side, width / side);
        let x = x.narrow(1, 0, rows * side).narrow(2, 0, cols * side);
        let x = x.reshape([batch * rows, side, cols * side * channels]).max_dim(1);
        let x = x.reshape([batch * rows * cols, side, channels]).max_dim(1);
        unwrap(x.reshape([batch, rows, cols, channels]))
    }

    pub(crate) fn scale_channels<B: BurnBackend>(
        x: FloatTensor<B>,
        factors: FloatTensor<B>,
    ) -> FloatTensor<B> {
        let x: Tensor<B, 4> = wrap(x);
        let dtype = x.dtype();
        unwrap(x * wrap::<B, 4>(factors).cast(dtype))
    }
}

/// Maps of one node; more are put side by side by Burn's primitives.
const MOST: usize = 8;

#[derive(Debug)]
struct ResizeConcatBackward;

impl<B: MapOps> Backward<B, MOST> for ResizeConcatBackward {
    /// Sizes of the maps; parents beyond them are no maps.
    type State = Vec<MapDims>;

    fn backward(self, ops: Ops<Self::State, MOST>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let parents = &ops.parents[..ops.state.len()];
        let wanted = parents.iter().map(Option::is_some).collect();
        let found = B::fused_resize_concat_backward(grad, ops.state, wanted);
        for (parent, gradient) in parents.iter().zip(found) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                accumulate!(B, grads, parent, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct ResizeAddBackward;

impl<B: MapOps> Backward<B, 2> for ResizeAddBackward {
    /// Size of the small map.
    type State = MapDims;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, small] = ops.parents;
        if let Some(small) = small {
            let found = B::fused_resize_concat_backward(grad.clone(), vec![ops.state], vec![true]);
            for gradient in found.into_iter().flatten() {
                accumulate!(B, grads, &small, gradient);
            }
        }
        if let Some(x) = x {
            accumulate!(B, grads, &x, grad);
        }
    }
}

#[derive(Debug)]
struct CellMeansBackward;

impl<B: MapOps> Backward<B, 1> for CellMeansBackward {
    /// Height and width of the map.
    type State = [usize; 2];

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(x)] = ops.parents {
            accumulate!(B, grads, &x, B::fused_cell_means_backward(grad, ops.state));
        }
    }
}

#[derive(Debug)]
struct MaxPoolBackward;

impl<B: MapOps> Backward<B, 1> for MaxPoolBackward {
    /// The map, and the side of a square.
    type State = (FloatTensor<B>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (map, side) = ops.state;
        if let [Some(x)] = ops.parents {
            accumulate!(B, grads, &x, B::fused_max_pool_backward(map, grad, side));
        }
    }
}

#[derive(Debug)]
struct ScaleChannelsBackward;

impl<B: MapOps> Backward<B, 1> for ScaleChannelsBackward {
    /// The factors.
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(x)] = ops.parents {
            accumulate!(B, grads, &x, B::fused_scale_channels(grad, ops.state));
        }
    }
}

impl<B: MapOps, C: CheckpointStrategy> MapOps for Autodiff<B, C> {
    fn fused_resize_concat(maps: Vec<FloatTensor<Self>>, size: [usize; 2]) -> FloatTensor<Self> {
        if maps.len() > MOST || !maps.iter().all(|map| B::fuses_maps(&map.primitive)) {
            return composed::resize_concat::<Self>(maps, size);
        }
        let sizes = maps.iter().map(|map| dims(&map.primitive)).collect();
        // The number of parents is part of the type: the first map stands for those that are missing.
        let nodes = std::array::from_fn(|at| maps.get(at).unwrap_or(&maps[0]).node.clone());
        let inner = maps.into_iter().map(|map| map.primitive).collect();
        let node = Backward::<B, MOST>::prepare::<C>(ResizeConcatBackward, nodes);
        match node.compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish(sizes, B::fused_resize_concat(inner, size)),
            OpsKind::UnTracked(node) => node.finish(B::fused_resize_concat(inner, size)),
        }
    }

    fn fused_resize_add(x: FloatTensor<Self>, small: FloatTensor<Self>) -> FloatTensor<Self> {
        if !B::fuses_maps(&x.primitive) || !B::fuses_maps(&small.primitive) {
            return composed::resize_add::<Self>(x, small);
        }
        let size = dims(&small.primitive);
        record!(B, C, ResizeAddBackward, [x, small],
            tracked { (B::fused_resize_add(x.primitive, small.primitive), size) },
            untracked { B::fused_resize_add(x.primitive, small.primitive) })
    }

    fn fused_cell_means(x: FloatTensor<Self>, side: usize) -> FloatTensor<Self> {
        if !B::fuses_maps(&x.primitive) {
            return composed::cell_means::<Self>(x, side);
        }
        let [_, height, width, _] = dims(&x.primitive);
        record!(B, C, CellMeansBackward, [x],
            tracked { (B::fused_cell_means(x.primitive, side), [height, width]) },
            untracked { B::fused_cell_means(x.primitive, side) })
    }

    fn fused_max_pool(x: FloatTensor<Self>, side: usize) -> FloatTensor<Self> {
        if !B::fuses_maps(&x.primitive) {
            return composed::max_pool::<Self>(x, side);
        }
        record!(B, C, MaxPoolBackward, [x],
            tracked { (B::fused_max_pool(x.primitive.clone(), side), (x.primitive, side)) },
            untracked { B::fused_max_pool(x.primitive, side) })
    }

    fn fused_scale_channels(x: FloatTensor<Self>, factors: FloatTensor<Self>) -> FloatTensor<Self> {
        if !B::fuses_maps(&x.primitive) || !B::fuses_maps(&factors.primitive) {
            return composed::scale_channels::<Self>(x, factors);
        }
        let factors = constant::<B, C>("scale_channels", factors);
        record!(B, C, ScaleChannelsBackward, [x],
            tracked { (B::fused_scale_channels(x.primitive, factors.clone()), factors) },
            untracked { B::fused_scale_channels(x.primitive, factors) })
    }
}

impl MapOps for Flex {}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(values: Vec<f32>, dims: [usize; 4]) -> Tensor<Flex, 4> {
        Tensor::from_data(TensorData::new(values, dims), &Default::default())
    }

    fn values(x: Tensor<Flex, 4>) -> Vec<f32> {
        x.into_data().into_vec().unwrap()
    }

    #[test]
    fn means_by_hand() {
        // 5 pixels in 3 cells: 0–1, 1–3, 3–4.
        let x = map(vec![1.0, 3.0, 5.0, 7.0, 11.0], [1, 1, 5, 1]);
        assert_eq!(values(cell_means(x, 3))[..3], [2.0, 5.0, 9.0]);
        let x = map(vec![1.0, 10.0, 3.0, 30.0], [1, 1, 2, 2]);
        assert_eq!(values(cell_means(x, 1)), [2.0, 20.0]);
        // Fewer pixels than cells: cells repeat them.
        let x = map(vec![4.0], [1, 1, 1, 1]);
        assert_eq!(values(cell_means(x, 2)), [4.0; 4]);
    }

    #[test]
    fn maxima_by_hand() {
        let x = map((0..15).map(|v| v as f32).collect(), [1, 3, 5, 1]);
        assert_eq!(values(max_pool(x, 2)), [6.0, 8.0]);
        let x = map(vec![1.0, -1.0, 0.0, -5.0, 3.0, -9.0, 2.0, -7.0], [1, 2, 2, 2]);
        assert_eq!(values(max_pool(x, 2)), [3.0, -1.0]);
    }

    #[test]
    fn resized_side_by_side_and_added_by_hand() {
        let (two, one) = (map(vec![0.0, 4.0], [1, 1, 2, 1]), map(vec![7.0, 8.0], [1, 1, 1, 2]));
        let y = resize_concat(vec![two.clone(), one], 1, 4);
        assert_eq!(values(y), [0.0, 7.0, 8.0, 1.0, 7.0, 8.0, 3.0, 7.0, 8.0, 4.0, 7.0, 8.0]);
        let x = map(vec![1.0, 2.0, 3.0, 4.0], [1, 1, 4, 1]);
        assert_eq!(values(resize_add(x, two)), [1.0, 3.0, 6.0, 8.0]);
        let factors = map(vec![2.0, 0.0], [1, 1, 1, 2]);
        assert_eq!(
            values(scale_channels(map(vec![1.0, 2.0, 3.0, 4.0], [1, 1, 2, 2]), factors)),
            [2.0, 0.0, 6.0, 0.0]
        );
    }
}
