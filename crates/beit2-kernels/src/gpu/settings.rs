//! What a program chooses for the GPUs of its process.

use std::path::{Path, PathBuf};
use std::sync::{Once, OnceLock};

use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

use super::kept;

/// What a program chooses for the GPUs of its process.
#[derive(Debug, Clone, Default)]
pub struct GpuSettings {
    /// Where compiled kernels and results of tuning are kept for the next process. `None`: nowhere.
    pub folder: Option<PathBuf>,
    /// Native CUDA kernels that were compiled elsewhere (`compile_cuda_kernels`), looked for here first.
    pub kernels: Option<PathBuf>,
    /// Whether NVIDIA's GPUs take the portable path too, as all others do.
    pub portable: bool,
}

static SETTINGS: OnceLock<GpuSettings> = OnceLock::new();

/// Holds for all GPUs of the process. To be called before the first use of one; later calls change nothing.
///
/// Without it, GPUs compute the same: nothing is compiled for the next process, and results of tuning go where CubeCL's
/// own choice puts them, which depends on the current directory. A `cubecl.toml` or `burn.toml` that names places for the
/// two is left as it is.
///
/// CubeCL finds its kernels by name and types, which stay the same when a kernel's text changes. So each build of a
/// program has a folder of its own for them, and only the latest few folders are kept.
pub fn set_up_gpus(settings: GpuSettings) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let settings = SETTINGS.get_or_init(|| settings);
        if CubeClRuntimeConfig::storage().lock().is_none() {
            CubeClRuntimeConfig::set(config(settings.folder.as_deref()));
        }
    });
}

/// What was chosen, or nothing in particular.
#[cfg(feature = "cuda")]
pub(super) fn settings() -> &'static GpuSettings {
    SETTINGS.get_or_init(GpuSettings::default)
}

fn config(folder: Option<&Path>) -> CubeClRuntimeConfig {
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    // Threads of this process feed each other, so their work is in one order anyway: CubeCL then orders nothing by events.
    config.streaming.max_streams = 1;
    if let Some(folder) = folder {
        if matches!(config.autotune.cache, CacheConfig::Target) {
            config.autotune.cache = CacheConfig::File(folder.to_owned());
        }
        if config.compilation.cache.is_none() {
            config.compilation.cache = kept::of_this_program(folder).map(CacheConfig::File);
        }
    }
    config
}
