//! What segmentation heads do with maps ([`crate::MapOps`]): a launch for each map and direction.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;

use super::conv::launch;
use super::rows::{Cuda, Tensor, outputs, takes};
use super::{Arg, Ptr, Queue, native};
use crate::maps::{MapDims, MapOps, composed};

/// Largest size of a side: positions are whole numbers of 32 bits.
const LARGEST: usize = 1 << 14;

/// Whether kernels take a map.
fn fits(x: &Tensor) -> bool {
    let sides = x.shape[1].max(x.shape[2]);
    takes(&[x]) && sides < LARGEST && x.shape.num_elements() < 1 << 31
}

fn of(x: &Tensor) -> MapDims {
    std::array::from_fn(|axis| x.shape[axis])
}

/// A map as kernels read it.
fn table(map: MapDims) -> Arg {
    Arg::Bytes(map.iter().flat_map(|&size| (size as u32).to_le_bytes()).collect())
}

fn result(dims: MapDims) -> Vec<(Shape, DType)> {
    vec![(Shape::new(dims), DType::F32)]
}

/// Channels that a thread takes: where they come in fours, and begin there, four.
fn channels(numbers: &[usize]) -> usize {
    if numbers.iter().all(|number| number.is_multiple_of(4)) { 4 } else { 1 }
}

/// Where a map goes when it is resized.
#[derive(Debug, Clone, Copy)]
struct Target {
    size: [usize; 2],
    /// Channels there, and the first that the map has.
    pitch: usize,
    first: usize,
}

impl Target {
    /// Arguments of a kernel for a map, and channels of a thread.
    fn args(&self, map: MapDims) -> ([Arg; 5], usize) {
        let [height, width, pitch, first] =
            [self.size[0], self.size[1], self.pitch, self.first].map(|number| Arg::U32(number as u32));
        ([table(map), height, width, pitch, first], channels(&[map[3], self.pitch, self.first]))
    }

    fn forward(&self, queue: &mut Queue<'_>, x: Ptr, add: Option<Ptr>, y: Ptr, map: MapDims) {
        let (tail, n) = self.args(map);
        let kernel = if n == 4 { "maps_resize_4" } else { "maps_resize_1" };
        let mut args = vec![Arg::Ptr(x), super::norm::optional(add), Arg::Ptr(y)];
        args.extend(tail);
        launch(queue, kernel, map[0] * self.size[0] * self.size[1] * map[3] / n, &args);
    }

    fn backward(&self, queue: &mut Queue<'_>, grad: Ptr, dx: Ptr, map: MapDims) {
        let (tail, n) = self.args(map);
        let kernel = if n == 4 { "maps_resize_backward_4" } else { "maps_resize_backward_1" };
        let mut args = vec![Arg::Ptr(grad), Arg::Ptr(dx)];
        args.extend(tail);
        launch(queue, kernel, map.iter().product::<usize>() / n, &args);
    }
}

/// Where maps of these channels go when they are put side by side.
fn side_by_side(maps: &[MapDims], size: [usize; 2]) -> Vec<(MapDims, Target)> {
    let pitch = maps.iter().map(|map| map[3]).sum();
    let mut first = 0;
    let place = |&map: &MapDims| {
        let target = Target { size, pitch, first };
        first += map[3];
        (map, target)
    };
    maps.iter().map(place).collect()
}

impl<BT: BoolElement> MapOps for Cuda<BT> {
    fn fuses_maps(x: &FloatTensor<Self>) -> bool {
        fits(x)
    }

    fn fused_resize_concat(maps: Vec<FloatTensor<Self>>, size: [usize; 2]) -> FloatTensor<Self> {
        let sizes: Vec<MapDims> = maps.iter().map(of).collect();
        let places = side_by_side(&sizes, size);
        let dims = [sizes[0][0], size[0], size[1], sizes.iter().map(|map| map[3]).sum()];
        let small = dims.iter().product::<usize>() < 1 << 31 && size[0].max(size[1]) < LARGEST;
        if !small || !maps.iter().all(fits) {
            return composed::resize_concat::<Self>(maps, size);
        }
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _: Ptr| {
            for (&x, (map, target)) in i.iter().zip(&places) {
                target.forward(queue, x, None, o[0], *map);
            }
        };
        let [y] = outputs(native::<BT>("resize_concat", maps, result(dims), 0, run));
        y
    }

    fn fused_resize_concat_backward(
        grad: FloatTensor<Self>,
        maps: Vec<MapDims>,
        wanted: Vec<bool>,
    ) -> Vec<Option<FloatTensor<Self>>> {
        let places = side_by_side(&maps, [grad.shape[1], grad.shape[2]]);
        let places: Vec<_> =
            places.into_iter().zip(&wanted).filter_map(|(place, wanted)| wanted.then_some(place)).collect();
        let results = places.iter().flat_map(|(map, _)| result(*map)).collect();
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _: Ptr| {
            for (&dx, (map, target)) in o.iter().zip(&places) {
                target.backward(queue, i[0], dx, *map);
            }
        };
        let mut found = native::<BT>("resize_concat_backward", vec![grad], results, 0, run);
        wanted.into_iter().map(|wanted| if wanted { found.next() } else { None }).collect()
    }

    fn fused_resize_add(x: FloatTensor<Self>, small: FloatTensor<Self>) -> FloatTensor<Self> {
        if !fits(&x) || !fits(&small) {
            return composed::resize_add::<Self>(x, small);
        }
        let (dims, map) = (of(&x), of(&small));
        let target = Target { size: [dims[1], dims[2]], pitch: dims[3], first: 0 };
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _: Ptr| {
            target.forward(queue, i[1], Some(i[0]), o[0], map);
        };
        let [y] = outputs(native::<BT>("resize_add", vec![x, small], result(dims), 0, run));
        y
    }

    fn fused_cell_means(x: FloatTensor<Self>, side: usize) -> FloatTensor<Self> {
        if !fits(&x) || side == 0 {
            return composed::cell_means::<Self>(x, side);
        }
        let map = of(&x);
        let [batch, .., channels] = map;
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _: Ptr| {
            let args = [Arg::Ptr(i[0]), Arg::Ptr(o[0]), table(map), Arg::U32(side as u32)];
            let grid = [(batch * side * side) as u32, channels.div_ceil(32) as u32, 1];
            queue.launch("maps_cell_means", grid, [256, 1, 1], 0, &args);
        };
        let [y] = outputs(native::<BT>("cell_means", vec![x], result([batch, side, side, channels]), 0, run));
        y
    }

    fn fused_cell_means_backward(grad: FloatTensor<Self>, [height, width]: [usize; 2]) -> FloatTensor<Self> {
        let [batch, side, _, channels_of] = of(&grad);
        let map = [batch, height, width, channels_of];
        let n = channels(&[channels_of]);
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _: Ptr| {
            let kernel = if n == 4 { "maps_cell_means_backward_4" } else { "maps_cell_means_backward_1" };
            let args = [Arg::Ptr(i[0]), Arg::Ptr(o[0]), table(map), Arg::U32(side as u32)];
            launch(queue, kernel, map.iter().product::<usize>() / n, &args);
        };
        let [dx] = outputs(native::<BT>("cell_means_backward", vec![grad], result(map), 0, run));
        dx
    }

    fn fused_max_pool(x: FloatTensor<Self>, side: usize) -> FloatTensor<Self> {
        let map = of(&x);
        let [batch, height, width, channels] = map;
        if !fits(&x) || side == 0 || height.min(width) < side {
            return composed::max_pool::<Self>(x, side);
        }
        let dims = [batch, height / side, width / side, channels];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _: Ptr| {
            let args = [Arg::Ptr(i[0]), Arg::Ptr(o[0]), table(map), Arg::U32(side as u32)];
            launch(queue, "maps_max", dims.iter().product(), &args);
        };
        let [y] = outputs(native::<BT>("max_pool", vec![x], result(dims), 0, run));
        y
    }

    fn fused_max_pool_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        side: usize,
    ) -> FloatTensor<Self> {
        let map = of(&x);
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _: Ptr| {
            let mut args = [i[0], i[1], o[0]].map(Arg::Ptr).to_vec();
            args.extend([table(map), Arg::U32(side as u32)]);
            launch(queue, "maps_max_backward", map.iter().product(), &args);
        };
        let [dx] = outputs(native::<BT>("max_pool_backward", vec![x, grad], result(map), 0, run));
        dx
    }

    fn fused_scale_channels(x: FloatTensor<Self>, factors: FloatTensor<Self>) -> FloatTensor<Self> {
        if !fits(&x) || !fits(&factors) {
            return composed::scale_channels::<Self>(x, factors);
        }
        let map = of(&x);
        let n = channels(&[map[3]]);
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _: Ptr| {
            let mut args = [i[0], i[1], o[0]].map(Arg::Ptr).to_vec();
            args.push(table(map));
            let kernel = if n == 4 { "maps_scale_4" } else { "maps_scale_1" };
            launch(queue, kernel, map.iter().product::<usize>() / n, &args);
        };
        let inputs = vec![x, factors];
        let [y] = outputs(native::<BT>("scale_channels", inputs, result(map), 0, run));
        y
    }
}
