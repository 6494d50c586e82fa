//! NVIDIA's GPUs: what replaces the portable operations there.

// Until the operations that use it are here.
#![allow(dead_code, unused_imports)]

mod blas;
