//! The forward half: nine operations on the queue.

use super::super::attention::{self, AttentionCall, Tokens};
use super::super::{Arg, Element, Epilogue, Gemm, Operand, Ptr, Queue, gelu, norm, residual};
use super::plan::{Plan, Values, at};
use crate::block::{BlockSizes, BlockTensors};

/// What a forward pass reads and writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forward {
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
    pub eps: f32,
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

    /// Up to the values before GELU; `middle` is where x after attention goes.
    pub fn to_hidden(self, queue: &mut Queue<'_>, plan: &Plan, values: &Values, middle: Ptr, keep: bool) {
        let BlockSizes { width, hidden, .. } = plan.sizes;
        let (all, n, packed) = (plan.sizes.rows(), plan.rows(), &plan.packed);
        let weights = |layer: [usize; 2]| layer.map(|offset| at(self.packed, offset));
        let value = |offset| at(self.kept, offset);
        let statistics = |offsets: [usize; 2]| keep.then(|| offsets.map(value));

        let [scale, shift] = weights(packed.norm1);
        let norm1 = norm::Forward {
            x: self.x,
            weight: scale,
            bias: shift,
            eps: self.eps,
            y: value(values.norm1),
            element: Element::Bf16,
            statistics: statistics(values.statistics1),
            rows: all,
            width,
        };
        norm::forward(queue, &norm1);
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
            x: middle,
            weight: scale,
            bias: shift,
            y: value(values.norm2),
            statistics: statistics(values.statistics2),
            rows: n,
            ..norm1
        };
        residual::forward_norm(queue, x, &self.branch(plan, values, 0), &norm2);
        queue.gemm(&linear(
            value(values.norm2),
            weights(packed.fc1),
            value(values.hidden),
            [n, hidden, width],
        ));
    }

    /// From the values before GELU to the result.
    pub fn to_output(self, queue: &mut Queue<'_>, plan: &Plan, values: &Values, middle: Ptr, y: Ptr) {
        let BlockSizes { width, hidden, .. } = plan.sizes;
        let n = plan.rows();
        let weights = plan.packed.fc2.map(|offset| at(self.packed, offset));
        let (activated, branch) = (at(self.passing, values.activated), at(self.passing, values.branch));
        gelu::forward(queue, at(self.kept, values.hidden), activated, Element::Bf16, n * hidden);
        queue.gemm(&linear(activated, weights, branch, [n, width, hidden]));
        residual::forward(queue, middle, &self.branch(plan, values, 1), y, [n, width]);
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

/// Numbers that a block of threads packs.
const BLOCK: usize = 4096;
/// Parts of `Pack` in `block.cu`.
const PARTS: usize = 16;

/// Writes the parameters to `packed` in the form that matmuls read, in one launch.
pub(super) fn pack(queue: &mut Queue<'_>, plan: &Plan, p: &BlockTensors<Ptr>, packed: Ptr) {
    let BlockSizes { width, hidden, .. } = plan.sizes;
    let to = |offset| at(packed, offset);
    let [gamma1, gamma2] = match p.gammas {
        Some([a, b]) => [Some(a), Some(b)],
        None => [None; 2],
    };
    let mut parts = Parts::default();
    for (from, offsets) in [(p.norm1, plan.packed.norm1), (p.norm2, plan.packed.norm2)] {
        for (from, offset) in from.into_iter().zip(offsets) {
            parts.push(Some(from), None, to(offset), [width, 1], Element::F32);
        }
    }
    let layers = [
        ([p.qkv, p.qkv], plan.packed.qkv, None, [3 * width, width]),
        (p.proj, plan.packed.proj, gamma1, [width, width]),
        (p.fc1, plan.packed.fc1, None, [hidden, width]),
        (p.fc2, plan.packed.fc2, gamma2, [width, hidden]),
    ];
    for (layer, ([weight, bias], [at_weight, at_bias], gamma, [outputs, inputs])) in
        layers.into_iter().enumerate()
    {
        parts.push(Some(weight), gamma, to(at_weight), [outputs, inputs], Element::Bf16);
        if layer > 0 {
            parts.push(Some(bias), gamma, to(at_bias), [outputs, 1], Element::Bf16);
        }
    }
    // Keys have no bias, and without one no part has.
    let [q, v] = p.qv_bias.map_or([None; 2], |pair| pair.map(Some));
    for (part, from) in [q, None, v].into_iter().enumerate() {
        let to = to(plan.packed.qkv[1]).offset(part * width, Element::Bf16);
        parts.push(from, None, to, [width, 1], Element::Bf16);
    }
    parts.launch(queue);
}

/// `Pack` of `block.cu`.
#[derive(Default)]
struct Parts {
    bytes: Vec<u8>,
    count: u64,
    blocks: u32,
}

impl Parts {
    fn push(
        &mut self,
        from: Option<Ptr>,
        factors: Option<Ptr>,
        to: Ptr,
        [rows, width]: [usize; 2],
        element: Element,
    ) {
        let pointers = [from.map_or(0, |from| from.0), factors.map_or(0, |factors| factors.0), to.0];
        for value in pointers.into_iter().chain([(rows * width) as u64]) {
            self.bytes.extend(value.to_le_bytes());
        }
        for value in [width as u32, self.blocks, u32::from(element == Element::F32), 0] {
            self.bytes.extend(value.to_le_bytes());
        }
        self.count += 1;
        self.blocks += (rows * width).div_ceil(BLOCK) as u32;
    }

    fn launch(self, queue: &mut Queue<'_>) {
        let mut table = self.count.to_le_bytes().to_vec();
        table.extend(self.bytes);
        table.resize(8 + PARTS * 48, 0);
        queue.launch("block_pack", [self.blocks, 1, 1], [256, 1, 1], 0, &[Arg::Bytes(table)]);
    }
}
