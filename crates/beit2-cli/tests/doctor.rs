//! What `beit2 doctor` says about libraries for GPUs, with small libraries in place of NVIDIA's.

#![allow(clippy::unwrap_used)]
// The backend itself would open them too, and they cannot compute.
#![cfg(all(target_os = "linux", not(feature = "cuda")))]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::World;

/// A driver of CUDA 13.0 with two GPUs. `STATUS` is what it answers when it is asked to start.
const DRIVER: &str = r#"
    #include <stddef.h>
    #include <string.h>
    int cuInit(unsigned flags) { return STATUS; }
    int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
    int cuDeviceGetCount(int *count) { *count = 2; return 0; }
    int cuDeviceGet(int *device, int at) { *device = at + 7; return 0; }
    int cuDeviceGetName(char *name, int size, int device) {
        strncpy(name, device == 7 ? "First GPU" : "Second GPU", size);
        return 0;
    }
    int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)device << 30; return 0; }
    int cuGetErrorString(int status, const char **words) { *words = "no device is detected"; return 0; }
"#;

const COMPILER: &str = "int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 2; return 0; }";

/// Compiles C to `lib/NAME` of the world.
fn library(world: &World, name: &str, code: &str) {
    let folder = world.path("lib");
    fs::create_dir_all(&folder).unwrap();
    let source = world.path("source.c");
    fs::write(&source, code).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(folder.join(name)).arg(&source);
    assert!(compiler.status().expect("Rust links with cc, so it is here").success());
}

/// The whole answer in a world whose libraries come first.
fn doctor(world: &World) -> Value {
    let mut command = world.command(&["doctor", "--json"]);
    command.env("LD_LIBRARY_PATH", world.path("lib")).env("CUDA_PATH", world.path("toolkit"));
    let ended: support::Ended = command.output().unwrap().into();
    serde_json::from_str(&ended.works().out).unwrap()
}

fn need<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let all = answer["gpu_needs"].as_array().unwrap();
    all.iter().find(|need| need["name"] == name).unwrap_or_else(|| panic!("no {name} in {answer}"))
}

fn problem<'a>(answer: &'a Value, name: &str) -> &'a str {
    need(answer, name)["problem"].as_str().unwrap_or_else(|| panic!("nothing wrong with {name} in {answer}"))
}

#[test]
fn gpus_versions_and_what_does_not_fit() {
    let world = World::new();
    library(&world, "libcuda.so", &DRIVER.replace("STATUS", "0"));
    library(&world, "libnvrtc.so", COMPILER);
    let answer = doctor(&world);
    let driver = need(&answer, "CUDA driver");
    let found = driver["found"].as_str().unwrap();
    assert!(found.ends_with("lib/libcuda.so") && driver["problem"].is_null(), "{driver}");
    assert_eq!(driver["version"], "13.0");
    assert_eq!(answer["gpus"][0]["name"], "First GPU");
    assert_eq!(answer["gpus"][1]["device"], "cuda:1");
    assert_eq!(answer["gpus"][1]["memory_bytes"], 8_u64 << 30);
    // A newer compiler's code does not load.
    let why = problem(&answer, "CUDA compiler");
    assert!(why.contains("CUDA 13.2") && why.contains("nvidia-cuda-nvrtc==13.0.*"), "{why}");
    assert!(problem(&answer, "CUDA headers").contains("toolkit/include (CUDA_PATH) has no cuda_runtime.h"));

    let mut people = world.command(&["doctor"]);
    let ended: support::Ended = people.env("LD_LIBRARY_PATH", world.path("lib")).output().unwrap().into();
    assert!(ended.works().out.contains("GPU cuda:1       Second GPU, 8.0 GiB"), "{}", ended.out);
}

#[test]
fn a_driver_that_does_not_start_is_told_with_its_own_words() {
    let world = World::new();
    library(&world, "libcuda.so", &DRIVER.replace("STATUS", "100"));
    let answer = doctor(&world);
    let why = problem(&answer, "CUDA driver");
    assert!(why.contains("no device is detected (error 100)"), "{why}");
    assert!(need(&answer, "CUDA driver")["found"].is_string());
    assert!(answer["gpus"].as_array().unwrap().is_empty());
}

#[test]
fn files_that_are_no_libraries_are_told() {
    let world = World::new();
    fs::create_dir(world.path("lib")).unwrap();
    let present = |name: &str| ["/usr/lib", "/usr/lib64"].iter().any(|root| contains(Path::new(root), name));
    for name in ["libcuda.so", "libnvrtc.so", "libnccl.so"] {
        fs::write(world.path("lib").join(name), "no library").unwrap();
    }
    let answer = doctor(&world);
    for (name, stem) in [("CUDA driver", "libcuda"), ("CUDA compiler", "libnvrtc"), ("CUDA NCCL", "libnccl")]
    {
        if present(stem) {
            println!("skipped: this machine has {stem}, which is found instead");
            continue;
        }
        let why = problem(&answer, name);
        assert!(why.contains(&format!("{stem}.so cannot be opened (")) && why.contains("install"), "{why}");
        assert!(need(&answer, name)["found"].is_null());
    }
}

#[test]
fn nccl_under_the_name_that_nobody_opens() {
    let world = World::new();
    library(&world, "libnccl.so.2", "int ncclGetVersion(int *number) { *number = 22703; return 0; }");
    let answer = doctor(&world);
    match need(&answer, "CUDA NCCL")["found"].as_str() {
        Some(other) => println!("skipped: this machine has {other}"),
        None => assert!(problem(&answer, "CUDA NCCL").contains("opened as libnccl.so; here is")),
    }
    library(&world, "libnccl.so", "int ncclGetVersion(int *number) { *number = 22703; return 0; }");
    let found = doctor(&world);
    assert_eq!(need(&found, "CUDA NCCL")["version"], "2.27.3");
}

/// Whether a folder, or one directly below it, has a file of this stem.
fn contains(folder: &Path, stem: &str) -> bool {
    let begins = |path: &Path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{stem}.so")))
    };
    let entries = |folder: &Path| {
        fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
    };
    entries(folder).any(|path| begins(&path) || entries(&path).any(|inner| begins(&inner)))
}
