//! The forward half: eight operations on the queue for each block, after the norm that begins a run.

use super::super::attention::{self, AttentionCall, Tokens};
use super::super::{Arg, Element, Epilogue, Gemm, Operand, Ptr, Queue, gelu, norm, residual};
use super::plan::{Plan, RunPlan, Values, at};
use crate::block::{BlockActivation, BlockSizes};

/// What the forward pass of a block reads and writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forward {
    /// The block's input; the block before writes it.
    pub x: Ptr,
    /// Which tokens of each sample, `[B, R]` i32, if not all.
    pub choice: Option<Ptr>,
    pub bias: Option<Ptr>,
    /// Of drop path, `[B]` for each branch.
    pub factors: [Option<Ptr>; 2],
    pub packed: Ptr,
    /// Where the two pieces of [`Values`] begin.
    pub kept: Ptr,
    pub passing: Ptr,
    /// Where x after attention goes.
    pub middle: Ptr,
    pub eps: f32,
    pub activation: BlockActivation,
}

/// Runs `blocks`; the last leaves its result in `y`. `keep`: a backward pass follows.
pub(super) fn run(queue: &mut Queue<'_>, plan: &RunPlan, blocks: &[Forward], keep: bool, y: Ptr) {
    let of = |number| {
        let plan: &Plan = plan.of(number);
        (plan, plan.places(keep))
    };
    for (number, block) in blocks.iter().enumerate() {
        let (plan, values) = of(number);
        if number == 0 {
            norm::forward(queue, &block.norm1(plan, values, keep));
        }
        block.to_hidden(queue, plan, values, keep);
        block.to_branch(queue, plan, values);
        let branch = block.branch(plan, values, 1);
        match blocks.get(number + 1) {
            Some(next) => {
                let (plan, values) = of(number + 1);
                residual::forward_norm(queue, block.middle, &branch, &next.norm1(plan, values, keep));
            }
            None => residual::forward(queue, block.middle, &branch, y, [plan.rows(), plan.sizes.width]),
        }
    }
}

impl Forward {
    /// Arguments of the attention, for both halves.
    pub fn attention(&self, plan: &Plan, values: &Values) -> AttentionCall {
        let width = plan.sizes.width;
        let [qkv, kv] = [values.qkv, values.kv].map(|offset| at(self.kept, offset));
        let [q, k, v] = heads(plan, qkv, kv);
        AttentionCall {
            sizes: plan.attention,
            q,
            k,
            v,
            bias: self.bias,
            query_rows: self.choice,
            output: Tokens::whole(at(self.kept, values.attended), plan.queries(), width),
            output_element: Element::Bf16,
            lse: at(self.kept, values.lse),
        }
    }

    fn branch(&self, plan: &Plan, values: &Values, which: usize) -> residual::Branch {
        residual::Branch {
            at: at(self.passing, values.branch),
            element: Element::Bf16,
            gamma: None,
            factors: self.factors[which].map(|factors| (factors, plan.queries())),
        }
    }

    /// The norm before attention.
    pub fn norm1(&self, plan: &Plan, values: &Values, keep: bool) -> norm::Forward {
        let [scale, shift] = plan.packed.norm1.map(|offset| at(self.packed, offset));
        norm::Forward {
            x: self.x,
            weight: scale,
            bias: shift,
            eps: self.eps,
            y: at(self.kept, values.norm1),
            element: Element::Bf16,
            statistics: keep.then(|| values.statistics1.map(|offset| at(self.kept, offset))),
            rows: plan.sizes.rows(),
            width: plan.sizes.width,
        }
    }

    /// From norm 1's output to the values before GELU.
    pub fn to_hidden(self, queue: &mut Queue<'_>, plan: &Plan, values: &Values, keep: bool) {
        let BlockSizes { width, hidden, .. } = plan.sizes;
        let (all, n, packed) = (plan.sizes.rows(), plan.rows(), &plan.packed);
        let weights = |layer: [usize; 2]| layer.map(|offset| at(self.packed, offset));
        let value = |offset| at(self.kept, offset);

        let [weight, bias] = weights(packed.qkv);
        let x = match self.choice {
            None => {
                let sizes = [n, 3 * width, width];
                queue.gemm(&linear(value(values.norm1), [weight, bias], value(values.qkv), sizes));
                self.x
            }
            Some(choice) => {
                let [chosen, x] = values.chosen.map(value);
                let pointers = [self.x, value(values.norm1), choice, x, chosen].map(Arg::Ptr);
                let numbers = [plan.sizes.tokens, width].map(|number| Arg::U32(number as u32));
                let args: Vec<Arg> = pointers.into_iter().chain(numbers).collect();
                let grid = [plan.queries() as u32, plan.sizes.batch as u32, 1];
                queue.launch("block_choose", grid, [width.div_ceil(8).min(256) as u32, 1, 1], 0, &args);
                let sizes = [n, width, width];
                queue.gemm(&linear(chosen, [weight, bias], value(values.qkv), sizes));
                let kv = [weight.offset(width * width, Element::Bf16), bias.offset(width, Element::Bf16)];
                let sizes = [all, 2 * width, width];
                queue.gemm(&linear(value(values.norm1), kv, value(values.kv), sizes));
                x
            }
        };
        attention::forward(queue, &self.attention(plan, values));
        let branch = at(self.passing, values.branch);
        queue.gemm(&linear(value(values.attended), weights(packed.proj), branch, [n, width, width]));
        let [scale, shift] = weights(packed.norm2);
        let norm2 = norm::Forward {
            x: self.middle,
            weight: scale,
            bias: shift,
            y: value(values.norm2),
            statistics: keep.then(|| values.statistics2.map(value)),
            rows: n,
            ..self.norm1(plan, values, keep)
        };
        residual::forward_norm(queue, x, &self.branch(plan, values, 0), &norm2);
        queue.gemm(&linear(
            value(values.norm2),
            weights(packed.fc1),
            value(values.hidden),
            [n, hidden, width],
        ));
    }

    /// From the values before GELU to the MLP's branch.
    fn to_branch(self, queue: &mut Queue<'_>, plan: &Plan, values: &Values) {
        let BlockSizes { width, hidden, .. } = plan.sizes;
        let n = plan.rows();
        let weights = plan.packed.fc2.map(|offset| at(self.packed, offset));
        let (activated, branch) = (at(self.passing, values.activated), at(self.passing, values.branch));
        gelu::activate(queue, self.activation, [at(self.kept, values.hidden), activated], n * hidden);
        queue.gemm(&linear(activated, weights, branch, [n, width, hidden]));
    }
}

/// q, k and v, or their gradients: side by side in `qkv`, or with chosen tokens q there and the others in `kv`.
pub(super) fn heads(plan: &Plan, qkv: Ptr, kv: Ptr) -> [Tokens; 3] {
    let BlockSizes { tokens, width, .. } = plan.sizes;
    let part = |at, part| Tokens::part(at, Element::Bf16, tokens, width, part);
    match plan.chosen {
        None => [0, 1, 2].map(|number| part(qkv, (number, 3))),
        Some(chosen) => [Tokens::whole(qkv, chosen, width), part(kv, (0, 2)), part(kv, (1, 2))],
    }
}

/// `d [n, outputs] = x [n, inputs]·Wᵀ + b`, all bf16.
fn linear(x: Ptr, [weight, bias]: [Ptr; 2], d: Ptr, [n, outputs, inputs]: [usize; 3]) -> Gemm {
    Gemm {
        m: n,
        n: outputs,
        k: inputs,
        a: Operand { at: x, transposed: false, ld: inputs },
        b: Operand { at: weight, transposed: true, ld: inputs },
        d,
        ldd: outputs,
        operands: Element::Bf16,
        result: Element::Bf16,
        batch: None,
        epilogue: Epilogue::Bias(bias),
        accumulate: false,
    }
}
