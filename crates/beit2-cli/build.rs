//! Lists what is put into the program: the recipes, and the quickstart's images and teacher.
//!
//! Why a build script: the lists follow the folders, so that a new recipe or shard needs no other change,
//! and the crate also builds where the images have not been made yet (`scripts/`).

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../..");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    println!("cargo:rerun-if-changed=build.rs");

    let mut text = String::new();
    let recipes = files(&root.join("recipes"), ".toml")?;
    list(&mut text, "RECIPES", "(&str, &str)", "include_str!", &recipes, ".toml");

    let (mut train, mut val, mut teacher) = (Vec::new(), Vec::new(), Vec::new());
    if env::var_os("CARGO_FEATURE_BUNDLED").is_some() {
        let mut shards = files(&root.join("assets/quickstart"), ".tar")?;
        shards.retain(|shard| is_tar(shard));
        for shard in shards {
            match name_of(&shard, "") {
                name if name.starts_with("train-") => train.push(shard),
                name if name.starts_with("val-") => val.push(shard),
                _ => {}
            }
        }
        teacher = files(&root.join("assets/quickstart"), "tiny_teacher.safetensors")?;
    }
    let bytes = "(&str, &[u8])";
    list(&mut text, "TRAIN", bytes, "include_bytes!", &train, "");
    list(&mut text, "VAL", bytes, "include_bytes!", &val, "");
    list(&mut text, "TEACHER", bytes, "include_bytes!", &teacher, "");
    fs::write(out.join("embedded.rs"), text)
}

/// The sorted files of a folder whose names end in `ending`; none when there is no such folder.
fn files(folder: &Path, ending: &str) -> io::Result<Vec<PathBuf>> {
    println!("cargo:rerun-if-changed={}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = name_of(&path, "");
        if path.is_file() && name.ends_with(ending) && !name.starts_with('.') {
            println!("cargo:rerun-if-changed={}", path.display());
            found.push(path.canonicalize()?);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether the file is a whole tar archive, not one that is being written.
fn is_tar(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.len() >= 1024 && meta.len().is_multiple_of(512))
}

fn name_of(path: &Path, ending: &str) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.strip_suffix(ending).map(str::to_owned).unwrap_or(name)
}

/// Appends `pub static NAME: &[kind] = &[("name", include!("path")), …];`.
fn list(text: &mut String, name: &str, kind: &str, include: &str, files: &[PathBuf], ending: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "pub(crate) static {name}: &[{kind}] = &[");
    for file in files {
        let _ =
            writeln!(text, "    ({:?}, {include}({:?})),", name_of(file, ending), file.display().to_string());
    }
    let _ = writeln!(text, "];");
}
