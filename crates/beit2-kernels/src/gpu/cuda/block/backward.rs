//! The backward half: the forward half's operations from the last to the first, and the sums over rows at the end.

use super::super::attention::{self, AttentionBackwardCall, Tokens};
use super::super::columns::{self, Partial};
use super::super::norm::{self, interleaved, optional};
use super::super::{Arg, Element, Epilogue, Gemm, Operand, Ptr, Queue};
use super::forward::{Forward, heads};
use super::plan::{Gradients, Plan, at};
use crate::block::{BlockSizes, BlockTensors};

/// Threads of a processor in `block_norm_backward`: by its registers.
const NORM_THREADS: u32 = 640;

/// What a backward pass reads and writes beside what its forward pass did.
#[derive(Debug, Clone)]
pub(super) struct Backward {
    pub forward: Forward,
    pub parameters: BlockTensors<Ptr>,
    /// Of the block's output, f32.
    pub grad: Ptr,
    /// Of x, f32; may be `grad`.
    pub dx: Ptr,
    pub dbias: Option<Ptr>,
    pub dparameters: BlockTensors<Ptr>,
    pub scratch: Ptr,
}

impl Backward {
    pub fn run(&self, queue: &mut Queue<'_>, plan: &Plan, places: &Gradients) {
        let BlockSizes { batch, tokens, width, hidden, .. } = plan.sizes;
        let (all, n, packed, values) = (plan.sizes.rows(), plan.rows(), &plan.packed, &plan.values);
        let (d, forward) = (&self.dparameters, &self.forward);
        let weight = |layer: [usize; 2]| at(forward.packed, layer[0]);
        let value = |offset| at(forward.kept, offset);
        let place = |offset| at(self.scratch, offset);
        let [branch, wide, narrow] = [places.branch, places.wide, places.narrow].map(place);
        let activated = place(places.activated);
        let sums = places.sums.map(place);
        let mut partials = Vec::with_capacity(7);

        // The MLP's branch, back to the norm before it.
        partials.push(self.branch_backward(queue, plan, branch, d.fc2[1], sums[0]));
        queue.gemm(&input_gradient(branch, weight(packed.fc2), wide, [n, width, hidden]));
        let before_gelu = value(values.hidden);
        partials.push(gelu_backward(queue, [before_gelu, wide, activated], [n, hidden], d.fc1[1], sums[1]));
        queue.gemm(&weight_gradient(branch, activated, d.fc2[0], [n, width, hidden]));
        queue.gemm(&weight_gradient(wide, value(values.norm2), d.fc1[0], [n, hidden, width]));
        queue.gemm(&input_gradient(wide, weight(packed.fc1), narrow, [n, hidden, width]));
        // With chosen tokens it is spread over the others afterwards.
        let [chosen, chosen_dx] = places.chosen.map(place);
        let dx = if plan.chosen.is_some() { chosen_dx } else { self.dx };
        partials.extend(self.norm2_backward(queue, plan, [narrow, branch, dx], sums[2]));

        // The attention's branch.
        queue.gemm(&input_gradient(branch, weight(packed.proj), narrow, [n, width, width]));
        queue.gemm(&weight_gradient(branch, value(values.attended), d.proj[0], [n, width, width]));
        let kv = at(wide, places.kv);
        let [dq, dk, dv] = heads(plan, wide, kv);
        let call = AttentionBackwardCall {
            forward: forward.attention(plan, values),
            grad: Tokens::whole(narrow, plan.queries(), width),
            dq,
            dk,
            dv,
            gradients: Element::Bf16,
            dbias: self.dbias,
            scratch: place(places.attention),
        };
        attention::backward(queue, &call);
        let qkv_sums = place(places.qkv_sums);
        let biased = |gradient: Gemm, sums: Ptr| match d.qv_bias {
            Some(_) => Gemm { epilogue: Epilogue::BiasGradient(sums), ..gradient },
            None => gradient,
        };
        let (norm1, qkv_weight) = (value(values.norm1), weight(packed.qkv));
        match forward.choice {
            None => {
                let sizes = [n, 3 * width, width];
                queue.gemm(&biased(weight_gradient(wide, norm1, d.qkv, sizes), qkv_sums));
                queue.gemm(&input_gradient(wide, qkv_weight, narrow, sizes));
            }
            Some(choice) => {
                let (q_sizes, kv_sizes) = ([n, width, width], [all, 2 * width, width]);
                let chosen_norm1 = value(values.chosen[0]);
                queue.gemm(&biased(weight_gradient(wide, chosen_norm1, d.qkv, q_sizes), qkv_sums));
                let dkv = d.qkv.offset(width * width, Element::F32);
                let kv_sums = qkv_sums.offset(width, Element::F32);
                queue.gemm(&biased(weight_gradient(kv, norm1, dkv, kv_sizes), kv_sums));
                queue.gemm(&input_gradient(wide, qkv_weight, chosen, q_sizes));
                let kv_weight = qkv_weight.offset(width * width, Element::Bf16);
                queue.gemm(&input_gradient(kv, kv_weight, narrow, kv_sizes));
                let pointers = [chosen_dx, chosen, choice, self.dx, narrow].map(Arg::Ptr);
                let numbers = [plan.queries(), width].map(|number| Arg::U32(number as u32));
                let args: Vec<Arg> = pointers.into_iter().chain(numbers).collect();
                let block = [width.div_ceil(8).min(256) as u32, 1, 1];
                queue.launch("block_spread", [tokens as u32, batch as u32, 1], block, 0, &args);
            }
        }
        let norm1 = norm::Backward {
            x: forward.x,
            weight: weight(packed.norm1),
            statistics: values.statistics1.map(value),
            grad: narrow,
            element: Element::Bf16,
            add: Some(self.dx),
            dx: self.dx,
            dweight: d.norm1[0],
            dbias: d.norm1[1],
            rows: all,
            width,
        };
        partials.extend(norm::backward(queue, &norm1, sums[3]));
        columns::finish(queue, &partials);
        self.finish(queue, plan, qkv_sums);
    }

    /// The factors of a branch and the tokens that have the same: arguments of a kernel.
    fn factors(&self, which: usize, tokens: usize) -> [Arg; 2] {
        [optional(self.forward.factors[which]), Arg::U32(tokens as u32)]
    }

    /// The gradient of the MLP's branch, and the sum that is its last bias's.
    fn branch_backward(
        &self,
        queue: &mut Queue<'_>,
        plan: &Plan,
        branch: Ptr,
        dbias: Ptr,
        scratch: Ptr,
    ) -> Partial {
        let (n, tokens, width) = (plan.rows(), plan.queries(), plan.sizes.width);
        let grid = columns::grid(columns::processors(queue), n, width);
        let mut args = vec![Arg::Ptr(self.grad)];
        args.extend(self.factors(1, tokens));
        args.extend([Arg::Ptr(branch), Arg::Ptr(scratch), Arg::U64(n as u64), Arg::U32(width as u32)]);
        queue.launch("block_branch_backward", grid, [256, 1, 1], 0, &args);
        Partial { at: scratch, rows: grid[1], width: width as u32, pitch: width as u32, to: dbias }
    }

    /// The gradient of x after attention to `dx`, that of the attention's branch to `branch`, and their sums.
    fn norm2_backward(
        &self,
        queue: &mut Queue<'_>,
        plan: &Plan,
        [grad, branch, dx]: [Ptr; 3],
        scratch: Ptr,
    ) -> Vec<Partial> {
        let (n, tokens, width) = (plan.rows(), plan.queries(), plan.sizes.width);
        let (forward, d, values) = (&self.forward, &self.dparameters, &plan.values);
        let blocks = norm::blocks(columns::processors(queue), n, width, NORM_THREADS);
        let kept = [values.middle, values.statistics2[0], values.statistics2[1]];
        let [middle, mean, rstd] = kept.map(|offset| Arg::Ptr(at(forward.kept, offset)));
        let scale = Arg::Ptr(at(forward.packed, plan.packed.norm2[0]));
        let mut args = vec![middle, scale, mean, rstd, Arg::Ptr(grad), Arg::Ptr(self.grad), Arg::Ptr(dx)];
        args.extend(self.factors(0, tokens));
        args.extend([Arg::Ptr(branch), Arg::Ptr(scratch), Arg::U64(n as u64), Arg::U32(width as u32)]);
        queue.launch("block_norm_backward", [blocks, 1, 1], [norm::block(width).0, 1, 1], 0, &args);
        interleaved(scratch, blocks, width, &[Some(d.norm2[0]), Some(d.norm2[1]), Some(d.proj[1])])
    }

    /// Gradients of γ and what it was multiplied into, and of the biases of q and v.
    fn finish(&self, queue: &mut Queue<'_>, plan: &Plan, qkv_sums: Ptr) {
        let BlockSizes { width, hidden, .. } = plan.sizes;
        let (p, d) = (&self.parameters, &self.dparameters);
        if d.gammas.is_none() && d.qv_bias.is_none() {
            return;
        }
        let mut argument = Vec::with_capacity(160);
        let layers = [(&p.proj, &d.proj, width), (&p.fc2, &d.fc2, hidden)];
        for (which, (layer, gradients, inputs)) in layers.into_iter().enumerate() {
            let [gamma, dgamma] =
                [&p.gammas, &d.gammas].map(|gammas| gammas.as_ref().map_or(Ptr(0), |gammas| gammas[which]));
            for pointer in [layer[0], layer[1], gamma, gradients[0], gradients[1], dgamma] {
                argument.extend(pointer.0.to_le_bytes());
            }
            argument.extend((inputs as u64).to_le_bytes());
        }
        let outputs = if d.gammas.is_some() { width } else { 0 };
        let biases = if d.qv_bias.is_some() { width } else { 0 };
        argument.extend((outputs as u32).to_le_bytes());
        argument.extend((biases as u32).to_le_bytes());
        let [dq, dv] = d.qv_bias.unwrap_or([Ptr(0); 2]);
        for pointer in [qkv_sums, dq, dv] {
            argument.extend(pointer.0.to_le_bytes());
        }
        let blocks = (2 * outputs + biases.div_ceil(256)) as u32;
        queue.launch("block_finish", [blocks, 1, 1], [256, 1, 1], 0, &[Arg::Bytes(argument)]);
    }
}

/// `grad` becomes the gradient before GELU, `after` the values after it; the sum is the gradient of the bias before it.
fn gelu_backward(
    queue: &mut Queue<'_>,
    [x, grad, after]: [Ptr; 3],
    [n, width]: [usize; 2],
    dbias: Ptr,
    scratch: Ptr,
) -> Partial {
    let grid = columns::grid(columns::processors(queue), n, width);
    let args = [
        Arg::Ptr(x),
        Arg::Ptr(grad),
        Arg::Ptr(after),
        Arg::Ptr(scratch),
        Arg::U64(n as u64),
        Arg::U32(width as u32),
    ];
    queue.launch("block_gelu_backward", grid, [256, 1, 1], 0, &args);
    Partial { at: scratch, rows: grid[1], width: width as u32, pitch: width as u32, to: dbias }
}

/// `dx [n, inputs] = grad [n, outputs]·W`, all bf16.
fn input_gradient(grad: Ptr, weight: Ptr, dx: Ptr, [n, outputs, inputs]: [usize; 3]) -> Gemm {
    Gemm {
        m: n,
        n: inputs,
        k: outputs,
        a: Operand { at: grad, transposed: false, ld: outputs },
        b: Operand { at: weight, transposed: false, ld: inputs },
        d: dx,
        ldd: inputs,
        operands: Element::Bf16,
        result: Element::Bf16,
        batch: None,
        epilogue: Epilogue::None,
        accumulate: false,
    }
}

/// `dW [outputs, inputs] = gradᵀ·x` in f32 of bf16 `grad [n, outputs]` and `x [n, inputs]`.
fn weight_gradient(grad: Ptr, x: Ptr, dweight: Ptr, [n, outputs, inputs]: [usize; 3]) -> Gemm {
    Gemm {
        m: outputs,
        n: inputs,
        k: n,
        a: Operand { at: grad, transposed: true, ld: outputs },
        b: Operand { at: x, transposed: false, ld: inputs },
        d: dweight,
        ldd: inputs,
        operands: Element::Bf16,
        result: Element::F32,
        batch: None,
        epilogue: Epilogue::None,
        accumulate: false,
    }
}
