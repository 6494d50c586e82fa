//! Images in a folder: one sub-folder per class as torchvision's ImageFolder has it, or a flat
//! folder without labels.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{IMAGE_EXTENSIONS, MAX_SAMPLE_BYTES, Source, dotted, is_image_name};
use crate::error::SourceError;
use crate::fingerprint::Fingerprint;

/// Images in a folder.
///
/// - Sub-folders with images and no image beside them: each sub-folder is a class (also an empty
///   one, so that training and validation folders number their classes alike), in sorted order; its
///   images may lie at any depth.
/// - Anything else: every image at any depth, without labels.
///
/// Hidden files and folders, and files whose names do not end like an image's, are skipped.
/// Symbolic links are followed; each real folder is visited once per class, so links cannot loop.
///
/// Differs from upstream: images beside class folders are used (without any labels) where
/// torchvision would silently ignore them; `.gif` is accepted.
#[derive(Debug)]
pub struct FolderSource {
    root: PathBuf,
    files: Vec<File>,
    classes: Vec<String>,
    fingerprint: OnceLock<String>,
}

#[derive(Debug)]
struct File {
    /// Path below the root.
    path: PathBuf,
    label: Option<u32>,
}

impl FolderSource {
    /// Lists the folder.
    ///
    /// # Errors
    /// A path that is missing, no folder or unreadable; a folder without images.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, SourceError> {
        let root = dir.as_ref().to_path_buf();
        match fs::metadata(&root) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(SourceError::NotAFolder { path: root }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(SourceError::Missing { path: root.display().to_string() });
            }
            Err(error) => return Err(io(&root, "open the folder", error)),
        }
        let mut classes = Vec::new();
        let mut beside = Vec::new();
        let mut inside = Vec::new();
        for entry in list(&root)? {
            if entry.is_dir {
                let label = classes.len() as u32;
                classes.push(file_name(&entry.path));
                inside.extend(images_below(&entry.path)?.into_iter().map(|path| (path, label)));
            } else if is_image_name(&entry.path) {
                beside.push(entry.path);
            }
        }
        let labelled = beside.is_empty() && !inside.is_empty();
        let paths = beside.into_iter().map(|path| (path, 0)).chain(inside);
        let files: Vec<File> = paths
            .map(|(path, label)| File {
                path: path.strip_prefix(&root).map(Path::to_path_buf).unwrap_or(path),
                label: labelled.then_some(label),
            })
            .collect();
        if files.is_empty() {
            let (place, extensions) = (root.display().to_string(), dotted(&IMAGE_EXTENSIONS));
            return Err(SourceError::NoImages { place, extensions });
        }
        if !labelled {
            classes.clear();
        }
        Ok(Self { root, files, classes, fingerprint: OnceLock::new() })
    }

    /// Full path of a sample; `None` past the end.
    #[must_use]
    pub fn path(&self, index: usize) -> Option<PathBuf> {
        self.files.get(index).map(|file| self.root.join(&file.path))
    }
}

impl Source for FolderSource {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        let path = self.path(index).ok_or(SourceError::Index { index, len: self.len() })?;
        read_image(&path)
    }

    fn name(&self, index: usize) -> String {
        self.path(index).map(|path| path.display().to_string()).unwrap_or_default()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.files.get(index).and_then(|file| file.label)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn fingerprint(&self) -> String {
        // Why late: reading every file's size takes minutes on a network disk, and not every caller
        // wants to know.
        let compute = || {
            let mut hash = Fingerprint::new();
            for file in &self.files {
                fingerprint_file(&mut hash, &self.root, &file.path, file.label);
            }
            hash.finish()
        };
        self.fingerprint.get_or_init(compute).clone()
    }
}

/// Reads an image file of at most [`MAX_SAMPLE_BYTES`].
pub(crate) fn read_image(path: &Path) -> Result<Vec<u8>, SourceError> {
    // Why: the size is read first, so that a huge or endless file is refused instead of filling
    // the memory.
    let meta = fs::metadata(path).map_err(|e| io(path, "read it", e))?;
    if meta.len() > MAX_SAMPLE_BYTES {
        let name = path.display().to_string();
        return Err(SourceError::TooLarge { name, bytes: meta.len(), limit: MAX_SAMPLE_BYTES });
    }
    fs::read(path).map_err(|e| io(path, "read it", e))
}

/// Adds a file by its path below the root and its size, the same on every system.
pub(crate) fn fingerprint_file(hash: &mut Fingerprint, root: &Path, file: &Path, label: Option<u32>) {
    let size = fs::metadata(root.join(file)).map_or(u64::MAX, |meta| meta.len());
    hash.sample(&file.to_string_lossy().replace('\\', "/"), size, label);
}

/// One visible entry of a folder, links already followed.
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) is_dir: bool,
}

/// Files and folders of `dir` sorted by name; hidden ones, dangling links and special files
/// (sockets, pipes) are left out.
pub(crate) fn list(dir: &Path) -> Result<Vec<Entry>, SourceError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| io(dir, "list the folder", e))? {
        let entry = entry.map_err(|e| io(dir, "list the folder", e))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let mut kind = entry.file_type().map_err(|e| io(&path, "look at it", e))?;
        if kind.is_symlink() {
            let Ok(target) = fs::metadata(&path) else {
                continue;
            };
            kind = target.file_type();
        }
        if kind.is_dir() || kind.is_file() {
            entries.push(Entry { path, is_dir: kind.is_dir() });
        }
    }
    entries.sort_by(|a, b| by_bytes(a.path.file_name(), b.path.file_name()));
    Ok(entries)
}

/// All images at any depth below `dir`, in torchvision's order: folders by their whole path, then
/// files by name.
pub(crate) fn images_below(dir: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let mut folders: Vec<(PathBuf, Vec<PathBuf>)> = Vec::new();
    let mut visited = HashSet::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(folder) = open.pop() {
        let real = fs::canonicalize(&folder).map_err(|e| io(&folder, "open the folder", e))?;
        if !visited.insert(real) {
            continue;
        }
        let (inner, files): (Vec<Entry>, Vec<Entry>) =
            list(&folder)?.into_iter().partition(|entry| entry.is_dir);
        // Why reversed: the last one pushed is visited next, and which of two links to one folder
        // wins must not vary.
        open.extend(inner.into_iter().rev().map(|entry| entry.path));
        let images = files.into_iter().map(|entry| entry.path).filter(|path| is_image_name(path)).collect();
        folders.push((folder, images));
    }
    folders.sort_by(|a, b| by_bytes(Some(a.0.as_os_str()), Some(b.0.as_os_str())));
    Ok(folders.into_iter().flat_map(|(_, images)| images).collect())
}

fn by_bytes(a: Option<&OsStr>, b: Option<&OsStr>) -> std::cmp::Ordering {
    a.map(OsStr::as_encoded_bytes).cmp(&b.map(OsStr::as_encoded_bytes))
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn io(path: &Path, action: &'static str, error: std::io::Error) -> SourceError {
    SourceError::Io { path: path.display().to_string(), action, error }
}
