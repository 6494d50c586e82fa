//! A second stream of a device, on which it exchanges data with others while the first one computes.
//!
//! All exchanges of a device are put there, one after the other, so that ranks that ask for them in the same order get them
//! in the same order. They follow what was on the first stream when they were asked for; the first stream follows them
//! where [`Communication::join`] says so, and until then nothing may read or give away the memory that they write.

use cudarc::driver::sys::{
    CUevent, CUevent_flags, CUstream, CUstream_flags, cuCtxGetStreamPriorityRange, cuEventCreate,
    cuEventRecord, cuStreamCreateWithPriority, cuStreamWaitEvent,
};

/// The stream, and the events by which the streams follow each other. Made once for a device and kept.
#[derive(Debug)]
pub(super) struct Communication {
    stream: CUstream,
    /// In the first stream, what an exchange follows.
    ready: CUevent,
    /// In the second stream, the last exchange.
    done: CUevent,
}

impl Communication {
    /// On the device's thread.
    ///
    /// # Errors
    /// The driver's: one sentence.
    pub fn new() -> Result<Self, String> {
        let (mut least, mut greatest) = (0, 0);
        let (mut stream, mut ready, mut done) =
            (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: each call writes what it is given the address of; the device's context is current in this thread.
        let made = unsafe {
            let no_default = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            let no_timing = CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            // An exchange has few blocks, and other devices wait for them: they come before those of matmuls.
            cuCtxGetStreamPriorityRange(&mut least, &mut greatest)
                .result()
                .and_then(|()| cuStreamCreateWithPriority(&mut stream, no_default, greatest).result())
                .and_then(|()| cuEventCreate(&mut ready, no_timing).result())
                .and_then(|()| cuEventCreate(&mut done, no_timing).result())
        };
        made.map_err(|error| format!("a stream for exchanges between devices: {error}"))?;
        Ok(Self { stream, ready, done })
    }

    /// The stream, after all that is on `main` now.
    ///
    /// # Errors
    /// The driver's: one sentence.
    pub fn after(&self, main: CUstream) -> Result<CUstream, String> {
        follow(self.ready, main, self.stream)?;
        Ok(self.stream)
    }

    /// Makes `main` wait for all exchanges so far.
    ///
    /// # Errors
    /// The driver's: one sentence.
    pub fn join(&self, main: CUstream) -> Result<(), String> {
        follow(self.done, self.stream, main)
    }
}

/// Makes `second` wait for what is on `first` now. The event may be used again at once: a stream waits for the state in which
/// it found the event.
fn follow(event: CUevent, first: CUstream, second: CUstream) -> Result<(), String> {
    // SAFETY: the event and both streams are alive and of this thread's device.
    let followed = unsafe {
        cuEventRecord(event, first).result().and_then(|()| cuStreamWaitEvent(second, event, 0).result())
    };
    followed.map_err(|error| format!("the order of two streams: {error}"))
}
