//! The gradients of γ, of what it was multiplied into, and of the biases of q and v: `block_finish` of `kernels/block.cu`.

use std::ops::Range;

use super::super::{Arg, Ptr, Queue};
use super::backward::Backward;
use super::plan::{RunPlan, at};
use crate::block::BlockSizes;

/// Blocks of a launch, and bytes of each, as the kernel's `Finishes` has them.
const BLOCKS: usize = 24;
const BYTES: usize = 136;

/// After the gradients of the weights, and the sums over rows, of some of the `blocks`.
pub(super) fn finish(queue: &mut Queue<'_>, plan: &RunPlan, blocks: &[Backward], which: Range<usize>) {
    let BlockSizes { width, hidden, .. } = plan.last.sizes;
    let (gammas, biases) = match blocks.first() {
        Some(first) => (first.parameters.gammas.is_some(), first.parameters.qv_bias.is_some()),
        None => return,
    };
    if !gammas && !biases {
        return;
    }
    let [outputs, of_bias] = [gammas, biases].map(|there| if there { width } else { 0 });
    let grid = (2 * outputs + of_bias.div_ceil(256)) as u32;
    for (chunk, blocks) in blocks[which.clone()].chunks(BLOCKS).enumerate() {
        let mut table = Vec::with_capacity(8 + BLOCKS * BYTES);
        table.extend([outputs as u32, of_bias as u32].map(u32::to_le_bytes).concat());
        for (number, block) in blocks.iter().enumerate() {
            let (p, d) = (&block.parameters, &block.dparameters);
            let layers = [(&p.proj, &d.proj, width), (&p.fc2, &d.fc2, hidden)];
            for (which, (layer, gradients, inputs)) in layers.into_iter().enumerate() {
                let [gamma, dgamma] = [&p.gammas, &d.gammas]
                    .map(|gammas| gammas.as_ref().map_or(Ptr(0), |gammas| gammas[which]));
                let pointers = [layer[0], layer[1], gamma, gradients[0], gradients[1], dgamma];
                table.extend(pointers.map(|pointer| pointer.0.to_le_bytes()).concat());
                table.extend((inputs as u64).to_le_bytes());
            }
            let sums = at(block.sums, plan.of(which.start + chunk * BLOCKS + number).sums().qkv);
            let [dq, dv] = d.qv_bias.unwrap_or([Ptr(0); 2]);
            table.extend([sums, dq, dv].map(|pointer| pointer.0.to_le_bytes()).concat());
        }
        table.resize(8 + BLOCKS * BYTES, 0);
        let grid = [grid, blocks.len() as u32, 1];
        queue.launch("block_finish", grid, [256, 1, 1], 0, &[Arg::Bytes(table)]);
    }
}
