//! Images in a folder: one sub-folder per class as torchvision's ImageFolder has it, or a flat
//! folder without labels.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::account::{Account, SkipReason, some_of};
use super::arrangement;
use super::name::{path_bytes, path_text, text_of};
use super::walk::{ClassFolder, Walk};
use super::{MAX_SAMPLE_BYTES, Source, kind};
use crate::error::SourceError;
use crate::fingerprint::Fingerprint;

pub(crate) use super::name::file_name;
pub(crate) use super::walk::{Entry, images_below, list};

/// Images in a folder.
///
/// - Each sub-folder with images at any depth is a class, in sorted order. Images beside class folders have no class.
/// - A folder whose sub-folders hold no image has no classes.
///
/// A file is an image if its name ends like one ([`IMAGE_EXTENSIONS`](super::IMAGE_EXTENSIONS)) or its first bytes say so.
/// Everything else is left out and counted ([`Source::account`]): other files, what systems keep for themselves
/// (`.DS_Store`, `__MACOSX`, `@eaDir`), dangling links, sub-folders without images. Symbolic links are followed; each real
/// folder is visited once per class, so links cannot loop.
///
/// Differs from upstream: images beside class folders are used where torchvision would silently ignore them; a sub-folder
/// without images is no class, but an error where labels matter unless it holds only files of other kinds; `.gif` is
/// accepted.
#[derive(Debug)]
pub struct FolderSource {
    root: PathBuf,
    files: Vec<File>,
    classes: Vec<String>,
    account: Account,
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
    /// A path that is missing, no folder or unreadable; a folder without images; sub-folders that are splits
    /// (`train`, `val`) of several classes or images and their masks; more tar shards than images.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, SourceError> {
        let root = dir.as_ref().to_path_buf();
        match fs::metadata(&root) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(SourceError::NotAFolder { path: root }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(SourceError::Missing { path: path_text(&root) });
            }
            Err(error) => return Err(io(&root, "open the folder", error)),
        }
        Self::from_walk(Walk::of(&root)?)
    }

    /// The images of a folder that was walked through.
    pub(super) fn from_walk(walk: Walk) -> Result<Self, SourceError> {
        if walk.is_empty() {
            let (place, instead) = (path_text(&walk.root), kind::instead(&walk.account()));
            return Err(SourceError::NoImages { place, instead });
        }
        arrangement::refuse(&walk)?;
        let mut account = walk.account();
        arrangement::remark(&walk, &mut account);
        let Walk { root, images, folders, .. } = walk;
        let (full, empty): (Vec<ClassFolder>, Vec<ClassFolder>) =
            folders.into_iter().partition(|folder| !folder.images.is_empty());
        if !full.is_empty() {
            let before = account.label_errors.len();
            note_strays(&root, &images, &full, &mut account);
            note_empty(&root, &empty, &mut account);
            // Who needs no labels should know too.
            let found = account.label_errors.get(before..).unwrap_or_default().to_vec();
            account.warnings.extend(found);
        }
        let classes = full.iter().map(|folder| file_name(&folder.path)).collect();
        let inside = full
            .into_iter()
            .zip(0..)
            .flat_map(|(folder, label)| folder.images.into_iter().map(move |path| (path, Some(label))));
        let files: Vec<File> = images
            .into_iter()
            .map(|path| (path, None))
            .chain(inside)
            .map(|(path, label)| File {
                path: path.strip_prefix(&root).map(Path::to_path_buf).unwrap_or(path),
                label,
            })
            .collect();
        account.used = files.len();
        Ok(Self { root, files, classes, account, fingerprint: OnceLock::new() })
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Full path of a sample; `None` past the end.
    #[must_use]
    pub fn path(&self, index: usize) -> Option<PathBuf> {
        self.files.get(index).map(|file| self.root.join(&file.path))
    }
}

/// Images that lie beside class folders have no class.
fn note_strays(root: &Path, strays: &[PathBuf], classes: &[ClassFolder], account: &mut Account) {
    if strays.is_empty() {
        return;
    }
    let names = some_of(strays.iter().map(|path| file_name(path)), strays.len());
    let folders = some_of(classes.iter().map(ClassFolder::name), classes.len());
    let (images, lie, have, them) = match strays.len() {
        1 => ("image", "lies", "has", "it"),
        _ => ("images", "lie", "have", "them"),
    };
    account.label_errors.push(format!(
        "{}: {} {images} ({names}) {lie} beside the class folders {folders} and {have} no class; move {them} into one of the folders, or out of here",
        path_text(root),
        strays.len()
    ));
}

/// Folders beside class folders that hold no image: not classes, and errors for labels unless they clearly are something
/// else.
fn note_empty(root: &Path, folders: &[ClassFolder], account: &mut Account) {
    folders.iter().for_each(|folder| account.skip(SkipReason::EmptyClass, path_text(&folder.path)));
    let place = path_text(root);
    let only =
        |is: fn(&SkipReason) -> bool| move |folder: &&ClassFolder| folder.account.skipped.keys().all(is);
    let empty: Vec<&ClassFolder> =
        folders.iter().filter(only(|reason| *reason == SkipReason::System)).collect();
    if !empty.is_empty() {
        let names = some_of(empty.iter().map(|folder| folder.name()), empty.len());
        account.label_errors.push(match empty.len() {
            1 => format!("{place}: the class folder {names} is empty; put the images of its class into it, or remove it"),
            _ => format!("{place}: the class folders {names} are empty; put the images of their classes into them, or remove them"),
        });
    }
    for folder in folders.iter().filter(|folder| folder.account.skipped.keys().any(kind::hides_images)) {
        account.label_errors.push(format!(
            "{place}: the class folder {} holds no image that can be read, only {}; convert or restore its images, or remove it",
            folder.name(),
            folder.account.left_out()
        ));
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
        self.path(index).map(|path| path_text(&path)).unwrap_or_default()
    }

    fn name_bytes(&self, index: usize) -> Option<Vec<u8>> {
        path_bytes(&self.path(index)?)
    }

    fn key(&self, index: usize) -> String {
        self.files.get(index).map(|file| slashed(&path_text(&file.path))).unwrap_or_default()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.files.get(index).and_then(|file| file.label)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn account(&self) -> Account {
        self.account.clone()
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
        let name = path_text(path);
        return Err(SourceError::TooLarge { name, bytes: meta.len(), limit: MAX_SAMPLE_BYTES });
    }
    fs::read(path).map_err(|e| io(path, "read it", e))
}

/// Adds a file by its path below the root and its size, the same on every system.
/// A path with the separators of every system but Windows.
pub(super) fn slashed(path: &str) -> String {
    path.replace('\\', "/")
}

pub(crate) fn fingerprint_file(hash: &mut Fingerprint, root: &Path, file: &Path, label: Option<u32>) {
    let size = fs::metadata(root.join(file)).map_or(u64::MAX, |meta| meta.len());
    hash.sample(&slashed(&path_text(file)), size, label);
}

pub(super) fn by_bytes(a: Option<&OsStr>, b: Option<&OsStr>) -> std::cmp::Ordering {
    a.map(OsStr::as_encoded_bytes).cmp(&b.map(OsStr::as_encoded_bytes))
}

pub(super) fn io(path: &Path, action: &'static str, error: std::io::Error) -> SourceError {
    let path = text_of(path.as_os_str().as_encoded_bytes());
    SourceError::Io { path, action, error }
}
