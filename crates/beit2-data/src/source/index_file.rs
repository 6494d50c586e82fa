//! A list of classes and files instead of a look through folders: the reference's index files for
//! ImageNet-21k, where listing 14 million files would take an hour.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;

use super::folder::{self, io};
use super::{IMAGE_EXTENSIONS, Source, dotted};
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
            std::io::ErrorKind::NotFound => SourceError::Missing { path: path.display().to_string() },
            _ => io(path, "open it", error),
        })?;
        let mut lines = Vec::new();
        let mut reader = BufReader::new(file);
        let mut text = Vec::new();
        for number in 1.. {
            let fail = |problem: String| SourceError::IndexFile {
                path: path.display().to_string(),
                line: number,
                problem,
            };
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
                    let path = path.display().to_string();
                    return Err(SourceError::IndexFile { path, line: number, problem });
                }
            };
            samples.extend(line.files.into_iter().map(|file| Sample { class, file: file.into() }));
        }
        if samples.is_empty() {
            let (place, extensions) = (path.display().to_string(), dotted(&IMAGE_EXTENSIONS));
            return Err(SourceError::NoImages { place, extensions });
        }
        Ok(Self { root: root.to_path_buf(), samples, classes, fingerprint: OnceLock::new() })
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
        self.path(index).map(|path| path.display().to_string()).unwrap_or_default()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.samples.get(index).map(|sample| sample.class)
    }

    fn classes(&self) -> &[String] {
        &self.classes
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
