//! What the CUDA backend needs: NVIDIA's driver, the run-time compiler NVRTC, CUDA's include files, and NCCL for
//! several GPUs.
//!
//! Names and search orders are those of cudarc 0.19 (libraries) and cubecl-cuda 0.10 (include files).

use std::env;
use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};

use libloading::Library;
use serde::Serialize;

use super::{Need, Opened, Survey, folder_of, hidden, keep, open, place};

/// The major version whose names the bindings try first, as they are compiled without a toolkit.
const MAJOR: &str = "13";

/// The feature that needs all of them.
const CUDA: &str = "cuda";

const DRIVER: &str = "CUDA driver";
const COMPILER: &str = "CUDA compiler";
const HEADERS: &str = "CUDA headers";
const NCCL: &str = "CUDA NCCL";

/// A GPU, as the driver describes it.
#[derive(Debug, Serialize)]
pub struct Gpu {
    /// Value of `--device`.
    pub device: String,
    /// The maker's name.
    pub name: String,
    /// All of its memory.
    pub memory_bytes: u64,
}

/// A version of CUDA: major, minor.
type Version = (i32, i32);

pub(super) fn survey() -> Survey {
    let (driver, version, gpus) = driver();
    let needs = vec![driver, compiler(version), headers(&toolkit()), nccl()];
    Survey { needs, nvidia_driver: driver_release(), gpus }
}

/// The names under which the bindings look for a library, in their order.
fn names(stem: &str) -> Vec<String> {
    let plain = format!("lib{stem}.so");
    let numbered = [MAJOR, "12", "11", "10", "9", "1"].map(|major| format!("{plain}.{major}"));
    std::iter::once(plain).chain(numbered).collect()
}

/// Where include files are looked for: `CUDA_PATH` alone if it is set, else the first usual place that exists.
fn toolkit() -> Toolkit {
    if let Some(path) = env::var_os("CUDA_PATH") {
        return Toolkit { root: Some(path.into()), named: true };
    }
    let usual = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let distribution = || Path::new("/usr/bin/nvcc").exists().then(|| PathBuf::from("/usr"));
    Toolkit { root: usual.or_else(distribution), named: false }
}

struct Toolkit {
    root: Option<PathBuf>,
    /// By CUDA_PATH.
    named: bool,
}

/// Folders that may hold CUDA's libraries without the loader's knowledge.
fn unseen_folders() -> Vec<PathBuf> {
    let conda = env::var_os("CONDA_PREFIX").map(PathBuf::from);
    let roots = [toolkit().root, Some("/usr/local/cuda".into()), Some("/opt/cuda".into()), conda];
    let below = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];
    let mut folders: Vec<PathBuf> =
        roots.into_iter().flatten().flat_map(|root| below.map(|name| root.join(name))).collect();
    // Python packages of NVIDIA: …/lib/python3.12/site-packages/nvidia/cu13/lib.
    let children = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        paths
    };
    if let Some(venv) = env::var_os("VIRTUAL_ENV") {
        for python in children(&Path::new(&venv).join("lib")) {
            folders.extend(children(&python.join("site-packages/nvidia")).into_iter().map(|p| p.join("lib")));
        }
    }
    folders
}

fn driver() -> (Need, Option<Version>, Vec<Gpu>) {
    let missing = |problem: String| (Need::missing(DRIVER, CUDA, problem), None, Vec::new());
    match open(&names("cuda")) {
        Opened::Nowhere => missing(
            "libcuda.so.1 is missing: install NVIDIA's driver (Debian: apt install nvidia-driver libcuda1; \
             Ubuntu: ubuntu-drivers install); a container must be started with its GPUs (--gpus all)"
                .into(),
        ),
        Opened::No { file, why } => {
            missing(format!("{file} cannot be opened ({why}): install NVIDIA's driver again"))
        }
        Opened::Yes { library, file } => {
            // SAFETY: the signatures are those of cuda.h, and every pointer is to memory of the right type.
            let queried = unsafe { query_driver(&library) };
            let place = place(&file);
            keep(library);
            match queried {
                Ok((version, gpus)) => {
                    (Need::works(DRIVER, CUDA, place, Some(version_text(version))), Some(version), gpus)
                }
                Err(why) => {
                    let problem = Some(format!("it does not start: {why}; nvidia-smi tells more"));
                    let found = Some(place);
                    let need = Need { name: DRIVER, purpose: CUDA, found, version: None, problem };
                    (need, None, Vec::new())
                }
            }
        }
    }
}

fn version_text((major, minor): Version) -> String {
    format!("{major}.{minor}")
}

fn driver_release() -> Option<String> {
    let text = std::fs::read_to_string("/sys/module/nvidia/version").ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Asks the driver for its version and GPUs. Makes no context, so no GPU memory is taken.
///
/// # Safety
/// `library` must be a CUDA driver.
unsafe fn query_driver(library: &Library) -> Result<(Version, Vec<Gpu>), String> {
    type Status = c_int;
    /// Bytes for a GPU's name; the longest today have 40.
    const NAME: usize = 256;
    // SAFETY: the caller's promise; the types are those of cuda.h.
    unsafe {
        let get = |name: &str| format!("it has no {name}, so it is no driver for CUDA");
        macro_rules! function {
            ($name:literal, $signature:ty) => {
                library.get::<$signature>($name.as_bytes()).map_err(|_| get($name))?
            };
        }
        let init = function!("cuInit", unsafe extern "C" fn(u32) -> Status);
        let driver_version = function!("cuDriverGetVersion", unsafe extern "C" fn(*mut c_int) -> Status);
        let count_of = function!("cuDeviceGetCount", unsafe extern "C" fn(*mut c_int) -> Status);
        let device_of = function!("cuDeviceGet", unsafe extern "C" fn(*mut c_int, c_int) -> Status);
        let name_of = function!("cuDeviceGetName", unsafe extern "C" fn(*mut c_char, c_int, c_int) -> Status);
        let memory_of = function!("cuDeviceTotalMem_v2", unsafe extern "C" fn(*mut usize, c_int) -> Status);
        let error_string =
            function!("cuGetErrorString", unsafe extern "C" fn(Status, *mut *const c_char) -> Status);
        let ok = |status: Status| match status {
            0 => Ok(()),
            code => {
                let mut text = std::ptr::null();
                let known = error_string(code, &mut text) == 0 && !text.is_null();
                let text =
                    if known { CStr::from_ptr(text).to_string_lossy() } else { "unknown error".into() };
                Err(format!("{text} (error {code})"))
            }
        };
        ok(init(0))?;
        let (mut number, mut count) = (0, 0);
        ok(driver_version(&mut number))?;
        ok(count_of(&mut count))?;
        let mut gpus = Vec::new();
        for at in 0..count {
            let (mut device, mut memory, mut name) = (0, 0, [0 as c_char; NAME]);
            ok(device_of(&mut device, at))?;
            ok(name_of(name.as_mut_ptr(), NAME as c_int, device))?;
            ok(memory_of(&mut memory, device))?;
            name[NAME - 1] = 0;
            let name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
            gpus.push(Gpu { device: format!("cuda:{at}"), name, memory_bytes: memory as u64 });
        }
        Ok(((number / 1000, number % 1000 / 10), gpus))
    }
}

/// NVRTC, which compiles kernels when they are first used. `driver` is the newest CUDA that the driver knows.
fn compiler(driver: Option<Version>) -> Need {
    let pip = match driver {
        // Packages for CUDA 12 have other names and folders.
        Some((12, minor)) => {
            format!("'nvidia-cuda-nvrtc-cu12==12.{minor}.*' and put its folder nvidia/cuda_nvrtc/lib")
        }
        Some((major, minor)) => {
            format!("'nvidia-cuda-nvrtc=={major}.{minor}.*' and put its folder nvidia/cu{major}/lib")
        }
        None => format!("nvidia-cuda-nvrtc and put its folder nvidia/cu{MAJOR}/lib"),
    };
    let pip = format!("pip install {pip} into LD_LIBRARY_PATH");
    let get = format!("apt install nvidia-cuda-toolkit (Debian, Ubuntu), or {pip}");
    match open(&names("nvrtc")) {
        Opened::Nowhere => {
            let problem = match hidden("libnvrtc", &unseen_folders()) {
                Some(file) => unseen(&file),
                None => format!("libnvrtc.so.{MAJOR} is missing: {get}"),
            };
            Need::missing(COMPILER, CUDA, problem)
        }
        Opened::No { file, why } => {
            Need::missing(COMPILER, CUDA, format!("{file} cannot be opened ({why}): {get}"))
        }
        Opened::Yes { library, file } => {
            // SAFETY: nvrtc.h declares it so.
            let version = unsafe {
                let ask =
                    library.get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(b"nvrtcVersion");
                let (mut major, mut minor) = (0, 0);
                ask.ok().filter(|ask| ask(&mut major, &mut minor) == 0).map(|_| (major, minor))
            };
            let place = place(&file);
            keep(library);
            let Some(version) = version else {
                let problem = format!("{place} does not tell its version, so it is no NVRTC: {get}");
                return Need::missing(COMPILER, CUDA, problem);
            };
            let problem = driver.filter(|&driver| version > driver).map(|driver| {
                let (newer, older) = (version_text(version), version_text(driver));
                format!(
                    "its code is for CUDA {newer}, too new for this driver ({older}): update it, or {pip}"
                )
            });
            Need {
                name: COMPILER,
                purpose: CUDA,
                found: Some(place),
                version: Some(version_text(version)),
                problem,
            }
        }
    }
}

/// A library that is here, but not where the loader looks.
fn unseen(file: &Path) -> String {
    format!("{} is not where the loader looks: put {} into LD_LIBRARY_PATH", file.display(), folder_of(file))
}

/// CUDA's include files, which kernels include: the run time's, those of half precision, tensor cores and barriers.
fn headers(toolkit: &Toolkit) -> Need {
    const WANTED: [&str; 5] =
        ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "crt/mma.h", "cooperative_groups.h"];
    let get = format!(
        "apt install nvidia-cuda-toolkit (Debian, Ubuntu), or pip install nvidia-cuda-runtime \
         nvidia-cuda-crt nvidia-cuda-cccl and set CUDA_PATH to their folder nvidia/cu{MAJOR}"
    );
    let Some(root) = &toolkit.root else {
        let places = "neither CUDA_PATH, /usr/local/cuda, /opt/cuda nor /usr/bin/nvcc is there";
        return Need::missing(HEADERS, CUDA, format!("{places}: {get}"));
    };
    let include = root.join("include");
    let mut absent: Vec<&str> = WANTED.into_iter().filter(|name| !include.join(name).exists()).collect();
    // The C++ library moved into a folder of its own in CUDA 13.
    if !["cuda/barrier", "cccl/cuda/barrier"].iter().any(|name| include.join(name).exists()) {
        absent.push("cuda/barrier");
    }
    if absent.is_empty() {
        return Need::works(HEADERS, CUDA, include.display().to_string(), None);
    }
    let by = if toolkit.named { " (CUDA_PATH)" } else { "" };
    let problem = format!("{}{by} has no {}: {get}", include.display(), absent.join(", "));
    Need::missing(HEADERS, CUDA, problem)
}

/// NCCL, over which GPUs exchange gradients.
fn nccl() -> Need {
    const PURPOSE: &str = "cuda with several GPUs";
    let get = "apt install libnccl-dev, which makes the name libnccl.so";
    match open(&names("nccl")) {
        Opened::Yes { library, file } => {
            // SAFETY: nccl.h declares it so.
            let version = unsafe {
                let ask = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"ncclGetVersion");
                let mut number = 0;
                ask.ok().filter(|ask| ask(&mut number) == 0).map(|_| number)
            };
            let place = place(&file);
            keep(library);
            let version_text =
                |number| format!("{}.{}.{}", number / 10_000, number % 10_000 / 100, number % 100);
            Need::works(NCCL, PURPOSE, place, version.map(version_text))
        }
        Opened::No { file, why } => {
            Need::missing(NCCL, PURPOSE, format!("{file} cannot be opened ({why}): {get}"))
        }
        Opened::Nowhere => {
            // The bindings know the name without a number only; packages for running programs have libnccl.so.2.
            let problem = match open(&["libnccl.so.2".to_owned()]) {
                Opened::Yes { library, file } => {
                    let at = place(&file);
                    keep(library);
                    format!("it is opened as libnccl.so; here is {at} only: {get}, or make such a link")
                }
                _ => match hidden("libnccl", &unseen_folders()) {
                    Some(file) => format!("{}, under the name libnccl.so", unseen(&file)),
                    None => format!("libnccl.so is missing, which one GPU does not need: {get}"),
                },
            };
            Need::missing(NCCL, PURPOSE, problem)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn names_are_those_of_the_bindings() {
        let names = names("nvrtc");
        assert_eq!(names[0], "libnvrtc.so");
        assert!(names.contains(&"libnvrtc.so.12".to_owned()) && names.contains(&"libnvrtc.so.13".to_owned()));
    }

    #[test]
    fn headers_are_told_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let toolkit = Toolkit { root: Some(dir.path().to_owned()), named: true };
        for name in
            ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "cooperative_groups.h", "cccl/cuda/barrier"]
        {
            let path = dir.path().join("include").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let problem = headers(&toolkit).problem.unwrap();
        assert!(
            problem.contains("(CUDA_PATH) has no crt/mma.h: ") && problem.contains("nvidia-cuda-crt"),
            "{problem}"
        );
        fs::create_dir(dir.path().join("include/crt")).unwrap();
        fs::write(dir.path().join("include/crt/mma.h"), "").unwrap();
        let need = headers(&toolkit);
        assert!(need.problem.is_none() && need.found.unwrap().ends_with("include"));
        let nothing = headers(&Toolkit { root: None, named: false });
        assert!(nothing.problem.unwrap().contains("/usr/local/cuda"));
    }
}
