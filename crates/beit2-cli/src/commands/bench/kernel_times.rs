//! `bench --kernel-times`: how long each native CUDA kernel of a step takes.

use std::path::Path;

use beit2::Error;

/// Runs `count` steps on a CUDA device and writes the time of each native kernel in one of them, the longest first.
#[cfg(feature = "cuda")]
pub(super) fn write(
    file: &Path,
    device: &str,
    count: usize,
    run: impl FnOnce() -> Result<(), Error>,
) -> anyhow::Result<()> {
    use anyhow::Context;
    use serde_json::{Value, json};

    // `cuda` is the first device.
    let index = device.rsplit_once(':').and_then(|(_, index)| index.parse().ok()).unwrap_or(0);
    beit2_kernels::record_cuda_kernel_times(true);
    let ran = run();
    beit2_kernels::record_cuda_kernel_times(false);
    ran?;
    let times = beit2_kernels::cuda_kernel_times(index).map_err(anyhow::Error::msg)?;
    let per_step = |total: f64| total / count as f64;
    let kernels: Vec<Value> = times
        .iter()
        .map(|time| {
            json!({ "name": time.name, "calls": per_step(time.calls as f64), "ms": 1e3 * per_step(time.seconds) })
        })
        .collect();
    let total: f64 = times.iter().map(|time| time.seconds).sum();
    let text = json!({ "device": device, "total_ms": 1e3 * per_step(total), "kernels": kernels }).to_string();
    std::fs::write(file, text + "\n").with_context(|| format!("{} cannot be written", file.display()))
}

/// Without CUDA there are none; the flags were refused before.
#[cfg(not(feature = "cuda"))]
pub(super) fn write(
    _: &Path,
    _: &str,
    _: usize,
    run: impl FnOnce() -> Result<(), Error>,
) -> anyhow::Result<()> {
    Ok(run()?)
}
