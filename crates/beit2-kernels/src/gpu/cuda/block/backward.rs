//! The backward half: the forward half's operations from the last to the first, and the sums over rows at the end.

use super::super::attention::{self, AttentionBackwardCall, BiasGradient, Tokens};
use super::super::columns::{self, Partial};
use super::super::norm::{self, interleaved};
use super::super::{Arg, Element, Epilogue, Gemm, Operand, Ptr, Queue};
use super::finish::finish;
use super::forward::{Forward, heads};
use super::means::Means;
use super::plan::{Gradients, Plan, RunPlan, Sums, at};
use crate::block::{BlockSizes, BlockTensors};

/// Threads of a processor in `block_norm_backward`: by its registers.
const NORM_THREADS: u32 = 640;

/// What the backward pass of a block reads and writes beside what its forward pass did.
#[derive(Debug, Clone)]
pub(super) struct Backward {
    pub forward: Forward,
    pub parameters: BlockTensors<Ptr>,
    /// Of the block's output, f32.
    pub grad: Ptr,
    /// Of x, f32; may be `grad`.
    pub dx: Ptr,
    pub dbias: Option<BiasGradient>,
    pub dparameters: BlockTensors<Ptr>,
    /// Where [`Gradients`] begin, the same for all blocks, and where this block's [`Sums`] do.
    pub work: Ptr,
    pub sums: Ptr,
}

/// Gradients of `blocks`, from the last to the first. `recompute`: nothing is kept but the blocks' inputs. With `means` they
/// become means over a group, bucket by bucket, on another stream.
pub(super) fn run(
    queue: &mut Queue<'_>,
    run: &RunPlan,
    blocks: &[Backward],
    recompute: bool,
    means: Option<&Means>,
) {
    let mut partials = Vec::with_capacity(7 * blocks.len());
    let mut end = blocks.len();
    for (number, block) in blocks.iter().enumerate().rev() {
        let plan = run.of(number);
        if recompute {
            let values = plan.places(true);
            norm::forward(queue, &block.forward.norm1(plan, values, true));
            block.forward.to_hidden(queue, plan, values, true);
        }
        if number + 1 == blocks.len() {
            partials.push(block.branch_backward(queue, plan));
        }
        let before = number.checked_sub(1).map(|number| &blocks[number]);
        partials.extend(block.run(queue, plan, before));
        if means.map_or(number == 0, |means| means.is_bucket(number, end)) {
            columns::finish(queue, &std::mem::take(&mut partials));
            finish(queue, run, blocks, number..end);
            if let Some(means) = means {
                means.begin(queue, blocks, number, end);
            }
            end = number;
        }
    }
}

/// The end of a branch: which factors it is multiplied by, and its last bias.
struct Branch {
    factors: Option<Ptr>,
    /// Tokens of a sample.
    tokens: usize,
    dbias: Ptr,
}

impl Backward {
    /// From the gradient of the MLP's branch to that of x, and with a block `before` on to the gradient of its MLP's branch.
    fn run(&self, queue: &mut Queue<'_>, plan: &Plan, before: Option<&Self>) -> Vec<Partial> {
        let BlockSizes { batch, tokens, width, hidden, .. } = plan.sizes;
        let (all, n, packed, values) = (plan.sizes.rows(), plan.rows(), &plan.packed, &plan.values);
        let (places, sums): (Gradients, Sums) = (plan.gradients(), plan.sums());
        let (d, forward) = (&self.dparameters, &self.forward);
        let weight = |layer: [usize; 2]| at(forward.packed, layer[0]);
        let value = |offset| at(forward.kept, offset);
        let place = |offset| at(self.work, offset);
        let sum = |offset| at(self.sums, offset);
        let [branch, wide, narrow] = [places.branch, places.wide, places.narrow].map(place);
        let activated = place(places.activated);
        let mut partials = Vec::with_capacity(7);

        // The MLP's branch, back to the norm before it.
        queue.gemm(&input_gradient(branch, weight(packed.fc2), wide, [n, width, hidden]));
        let before_gelu = value(values.hidden);
        let of_fc1 =
            gelu_backward(queue, [before_gelu, wide, activated], [n, hidden], d.fc1[1], sum(sums.fc1));
        partials.push(of_fc1);
        queue.gemm(&weight_gradient(branch, activated, d.fc2[0], [n, width, hidden]));
        queue.gemm(&weight_gradient(wide, value(values.norm2), d.fc1[0], [n, hidden, width]));
        queue.gemm(&input_gradient(wide, weight(packed.fc1), narrow, [n, hidden, width]));
        // With chosen tokens it is spread over the others afterwards.
        let [chosen, chosen_dx] = places.chosen.map(place);
        let dx = if plan.chosen.is_some() { chosen_dx } else { self.dx };
        let norm2 = norm::Backward {
            x: forward.middle,
            weight: weight(packed.norm2),
            statistics: values.statistics2.map(value),
            grad: narrow,
            element: Element::Bf16,
            add: Some(self.grad),
            dx,
            dweight: d.norm2[0],
            dbias: d.norm2[1],
            rows: n,
            width,
        };
        let of_proj = Branch { factors: forward.factors[0], tokens: plan.queries(), dbias: d.proj[1] };
        partials.extend(norm_backward(queue, &norm2, &of_proj, branch, sum(sums.norm2)));

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
        let qkv_sums = sum(sums.qkv);
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
        match before {
            Some(before) => {
                let factors = before.forward.factors[1];
                let of_fc2 = Branch { factors, tokens, dbias: before.dparameters.fc2[1] };
                partials.extend(norm_backward(queue, &norm1, &of_fc2, branch, sum(sums.norm1)));
            }
            None => partials.extend(norm::backward(queue, &norm1, sum(sums.norm1))),
        }
        partials
    }

    /// The gradient of the MLP's branch where no norm follows, and the sum that is its last bias's.
    fn branch_backward(&self, queue: &mut Queue<'_>, plan: &Plan) -> Partial {
        let (n, width) = (plan.rows(), plan.sizes.width);
        let scratch = at(self.sums, plan.sums().fc2);
        let grid = columns::grid(columns::processors(queue), n, width);
        let args = [
            Arg::Ptr(self.grad),
            norm::optional(self.forward.factors[1]),
            Arg::U32(plan.queries() as u32),
            Arg::Ptr(at(self.work, plan.gradients().branch)),
            Arg::Ptr(scratch),
            Arg::U64(n as u64),
            Arg::U32(width as u32),
        ];
        queue.launch("block_branch_backward", grid, [256, 1, 1], 0, &args);
        let to = self.dparameters.fc2[1];
        Partial { at: scratch, rows: grid[1], width: width as u32, pitch: width as u32, to }
    }
}

/// As [`norm::backward`], and on to the branch that was added before the norm: its gradient goes to `to`.
fn norm_backward(
    queue: &mut Queue<'_>,
    norm: &norm::Backward,
    branch: &Branch,
    to: Ptr,
    scratch: Ptr,
) -> Vec<Partial> {
    let blocks = norm::blocks(columns::processors(queue), norm.rows, norm.width, NORM_THREADS);
    let mut args = norm.head().to_vec();
    args.extend([
        Arg::Ptr(norm.dx),
        norm::optional(branch.factors),
        Arg::U32(branch.tokens as u32),
        Arg::Ptr(to),
        Arg::Ptr(scratch),
        Arg::U64(norm.rows as u64),
        Arg::U32(norm.width as u32),
    ]);
    queue.launch("block_norm_backward", [blocks, 1, 1], [norm::block(norm.width).0, 1, 1], 0, &args);
    let to = [norm.dweight, norm.dbias, branch.dbias].map(Some);
    interleaved(scratch, blocks, norm.width, &to)
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
