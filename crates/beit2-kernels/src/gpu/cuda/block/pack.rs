//! Parameters in the form that matmuls and norms read: `block_pack` of `kernels/block.cu`.

use super::super::{Arg, Element, Ptr, Queue};
use super::plan::{Plan, at};
use crate::block::{BlockSizes, BlockTensors, PARAMETERS};

/// Numbers that a block of threads packs.
const NUMBERS: usize = 4096;
/// Parts of a block's parameters, and blocks of a launch: as the kernel's `Pack` has them.
const PARTS: usize = 14;
const BLOCKS: usize = 24;

/// Writes the parameters of blocks of one plan to `packed`, one block after the other.
pub(super) fn pack(queue: &mut Queue<'_>, plan: &Plan, parameters: &[BlockTensors<Ptr>], packed: Ptr) {
    let (parts, blocks) = parts(plan);
    for (number, parameters) in parameters.chunks(BLOCKS).enumerate() {
        let mut table = Vec::with_capacity(4096);
        table.extend([PARTS as u32, 0].map(u32::to_le_bytes).concat());
        table.extend(&parts);
        let to = |place| at(packed, (number * BLOCKS + place) * plan.packed.bytes).0;
        table.extend((0..BLOCKS).flat_map(|place| to(place).to_le_bytes()));
        for block in parameters {
            let addresses = block.clone().list().map(|parameter| parameter.map_or(0, |at| at.0));
            table.extend(addresses.map(u64::to_le_bytes).concat());
        }
        table.resize(8 + parts.len() + BLOCKS * 8 * (1 + PARAMETERS), 0);
        let grid = [blocks, parameters.len() as u32, 1];
        queue.launch("block_pack", grid, [256, 1, 1], 0, &[Arg::Bytes(table)]);
    }
}

/// The table of parts, and the blocks of threads that they take.
fn parts(plan: &Plan) -> (Vec<u8>, u32) {
    let BlockSizes { width, hidden, .. } = plan.sizes;
    let packed = &plan.packed;
    let mut count = 0;
    let p = numbered(&mut count);
    let ([q, v], [gamma1, gamma2]) = (p.qv_bias.unwrap_or_default(), p.gammas.unwrap_or_default());
    let vectors = [(p.norm1, packed.norm1), (p.norm2, packed.norm2)];
    let mut table = Table::default();
    for (from, offsets) in vectors {
        for (from, offset) in from.into_iter().zip(offsets) {
            table.push(from, NONE, offset, [width, 1], Element::F32);
        }
    }
    table.push(p.qkv, NONE, packed.qkv[0], [3 * width, width], Element::Bf16);
    // Keys have no bias, and without one no part has.
    for (part, from) in [q, NONE, v].into_iter().enumerate() {
        let offset = packed.qkv[1] + part * width * Element::Bf16.bytes();
        table.push(from, NONE, offset, [width, 1], Element::Bf16);
    }
    let layers = [
        (p.proj, packed.proj, gamma1, [width, width]),
        (p.fc1, packed.fc1, NONE, [hidden, width]),
        (p.fc2, packed.fc2, gamma2, [width, hidden]),
    ];
    for ([weight, bias], [at_weight, at_bias], gamma, [outputs, inputs]) in layers {
        table.push(weight, gamma, at_weight, [outputs, inputs], Element::Bf16);
        table.push(bias, gamma, at_bias, [outputs, 1], Element::Bf16);
    }
    debug_assert_eq!((table.count, count), (PARTS, PARAMETERS as i32));
    (table.bytes, table.blocks)
}

/// No parameter.
const NONE: i32 = -1;

/// The place of each parameter among those of a block.
fn numbered(count: &mut i32) -> BlockTensors<i32> {
    let pair = [(); 2];
    let all = BlockTensors {
        norm1: pair,
        qkv: (),
        qv_bias: Some(pair),
        proj: pair,
        norm2: pair,
        fc1: pair,
        fc2: pair,
        gammas: Some(pair),
    };
    all.map(|()| {
        *count += 1;
        *count - 1
    })
}

/// `PackPart`s.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    count: usize,
    blocks: u32,
}

impl Table {
    fn push(&mut self, from: i32, factors: i32, to: usize, [rows, width]: [usize; 2], element: Element) {
        self.bytes.extend([to as u64, (rows * width) as u64].map(u64::to_le_bytes).concat());
        self.bytes.extend([width as u32, self.blocks].map(u32::to_le_bytes).concat());
        self.bytes.extend([from, factors].map(i32::to_le_bytes).concat());
        self.bytes.extend([u32::from(element == Element::F32), 0].map(u32::to_le_bytes).concat());
        self.count += 1;
        self.blocks += (rows * width).div_ceil(NUMBERS) as u32;
    }
}
