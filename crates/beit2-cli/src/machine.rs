//! This program and the machine it runs on, described in a line each.

use std::ffi::OsString;

use beit2_kernels::simd::{self, Level};

use crate::device::{DeviceSpec, Kind};
use crate::errors;

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

/// Keeps the process at the instruction set that `BEIT2_SIMD` names: for comparisons.
///
/// # Errors
/// No name of an instruction set.
pub fn limit_instruction_set(variable: Option<OsString>) -> anyhow::Result<()> {
    let Some(name) = variable else { return Ok(()) };
    match name.to_str().and_then(Level::named) {
        Some(level) => {
            simd::limit(level);
            beit2_data::simd::limit(match level {
                Level::Baseline => beit2_data::simd::Level::Baseline,
                Level::Avx2 => beit2_data::simd::Level::Avx2,
                _ => beit2_data::simd::Level::Avx512,
            });
        }
        None => {
            let name = name.to_string_lossy();
            return errors::usage(format!(
                "BEIT2_SIMD is `{name}`; it can be baseline, avx2, avx512 or avx512bf16"
            ));
        }
    }
    Ok(())
}

/// The vector instruction set in use.
pub fn instruction_set() -> &'static str {
    named(simd::level())
}

/// The instruction set in use, what keeps a better one from being used, and matmul instructions that are not used.
pub fn instructions() -> String {
    let (level, highest) = (simd::level(), simd::highest());
    let mut text = named(level).to_owned();
    if simd::multiplies_bytes() {
        text += ", VNNI";
    }
    if level < highest {
        text += &format!(" (BEIT2_SIMD; this CPU has {})", named(highest));
    }
    let unused = unused_instructions();
    if !unused.is_empty() {
        text += &format!("; not used: {}", unused.join(", "));
    }
    text
}

fn named(level: Level) -> &'static str {
    match level {
        Level::Avx512Bf16 => "AVX-512 with bf16",
        Level::Avx512 => "AVX-512",
        Level::Avx2 => "AVX2",
        Level::Baseline if cfg!(target_arch = "aarch64") => "NEON",
        Level::Baseline => "baseline vector instructions",
    }
}

/// Instructions for matmuls that this CPU has and beit2 does not use, by name.
pub fn unused_instructions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        const EXTENDED_FEATURES: u32 = 7;
        if __cpuid(0).eax < EXTENDED_FEATURES {
            return Vec::new();
        }
        let features = __cpuid_count(EXTENDED_FEATURES, 0);
        let more = if features.eax > 0 { __cpuid_count(EXTENDED_FEATURES, 1).eax } else { 0 };
        let known =
            [("AVX-VNNI", more >> 4), ("AMX-BF16", features.edx >> 22), ("AMX-INT8", features.edx >> 25)];
        known.into_iter().filter(|(_, bits)| bits & 1 == 1).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_instruction_sets_are_refused_in_a_sentence() {
        let error = limit_instruction_set(Some("sse9".into())).unwrap_err().to_string();
        assert!(error.contains("BEIT2_SIMD is `sse9`") && error.contains("avx2"), "{error}");
        limit_instruction_set(None).unwrap();
        limit_instruction_set(Some("avx512bf16".into())).unwrap();
    }

    #[test]
    fn the_line_of_doctor_begins_with_what_is_used() {
        assert!(instructions().starts_with(instruction_set()));
    }
}
