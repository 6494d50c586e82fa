//! A run of Transformer blocks: one native operation forward, one backward, in bf16.
//!
//! `plan` says where values lie, `forward` and `backward` put the work on the queue, `pack` and `finish` begin and end it.
//! A block takes eight launches and matmuls forward and fourteen backward, and a run six more; nothing is allocated
//! between them.

mod backward;
mod finish;
mod forward;
mod means;
mod pack;
mod plan;
#[cfg(test)]
mod tests;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;
use cubecl::cuda::{CudaDevice, CudaRuntime};

use super::super::Gpu;
use super::attention::BiasGradient;
use super::{Element, Options, Ptr, Queue, Recorded, is_native, native, native_with};
use crate::block::{BlockOps, BlockSizes, BlockSpec, BlockTensors, BlocksGradients, BlocksInputs, composed};
use crate::tokens::TokenChoice;
use crate::{Precision, Rank};
use backward::Backward;
use forward::Forward;
use means::Means;
use pack::pack;
use plan::{Plan, RunPlan, at};

type Inputs = BlocksInputs<Recorded>;
type Cuda<BT> = Gpu<CudaRuntime, BT>;

/// Where an operation finds the tensors of a run among its inputs, in the order of [`list`].
#[derive(Debug, Clone)]
struct Places {
    choice: Option<usize>,
    biases: Vec<usize>,
    drop: Option<(usize, Vec<Option<[usize; 2]>>)>,
    /// Of each block; empty where they are packed.
    parameters: Vec<BlockTensors<usize>>,
    count: usize,
}

/// The tensors of a run as the inputs of an operation: x first.
///
/// # Panics
/// If one of them is not f32.
fn list(inputs: Inputs, choice: Option<Recorded>) -> (Vec<Recorded>, Places) {
    let BlocksInputs { x, biases, parameters, drop } = inputs;
    let mut tensors = vec![x];
    let at_choice = choice.is_some().then_some(1);
    tensors.extend(choice);
    let mut push = |tensor: Recorded| {
        assert!(
            tensor.dtype == DType::F32,
            "blocks: tensors are f32 on a CUDA device, found {:?}",
            tensor.dtype
        );
        tensors.push(tensor);
        tensors.len() - 1
    };
    let biases = biases.into_iter().map(&mut push).collect();
    let drop = drop.map(|drop| (push(drop.factors), drop.rows));
    let parameters = parameters.into_iter().map(|block| block.map(&mut push)).collect();
    let count = tensors.len();
    (tensors, Places { choice: at_choice, biases, drop, parameters, count })
}

/// Where the values of a forward pass lie.
struct Memory<'a> {
    /// Packed parameters of each block.
    packed: Vec<Ptr>,
    /// Inputs of the blocks after the first.
    xs: Vec<Ptr>,
    /// The values of each block that a backward pass reads; one place where none follows.
    kept: &'a [Ptr],
    passing: Ptr,
    /// Where a block's x after attention goes, if not among what it keeps.
    middle: Option<&'a dyn Fn(usize) -> Ptr>,
}

impl Places {
    /// A forward pass over these inputs.
    fn forward(&self, inputs: &[Ptr], plan: &RunPlan, memory: &Memory<'_>, spec: &BlockSpec) -> Vec<Forward> {
        let batch = plan.last.sizes.batch;
        let factors = |number: usize| match &self.drop {
            Some((place, rows)) => match rows[number] {
                Some(rows) => rows.map(|row| Some(inputs[*place].offset(row * batch, Element::F32))),
                None => [None; 2],
            },
            None => [None; 2],
        };
        let block = |number: usize| {
            let kept = memory.kept[number.min(memory.kept.len() - 1)];
            Forward {
                x: number.checked_sub(1).map_or(inputs[0], |before| memory.xs[before]),
                choice: plan.of(number).chosen.and(self.choice).map(|place| inputs[place]),
                bias: self.biases.get(self.bias_of(number)).map(|place| inputs[*place]),
                factors: factors(number),
                packed: memory.packed[number],
                kept,
                passing: memory.passing,
                middle: match memory.middle {
                    Some(middle) => middle(number),
                    None => at(kept, plan.of(number).values.middle),
                },
                eps: spec.eps as f32,
                activation: spec.activation,
            }
        };
        (0..plan.blocks).map(block).collect()
    }

    /// Which of the biases is that of a block.
    fn bias_of(&self, number: usize) -> usize {
        if self.biases.len() == 1 { 0 } else { number }
    }

    fn parameters(&self, inputs: &[Ptr]) -> Vec<BlockTensors<Ptr>> {
        let of_block = |block: &BlockTensors<usize>| block.clone().map(|place| inputs[place]);
        self.parameters.iter().map(of_block).collect()
    }
}

/// Addresses of `count` things of `bytes` bytes.
fn places(from: Ptr, count: usize, bytes: usize) -> Vec<Ptr> {
    (0..count).map(|number| at(from, number * bytes)).collect()
}

fn sizes(x: &Recorded, hidden: usize, spec: &BlockSpec) -> BlockSizes {
    BlockSizes { batch: x.shape[0], tokens: x.shape[1], width: x.shape[2], hidden, heads: spec.heads }
}

fn plan(inputs: &Inputs, chosen: Option<usize>, spec: &BlockSpec) -> RunPlan {
    let sizes = sizes(&inputs.x, inputs.parameters[0].fc1[1].shape[0], spec);
    RunPlan::new(inputs.parameters.len(), sizes, chosen, spec.scale, !inputs.biases.is_empty())
}

/// A tensor that holds `bytes` bytes of anything.
fn piece(bytes: usize) -> (Shape, DType) {
    (Shape::new([bytes.div_ceil(4)]), DType::F32)
}

fn one(outputs: impl IntoIterator<Item = Recorded>) -> Recorded {
    outputs.into_iter().next().unwrap_or_else(|| unreachable!("one output"))
}

impl<BT: BoolElement> BlockOps for Gpu<CudaRuntime, BT> {
    fn fuses_blocks(device: &CudaDevice, sizes: &BlockSizes, spec: &BlockSpec) -> bool {
        let bias = false; // Sizes that are supported without one are with one.
        spec.precision == Precision::Bf16
            && Plan::new(*sizes, None, spec.scale, bias).is_supported()
            && is_native(device)
    }

    fn fused_blocks(inputs: Inputs, choice: Option<TokenChoice<Self>>, spec: BlockSpec) -> FloatTensor<Self> {
        let plan = plan(&inputs, choice.as_ref().map(|choice| choice.per_sample), &spec);
        if !Self::fuses_blocks(inputs.x.client.device(), &plan.last.sizes, &spec) {
            return composed::blocks::<Self>(inputs, choice, spec);
        }
        let (tensors, places) = list(inputs, rows(choice));
        let packed = plan.blocks * plan.last.packed.bytes;
        forward_alone::<BT>("blocks", tensors, plan, packed, spec, move |queue, inputs, scratch| {
            pack(queue, &plan.last, &places.parameters(inputs), scratch);
            (places.clone(), self::places(scratch, plan.blocks, plan.last.packed.bytes))
        })
    }

    fn fused_blocks_train(
        inputs: Inputs,
        choice: Option<TokenChoice<Self>>,
        spec: BlockSpec,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        forward_train::<BT>(inputs, choice, spec)
    }

    fn fused_blocks_backward(
        inputs: Inputs,
        choice: Option<TokenChoice<Self>>,
        spec: BlockSpec,
        saved: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        bias_grad: bool,
        group: Option<&Rank>,
    ) -> BlocksGradients<FloatTensor<Self>> {
        backward::<BT>(inputs, choice, spec, (saved, grad), bias_grad, group)
    }

    fn pack_block(
        parameters: BlockTensors<FloatTensor<Self>>,
        sizes: &BlockSizes,
        spec: &BlockSpec,
    ) -> Option<FloatTensor<Self>> {
        if !Self::fuses_blocks(parameters.qkv.client.device(), sizes, spec) {
            return None;
        }
        let plan = Plan::new(*sizes, None, spec.scale, false);
        let x = parameters.qkv.clone(); // Any tensor: there is no x.
        let inputs = BlocksInputs { x, biases: Vec::new(), parameters: vec![parameters], drop: None };
        let (tensors, places) = list(inputs, None);
        let output = vec![piece(plan.packed.bytes)];
        Some(one(native::<BT>("block_pack", tensors, output, 0, move |queue, inputs, outputs, _| {
            pack(queue, &plan, &places.parameters(inputs), outputs[0]);
        })))
    }

    fn fused_blocks_packed(
        x: FloatTensor<Self>,
        biases: Vec<FloatTensor<Self>>,
        packed: Vec<FloatTensor<Self>>,
        hidden: usize,
        choice: Option<TokenChoice<Self>>,
        spec: BlockSpec,
    ) -> FloatTensor<Self> {
        let sizes = sizes(&x, hidden, &spec);
        let chosen = choice.as_ref().map(|choice| choice.per_sample);
        let plan = RunPlan::new(packed.len(), sizes, chosen, spec.scale, !biases.is_empty());
        let wanted = plan.last.packed.bytes.div_ceil(4);
        for block in &packed {
            let found = block.shape[0];
            assert!(
                found == wanted,
                "blocks_packed: {found} packed numbers, {wanted} are those of a block of {sizes:?}"
            );
        }
        let inputs = BlocksInputs { x, biases, parameters: Vec::new(), drop: None };
        let (mut tensors, places) = list(inputs, rows(choice));
        tensors.extend(packed);
        forward_alone::<BT>("blocks_packed", tensors, plan, 0, spec, move |_, inputs, _| {
            (places.clone(), inputs[places.count..].to_vec())
        })
    }
}

/// The output of a run: of all tokens, or of the chosen ones.
fn output(plan: &RunPlan) -> (Shape, DType) {
    (Shape::new([plan.last.sizes.batch, plan.last.queries(), plan.last.sizes.width]), DType::F32)
}

/// Which tokens of each sample, as an input.
///
/// # Panics
/// If they are not i32.
fn rows<BT: BoolElement>(choice: Option<TokenChoice<Cuda<BT>>>) -> Option<Recorded> {
    choice.map(|choice| {
        let dtype = choice.local.dtype;
        assert!(dtype == DType::I32, "blocks: tokens are numbered in i32 on a CUDA device, found {dtype:?}");
        choice.local
    })
}

/// A forward pass without a backward pass: one block's values take the place of another's. `packed` gives places and
/// packed parameters; it has as many bytes of scratch memory.
fn forward_alone<BT: BoolElement>(
    name: &'static str,
    tensors: Vec<Recorded>,
    plan: RunPlan,
    packed_bytes: usize,
    spec: BlockSpec,
    packed: impl Fn(&mut Queue<'_>, &[Ptr], Ptr) -> (Places, Vec<Ptr>) + Send + Sync + 'static,
) -> Recorded {
    let kept_bytes = plan.most(|plan| plan.alone.kept);
    let passing_bytes = plan.most(|plan| plan.alone.passing);
    // The residual stream lies where the result goes, unless that has fewer rows.
    let narrow = plan.last.chosen.is_some() && plan.blocks > 1;
    let stream_bytes = if narrow { 4 * plan.last.sizes.rows() * plan.last.sizes.width } else { 0 };
    let scratch = packed_bytes + kept_bytes + passing_bytes + stream_bytes;
    let run = move |queue: &mut Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], scratch: Ptr| {
        let (places, packed) = packed(queue, inputs, scratch);
        let kept = at(scratch, packed_bytes);
        let passing = at(kept, kept_bytes);
        let stream = if narrow { at(passing, passing_bytes) } else { outputs[0] };
        let middle = |number| if number + 1 == plan.blocks { outputs[0] } else { stream };
        let xs = vec![stream; plan.blocks - 1];
        let memory = Memory { packed, xs, kept: &[kept], passing, middle: Some(&middle) };
        let blocks = places.forward(inputs, &plan, &memory, &spec);
        forward::run(queue, &plan, &blocks, false, outputs[0]);
    };
    one(native::<BT>(name, tensors, vec![output(&plan)], scratch, run))
}

/// What is saved: inputs of the blocks after the first; unless the rest is computed again, the packed parameters and what
/// each block keeps.
fn forward_train<BT: BoolElement>(
    inputs: Inputs,
    choice: Option<TokenChoice<Cuda<BT>>>,
    spec: BlockSpec,
) -> (Recorded, Vec<Recorded>) {
    let plan = plan(&inputs, choice.as_ref().map(|choice| choice.per_sample), &spec);
    let (count, packed_bytes) = (plan.blocks, plan.last.packed.bytes);
    let x = (inputs.x.shape.clone(), DType::F32);
    let mut outputs = vec![output(&plan)];
    outputs.extend(vec![x; count - 1]);
    if !spec.recompute {
        outputs.push(piece(count * packed_bytes));
        outputs.extend((0..count).map(|number| piece(plan.of(number).values.kept)));
    }
    let (kept_bytes, passing_bytes) =
        (plan.most(|plan| plan.values.kept), plan.most(|plan| plan.values.passing));
    let again = if spec.recompute { count * packed_bytes + kept_bytes } else { 0 };
    let (tensors, places) = list(inputs, rows(choice));
    let run = move |queue: &mut Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], scratch: Ptr| {
        let (y, saved) = (outputs[0], &outputs[1..]);
        let (xs, saved) = saved.split_at(count - 1);
        let again_kept = [at(scratch, count * packed_bytes)];
        let (packed, kept) = match saved.split_first() {
            Some((packed, kept)) => (*packed, kept),
            None => (scratch, &again_kept[..]),
        };
        pack(queue, &plan.last, &places.parameters(inputs), packed);
        let memory = Memory {
            packed: self::places(packed, count, packed_bytes),
            xs: xs.to_vec(),
            kept,
            passing: at(scratch, again),
            middle: None,
        };
        let blocks = places.forward(inputs, &plan, &memory, &spec);
        forward::run(queue, &plan, &blocks, true, y);
    };
    let mut outputs = native::<BT>("blocks_train", tensors, outputs, again + passing_bytes, run);
    (one(&mut outputs), outputs.collect())
}

fn backward<BT: BoolElement>(
    inputs: Inputs,
    choice: Option<TokenChoice<Cuda<BT>>>,
    spec: BlockSpec,
    (saved, grad): (Vec<Recorded>, Recorded),
    bias_grad: bool,
    group: Option<&Rank>,
) -> BlocksGradients<Recorded> {
    let plan = plan(&inputs, choice.as_ref().map(|choice| choice.per_sample), &spec);
    let (count, packed_bytes) = (plan.blocks, plan.last.packed.bytes);
    let mut outputs = vec![(inputs.x.shape.clone(), DType::F32)];
    let biases = inputs.biases.iter().filter(|_| bias_grad);
    outputs.extend(biases.map(|bias| (bias.shape.clone(), DType::F32)));
    let of_biases = 1..outputs.len();
    let mut output = |tensor: &Recorded| {
        outputs.push((tensor.shape.clone(), DType::F32));
        outputs.len() - 1
    };
    let of_parameters: Vec<BlockTensors<usize>> =
        inputs.parameters.iter().map(|block| block.each_ref().map(&mut output)).collect();
    let means = group.map(|group| Means::new(group, &inputs.parameters));
    let (mut tensors, places) = list(inputs, rows(choice));
    tensors.extend(saved);
    tensors.push(grad);
    let at_grad = tensors.len() - 1;

    let kept_bytes = plan.most(|plan| plan.values.kept);
    let passing_bytes = plan.most(|plan| plan.values.passing);
    let again = if spec.recompute { count * packed_bytes + kept_bytes + passing_bytes } else { 0 };
    let work_bytes = plan.most(|plan| plan.gradients().bytes);
    let parts_bytes = if bias_grad { plan.last.parts_bytes() } else { 0 };
    let sums_bytes = plan.most(|plan| plan.sums().bytes);
    let scratch = again + work_bytes + parts_bytes + count * sums_bytes;
    let (dbiases, dparameters) = (of_biases.clone(), of_parameters.clone());
    let run = move |queue: &mut Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], scratch: Ptr| {
        let (xs, saved) = inputs[places.count..at_grad].split_at(count - 1);
        let again_kept = [at(scratch, count * packed_bytes)];
        let (packed, kept) = match saved.split_first() {
            Some((packed, kept)) => (*packed, kept),
            None => (scratch, &again_kept[..]),
        };
        let parameters = places.parameters(inputs);
        if spec.recompute {
            pack(queue, &plan.last, &parameters, packed);
        }
        let memory = Memory {
            packed: self::places(packed, count, packed_bytes),
            xs: xs.to_vec(),
            kept,
            passing: at(again_kept[0], kept_bytes),
            middle: None,
        };
        let work = at(scratch, again);
        let parts = at(work, work_bytes);
        let sums = self::places(at(parts, parts_bytes), count, sums_bytes);
        let forward = places.forward(inputs, &plan, &memory, &spec);
        let shared = dbiases.len() == 1;
        let block = |(number, (forward, parameters)): (usize, (Forward, BlockTensors<Ptr>))| {
            let last = number + 1 == count;
            let dbias = outputs[dbiases.clone()].get(if shared { 0 } else { number });
            Backward {
                forward,
                parameters,
                grad: if last { inputs[at_grad] } else { outputs[0] },
                dx: outputs[0],
                // The last block comes first.
                dbias: dbias.map(|to| match shared {
                    true => BiasGradient { to: *to, parts, first: last, last: number == 0 },
                    false => BiasGradient::alone(*to, parts),
                }),
                dparameters: dparameters[number].clone().map(|place| outputs[place]),
                work,
                sums: sums[number],
            }
        };
        let blocks: Vec<Backward> = forward.into_iter().zip(parameters).enumerate().map(block).collect();
        backward::run(queue, &plan, &blocks, spec.recompute, means.as_ref());
    };
    // A gradient that nobody else holds becomes that of x, row by row; that of chosen tokens has fewer rows.
    let reuse = if plan.last.chosen.is_none() { vec![(0, at_grad)] } else { Vec::new() };
    let options = Options { scratch, reuse, prompt: group.is_some() };
    let outputs: Vec<_> = native_with::<BT>("blocks_backward", tensors, outputs, options, run).collect();
    BlocksGradients {
        x: outputs[0].clone(),
        biases: outputs[of_biases].to_vec(),
        parameters: of_parameters
            .into_iter()
            .map(|block| block.map(|place| outputs[place].clone()))
            .collect(),
    }
}
