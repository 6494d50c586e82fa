//! IDX files, the layout of MNIST and its relatives: all grey images of one size in one file, the
//! labels in a second one, either or both compressed with gzip.
//!
//! Format (big-endian): `00 00 08 03`, number, height, width as `u32`, then the pixels; labels
//! `00 00 08 01`, number, then one byte each. (Y. LeCun, C. Cortes, C. Burges, "The MNIST database",
//! section "File formats".)

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::Source;
use super::account::{Account, SkipReason};
use super::folder::{self, file_name, io};
use super::kind::Kind;
use super::name::{path_bytes, path_text};
use super::positioned::read_exact_at;
use crate::error::SourceError;
use crate::fingerprint::Fingerprint;

/// Largest side of an image, pixels.
const MAX_SIDE: u32 = 4096;

/// Most bytes of pixels or labels in one file: 8 GiB, ten times the largest of these collections.
const MAX_BYTES: u64 = 8 << 30;

/// Most bytes unpacked from a compressed file, which are held in memory: 2 GiB.
const MAX_UNPACKED_BYTES: u64 = 2 << 30;

/// Which of the two halves of a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdxSplit {
    /// `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`.
    Train,
    /// `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`.
    Test,
}

/// Images in an IDX file.
///
/// [`Source::read`] gives an image as a PGM file, so that grey becomes RGB where all other grey
/// images do. Labels are class numbers, classes are named by their numbers. Without a file of
/// labels the images have none.
#[derive(Debug)]
pub struct IdxSource {
    /// Path of the images.
    path: PathBuf,
    pixels: Pixels,
    len: usize,
    width: u32,
    height: u32,
    labels: Option<Vec<u8>>,
    classes: Vec<String>,
    account: Account,
}

#[derive(Debug)]
enum Pixels {
    /// Read at a position; the pixels start behind the header.
    File(File),
    /// Unpacked.
    Memory(Vec<u8>),
}

/// Bytes in front of the pixels: the magic number and three sizes.
const PIXELS_START: u64 = 16;

impl IdxSource {
    /// Opens one half of a collection in a folder, whatever of `.gz` and `.` or `-` its names have.
    ///
    /// # Errors
    /// No such file in the folder, or more than one; otherwise as [`Self::open_file`].
    pub fn open(dir: impl AsRef<Path>, split: IdxSplit) -> Result<Self, SourceError> {
        let dir = dir.as_ref();
        let wanted = match split {
            IdxSplit::Train => "train",
            IdxSplit::Test => "t10k",
        };
        let entries = folder::list(dir)?;
        let is_wanted = |path: &Path| is_images_name(path) && file_name(path).contains(wanted);
        match entries.iter().find(|entry| !entry.is_dir && is_wanted(&entry.path)) {
            Some(entry) => Self::open_file(&entry.path),
            None => Err(SourceError::NoImages {
                place: path_text(dir),
                instead: format!("; looked for {wanted}-images-idx3-ubyte or {wanted}-images-idx3-ubyte.gz"),
            }),
        }
    }

    /// Opens a file of images; the labels are looked for beside it, in the file of the same name
    /// with `labels` for `images` and `idx1` for `idx3`.
    ///
    /// # Errors
    /// A file of another format, with sizes that are zero or absurd, or that does not hold what its header says;
    /// images and labels that differ in number.
    pub fn open_file(path: impl AsRef<Path>) -> Result<Self, SourceError> {
        let path = path.as_ref().to_path_buf();
        let fail = |problem: String| idx_error(&path, problem);
        let mut reader = Reader::open(&path)?;
        let [len, height, width] = reader.header(3)?;
        if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
            return Err(fail(format!(
                "its images are {width} x {height} pixels; each side must be 1 to {MAX_SIDE}"
            )));
        }
        if len == 0 {
            return Err(fail("it holds no images; at least one was expected".into()));
        }
        let bytes = u64::from(len) * u64::from(width) * u64::from(height);
        if bytes > MAX_BYTES {
            return Err(fail(format!(
                "{len} images of {width} x {height} are {bytes} bytes, more than the limit of {MAX_BYTES}"
            )));
        }
        let pixels = reader.pixels(bytes)?;
        let labels = match labels_path(&path) {
            Some(labels) => Some(read_labels(&labels, len)?),
            None => None,
        };
        let largest = labels.iter().flatten().max();
        let classes = largest.map_or(Vec::new(), |&n| (0..=n).map(|n| n.to_string()).collect());
        let mut account = Account::all_used(len as usize);
        if labels.is_none() {
            let name = path_text(&path);
            account
                .label_errors
                .push(format!("{name}: no file of labels (…labels-idx1-ubyte) lies beside it"));
        }
        Ok(Self { path, pixels, len: len as usize, width, height, labels, classes, account })
    }

    /// Counts what lies in the same folder and is not used.
    pub(super) fn beside(mut self, entries: &[folder::Entry]) -> Self {
        let labels = labels_path(&self.path);
        for folder::Entry { path, is_dir } in entries {
            if *is_dir || *path == self.path || Some(path) == labels.as_ref() {
                continue;
            }
            let reason = match Kind::of(path) {
                _ if file_name(path).contains("-ubyte") => SkipReason::Kind("other IDX".into()),
                Kind::Other(reason) => reason,
                Kind::Image | Kind::Shard => continue,
            };
            self.account.skip(reason, path_text(path));
        }
        self
    }
}

fn read_labels(path: &Path, images: u32) -> Result<Vec<u8>, SourceError> {
    let mut reader = Reader::open(path)?;
    let [len] = reader.header(1)?;
    if len != images {
        let problem = format!("it holds {len} labels, but there are {images} images beside it");
        return Err(idx_error(path, problem));
    }
    reader.rest(len.into())
}

/// A file, unpacked on the way when it begins like a gzip file.
struct Reader<'a> {
    path: &'a Path,
    bytes: Box<dyn Read>,
    /// Size on disk of a file that is not compressed.
    plain_size: Option<u64>,
}

impl<'a> Reader<'a> {
    fn open(path: &'a Path) -> Result<Self, SourceError> {
        let file = File::open(path).map_err(|e| io(path, "open it", e))?;
        let size = file.metadata().map_err(|e| io(path, "look at it", e))?.len();
        let mut file = BufReader::new(file);
        let start = file.fill_buf().map_err(|e| io(path, "read it", e))?;
        if start.starts_with(&[0x1F, 0x8B]) {
            return Ok(Self { path, bytes: Box::new(MultiGzDecoder::new(file)), plain_size: None });
        }
        Ok(Self { path, bytes: Box::new(file), plain_size: Some(size) })
    }

    /// The sizes behind the magic number of unsigned bytes in `N` dimensions.
    fn header<const N: usize>(&mut self, dimensions: u8) -> Result<[u32; N], SourceError> {
        let mut words = vec![[0; 4]; N + 1];
        self.fill(words.as_flattened_mut())?;
        if words[0] != [0, 0, 8, dimensions] {
            let [a, b, c, d] = words[0];
            return Err(idx_error(
                self.path,
                format!(
                    "not an IDX file of {dimensions} dimensions of bytes: it begins with {a:02x} {b:02x} {c:02x} {d:02x}, 00 00 08 {dimensions:02x} was expected"
                ),
            ));
        }
        Ok(std::array::from_fn(|i| u32::from_be_bytes(words[i + 1])))
    }

    /// Leaves `bytes` of pixels on disk or unpacks them, and checks that they are all there is.
    fn pixels(mut self, bytes: u64) -> Result<Pixels, SourceError> {
        match self.plain_size {
            None => Ok(Pixels::Memory(self.rest(bytes)?)),
            Some(size) if size == PIXELS_START + bytes => {
                let file = File::open(self.path).map_err(|e| io(self.path, "open it", e))?;
                Ok(Pixels::File(file))
            }
            Some(size) => Err(self.wrong_length(bytes, size.saturating_sub(PIXELS_START))),
        }
    }

    /// Reads the rest of the file, which must be exactly `expected` bytes.
    fn rest(&mut self, expected: u64) -> Result<Vec<u8>, SourceError> {
        if expected > MAX_UNPACKED_BYTES {
            let problem = format!(
                "it unpacks to {expected} bytes, more than the limit of {MAX_UNPACKED_BYTES}; unpack it with gunzip"
            );
            return Err(idx_error(self.path, problem));
        }
        // Why not reserved at once: the header of a small hostile file may promise 2 GiB. One byte
        // more than expected shows a file that goes on.
        let mut out = Vec::new();
        let read = (&mut self.bytes).take(expected + 1).read_to_end(&mut out);
        read.map_err(|error| self.unsound(error))?;
        if out.len() as u64 != expected {
            return Err(self.wrong_length(expected, out.len() as u64));
        }
        Ok(out)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), SourceError> {
        self.bytes.read_exact(buffer).map_err(|error| self.unsound(error))
    }

    fn wrong_length(&self, expected: u64, found: u64) -> SourceError {
        let problem = match found < expected {
            true => format!(
                "truncated: {expected} bytes were expected behind its header, found {found}; copy it again"
            ),
            false => {
                format!("more than the {expected} bytes that its header promises; is it another format?")
            }
        };
        idx_error(self.path, problem)
    }

    fn unsound(&self, error: std::io::Error) -> SourceError {
        idx_error(self.path, format!("truncated or damaged ({error}); copy it again"))
    }
}

impl Source for IdxSource {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        if index >= self.len {
            return Err(SourceError::Index { index, len: self.len });
        }
        let size = self.width as usize * self.height as usize;
        let mut out = format!("P5 {} {} 255\n", self.width, self.height).into_bytes();
        match &self.pixels {
            Pixels::Memory(pixels) => out.extend_from_slice(&pixels[index * size..(index + 1) * size]),
            Pixels::File(file) => {
                let header = out.len();
                out.resize(header + size, 0);
                let offset = PIXELS_START + index as u64 * size as u64;
                read_exact_at(file, &mut out[header..], offset)
                    .map_err(|e| io(Path::new(&self.name(index)), "read the image", e))?;
            }
        }
        Ok(out)
    }

    fn name(&self, index: usize) -> String {
        if index < self.len { format!("{}:{index}", path_text(&self.path)) } else { String::new() }
    }

    fn key(&self, index: usize) -> String {
        if index < self.len { format!("{}:{index}", packed_name(&self.path)) } else { String::new() }
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().and_then(|labels| labels.get(index)).map(|&label| label.into())
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name_bytes(&self, index: usize) -> Option<Vec<u8>> {
        let mut name = path_bytes(&self.path).filter(|_| index < self.len)?;
        name.extend(format!(":{index}").bytes());
        Some(name)
    }

    fn account(&self) -> Account {
        self.account.clone()
    }

    fn fingerprint(&self) -> String {
        let size = u64::from(self.width) * u64::from(self.height);
        let name = packed_name(&self.path);
        let mut hash = Fingerprint::new();
        for index in 0..self.len {
            hash.sample(&format!("{name}:{index}"), size, self.label(index));
        }
        hash.finish()
    }
}

/// The file's name; packed or not, the samples are the same.
fn packed_name(path: &Path) -> String {
    let name = file_name(path);
    name.strip_suffix(".gz").unwrap_or(&name).to_owned()
}

/// Whether a file's name is that of IDX images: `...images-idx3-ubyte`, also with a dot, also
/// `.gz`.
pub(super) fn is_images_name(path: &Path) -> bool {
    let name = file_name(path);
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.ends_with("images-idx3-ubyte") || name.ends_with("images.idx3-ubyte")
}

/// The images that a folder stands for: those for training when it has them, else the first by name.
/// `None` when there are none.
pub(super) fn images_of(entries: &[folder::Entry]) -> Option<&Path> {
    let files = entries.iter().filter(|entry| !entry.is_dir && is_images_name(&entry.path));
    let found: Vec<&Path> = files.map(|entry| entry.path.as_path()).collect();
    found.iter().find(|path| file_name(path).contains("train")).or(found.first()).copied()
}

/// The labels that belong to a file of images, packed or not, if they are there.
fn labels_path(images: &Path) -> Option<PathBuf> {
    let name = file_name(images).replace("images", "labels").replace("idx3", "idx1");
    let plain = name.strip_suffix(".gz").unwrap_or(&name).to_owned();
    let candidates = [name, format!("{plain}.gz"), plain];
    candidates.iter().map(|name| images.with_file_name(name)).find(|path| path.is_file())
}

fn idx_error(path: &Path, problem: String) -> SourceError {
    SourceError::Idx { path: path_text(path), problem }
}
