//! Pinned memory of the host, out of which a device fetches what a program sends.
//!
//! A copy from other memory goes through pinned memory of the driver's, and holds up the thread that asks for it. Here
//! whoever has the values copies them into pinned memory itself, and the device's thread only says where they lie. Pieces have
//! a few sizes, and all pieces of a size are made when the first of them is asked for, so a warm step allocates nothing. A
//! piece is used again when an event says that its copy is done.
//!
//! Large copies have a stream of their own, into memory of the device that belongs to the piece: they run beside the kernels
//! of earlier steps, and a copy within the device takes the values into the order of the kernels.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cubecl::cuda::CudaDevice;
use cudarc::driver::sys::{
    CUdeviceptr, CUevent, CUevent_flags, CUresult, CUstream, CUstream_flags, cuEventCreate, cuEventQuery,
    cuEventRecord, cuMemAlloc_v2, cuMemHostAlloc, cuMemcpyDtoDAsync_v2, cuMemcpyHtoDAsync_v2, cuStreamCreate,
    cuStreamWaitEvent,
};

use super::blas::Ptr;
use super::engine::{self, MOST};

/// Bytes of the smallest piece.
const SMALLEST: usize = 64 << 10;

/// Larger pieces have memory of the device.
const SMALL: usize = 1 << 20;

/// Pieces of one size: more of the small ones, because a step sends more of them. A host is three steps ahead of its device
/// at most: a driver takes about a thousand launches before it makes the host wait.
fn count(size: usize) -> usize {
    match size {
        ..=SMALL => 32,
        _ if size <= 128 << 20 => 4,
        _ => 2,
    }
}

/// Bytes of all pieces of a device, beyond which no more sizes are made: images of many sizes would take all memory.
const BOUND: usize = 3 << 29;

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
    /// As much memory of the device.
    buffer: Option<CUdeviceptr>,
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
    fn start(&self) -> *const c_void {
        match &self.memory {
            Memory::Pinned(piece) => {
                piece.as_ref().map_or(std::ptr::null(), |piece| piece.at.as_ptr().cast())
            }
            Memory::Pageable(values) => values.as_ptr().cast(),
        }
    }

    /// The device's memory of the piece.
    fn buffer(&self) -> Option<CUdeviceptr> {
        match &self.memory {
            Memory::Pinned(piece) => piece.as_ref().and_then(|piece| piece.buffer),
            Memory::Pageable(_) => None,
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

/// What is there of a size.
enum Found {
    Free(Piece),
    /// All are in use.
    Used,
    /// None were made yet.
    New,
    /// None may be made, or the driver gives no memory.
    Nothing,
}

impl Piece {
    /// A free piece of `size` bytes or more. While all are in use, waits for the device, which has work for three steps then;
    /// `None` if no copy is under way that would give one back, or there is no memory for more.
    fn take(device: &CudaDevice, size: usize, run: impl FnOnce()) -> Option<Self> {
        match Self::find(device.index, size) {
            Found::Free(piece) => return Some(piece),
            Found::Nothing => return None,
            Found::New => {
                let new = engine::on_thread(device, move || make(size)).unwrap_or_default();
                let mut all = pieces(device.index);
                let own = all.entry(size).or_default();
                own.made += new.len();
                own.free.extend(new);
                return own.free.pop();
            }
            Found::Used => run(),
        }
        loop {
            let under_way = engine::with(device, |engine| engine.copies.collect()).ok()?;
            if let Found::Free(piece) = Self::find(device.index, size) {
                return Some(piece);
            }
            if under_way.unwrap_or_default() == 0 {
                return None;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn find(device: usize, size: usize) -> Found {
        let mut all = pieces(device);
        let total: usize = all.iter().map(|(size, pieces)| size * pieces.made).sum();
        match all.get_mut(&size) {
            Some(own) if own.made > 0 => own.free.pop().map_or(Found::Used, Found::Free),
            None if total + count(size) * size <= BOUND => Found::New,
            _ => {
                let larger = all.range_mut(size..).find_map(|(_, larger)| larger.free.pop());
                larger.map_or(Found::Nothing, Found::Free)
            }
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
    // Without memory of the device, copies stand among the kernels.
    let buffers = (size > SMALL).then(|| {
        let mut buffers: CUdeviceptr = 0;
        // SAFETY: writes one address.
        let made = unsafe { cuMemAlloc_v2(&mut buffers, count(size) * size) };
        (made == CUresult::CUDA_SUCCESS).then_some(buffers)
    });
    let piece = |piece: usize| Piece {
        // SAFETY: each piece is another part of the allocation.
        at: unsafe { at.add(piece * size) },
        size,
        buffer: buffers.flatten().map(|buffers| buffers + (piece * size) as u64),
    };
    (0..count(size)).map(piece).collect()
}

/// On a device's thread: copies that the device may still be reading, oldest first.
#[derive(Default)]
pub(super) struct Copies {
    under_way: VecDeque<(CUevent, Arc<Staged>)>,
    /// For the next copies.
    events: Vec<CUevent>,
    /// The stream of large copies.
    stream: Option<CUstream>,
    largest: usize,
}

impl Copies {
    /// Copies what is staged to `to`, in the order of `stream`, and gives back the memory of copies that are done.
    ///
    /// # Errors
    /// What the driver says.
    pub fn put(&mut self, staged: &Arc<Staged>, to: Ptr, stream: CUstream) -> Result<(), String> {
        self.collect()?;
        let put = self.copy(staged, to, stream).and_then(|()| self.record(stream));
        match put {
            Ok(event) => {
                self.under_way.push_back((event, staged.clone()));
                Ok(())
            }
            Err(error) => {
                // Nothing says when the memory is no longer read.
                std::mem::forget(staged.clone());
                Err(error)
            }
        }
    }

    fn copy(&mut self, staged: &Staged, to: Ptr, stream: CUstream) -> Result<(), String> {
        let (from, bytes) = (staged.start(), staged.bytes());
        let said = |call: &str, code: CUresult| code.result().map_err(|error| format!("{call}: {error}"));
        self.largest = self.largest.max(bytes);
        let Some(buffer) = staged.buffer() else {
            // SAFETY: the memory at `to` belongs to the operation, and what is staged stays until the copy is done.
            return said("cuMemcpyHtoDAsync", unsafe { cuMemcpyHtoDAsync_v2(to.0, from, bytes, stream) });
        };
        let own = match self.stream {
            Some(own) => own,
            None => {
                let (mut own, flags): (CUstream, _) =
                    (std::ptr::null_mut(), CUstream_flags::CU_STREAM_NON_BLOCKING as u32);
                // SAFETY: writes one pointer. The thread has the device's context.
                said("cuStreamCreate", unsafe { cuStreamCreate(&mut own, flags) })?;
                *self.stream.insert(own)
            }
        };
        // SAFETY: as above. The last copy out of the buffer is done, or the piece would not be free.
        said("cuMemcpyHtoDAsync", unsafe { cuMemcpyHtoDAsync_v2(buffer, from, bytes, own) })?;
        let event = self.record(own)?;
        // SAFETY: both belong to the context of this thread.
        said("cuStreamWaitEvent", unsafe { cuStreamWaitEvent(stream, event, 0) })?;
        // The stream waits for the event as it is now, whatever it is used for next.
        self.events.push(event);
        // SAFETY: the memory at `to` belongs to the operation; the buffer stays as what is staged does.
        said("cuMemcpyDtoDAsync", unsafe { cuMemcpyDtoDAsync_v2(to.0, buffer, bytes, stream) })
    }

    /// Bytes of the largest copy so far.
    pub fn largest(&self) -> usize {
        self.largest
    }

    /// An event behind what `stream` has been given.
    fn record(&mut self, stream: CUstream) -> Result<CUevent, String> {
        let event = match self.events.pop() {
            Some(event) => event,
            None => event()?,
        };
        // SAFETY: event and stream belong to the context of this thread.
        let recorded = unsafe { cuEventRecord(event, stream) };
        recorded.result().map_err(|error| format!("cuEventRecord: {error}"))?;
        Ok(event)
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
