//! All parameters of a model in a few launches ([`crate::ParameterOps`]).

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::BoolElement;
use cubecl::cuda::CudaRuntime;

use super::{Arg, Gpu, Ptr, engine, is_native, native, native_reusing, one};
use crate::adamw::AdamwStep;
use crate::parameters::{AdamwTensors, AdamwUpdated, AnyRank, composed};
use crate::tensor::{unwrap, wrap};
use crate::{LossSumOps, ParameterOps};

/// Values of a tensor that one block takes; `PIECE` in `kernels/parameters.cu`.
const PIECE: usize = 8192;
/// Entries of the tables there.
const SQUARES: usize = 240;
const STEPS: usize = 55;
const SUMS: usize = 120;
const SCALARS: usize = 500;

type Cuda<BT> = Gpu<CudaRuntime, BT>;

impl<BT: BoolElement> ParameterOps for Cuda<BT> {
    fn fused_grad_norm(grads: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        if !is_native(grads[0].client.device()) || !grads.iter().all(fits) {
            return composed::grad_norm::<Self>(grads);
        }
        let counts: Vec<usize> = grads.iter().map(|grad| grad.shape.num_elements()).collect();
        let sums: usize = counts.iter().map(|count| count.div_ceil(PIECE)).sum();
        let outputs = vec![(Shape::new([1]), DType::F32)];
        let run = move |queue: &mut super::Queue<'_>, grads: &[Ptr], norm: &[Ptr], scratch: Ptr| {
            let mut first_sum = 0;
            for (grads, counts) in grads.chunks(SQUARES).zip(counts.chunks(SQUARES)) {
                let mut table = Table::new(16, SQUARES);
                for (&Ptr(grad), &count) in grads.iter().zip(counts) {
                    table.entry(&[grad], count, &[]);
                }
                let (blocks, table) = table.finish(&[first_sum]);
                queue.launch(
                    "parameters_square_sums",
                    [blocks, 1, 1],
                    [256, 1, 1],
                    0,
                    &[Arg::Bytes(table), Arg::Ptr(scratch)],
                );
                first_sum += blocks;
            }
            let args = [Arg::Ptr(scratch), Arg::U32(first_sum), Arg::Ptr(norm[0])];
            queue.launch("parameters_norm", [1, 1, 1], [256, 1, 1], 0, &args);
        };
        one(native::<BT>("grad_norm", grads, outputs, 4 * sums.max(1), run))
    }

    fn fused_adamw_all(
        mut params: Vec<AdamwTensors<Self>>,
        clip: Option<(FloatTensor<Self>, f64)>,
    ) -> Vec<AdamwUpdated<Self>> {
        let all_fit = params.iter().all(|param| {
            let moments = param.moments.iter().flatten().all(|moment| moment.dtype() == DType::F32);
            fits(&param.value.0) && param.grad.iter().all(|grad| fits(&grad.0)) && moments
        });
        if params.first().is_none_or(|param| !is_native(param.value.0.client.device())) || !all_fit {
            return composed::adamw_all::<Self>(params, clip);
        }
        engine::note_step(params[0].value.0.client.device());
        let mut updated = Vec::with_capacity(params.len());
        while !params.is_empty() {
            // An operation for each launch, so that gradients are freed as early as they can be. The constants that all
            // parameters share come from the first; another decay of moments begins another launch.
            let constants = params[0].step;
            let same = |step: &AdamwStep| {
                (step.beta1, step.beta2, step.eps, step.step, step.grad_scale)
                    == (constants.beta1, constants.beta2, constants.eps, constants.step, constants.grad_scale)
            };
            let count = params.iter().take(STEPS).take_while(|param| same(&param.step)).count();
            let rest = params.split_off(count);
            updated.extend(step::<BT>(params, clip.clone()));
            params = rest;
        }
        updated
    }

    fn fused_join_scalars(scalars: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        let scalar = |x: &FloatTensor<Self>| x.dtype == DType::F32 && x.shape.num_elements() == 1;
        if !is_native(scalars[0].client.device()) || !scalars.iter().all(scalar) {
            return composed::join_scalars::<Self>(scalars);
        }
        let outputs = vec![(Shape::new([scalars.len()]), DType::F32)];
        let run = |queue: &mut super::Queue<'_>, scalars: &[Ptr], y: &[Ptr], _: Ptr| {
            for (number, chunk) in scalars.chunks(SCALARS).enumerate() {
                let mut table: Vec<u8> = chunk.iter().flat_map(|x| x.0.to_ne_bytes()).collect();
                table.resize(8 * SCALARS, 0);
                let numbers = [chunk.len(), number * SCALARS];
                table.extend(numbers.iter().flat_map(|&number| (number as u32).to_ne_bytes()));
                let args = [Arg::Bytes(table), Arg::Ptr(y[0])];
                queue.launch("parameters_join_scalars", [1, 1, 1], [512, 1, 1], 0, &args);
            }
        };
        one(native::<BT>("join_scalars", scalars, outputs, 0, run))
    }

    fn fused_weighted_sums(pairs: Vec<[FloatTensor<Self>; 2]>, factors: [f64; 2]) -> Vec<FloatTensor<Self>> {
        if pairs.first().is_none_or(|[x, _]| !is_native(x.client.device()))
            || !pairs.iter().flatten().all(fits)
        {
            return composed::weighted_sums::<Self>(pairs, factors);
        }
        let mut sums = Vec::with_capacity(pairs.len());
        let mut pairs = pairs.into_iter();
        loop {
            let (inputs, outputs): (Vec<_>, Vec<_>) = pairs
                .by_ref()
                .take(SUMS)
                .map(|[x, y]| {
                    let output = (x.shape.clone(), DType::F32);
                    ([x, y], output)
                })
                .unzip();
            if inputs.is_empty() {
                return sums;
            }
            let counts: Vec<usize> = outputs.iter().map(|(shape, _)| shape.num_elements()).collect();
            let reuse: Vec<_> = (0..inputs.len()).map(|at| (at, 2 * at)).collect();
            let run = move |queue: &mut super::Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], _: Ptr| {
                let mut table = Table::new(32, SUMS);
                for ((pair, sum), &count) in inputs.chunks(2).zip(outputs).zip(&counts) {
                    table.entry(&[pair[0].0, pair[1].0, sum.0], count, &[]);
                }
                let (blocks, table) = table.finish(&factors.map(|factor| (factor as f32).to_bits()));
                queue.launch(
                    "parameters_weighted_sums",
                    [blocks, 1, 1],
                    [256, 1, 1],
                    0,
                    &[Arg::Bytes(table)],
                );
            };
            let inputs = inputs.into_iter().flatten().collect();
            sums.extend(native_reusing::<BT>("weighted_sums", inputs, outputs, 0, &reuse, run));
        }
    }
}

impl<BT: BoolElement> LossSumOps for Cuda<BT> {
    fn fused_loss_sum(loss: FloatTensor<Self>, other: FloatTensor<Self>, weight: f64) -> FloatTensor<Self> {
        one(Self::fused_weighted_sums(vec![[loss, other]], [1.0, weight]).into_iter())
    }

    fn fused_loss_sum_backward(grad: FloatTensor<Self>, weight: f64) -> FloatTensor<Self> {
        one(Self::fused_weighted_sums(vec![[grad.clone(), grad]], [weight, 0.0]).into_iter())
    }
}

/// One launch of AdamW.
fn step<BT: BoolElement>(
    params: Vec<AdamwTensors<Cuda<BT>>>,
    clip: Option<(FloatTensor<Cuda<BT>>, f64)>,
) -> Vec<AdamwUpdated<Cuda<BT>>> {
    /// Where the inputs of a parameter are, and its numbers.
    struct Entry {
        inputs: [Option<usize>; 4],
        count: usize,
        rate: f32,
        keep: f32,
    }
    let (mut inputs, mut outputs, mut reuse, mut entries) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let constants = params[0].step;
    let (correction1, correction2) = constants.corrections();
    for AdamwTensors { value, grad, moments, step } in params {
        let (shape, count) = (value.0.shape.clone(), value.0.shape.num_elements());
        let mut input = |x| {
            inputs.push(x);
            inputs.len() - 1
        };
        let value = input(value.0);
        let grad = grad.map(|grad| input(grad.0));
        let [first, second] = match moments {
            Some(moments) => moments.map(|moment| Some(input(unwrap(moment)))),
            None => [None; 2],
        };
        for (input, shape) in
            [(Some(value), shape), (first, Shape::new([count])), (second, Shape::new([count]))]
        {
            reuse.extend(input.map(|input| (outputs.len(), input)));
            outputs.push((shape, DType::F32));
        }
        entries.push(Entry {
            inputs: [Some(value), grad, first, second],
            count,
            rate: (step.lr / correction1) as f32,
            keep: (1.0 - step.lr * step.weight_decay) as f32,
        });
    }
    let max_norm = clip.map(|(norm, max)| {
        inputs.push(norm);
        (inputs.len() - 1, max as f32)
    });
    let numbers = [
        max_norm.map_or(0.0, |(_, max)| max),
        constants.beta1 as f32,
        ((1.0 - constants.beta1) * constants.grad_scale) as f32,
        constants.beta2 as f32,
        ((1.0 - constants.beta2) * constants.grad_scale * constants.grad_scale) as f32,
        1.0 / (correction2.sqrt() as f32),
        constants.eps as f32,
    ];
    let run = move |queue: &mut super::Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], _: Ptr| {
        let address = |input: Option<usize>| input.map_or(0, |input| inputs[input].0);
        let mut table = Table::new(72, STEPS);
        for (entry, outputs) in entries.iter().zip(outputs.chunks(3)) {
            let [value, grad, first, second] = entry.inputs.map(address);
            let pointers = [value, grad, first, second, outputs[0].0, outputs[1].0, outputs[2].0];
            table.entry(&pointers, entry.count, &[entry.rate.to_bits(), entry.keep.to_bits()]);
        }
        let (blocks, table) = table.finish(&numbers.map(f32::to_bits));
        let norm = Ptr(address(max_norm.map(|(input, _)| input)));
        let args = [Arg::Bytes(table), Arg::Ptr(norm)];
        queue.launch("parameters_adamw", [blocks, 1, 1], [256, 1, 1], 0, &args);
    };
    let mut outputs = native_reusing::<BT>("adamw", inputs, outputs, 0, &reuse, run);
    let mut updated = Vec::new();
    while let (Some(value), Some(first), Some(second)) = (outputs.next(), outputs.next(), outputs.next()) {
        updated.push((AnyRank(value), [wrap(first), wrap(second)]));
    }
    updated
}

/// Whether the kernels take a tensor: they count its values in 32 bits.
fn fits<T: TensorMetadata>(x: &T) -> bool {
    let count = x.shape().num_elements();
    x.dtype() == DType::F32 && count > 0 && u32::try_from(count).is_ok()
}

/// A table of tensors as a kernel reads it: entries of pointers, number of values, first block and more; then `capacity` is
/// filled up; then the number of entries and what else the launch needs.
struct Table {
    bytes: Vec<u8>,
    /// Bytes of an entry.
    size: usize,
    capacity: usize,
    used: u32,
    blocks: u32,
}

impl Table {
    fn new(size: usize, capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(size * capacity + 32), size, capacity, used: 0, blocks: 0 }
    }

    fn entry(&mut self, pointers: &[u64], count: usize, more: &[u32]) {
        pointers.iter().for_each(|pointer| self.bytes.extend(pointer.to_ne_bytes()));
        [count as u32, self.blocks].iter().chain(more).for_each(|word| self.bytes.extend(word.to_ne_bytes()));
        self.used += 1;
        self.blocks += count.div_ceil(PIECE) as u32;
        debug_assert_eq!(self.bytes.len(), self.size * self.used as usize);
    }

    /// The blocks to launch, and the table, of a multiple of 8 bytes as C++ has it.
    fn finish(mut self, more: &[u32]) -> (u32, Vec<u8>) {
        self.bytes.resize(self.size * self.capacity, 0);
        std::iter::once(&self.used).chain(more).for_each(|word| self.bytes.extend(word.to_ne_bytes()));
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        (self.blocks, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Cuda, Flex};
    use burn::tensor::Tensor;

    use crate::gpu::tests::on_cuda;
    use crate::parameters::tests::{averages, steps};

    fn check(name: &str, found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len(), "{name}");
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!(
                (found - expected).abs() < 1e-6 + 1e-6 * expected.abs(),
                "{name} {at}: {found}, not {expected}"
            );
        }
    }

    #[test]
    fn adamw_with_clipping_on_cuda() {
        on_cuda(|device| {
            for max in [None, Some(3.0), Some(1e9)] {
                let (found, norm) = steps::<Cuda>(max, device);
                let (expected, cpu) = steps::<Flex>(max, &Default::default());
                check("norm", &[norm], &[cpu]);
                check("parameters and moments", &found, &expected);
                assert_eq!(steps::<Cuda>(max, device).0, found, "another run gives other bits");
            }
        });
    }

    #[test]
    fn scalars_on_cuda() {
        on_cuda(|device| {
            for count in [1, 7, 1203] {
                let scalar = |at: usize| Tensor::<Cuda, 1>::from_data([at as f32 * 0.5], device);
                let found = crate::join_scalars((0..count).map(scalar).collect()).into_data();
                let expected: Vec<f32> = (0..count).map(|at| at as f32 * 0.5).collect();
                assert_eq!(found.to_vec::<f32>().unwrap(), expected);
            }
        });
    }

    #[test]
    fn weighted_sums_on_cuda() {
        on_cuda(|device| {
            for factors in [[1.0, 1.0], [0.999, 0.001]] {
                let found = averages::<Cuda>(factors, device);
                check("sums", &found, &averages::<Flex>(factors, &Default::default()));
            }
        });
    }
}
