//! Own kernels from their text to functions of the driver: compiled by NVRTC for the card that is there, and kept on disk.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::sync::mpsc::{Receiver, channel};

use cudarc::driver::sys::{
    CUfunction, CUfunction_attribute, cuFuncSetAttribute, cuModuleGetFunction, cuModuleLoadData,
};
use cudarc::nvrtc::sys as nvrtc;

use super::kernels::{DEVICE, HEADERS, SOURCES, Source};

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
    /// Sources that are compiled on other threads, by name.
    compiling: HashMap<&'static str, Receiver<Result<Vec<u8>, String>>>,
    functions: HashMap<&'static str, Function>,
}

impl Modules {
    /// Begins to compile all sources for the device whose context is current.
    ///
    /// # Errors
    /// If they cannot be compiled here at all.
    pub fn prepare(capability: (u32, u32)) -> Result<Self, String> {
        let arch = arch(capability);
        let compiling = SOURCES.iter().map(|source| {
            let (sender, receiver) = channel();
            let arch = arch.clone();
            std::thread::spawn(move || sender.send(compile(source, &arch)));
            (source.name, receiver)
        });
        Ok(Self { compiling: compiling.collect(), functions: HashMap::new() })
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
        let compiling =
            self.compiling.remove(source.name).ok_or_else(|| format!("{} failed", source.name))?;
        let image = compiling.recv().map_err(|_| format!("compiling {}.cu ended early", source.name))??;
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is machine code of NVRTC with its own length inside; the driver copies it.
        let loaded = unsafe { cuModuleLoadData(&mut module, image.as_ptr().cast()) };
        loaded.result().map_err(|error| format!("loading the kernels of {}.cu: {error}", source.name))?;
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
}

/// NVRTC's name of an architecture; from Hopper on with the instructions that only this generation has.
fn arch((major, minor): (u32, u32)) -> String {
    format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
}

/// The whole text of a source: `device.cuh` first, in place of its `#include`; other headers where they are included.
fn text(source: &Source) -> String {
    let mut own = source.text.replace("#include \"device.cuh\"", "");
    for (name, header) in HEADERS {
        own = own.replace(&format!("#include \"{name}\""), header);
    }
    format!("#line 1 \"device.cuh\"\n{DEVICE}\n#line 1 \"{}.cu\"\n{own}", source.name)
}

/// The machine code of a source.
fn compile(source: &Source, arch: &str) -> Result<Vec<u8>, String> {
    let (name, code) = (format!("{}.cu", source.name), text(source));
    let strings = (CString::new(name.clone()), CString::new(code));
    let (Ok(file), Ok(code)) = strings else { return Err(format!("{name} holds a zero byte")) };
    let options = [format!("--gpu-architecture={arch}"), "--std=c++17".into(), "-lineinfo".into()];
    let options: Vec<CString> = options.into_iter().filter_map(|option| CString::new(option).ok()).collect();
    let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let ok = |result: nvrtc::nvrtcResult| result == nvrtc::nvrtcResult::NVRTC_SUCCESS;
    // SAFETY: NVRTC reads strings that live until the program is destroyed, and writes as many bytes as it said before.
    unsafe {
        let mut program = std::ptr::null_mut();
        let none = std::ptr::null();
        if !ok(nvrtc::nvrtcCreateProgram(&mut program, code.as_ptr(), file.as_ptr(), 0, none, none)) {
            return Err(format!("NVRTC takes no program for {name}"));
        }
        let compiled = nvrtc::nvrtcCompileProgram(program, options.len() as i32, options.as_ptr());
        let image = if ok(compiled) {
            let mut size = 0;
            let sized = nvrtc::nvrtcGetCUBINSize(program, &mut size);
            let mut image = vec![0_u8; size];
            let got = nvrtc::nvrtcGetCUBIN(program, image.as_mut_ptr().cast());
            if ok(sized) && ok(got) && size > 0 {
                Ok(image)
            } else {
                Err(format!("NVRTC gives no machine code of {name} for {arch}"))
            }
        } else {
            Err(format!("NVRTC cannot compile {name} for {arch}: {}", log(program)))
        };
        nvrtc::nvrtcDestroyProgram(&mut program);
        image
    }
}

/// What NVRTC said about a program.
///
/// # Safety
/// The program must not have been destroyed.
unsafe fn log(program: nvrtc::nvrtcProgram) -> String {
    let mut size = 0;
    // SAFETY: NVRTC writes the log of the size that it gave.
    unsafe {
        nvrtc::nvrtcGetProgramLogSize(program, &mut size);
        let mut log = vec![0_u8; size.max(1)];
        nvrtc::nvrtcGetProgramLog(program, log.as_mut_ptr().cast());
        log.push(0);
        CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().into_owned()
    }
}
