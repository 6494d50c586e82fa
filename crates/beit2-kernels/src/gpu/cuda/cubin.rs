//! The compiled form of the own kernels: one file for each source, architecture and NVRTC, kept between processes.

use std::fs;
use std::hash::Hasher;
use std::path::{Path, PathBuf};

use super::super::kept::{self, Fingerprint};
use super::super::settings::{GpuSettings, settings};
use super::kernels::{DEVICE, HEADERS, SOURCES, Source};
use super::nvrtc;

/// Files that are kept: the sources for a few builds and cards.
const FILES: usize = 96;

/// What a driver loads.
pub(super) struct Image {
    pub bytes: Vec<u8>,
    /// The file that it was read from.
    pub file: Option<PathBuf>,
}

/// NVRTC's name of an architecture; from Hopper on with the instructions that only this generation has.
pub(super) fn arch((major, minor): (u32, u32)) -> String {
    format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
}

/// Whether all sources can be had for an architecture.
///
/// # Errors
/// What is missing.
pub(super) fn available(arch: &str) -> Result<(), String> {
    if nvrtc::version().is_some() {
        return Ok(());
    }
    match SOURCES.iter().find(|source| find(source, arch, settings()).is_none()) {
        None => Ok(()),
        Some(source) => {
            Err(format!("NVRTC is missing, and {}.cu was not compiled for {arch} before", source.name))
        }
    }
}

/// The compiled form of a source: the file if there is one, else from NVRTC and kept.
///
/// # Errors
/// If it has to be compiled and cannot be.
pub(super) fn image(source: &Source, arch: &str) -> Result<Image, String> {
    match find(source, arch, settings()) {
        Some(file) => match fs::read(&file) {
            Ok(bytes) if !bytes.is_empty() => {
                kept::touch(&file);
                Ok(Image { bytes, file: Some(file) })
            }
            _ => compiled(source, arch),
        },
        None => compiled(source, arch),
    }
}

/// The compiled form of a source, made anew and kept.
///
/// # Errors
/// If it cannot be compiled.
pub(super) fn compiled(source: &Source, arch: &str) -> Result<Image, String> {
    let bytes = nvrtc::compile(&format!("{}.cu", source.name), &text(source), arch)?;
    if let (Some(folder), Some(version)) = (folder(settings()), nvrtc::version()) {
        // A full disk costs the next process some seconds, and nothing else.
        if kept::write(&folder.join(file_name(&stem(source, arch), version)), &bytes).is_ok() {
            kept::keep_latest(&folder, FILES, kept::modified);
        }
    }
    Ok(Image { bytes, file: None })
}

/// Compiles the native CUDA kernels for architectures (`sm_90a`, `sm_89`, `sm_86`, `sm_80`) into a folder, without a device:
/// for machines without NVRTC, or with little time ([`GpuSettings::kernels`]). Gives the files' names.
///
/// # Errors
/// If NVRTC is missing or refuses a source, or the folder cannot be written: one sentence.
pub fn compile_cuda_kernels(folder: &Path, archs: &[String]) -> Result<Vec<String>, String> {
    let version = nvrtc::version().ok_or("NVRTC (libnvrtc.so), which compiles kernels, is not here")?;
    let jobs: Vec<_> =
        archs.iter().flat_map(|arch| SOURCES.iter().map(move |source| (source, arch))).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut made = Vec::new();
        while let Some((source, arch)) = jobs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            let bytes = nvrtc::compile(&format!("{}.cu", source.name), &text(source), arch)?;
            let name = file_name(&stem(source, arch), version);
            let written = kept::write(&folder.join(&name), &bytes);
            written.map_err(|error| format!("{}: {error}", folder.join(&name).display()))?;
            made.push(name);
        }
        Ok(made)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let made: Result<Vec<Vec<String>>, String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.min(jobs.len())).map(|_| scope.spawn(work)).collect();
        let ended = || Err("compiling ended early".into());
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| ended())).collect()
    });
    let mut made = made?.concat();
    made.sort();
    Ok(made)
}

/// The whole text of a source: `device.cuh` first, in place of its `#include`; other headers where they are included.
fn text(source: &Source) -> String {
    let mut own = source.text.replace("#include \"device.cuh\"", "");
    for (name, header) in HEADERS {
        own = own.replace(&format!("#include \"{name}\""), header);
    }
    // NVRTC warns of the pragma in a main file.
    let device = DEVICE.replace("#pragma once", "");
    format!("#line 1 \"device.cuh\"\n{device}\n#line 1 \"{}.cu\"\n{own}", source.name)
}

/// What a file's name begins with.
fn stem(source: &Source, arch: &str) -> String {
    let mut hash = Fingerprint::default();
    hash.write(text(source).as_bytes());
    format!("{}-{arch}-{}", source.name, hash.name())
}

fn file_name(stem: &str, (major, minor): (i32, i32)) -> String {
    format!("{stem}-nvrtc{major}.{minor}.cubin")
}

/// Where files are kept.
fn folder(settings: &GpuSettings) -> Option<PathBuf> {
    settings.folder.as_ref().map(|folder| folder.join("cuda"))
}

/// The file of a source: one made elsewhere first, whatever NVRTC made it; then one of the NVRTC that is here, or of any
/// where none is.
fn find(source: &Source, arch: &str, settings: &GpuSettings) -> Option<PathBuf> {
    let stem = stem(source, arch);
    let elsewhere = settings.kernels.as_deref().and_then(|folder| any(folder, &stem));
    elsewhere.or_else(|| {
        let folder = folder(settings)?;
        match nvrtc::version() {
            Some(version) => Some(folder.join(file_name(&stem, version))).filter(|file| file.exists()),
            None => any(&folder, &stem),
        }
    })
}

/// A file of any NVRTC.
fn any(folder: &Path, stem: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    let named = |file: &PathBuf| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&format!("{stem}-")) && name.ends_with(".cubin")
    };
    entries.flatten().map(|entry| entry.path()).filter(named).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Source = Source { name: "x", text: "#include \"device.cuh\"\nint x;", entries: &[] };

    #[test]
    fn files_are_found_by_text_and_architecture() {
        let folder = std::env::temp_dir().join(format!("beit2-cubins-{}", std::process::id()));
        let settings = GpuSettings { kernels: Some(folder.clone()), ..GpuSettings::default() };
        assert_eq!(find(&SOURCE, "sm_90a", &settings), None);
        let file = folder.join(file_name(&stem(&SOURCE, "sm_90a"), (12, 9)));
        kept::write(&file, b"code").unwrap();
        let changed = Source { text: "#include \"device.cuh\"\nint y;", ..SOURCE };
        let found = [(&SOURCE, "sm_90a"), (&SOURCE, "sm_90"), (&changed, "sm_90a")]
            .map(|(source, arch)| find(source, arch, &settings));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, [Some(file), None, None]);
    }

    #[test]
    fn architectures_have_nvrtcs_names() {
        let names = [(8, 0), (8, 9), (9, 0), (10, 0)].map(arch);
        assert_eq!(names, ["sm_80", "sm_89", "sm_90a", "sm_100a"]);
    }
}
