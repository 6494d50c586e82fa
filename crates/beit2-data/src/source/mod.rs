//! Where encoded images come from: a folder, tar shards, IDX files or an index file, behind one small
//! trait.
//!
//! A source knows names, sizes and labels, and hands out encoded bytes by number. It never decodes.
//! The order of samples is a function of their names alone, so that the same data give the same
//! numbers on every machine.

mod account;
mod archive;
pub(crate) mod arrangement;
mod bands;
mod chain;
mod files;
pub(crate) mod folder;
mod idx;
mod index_file;
mod kind;
mod labels;
pub(crate) mod name;
mod parquet;
mod pattern;
mod pieces;
mod positioned;
mod spec;
mod subset;
pub(crate) mod table;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::account::{Account, SkipReason, Skipped};
pub(crate) use self::archive::CLASSES_MEMBER;
pub use self::archive::{ArchiveSource, StaticShard};
pub use self::bands::BandFilesSource;
pub use self::chain::ChainSource;
pub use self::files::FilesSource;
pub use self::folder::FolderSource;
pub(crate) use self::folder::fingerprint_file;
pub use self::idx::{IdxSource, IdxSplit};
pub use self::index_file::IndexFileSource;
pub use self::kind::IMAGE_EXTENSIONS;
pub(crate) use self::kind::instead;
use self::kind::{has_extension, is_image_name};
pub use self::parquet::ParquetSource;
use self::pattern::Matches;
pub use self::spec::{AND, Columns, Spec};
pub use self::subset::SubsetSource;
pub use self::table::TableSource;
use self::walk::Walk;
use crate::error::SourceError;
use crate::order::{Part, Units};

/// Largest encoded image that is read into memory: 256 MiB.
pub const MAX_SAMPLE_BYTES: u64 = 256 << 20;

/// A numbered collection of encoded images, readable from many threads at once.
pub trait Source: Send + Sync {
    /// Number of samples.
    fn len(&self) -> usize;

    /// Encoded bytes of sample `index`.
    ///
    /// # Errors
    /// A file that vanished, shrank, is larger than [`MAX_SAMPLE_BYTES`] or cannot be read; the error names it.
    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError>;

    /// What a person would look for: a path, or `shard:member`. Empty for an `index` past the end.
    ///
    /// Of a name that is not UTF-8, each byte outside of a character is written as `%E9`, and `%` as `%25`.
    fn name(&self, index: usize) -> String;

    /// The name's bytes, when it is not UTF-8; `None` when [`Self::name`] is the name.
    fn name_bytes(&self, _index: usize) -> Option<Vec<u8>> {
        None
    }

    /// The name without where the data are stored: a path below the folder, `shard:member` without the shard's folder. The
    /// same on every machine; not always different for two samples.
    fn key(&self, index: usize) -> String {
        self.name(index)
    }

    /// Class number, an index into [`Self::classes`]; `None` in an unlabelled or multi-label collection.
    fn label(&self, index: usize) -> Option<u32>;

    /// All classes of sample `index`, ascending: one, or in a multi-label set ([`Self::is_multi_label`]) any number of
    /// them, also none; `None` when they are unknown.
    fn labels(&self, index: usize) -> Option<Vec<u32>> {
        self.label(index).map(|label| vec![label])
    }

    /// Whether a sample can have several classes at once or none of them. Then [`Self::label`] is `None` and
    /// [`Self::labels`] has them.
    fn is_multi_label(&self) -> bool {
        false
    }

    /// Width and height in pixels that the image of sample `index` has to have, where the source knows: those of its mask.
    fn image_size(&self, _index: usize) -> Option<(u32, u32)> {
        None
    }

    /// Names of the classes; empty when there are none.
    fn classes(&self) -> &[String];

    /// A stable hash (32 hexadecimal digits) of names, sizes and labels, the same wherever the data
    /// are stored; when it changes, a run cannot be continued exactly.
    fn fingerprint(&self) -> String;

    /// What is used and what was left out, with reasons.
    fn account(&self) -> Account {
        Account::all_used(self.len())
    }

    /// Finds labels that are missing or wrong, for callers who need them: images beside class folders, class folders
    /// without images, samples without a label.
    ///
    /// # Errors
    /// [`SourceError::Labels`] with a sentence for each.
    fn check_labels(&self) -> Result<(), SourceError> {
        match self.account().label_errors {
            problems if problems.is_empty() => Ok(()),
            problems => Err(SourceError::Labels { problems }),
        }
    }

    /// Samples that are read together; `None` when each is read alone.
    fn units(&self) -> Option<Units> {
        None
    }

    /// Samples that an epoch has more or less often than once; empty when it has each once.
    fn parts(&self) -> Vec<Part> {
        Vec::new()
    }

    /// Samples of an epoch, copies included.
    fn epoch_len(&self) -> usize {
        match self.parts() {
            parts if parts.is_empty() => self.len(),
            parts => parts.iter().map(Part::per_epoch).sum::<u64>() as usize,
        }
    }

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Opens what a user typed:
/// - a folder of images; or one that holds no image but `.tar` shards, or IDX files (of which it stands
///   for the training images when there are some);
/// - one `.tar`, `.tar.gz` or `.zip` file, or a pattern with `{000..003}`, `{a,b}`, `*`, `?` or `[a-z]` that names such
///   files;
/// - one `.parquet` file, a folder or a pattern of them;
/// - the images' IDX file (`t10k-images-idx3-ubyte.gz`);
/// - a table of paths and labels (`.csv`, `.tsv`, `.jsonl`);
/// - an index file (`.jsonl`) that lies beside the folders of its classes;
/// - one image, or a pattern that names images or folders of them: images have the classes of their folders where the
///   pattern leaves these open (`photos/*/*.jpg`), folders are classes (`photos/*`).
///
/// What cannot be told from the path may follow it ([`Spec`]). Several of them with ` + ` between them are one
/// collection ([`ChainSource`]).
///
/// # Errors
/// A path that is missing or none of these; otherwise as the source that it names.
pub fn open(text: &str) -> Result<Arc<dyn Source>, SourceError> {
    open_named(text, |_| None)
}

/// As [`open`], where `named` opens what has a name but no path.
///
/// # Errors
/// As [`open`], and those of `named`.
pub fn open_named<E: From<SourceError>>(
    text: &str,
    named: impl Fn(&str) -> Option<Result<Arc<dyn Source>, E>>,
) -> Result<Arc<dyn Source>, E> {
    let mut parts = Vec::new();
    for Spec { path, weight, columns } in Spec::list(text)? {
        let source = match named(&path) {
            Some(source) => source?,
            None => open_path(&path, &columns)?,
        };
        parts.push((source, weight.unwrap_or(1.0)));
    }
    Ok(match <[_; 1]>::try_from(parts) {
        Ok([(source, 1.0)]) => source,
        Ok(one) => Arc::new(ChainSource::weighted(one.into())),
        Err(several) => Arc::new(ChainSource::weighted(several)),
    })
}

fn open_path(spec: &str, columns: &Columns) -> Result<Arc<dyn Source>, SourceError> {
    let path = Path::new(spec);
    if spec.contains("://") && !path.exists() {
        let problem = "it is an address, and images are read from disk; download them first".into();
        return Err(SourceError::NotASource { path: spec.into(), problem });
    }
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => open_folder(path, columns),
        Ok(_) => open_files(&[path.to_path_buf()], columns),
        Err(_) if pattern::is_pattern(spec) => match pattern::matches(spec)? {
            Matches::Files(files) => open_files(&files, columns),
            Matches::Folder(folder) => open_folder(&folder, columns),
            Matches::Images(walk) => {
                no_columns(path, columns)?;
                Ok(Arc::new(FolderSource::from_walk(walk)?))
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(SourceError::Missing { path: spec.into() })
        }
        Err(error) => Err(SourceError::Io { path: spec.into(), action: "open it", error }),
    }
}

/// One file of any kind, or several shards of one kind.
fn open_files(paths: &[PathBuf], columns: &Columns) -> Result<Arc<dyn Source>, SourceError> {
    if paths.iter().all(|path| has_extension(path, &["parquet"])) {
        return Ok(Arc::new(ParquetSource::open(paths, columns)?));
    }
    if let [path] = paths {
        if TableSource::is_table(path) && !table::is_index_file(path) {
            return Ok(Arc::new(TableSource::open(path, columns)?));
        }
        no_columns(path, columns)?;
        if idx::is_images_name(path) {
            return Ok(Arc::new(IdxSource::open_file(path)?));
        }
        if has_extension(path, &["jsonl"]) {
            let root = path.parent().unwrap_or(Path::new("."));
            return Ok(Arc::new(IndexFileSource::open(path, root)?));
        }
    }
    if paths.iter().all(|path| is_image_name(path) || is_image_inside(path)) {
        return Ok(Arc::new(FilesSource::new(paths.to_vec())));
    }
    Ok(Arc::new(ArchiveSource::open(paths)?))
}

/// Whether a file that is no shard by its name is an image by its content.
fn is_image_inside(path: &Path) -> bool {
    !has_extension(path, &["tar"]) && kind::start_of(path).is_ok_and(|start| kind::is_image(path, &start))
}

/// Refuses columns for what has none.
fn no_columns(path: &Path, columns: &Columns) -> Result<(), SourceError> {
    if columns.is_empty() {
        return Ok(());
    }
    let problem =
        "image, label, separator and root are for tables (.parquet, .csv, .tsv and .jsonl files), and bands is for folders".into();
    Err(SourceError::Table { path: path.display().to_string(), problem })
}

/// Shards or IDX files when a folder holds some and nothing else that could be data, else images.
fn open_folder(dir: &Path, columns: &Columns) -> Result<Arc<dyn Source>, SourceError> {
    let entries = folder::list(dir)?;
    if let Some(files) = parquet::files_in(dir, &entries)? {
        return Ok(Arc::new(ParquetSource::open(&files, columns)?));
    }
    if let Some(suffixes) = &columns.bands {
        let suffixes: Vec<&str> = suffixes.split('+').collect();
        let rest = Columns { bands: None, ..columns.clone() };
        no_columns(dir, &rest)?;
        let folder = FolderSource::from_walk(Walk::of(dir)?)?;
        return Ok(Arc::new(BandFilesSource::new(&folder, &suffixes)?));
    }
    no_columns(dir, columns)?;
    if dir.join("run.toml").is_file() {
        let problem = "it is a run directory, and images were expected here".into();
        return Err(SourceError::NotASource { path: name::path_text(dir), problem });
    }
    let walk = Walk::of(dir)?;
    if walk.is_empty() {
        if let Some(images) = idx::images_of(&entries) {
            return Ok(Arc::new(IdxSource::open_file(images)?.beside(&entries)));
        }
        if !walk.shards.is_empty() {
            return Ok(Arc::new(ArchiveSource::open(&walk.shards)?.beside(&walk)));
        }
    }
    Ok(Arc::new(FolderSource::from_walk(walk)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_nonsense_says_what_would_be_right() {
        let dir = tempfile::tempdir().unwrap();
        let sentence = |path: &Path| open(&path.display().to_string()).err().unwrap().to_string();
        let missing = dir.path().join("nowhere");
        assert!(sentence(&missing).ends_with("nowhere: no such file or folder; give a folder of images, a .tar shard, or a pattern like 'shard-{000..003}.tar'"));
        assert!(sentence(dir.path()).contains("no images in it; it is empty (JPEG, PNG, "));
        let text = dir.path().join("notes.txt");
        std::fs::write(&text, "hello").unwrap();
        assert!(
            sentence(&text).contains("it is a text file; a list of images must end in .csv"),
            "{}",
            sentence(&text)
        );
        assert!(sentence(&dir.path().join("x-{0..2}.tar")).contains("x-0.tar"));
        assert!(sentence(&dir.path().join("*.tar")).contains("matches no file"));
    }
}
