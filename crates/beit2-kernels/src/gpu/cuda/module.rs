//! Own kernels as functions of the driver.
//!
//! All sources are compiled, or read from disk, at once on threads of their own when the first operation is asked for; the
//! device's thread waits for a source when it launches the first kernel of it.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::mpsc::{Receiver, channel};

use cudarc::driver::sys::{
    CUfunction, CUfunction_attribute, CUmodule, CUresult, cuFuncSetAttribute, cuModuleGetFunction,
    cuModuleLoadData,
};

use super::cubin::{self, Image};
use super::kernels::{SOURCES, Source};

/// Dynamic shared memory that a kernel has without asking.
const SHARED_BY_DEFAULT: u32 = 48 * 1024;

/// A kernel that is ready.
struct Function {
    raw: CUfunction,
    /// Dynamic shared memory that it may use.
    shared: u32,
}

/// The own kernels of one device.
pub(super) struct Modules {
    arch: String,
    /// Sources on their way, by name.
    images: HashMap<&'static str, Receiver<Result<Image, String>>>,
    functions: HashMap<&'static str, Function>,
}

impl Modules {
    /// Of a device with this compute capability.
    ///
    /// # Errors
    /// If kernels can be had neither from NVRTC nor from disk.
    pub fn new(capability: (u32, u32)) -> Result<Self, String> {
        let arch = cubin::arch(capability);
        cubin::available(&arch)?;
        Ok(Self { arch, images: HashMap::new(), functions: HashMap::new() })
    }

    /// What kernels are compiled for.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// Begins to compile all sources, once.
    fn begin(&mut self) {
        for source in SOURCES {
            let (sender, receiver) = channel();
            let arch = self.arch.clone();
            // Nobody waits any more if the process is ending.
            std::thread::spawn(move || drop(sender.send(cubin::image(source, &arch))));
            self.images.insert(source.name, receiver);
        }
    }

    /// The function of an entry point, with leave to use `shared` bytes of dynamic shared memory.
    pub fn function(&mut self, entry: &'static str, shared: u32) -> Result<CUfunction, String> {
        if !self.functions.contains_key(entry) {
            self.load(entry)?;
        }
        let function = self.functions.get_mut(entry).ok_or_else(|| format!("there is no kernel {entry}"))?;
        if shared > function.shared {
            // SAFETY: the function belongs to a module that stays loaded.
            let allowed = unsafe {
                let which = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                cuFuncSetAttribute(function.raw, which, shared as i32)
            };
            allowed.result().map_err(|error| format!("kernel {entry}: {shared} bytes shared: {error}"))?;
            function.shared = shared;
        }
        Ok(function.raw)
    }

    /// Loads the module of `entry` and all functions of it.
    fn load(&mut self, entry: &'static str) -> Result<(), String> {
        let source = SOURCES.iter().find(|source| source.entries.contains(&entry));
        let source = source.ok_or_else(|| format!("no source in kernels/ lists the kernel {entry}"))?;
        if self.functions.is_empty() && self.images.is_empty() {
            self.begin();
        }
        let image =
            self.images.remove(source.name).ok_or_else(|| format!("{}.cu failed before", source.name))?;
        let image = image.recv().map_err(|_| format!("compiling {}.cu ended early", source.name))??;
        let module = self.module(source, image)?;
        for &entry in source.entries {
            let name = CString::new(entry).map_err(|error| format!("{entry}: {error}"))?;
            let mut raw = std::ptr::null_mut();
            // SAFETY: the module was loaded above and is never unloaded.
            let found = unsafe { cuModuleGetFunction(&mut raw, module, name.as_ptr()) };
            found.result().map_err(|error| format!("kernel {entry} of {}.cu: {error}", source.name))?;
            self.functions.insert(entry, Function { raw, shared: SHARED_BY_DEFAULT });
        }
        Ok(())
    }

    /// Loads an image. One from disk that the driver does not take is made anew.
    fn module(&self, source: &Source, image: Image) -> Result<CUmodule, String> {
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is machine code with its own length inside, or text that ends with a zero byte; the driver copies it.
        let mut load = |image: &Image| unsafe { cuModuleLoadData(&mut module, image.bytes.as_ptr().cast()) };
        let mut loaded = load(&image);
        if loaded != CUresult::CUDA_SUCCESS && image.file.is_some() {
            loaded = load(&cubin::compiled(source, &self.arch)?);
        }
        loaded.result().map_err(|error| format!("loading the kernels of {}.cu: {error}", source.name))?;
        Ok(module)
    }
}
