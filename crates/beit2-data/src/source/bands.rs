//! Images whose bands are files of their own: `x_B02.tif`, `x_B03.tif`, ….

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::account::{Account, SkipReason};
use super::folder::{FolderSource, read_image, slashed};
use super::name::path_text;
use super::{Source, fingerprint_file};
use crate::decode::{DecodeOptions, join_bands};
use crate::error::SourceError;
use crate::fingerprint::Fingerprint;

/// A folder whose images are joined from files of one band each.
///
/// A file belongs to the image that its name without ending and band suffix names, in its own folder. The bands have the
/// order of the suffixes. Images that lack a band, and files without a suffix, are counted and left out. Labels are those of
/// the folder.
#[derive(Debug)]
pub struct BandFilesSource {
    root: PathBuf,
    samples: Vec<Sample>,
    classes: Vec<String>,
    account: Account,
}

#[derive(Debug)]
struct Sample {
    /// In the order of the suffixes.
    bands: Vec<PathBuf>,
    label: Option<u32>,
}

impl BandFilesSource {
    /// Joins the files of a folder by their suffixes.
    ///
    /// # Errors
    /// As the folder; fewer than two suffixes, or one that is the end of another; no complete image.
    pub fn new(folder: &FolderSource, suffixes: &[&str]) -> Result<Self, SourceError> {
        let place = || folder.root().display().to_string();
        let fail = |problem: String| SourceError::NotASource { path: place(), problem };
        let ambiguous = suffixes.iter().enumerate().any(|(at, one)| {
            one.is_empty()
                || suffixes.iter().enumerate().any(|(other, two)| at != other && two.ends_with(one))
        });
        if suffixes.len() < 2 || ambiguous {
            let named = suffixes.join("+");
            return Err(fail(format!(
                "bands={named} does not tell files apart; name two or more endings of file names, such as bands=_B02+_B03"
            )));
        }
        let mut account = Account { used: 0, ..folder.account() };
        let mut images: BTreeMap<PathBuf, (Vec<Option<PathBuf>>, Option<u32>)> = BTreeMap::new();
        for index in 0..folder.len() {
            let Some(path) = folder.path(index) else {
                continue;
            };
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            let Some((band, key)) =
                suffixes.iter().enumerate().find_map(|(at, suffix)| Some((at, stem.strip_suffix(suffix)?)))
            else {
                account.skip(SkipReason::NoBand, path_text(&path));
                continue;
            };
            let (bands, _) = images
                .entry(path.with_file_name(key))
                .or_insert_with(|| (vec![None; suffixes.len()], folder.label(index)));
            if let Some(other) = bands[band].replace(path.clone()) {
                return Err(fail(format!("{} and {} are the same band", other.display(), path.display())));
            }
        }
        let mut samples = Vec::with_capacity(images.len());
        for (key, (bands, label)) in images {
            match bands.into_iter().collect::<Option<Vec<PathBuf>>>() {
                Some(bands) => samples.push(Sample { bands, label }),
                None => account.skip(SkipReason::MissingBand, path_text(&key)),
            }
        }
        if samples.is_empty() {
            let named = suffixes.join(", ");
            return Err(fail(format!(
                "no image has all bands: files whose names end in {named} were looked for"
            )));
        }
        account.used = samples.len();
        let (root, classes) = (folder.root().to_owned(), folder.classes().to_vec());
        Ok(Self { root, samples, classes, account })
    }
}

impl Source for BandFilesSource {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        let sample = self.samples.get(index).ok_or(SourceError::Index { index, len: self.len() })?;
        let bytes = sample.bands.iter().map(|band| read_image(band)).collect::<Result<Vec<_>, _>>()?;
        let options = DecodeOptions { channels: 1, ..DecodeOptions::default() };
        join_bands(&bytes, &options).map_err(|(band, error)| SourceError::NotASource {
            path: sample.bands[band].display().to_string(),
            problem: error.to_string(),
        })
    }

    /// The path of the first band.
    fn name(&self, index: usize) -> String {
        self.samples
            .get(index)
            .and_then(|sample| sample.bands.first())
            .map(|path| path_text(path))
            .unwrap_or_default()
    }

    fn key(&self, index: usize) -> String {
        let first = self.samples.get(index).and_then(|sample| sample.bands.first());
        let below = first.map(|path| path.strip_prefix(&self.root).unwrap_or(path));
        below.map(|path| slashed(&path_text(path))).unwrap_or_default()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.samples.get(index).and_then(|sample| sample.label)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn fingerprint(&self) -> String {
        let mut hash = Fingerprint::new();
        for sample in &self.samples {
            sample
                .bands
                .iter()
                .for_each(|band| fingerprint_file(&mut hash, Path::new(""), band, sample.label));
        }
        hash.finish()
    }

    fn account(&self) -> Account {
        self.account.clone()
    }
}
