//! What the CUDA backend needs: NVIDIA's driver, the run-time compiler NVRTC, CUDA's include files, cuBLASLt for fast
//! matmuls, and NCCL for several GPUs.
//!
//! Names and search orders are those of cudarc 0.19 (libraries), cubecl-cuda 0.10 (include files) and beit2-kernels
//! (cuBLASLt). Libraries that the loader doesn't see are opened by their path before the backend asks for them by
//! name: [`open_unseen`].

use std::env;
use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::Once;

use libloading::Library;
use serde::Serialize;

use super::{Need, Opened, Survey, hidden, keep, open, place};

/// The major version whose names the bindings try first, as they are compiled without a toolkit.
const MAJOR: &str = "13";

/// The feature that needs all of them.
const CUDA: &str = "cuda";

const DRIVER: &str = "CUDA driver";
const COMPILER: &str = "CUDA compiler";
const HEADERS: &str = "CUDA headers";
const BLAS: &str = "CUDA cuBLASLt";
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
    open_unseen();
    let (driver, version, gpus) = driver();
    let needs = vec![driver, compiler(version), headers(&toolkit()), blas(version), nccl()];
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
    // Python packages of NVIDIA: …/lib/python3.12/site-packages/nvidia/cu13/lib. An active environment comes first.
    let prefix = |name: &str| env::var_os(name).map(PathBuf::from);
    let home = prefix("HOME").map(|home| home.join(".local"));
    let places = [prefix("VIRTUAL_ENV"), prefix("CONDA_PREFIX"), home, Some("/usr/local".into())];
    for python in places.into_iter().flatten().flat_map(|place| children(&place.join("lib"))) {
        for packages in ["site-packages/nvidia", "dist-packages/nvidia"] {
            // cu13, or cublas, cuda_nvrtc and nccl of CUDA 12.
            folders.extend(children(&python.join(packages)).into_iter().map(|package| package.join("lib")));
        }
    }
    folders
}

/// What a folder holds, in order; nothing if it isn't one.
fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// Opens what lies in the folders of toolkits and Python packages where the loader doesn't look, once. A later
/// opening by file name, in this program or in the framework, then finds it: the loader knows the names of what is open.
pub fn open_unseen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if !cfg!(target_os = "linux") {
            return;
        }
        let folders = unseen_folders();
        // The version that the driver knows, else the newest.
        let majors = if driver_major() == Some(12) { [12, 13] } else { [13, 12] };
        // The compiler opens its built-in functions by name when it first compiles.
        for (stem, companion) in [("libnvrtc", Some("libnvrtc-builtins")), ("libcublasLt", None)] {
            let names = majors.map(|major| format!("{stem}.so.{major}"));
            open_from(&folders, &[format!("{stem}.so")], &names, companion);
        }
        open_from(&folders, &["libnccl.so".into()], &["libnccl.so.2".into()], None);
    });
}

/// Opens the first of `names` in one of `folders`, unless the loader finds one of them, or of `plain`, itself.
fn open_from(folders: &[PathBuf], plain: &[String], names: &[String], companion: Option<&str>) {
    let all: Vec<String> = plain.iter().chain(names).cloned().collect();
    if let Opened::Yes { library, .. } = open(&all) {
        return keep(library);
    }
    let mut files = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    if let Some(file) = files.find(|file| file.exists()) {
        let folder = file.parent().unwrap_or(Path::new("/")).to_owned();
        let companion = companion.and_then(|stem| hidden(stem, &[folder]));
        for file in companion.into_iter().chain([file]) {
            if let Opened::Yes { library, .. } = open(&[file.display().to_string()]) {
                keep(library);
            }
        }
    }
}

/// The newest CUDA that the driver knows.
fn driver_major() -> Option<c_int> {
    let Opened::Yes { library, .. } = open(&names("cuda")) else { return None };
    // SAFETY: cuda.h declares it so, and allows it before cuInit.
    let number = unsafe {
        let ask = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDriverGetVersion");
        let mut number = 0;
        ask.ok().filter(|ask| ask(&mut number) == 0).map(|_| number)
    };
    keep(library);
    number.map(|number| number / 1000)
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
        Some((12, minor)) => format!("'nvidia-cuda-nvrtc-cu12==12.{minor}.*'"),
        Some((major, minor)) => format!("'nvidia-cuda-nvrtc=={major}.{minor}.*'"),
        None => "nvidia-cuda-nvrtc".to_owned(),
    };
    let pip = format!("pip install {pip}");
    let get = format!("apt install nvidia-cuda-toolkit (Debian, Ubuntu), or {pip}");
    match open(&names("nvrtc")) {
        Opened::Nowhere => Need::missing(COMPILER, CUDA, format!("libnvrtc.so.{MAJOR} is missing: {get}")),
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

/// cuBLASLt, without which the portable path runs. `driver` is the newest CUDA that the driver knows.
fn blas(driver: Option<Version>) -> Need {
    const PURPOSE: &str = "cuda at full speed";
    let pip = match driver {
        Some((12, _)) => "nvidia-cublas-cu12".to_owned(),
        Some((major, _)) => format!("'nvidia-cublas=={major}.*'"),
        None => "nvidia-cublas".to_owned(),
    };
    let get = format!("pip install {pip}, or apt install nvidia-cuda-toolkit (Debian, Ubuntu)");
    let without = "so the slower portable kernels are used";
    let missing = |problem: String| Need::missing(BLAS, PURPOSE, problem);
    // The order in which beit2-kernels tries them.
    match open(&["13", "12"].map(|major| format!("libcublasLt.so.{major}"))) {
        Opened::Nowhere => missing(format!("libcublasLt.so.{MAJOR} is missing, {without}: {get}")),
        Opened::No { file, why } => missing(format!("{file} cannot be opened ({why}), {without}: {get}")),
        Opened::Yes { library, file } => {
            // SAFETY: cublasLt.h declares it so.
            let number = unsafe {
                let ask = library.get::<unsafe extern "C" fn() -> usize>(b"cublasLtGetVersion");
                ask.ok().map(|ask| ask())
            };
            let place = place(&file);
            keep(library);
            let Some(number) = number else {
                return missing(format!("{place} does not tell its version, {without}: {get}"));
            };
            let major = number / 10_000;
            let problem = driver.filter(|(newest, _)| major > *newest as usize).map(|newest| {
                let newest = version_text(newest);
                format!("it is for CUDA {major}, too new for this driver ({newest}), {without}: {get}")
            });
            let version = Some(format!("{major}.{}.{}", number % 10_000 / 100, number % 100));
            Need { name: BLAS, purpose: PURPOSE, found: Some(place), version, problem }
        }
    }
}

/// NCCL, over which GPUs exchange gradients.
fn nccl() -> Need {
    const PURPOSE: &str = "cuda with several GPUs";
    let get = "pip install nvidia-nccl-cu13 (nvidia-nccl-cu12 for CUDA 12), or apt install libnccl2 from NVIDIA's repository";
    let without = "so several GPUs exchange gradients through host memory";
    match open(&["libnccl.so.2", "libnccl.so"].map(str::to_owned)) {
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
            Need::missing(NCCL, PURPOSE, format!("{file} cannot be opened ({why}), {without}: {get}"))
        }
        Opened::Nowhere => Need::missing(NCCL, PURPOSE, format!("libnccl.so.2 is missing, {without}: {get}")),
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
    fn a_library_in_a_folder_of_python_packages_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("nvidia/cu13/lib");
        fs::create_dir_all(&folder).unwrap();
        // Any library will do: the name of the file is what the search goes by.
        let Opened::Yes { library, .. } = open(&["libm.so.6".into()]) else {
            return; // Not on a system with glibc.
        };
        keep(library);
        fs::copy(place("libm.so.6"), folder.join("libbeit2test.so.13")).unwrap();
        let names = ["libbeit2test.so.12".to_owned(), "libbeit2test.so.13".to_owned()];
        open_from(&[dir.path().to_owned(), folder.clone()], &[], &names, None);
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.contains(&folder.join("libbeit2test.so.13").display().to_string()));
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
