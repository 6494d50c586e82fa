//! Which weights a model has, so that a pickle of it is opened with the same ones or not at all.

use std::path::Path;

use beit2::train::Assets;
use beit2::weights::{self, WeightFile};
use beit2_cli::AssetStore;
use beit2_data::{DecodeOptions, fnv1a};
use pyo3::prelude::*;

use crate::exceptions::without_gil;
use crate::open::Options;

/// A value that changes when the weights do, or what was read beside them: of what is in memory, because the file can be
/// replaced while it is read and right after.
pub fn of(file: &WeightFile, decode: &DecodeOptions) -> String {
    format!("{}-{:016x}", file.fingerprint(), fnv1a(decoding(decode).as_bytes()))
}

/// What a run says of how images are decoded.
fn decoding(decode: &DecodeOptions) -> String {
    format!("{} {} {}", decode.range, decode.exif.name(), decode.background.name())
}

/// [`of`] what the path has now.
#[pyfunction]
pub fn fingerprint(py: Python<'_>, path: &str, options: Options) -> PyResult<String> {
    without_gil(py, || {
        let decode = options.decode(path)?;
        Ok(of(&AssetStore::silent(options.reading()?).weights(path)?, &decode))
    })
}

/// A value that stays the same only while nobody touches the files, without reading the weights: which file the path means,
/// and size and times of all files in its folder. Empty where this cannot be known.
#[pyfunction]
pub fn stamp(py: Python<'_>, path: &str, options: Options) -> PyResult<String> {
    without_gil(py, || {
        let file = match options.reading()?.spec(path) {
            spec if spec.starts_with("bundled:") => return Ok(spec),
            spec => weights::locate(spec)?.path,
        };
        let decode = options.decode(path)?;
        // Parts of a model and what is read beside it lie in one folder.
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let known = file.canonicalize().and_then(|file| Ok(format!("{} {}", file.display(), times(folder)?)));
        Ok(known.map_or(String::new(), |known| format!("{known} {}", decoding(&decode))))
    })
}

fn times(folder: &Path) -> std::io::Result<String> {
    let mut files = Vec::new();
    for entry in folder.read_dir()? {
        let entry = entry?;
        // Of what a link points to, as in the cache of Hugging Face's hub.
        let facts = std::fs::metadata(entry.path())?;
        if facts.is_file() {
            files.push(format!("{:?} {} {}", entry.file_name(), facts.len(), changed(&facts)?));
        }
    }
    files.sort();
    Ok(format!("{:016x}", fnv1a(files.join("\n").as_bytes())))
}

/// Also the time that `touch` cannot set, where there is one.
#[cfg(unix)]
fn changed(facts: &std::fs::Metadata) -> std::io::Result<String> {
    use std::os::unix::fs::MetadataExt;
    let (dev, ino) = (facts.dev(), facts.ino());
    let (written, changed) = ((facts.mtime(), facts.mtime_nsec()), (facts.ctime(), facts.ctime_nsec()));
    Ok(format!("{dev} {ino} {written:?} {changed:?}"))
}

#[cfg(not(unix))]
fn changed(facts: &std::fs::Metadata) -> std::io::Result<String> {
    Ok(format!("{:?}", facts.modified()?))
}
