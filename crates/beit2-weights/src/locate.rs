//! Which file is meant by a path: a file, a folder as Hugging Face and timm make it, the index of a sharded model.

use std::fs;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value;

use crate::checkpoint::{Checkpoint, ReadOptions};
use crate::error::WeightsError;
use crate::published;

/// What a folder's weights are called, the preferred first.
const IN_FOLDERS: [&str; 8] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model_best.safetensors",
    "pytorch_model.safetensors",
];

/// Weights of other software, by the ending of their names, for a message.
const FOREIGN: [(&str, &str); 8] = [
    ("msgpack", "Flax"),
    ("h5", "Keras or TensorFlow"),
    ("onnx", "ONNX"),
    ("gguf", "GGUF"),
    ("pb", "TensorFlow"),
    ("tflite", "TensorFlow Lite"),
    ("ot", "rust-bert"),
    ("mlmodel", "Core ML"),
];

/// The most shards of a model, and the longest index. The largest public models have a few hundred shards.
const MAX_SHARDS: usize = 4096;
const MAX_INDEX: u64 = 64 << 20;

/// The weight file (or shard index) that a path names: itself, or of a folder the file in it.
///
/// # Errors
/// Nothing at that place, with the way to get a published or Hugging Face model of that name; a folder without weights.
pub fn locate(path: &Path) -> Result<PathBuf, WeightsError> {
    let layout = |problem: String| Err(WeightsError::Layout { path: path.to_path_buf(), problem });
    let place = |problem: String| Err(WeightsError::Place { path: path.to_path_buf(), problem });
    if !path.exists() {
        return match fs::symlink_metadata(path) {
            Ok(_) => place("is a link to a file that does not exist".to_owned()),
            Err(reason) => match way_to(path).as_str() {
                "" => Err(WeightsError::Io { path: path.to_path_buf(), action: "open", reason }),
                way => layout(format!("No such file or folder{way}")),
            },
        };
    }
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if let Some(file) = IN_FOLDERS.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
        return Ok(file);
    }
    let mut names: Vec<String> = fs::read_dir(path)
        .map_err(|reason| WeightsError::Io { path: path.to_path_buf(), action: "read", reason })?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    let ending =
        |name: &str| name.rsplit_once('.').map(|(_, ending)| ending.to_lowercase()).unwrap_or_default();
    let own: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| ["safetensors", "pth", "pt", "bin", "ckpt"].contains(&ending(name).as_str()))
        .collect();
    let foreign = names.iter().find_map(|name| {
        let (_, software) = FOREIGN.iter().find(|(known, _)| *known == ending(name))?;
        Some((name, software))
    });
    match (own.as_slice(), foreign) {
        ([], Some((name, software))) => place(format!(
            "holds weights of {software} only ({name}), which are not read; get the model's safetensors or PyTorch file"
        )),
        ([], None) => {
            place(match runs_in(path).as_slice() {
                [] => {
                    "is a folder without model.safetensors or pytorch_model.bin, and there are no other weights inside it; name a run \
                     directory, the folder of a model or a weight file"
                        .to_owned()
                }
                runs => format!(
                    "is a folder without model.safetensors or pytorch_model.bin; name one of the runs inside it: {}",
                    runs.join(", ")
                ),
            })
        }
        (several, _) => place(format!(
            "is a folder without model.safetensors or pytorch_model.bin; name the file in it: {}",
            several.iter().take(8).copied().collect::<Vec<_>>().join(", ")
        )),
    }
}

/// The first run directories in a folder, by name.
fn runs_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let runs = entries.map(|entry| entry.path()).filter(|path| path.join("run.toml").is_file());
    let mut names: Vec<String> = runs.map(|path| path.display().to_string()).collect();
    names.sort();
    names.truncate(8);
    names
}

/// How to get what a name that is no path stands for, as the end of a sentence.
fn way_to(path: &Path) -> String {
    let text = path.to_string_lossy();
    let last = path.file_name().unwrap_or_default().to_string_lossy();
    if published::find(&last).is_some() || published::teacher(&last).is_some() {
        return format!("; `beit2 weights fetch {last}` downloads this published file and prints its path");
    }
    let hub = text.trim_start_matches("hf-hub:").trim_start_matches("https://huggingface.co/");
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let weights = ["pth", "pt", "safetensors", "bin", "ckpt"]
        .iter()
        .any(|ending| last.ends_with(&format!(".{ending}")));
    let how = |id: &str| {
        format!(
            "; if it is a model of the Hugging Face Hub, download it first (`hf download {id} --local-dir FOLDER`) and \
             name the folder"
        )
    };
    match hub.split('/').collect::<Vec<_>>().as_slice() {
        [owner, model] if plain(owner) && plain(model) && !weights && !Path::new(owner).exists() => how(hub),
        // timm's names, such as beit_base_patch16_224.in22k_ft_in22k.
        [model] if plain(model) && model.contains("_patch") && !weights => how(&format!("timm/{model}")),
        _ => String::new(),
    }
}

/// Whether a file is the index of a sharded model, by its name.
pub(crate) fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".index.json"))
}

/// The shards that an index names, in the order of their names, and which tensors it says are in each.
pub(crate) fn shards(index: &Path) -> Result<Vec<(PathBuf, Vec<String>)>, WeightsError> {
    let layout = |problem: String| WeightsError::Layout { path: index.to_path_buf(), problem };
    let io = |reason| WeightsError::Io { path: index.to_path_buf(), action: "read", reason };
    if fs::metadata(index).map_err(io)?.len() > MAX_INDEX {
        return Err(layout(format!("has more than {MAX_INDEX} bytes, too many for an index of shards")));
    }
    let value: Value = serde_json::from_slice(&fs::read(index).map_err(io)?)
        .map_err(|error| layout(format!("is not valid JSON ({error}); download it again")))?;
    let Some(map) = value["weight_map"].as_object().filter(|map| !map.is_empty()) else {
        return Err(layout("has no `weight_map`, so it is not the index of a sharded model".to_owned()));
    };
    let mut files: std::collections::BTreeMap<&str, Vec<String>> = Default::default();
    for (tensor, file) in map {
        // Only names of files beside the index: an index must not reach elsewhere.
        let file =
            file.as_str().filter(|file| !file.is_empty() && !file.contains(['/', '\\']) && *file != "..");
        let Some(file) = file else {
            return Err(layout(format!("tensor `{tensor}` is not in a file beside the index")));
        };
        files.entry(file).or_default().push(tensor.clone());
    }
    if files.len() > MAX_SHARDS {
        return Err(layout(format!("names {} shards, more than {MAX_SHARDS}", files.len())));
    }
    let folder = index.parent().unwrap_or(Path::new(""));
    let shards: Vec<_> = files.into_iter().map(|(file, tensors)| (folder.join(file), tensors)).collect();
    let missing: Vec<String> = shards
        .iter()
        .filter(|(path, _)| !path.is_file())
        .map(|(path, _)| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
        .collect();
    match missing.as_slice() {
        [] => Ok(shards),
        [first, ..] => Err(layout(format!(
            "{} of {} shards are missing, for example {first}; download them all into this folder",
            missing.len(),
            shards.len()
        ))),
    }
}

/// Reads all shards of an index as one checkpoint.
pub(crate) fn read_sharded(index: &Path, options: &ReadOptions<'_>) -> Result<Checkpoint, WeightsError> {
    let layout = |problem: String| WeightsError::Layout { path: index.to_path_buf(), problem };
    let mut whole: Option<Checkpoint> = None;
    for (path, expected) in shards(index)? {
        // Prefixes are looked at when all names are together.
        let raw = ReadOptions { keep_ddp_prefix: true, ..*options };
        let shard = crate::read_file(&path, &raw)?;
        if let Some(name) = expected.iter().find(|name| !shard.tensors.contains_key(*name)) {
            return Err(layout(format!("tensor `{name}` is not in {}, where it should be", path.display())));
        }
        match &mut whole {
            None => whole = Some(shard),
            Some(whole) => {
                for (name, view) in shard.tensors {
                    if whole.tensors.insert(name.clone(), view).is_some() {
                        return Err(layout(format!("tensor `{name}` is in two shards")));
                    }
                }
                whole.metadata.extend(shard.metadata);
                whole.ignored.extend(shard.ignored);
            }
        }
    }
    let whole = whole.ok_or_else(|| layout("names no shards".to_owned()))?;
    Ok(whole.renamed(index, options))
}

/// The SHA-256 of a weight file; of a sharded model that of its shards' together.
///
/// # Errors
/// A file that cannot be read, an index without its shards.
pub fn fingerprint(path: &Path) -> Result<String, WeightsError> {
    if !is_index(path) {
        return crate::sha256(path);
    }
    let mut all: IndexMap<String, String> = IndexMap::new();
    for (shard, _) in shards(path)? {
        let name = shard.file_name().unwrap_or_default().to_string_lossy().into_owned();
        all.insert(name, crate::sha256(&shard)?);
    }
    let text: String = all.iter().map(|(name, sha)| format!("{sha}  {name}\n")).collect();
    Ok(crate::hash::of_bytes(text.as_bytes()))
}
