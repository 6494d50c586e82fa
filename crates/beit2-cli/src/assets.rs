//! Images and weights by the names that recipes use: files, run directories, and what is inside the program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use beit2::Error;
use beit2::train::Assets;
use beit2::weights::{self, WeightFile};
use beit2_data::Source;
use beit2_data::source::{self, StaticShard, TarSource};

use crate::bundled::{TRAIN, VAL, teacher};

const TRAIN_NAME: &str = "bundled:train";
pub const VAL_NAME: &str = "bundled:val";
const TEACHER_NAME: &str = "bundled:teacher";

/// What this program can open.
///
/// A source is listed once: the fingerprint, the check and the run use the same list, which for a million
/// files is worth keeping.
#[derive(Default)]
pub struct AssetStore {
    sources: Mutex<BTreeMap<String, Arc<dyn Source>>>,
}

impl Assets for AssetStore {
    fn source(&self, spec: &str) -> Result<Arc<dyn Source>, Error> {
        // Held while one opens, so that the threads of a group list a folder once.
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get(spec) {
            return Ok(source.clone());
        }
        let source: Arc<dyn Source> = match spec {
            TRAIN_NAME => Arc::new(shards(spec, TRAIN)?),
            VAL_NAME => Arc::new(shards(spec, VAL)?),
            _ => source::open(spec).map_err(|error| unknown_name(spec).unwrap_or(Error::Source(error)))?,
        };
        sources.insert(spec.to_owned(), source.clone());
        Ok(source)
    }

    fn weights(&self, spec: &str) -> Result<WeightFile, Error> {
        match (spec, teacher()) {
            (TEACHER_NAME, Some((name, bytes))) => weights::decode(bytes, name),
            (TEACHER_NAME, None) => Err(not_inside(spec)),
            _ => {
                let path = weights::locate(spec)?;
                weights::read(&path).map_err(|error| unknown_name(spec).unwrap_or(error))
            }
        }
    }
}

impl AssetStore {
    /// A value that changes when the weights do, for the identity of a run. Checks on the way that the file is
    /// there and is a weight file.
    pub fn weights_fingerprint(&self, spec: &str) -> anyhow::Result<String> {
        match (spec, teacher()) {
            (TEACHER_NAME, Some((_, bytes))) => return Ok(format!("{:016x}", fnv1a(bytes))),
            (TEACHER_NAME, None) => return Err(not_inside(spec).into()),
            _ => {}
        }
        if let Some(error) = unknown_name(spec) {
            return Err(error.into());
        }
        let path = weights::locate(spec)?;
        beit2_weights::read(&path)?;
        // Half of the digits: this guards against mixing files up, not against an attacker.
        Ok(beit2_weights::sha256(&path)?.chars().take(32).collect())
    }
}

/// What is inside the program, for `doctor`: name and contents, or what is missing.
pub fn inventory() -> Vec<(&'static str, String)> {
    let images = |name: &str, shards: &[StaticShard]| match self::shards(name, shards) {
        Ok(source) => {
            let bytes: usize = shards.iter().map(|(_, bytes)| bytes.len()).sum();
            format!("{} images in {} classes, {}", source.len(), source.classes().len(), size(bytes))
        }
        Err(_) => "not in this build".to_owned(),
    };
    let teacher = match teacher() {
        Some((_, bytes)) => size(bytes.len()),
        None => "not in this build".to_owned(),
    };
    vec![(TRAIN_NAME, images(TRAIN_NAME, TRAIN)), (VAL_NAME, images(VAL_NAME, VAL)), (TEACHER_NAME, teacher)]
}

fn size(bytes: usize) -> String {
    beit2_run::environment::format_bytes(bytes as u64)
}

fn shards(spec: &str, shards: &[StaticShard]) -> Result<TarSource, Error> {
    match shards {
        [] => Err(not_inside(spec)),
        shards => Ok(TarSource::from_static(shards)?),
    }
}

fn not_inside(spec: &str) -> Error {
    Error::Config(format!(
        "{spec} is not in this build (it was made without the feature `bundled`); name a folder or file instead"
    ))
}

/// The error for `bundled:` with a wrong name; `None` when it is an ordinary path.
fn unknown_name(spec: &str) -> Option<Error> {
    let wrong = spec.starts_with("bundled:")
        && ![TRAIN_NAME, VAL_NAME, TEACHER_NAME].contains(&spec)
        && !Path::new(spec).exists();
    let known = format!("{TRAIN_NAME}, {VAL_NAME} and {TEACHER_NAME}");
    wrong.then(|| Error::Config(format!("{spec} does not exist; the bundled data are {known}")))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Where things are kept that can be had again: `$XDG_CACHE_HOME/beit2`, else `~/.cache/beit2`.
pub fn cache_dir() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    Some(cache.or_else(|| folder("LOCALAPPDATA"))?.join("beit2"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_bundled_names_are_explained() {
        let text = AssetStore::default().source("bundled:test").err().unwrap().to_string();
        assert!(text.contains("bundled:train, bundled:val"), "{text}");
        let text = AssetStore::default().weights_fingerprint("bundled:techer").unwrap_err().to_string();
        assert!(text.contains("bundled:teacher"), "{text}");
    }

    #[test]
    fn what_is_inside_can_be_opened() {
        let assets = AssetStore::default();
        for (name, shards) in [(TRAIN_NAME, TRAIN), (VAL_NAME, VAL)] {
            assert_eq!(assets.source(name).is_ok(), !shards.is_empty(), "{name}");
        }
        assert_eq!(assets.weights(TEACHER_NAME).is_ok(), teacher().is_some());
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
