//! What is kept for each device, and the way to its thread.
//!
//! CubeCL gives every device a thread that owns its `CudaServer`; everything that touches the driver happens there. The
//! engine lives on the same thread, so it needs no lock, and its work is in order with CubeCL's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use cubecl::Runtime;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::device::Device;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{Binding, ComputeServer, Handle};
use cubecl::stream_id::StreamId;
use cudarc::driver::sys::{CUdevice_attribute, cuCtxGetDevice, cuDeviceGetAttribute};

use super::super::settings::settings;
use super::blas::{self, Blas, Ptr, Search};
use super::communication::Communication;
use super::failure;
use super::launch::Queue;
use super::module::Modules;
use super::pinned::Copies;
use super::spare::Spare;
use super::stream::Streams;
use crate::collective;

/// CubeCL's server of one device.
pub(super) type CudaServer = <CudaRuntime as Runtime>::Server;

/// The oldest compute capability with bf16 tensor cores and asynchronous copies.
const OLDEST: (u32, u32) = (8, 0);

/// Devices beyond this number take the portable path.
pub(super) const MOST: usize = 64;

/// Whether a device takes the native path, decided once: with what, or why not.
static CHOICES: [OnceLock<Result<String, String>>; MOST] = [const { OnceLock::new() }; MOST];

/// The first error of a device's operations, which all later ones repeat.
static FAILURES: [OnceLock<String>; MOST] = [const { OnceLock::new() }; MOST];

thread_local! {
    /// The engine of the device whose thread this is.
    static ENGINE: RefCell<Option<Engine>> = const { RefCell::new(None) };
}

/// On a device's thread: what native operations need.
pub(super) struct Engine {
    pub modules: Modules,
    pub blas: Blas,
    pub processors: u32,
    /// Copies from the host that may still be under way.
    pub copies: Copies,
    spare: Spare,
    streams: Streams,
    /// Memory for the middle of operations: one piece for each CUDA stream, because its operations run one after the other.
    scratch: HashMap<usize, (Handle, Ptr)>,
    /// Made when the first data is exchanged with another device.
    communication: Option<Communication>,
}

/// Whether operations on `device` take the native path: what they use, for people.
///
/// # Errors
/// Why not.
pub(crate) fn choice(device: &CudaDevice) -> &'static Result<String, String> {
    static TOO_MANY: OnceLock<Result<String, String>> = OnceLock::new();
    match CHOICES.get(device.index) {
        Some(choice) => choice.get_or_init(|| start(device)),
        None => TOO_MANY.get_or_init(|| Err(format!("only the first {MOST} devices are used natively"))),
    }
}

/// Panics with the first error of the device's native operations, if there was one.
pub(super) fn check(device: &CudaDevice) {
    if let Some(error) = FAILURES.get(device.index).and_then(OnceLock::get) {
        panic!("{error}");
    }
}

fn start(device: &CudaDevice) -> Result<String, String> {
    if settings().portable {
        return Err("the portable path was asked for".into());
    }
    blas::present()?;
    let started = handle(device).submit_blocking(|server| {
        let start = AssertUnwindSafe(|| Engine::start(server, StreamId::current()));
        let engine = catch_unwind(start).unwrap_or_else(|panic| Err(failure::message(&*panic)))?;
        let version = engine.blas.version();
        let (major, minor) = (version / 10_000, version % 10_000 / 100);
        let native = format!("native kernels for {}, cuBLASLt {major}.{minor}", engine.modules.arch());
        ENGINE.set(Some(engine));
        Ok(native)
    });
    started.unwrap_or_else(|_| Err("CubeCL's thread of the device has ended".into()))
}

fn handle(device: &CudaDevice) -> DeviceHandle<CudaServer> {
    DeviceHandle::new(device.to_id())
}

/// Runs `work` on the device's thread, after all that was submitted before, and waits for it.
///
/// # Errors
/// If the thread has ended.
pub(super) fn on_thread<T: Send + 'static>(
    device: &CudaDevice,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let done = handle(device).submit_blocking(|_| work());
    done.map_err(|_| "CubeCL's thread of the device has ended".into())
}

/// As [`on_thread`], with the device's engine.
///
/// # Errors
/// If the thread has ended, or the device has no engine.
pub(super) fn with<T: Send + 'static>(
    device: &CudaDevice,
    work: impl FnOnce(&mut Engine) -> T + Send + 'static,
) -> Result<T, String> {
    let done = on_thread(device, || ENGINE.with_borrow_mut(|engine| engine.as_mut().map(work)))?;
    done.ok_or_else(|| "the engine of this device was not started".into())
}

/// Runs `work` on the device's thread, later and in order. An error, a panic too, becomes one of the device, and is
/// what reading a result from it gives.
pub(super) fn submit(
    device: &CudaDevice,
    name: &'static str,
    work: impl FnOnce(&mut CudaServer, &mut Engine, StreamId) -> Result<(), String> + Send + 'static,
) {
    let index = device.index;
    handle(device).submit(move |server| {
        let id = StreamId::current();
        let done = catch_unwind(AssertUnwindSafe(|| {
            ENGINE.with_borrow_mut(|engine| {
                let engine = engine.as_mut().ok_or("the engine of this device was not started")?;
                work(server, engine, id)
            })
        }));
        if let Err(error) = done.unwrap_or_else(|panic| Err(failure::message(&*panic))) {
            let error = FAILURES[index].get_or_init(|| format!("CUDA device {index}: {name}: {error}"));
            failure::report(server, id, error);
            // Others may be about to wait for this device.
            collective::device_failed(CudaDevice { index }.to_id(), error);
        }
    });
}

/// Tells a device, whose operations are native, that a training step is recorded.
pub(super) fn note_step(device: &CudaDevice) {
    submit(device, "the end of a step", |server, engine, id| {
        // Batches cross as bytes, and are f32 then.
        engine.spare.step(server, id, 4 * engine.copies.largest());
        Ok(())
    });
}

/// Makes the device's thread begin with what was submitted, which it else does when there is more.
pub(super) fn flush(device: &CudaDevice) {
    handle(device).flush_queue();
}

impl Engine {
    fn start(server: &mut CudaServer, id: StreamId) -> Result<Self, String> {
        // The first memory makes the stream, and the driver's context current.
        let probe = Handle::new(id, 512);
        allocate(server, id, &probe);
        pointer(server, id, probe.binding())?;
        let capability = (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < OLDEST {
            let ((major, minor), (oldest_major, oldest_minor)) = (capability, OLDEST);
            return Err(format!(
                "its compute capability is {major}.{minor}, and native kernels need {oldest_major}.{oldest_minor}"
            ));
        }
        let mut streams = Streams::default();
        streams.get(server, id)?;
        let settings = settings();
        let folder = settings.folder.as_deref();
        Ok(Self {
            modules: Modules::new(capability)?,
            blas: Blas::open(folder, Search::Timed)?,
            processors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            copies: Copies::default(),
            spare: Spare::default(),
            streams,
            scratch: HashMap::new(),
            communication: None,
        })
    }

    /// Where the memory of a tensor begins, for an operation of CubeCL's stream `id`.
    ///
    /// # Errors
    /// If CubeCL does not know the memory.
    pub fn address(
        &self,
        server: &mut CudaServer,
        id: StreamId,
        mut binding: Binding,
    ) -> Result<Ptr, String> {
        // CubeCL's streams are threads of the host. It orders them by events, even where all are one CUDA stream, and a thread of
        // its own waits for each: here only where there is something to order.
        if self.streams.is_one() {
            binding.stream = id;
        }
        pointer(server, id, binding)
    }

    /// The stream of exchanges with other devices.
    ///
    /// # Errors
    /// The driver's: one sentence.
    pub fn communication(&mut self) -> Result<&Communication, String> {
        if self.communication.is_none() {
            self.communication = Some(Communication::new()?);
        }
        self.communication.as_ref().ok_or_else(|| unreachable!("made above"))
    }

    /// Where operations of CubeCL's stream `id` are put.
    pub fn queue(&mut self, server: &CudaServer, id: StreamId) -> Result<Queue<'_>, String> {
        let stream = self.streams.get(server, id)?;
        Ok(Queue::new(self, stream))
    }

    /// At least `bytes` bytes that belong to the operation that asks until it has been launched.
    pub fn scratch(&mut self, server: &mut CudaServer, id: StreamId, bytes: usize) -> Result<Ptr, String> {
        if bytes == 0 {
            return Ok(Ptr(0));
        }
        let stream = self.streams.get(server, id)? as usize;
        if let Some((held, at)) = self.scratch.get(&stream)
            && held.size() >= bytes as u64
        {
            return Ok(*at);
        }
        // The smaller piece goes back first.
        self.scratch.remove(&stream);
        let handle = Handle::new(id, bytes as u64);
        allocate(server, id, &handle);
        let at = pointer(server, id, handle.clone().binding())?;
        self.scratch.insert(stream, (handle, at));
        Ok(at)
    }
}

/// Gives a new handle its memory.
pub(super) fn allocate(server: &mut CudaServer, id: StreamId, handle: &Handle) {
    server.initialize_memory(handle.memory.clone(), handle.size(), id);
}

/// Where the memory of a tensor begins.
///
/// # Errors
/// If CubeCL does not know the memory.
fn pointer(server: &mut CudaServer, id: StreamId, binding: Binding) -> Result<Ptr, String> {
    let resource = server.get_resource(binding, id);
    let resource = resource.map_err(|error| format!("memory of a tensor: {error:?}"))?;
    Ok(Ptr(resource.resource().ptr))
}

/// A property of the device of this thread's context.
fn attribute(which: CUdevice_attribute) -> Result<u32, String> {
    let (mut device, mut value) = (0, 0);
    // SAFETY: both write one integer.
    unsafe {
        cuCtxGetDevice(&mut device).result().map_err(|error| format!("cuCtxGetDevice: {error}"))?;
        let asked = cuDeviceGetAttribute(&mut value, which, device).result();
        asked.map_err(|error| format!("cuDeviceGetAttribute: {error}"))?;
    }
    u32::try_from(value).map_err(|_| format!("{which:?} is {value}"))
}
