//! How long native kernels take on the card: an event before and after each, read afterwards.
//!
//! Nothing waits while they are recorded, so the kernels run as in training. CubeCL's kernels are not among them; its own
//! profiler has those.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cubecl::cuda::CudaDevice;
use cudarc::driver::sys::{
    CUevent, CUresult, CUstream, cuEventCreate, cuEventDestroy_v2, cuEventRecord, cuEventSynchronize, culib,
};

use super::engine;

/// One kind of kernel on one device.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// The kernel's name, or a matmul's sizes.
    pub name: String,
    /// How often it ran.
    pub calls: usize,
    /// All calls together.
    pub seconds: f64,
}

/// Events before and after a kernel.
struct Span {
    name: String,
    start: CUevent,
    end: CUevent,
}

// SAFETY: events are handles of the driver, which any thread may use; here it is the device's thread alone.
unsafe impl Send for Span {}

static RECORDING: AtomicBool = AtomicBool::new(false);
static SPANS: Mutex<Vec<Span>> = Mutex::new(Vec::new());

fn spans() -> MutexGuard<'static, Vec<Span>> {
    SPANS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins or ends the recording of native kernels' times, on all CUDA devices.
pub fn record_cuda_kernel_times(on: bool) {
    RECORDING.store(on, Ordering::Relaxed);
}

/// On the device's thread: an event in the stream, where times are recorded.
pub(super) fn before(stream: CUstream) -> Result<Option<CUevent>, String> {
    if RECORDING.load(Ordering::Relaxed) { event(stream).map(Some) } else { Ok(None) }
}

/// On the device's thread: ends what [`before`] began.
pub(super) fn after(
    start: Option<CUevent>,
    name: impl FnOnce() -> String,
    stream: CUstream,
) -> Result<(), String> {
    if let Some(start) = start {
        let end = event(stream)?;
        spans().push(Span { name: name(), start, end });
    }
    Ok(())
}

fn event(stream: CUstream) -> Result<CUevent, String> {
    let mut event = std::ptr::null_mut();
    // SAFETY: the driver writes one handle; the stream is one of this thread's device.
    let made =
        unsafe { cuEventCreate(&mut event, 0).result().and_then(|()| cuEventRecord(event, stream).result()) };
    made.map(|()| event).map_err(|error| format!("an event to time kernels: {error}"))
}

/// What was recorded since the last call, on one CUDA device, the longest first. Waits for the last of these kernels.
///
/// # Errors
/// A device that fails: one sentence.
pub fn cuda_kernel_times(index: usize) -> Result<Vec<KernelTime>, String> {
    let spans = std::mem::take(&mut *spans());
    if spans.is_empty() {
        return Ok(Vec::new());
    }
    engine::on_thread(&CudaDevice { index }, move || sums(spans))?
}

/// `cuEventElapsedTime`. The bindings have one of two versions, depending on the toolkit of the machine that compiles them, and
/// drivers before CUDA 13 have one only; both do the same.
type Elapsed = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;

fn sums(spans: Vec<Span>) -> Result<Vec<KernelTime>, String> {
    let named = |name: &[u8]| {
        // SAFETY: the signature is that of cuda.h.
        unsafe { culib().get::<Elapsed>(name).ok().map(|elapsed| *elapsed) }
    };
    let elapsed = named(b"cuEventElapsedTime_v2").or_else(|| named(b"cuEventElapsedTime"));
    let elapsed = elapsed.ok_or("the CUDA driver has no function for the time between events")?;
    let mut sums: HashMap<String, (usize, f64)> = HashMap::new();
    for Span { name, start, end } in spans {
        let mut milliseconds = 0.0;
        // SAFETY: both events were recorded in a stream of this thread's device and are used here for the last time.
        let read = unsafe {
            let read = cuEventSynchronize(end)
                .result()
                .and_then(|()| elapsed(&mut milliseconds, start, end).result());
            // A handle that cannot be given back is lost with the process.
            let _ = [cuEventDestroy_v2(start), cuEventDestroy_v2(end)];
            read
        };
        read.map_err(|error| format!("the time of {name}: {error}"))?;
        let sum = sums.entry(name).or_default();
        *sum = (sum.0 + 1, sum.1 + f64::from(milliseconds) / 1e3);
    }
    let mut times: Vec<_> =
        sums.into_iter().map(|(name, (calls, seconds))| KernelTime { name, calls, seconds }).collect();
    times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then_with(|| a.name.cmp(&b.name)));
    Ok(times)
}
