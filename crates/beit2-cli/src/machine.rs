//! This program and the machine it runs on, described in a line each.

use crate::device::{DeviceSpec, Kind};

/// Name and version of this program, as runs record it.
pub const SOFTWARE: &str = concat!("beit2 ", env!("CARGO_PKG_VERSION"));

/// A device described: of the processor also its threads and instruction set.
pub fn describe(device: &DeviceSpec) -> String {
    match device.kind {
        Kind::Cpu => {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            format!("cpu, {threads} threads, {}", instruction_set())
        }
        _ => device.to_string(),
    }
}

/// The vector instruction set in use.
pub fn instruction_set() -> &'static str {
    use beit2_kernels::simd::{Level, level};
    match level() {
        Level::Avx512Bf16 => "AVX-512 with bf16",
        Level::Avx512 => "AVX-512",
        Level::Avx2 => "AVX2",
        Level::Baseline if cfg!(target_arch = "aarch64") => "NEON",
        Level::Baseline => "baseline vector instructions",
    }
}
