//! Epilogues that no algorithm has, as a matmul with a vector of ones.

use cudarc::driver::sys as driver;

use super::allocate;
use super::gemm::{Batch, Element, Epilogue, Gemm, Operand, Ptr};

/// Ones in device memory, of both types.
#[derive(Default)]
pub(super) struct Ones {
    /// Every piece that was given out, for the kernels that may still read it. The last is the longest.
    f32: Vec<(u64, usize)>,
    bf16: Vec<(u64, usize)>,
}

impl Ones {
    /// At least `count` ones.
    fn get(&mut self, element: Element, count: usize) -> Result<Ptr, String> {
        let pieces = match element {
            Element::F32 => &mut self.f32,
            Element::Bf16 => &mut self.bf16,
        };
        if let Some(&(at, length)) = pieces.last()
            && length >= count
        {
            return Ok(Ptr(at));
        }
        let length = count.next_power_of_two();
        let one: &[u8] = match element {
            Element::F32 => &1f32.to_le_bytes(),
            Element::Bf16 => &0x3f80u16.to_le_bytes(),
        };
        let ones = one.repeat(length);
        let at = allocate(ones.len())?;
        // SAFETY: the copy is done when the call returns, and both sides have that many bytes.
        let copied = unsafe { driver::cuMemcpyHtoD_v2(at, ones.as_ptr().cast(), ones.len()) };
        if copied != driver::CUresult::CUDA_SUCCESS {
            return Err(format!("ones for matmuls could not be copied to the device: {copied:?}"));
        }
        pieces.push((at, length));
        Ok(Ptr(at))
    }
}

impl Drop for Ones {
    fn drop(&mut self) {
        for &(at, _) in self.f32.iter().chain(&self.bf16) {
            // SAFETY: nobody else has it.
            let _ = unsafe { driver::cuMemFree_v2(at) };
        }
    }
}

/// The same as `gemm` with its epilogue, as two matmuls without.
pub(super) fn parts(gemm: &Gemm, ones: &mut Ones) -> Result<[Gemm; 2], String> {
    let plain = Gemm { epilogue: Epilogue::None, ..*gemm };
    Ok(match gemm.epilogue {
        // D = 1·biasᵀ with a sum over one number, then D += op(A)·op(B).
        Epilogue::Bias(bias) => {
            let ones = ones.get(gemm.result, gemm.m)?;
            let fill = Gemm {
                k: 1,
                a: Operand { at: ones, transposed: false, ld: 1 },
                b: Operand { at: bias, transposed: false, ld: gemm.n },
                operands: gemm.result,
                batch: gemm.batch.map(|batch| Batch { a: 0, b: 0, ..batch }),
                ..plain
            };
            [fill, Gemm { accumulate: true, ..plain }]
        }
        // sums = op(A)·1
        Epilogue::BiasGradient(sums) => {
            let ones = ones.get(gemm.operands, gemm.k)?;
            let add = Gemm {
                n: 1,
                b: Operand { at: ones, transposed: false, ld: 1 },
                d: sums,
                ldd: 1,
                accumulate: false,
                ..plain
            };
            [plain, add]
        }
        Epilogue::None => return Err("a matmul without an epilogue has no parts".into()),
    })
}
