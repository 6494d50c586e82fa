//! CUDA C to machine code, by NVRTC, which is opened at run time.

use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::{Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError};

use cudarc::nvrtc::sys as nvrtc;
use cudarc::nvrtc::sys::nvrtcResult;

/// The version of the NVRTC that is here, if one is.
pub(super) fn version() -> Option<(i32, i32)> {
    static VERSION: OnceLock<Option<(i32, i32)>> = OnceLock::new();
    *VERSION.get_or_init(|| {
        // SAFETY: opens a library of NVIDIA's, whose start-up code has no preconditions.
        if !unsafe { nvrtc::is_culib_present() } {
            return None;
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two integers.
        let asked = unsafe { nvrtc::nvrtcVersion(&mut major, &mut minor) };
        (asked == nvrtcResult::NVRTC_SUCCESS).then_some((major, minor))
    })
}

/// What a driver loads: machine code for `arch` (`sm_90a`), or PTX where this NVRTC does not know the architecture yet.
///
/// # Errors
/// What NVRTC says.
pub(super) fn compile(name: &str, text: &str, arch: &str) -> Result<Vec<u8>, String> {
    let Some((major, minor)) = version() else {
        return Err(format!("NVRTC, which compiles {name} for {arch}, is not here"));
    };
    let Some(_running) = COMPILATIONS.begin() else {
        return Err(format!("{name} is not compiled for {arch}: the process is ending"));
    };
    at_exit();
    let cubin = Program::compile(name, text, arch);
    match cubin {
        Err((nvrtcResult::NVRTC_ERROR_INVALID_OPTION, why)) => {
            let Some(older) = newest_before(arch) else {
                return Err(format!("NVRTC {major}.{minor} cannot compile {name} for {arch}: {why}"));
            };
            let ptx = Program::compile(name, text, &format!("compute_{older}"));
            ptx.and_then(|program| program.ptx())
        }
        cubin => cubin.and_then(|program| program.cubin()),
    }
    .map_err(|(_, why)| format!("NVRTC {major}.{minor} cannot compile {name} for {arch}: {why}"))
}

/// All compilations of this process.
static COMPILATIONS: Compilations = Compilations { state: Mutex::new((0, false)), idle: Condvar::new() };

/// A process that ends while a thread is inside NVRTC would crash there: its globals are taken down first. So the end waits for
/// what runs, some seconds at most, and nothing begins after it.
struct Compilations {
    /// How many run, and whether the process is ending.
    state: Mutex<(usize, bool)>,
    idle: Condvar,
}

/// A compilation that runs.
struct Running<'a>(&'a Compilations);

impl Compilations {
    fn lock(&self) -> MutexGuard<'_, (usize, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when the process is ending.
    fn begin(&self) -> Option<Running<'_>> {
        let mut state = self.lock();
        if state.1 {
            return None;
        }
        state.0 += 1;
        Some(Running(self))
    }

    fn end(&self) {
        let mut state = self.lock();
        state.1 = true;
        while state.0 > 0 {
            state = self.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.lock().0 -= 1;
        self.0.idle.notify_all();
    }
}

/// Has the process's end wait for compilations. NVRTC is open by now, so what it does at exit comes after that.
fn at_exit() {
    extern "C" fn end() {
        COMPILATIONS.end();
    }
    unsafe extern "C" {
        fn atexit(function: extern "C" fn()) -> c_int;
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the C library's function; what it gets doesn't unwind. It fails only without memory, and then nobody waits.
        let _ = unsafe { atexit(end) };
    });
}

/// The newest architecture that NVRTC knows and that a card of `arch` can run.
fn newest_before(arch: &str) -> Option<i32> {
    let digits = arch.trim_start_matches("sm_").trim_end_matches('a');
    let number: i32 = digits.parse().ok()?;
    let mut count = 0;
    // SAFETY: NVRTC writes as many numbers as it said before.
    let known = unsafe {
        nvrtc::nvrtcGetNumSupportedArchs(&mut count);
        let mut known = vec![0; usize::try_from(count).ok()?];
        nvrtc::nvrtcGetSupportedArchs(known.as_mut_ptr());
        known
    };
    known.into_iter().filter(|known| *known <= number).max()
}

type Failed = (nvrtcResult, String);

/// A compiled program.
struct Program(nvrtc::nvrtcProgram);

impl Program {
    fn compile(name: &str, text: &str, arch: &str) -> Result<Self, Failed> {
        let strings = (CString::new(name), CString::new(text));
        let (Ok(name), Ok(text)) = strings else {
            return Err((nvrtcResult::NVRTC_ERROR_INVALID_INPUT, "the text holds a zero byte".into()));
        };
        let options = [format!("--gpu-architecture={arch}"), "--std=c++17".into(), "-lineinfo".into()];
        let options: Vec<CString> =
            options.into_iter().filter_map(|option| CString::new(option).ok()).collect();
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let (mut raw, none) = (std::ptr::null_mut(), std::ptr::null());
        // SAFETY: NVRTC copies the strings; there are no headers.
        ok(unsafe { nvrtc::nvrtcCreateProgram(&mut raw, text.as_ptr(), name.as_ptr(), 0, none, none) })?;
        let program = Self(raw);
        // SAFETY: the program exists; the options live until the call returns.
        let compiled = unsafe { nvrtc::nvrtcCompileProgram(raw, options.len() as i32, options.as_ptr()) };
        match compiled {
            nvrtcResult::NVRTC_SUCCESS => Ok(program),
            error => Err((error, program.log())),
        }
    }

    fn cubin(&self) -> Result<Vec<u8>, Failed> {
        let mut size = 0;
        // SAFETY: NVRTC writes as many bytes as it said before.
        unsafe {
            ok(nvrtc::nvrtcGetCUBINSize(self.0, &mut size))?;
            let mut image = vec![0_u8; size];
            ok(nvrtc::nvrtcGetCUBIN(self.0, image.as_mut_ptr().cast()))?;
            Ok(image)
        }
    }

    fn ptx(&self) -> Result<Vec<u8>, Failed> {
        let mut size = 0;
        // SAFETY: NVRTC writes as many bytes as it said before; a zero byte is the last.
        unsafe {
            ok(nvrtc::nvrtcGetPTXSize(self.0, &mut size))?;
            let mut text = vec![0_u8; size];
            ok(nvrtc::nvrtcGetPTX(self.0, text.as_mut_ptr().cast()))?;
            Ok(text)
        }
    }

    /// What NVRTC said.
    fn log(&self) -> String {
        let mut size = 0;
        // SAFETY: NVRTC writes the log of the size that it gave; the last byte stays zero.
        let log = unsafe {
            nvrtc::nvrtcGetProgramLogSize(self.0, &mut size);
            let mut log = vec![0_u8; size + 1];
            nvrtc::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast());
            log
        };
        let log = CStr::from_bytes_until_nul(&log).unwrap_or_default();
        log.to_string_lossy().trim().to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: nobody else has the program. An error would leave its memory, no more.
        unsafe { nvrtc::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn ok(result: nvrtcResult) -> Result<(), Failed> {
    match result {
        nvrtcResult::NVRTC_SUCCESS => Ok(()),
        error => Err((error, format!("{error:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_waits_for_what_runs_and_nothing_begins_after_it() {
        let compilations = Compilations { state: Mutex::new((0, false)), idle: Condvar::new() };
        let running = compilations.begin().unwrap();
        std::thread::scope(|scope| {
            let end = scope.spawn(|| compilations.end());
            while !compilations.lock().1 {
                std::thread::yield_now();
            }
            assert!(compilations.begin().is_none() && !end.is_finished());
            drop(running);
            end.join().unwrap();
        });
        assert_eq!(*compilations.lock(), (0, true));
    }
}
