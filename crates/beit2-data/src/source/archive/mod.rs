//! Tar and zip archives, also in WebDataset layout: `key.jpg` beside an optional `key.cls`.
//!
//! The index (member, position, size) is built once by stepping over the headers; a sample is then
//! one positioned read. Packed shards are read in runs of several megabytes.

mod classes;
mod links;
mod members;
pub(super) mod packed;
mod pairing;
mod runs;
mod scan;
mod shard;
mod zip;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use self::classes::Folders;
use self::members::{class_names, json_label, numbers, parse_label};
use self::runs::Runs;
use self::scan::{Item, What};
use self::shard::{Bytes, Shard};
use super::account::{Account, SkipReason, some_of};
use super::arrangement;
use super::kind::{self, START, describe, has_extension, instead, is_image_name, is_tar, start_of};
use super::labels::{Labels, RawLabel, Value};
use super::name::{last_part, path_bytes, path_text};
use super::pieces::ORDER;
use super::walk::Walk;
use super::{MAX_SAMPLE_BYTES, Source};
use crate::error::SourceError;
use crate::fingerprint::Fingerprint;
use crate::order::Units;

/// Name of a member that names the classes, as `classes.txt` does. WebDataset's readers take `classes.txt` for a sample, and
/// pass over a name without an ending.
pub(crate) const CLASSES_MEMBER: &str = "__classes__";

/// Bytes of a packed shard that are read at once: 8 MiB.
const RUN_BYTES: u64 = 8 << 20;

/// A shard that is part of the program: a name for messages and its bytes.
pub type StaticShard = (&'static str, &'static [u8]);

/// Images in tar and zip files. A tar file that gzip has compressed is unpacked into a temporary file first.
///
/// Of shards that [`crate::pack`] wrote, the file `shards.index` beside them says what is in them, so that nothing is looked
/// through. If their order is a drawn one, an epoch reads them in runs of 8 MiB, of which 256 MiB are mixed with each other
/// at any time ([`Source::units`]); up to twice as much is kept in memory.
///
/// Samples come in the order of shards and members. Hard and symbolic links are followed inside their shard. Labels, in this
/// order of preference:
/// 1. `key.cls` members holding a decimal class number, else `key.json` members with `label`, `labels`, `cls` or `class`: a
///    number, a name or a list of them. A sample without one has no label. A label belongs to the image with the longest
///    common stem; what could belong together in two ways is an error.
/// 2. The folder that a member lies in, as [`FolderSource`](super::FolderSource) would have it if the shard was unpacked and
///    folders around everything (`train/cat/1.jpg`, `train/dog/1.jpg`) were taken away; if there are at least two different
///    ones. A single folder around everything is packaging, not a class.
/// 3. No labels.
///
/// Class names are the lines of a `classes.txt` or `__classes__` member of any shard, else the sorted names of labels or folders,
/// else the numbers as text. With both `classes.txt` and folder names, a folder's number is its
/// line.
#[derive(Debug)]
pub struct ArchiveSource {
    shards: Vec<Shard>,
    members: Vec<Member>,
    classes: Vec<String>,
    /// Labels that are names or sets.
    labels: Labels,
    /// Runs of packed shards; `None` when members are read one by one.
    runs: Option<Runs>,
    account: Account,
}

#[derive(Debug)]
struct Member {
    shard: u32,
    /// Path inside the shard, as text.
    path: String,
    /// Its bytes, when they are no text.
    bytes: Option<Box<[u8]>>,
    offset: u64,
    size: u64,
    label: Option<u32>,
}

/// What one pass over the headers of all shards finds.
#[derive(Default)]
struct Scan {
    members: Vec<Member>,
    /// The label of each member that its shard gives in a member of its own.
    raw: Vec<RawLabel>,
    folders: Folders,
    class_names: Option<Vec<String>>,
    /// Whether the members lie in an order that was drawn at random.
    shuffled: bool,
    account: Account,
}

impl ArchiveSource {
    /// Opens shard files in the given order.
    ///
    /// # Errors
    /// A shard that is missing, compressed, truncated or no tar file; members or labels that could belong together in two
    /// ways; no image in any of them.
    pub fn open(paths: &[PathBuf]) -> Result<Self, SourceError> {
        let mut shards = Vec::with_capacity(paths.len());
        for path in paths {
            check_start(path)?;
            shards.push(Shard::open(path)?);
        }
        let unused = match packed::scan(paths, &shards) {
            Ok(Some(scan)) => return Self::of_scan(scan, shards),
            Ok(None) => None,
            Err(warning) => Some(warning),
        };
        let mut source = Self::index(shards)?;
        source.account.warnings.extend(unused);
        Ok(source)
    }

    /// Serves shards that are compiled into the program.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_static(shards: &[StaticShard]) -> Result<Self, SourceError> {
        let shard = |&(name, bytes): &StaticShard| Shard {
            name: name.to_owned(),
            path: None,
            bytes: Bytes::Static(bytes),
            unpacked: false,
        };
        Self::index(shards.iter().map(shard).collect())
    }

    fn index(shards: Vec<Shard>) -> Result<Self, SourceError> {
        let mut scan = Scan::default();
        for (number, shard) in shards.iter().enumerate() {
            scan.shard(number as u32, shard)?;
        }
        Self::of_scan(scan, shards)
    }

    fn of_scan(mut scan: Scan, shards: Vec<Shard>) -> Result<Self, SourceError> {
        if scan.members.is_empty() {
            let place = some_of(shards.iter().map(|shard| &shard.name), shards.len());
            let instead = match scan.account.warnings.first() {
                Some(warning) if scan.account.skipped.is_empty() => format!(" ({warning})"),
                _ => instead(&scan.account),
            };
            return Err(SourceError::NoImages { place, instead });
        }
        scan.account.used = scan.members.len();
        scan.label(shards)
    }

    /// Counts what lies in the shards' folder and is not used.
    pub(super) fn beside(mut self, walk: &Walk) -> Self {
        let mut beside = walk.account_beside_shards();
        arrangement::remark_beside_shards(walk, &mut beside);
        self.account.merge(beside);
        self
    }
}

/// Refuses files that are no tar file by name or content, with what would be right.
fn check_start(path: &Path) -> Result<(), SourceError> {
    // A file that cannot be opened is reported by whoever opens it next.
    let Ok(start) = start_of(path) else {
        return Ok(());
    };
    // Old tar files have no mark; their reader says whether they are sound.
    let is_zip = matches!(start.as_slice(), [b'P', b'K', 3, 4, ..]);
    if is_tar(&start)
        || (has_extension(path, &["tar"]) && !kind::is_packed(&start))
        || (has_extension(path, &["zip"]) && is_zip)
        || shard::is_packed_tar(path)
    {
        return Ok(());
    }
    Err(SourceError::NotASource { path: path_text(path), problem: describe(path, &start) })
}

impl Scan {
    /// Takes in the members of one shard.
    fn shard(&mut self, number: u32, shard: &Shard) -> Result<(), SourceError> {
        let items = scan::items(shard, &mut self.account)?;
        let items = links::follow(items, &shard.name, &mut self.account);
        let mut images: Vec<Member> = Vec::new();
        let mut labels: Vec<(String, RawLabel)> = Vec::new();
        let mut json: Vec<(String, u64, u64)> = Vec::new();
        let mut others: Vec<(String, SkipReason)> = Vec::new();
        let mut folders: Vec<String> = Vec::new();
        let mut seen: HashSet<String> = HashSet::new();
        for Item { path, bytes, what } in items {
            if path.split('/').any(kind::is_system) {
                if what != What::Folder {
                    self.account.skip(SkipReason::System, format!("{}:{path}", shard.name));
                }
                continue;
            }
            let name = Path::new(&path);
            let (offset, size) = match what {
                What::File { offset, size } => (offset, size),
                What::Folder => {
                    folders.push(path);
                    continue;
                }
                What::Sparse => {
                    others.push((path, SkipReason::Sparse));
                    continue;
                }
                What::Special | What::HardLink(_) | What::SymLink(_) => {
                    others.push((path, SkipReason::Special));
                    continue;
                }
            };
            let is_label = has_extension(name, &["cls"]);
            let is_image = !is_label
                && !is_class_list(&path)
                && (is_image_name(name) || is_image_at(shard, name, offset, size)?);
            if (is_label || is_image) && !seen.insert(path.clone()) {
                return Err(shard
                    .fail(format!("member {path} is in it twice; make the shard again with one of them")));
            }
            if is_image {
                images.push(Member { shard: number, path, bytes, offset, size, label: None });
            } else if is_label {
                let text = shard.text(offset, size).and_then(|text| parse_label(&text));
                let label = text.map_err(|problem| label_error(&shard.name, &path, problem))?;
                labels.push((path, RawLabel::One(Value::Number(label.into()))));
            } else if has_extension(name, &["json"]) {
                json.push((path, offset, size));
            } else if is_class_list(&path) {
                let text = shard.text(offset, size);
                let text = text.map_err(|problem| label_error(&shard.name, &path, problem))?;
                let lines: Vec<String> =
                    text.lines().map(|line| line.trim().to_owned()).filter(|l| !l.is_empty()).collect();
                let mut unique = HashSet::new();
                if let Some(twice) = lines.iter().find(|line| !unique.insert(line.as_str())) {
                    let problem =
                        format!("the class '{twice}' is on two lines; each class needs a name of its own");
                    return Err(label_error(&shard.name, &path, problem));
                }
                if self.class_names.as_ref().is_some_and(|known| *known != lines) {
                    let problem = "it differs from the classes.txt of an earlier shard".into();
                    return Err(label_error(&shard.name, &path, problem));
                }
                self.class_names = Some(lines);
            } else {
                let reason = SkipReason::Kind(kind::ending(name));
                others.push((path, reason));
            }
        }
        // JSON beside an image can hold its label, unless labels have members of their own.
        let stems: HashSet<&str> = match labels.is_empty() {
            true => images.iter().map(|image| pairing::stem(&image.path)).collect(),
            false => HashSet::new(),
        };
        for (path, offset, size) in json {
            let found = match stems.contains(pairing::stem(&path)) {
                true => json_label(shard, offset, size)
                    .map_err(|problem| label_error(&shard.name, &path, problem))?,
                false => None,
            };
            match found {
                Some(label) => labels.push((path, label)),
                None => others.push((path, SkipReason::Kind(".json".into()))),
            }
        }
        self.pair(shard, &images, &labels, &others)?;
        self.folders.add(shard, &images, &folders, &others);
        for (path, reason) in others {
            self.account.skip(reason, format!("{}:{path}", shard.name));
        }
        self.members.extend(images);
        Ok(())
    }

    /// Gives the images of a shard the labels in members of their own.
    fn pair(
        &mut self,
        shard: &Shard,
        images: &[Member],
        labels: &[(String, RawLabel)],
        others: &[(String, SkipReason)],
    ) -> Result<(), SourceError> {
        let image_paths: Vec<&str> = images.iter().map(|image| image.path.as_str()).collect();
        let label_paths: Vec<&str> = labels.iter().map(|(path, _)| path.as_str()).collect();
        let other_paths: Vec<&str> = others.iter().map(|(path, _)| path.as_str()).collect();
        let pairing =
            pairing::pair(&image_paths, &label_paths, &other_paths).map_err(|problem| shard.fail(problem))?;
        match pairing::shared_stems(&image_paths) {
            Some((problem, true)) => return Err(shard.fail(problem)),
            Some((remark, false)) => self.account.warnings.push(format!("{}: {remark}", shard.name)),
            None => {}
        }
        let label = |at: Option<usize>| {
            at.and_then(|at| labels.get(at)).map_or(RawLabel::None, |label| label.1.clone())
        };
        self.raw.extend(pairing.labels.into_iter().map(label));
        for label in pairing.unused {
            self.account.skip(SkipReason::LabelWithoutImage, format!("{}:{}", shard.name, labels[label].0));
        }
        Ok(())
    }

    /// Gives every member its label by the rules of [`ArchiveSource`].
    fn label(mut self, shards: Vec<Shard>) -> Result<ArchiveSource, SourceError> {
        let names = self.class_names.take();
        let mut labels = Labels::default();
        let own = self.raw.iter().any(|label| *label != RawLabel::None);
        let classes = if !own {
            self.folders.refuse()?;
            std::mem::take(&mut self.folders).label(&mut self.members, names, &shards, &mut self.account)?
        } else if let Some(numbers) = numbers(&self.raw) {
            let classes = class_names(&numbers, names).map_err(|(member, problem)| {
                let member = &self.members[member];
                label_error(&full_name(&shards, member), &member.path, problem)
            })?;
            self.members.iter_mut().zip(numbers).for_each(|(member, number)| member.label = number);
            classes
        } else {
            labels = Labels::new(&self.raw, names.as_deref()).map_err(|(member, problem)| {
                let member = &self.members[member];
                label_error(&full_name(&shards, member), &member.path, problem)
            })?;
            self.members.iter_mut().enumerate().for_each(|(at, member)| member.label = labels.one(at));
            labels.classes.clone()
        };
        if !classes.is_empty() && !labels.multi {
            self.note_unlabelled(&shards, own);
        }
        let runs = self.shuffled.then(|| Runs::of(&self.members));
        Ok(ArchiveSource { shards, members: self.members, classes, labels, runs, account: self.account })
    }

    /// Says how many samples have no label although others have one.
    fn note_unlabelled(&mut self, shards: &[Shard], own: bool) {
        let without: Vec<&Member> = self.members.iter().filter(|member| member.label.is_none()).collect();
        if without.is_empty() {
            return;
        }
        let name = |member: &&Member| full_name(shards, member);
        let problem = format!(
            "{} of {} images have no {} ({}), though others have one",
            without.len(),
            self.members.len(),
            if own { "label in a .cls or .json member" } else { "class folder" },
            some_of(without.iter().take(5).map(name), without.len())
        );
        self.account.warnings.push(problem.clone());
        self.account.label_errors.push(format!("{problem}; give each a label, or take them out"));
    }
}

/// Whether a member names the classes.
fn is_class_list(path: &str) -> bool {
    [Some("classes.txt"), Some(CLASSES_MEMBER)].contains(&path.rsplit('/').next())
}

/// Whether a member without an image's ending is an image by its content.
fn is_image_at(shard: &Shard, name: &Path, offset: u64, size: u64) -> Result<bool, SourceError> {
    let mut start = vec![0; size.min(START as u64) as usize];
    shard.read_at(&mut start, offset).map_err(|error| shard.io("read a member", error))?;
    Ok(kind::is_image(name, &start))
}

/// `shard.tar:member`.
fn full_name(shards: &[Shard], member: &Member) -> String {
    let shard = shards.get(member.shard as usize).map_or("", |shard| shard.name.as_str());
    format!("{shard}:{}", member.path)
}

impl Source for ArchiveSource {
    fn len(&self) -> usize {
        self.members.len()
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        let member = self.members.get(index).ok_or(SourceError::Index { index, len: self.len() })?;
        if member.size > MAX_SAMPLE_BYTES {
            return Err(SourceError::TooLarge {
                name: self.name(index),
                bytes: member.size,
                limit: MAX_SAMPLE_BYTES,
            });
        }
        let shard = self.shards.get(member.shard as usize);
        let shard = shard.ok_or(SourceError::Index { index, len: self.len() })?;
        if let Some(bytes) = self.runs.as_ref().and_then(|runs| runs.read(index, member, shard)) {
            return Ok(bytes);
        }
        let mut buffer = vec![0; member.size as usize];
        let read = shard.read_at(&mut buffer, member.offset);
        let io = |error| SourceError::Io { path: self.name(index), action: "read the member", error };
        read.map_err(io)?;
        Ok(buffer)
    }

    fn name(&self, index: usize) -> String {
        self.members.get(index).map(|member| full_name(&self.shards, member)).unwrap_or_default()
    }

    fn name_bytes(&self, index: usize) -> Option<Vec<u8>> {
        let member = self.members.get(index)?;
        let shard = self.shards.get(member.shard as usize)?;
        let path = shard.path.as_deref().and_then(path_bytes);
        if path.is_none() && member.bytes.is_none() {
            return None;
        }
        let mut name = path.unwrap_or_else(|| shard.name.clone().into_bytes());
        name.push(b':');
        name.extend_from_slice(member.bytes.as_deref().unwrap_or(member.path.as_bytes()));
        Some(name)
    }

    fn key(&self, index: usize) -> String {
        let Some(member) = self.members.get(index) else { return String::new() };
        let shard = self.shards.get(member.shard as usize).map_or("", |shard| shard.name.as_str());
        format!("{}:{}", last_part(shard), member.path)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.members.get(index).and_then(|member| member.label)
    }

    fn labels(&self, index: usize) -> Option<Vec<u32>> {
        match self.labels.multi {
            true => self.labels.all(index).map(<[u32]>::to_vec),
            false => self.label(index).map(|label| vec![label]),
        }
    }

    fn is_multi_label(&self) -> bool {
        self.labels.multi
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn account(&self) -> Account {
        self.account.clone()
    }

    fn units(&self) -> Option<Units> {
        self.runs.as_ref().map(|runs| runs.units().clone())
    }

    fn fingerprint(&self) -> String {
        let mut hash = Fingerprint::new();
        if let Some(runs) = &self.runs {
            hash.sample(ORDER, runs.units().window as u64, None);
        }
        for (index, member) in self.members.iter().enumerate() {
            hash.sample(&member.path, member.size, member.label);
            if self.labels.multi {
                let classes = self.labels.all(index).unwrap_or_default();
                classes.iter().for_each(|&class| hash.sample("", 0, Some(class)));
            }
        }
        hash.finish()
    }
}

fn label_error(shard: &str, member: &str, problem: String) -> SourceError {
    SourceError::Label { shard: shard.into(), member: member.into(), problem }
}
