//! Casts of several tensors in one launch.

use super::{Arg, Element, Ptr, Queue};

/// Casts of one launch: `Casts` in `casts.cu`.
const CASTS: usize = 96;
/// Elements that a block casts.
const BLOCK: usize = 4096;

/// One tensor of [`many`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cast {
    /// f32 for bf16 and the other way round; `None`: zeros.
    pub from: Option<Ptr>,
    pub to: Ptr,
    /// What it becomes.
    pub element: Element,
    /// Elements.
    pub count: usize,
}

impl Cast {
    /// To bf16.
    pub(crate) fn to_bf16(from: Ptr, to: Ptr, count: usize) -> Self {
        Self { from: Some(from), to, element: Element::Bf16, count }
    }
}

/// All of `casts`, 96 to a launch. Addresses need not be aligned beyond their elements; multiples of 16 bytes are faster.
pub(crate) fn many(queue: &mut Queue<'_>, casts: &[Cast]) {
    for casts in casts.chunks(CASTS) {
        let mut table = Vec::with_capacity(8 + CASTS * 32);
        table.extend((casts.len() as u64).to_le_bytes());
        let mut blocks = 0u32;
        for cast in casts {
            table.extend(cast.from.map_or(0, |from| from.0).to_le_bytes());
            table.extend(cast.to.0.to_le_bytes());
            table.extend((cast.count as u64).to_le_bytes());
            table.extend(blocks.to_le_bytes());
            table.extend(u32::from(cast.element == Element::F32).to_le_bytes());
            blocks += cast.count.div_ceil(BLOCK) as u32;
        }
        table.resize(8 + CASTS * 32, 0);
        queue.launch("cast_many", [blocks, 1, 1], [256, 1, 1], 0, &[Arg::Bytes(table)]);
    }
}
