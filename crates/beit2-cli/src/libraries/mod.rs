//! Libraries that GPU backends open when they start: which are here, and how to get those that are not.
//!
//! Nothing of this is linked, so a program with every backend starts anywhere. The price is that a missing
//! library shows as a panic deep inside the framework; `doctor` looks for each by the names that the backends
//! use. Only Linux is looked at.

mod cuda;
mod memory;
mod vulkan;

use std::fs;
use std::path::PathBuf;

use libloading::Library;
use serde::Serialize;

pub use cuda::Gpu;
#[cfg(feature = "cuda")]
pub use cuda::open_unseen;
pub use memory::gpu_memory_held_bytes;

/// What was found of everything that GPUs need.
#[derive(Debug, Default, Serialize)]
pub struct Survey {
    /// In the order in which they are needed.
    pub needs: Vec<Need>,
    /// Release of the part of NVIDIA's driver that is in the kernel, such as 580.95.05.
    pub nvidia_driver: Option<String>,
    /// NVIDIA's GPUs, in the order of `--device cuda:0`, `cuda:1`, ….
    pub gpus: Vec<Gpu>,
}

/// One thing that a backend needs.
#[derive(Debug, Serialize)]
pub struct Need {
    /// What it is called here.
    pub name: &'static str,
    /// The features that need it, for a reader.
    #[serde(rename = "for")]
    pub purpose: &'static str,
    /// What was found: a file, a folder, several; `None` if nothing was.
    pub found: Option<String>,
    /// Of what was found; of the driver, the newest CUDA that it knows.
    pub version: Option<String>,
    /// What keeps it from working, and what to do: one sentence. `None` when all is well.
    pub problem: Option<String>,
}

impl Need {
    fn works(name: &'static str, purpose: &'static str, found: String, version: Option<String>) -> Self {
        Self { name, purpose, found: Some(found), version, problem: None }
    }

    fn missing(name: &'static str, purpose: &'static str, problem: String) -> Self {
        Self { name, purpose, found: None, version: None, problem: Some(problem) }
    }
}

/// Looks for everything.
pub fn survey() -> Survey {
    if !cfg!(target_os = "linux") {
        return Survey::default();
    }
    let mut survey = cuda::survey();
    survey.needs.extend(vulkan::needs());
    survey
}

/// What trying to open a library under several names gave.
enum Opened {
    Yes {
        library: Library,
        file: String,
    },
    /// There is such a file, but the system cannot use it: why.
    No {
        file: String,
        why: String,
    },
    Nowhere,
}

/// Opens the first of `names` that can be opened, as the backends do it.
fn open(names: &[String]) -> Opened {
    let mut refused = Opened::Nowhere;
    for name in names {
        // SAFETY: these are the vendor's libraries, whose initialisers may run in any process; the backends open the
        // same files.
        match unsafe { Library::new(name) } {
            Ok(library) => return Opened::Yes { library, file: name.clone() },
            Err(error) => {
                let why = reason(&error);
                // The loader words the two cases differently, and has no codes for them.
                if !why.contains("No such file") && matches!(refused, Opened::Nowhere) {
                    refused = Opened::No { file: name.clone(), why };
                }
            }
        }
    }
    refused
}

/// What the loader says is wrong.
fn reason(error: &libloading::Error) -> String {
    let mut said = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(deeper) = source {
        said = deeper.to_string();
        source = deeper.source();
    }
    said
}

/// Where an opened library lies, by its file name; the name itself where the system does not tell.
fn place(file: &str) -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let of = |line: &str| line.find('/').map(|at| PathBuf::from(&line[at..]));
    // A name such as libx.so may lead to libx.so.13: what follows the stem differs.
    let stem = file.split(".so").next().unwrap_or(file);
    let lies = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix(stem).is_some_and(|rest| rest.starts_with(".so"))
    };
    let path = maps.lines().filter_map(of).find(lies);
    path.map_or_else(|| file.to_owned(), |path| path.display().to_string())
}

/// Keeps a library open to the end of the program: a driver's threads may outlive any handle.
fn keep(library: Library) {
    std::mem::forget(library);
}

/// A file whose name begins with `stem` and `.so` in one of the folders: what the loader did not see.
fn hidden(stem: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let begin = format!("{stem}.so");
    folders.iter().find_map(|folder| {
        let mut files: Vec<PathBuf> = fs::read_dir(folder)
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&begin)))
            .collect();
        files.sort();
        files.into_iter().next()
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn path(dir: &Path, name: &str) -> String {
        dir.join(name).display().to_string()
    }

    #[test]
    fn no_library_and_no_library_at_all_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(open(&[path(dir.path(), "libnone.so")]), Opened::Nowhere));
        fs::write(dir.path().join("libfake.so"), "no library").unwrap();
        match open(&[path(dir.path(), "libnone.so"), path(dir.path(), "libfake.so")]) {
            Opened::No { file, why } => {
                assert!(file.ends_with("libfake.so") && !why.is_empty() && !why.contains("None"), "{why}");
            }
            _ => panic!("a text file was opened"),
        }
    }

    #[test]
    fn a_library_that_the_loader_does_not_see_is_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("libnvrtc.so.13"), "").unwrap();
        fs::write(dir.path().join("libnvrtc-builtins.so.13"), "").unwrap();
        let folders = [dir.path().join("none"), dir.path().to_owned()];
        let found = hidden("libnvrtc", &folders).unwrap();
        assert!(found.ends_with("libnvrtc.so.13"));
        assert!(hidden("libnccl", &folders).is_none());
    }
}
