//! Memory to spare, so that no step takes new memory from the driver long after the first.
//!
//! The thread that prepares batches records its operations among those of the step before, each time at another place. So what
//! is in use at once differs by a few tensors from step to step. During the second step, spare tensors as large as batches are
//! held; from then on, CubeCL's pool has their memory.

use cubecl::server::Handle;
use cubecl::stream_id::StreamId;
use cudarc::driver::sys::{CUresult, cuMemGetInfo_v2};

use super::engine::{CudaServer, allocate};

/// The steps at whose ends spare tensors are made and given up.
const FROM: u32 = 1;
const TO: u32 = 2;

/// Spare tensors: how many, and of how many quarters of a batch in f32. Of several sizes, because CubeCL has pages of several
/// sizes for them. The largest is a page for what a frozen model makes in passing.
const TENSORS: [(usize, usize); 3] = [(1, 16), (6, 4), (4, 2)];

/// What is held on one device.
#[derive(Default)]
pub(super) struct Spare {
    steps: u32,
    held: Vec<Handle>,
}

impl Spare {
    /// At the end of a training step, on the device's thread. `batch` is the bytes of a batch in f32.
    pub fn step(&mut self, server: &mut CudaServer, id: StreamId, batch: usize) {
        self.steps = self.steps.saturating_add(1);
        if self.steps == FROM && batch > 0 {
            let sizes =
                TENSORS.iter().flat_map(|&(count, part)| std::iter::repeat_n(batch * part / 4, count));
            let sizes: Vec<usize> = sizes.collect();
            // A card that is nearly full keeps what it has.
            if sizes.iter().sum::<usize>() <= free() / 8 {
                self.held.extend(sizes.into_iter().map(|size| {
                    let handle = Handle::new(id, size as u64);
                    allocate(server, id, &handle);
                    handle
                }));
            }
        }
        if self.steps == TO {
            self.held.clear();
        }
    }
}

/// Bytes that the driver has left on the device of this thread.
fn free() -> usize {
    let (mut free, mut total) = (0, 0);
    // SAFETY: both are written. The thread has the device's context.
    let asked = unsafe { cuMemGetInfo_v2(&mut free, &mut total) };
    if asked == CUresult::CUDA_SUCCESS { free } else { 0 }
}
