//! A list of classes and files instead of a look through folders: the reference's index files for
//! ImageNet-21k, where listing 14 million files would take an hour.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;

use super::account::{Account, SkipReason};
use super::folder::{self, io};
use super::name::path_text;
use super::{Source, kind};
use crate::error::SourceError;
use crate::fingerprint::Fingerprint;

/// Longest line, which is one class: 256 MiB, about ten million files.
const MAX_LINE_BYTES: u64 = 256 << 20;

/// Images listed in a JSON-lines file, one class per line: `{"class": "n01440764", "files":
/// ["1.JPEG", ...]}`.
///
/// A file's path is `root/class/file`. Classes are numbered in sorted order whatever the order of
/// the lines, so that a training and a validation index number theirs alike; samples keep the order
/// of the file. (docs/method.md §4.4; the reference's `--image_folder_class_index_file`.)
///
/// Whether the files exist is not looked at when opening: a missing one is an unusable sample.
#[derive(Debug)]
pub struct IndexFileSource {
    root: PathBuf,
    samples: Vec<Sample>,
    classes: Vec<String>,
    account: Account,
    fingerprint: OnceLock<String>,
}

#[derive(Debug)]
struct Sample {
    class: u32,
    file: Box<str>,
}

#[derive(Deserialize)]
struct Line {
    class: String,
    files: Vec<String>,
}

impl IndexFileSource {
    /// Reads the index; `root` is the folder that the classes' folders lie in.
    ///
    /// Empty lines are skipped.
    ///
    /// # Errors
    /// A missing index, a line that is not as above, a class that appears twice, a name that leads out of `root`, no
    /// file in any class.
    pub fn open(index: impl AsRef<Path>, root: impl AsRef<Path>) -> Result<Self, SourceError> {
        let path = index.as_ref();
        let file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => SourceError::Missing { path: path_text(path) },
            _ => io(path, "open it", error),
        })?;
        let mut lines = Vec::new();
        let mut reader = BufReader::new(file);
        let mut text = Vec::new();
        for number in 1.. {
            let fail =
                |problem: String| SourceError::IndexFile { path: path_text(path), line: number, problem };
            text.clear();
            let read = (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut text);
            match read.map_err(|e| io(path, "read it", e))? as u64 {
                0 => break,
                MAX_LINE_BYTES => return Err(fail(format!("longer than {MAX_LINE_BYTES} bytes"))),
                _ => {}
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            let line: Line = serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
            for name in line.files.iter().chain([&line.class]) {
                if !stays_inside(name) {
                    return Err(fail(format!("the name '{name}' leads out of the folder of the images")));
                }
            }
            lines.push((number, line));
        }
        Self::number(lines, path, root.as_ref())
    }

    /// Numbers the classes in sorted order.
    fn number(lines: Vec<(usize, Line)>, path: &Path, root: &Path) -> Result<Self, SourceError> {
        let mut classes: Vec<String> = lines.iter().map(|(_, line)| line.class.clone()).collect();
        classes.sort_unstable();
        let mut samples = Vec::new();
        let mut seen = HashSet::new();
        for (number, line) in lines {
            // Differs from upstream: a class on two lines is an error; the reference forgets the
            // first line's files and counts the class twice.
            let class = match classes.binary_search(&line.class) {
                Ok(class) if seen.insert(class) => class as u32,
                _ => {
                    let problem = format!("the class '{}' is on an earlier line too", line.class);
                    let path = path_text(path);
                    return Err(SourceError::IndexFile { path, line: number, problem });
                }
            };
            samples.extend(line.files.into_iter().map(|file| Sample { class, file: file.into() }));
        }
        if samples.is_empty() {
            let instead = "; none of its classes lists a file".into();
            return Err(SourceError::NoImages { place: path_text(path), instead });
        }
        let account = account_of(&samples, &classes, path);
        Ok(Self { root: root.to_path_buf(), samples, classes, account, fingerprint: OnceLock::new() })
    }

    /// Path of a sample below the root; `None` past the end.
    fn below_root(&self, index: usize) -> Option<PathBuf> {
        let sample = self.samples.get(index)?;
        Some(Path::new(self.classes.get(sample.class as usize)?).join(&*sample.file))
    }

    /// Full path of a sample; `None` past the end.
    #[must_use]
    pub fn path(&self, index: usize) -> Option<PathBuf> {
        self.below_root(index).map(|path| self.root.join(path))
    }
}

impl Source for IndexFileSource {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        let path = self.path(index).ok_or(SourceError::Index { index, len: self.len() })?;
        folder::read_image(&path)
    }

    fn name(&self, index: usize) -> String {
        self.path(index).map(|path| path_text(&path)).unwrap_or_default()
    }

    fn key(&self, index: usize) -> String {
        self.below_root(index).map(|path| folder::slashed(&path_text(&path))).unwrap_or_default()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.samples.get(index).map(|sample| sample.class)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn account(&self) -> Account {
        self.account.clone()
    }

    fn fingerprint(&self) -> String {
        let compute = || {
            let mut hash = Fingerprint::new();
            for (index, sample) in self.samples.iter().enumerate() {
                folder::fingerprint_file(
                    &mut hash,
                    &self.root,
                    &self.below_root(index).unwrap_or_default(),
                    Some(sample.class),
                );
            }
            hash.finish()
        };
        self.fingerprint.get_or_init(compute).clone()
    }
}

/// Classes without files, and files that cannot be images. Whether files are there is not looked at.
fn account_of(samples: &[Sample], classes: &[String], index: &Path) -> Account {
    let mut account = Account::all_used(samples.len());
    let mut counts = vec![0usize; classes.len()];
    let mut foreign = Account::default();
    for Sample { class, file } in samples {
        if let Some(count) = counts.get_mut(*class as usize) {
            *count += 1;
        }
        let reason = SkipReason::Kind(kind::ending(Path::new(&**file)));
        if kind::hides_images(&reason) {
            foreign.skip(reason, file);
        }
    }
    for (class, _) in classes.iter().zip(counts).filter(|(_, count)| *count == 0) {
        account.skip(SkipReason::EmptyClass, class);
        let index = path_text(index);
        account
            .label_errors
            .push(format!("{index}: the class '{class}' has no files; list its images, or remove its line"));
    }
    if !foreign.skipped.is_empty() {
        let (index, kinds) = (path_text(index), foreign.left_out());
        account
            .warnings
            .push(format!("{index} lists {kinds}, which cannot be decoded; convert them to PNG or JPEG"));
    }
    account
}

/// Whether a name consists of plain parts only. An index comes from elsewhere and must not make
/// the program read files that have nothing to do with the images.
fn stays_inside(name: &str) -> bool {
    let mut plain = 0;
    let harmless = Path::new(name).components().all(|part| {
        plain += usize::from(matches!(part, Component::Normal(_)));
        matches!(part, Component::Normal(_) | Component::CurDir)
    });
    harmless && plain > 0
}
