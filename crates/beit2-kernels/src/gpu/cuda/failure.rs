//! Errors of native operations: none may pass in silence.
//!
//! Operations run on the device's thread, later than the call that asked for them, and CubeCL drops panics there. So an error
//! is given to CubeCL's stream as one of its own: every read of the stream then fails with it. A launch that cannot be
//! compiled is the one way for others to do that.

use std::any::Any;

use cubecl::cuda::CudaCompiler;
use cubecl::ir::{ElemType, StorageType, UIntKind};
use cubecl::prelude::*;
use cubecl::server::{ComputeServer, KernelArguments};
use cubecl::stream_id::StreamId;
use cubecl::{CompilationError, Compiler, CubeTask, backtrace::BackTrace};

use super::engine::CudaServer;

/// A kernel that never compiles.
struct Failed(String);

impl KernelMetadata for Failed {
    fn id(&self) -> KernelId {
        KernelId::new::<Self>()
    }

    fn address_type(&self) -> StorageType {
        ElemType::UInt(UIntKind::U32).into()
    }
}

impl CubeTask<CudaCompiler> for Failed {
    fn compile(
        &self,
        _: &mut CudaCompiler,
        _: &<CudaCompiler as Compiler>::CompilationOptions,
        _: ExecutionMode,
        _: StorageType,
    ) -> Result<CompiledKernel<CudaCompiler>, CompilationError> {
        Err(CompilationError::Generic { reason: self.0.clone(), backtrace: BackTrace::capture() })
    }
}

/// Makes `error` what the next read of CubeCL's stream `id` gives.
pub(super) fn report(server: &mut CudaServer, id: StreamId, error: &str) {
    let kernel = Box::new(Failed(error.to_owned()));
    let count = CubeCount::Static(1, 1, 1);
    // SAFETY: nothing is launched, because the kernel does not compile.
    unsafe { server.launch(kernel, count, KernelArguments::default(), ExecutionMode::Checked, id) };
}

/// What a panic said.
pub(super) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}
