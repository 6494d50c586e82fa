//! A Transformer block: one native operation forward, one backward, in bf16.
//!
//! `plan` says where its values lie, `forward` and `backward` put the work on the queue. A forward pass is ten launches
//! and matmuls with the packing of the parameters, a backward pass eighteen; nothing is allocated between them.

mod backward;
mod forward;
mod means;
mod plan;
#[cfg(test)]
mod tests;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;
use cubecl::cuda::{CudaDevice, CudaRuntime};

use super::super::Gpu;
use super::{Element, Options, Ptr, Queue, Recorded, is_native, native, native_with};
use crate::block::{BlockGradients, BlockInputs, BlockOps, BlockSizes, BlockSpec, BlockTensors, composed};
use crate::tokens::{TokenChoice, TokenOps};
use crate::{Precision, Rank};
use backward::Backward;
use forward::{Forward, pack};
use means::Means;
use plan::{Plan, at};

type Inputs = BlockInputs<Recorded>;
type Cuda<BT> = Gpu<CudaRuntime, BT>;

/// Where an operation finds the tensors of a block among its inputs, in the order of [`list`].
#[derive(Debug, Clone)]
struct Places {
    choice: Option<usize>,
    bias: Option<usize>,
    drop: Option<(usize, [usize; 2])>,
    parameters: BlockTensors<usize>,
    count: usize,
}

/// The tensors of a block as the inputs of an operation: x first.
///
/// # Panics
/// If one of them is not f32.
fn list(inputs: Inputs, choice: Option<Recorded>) -> (Vec<Recorded>, Places) {
    let BlockInputs { x, bias, parameters, drop } = inputs;
    let mut tensors = vec![x];
    let at_choice = choice.is_some().then_some(1);
    tensors.extend(choice);
    let mut push = |tensor: Recorded| {
        assert!(
            tensor.dtype == DType::F32,
            "block: tensors are f32 on a CUDA device, found {:?}",
            tensor.dtype
        );
        tensors.push(tensor);
        tensors.len() - 1
    };
    let bias = bias.map(&mut push);
    let drop = drop.map(|drop| (push(drop.factors), drop.rows));
    let parameters = parameters.map(&mut push);
    let count = tensors.len();
    (tensors, Places { choice: at_choice, bias, drop, parameters, count })
}

impl Places {
    /// A forward pass over these inputs.
    fn forward(&self, inputs: &[Ptr], batch: usize, [packed, kept, passing]: [Ptr; 3], eps: f64) -> Forward {
        let factors = match self.drop {
            Some((place, rows)) => rows.map(|row| Some(inputs[place].offset(row * batch, Element::F32))),
            None => [None; 2],
        };
        let [choice, bias] = [self.choice, self.bias].map(|place| place.map(|place| inputs[place]));
        Forward { x: inputs[0], choice, bias, factors, packed, kept, passing, eps: eps as f32 }
    }

    fn parameters(&self, inputs: &[Ptr]) -> BlockTensors<Ptr> {
        self.parameters.clone().map(|place| inputs[place])
    }
}

fn plan(inputs: &Inputs, chosen: Option<usize>, spec: &BlockSpec) -> Plan {
    let shape = &inputs.x.shape;
    let sizes = BlockSizes {
        batch: shape[0],
        tokens: shape[1],
        width: shape[2],
        hidden: inputs.parameters.fc1[1].shape[0],
        heads: spec.heads,
    };
    Plan::new(sizes, chosen, spec.scale, inputs.bias.is_some())
}

/// A tensor that holds `bytes` bytes of anything.
fn piece(bytes: usize) -> (Shape, DType) {
    (Shape::new([bytes.div_ceil(4)]), DType::F32)
}

fn one(outputs: impl IntoIterator<Item = Recorded>) -> Recorded {
    outputs.into_iter().next().unwrap_or_else(|| unreachable!("one output"))
}

impl<BT: BoolElement> BlockOps for Gpu<CudaRuntime, BT> {
    fn fuses_block(device: &CudaDevice, sizes: &BlockSizes, spec: &BlockSpec) -> bool {
        let bias = false; // Sizes that are supported without one are with one.
        spec.precision == Precision::Bf16
            && Plan::new(*sizes, None, spec.scale, bias).is_supported()
            && is_native(device)
    }

    fn fused_block(inputs: Inputs, spec: BlockSpec) -> FloatTensor<Self> {
        forward::<BT>(inputs, None, spec)
    }

    fn fused_block_train(inputs: Inputs, spec: BlockSpec) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        forward_train::<BT>(inputs, None, spec)
    }

    fn fused_block_backward(
        inputs: Inputs,
        spec: BlockSpec,
        saved: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        bias_grad: bool,
        group: Option<&Rank>,
    ) -> BlockGradients<FloatTensor<Self>> {
        backward::<BT>(inputs, None, spec, (saved, grad), bias_grad, group)
    }

    fn fused_block_tokens(inputs: Inputs, choice: TokenChoice<Self>, spec: BlockSpec) -> FloatTensor<Self> {
        forward::<BT>(inputs, Some(choice), spec)
    }

    fn fused_block_tokens_train(
        inputs: Inputs,
        choice: TokenChoice<Self>,
        spec: BlockSpec,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        forward_train::<BT>(inputs, Some(choice), spec)
    }

    fn fused_block_tokens_backward(
        inputs: Inputs,
        choice: TokenChoice<Self>,
        spec: BlockSpec,
        saved: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        bias_grad: bool,
        group: Option<&Rank>,
    ) -> BlockGradients<FloatTensor<Self>> {
        backward::<BT>(inputs, Some(choice), spec, (saved, grad), bias_grad, group)
    }

    fn pack_block(
        parameters: BlockTensors<FloatTensor<Self>>,
        sizes: &BlockSizes,
        spec: &BlockSpec,
    ) -> Option<FloatTensor<Self>> {
        if !Self::fuses_block(parameters.qkv.client.device(), sizes, spec) {
            return None;
        }
        let plan = Plan::new(*sizes, None, spec.scale, false);
        let x = parameters.qkv.clone(); // Any tensor: there is no x.
        let (tensors, places) = list(BlockInputs { x, bias: None, parameters, drop: None }, None);
        let output = vec![piece(plan.packed.bytes)];
        Some(one(native::<BT>("block_pack", tensors, output, 0, move |queue, inputs, outputs, _| {
            pack(queue, &plan, &places.parameters(inputs), outputs[0]);
        })))
    }

    fn fused_block_packed(
        x: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        packed: FloatTensor<Self>,
        hidden: usize,
        spec: BlockSpec,
    ) -> FloatTensor<Self> {
        forward_packed::<BT>(x, None, bias, packed, hidden, spec)
    }

    fn fused_block_tokens_packed(
        x: FloatTensor<Self>,
        choice: TokenChoice<Self>,
        bias: Option<FloatTensor<Self>>,
        packed: FloatTensor<Self>,
        hidden: usize,
        spec: BlockSpec,
    ) -> FloatTensor<Self> {
        forward_packed::<BT>(x, Some(choice), bias, packed, hidden, spec)
    }
}

/// The block's output: of all tokens, or of the chosen ones.
fn output(plan: &Plan) -> (Shape, DType) {
    (Shape::new([plan.sizes.batch, plan.queries(), plan.sizes.width]), DType::F32)
}

/// Which tokens of each sample, as an input.
///
/// # Panics
/// If they are not i32.
fn rows<BT: BoolElement>(choice: Option<TokenChoice<Cuda<BT>>>) -> Option<Recorded> {
    choice.map(|choice| {
        let dtype = choice.local.dtype;
        assert!(
            dtype == DType::I32,
            "block_tokens: tokens are numbered in i32 on a CUDA device, found {dtype:?}"
        );
        choice.local
    })
}

fn forward<BT: BoolElement>(
    inputs: Inputs,
    choice: Option<TokenChoice<Cuda<BT>>>,
    spec: BlockSpec,
) -> Recorded {
    let plan = plan(&inputs, choice.as_ref().map(|choice| choice.per_sample), &spec);
    if !Cuda::<BT>::fuses_block(inputs.x.client.device(), &plan.sizes, &spec) {
        let y = composed::block::<Cuda<BT>>(inputs, spec);
        return match choice {
            Some(choice) => Cuda::<BT>::fused_gather_tokens(y, choice),
            None => y,
        };
    }
    let output = vec![output(&plan)];
    let (tensors, places) = list(inputs, rows(choice));
    let (packed, values) = (plan.packed.bytes, plan.alone);
    let scratch = packed + values.kept + values.passing;
    one(native::<BT>("block", tensors, output, scratch, move |queue, inputs, outputs, scratch| {
        let kept = at(scratch, packed);
        let pieces = [scratch, kept, at(kept, values.kept)];
        pack(queue, &plan, &places.parameters(inputs), scratch);
        let forward = places.forward(inputs, plan.sizes.batch, pieces, spec.eps);
        // Where the result goes, x after attention is until then.
        forward.to_hidden(queue, &plan, &values, outputs[0], false);
        forward.to_output(queue, &plan, &values, outputs[0], outputs[0]);
    }))
}

fn forward_train<BT: BoolElement>(
    inputs: Inputs,
    choice: Option<TokenChoice<Cuda<BT>>>,
    spec: BlockSpec,
) -> (Recorded, Vec<Recorded>) {
    if spec.recompute {
        return (forward::<BT>(inputs, choice, spec), Vec::new());
    }
    let plan = plan(&inputs, choice.as_ref().map(|choice| choice.per_sample), &spec);
    let values = plan.values;
    let outputs = vec![output(&plan), piece(plan.packed.bytes), piece(values.kept)];
    let (tensors, places) = list(inputs, rows(choice));
    let scratch = values.passing;
    let mut outputs =
        native::<BT>("block_train", tensors, outputs, scratch, move |queue, inputs, outputs, passing| {
            let [y, packed, kept] = [outputs[0], outputs[1], outputs[2]];
            pack(queue, &plan, &places.parameters(inputs), packed);
            let forward = places.forward(inputs, plan.sizes.batch, [packed, kept, passing], spec.eps);
            let middle = at(kept, values.middle);
            forward.to_hidden(queue, &plan, &values, middle, true);
            forward.to_output(queue, &plan, &values, middle, y);
        });
    (one(&mut outputs), outputs.collect())
}

fn backward<BT: BoolElement>(
    inputs: Inputs,
    choice: Option<TokenChoice<Cuda<BT>>>,
    spec: BlockSpec,
    (saved, grad): (Vec<Recorded>, Recorded),
    bias_grad: bool,
    group: Option<&Rank>,
) -> BlockGradients<Recorded> {
    let plan = plan(&inputs, choice.as_ref().map(|choice| choice.per_sample), &spec);
    let gradients = plan.gradients(bias_grad);
    let mut outputs = vec![(inputs.x.shape.clone(), DType::F32)];
    outputs.extend(inputs.bias.iter().filter(|_| bias_grad).map(|bias| (bias.shape.clone(), DType::F32)));
    let first = outputs.len();
    let dplaces = inputs.parameters.each_ref().map(|tensor| {
        outputs.push((tensor.shape.clone(), DType::F32));
        outputs.len() - 1
    });
    let means = group.map(|group| Means::new(group, &inputs.parameters));
    let (mut tensors, places) = list(inputs, rows(choice));
    let recompute = saved.is_empty();
    tensors.extend(saved);
    tensors.push(grad);
    let at_grad = tensors.len() - 1;
    let values = plan.values;
    let again = if recompute { plan.packed.bytes + values.kept + values.passing } else { 0 };
    let scratch = again + gradients.bytes;
    let dparameters = dplaces.clone();
    let run = move |queue: &mut Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], scratch: Ptr| {
        let parameters = places.parameters(inputs);
        let [packed, kept] = match recompute {
            true => [scratch, at(scratch, plan.packed.bytes)],
            false => [inputs[places.count], inputs[places.count + 1]],
        };
        let pieces = [packed, kept, at(kept, values.kept)];
        let forward = places.forward(inputs, plan.sizes.batch, pieces, spec.eps);
        if recompute {
            pack(queue, &plan, &parameters, packed);
            forward.to_hidden(queue, &plan, &values, at(kept, values.middle), true);
        }
        let backward = Backward {
            forward,
            parameters,
            grad: inputs[at_grad],
            dx: outputs[0],
            dbias: bias_grad.then(|| outputs[1]),
            dparameters: dparameters.clone().map(|place| outputs[place]),
            scratch: at(scratch, again),
        };
        backward.run(queue, &plan, &gradients);
        if let Some(means) = &means {
            means.begin(queue, &backward.dparameters);
        }
    };
    // A gradient that nobody else holds becomes that of x, row by row; that of chosen tokens has fewer rows.
    let reuse = if plan.chosen.is_none() { vec![(0, at_grad)] } else { Vec::new() };
    let options = Options { scratch, reuse, prompt: group.is_some() };
    let outputs: Vec<_> = native_with::<BT>("block_backward", tensors, outputs, options, run).collect();
    BlockGradients {
        x: outputs[0].clone(),
        bias: (first == 2).then(|| outputs[1].clone()),
        parameters: dplaces.map(|place| outputs[place].clone()),
    }
}

fn forward_packed<BT: BoolElement>(
    x: Recorded,
    choice: Option<TokenChoice<Cuda<BT>>>,
    bias: Option<Recorded>,
    packed: Recorded,
    hidden: usize,
    spec: BlockSpec,
) -> Recorded {
    let sizes =
        BlockSizes { batch: x.shape[0], tokens: x.shape[1], width: x.shape[2], hidden, heads: spec.heads };
    let plan = Plan::new(sizes, choice.as_ref().map(|choice| choice.per_sample), spec.scale, bias.is_some());
    let wanted = plan.packed.bytes.div_ceil(4);
    let found = packed.shape[0];
    assert!(
        found == wanted,
        "block_packed: {found} packed numbers, {wanted} are those of a block of {sizes:?}"
    );
    let output = vec![output(&plan)];
    let has_bias = bias.is_some();
    let tensors: Vec<_> = [x, packed].into_iter().chain(bias).chain(rows(choice)).collect();
    let values = plan.alone;
    let scratch = values.kept + values.passing;
    one(native::<BT>("block_packed", tensors, output, scratch, move |queue, inputs, outputs, scratch| {
        let forward = Forward {
            x: inputs[0],
            choice: plan.chosen.map(|_| inputs[inputs.len() - 1]),
            bias: has_bias.then(|| inputs[2]),
            factors: [None; 2],
            packed: inputs[1],
            kept: scratch,
            passing: at(scratch, values.kept),
            eps: spec.eps as f32,
        };
        forward.to_hidden(queue, &plan, &values, outputs[0], false);
        forward.to_output(queue, &plan, &values, outputs[0], outputs[0]);
    }))
}
