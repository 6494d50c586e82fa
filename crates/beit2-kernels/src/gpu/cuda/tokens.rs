//! Tokens around the blocks ([`crate::TokenOps`]) and position biases ([`crate::PositionBiasOps`]), one or two launches each.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;
use cubecl::cuda::{CudaDevice, CudaRuntime};

use super::{Arg, Gpu, Ptr, Queue, is_native, native, one};
use crate::position_bias::{self, PositionBiasOps, PositionGrid};
use crate::tokens::{TokenChoice, TokenGradients, TokenOps, TokenParts, composed};

type Cuda<BT> = Gpu<CudaRuntime, BT>;
type Float<BT> = FloatTensor<Cuda<BT>>;

/// The kernels read f32.
fn plain<BT: BoolElement>(x: &Float<BT>) -> bool {
    x.dtype == DType::F32 && x.shape.num_elements() > 0
}

/// Threads for a row of `width` values.
fn threads(width: usize) -> [u32; 3] {
    [width.next_multiple_of(32).min(256) as u32, 1, 1]
}

/// As native inputs: all of `list` that are there, and the place of each among them.
fn present<T, const N: usize>(list: [Option<T>; N]) -> (Vec<T>, [Option<usize>; N]) {
    let mut inputs = Vec::new();
    let places = list.map(|x| {
        x.map(|x| {
            inputs.push(x);
            inputs.len() - 1
        })
    });
    (inputs, places)
}

/// The address of an input, or null.
fn address(inputs: &[Ptr], place: Option<usize>) -> Arg {
    Arg::Ptr(place.map_or(Ptr(0), |place| inputs[place]))
}

impl<BT: BoolElement> TokenOps for Cuda<BT> {
    fn fuses_tokens(device: &CudaDevice) -> bool {
        is_native(device)
    }

    fn fused_embed_tokens(parts: TokenParts<Float<BT>>) -> Float<BT> {
        let device = parts.patches.client.device();
        let TokenParts { patches, cls, masked, positions } = &parts;
        let all = [
            Some(patches),
            Some(cls),
            masked.as_ref().map(|m| &m.0),
            masked.as_ref().map(|m| &m.1),
            positions.as_ref(),
        ];
        if !is_native(device) || !all.into_iter().flatten().all(plain::<BT>) {
            return composed::embed_tokens::<Self>(parts);
        }
        let TokenParts { patches, cls, masked, positions } = parts;
        let [batch, count, width] = [0, 1, 2].map(|axis| patches.shape[axis]);
        let (mask, token) = masked.unzip();
        let (inputs, places) = present([Some(patches), Some(cls), mask, token, positions]);
        let outputs = vec![(Shape::new([batch, count + 1, width]), DType::F32)];
        one(native::<BT>("embed_tokens", inputs, outputs, 0, move |queue, inputs, outputs, _| {
            let mut args: Vec<Arg> = places.iter().map(|&place| address(inputs, place)).collect();
            args.extend([Arg::Ptr(outputs[0]), Arg::U32(width as u32)]);
            queue.launch("tokens_embed", [count as u32 + 1, batch as u32, 1], threads(width), 0, &args);
        }))
    }

    fn fused_embed_tokens_backward(
        grad: Float<BT>,
        mask: Option<Float<BT>>,
        positions: bool,
        patches: bool,
    ) -> TokenGradients<Float<BT>> {
        if !is_native(grad.client.device()) || !plain::<BT>(&grad) {
            return composed::embed_tokens_backward::<Self>(grad, mask, positions);
        }
        let [batch, tokens, width] = [0, 1, 2].map(|axis| grad.shape[axis]);
        let masked = mask.is_some();
        let shapes = [
            Some(Shape::new([1, 1, width])),
            Some(Shape::new([1, tokens, width])),
            patches.then(|| Shape::new([batch, tokens - 1, width])),
            masked.then(|| Shape::new([1, 1, width])),
        ];
        let (shapes, places) = present(shapes);
        let outputs = shapes.into_iter().map(|shape| (shape, DType::F32)).collect();
        let (inputs, input_places) = present([Some(grad), mask]);
        let scratch = if masked { 4 * tokens * width } else { 0 };
        let run = move |queue: &mut Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], scratch: Ptr| {
            let [grad, mask] = input_places.map(|place| address(inputs, place));
            let [cls, sums, patches, token] = places.map(|place| address(outputs, place));
            let width = width as u32;
            let args = [
                grad,
                mask,
                patches,
                sums.clone(),
                Arg::Ptr(scratch),
                Arg::U32(batch as u32),
                Arg::U32(width),
            ];
            let grid = [tokens as u32, width.div_ceil(64), 1];
            queue.launch("tokens_embed_backward", grid, [64, 1, 1], 0, &args);
            let args = [sums, Arg::Ptr(scratch), cls, token, Arg::U32(tokens as u32), Arg::U32(width)];
            queue.launch("tokens_embed_backward_sums", [width.div_ceil(8), 1, 1], [256, 1, 1], 0, &args);
        };
        let mut outputs: Vec<_> =
            native::<BT>("embed_tokens_backward", inputs, outputs, scratch, run).map(Some).collect();
        let mut output = |place: Option<usize>| place.and_then(|place| outputs[place].take());
        let [cls, sums, patches, token] = places.map(&mut output);
        TokenGradients {
            patches,
            cls: cls.unwrap_or_else(|| unreachable!("always asked for")),
            mask_token: token,
            positions: sums.filter(|_| positions),
        }
    }

    fn fused_gather_tokens(x: Float<BT>, choice: TokenChoice<Self>) -> Float<BT> {
        if !is_native(x.client.device()) || !plain::<BT>(&x) || choice.local.dtype != DType::I32 {
            return composed::gather_tokens::<Self>(x, choice);
        }
        let [batch, tokens, width] = [0, 1, 2].map(|axis| x.shape[axis]);
        let count = choice.per_sample;
        let outputs = vec![(Shape::new([batch, count, width]), DType::F32)];
        one(native::<BT>(
            "gather_tokens",
            vec![x, choice.local],
            outputs,
            0,
            move |queue, inputs, outputs, _| {
                let args = [
                    Arg::Ptr(inputs[0]),
                    Arg::Ptr(inputs[1]),
                    Arg::Ptr(outputs[0]),
                    Arg::U32(tokens as u32),
                    Arg::U32(width as u32),
                ];
                queue.launch("tokens_gather", [count as u32, batch as u32, 1], threads(width), 0, &args);
            },
        ))
    }

    fn fused_gather_tokens_backward(grad: Float<BT>, choice: TokenChoice<Self>, tokens: usize) -> Float<BT> {
        if !is_native(grad.client.device()) || !plain::<BT>(&grad) || choice.local.dtype != DType::I32 {
            return composed::gather_tokens_backward::<Self>(grad, choice, tokens);
        }
        let [batch, count, width] = [0, 1, 2].map(|axis| grad.shape[axis]);
        let outputs = vec![(Shape::new([batch, tokens, width]), DType::F32)];
        let inputs = vec![grad, choice.local];
        one(native::<BT>("gather_tokens_backward", inputs, outputs, 0, move |queue, inputs, outputs, _| {
            let args = [
                Arg::Ptr(inputs[0]),
                Arg::Ptr(inputs[1]),
                Arg::Ptr(outputs[0]),
                Arg::U32(count as u32),
                Arg::U32(width as u32),
            ];
            let grid = [tokens as u32, batch as u32, 1];
            queue.launch("tokens_gather_backward", grid, threads(width), 0, &args);
        }))
    }

    fn fused_narrow_tokens(x: Float<BT>, from: usize, count: usize) -> Float<BT> {
        if !is_native(x.client.device()) || !plain::<BT>(&x) {
            return composed::narrow_tokens::<Self>(x, from, count);
        }
        moved::<BT>(x, from, 0, count)
    }

    fn fused_narrow_tokens_backward(grad: Float<BT>, from: usize, tokens: usize) -> Float<BT> {
        if !is_native(grad.client.device()) || !plain::<BT>(&grad) {
            return composed::narrow_tokens_backward::<Self>(grad, from, tokens);
        }
        moved::<BT>(grad, 0, from, tokens)
    }

    fn fused_mean_tokens(x: Float<BT>) -> Float<BT> {
        if !is_native(x.client.device()) || !plain::<BT>(&x) || x.shape[1] < 2 {
            return composed::mean_tokens::<Self>(x);
        }
        let [batch, tokens, width] = [0, 1, 2].map(|axis| x.shape[axis]);
        let outputs = vec![(Shape::new([batch, width]), DType::F32)];
        one(native::<BT>("mean_tokens", vec![x], outputs, 0, move |queue, inputs, outputs, _| {
            let [tokens, columns] = [tokens, width].map(|n| Arg::U32(n as u32));
            let args = [Arg::Ptr(inputs[0]), Arg::Ptr(outputs[0]), tokens, columns];
            queue.launch("tokens_mean", [width.div_ceil(32) as u32, batch as u32, 1], [256, 1, 1], 0, &args);
        }))
    }

    fn fused_mean_tokens_backward(grad: Float<BT>, tokens: usize) -> Float<BT> {
        if !is_native(grad.client.device()) || !plain::<BT>(&grad) || tokens < 2 {
            return composed::mean_tokens_backward::<Self>(grad, tokens);
        }
        let [batch, width] = [0, 1].map(|axis| grad.shape[axis]);
        let outputs = vec![(Shape::new([batch, tokens, width]), DType::F32)];
        one(native::<BT>("mean_tokens_backward", vec![grad], outputs, 0, move |queue, inputs, outputs, _| {
            let args = [Arg::Ptr(inputs[0]), Arg::Ptr(outputs[0]), Arg::U32(width as u32)];
            let grid = [tokens as u32, batch as u32, 1];
            queue.launch("tokens_mean_backward", grid, threads(width), 0, &args);
        }))
    }

    fn fused_replace_cls(cls: Float<BT>, x: Float<BT>) -> Float<BT> {
        if !is_native(x.client.device()) || ![&cls, &x].into_iter().all(plain::<BT>) {
            return composed::replace_cls::<Self>(cls, x);
        }
        let ([batch, tokens, width], cls_tokens) = ([0, 1, 2].map(|axis| x.shape[axis]), cls.shape[1]);
        let outputs = vec![(x.shape.clone(), DType::F32)];
        one(native::<BT>("replace_cls", vec![cls, x], outputs, 0, move |queue, inputs, outputs, _| {
            let args = [
                Arg::Ptr(inputs[0]),
                Arg::Ptr(inputs[1]),
                Arg::Ptr(outputs[0]),
                Arg::U32(cls_tokens as u32),
                Arg::U32(width as u32),
            ];
            queue.launch("tokens_replace_cls", [tokens as u32, batch as u32, 1], threads(width), 0, &args);
        }))
    }

    fn fused_replace_cls_backward(grad: Float<BT>, cls_tokens: usize) -> [Float<BT>; 2] {
        if !is_native(grad.client.device()) || !plain::<BT>(&grad) {
            return composed::replace_cls_backward::<Self>(grad, cls_tokens);
        }
        let [batch, tokens, width] = [0, 1, 2].map(|axis| grad.shape[axis]);
        let outputs = [cls_tokens, tokens].map(|tokens| (Shape::new([batch, tokens, width]), DType::F32));
        let run = move |queue: &mut Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], _: Ptr| {
            let args = [
                Arg::Ptr(inputs[0]),
                Arg::Ptr(outputs[0]),
                Arg::Ptr(outputs[1]),
                Arg::U32(cls_tokens as u32),
                Arg::U32(width as u32),
            ];
            let grid = [(tokens + cls_tokens) as u32, batch as u32, 1];
            queue.launch("tokens_replace_cls_backward", grid, threads(width), 0, &args);
        };
        let mut outputs = native::<BT>("replace_cls_backward", vec![grad], outputs.to_vec(), 0, run);
        [one(&mut outputs), one(&mut outputs)]
    }

    fn fused_gather_bias(bias: Float<BT>, choice: TokenChoice<Self>) -> Float<BT> {
        if !is_native(bias.client.device()) || !plain::<BT>(&bias) || choice.local.dtype != DType::I32 {
            return composed::gather_bias::<Self>(bias, choice);
        }
        let (heads, tokens, count) = (bias.shape[1], bias.shape[2], choice.per_sample);
        let batch = choice.local.shape[0] / count.max(1);
        let outputs = vec![(Shape::new([batch, heads, count, tokens]), DType::F32)];
        let inputs = vec![bias, choice.local];
        one(native::<BT>("gather_bias", inputs, outputs, 0, move |queue, inputs, outputs, _| {
            let args =
                [Arg::Ptr(inputs[0]), Arg::Ptr(inputs[1]), Arg::Ptr(outputs[0]), Arg::U32(tokens as u32)];
            let grid = [count as u32, heads as u32, batch as u32];
            queue.launch("tokens_gather_bias", grid, threads(tokens), 0, &args);
        }))
    }

    fn fused_gather_bias_backward(grad: Float<BT>, choice: TokenChoice<Self>, tokens: usize) -> Float<BT> {
        if !is_native(grad.client.device()) || !plain::<BT>(&grad) || choice.local.dtype != DType::I32 {
            return composed::gather_bias_backward::<Self>(grad, choice, tokens);
        }
        let [batch, heads, count] = [0, 1, 2].map(|axis| grad.shape[axis]);
        let outputs = vec![(Shape::new([1, heads, tokens, tokens]), DType::F32)];
        let inputs = vec![grad, choice.local];
        one(native::<BT>("gather_bias_backward", inputs, outputs, 0, move |queue, inputs, outputs, _| {
            let args = [
                Arg::Ptr(inputs[0]),
                Arg::Ptr(inputs[1]),
                Arg::Ptr(outputs[0]),
                Arg::U32(batch as u32),
                Arg::U32(count as u32),
            ];
            let grid = [tokens as u32, heads as u32, 1];
            queue.launch("tokens_gather_bias_backward", grid, threads(tokens), 0, &args);
        }))
    }
}

/// Tokens `from ..` of each sample at the places `to ..` of `tokens` tokens, zeros before and behind.
fn moved<BT: BoolElement>(x: Float<BT>, from: usize, to: usize, tokens: usize) -> Float<BT> {
    let [batch, old, width] = [0, 1, 2].map(|axis| x.shape[axis]);
    let outputs = vec![(Shape::new([batch, tokens, width]), DType::F32)];
    let block = threads(width);
    one(native::<BT>("move_tokens", vec![x], outputs, 0, move |queue, inputs, outputs, _| {
        let [old, from, to, width] = [old, from, to, width].map(|n| Arg::U32(n as u32));
        let args = [Arg::Ptr(inputs[0]), Arg::Ptr(outputs[0]), old, from, to, width];
        queue.launch("tokens_move", [tokens as u32, batch as u32, 1], block, 0, &args);
    }))
}

/// `Grid` in `kernels/tokens.cu`.
fn grid_bytes(grid: PositionGrid) -> Arg {
    let sizes = [grid.rows, grid.cols, grid.table.0, grid.table.1];
    Arg::Bytes(sizes.iter().flat_map(|&size| (size as i32).to_ne_bytes()).collect())
}

impl<BT: BoolElement> PositionBiasOps for Cuda<BT> {
    fn fuses_position_bias(device: &CudaDevice) -> bool {
        is_native(device)
    }

    fn fused_position_bias(table: Float<BT>, index: IntTensor<Self>, grid: PositionGrid) -> Float<BT> {
        if !is_native(table.client.device()) || !plain::<BT>(&table) {
            return position_bias::composed::position_bias::<Self>(table, index, grid);
        }
        let (heads, tokens) = (table.shape[1], grid.tokens());
        let outputs = vec![(Shape::new([1, heads, tokens, tokens]), DType::F32)];
        one(native::<BT>("position_bias", vec![table], outputs, 0, move |queue, inputs, outputs, _| {
            let args = [Arg::Ptr(inputs[0]), Arg::Ptr(outputs[0]), grid_bytes(grid)];
            queue.launch("position_bias", [tokens as u32, heads as u32, 1], threads(tokens), 0, &args);
        }))
    }

    fn fused_position_bias_backward(
        grad: Float<BT>,
        index: IntTensor<Self>,
        grid: PositionGrid,
    ) -> Float<BT> {
        if !is_native(grad.client.device()) || !plain::<BT>(&grad) {
            return position_bias::composed::position_bias_backward::<Self>(grad, index, grid);
        }
        let (heads, len) = (grad.shape[1], grid.table_len());
        let outputs = vec![(Shape::new([len, heads]), DType::F32)];
        one(native::<BT>(
            "position_bias_backward",
            vec![grad],
            outputs,
            0,
            move |queue, inputs, outputs, _| {
                let args =
                    [Arg::Ptr(inputs[0]), Arg::Ptr(outputs[0]), Arg::U32(heads as u32), grid_bytes(grid)];
                queue.launch("position_bias_backward", [len as u32, 1, 1], [128, 1, 1], 0, &args);
            },
        ))
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Cuda, Flex};
    use burn::tensor::{Int, Tensor, TensorData};

    use crate::gpu::tests::on_cuda;
    use crate::testing::random;
    use crate::{
        AutodiffBackend, PositionGrid, TokenChoice, embed_tokens, gather_bias, gather_tokens, mean_tokens,
        narrow_tokens, replace_cls,
    };

    fn leaf<B: AutodiffBackend, const D: usize>(
        shape: [usize; D],
        seed: u64,
        device: &B::Device,
    ) -> Tensor<B, D> {
        let data = TensorData::new(random(shape.iter().product(), seed, 1.0), shape);
        Tensor::from_data(data, device).require_grad()
    }

    fn ints<B: AutodiffBackend>(values: &[i32], device: &B::Device) -> Tensor<B, 1, Int> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
    }

    fn list<B: burn::tensor::backend::Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
        x.into_data().into_vec().unwrap()
    }

    /// `y`, and the gradients of `Σ weights·y`.
    macro_rules! results {
        ($y:expr, $($leaf:expr),+) => {{
            let y = $y;
            let weights = leaf::<B, _>(y.dims(), 99, &y.device()).detach();
            let grads = (y.clone() * weights).sum().backward();
            vec![list(y), $(list($leaf.grad(&grads).unwrap())),+]
        }};
    }

    fn compare(name: &str, found: Vec<Vec<f32>>, expected: Vec<Vec<f32>>) {
        for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.len(), expected.len(), "{name} {number}");
            let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Sums have another order.
            assert!(error < 2e-5, "{name} result {number}: {error:e}");
        }
    }

    fn embedded<B: AutodiffBackend>(masked: bool, positions: bool, device: &B::Device) -> Vec<Vec<f32>> {
        let (batch, count, width) = (5, 12, 40);
        let patches = leaf::<B, 3>([batch, count, width], 1, device);
        let cls = leaf::<B, 3>([1, 1, width], 2, device);
        let token = leaf::<B, 3>([1, 1, width], 3, device);
        let pos = leaf::<B, 3>([1, count + 1, width], 4, device);
        let mask: Vec<f32> = (0..batch * count).map(|at| f32::from(u8::from(at * 7 % 5 < 2))).collect();
        let mask = Tensor::from_data(TensorData::new(mask, [batch, count, 1]), device);
        let y = embed_tokens(
            patches.clone(),
            cls.clone(),
            masked.then(|| (mask, token.clone())),
            positions.then(|| pos.clone()),
        );
        match (masked, positions) {
            (true, true) => results!(y, patches, cls, token, pos),
            (true, false) => results!(y, patches, cls, token),
            (false, true) => results!(y, patches, cls, pos),
            (false, false) => results!(y, patches, cls),
        }
    }

    #[test]
    fn embedding_on_cuda() {
        on_cuda(|device| {
            for (masked, positions) in [(false, false), (true, false), (false, true), (true, true)] {
                let expected = embedded::<Autodiff<Flex>>(masked, positions, &Default::default());
                compare("embed", embedded::<Autodiff<Cuda>>(masked, positions, device), expected);
            }
        });
    }

    fn gathered<B: AutodiffBackend>(batch: usize, device: &B::Device) -> Vec<Vec<f32>> {
        let (tokens, width, heads, count) = (11, 24, 3, 4);
        let mut local = Vec::new();
        for sample in 0..batch {
            local.extend((0..count).map(|at| ((sample + at * 3) % tokens) as i32));
        }
        let choice =
            || TokenChoice::<B> { local: ints::<B>(&local, device).into_primitive(), per_sample: count };
        let x = leaf::<B, 3>([batch, tokens, width], 1, device);
        let mut all = results!(gather_tokens(x.clone(), choice()), x);
        all.extend(results!(narrow_tokens(x.clone(), 1, tokens - 1), x));
        all.extend(results!(narrow_tokens(x.clone(), 2, 5), x));
        all.extend(results!(mean_tokens(x.clone()), x));
        let cls = leaf::<B, 3>([batch, count, width], 3, device);
        all.extend(results!(replace_cls(cls.clone(), x.clone()), cls, x));
        let bias = leaf::<B, 4>([1, heads, tokens, tokens], 2, device);
        all.extend(results!(gather_bias(bias.clone(), choice()), bias));
        all
    }

    #[test]
    fn gathers_on_cuda() {
        on_cuda(|device| {
            for batch in [1, 7, 300] {
                let expected = gathered::<Autodiff<Flex>>(batch, &Default::default());
                compare("gather", gathered::<Autodiff<Cuda>>(batch, device), expected);
            }
        });
    }

    fn biases<B: AutodiffBackend>(grid: PositionGrid, device: &B::Device) -> Vec<Vec<f32>> {
        // The index that `beit2` makes (docs/method.md §2.1).
        let (tokens, len, across) = (grid.tokens(), grid.table_len(), 2 * grid.table.1 - 1);
        let mut index = vec![0; tokens * tokens];
        for a in 1..tokens {
            for b in 1..tokens {
                let down = (a - 1) / grid.cols + grid.table.0 - 1 - (b - 1) / grid.cols;
                let right = (a - 1) % grid.cols + grid.table.1 - 1 - (b - 1) % grid.cols;
                index[a * tokens + b] = (down * across + right) as i32;
            }
            index[a * tokens] = len as i32 - 2;
            index[a] = len as i32 - 3;
        }
        index[0] = len as i32 - 1;
        let table = leaf::<B, 2>([len, 3], 1, device);
        results!(crate::position_bias(table.clone(), ints::<B>(&index, device), grid), table)
    }

    #[test]
    fn position_biases_on_cuda() {
        on_cuda(|device| {
            for (rows, cols, table) in [(1, 1, (1, 1)), (3, 4, (3, 4)), (2, 3, (4, 5)), (6, 6, (6, 6))] {
                let grid = PositionGrid { rows, cols, table };
                let expected = biases::<Autodiff<Flex>>(grid, &Default::default());
                compare("position bias", biases::<Autodiff<Cuda>>(grid, device), expected);
            }
        });
    }
}
