//! Pinned memory of the host, out of which a device fetches what a program sends.
//!
//! A copy from other memory goes through pinned memory of the driver's, and holds up the thread that asks for it. Here
//! whoever has the values copies them into pinned memory itself, and the device's thread only says where they lie. Pieces have
//! a few sizes, and all pieces of a size are made when the first of them is asked for, so a warm step allocates nothing. A
//! piece is used again when an event says that its copy is done.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cubecl::cuda::CudaDevice;
use cudarc::driver::sys::{
    CUevent, CUevent_flags, CUresult, CUstream, cuEventCreate, cuEventQuery, cuEventRecord, cuMemHostAlloc,
};

use super::engine::{self, MOST};

/// Bytes of the smallest piece.
const SMALLEST: usize = 64 << 10;

/// Pieces of one size: more of the small ones, because a step sends more of them. A host is three steps ahead of its device
/// at most: a driver takes about a thousand launches before it makes the host wait.
fn count(size: usize) -> usize {
    if size <= 1 << 20 { 32 } else { 4 }
}

/// The size of the piece for `bytes` bytes: at most a quarter larger, from the smallest size on.
fn size_of_piece(bytes: usize) -> usize {
    let bytes = bytes.max(SMALLEST);
    bytes.next_multiple_of((bytes.next_power_of_two() / 8).max(1))
}

/// Memory that the driver holds in place; it stays to the end of the process.
#[derive(Debug)]
struct Piece {
    at: NonNull<u8>,
    size: usize,
}

// SAFETY: a piece is the only one that names its memory, which belongs to no thread.
unsafe impl Send for Piece {}
// SAFETY: shared pieces are only read.
unsafe impl Sync for Piece {}

/// The pieces of one size.
#[derive(Debug, Default)]
struct Pieces {
    made: usize,
    free: Vec<Piece>,
}

/// The pieces of each device, by their size. A size without an entry was never asked for.
static PIECES: [Mutex<BTreeMap<usize, Pieces>>; MOST] = [const { Mutex::new(BTreeMap::new()) }; MOST];

fn pieces(device: usize) -> MutexGuard<'static, BTreeMap<usize, Pieces>> {
    PIECES[device].lock().unwrap_or_else(PoisonError::into_inner)
}

/// Values on their way to a device. The memory goes back when the last owner is done with it: whoever recorded the copy, and
/// the device's list of copies that may still be read.
#[derive(Debug)]
pub(super) struct Staged {
    memory: Memory,
    bytes: usize,
    device: usize,
}

#[derive(Debug)]
enum Memory {
    Pinned(Option<Piece>),
    /// Where there is no pinned memory left. It is kept as long, because some machines read it in place.
    Pageable(Vec<u8>),
}

impl Staged {
    /// Copies `parts`, each to its distance from the start, on the calling thread. `run` makes what is recorded run, where
    /// pieces may be held by copies that nobody has asked for yet.
    ///
    /// # Panics
    /// If a part ends behind `bytes`.
    pub fn new<'a>(
        device: &CudaDevice,
        bytes: usize,
        parts: impl Iterator<Item = (usize, &'a [u8])>,
        run: impl FnOnce(),
    ) -> Arc<Self> {
        let memory = match Piece::take(device, size_of_piece(bytes), run) {
            Some(piece) => Memory::Pinned(Some(piece)),
            None => Memory::Pageable(vec![0; bytes]),
        };
        let mut staged = Self { memory, bytes, device: device.index };
        for (from, part) in parts {
            assert!(from + part.len() <= bytes, "{} bytes from {from} are not among {bytes}", part.len());
            // SAFETY: the range lies in the memory, which nobody else has, and `part` lies elsewhere.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), staged.start_mut().add(from), part.len()) };
        }
        Arc::new(staged)
    }

    fn start_mut(&mut self) -> *mut u8 {
        match &mut self.memory {
            Memory::Pinned(piece) => piece.as_ref().map_or(std::ptr::null_mut(), |piece| piece.at.as_ptr()),
            Memory::Pageable(values) => values.as_mut_ptr(),
        }
    }

    /// The first byte.
    pub fn start(&self) -> *const c_void {
        match &self.memory {
            Memory::Pinned(piece) => {
                piece.as_ref().map_or(std::ptr::null(), |piece| piece.at.as_ptr().cast())
            }
            Memory::Pageable(values) => values.as_ptr().cast(),
        }
    }

    /// Bytes from there on.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a device reads the memory by itself.
    #[cfg(test)]
    pub fn is_pinned(&self) -> bool {
        matches!(self.memory, Memory::Pinned(_))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Memory::Pinned(piece) = &mut self.memory
            && let Some(piece) = piece.take()
        {
            pieces(self.device).entry(piece.size).or_default().free.push(piece);
        }
    }
}

impl Piece {
    /// A free piece of `size` bytes. While all are in use, waits for the device, which has work for three steps then; `None`
    /// if no copy is under way that would give one back, or the driver gives no memory.
    fn take(device: &CudaDevice, size: usize, run: impl FnOnce()) -> Option<Self> {
        let made = {
            let mut pieces = pieces(device.index);
            match pieces.get_mut(&size) {
                Some(pieces) => match pieces.free.pop() {
                    Some(piece) => return Some(piece),
                    None => Some(pieces.made),
                },
                None => None,
            }
        };
        match made {
            None => {
                let new = engine::on_thread(device, move || make(size)).unwrap_or_default();
                let mut pieces = pieces(device.index);
                let pieces = pieces.entry(size).or_default();
                pieces.made += new.len();
                pieces.free.extend(new);
                return pieces.free.pop();
            }
            Some(0) => return None,
            Some(_) => {}
        }
        run();
        loop {
            let under_way = engine::with(device, |engine| engine.copies.collect()).ok()?;
            if let Some(piece) = pieces(device.index).get_mut(&size).and_then(|pieces| pieces.free.pop()) {
                return Some(piece);
            }
            if under_way.unwrap_or_default() == 0 {
                return None;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// All pieces of a size, in one allocation, on the device's thread; none if the driver gives no memory.
fn make(size: usize) -> Vec<Piece> {
    let mut at: *mut c_void = std::ptr::null_mut();
    // SAFETY: writes one pointer. The thread has the device's context.
    let made = unsafe { cuMemHostAlloc(&mut at, count(size) * size, 0) };
    let Some(at) = NonNull::new(at.cast::<u8>()).filter(|_| made == CUresult::CUDA_SUCCESS) else {
        return Vec::new();
    };
    // SAFETY: each piece is another part of the allocation.
    (0..count(size)).map(|piece| Piece { at: unsafe { at.add(piece * size) }, size }).collect()
}

/// On a device's thread: copies that the device may still be reading, oldest first.
#[derive(Default)]
pub(super) struct Copies {
    under_way: VecDeque<(CUevent, Arc<Staged>)>,
    /// For the next copies.
    events: Vec<CUevent>,
}

impl Copies {
    /// Keeps the memory of a copy that was just put on `stream`, and gives back that of copies that are done.
    ///
    /// # Errors
    /// What the driver says.
    pub fn add(&mut self, staged: &Arc<Staged>, stream: CUstream) -> Result<(), String> {
        let added = self.collect().and_then(|_| {
            let event = match self.events.pop() {
                Some(event) => event,
                None => event()?,
            };
            // SAFETY: event and stream belong to the context of this thread.
            let recorded = unsafe { cuEventRecord(event, stream) };
            recorded.result().map_err(|error| format!("cuEventRecord: {error}"))?;
            self.under_way.push_back((event, staged.clone()));
            Ok(())
        });
        if added.is_err() {
            // Nothing says any more when the copy is done.
            std::mem::forget(staged.clone());
        }
        added
    }

    /// Gives back the memory of copies that are done, without a wait; how many are not.
    ///
    /// # Errors
    /// What the driver says.
    pub fn collect(&mut self) -> Result<usize, String> {
        while let Some((event, _)) = self.under_way.front() {
            // SAFETY: the event belongs to the context of this thread.
            match unsafe { cuEventQuery(*event) } {
                CUresult::CUDA_SUCCESS => {
                    self.events.extend(self.under_way.pop_front().map(|(event, _)| event))
                }
                CUresult::CUDA_ERROR_NOT_READY => break,
                failed => failed.result().map_err(|error| format!("cuEventQuery: {error}"))?,
            }
        }
        Ok(self.under_way.len())
    }
}

/// An event that takes no time.
fn event() -> Result<CUevent, String> {
    let mut event: CUevent = std::ptr::null_mut();
    // SAFETY: writes one pointer. The thread has the device's context.
    let made = unsafe { cuEventCreate(&mut event, CUevent_flags::CU_EVENT_DISABLE_TIMING as u32) };
    made.result().map_err(|error| format!("cuEventCreate: {error}"))?;
    Ok(event)
}
