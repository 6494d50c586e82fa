//! Images and weights by the names that recipes use: files, run directories, and what is inside the program.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use beit2::Error;
use beit2::train::{Assets, Files, OpenOnce};
use beit2::weights::{self, WeightFile};
use beit2_data::segment::{SegmentDataOptions, SegmentSource};
use beit2_data::source::{self, ArchiveSource, StaticShard};
use beit2_data::{Source, fnv1a};
use beit2_weights::{Normalization, ReadOptions};

use crate::bundled::{TRAIN, VAL, teacher};
use crate::output;

const TRAIN_NAME: &str = "bundled:train";
pub const VAL_NAME: &str = "bundled:val";
const TEACHER_NAME: &str = "bundled:teacher";

/// Files, and what is inside this program.
///
/// Use one for a whole command: the check before a run and the run itself then share every source that was opened.
#[derive(Default)]
pub struct AssetStore {
    files: Files,
    /// By what was typed, which may be several names.
    sources: OpenOnce<String, dyn Source>,
    reading: Reading,
    /// Only warnings are told of how weights were read.
    quiet: bool,
    /// Nothing is told; the caller has the notes and warnings of each file.
    silent: bool,
    /// Weights whose notes were told.
    told: Mutex<Vec<String>>,
}

/// How weights are read: what a command's flags say about them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// The entry of a file with several models.
    pub entry: Option<String>,
    /// Attention heads, where the file does not show them.
    pub heads: Option<usize>,
    /// How images are standardised, whatever the file says.
    pub normalization: Option<Normalization>,
    /// The only weights that heads and normalization are about, of a command that reads several; `None`: all.
    pub about: Option<String>,
}

impl Reading {
    /// A name of weights with the entry.
    pub fn spec(&self, weights: &str) -> String {
        match &self.entry {
            Some(entry) => format!("{weights}#{entry}"),
            None => weights.to_owned(),
        }
    }

    /// What the flags say of these weights: heads and normalization.
    fn said(&self, weights: &str) -> (Option<usize>, Option<&Normalization>) {
        match self.about.as_deref().is_none_or(|about| about == weights) {
            true => (self.heads, self.normalization.as_ref()),
            false => (None, None),
        }
    }

    /// Puts what the flags say in the place of what the file says or leaves open.
    fn apply(&self, weights: &str, file: &mut WeightFile) {
        let (heads, normalization) = self.said(weights);
        if heads.is_some() {
            file.beside.sizes.heads = heads;
        }
        if let Some(normalization) = normalization {
            file.beside.normalization = Some(normalization.clone());
            file.warnings.retain(|warning| !warning.contains("how its images are standardised"));
        }
    }
}

impl Assets for AssetStore {
    fn source(&self, spec: &str) -> Result<Arc<dyn Source>, Error> {
        let open = || source::open_named(spec, |name| self.bundled_source(name));
        self.sources.get_or_open(spec.to_owned(), open)
    }

    fn segment_source(&self, spec: &str, options: &SegmentDataOptions) -> Result<Arc<SegmentSource>, Error> {
        if [TRAIN_NAME, VAL_NAME].contains(&spec) {
            return Err(Error::Config(format!(
                "{spec} holds images without masks; name a folder with images/ and masks/ instead"
            )));
        }
        let source = self.files.segment_source(spec, options);
        source.map_err(|error| unknown_name(spec).unwrap_or(error))
    }

    fn weights(&self, spec: &str) -> Result<WeightFile, Error> {
        match (spec, teacher()) {
            (TEACHER_NAME, Some((name, bytes))) => weights::decode(bytes, name),
            (TEACHER_NAME, None) => Err(not_inside(spec)),
            _ => {
                let full = self.reading.spec(spec);
                let file = self.files.weights(&full).map_err(|error| unknown_name(spec).unwrap_or(error));
                let mut file = file?;
                self.reading.apply(spec, &mut file);
                if !self.silent {
                    self.tell(spec, &file);
                }
                Ok(file)
            }
        }
    }
}

impl AssetStore {
    /// A source inside the program; `None` when the name is that of a file.
    fn bundled_source(&self, name: &str) -> Option<Result<Arc<dyn Source>, Error>> {
        let shards = match name {
            TRAIN_NAME => TRAIN,
            VAL_NAME => VAL,
            _ => return unknown_name(name).map(Err),
        };
        Some(tar_source(name, shards).map(|source| Arc::new(source) as Arc<dyn Source>))
    }

    /// Reads weights as these flags say, and tells only warnings about them when `quiet`.
    pub fn reading(reading: Reading, quiet: bool) -> Self {
        Self { reading, quiet, ..Self::default() }
    }

    /// Reads weights in this way and tells nothing.
    pub fn silent(reading: Reading) -> Self {
        Self { reading, silent: true, ..Self::default() }
    }

    /// Tells once how weights were read.
    fn tell(&self, spec: &str, file: &WeightFile) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.iter().any(|known| known == spec) {
            return;
        }
        told.push(spec.to_owned());
        if !self.quiet {
            for note in &file.notes {
                output::note(&format!("{spec}: {note}"));
            }
        }
        for warning in &file.warnings {
            output::note(&format!("warning: {warning}"));
        }
    }

    /// A value that changes when the weights do, or what is read beside them, for the identity of a run. Checks on the way
    /// that the file is there and is a weight file.
    ///
    /// # Errors
    /// It is not there, or no weight file.
    pub fn weights_fingerprint(&self, spec: &str) -> anyhow::Result<String> {
        match (spec, teacher()) {
            (TEACHER_NAME, Some((_, bytes))) => return Ok(format!("{:016x}", fnv1a(bytes))),
            (TEACHER_NAME, None) => return Err(not_inside(spec).into()),
            _ => {}
        }
        if let Some(error) = unknown_name(spec) {
            return Err(error.into());
        }
        let found = weights::locate(self.reading.spec(spec))?;
        let options = ReadOptions { root: found.entry.as_deref(), ..ReadOptions::default() };
        let beside = beit2_weights::read_with(&found.path, &options)?.beside;
        let mut fingerprint: String = beit2_weights::fingerprint(&found.path)?;
        // Half of the digits: this guards against mixing files up, not against an attacker.
        fingerprint.truncate(32);
        let (heads, normalization) = self.reading.said(spec);
        if !beside.is_empty() || found.entry.is_some() || heads.is_some() || normalization.is_some() {
            let more = format!(
                "{:?} {heads:?} {normalization:?} {} {}",
                found.entry, beside.config, beside.preprocessor
            );
            fingerprint = format!("{fingerprint}-{:016x}", fnv1a(more.as_bytes()));
        }
        Ok(fingerprint)
    }
}

/// What is inside the program, for `doctor`: name and contents, or what is missing.
pub fn inventory() -> Vec<(&'static str, String)> {
    let images = |name: &str, shards: &[StaticShard]| match tar_source(name, shards) {
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

fn tar_source(spec: &str, shards: &[StaticShard]) -> Result<ArchiveSource, Error> {
    match shards {
        [] => Err(not_inside(spec)),
        shards => Ok(ArchiveSource::from_static(shards)?),
    }
}

fn not_inside(spec: &str) -> Error {
    Error::Config(format!(
        "{spec} is not in this build, which lacks the feature `bundled`; name a folder or file instead"
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
    fn segmentation_knows_the_bundled_names() {
        let error =
            |spec| AssetStore::default().segment_source(spec, &Default::default()).err().unwrap().to_string();
        assert!(error("bundled:train").contains("without masks"), "{}", error("bundled:train"));
        assert!(error("bundled:trian").contains("bundled:train, bundled:val"), "{}", error("bundled:trian"));
    }

    #[test]
    fn what_is_inside_can_be_opened() {
        let assets = AssetStore::default();
        for (name, shards) in [(TRAIN_NAME, TRAIN), (VAL_NAME, VAL)] {
            assert_eq!(assets.source(name).is_ok(), !shards.is_empty(), "{name}");
        }
        assert_eq!(assets.weights(TEACHER_NAME).is_ok(), teacher().is_some());
    }
}
