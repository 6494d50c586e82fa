//! Which of the proposed algorithms is the fastest, on the card and on the operands at hand.

use cudarc::driver::sys as driver;

use super::gemm::{Element, Gemm};
use super::library::{Algorithm, Candidate};
use super::plan::Descriptors;
use super::{Blas, allocate};

/// Algorithms that are tried for a problem.
pub(super) const CANDIDATES: usize = 5;

/// Matmuls between two events, after one that loads the kernel.
const REPEATS: usize = 4;

/// By how much another algorithm must be faster than the one that the library proposes first: two runs shouldn't differ
/// by noise.
const MARGIN: f32 = 0.97;

impl Blas {
    /// The fastest and its time in microseconds; `None` if nothing can be timed. Waits for the stream.
    pub(super) fn fastest(
        &self,
        gemm: &Gemm,
        descriptors: &Descriptors,
        candidates: &[Candidate],
        stream: driver::CUstream,
    ) -> Option<(Algorithm, f32)> {
        // Repeated sums would change D; whatever lies in other memory will do.
        let spare = if gemm.accumulate { Some(Spare::new(result_bytes(gemm))?) } else { None };
        let d = spare.as_ref().map_or(gemm.d.0, |spare| spare.0);
        let addresses = [gemm.b.at.0, gemm.a.at.0, d];
        let clock = Clock::new()?;
        let mut best: Option<(Algorithm, f32)> = None;
        for candidate in candidates {
            let run = || {
                let (handle, workspace) = (self.handle, self.workspace);
                let algorithm = &candidate.algorithm;
                descriptors
                    .multiply(handle, algorithm, addresses, gemm.accumulate, workspace, stream.cast())
                    .ok()
            };
            if run().is_none() {
                continue; // Proposed, but refused: another will do.
            }
            clock.start(stream)?;
            for _ in 0..REPEATS {
                run()?;
            }
            let microseconds = clock.stop(stream)? * 1e3 / REPEATS as f32;
            if best.is_none_or(|(_, fastest)| microseconds < fastest * MARGIN) {
                best = Some((candidate.algorithm, microseconds));
            }
        }
        best
    }
}

fn result_bytes(gemm: &Gemm) -> usize {
    let before = gemm.batch.map_or(0, |batch| (batch.count - 1) * batch.d);
    (before + (gemm.m - 1) * gemm.ldd + gemm.n) * Element::bytes(gemm.result)
}

/// Device memory for a moment.
struct Spare(u64);

impl Spare {
    fn new(bytes: usize) -> Option<Self> {
        allocate(bytes).ok().map(Self)
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; the driver waits for kernels that use it.
        let _ = unsafe { driver::cuMemFree_v2(self.0) };
    }
}

type Elapsed = unsafe extern "C" fn(*mut f32, driver::CUevent, driver::CUevent) -> driver::CUresult;

/// Two events.
struct Clock {
    events: [driver::CUevent; 2],
    elapsed: Elapsed,
}

impl Clock {
    fn new() -> Option<Self> {
        // The bindings have one of two versions, depending on the toolkit of the machine that compiles them; they do the same.
        let named = |name: &[u8]| {
            // SAFETY: the signature is that of cuda.h.
            unsafe { driver::culib().get::<Elapsed>(name).ok().map(|elapsed| *elapsed) }
        };
        let elapsed = named(b"cuEventElapsedTime_v2").or_else(|| named(b"cuEventElapsedTime"))?;
        let mut clock = Self { events: [std::ptr::null_mut(); 2], elapsed };
        for event in &mut clock.events {
            // SAFETY: `event` is written.
            done(unsafe { driver::cuEventCreate(event, 0) })?;
        }
        Some(clock)
    }

    fn start(&self, stream: driver::CUstream) -> Option<()> {
        // SAFETY: event and stream are alive.
        done(unsafe { driver::cuEventRecord(self.events[0], stream) })
    }

    /// Milliseconds since `start`, of the stream's own time.
    fn stop(&self, stream: driver::CUstream) -> Option<f32> {
        let mut milliseconds = 0.0;
        // SAFETY: events and stream are alive, and `milliseconds` is written.
        unsafe {
            done(driver::cuEventRecord(self.events[1], stream))?;
            done(driver::cuEventSynchronize(self.events[1]))?;
            done((self.elapsed)(&mut milliseconds, self.events[0], self.events[1]))?;
        }
        Some(milliseconds)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        for event in self.events.into_iter().filter(|event| !event.is_null()) {
            // SAFETY: nobody else has it.
            let _ = unsafe { driver::cuEventDestroy_v2(event) };
        }
    }
}

fn done(result: driver::CUresult) -> Option<()> {
    (result == driver::CUresult::CUDA_SUCCESS).then_some(())
}
