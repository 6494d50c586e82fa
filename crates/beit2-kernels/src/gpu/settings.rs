//! Where the results of tuning are kept.

use std::path::Path;
use std::sync::Once;

use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

static ONCE: Once = Once::new();

/// Keeps in `folder` which kernel was the fastest for each kind of matmul and sum on each device, so that the next run
/// of the process need not try them again. To be called before the first use of a device; later calls, and calls
/// where a `cubecl.toml` or `burn.toml` names another place, change nothing. Without this, CubeCL's own choice depends
/// on the current directory.
///
/// Compiled kernels are not kept: CubeCL finds them by name and types, which stay the same when a kernel's text changes.
pub fn keep_tuning(folder: &Path) {
    ONCE.call_once(|| {
        if CubeClRuntimeConfig::storage().lock().is_some() {
            return; // A device was used already.
        }
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        if matches!(config.autotune.cache, CacheConfig::Target) {
            config.autotune.cache = CacheConfig::File(folder.to_owned());
        }
        CubeClRuntimeConfig::set(config);
    });
}
