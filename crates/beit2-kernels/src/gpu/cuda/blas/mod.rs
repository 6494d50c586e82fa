//! Matmuls by NVIDIA's cuBLASLt, which is opened at run time.

mod gemm;

pub(crate) use gemm::{Batch, Element, Epilogue, Gemm, Operand, Ptr};
