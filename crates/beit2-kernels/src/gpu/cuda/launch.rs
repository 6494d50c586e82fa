//! What operations put on a device's queue: own kernels, matmuls, zeros.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{CUDA_MEMCPY2D, CUmemorytype, CUstream, cuLaunchKernel, cuMemcpy2DAsync_v2};

use super::blas::{Gemm, Ptr};
use super::engine::Engine;
use super::pinned::Staged;
use super::times;

/// An argument of a kernel.
#[derive(Debug, Clone)]
pub(crate) enum Arg {
    /// A pointer to memory of the device.
    Ptr(Ptr),
    /// `unsigned`
    U32(u32),
    /// `int`
    I32(i32),
    /// `unsigned long long`
    U64(u64),
    /// `float`
    F32(f32),
    /// A structure by value, such as a table of pointers, of 4 KB at most.
    Bytes(Vec<u8>),
}

impl Arg {
    /// Where the driver reads the argument.
    fn address(&self) -> *mut c_void {
        match self {
            Self::Ptr(Ptr(value)) | Self::U64(value) => std::ptr::from_ref(value) as *mut c_void,
            Self::U32(value) => std::ptr::from_ref(value) as *mut c_void,
            Self::I32(value) => std::ptr::from_ref(value) as *mut c_void,
            Self::F32(value) => std::ptr::from_ref(value) as *mut c_void,
            Self::Bytes(value) => value.as_ptr() as *mut c_void,
        }
    }
}

/// Where one operation puts its work, on the device's thread. The work runs later, in order. After the first error the rest is
/// left out, and whoever reads a result of the device gets the error.
pub(crate) struct Queue<'a> {
    engine: &'a mut Engine,
    stream: CUstream,
    error: Option<String>,
}

impl<'a> Queue<'a> {
    pub(super) fn new(engine: &'a mut Engine, stream: CUstream) -> Self {
        Self { engine, stream, error: None }
    }

    /// Launches the entry point `kernel` of one of the sources in `kernels/`, with arguments in its order.
    pub(crate) fn launch(
        &mut self,
        kernel: &'static str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        args: &[Arg],
    ) {
        self.attempt(
            || kernel.to_owned(),
            |engine, stream| {
                if grid.contains(&0) {
                    return Ok(()); // CUDA refuses empty grids; there is nothing to do.
                }
                let function = engine.modules.function(kernel, shared_bytes)?;
                let mut addresses: Vec<*mut c_void> = args.iter().map(Arg::address).collect();
                let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
                // SAFETY: the function belongs to a module that stays loaded, the stream to this device; the addresses point into
                // `args`, which the driver reads before it returns. Types and sizes are those of the kernel (tests launch all).
                let launched = unsafe {
                    cuLaunchKernel(
                        function,
                        gx,
                        gy,
                        gz,
                        bx,
                        by,
                        bz,
                        shared_bytes,
                        stream,
                        addresses.as_mut_ptr(),
                        std::ptr::null_mut(),
                    )
                };
                launched.result().map_err(|error| {
                format!(
                    "kernel {kernel}, grid {grid:?}, block {block:?}, {shared_bytes} bytes shared: {error}"
                )
            })
            },
        );
    }

    /// A matmul.
    pub(crate) fn gemm(&mut self, gemm: &Gemm) {
        self.attempt(|| gemm.to_string(), |engine, stream| engine.blas.gemm(gemm, stream));
    }

    /// Sets `bytes` bytes from `at` on to 0. Kernels here write all that they give, so only tests need it.
    #[cfg(test)]
    pub(crate) fn zero(&mut self, at: Ptr, bytes: usize) {
        self.attempt(
            || "zeros".to_owned(),
            |_, stream| {
                if bytes == 0 {
                    return Ok(());
                }
                // SAFETY: the range lies in memory that the operation holds.
                let zeroed = unsafe { cudarc::driver::sys::cuMemsetD8Async(at.0, 0, bytes, stream) };
                zeroed.result().map_err(|error| format!("zeros for {bytes} bytes: {error}"))
            },
        );
    }

    /// Copies what is staged to `to`.
    pub(super) fn upload(&mut self, staged: &Arc<Staged>, to: Ptr) {
        let bytes = staged.bytes();
        self.attempt(
            || format!("{bytes} bytes sent"),
            |engine, stream| {
                let put = engine.copies.put(staged, to, stream);
                put.map_err(|error| format!("{bytes} bytes from the host: {error}"))
            },
        );
    }

    /// Calls of a library that exchanges data with other devices, on a stream of its own: after all that is on the queue
    /// now, and beside what comes next. Nothing may read or give away the memory that it writes before
    /// [`join_exchanges`](Self::join_exchanges).
    pub(crate) fn exchange(&mut self, work: impl FnOnce(CUstream) -> Result<(), String>) {
        let exchange = |engine: &mut Engine, stream| work(engine.communication()?.after(stream)?);
        self.attempt(|| "exchange begun".to_owned(), exchange);
    }

    /// What comes next waits for all exchanges so far.
    pub(crate) fn join_exchanges(&mut self) {
        let join = |engine: &mut Engine, stream| engine.communication()?.join(stream);
        self.attempt(|| "exchanges ended".to_owned(), join);
    }

    /// Copies `count` rows of `width` bytes that lie `pitch` bytes apart to `to`, one right after the other.
    pub(crate) fn join_rows(&mut self, from: Ptr, pitch: usize, to: Ptr, width: usize, count: usize) {
        let copy = |_: &mut Engine, stream| {
            let device = CUmemorytype::CU_MEMORYTYPE_DEVICE;
            let rows = CUDA_MEMCPY2D {
                srcMemoryType: device,
                srcDevice: from.0,
                srcPitch: pitch,
                dstMemoryType: device,
                dstDevice: to.0,
                dstPitch: width,
                WidthInBytes: width,
                Height: count,
                srcXInBytes: 0,
                srcY: 0,
                srcHost: std::ptr::null(),
                srcArray: std::ptr::null_mut(),
                dstXInBytes: 0,
                dstY: 0,
                dstHost: std::ptr::null_mut(),
                dstArray: std::ptr::null_mut(),
            };
            // SAFETY: both ranges lie in memory that the operation holds; the driver reads `rows` before it returns.
            let copied = unsafe { cuMemcpy2DAsync_v2(&rows, stream) };
            copied.result().map_err(|error| format!("{count} rows of {width} bytes, {pitch} apart: {error}"))
        };
        self.attempt(|| "rows joined".to_owned(), copy);
    }

    /// Multiprocessors of the device.
    pub(crate) fn processors(&self) -> u32 {
        self.engine.processors
    }

    fn attempt(
        &mut self,
        name: impl FnOnce() -> String,
        work: impl FnOnce(&mut Engine, CUstream) -> Result<(), String>,
    ) {
        if self.error.is_none() {
            let timed = times::before(self.stream).and_then(|start| {
                work(self.engine, self.stream)?;
                times::after(start, name, self.stream)
            });
            self.error = timed.err();
        }
    }

    /// The first error.
    pub(super) fn finish(self) -> Result<(), String> {
        self.error.map_or(Ok(()), Err)
    }
}
