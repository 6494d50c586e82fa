//! Lists the recipes that are put into the program, so that a new file in `recipes/` needs no other change.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=recipes");
    if let Err(error) = list_recipes() {
        println!("cargo::error={error}");
    }
}

fn list_recipes() -> Result<(), String> {
    let folder = variable("CARGO_MANIFEST_DIR")?.join("recipes");
    let recipes = recipes(&folder).map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    if recipes.is_empty() {
        return Err(format!("{} holds no recipe (*.toml); the program needs them", folder.display()));
    }
    let mut text = String::from("static RECIPES: &[(&str, &str)] = &[\n");
    for path in recipes {
        println!("cargo::rerun-if-changed={}", path.display());
        let name = path.file_stem().unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    ({name:?}, include_str!({path:?})),");
    }
    text.push_str("];\n");
    let list = variable("OUT_DIR")?.join("recipes.rs");
    fs::write(&list, text).map_err(|error| format!("cannot write {}: {error}", list.display()))
}

/// A folder that Cargo names.
fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("Cargo sets no {name}"))
}

/// The recipes of the folder, sorted by name.
fn recipes(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.extension().is_some_and(|extension| extension == "toml") && !hidden {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
