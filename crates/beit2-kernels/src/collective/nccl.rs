//! NCCL, over which NVIDIA's GPUs sum, opened at run time. No thread waits for a device.
//!
//! Opened here and not by cudarc's bindings, which never try `libnccl.so.2`, the name under which packages install it.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn::tensor::backend::DeviceId;
use cudarc::driver::sys as driver;
use cudarc::nccl::sys;

use super::Rank;

/// The names under which packages install it.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

type Status = u32;
type Handle = *mut c_void;

/// `ncclUniqueId`: what the ranks of a group find each other by.
#[repr(C)]
#[derive(Clone, Copy)]
struct Id([c_char; 128]);

/// What becomes of the tensors of all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    /// Their sum.
    Sum,
    /// Their mean.
    Mean,
}

/// One tensor's numbers, in device memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub from: u64,
    /// May be `from`.
    pub to: u64,
    pub count: usize,
    pub bf16: bool,
}

/// The functions of nccl.h that are used.
struct Library {
    unique_id: unsafe extern "C" fn(*mut Id) -> Status,
    join: unsafe extern "C" fn(*mut Handle, c_int, Id, c_int) -> Status,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, u32, u32, Handle, Handle) -> Status,
    group_start: unsafe extern "C" fn() -> Status,
    group_end: unsafe extern "C" fn() -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    // Keeps the functions in memory.
    _library: libloading::Library,
}

impl Library {
    /// `None`: it isn't there.
    fn get() -> Option<&'static Self> {
        static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
        // SAFETY: a library of NVIDIA's, whose start-up code has no preconditions.
        let open =
            || NAMES.iter().find_map(|name| Self::of(unsafe { libloading::Library::new(*name) }.ok()?));
        LIBRARY.get_or_init(open).as_ref()
    }

    fn of(library: libloading::Library) -> Option<Self> {
        // SAFETY: the signatures are those of nccl.h, version 2.
        unsafe {
            Some(Self {
                unique_id: *library.get(b"ncclGetUniqueId").ok()?,
                join: *library.get(b"ncclCommInitRank").ok()?,
                all_reduce: *library.get(b"ncclAllReduce").ok()?,
                group_start: *library.get(b"ncclGroupStart").ok()?,
                group_end: *library.get(b"ncclGroupEnd").ok()?,
                error_string: *library.get(b"ncclGetErrorString").ok()?,
                _library: library,
            })
        }
    }

    /// What the ranks of a new group find each other by.
    fn new_id(&self) -> Option<Id> {
        let mut id = Id([0; 128]);
        // SAFETY: `id` is written.
        self.ok("ncclGetUniqueId", unsafe { (self.unique_id)(&mut id) }).ok()?;
        Some(id)
    }

    fn ok(&self, call: &str, status: Status) -> Result<(), String> {
        if status == sys::ncclResult_t::ncclSuccess as Status {
            return Ok(());
        }
        // SAFETY: any number is allowed; the text is static.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)).to_string_lossy() };
        Err(format!("NCCL: {call} failed: {text} (NCCL_DEBUG=WARN tells more)"))
    }
}

/// Whether NCCL is there.
#[cfg(test)]
pub(crate) fn present() -> bool {
    Library::get().is_some()
}

/// One rank's end of a group of devices.
pub(crate) struct Communicator {
    library: &'static Library,
    id: Id,
    index: usize,
    world: usize,
    /// NCCL's own pointer, made on the device's thread when it is first needed, which waits for the other ranks.
    joined: OnceLock<Result<usize, String>>,
}

/// The communicator of a rank; `None`: NCCL isn't there for all of its group, or a device is named twice. `native` says which
/// of this process's devices can use it. Of processes the first call is an exchange, which all ranks make.
pub(crate) fn communicator(rank: &Rank, native: impl Fn(&DeviceId) -> bool) -> Option<Arc<Communicator>> {
    let native = rank.devices().iter().all(native);
    match rank.is_process() {
        true => rank.of_process.get_or_init(|| of_process(rank, native)).clone(),
        false => native.then(|| of_threads(rank)).flatten(),
    }
}

/// Each list of devices gets communicators once for the whole process: they hold memory of the devices, and a run has several
/// stages.
fn of_threads(rank: &Rank) -> Option<Arc<Communicator>> {
    type Groups = HashMap<Vec<DeviceId>, Vec<Arc<Communicator>>>;
    static GROUPS: Mutex<Option<Groups>> = Mutex::new(None);
    let (library, devices) = (Library::get()?, rank.devices());
    if devices.len() < 2 || !are_distinct(devices) {
        return None;
    }
    let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
    let groups = groups.get_or_insert_default();
    if !groups.contains_key(devices) {
        let (id, world) = (library.new_id()?, devices.len());
        let member = |index| Arc::new(Communicator { library, id, index, world, joined: OnceLock::new() });
        groups.insert(devices.to_vec(), (0..world).map(member).collect());
    }
    groups[devices].get(rank.index()).cloned()
}

/// The end of a process, where all of the group have NCCL and each its own device.
fn of_process(rank: &Rank, native: bool) -> Option<Arc<Communicator>> {
    let library = Library::get().filter(|_| native);
    // A rank that is gone is found by the next exchange.
    let brought = rank.gather(library.and_then(|_| identity(rank.devices().first()?))).ok()?;
    let devices: Option<Vec<&String>> = brought.iter().map(Option::as_ref).collect();
    let (library, devices) = (library?, devices?);
    if !are_distinct(&devices) {
        return None;
    }
    let id = rank.broadcast(rank.leads().then(|| Some(library.new_id()?.0.to_vec()))).ok()??;
    let id = Id(id.try_into().ok()?);
    Some(Arc::new(Communicator {
        library,
        id,
        index: rank.index(),
        world: rank.world(),
        joined: OnceLock::new(),
    }))
}

fn are_distinct<T: PartialEq>(items: &[T]) -> bool {
    items.iter().enumerate().all(|(at, item)| !items[..at].contains(item))
}

/// What tells a device from all others, also from those of other machines; `None` where it cannot be told.
fn identity(device: &DeviceId) -> Option<String> {
    let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let (mut handle, mut uuid) = (0, driver::CUuuid { bytes: [0; 16] });
    // SAFETY: both calls write what they are given the address of.
    unsafe {
        driver::cuDeviceGet(&mut handle, c_int::from(device.index_id)).result().ok()?;
        driver::cuDeviceGetUuid_v2(&mut uuid, handle).result().ok()?;
    }
    Some(format!("{} {:?}", machine.trim(), uuid.bytes))
}

impl Communicator {
    /// Puts the reduction of all pieces on a stream, in one launch. To be called on the device's thread, by all ranks
    /// with pieces of the same lengths.
    ///
    /// # Errors
    /// NCCL's, in one sentence.
    pub(crate) fn all_reduce(
        &self,
        pieces: &[Piece],
        reduction: Reduction,
        stream: driver::CUstream,
    ) -> Result<(), String> {
        let joined = *self.joined.get_or_init(|| self.join()).as_ref().map_err(String::clone)?;
        let library = self.library;
        let operation = match reduction {
            Reduction::Sum => sys::ncclRedOp_t::ncclSum,
            Reduction::Mean => sys::ncclRedOp_t::ncclAvg,
        };
        // SAFETY: communicator and stream are alive and of this device, as are the pieces, says the caller.
        unsafe {
            library.ok("ncclGroupStart", (library.group_start)())?;
            let mut reduced = Ok(());
            for &Piece { from, to, count, bf16 } in pieces {
                let element =
                    if bf16 { sys::ncclDataType_t::ncclBfloat16 } else { sys::ncclDataType_t::ncclFloat32 };
                let status = (library.all_reduce)(
                    from as *const c_void,
                    to as *mut c_void,
                    count,
                    element as u32,
                    operation as u32,
                    joined as Handle,
                    stream.cast(),
                );
                reduced = reduced.and(library.ok("ncclAllReduce", status));
            }
            // Ended in any case: what follows would be taken for a part of it.
            let ended = library.ok("ncclGroupEnd", (library.group_end)());
            reduced.and(ended)
        }
    }

    fn join(&self) -> Result<usize, String> {
        let mut communicator = std::ptr::null_mut();
        let (world, index) = (self.world as c_int, self.index as c_int);
        // SAFETY: `communicator` is written; the device's context is current in this thread.
        let status = unsafe { (self.library.join)(&mut communicator, world, self.id, index) };
        self.library.ok("ncclCommInitRank", status)?;
        Ok(communicator as usize)
    }
}
