//! The functions of cuBLASLt, opened at run time.
//!
//! The names and constants are those of cudarc's bindings. Its loader isn't used: it panics when a library or a
//! function is missing, and takes whichever file it finds first under a name without a version.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use cudarc::cublaslt::sys;

/// What a call returns; 0 is success.
pub(super) type Status = u32;
/// A handle, descriptor, layout or preference: the library's own memory.
pub(super) type Opaque = *mut c_void;

pub(super) const SUCCESS: Status = sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS as Status;
pub(super) const NOT_SUPPORTED: Status = sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED as Status;

/// The names under which packages install it, the newest first. Both have all functions that are used here.
const NAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// An algorithm as the library describes it: numbers that mean something to the same version only.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Algorithm(pub [u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Candidate {
    pub algorithm: Algorithm,
    pub workspace_bytes: usize,
    pub status: Status,
    /// How many times the GPU is filled.
    pub waves: f32,
    reserved: [c_int; 4],
}

macro_rules! functions {
    ($($name:ident = $symbol:literal ($($type:ty),*);)+) => {
        /// The library's functions, with the signatures of cublasLt.h.
        pub(super) struct Library {
            $(pub $name: unsafe extern "C" fn($($type),*) -> Status,)+
            status_string: unsafe extern "C" fn(Status) -> *const c_char,
            /// As the library counts: 130100 is 13.1.0.
            pub version: usize,
            // Keeps the functions in memory.
            _library: libloading::Library,
        }

        impl Library {
            fn of(library: libloading::Library) -> Result<Self, String> {
                // SAFETY: the signatures are those of cublasLt.h, which haven't changed since CUDA 11.
                unsafe {
                    let missing = |name: &str| format!("it has no {name}: it is no cuBLASLt of CUDA 12 or 13");
                    let version = *library
                        .get::<unsafe extern "C" fn() -> usize>(b"cublasLtGetVersion")
                        .map_err(|_| missing("cublasLtGetVersion"))?;
                    Ok(Self {
                        $($name: *library.get($symbol.as_bytes()).map_err(|_| missing($symbol))?,)+
                        status_string: *library
                            .get(b"cublasLtGetStatusString")
                            .map_err(|_| missing("cublasLtGetStatusString"))?,
                        version: version(),
                        _library: library,
                    })
                }
            }
        }
    };
}

functions! {
    create = "cublasLtCreate" (*mut Opaque);
    destroy = "cublasLtDestroy" (Opaque);
    operation_create = "cublasLtMatmulDescCreate" (*mut Opaque, u32, u32);
    operation_set = "cublasLtMatmulDescSetAttribute" (Opaque, u32, *const c_void, usize);
    operation_destroy = "cublasLtMatmulDescDestroy" (Opaque);
    layout_create = "cublasLtMatrixLayoutCreate" (*mut Opaque, u32, u64, u64, i64);
    layout_set = "cublasLtMatrixLayoutSetAttribute" (Opaque, u32, *const c_void, usize);
    layout_destroy = "cublasLtMatrixLayoutDestroy" (Opaque);
    preference_create = "cublasLtMatmulPreferenceCreate" (*mut Opaque);
    preference_set = "cublasLtMatmulPreferenceSetAttribute" (Opaque, u32, *const c_void, usize);
    preference_destroy = "cublasLtMatmulPreferenceDestroy" (Opaque);
    // Handle, operation, layouts of A, B, C, D, preference, how many are wanted, where to, how many there are.
    heuristic = "cublasLtMatmulAlgoGetHeuristic"
        (Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, c_int, *mut Candidate, *mut c_int);
    // Handle, operation, layouts of A, B, C, D, algorithm, what it needs.
    check = "cublasLtMatmulAlgoCheck"
        (Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, *const Algorithm, *mut Candidate);
    // Handle, operation, alpha, A, its layout, B, its layout, beta, C, its layout, D, its layout, algorithm, workspace,
    // its bytes, stream.
    matmul = "cublasLtMatmul"
        (Opaque, Opaque, *const c_void, *const c_void, Opaque, *const c_void, Opaque, *const c_void, *const c_void,
         Opaque, *mut c_void, Opaque, *const Algorithm, *mut c_void, usize, Opaque);
}

impl Library {
    /// Opens the library once for the whole process.
    ///
    /// # Errors
    /// It isn't there, or isn't usable: one sentence.
    pub(super) fn get() -> Result<&'static Self, &'static str> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        LIBRARY.get_or_init(Self::open).as_ref().map_err(String::as_str)
    }

    fn open() -> Result<Self, String> {
        let mut refused = None;
        for name in NAMES {
            // SAFETY: a library of NVIDIA's, whose start-up code has no preconditions.
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => match Self::of(library) {
                    Ok(library) => return Ok(library),
                    Err(why) => refused = refused.or(Some(format!("{name} is unusable, {why}"))),
                },
                Err(_) => continue,
            }
        }
        Err(refused.unwrap_or_else(|| format!("{} is not where the loader looks", NAMES[0])))
    }

    /// An error of the library in its own words.
    pub(super) fn error(&self, call: &str, status: Status) -> String {
        // SAFETY: any number is allowed; the text is static.
        let text = unsafe {
            let text = (self.status_string)(status);
            if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        format!("cuBLASLt {}: {call} failed: {text} (status {status})", self.version)
    }

    /// `Ok` for success.
    pub(super) fn ok(&self, call: &str, status: Status) -> Result<(), String> {
        if status == SUCCESS { Ok(()) } else { Err(self.error(call, status)) }
    }
}
