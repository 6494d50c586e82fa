//! The descriptors of a matmul, made once for each problem.

use std::ffi::c_void;

use cudarc::cublaslt::sys;

use super::gemm::Element;
use super::library::{Algorithm, Candidate, Library, Opaque};
use super::problem::{Extra, Matrix, Problem, Side};

/// Memory that algorithms may use beside their operands: what NVIDIA advises for Hopper.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

type Operation = sys::cublasLtMatmulDescAttributes_t;
type Layout = sys::cublasLtMatrixLayoutAttribute_t;
type Preference = sys::cublasLtMatmulPreferenceAttributes_t;

fn element(element: Element) -> u32 {
    match element {
        Element::F32 => sys::cudaDataType_t::CUDA_R_32F as u32,
        Element::Bf16 => sys::cudaDataType_t::CUDA_R_16BF as u32,
    }
}

/// Memory of the library's, given back when dropped.
struct Owned {
    at: Opaque,
    library: &'static Library,
    destroy: unsafe extern "C" fn(Opaque) -> u32,
    set: unsafe extern "C" fn(Opaque, u32, *const c_void, usize) -> u32,
}

impl Owned {
    fn set<T>(&self, attribute: u32, value: T) -> Result<(), String> {
        // SAFETY: the library copies as many bytes as it is told; `at` is alive.
        let status = unsafe { (self.set)(self.at, attribute, (&raw const value).cast(), size_of::<T>()) };
        self.library.ok("setting an attribute", status)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: it was created by the library, and nobody else has it. There is nothing to do about a failure.
        unsafe { (self.destroy)(self.at) };
    }
}

/// All that a call needs except addresses.
pub(super) struct Descriptors {
    library: &'static Library,
    operation: Owned,
    left: Owned,
    right: Owned,
    result: Owned,
}

impl Descriptors {
    /// # Errors
    /// The library refuses something.
    pub(super) fn new(library: &'static Library, problem: &Problem) -> Result<Self, String> {
        let mut at = std::ptr::null_mut();
        // bf16 or f32 operands, f32 sums. Without a word, the library doesn't take TF32 for f32 operands.
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F as u32;
        // SAFETY: `at` is written; the constants are the library's.
        let status = unsafe { (library.operation_create)(&mut at, compute, element(Element::F32)) };
        library.ok("cublasLtMatmulDescCreate", status)?;
        let operation = Owned { at, library, destroy: library.operation_destroy, set: library.operation_set };
        // CUBLAS_OP_T is 1, CUBLAS_OP_N is 0 (cublas_api.h).
        let transposed = |Side { transposed, .. }: Side| i32::from(transposed);
        operation.set(Operation::CUBLASLT_MATMUL_DESC_TRANSA as u32, transposed(problem.left))?;
        operation.set(Operation::CUBLASLT_MATMUL_DESC_TRANSB as u32, transposed(problem.right))?;
        let epilogue = match problem.extra {
            Extra::None => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
            // One number for each row of the library's D: each of our columns.
            Extra::Bias => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            // Of its B, which is our A.
            Extra::BiasGradient => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BGRADB,
        };
        operation.set(Operation::CUBLASLT_MATMUL_DESC_EPILOGUE as u32, epilogue as u32)?;
        // The type of the vector stays the default: that of D.
        let count = problem.count();
        Ok(Self {
            left: layout(library, problem.left(), count)?,
            right: layout(library, problem.right(), count)?,
            result: layout(library, problem.result(), count)?,
            operation,
            library,
        })
    }

    /// Where the bias is read or its gradient is written in the next call. The search looks at its alignment too.
    pub(super) fn vector(&self, at: u64) -> Result<(), String> {
        self.operation.set(Operation::CUBLASLT_MATMUL_DESC_BIAS_POINTER as u32, at)
    }

    /// Up to `wanted` algorithms, the one that should be the fastest first; empty if there is none.
    pub(super) fn candidates(
        &self,
        handle: Opaque,
        problem: &Problem,
        wanted: usize,
    ) -> Result<Vec<Candidate>, String> {
        let library = self.library;
        let mut at = std::ptr::null_mut();
        // SAFETY: `at` is written.
        library.ok("cublasLtMatmulPreferenceCreate", unsafe { (library.preference_create)(&mut at) })?;
        let preference =
            Owned { at, library, destroy: library.preference_destroy, set: library.preference_set };
        preference
            .set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as u32, WORKSPACE_BYTES as u64)?;
        // Parts of a sum over k are added in f32, whatever the type of D.
        let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK as u32, reduction)?;
        let aligned = [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, problem.left.aligned),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, problem.right.aligned),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, problem.aligned_d),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, problem.aligned_d),
        ];
        for (attribute, bytes) in aligned {
            preference.set(attribute as u32, u32::from(bytes))?;
        }
        let mut found = vec![Candidate::default(); wanted];
        let mut count = 0;
        // SAFETY: all descriptors are alive, and there is room for `wanted` candidates.
        let status = unsafe {
            (library.heuristic)(
                handle,
                self.operation.at,
                self.left.at,
                self.right.at,
                self.result.at,
                self.result.at,
                preference.at,
                wanted as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        if status == super::library::NOT_SUPPORTED {
            return Ok(Vec::new());
        }
        library.ok("cublasLtMatmulAlgoGetHeuristic", status)?;
        found.truncate(count.max(0) as usize);
        found.retain(|found| {
            found.status == super::library::SUCCESS && found.workspace_bytes <= WORKSPACE_BYTES
        });
        Ok(found)
    }

    /// Whether an algorithm that was found earlier can do this.
    pub(super) fn accepts(&self, handle: Opaque, algorithm: &Algorithm) -> bool {
        let mut found = Candidate::default();
        // SAFETY: all descriptors are alive; the library checks what an algorithm holds.
        let status = unsafe {
            (self.library.check)(
                handle,
                self.operation.at,
                self.left.at,
                self.right.at,
                self.result.at,
                self.result.at,
                algorithm,
                &mut found,
            )
        };
        status == super::library::SUCCESS && found.workspace_bytes <= WORKSPACE_BYTES
    }

    /// Puts the matmul on a stream. `left` and `right` are the library's A and B; `add`: D += …
    pub(super) fn multiply(
        &self,
        handle: Opaque,
        algorithm: &Algorithm,
        [left, right, d]: [u64; 3],
        add: bool,
        workspace: u64,
        stream: Opaque,
    ) -> Result<(), String> {
        let (alpha, beta) = (1f32, if add { 1f32 } else { 0f32 });
        let address = |at: u64| at as *mut c_void;
        // SAFETY: descriptors and factors are alive; addresses are of device memory, which the library doesn't read
        // in this thread.
        let status = unsafe {
            (self.library.matmul)(
                handle,
                self.operation.at,
                (&raw const alpha).cast(),
                address(left),
                self.left.at,
                address(right),
                self.right.at,
                (&raw const beta).cast(),
                address(d),
                self.result.at,
                address(d),
                self.result.at,
                algorithm,
                address(workspace),
                WORKSPACE_BYTES,
                stream,
            )
        };
        self.library.ok("cublasLtMatmul", status)
    }
}

fn layout(library: &'static Library, matrix: Matrix, count: usize) -> Result<Owned, String> {
    let Matrix { element: kind, rows, cols, ld, stride } = matrix;
    let mut at = std::ptr::null_mut();
    // SAFETY: `at` is written.
    let status =
        unsafe { (library.layout_create)(&mut at, element(kind), rows as u64, cols as u64, ld as i64) };
    library.ok("cublasLtMatrixLayoutCreate", status)?;
    let layout = Owned { at, library, destroy: library.layout_destroy, set: library.layout_set };
    if count > 1 {
        layout.set(Layout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT as u32, count as i32)?;
        layout.set(Layout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET as u32, stride as i64)?;
    }
    Ok(layout)
}
