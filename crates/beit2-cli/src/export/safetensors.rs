//! Finished rows as the one tensor of a safetensors file.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use beit2_run::atomic::AtomicFile;
use beit2_weights::safetensors_header;

use super::finished::Finished;

/// Header and values; `path` is named in errors.
pub fn write(rows: &Finished<'_>, path: &Path, writer: &mut AtomicFile) -> anyhow::Result<()> {
    let dtype = rows.layout.element.dtype().context("ids are not written as safetensors")?;
    let metadata = rows.meta.iter().cloned().collect();
    writer.write_all(&safetensors_header(path, [(rows.layout.name, dtype, &*rows.shape())], &metadata)?)?;
    rows.write_values(writer)
}
