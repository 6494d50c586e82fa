//! Matmuls by NVIDIA's cuBLASLt, which is opened at run time.
//!
//! The first matmul of a kind makes its descriptors and chooses an algorithm; every later one is a single call. The
//! algorithm is the one kept on disk, else the fastest of a few that the library proposes, timed on the card.

mod gemm;
mod kept;
mod library;
mod ones;
mod plan;
mod problem;
mod search;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;

use cudarc::driver::sys as driver;

pub(crate) use gemm::{Element, Epilogue, Gemm, Operand, Ptr};
use kept::Kept;
use library::{Algorithm, Library, Opaque};
use ones::Ones;
use plan::{Descriptors, WORKSPACE_BYTES};
use problem::{Extra, Problem};

/// Whether cuBLASLt is there.
///
/// # Errors
/// It isn't: one sentence.
pub(crate) fn present() -> Result<(), &'static str> {
    Library::get().map(drop)
}

/// How an algorithm is chosen that isn't kept on disk yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Search {
    /// The one that the library proposes first: for tests, where nothing can be timed.
    #[cfg(test)]
    Proposed,
    /// The fastest of [`search::CANDIDATES`].
    Timed,
}

/// cuBLASLt on one device. It stays in the thread that made it, whose current context is the device's.
pub(crate) struct Blas {
    library: &'static Library,
    handle: Opaque,
    workspace: u64,
    plans: HashMap<Problem, Plan>,
    kept: Kept,
    search: Search,
    ones: Ones,
}

// SAFETY: the library allows one thread after another to use a handle and its descriptors.
unsafe impl Send for Blas {}

enum Plan {
    One(Descriptors, Algorithm),
    /// There is no algorithm with this epilogue: a matmul of its own computes it.
    Two,
}

impl Blas {
    /// The device is that of the current context. In `folder`, the fastest algorithms are kept.
    ///
    /// # Errors
    /// The library isn't there, or doesn't start: one sentence.
    pub(crate) fn open(folder: Option<&Path>, search: Search) -> Result<Self, String> {
        let library = Library::get()?;
        let device = device_name()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is written.
        library.ok("cublasLtCreate", unsafe { (library.create)(&mut handle) })?;
        let kept = Kept::open(folder, library.version, &device);
        let mut blas = Self {
            library,
            handle,
            workspace: 0,
            plans: HashMap::new(),
            kept,
            search,
            ones: Ones::default(),
        };
        blas.workspace = allocate(WORKSPACE_BYTES)?;
        Ok(blas)
    }

    /// As the library counts: 130100 is 13.1.0.
    pub(crate) fn version(&self) -> usize {
        self.library.version
    }

    /// Puts a matmul on a stream of the device.
    ///
    /// # Errors
    /// Its sizes or addresses make no sense, or the library refuses it: one sentence.
    pub(crate) fn gemm(&mut self, gemm: &Gemm, stream: driver::CUstream) -> Result<(), String> {
        let problem = Problem::of(gemm)?;
        if !self.plans.contains_key(&problem) {
            let plan = self.plan(gemm, &problem, stream)?;
            self.plans.insert(problem, plan);
        }
        let vector = match gemm.epilogue {
            Epilogue::None => None,
            Epilogue::Bias(at) | Epilogue::BiasGradient(at) => Some(at.0),
        };
        match &self.plans[&problem] {
            Plan::One(descriptors, algorithm) => {
                if let Some(at) = vector {
                    descriptors.vector(at)?;
                }
                let addresses = [gemm.b.at.0, gemm.a.at.0, gemm.d.0];
                let stream = stream.cast();
                descriptors
                    .multiply(self.handle, algorithm, addresses, gemm.accumulate, self.workspace, stream)
                    .map_err(|error| format!("{error}, of {problem}"))
            }
            Plan::Two => {
                for part in ones::parts(gemm, &mut self.ones)? {
                    self.gemm(&part, stream)?;
                }
                Ok(())
            }
        }
    }

    fn plan(&mut self, gemm: &Gemm, problem: &Problem, stream: driver::CUstream) -> Result<Plan, String> {
        // Kernels load 16 bytes at once; for a vector, the library leaves that to the caller.
        if problem.extra != Extra::None && problem.aligned_vector < 16 {
            return Ok(Plan::Two);
        }
        let descriptors = Descriptors::new(self.library, problem)?;
        if let Epilogue::Bias(at) | Epilogue::BiasGradient(at) = gemm.epilogue {
            descriptors.vector(at.0)?;
        }
        let key = problem.to_string();
        if let Some(&algorithm) = self.kept.get(&key)
            && descriptors.accepts(self.handle, &algorithm)
        {
            return Ok(Plan::One(descriptors, algorithm));
        }
        let wanted = if self.search == Search::Timed { search::CANDIDATES } else { 1 };
        let candidates = descriptors.candidates(self.handle, problem, wanted)?;
        let Some(first) = candidates.first() else {
            return match problem.extra {
                Extra::None => Err(format!("cuBLASLt {} can't do {key}", self.library.version)),
                Extra::Bias | Extra::BiasGradient => Ok(Plan::Two),
            };
        };
        let mut algorithm = first.algorithm;
        if candidates.len() > 1
            && let Some((fastest, microseconds)) = self.fastest(gemm, &descriptors, &candidates, stream)
        {
            algorithm = fastest;
            self.kept.put(key, fastest, microseconds);
        }
        Ok(Plan::One(descriptors, algorithm))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: nobody else has them. A context that is gone already took the memory along.
        unsafe {
            (self.library.destroy)(self.handle);
            if self.workspace != 0 {
                let _ = driver::cuMemFree_v2(self.workspace);
            }
        }
    }
}

/// Device memory outside the framework's pools.
fn allocate(bytes: usize) -> Result<u64, String> {
    let mut at = 0;
    // SAFETY: `at` is written.
    match unsafe { driver::cuMemAlloc_v2(&mut at, bytes) } {
        driver::CUresult::CUDA_SUCCESS => Ok(at),
        error => Err(format!("the device gives no {bytes} bytes for matmuls: {error:?}")),
    }
}

/// The maker's name for the device of the current context.
fn device_name() -> Result<String, String> {
    let (mut device, mut name) = (0, [0; 256]);
    // SAFETY: both are written; the name ends with a zero byte.
    unsafe {
        for result in
            [driver::cuCtxGetDevice(&mut device), driver::cuDeviceGetName(name.as_mut_ptr(), 255, device)]
        {
            if result != driver::CUresult::CUDA_SUCCESS {
                return Err(format!("no CUDA device is current in this thread: {result:?}"));
            }
        }
        Ok(std::ffi::CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned())
    }
}
