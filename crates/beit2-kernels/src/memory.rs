//! Memory of results, kept for the next step.
//!
//! Why: a training step asks for the same large buffers again and again. The system's allocator
//! gives them back to the kernel and takes zeroed pages anew, which costs a fault per 4 KiB and a
//! pass that writes zeros; measured, a tenth of a step. Buffers handed out here hold whatever was in
//! them. Together with those in use, kept ones never exceed the most that was ever in use at once.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(target_arch = "x86_64")]
use burn::tensor::{DType, bf16};
use burn_std::{AllocationController, AllocationProperty, Bytes};

/// One cache line, so that vectors never straddle two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

const LINE: usize = 16;

/// Lines from which on a buffer is kept: 64 KiB. Smaller ones the allocator keeps itself.
const KEPT: usize = 1024;

struct Pool {
    /// Free buffers by their number of lines.
    free: BTreeMap<usize, Vec<Vec<Line>>>,
    /// Lines in use, in `free`, and the most that were ever in use.
    live: usize,
    idle: usize,
    most: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { free: BTreeMap::new(), live: 0, idle: 0, most: 0 });

fn pool() -> MutexGuard<'static, Pool> {
    // Why: nothing inside can panic half-way and leave the books wrong.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives kept memory back to the system, for instance between training and evaluation.
pub fn release_memory() {
    let free = {
        let mut pool = pool();
        pool.idle = 0;
        std::mem::take(&mut pool.free)
    };
    drop(free);
}

/// Rounds up to one of eight sizes per power of two, so that similar shapes share buffers.
fn class(lines: usize) -> usize {
    let step = (lines.next_power_of_two() / 16).max(1);
    lines.next_multiple_of(step)
}

impl Pool {
    fn take(&mut self, lines: usize) -> Option<Vec<Line>> {
        // One that is a little too large does as well, and saves pages of the system that would have to be cleared.
        let kept = self.free.range_mut(lines..=lines + lines / 4).find_map(|(_, kept)| kept.pop());
        self.live += kept.as_ref().map_or(lines, Vec::len);
        self.most = self.most.max(self.live);
        if let Some(found) = kept {
            self.idle -= found.len();
            return Some(found);
        }
        // The largest first: they are the most likely to belong to another batch size.
        while self.live + self.idle > self.most {
            let Some(mut entry) = self.free.last_entry() else {
                break;
            };
            match entry.get_mut().pop() {
                Some(dropped) => self.idle -= dropped.len(),
                None => drop(entry.remove()),
            }
        }
        None
    }

    fn give(&mut self, lines: Vec<Line>) {
        self.live -= lines.len();
        self.idle += lines.len();
        self.free.entry(lines.len()).or_default().push(lines);
    }
}

/// An allocation that goes back to the pool.
struct Pooled(Vec<Line>);

impl Drop for Pooled {
    fn drop(&mut self) {
        if self.0.len() >= KEPT {
            pool().give(std::mem::take(&mut self.0));
        }
    }
}

impl AllocationController for Pooled {
    fn alloc_align(&self) -> usize {
        align_of::<Line>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        let bytes = size_of_val(self.0.as_slice());
        // SAFETY: the memory of the vector; a caller only writes initialized bytes, and any are
        // floats.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), bytes) }
    }

    fn memory(&self) -> &[MaybeUninit<u8>] {
        let bytes = size_of_val(self.0.as_slice());
        // SAFETY: the memory of the vector, as bytes.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), bytes) }
    }
}

/// Memory of a result while it is written.
pub(crate) struct Buffer {
    memory: Pooled,
    len: usize,
}

impl Buffer {
    /// `n` floats of any value.
    pub(crate) fn any(n: usize) -> Self {
        let lines = n.div_ceil(LINE);
        let fresh = |lines| vec![Line([0.0; LINE]); lines];
        let memory = if lines < KEPT {
            fresh(lines)
        } else {
            let lines = class(lines);
            let kept = pool().take(lines);
            kept.unwrap_or_else(|| fresh(lines))
        };
        Self { memory: Pooled(memory), len: n }
    }

    /// `n` zeros.
    pub(crate) fn zeros(n: usize) -> Self {
        let mut buffer = Self::any(n);
        buffer.fill(0.0);
        buffer
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        let bytes = self.len * size_of::<f32>();
        // SAFETY: every line was initialized when it was made, and there are enough of them.
        unsafe { Bytes::from_controller(Box::new(self.memory), bytes) }
    }
}

/// Memory for `n` values of one of the types that activations are stored as.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Values<S> {
    buffer: Buffer,
    len: usize,
    kind: std::marker::PhantomData<S>,
}

/// A type of stored activations.
#[cfg(target_arch = "x86_64")]
pub(crate) trait Stored: burn::tensor::Element + bytemuck::Pod + Send + Sync {
    /// Its name to Burn.
    const DTYPE: DType;

    /// Stores numbers, rounded to nearest, ties to even.
    fn save(from: &[f32], to: &mut [Self]);

    /// `x` times stored numbers.
    fn scale(x: &mut [f32], by: &[Self]);
}

#[cfg(target_arch = "x86_64")]
impl Stored for f32 {
    const DTYPE: DType = DType::F32;

    fn save(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }

    fn scale(x: &mut [f32], by: &[Self]) {
        crate::slices::times(x, by);
    }
}

#[cfg(target_arch = "x86_64")]
impl Stored for bf16 {
    const DTYPE: DType = DType::BF16;

    fn save(from: &[f32], to: &mut [Self]) {
        half::narrow(from, bytemuck::cast_slice_mut(to));
    }

    fn scale(x: &mut [f32], by: &[Self]) {
        half::scale_bf16(x, bytemuck::cast_slice(by));
    }
}

/// bf16 as the upper halves of f32, in loops that compilers turn into vector code.
#[cfg(target_arch = "x86_64")]
mod half {
    use crate::simd::dispatch;

    dispatch!(pub(super) fn narrow(from: &[f32], to: &mut [u16]) => narrow_body);

    #[inline(always)]
    fn narrow_body<const FMA: bool>(from: &[f32], to: &mut [u16]) {
        for (x, y) in from.iter().zip(to) {
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
            // A NaN must not be rounded to infinity.
            let upper = if x.is_nan() { bits >> 16 | 0x40 } else { rounded };
            *y = upper as u16;
        }
    }

    dispatch!(pub(super) fn scale_bf16(x: &mut [f32], by: &[u16]) => scale_bf16_body);

    #[inline(always)]
    fn scale_bf16_body<const FMA: bool>(x: &mut [f32], by: &[u16]) {
        for (x, by) in x.iter_mut().zip(by) {
            *x *= f32::from_bits(u32::from(*by) << 16);
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl<S: Stored> Values<S> {
    /// Any values.
    pub(crate) fn any(n: usize) -> Self {
        Self {
            buffer: Buffer::any((n * size_of::<S>()).div_ceil(size_of::<f32>())),
            len: n,
            kind: Default::default(),
        }
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        let Buffer { memory, .. } = self.buffer;
        // SAFETY: every line was initialized when it was made, and there are enough of them.
        unsafe { Bytes::from_controller(Box::new(memory), self.len * size_of::<S>()) }
    }
}

#[cfg(target_arch = "x86_64")]
impl<S: Stored> std::ops::Deref for Values<S> {
    type Target = [S];

    fn deref(&self) -> &[S] {
        &bytemuck::cast_slice(&self.buffer)[..self.len]
    }
}

#[cfg(target_arch = "x86_64")]
impl<S: Stored> std::ops::DerefMut for Values<S> {
    fn deref_mut(&mut self) -> &mut [S] {
        &mut bytemuck::cast_slice_mut(&mut self.buffer)[..self.len]
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `Line` is sixteen floats without padding, and `len` of them exist.
        unsafe { std::slice::from_raw_parts(self.memory.0.as_ptr().cast(), self.len) }
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.memory.0.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_waste_an_eighth_at_most() {
        for lines in 1..100_000 {
            let class = class(lines);
            assert!(class >= lines && class <= lines + lines / 8 + 1);
        }
    }

    #[test]
    fn kept_memory_stays_below_the_most_in_use() {
        let mut pool = Pool { free: BTreeMap::new(), live: 0, idle: 0, most: 0 };
        let line = Line([0.0; LINE]);
        for round in 1..20 {
            let sizes: Vec<usize> = (1..=4).map(|i| 1000 + 100 * ((i * round) % 7)).collect();
            let taken: Vec<_> =
                sizes.iter().map(|&n| pool.take(n).unwrap_or_else(|| vec![line; n])).collect();
            assert!(taken.iter().zip(sizes).all(|(lines, n)| (n..=n + n / 4).contains(&lines.len())));
            assert!(pool.live + pool.idle <= pool.most);
            taken.into_iter().for_each(|lines| pool.give(lines));
            assert_eq!(pool.live, 0);
            let idle: usize = pool.free.values().flatten().map(Vec::len).sum();
            assert!(idle == pool.idle && idle <= pool.most);
        }
    }

    #[test]
    fn results_are_ordinary_tensors() {
        use burn::backend::Flex;
        use burn::tensor::Tensor;
        let x = Tensor::<Flex, 1>::ones([100_000], &Default::default());
        let y = crate::gelu(x.reshape([100, 1000]));
        let twice = y.clone() + y.clone();
        let back = y.into_data().to_vec::<f32>().unwrap();
        assert!(back.len() == 100_000 && (back[5] - 0.841_344_7).abs() < 1e-6);
        assert_eq!(twice.into_data().to_vec::<f32>().unwrap()[7], 2.0 * back[7]);
        release_memory();
    }
}
