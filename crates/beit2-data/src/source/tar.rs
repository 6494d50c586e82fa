//! Tar shards in WebDataset layout: `key.jpg` beside an optional `key.cls`.
//!
//! The index (member, position, size) is built once by stepping over the headers; a sample is then
//! one positioned read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use super::account::Account;
use super::kind::{describe, has_extension, instead, is_image_name, is_tar, start_of};
use super::name::path_text;
use super::positioned::read_exact_at;
use super::walk::Walk;
use super::{MAX_SAMPLE_BYTES, Source};
use crate::error::SourceError;
use crate::fingerprint::Fingerprint;

/// Most classes that labels in `.cls` members may imply when no `classes.txt` names them.
const MAX_CLASSES: u32 = 1_000_000;

/// Largest `.cls` or `classes.txt` member: room for a million class names.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// A shard that is part of the program: a name for messages and its bytes.
pub type StaticShard = (&'static str, &'static [u8]);

/// Images in uncompressed tar files.
///
/// Samples come in the order of shards and members. Labels, in this order of preference:
/// 1. `key.cls` members holding a decimal class number; a sample without one has no label.
/// 2. The name of the folder a member lies in (`train/cat/1.jpg` is a `cat`), when every sample
///    lies in one and there are at least two different ones. A single folder around everything is
///    packaging, not a class.
/// 3. No labels.
///
/// Class names are the lines of a `classes.txt` member of any shard, else the sorted folder names,
/// else the numbers as text. With both `classes.txt` and folder names, a folder's number is its
/// line.
#[derive(Debug)]
pub struct TarSource {
    shards: Vec<Shard>,
    members: Vec<Member>,
    classes: Vec<String>,
    account: Account,
}

#[derive(Debug)]
struct Shard {
    name: String,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    File(File),
    Static(&'static [u8]),
}

#[derive(Debug)]
struct Member {
    shard: u32,
    /// Path inside the shard.
    path: String,
    offset: u64,
    size: u64,
    label: Option<u32>,
}

/// What one pass over the headers of a shard finds.
#[derive(Default)]
struct Scan {
    members: Vec<Member>,
    /// `.cls` numbers by shard and key.
    labels: HashMap<(u32, String), u32>,
    class_names: Option<Vec<String>>,
}

impl TarSource {
    /// Opens shard files in the given order.
    ///
    /// # Errors
    /// A shard that is missing, compressed, truncated or no tar file; no image in any of them.
    pub fn open(paths: &[PathBuf]) -> Result<Self, SourceError> {
        let mut shards = Vec::with_capacity(paths.len());
        for path in paths {
            let name = path_text(path);
            check_start(path)?;
            let file = File::open(path).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => SourceError::Missing { path: name.clone() },
                _ => SourceError::Io { path: name.clone(), action: "open the shard", error },
            })?;
            shards.push(Shard { name, bytes: Bytes::File(file) });
        }
        Self::index(shards)
    }

    /// Serves shards that are compiled into the program.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_static(shards: &[StaticShard]) -> Result<Self, SourceError> {
        let shard =
            |&(name, bytes): &StaticShard| Shard { name: name.to_owned(), bytes: Bytes::Static(bytes) };
        Self::index(shards.iter().map(shard).collect())
    }

    fn index(shards: Vec<Shard>) -> Result<Self, SourceError> {
        let mut scan = Scan::default();
        for (number, shard) in shards.iter().enumerate() {
            match &shard.bytes {
                Bytes::File(file) => {
                    let length = file.metadata().map(|meta| meta.len());
                    let length = length.map_err(|error| SourceError::Io {
                        path: shard.name.clone(),
                        action: "look at it",
                        error,
                    })?;
                    scan.shard(number as u32, &shard.name, file, length)?;
                }
                Bytes::Static(bytes) => {
                    scan.shard(number as u32, &shard.name, Cursor::new(*bytes), bytes.len() as u64)?
                }
            }
        }
        if scan.members.is_empty() {
            let names: Vec<&str> = shards.iter().take(3).map(|s| s.name.as_str()).collect();
            let place = format!("{}{}", names.join(", "), if shards.len() > 3 { ", ..." } else { "" });
            let instead = instead(&Account::default());
            return Err(SourceError::NoImages { place, instead });
        }
        let (members, classes) = scan.label(&shards)?;
        let account = Account::all_used(members.len());
        Ok(Self { shards, members, classes, account })
    }

    /// Counts what lies in the shards' folder and is not used.
    pub(super) fn beside(mut self, walk: &Walk) -> Self {
        self.account.merge(walk.account_beside_shards());
        self
    }
}

/// Refuses files that are no tar file by name or content, with what would be right.
fn check_start(path: &Path) -> Result<(), SourceError> {
    // A file that cannot be opened is reported by whoever opens it next.
    let Ok(start) = start_of(path) else {
        return Ok(());
    };
    let called_tar = has_extension(path, &["tar"]);
    let packed = matches!(
        start.as_slice(),
        [0x1F, 0x8B, ..]
            | [0x28, 0xB5, 0x2F, 0xFD, ..]
            | [0xFD, b'7', ..]
            | [b'B', b'Z', b'h', ..]
            | [b'P', b'K', 3, 4, ..]
    );
    if is_tar(&start) || (called_tar && !packed) {
        return Ok(());
    }
    Err(SourceError::NotASource { path: path_text(path), problem: describe(path, &start) })
}

impl Scan {
    /// Steps over the headers of one shard.
    fn shard(
        &mut self,
        number: u32,
        name: &str,
        bytes: impl Read + Seek,
        length: u64,
    ) -> Result<(), SourceError> {
        let fail = |problem: String| SourceError::Shard { shard: name.to_owned(), problem };
        let unsound =
            |error: std::io::Error| fail(format!("not a sound tar file ({error}); copy or make it again"));
        if length == 0 {
            return Err(fail("the file is empty; a tar file with images was expected".into()));
        }
        let mut archive = tar::Archive::new(bytes);
        for entry in archive.entries_with_seek().map_err(unsound)? {
            let mut entry = entry.map_err(unsound)?;
            let kind = entry.header().entry_type();
            if !(kind.is_file() || kind.is_contiguous()) {
                continue;
            }
            let path = normal_path(&String::from_utf8_lossy(&entry.path_bytes()));
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(size).is_none_or(|end| end > length) {
                return Err(fail(format!(
                    "truncated: member {path} needs {size} bytes at {offset}, but the file has only {length}; copy it again"
                )));
            }
            let hidden = path.rsplit('/').next().is_none_or(|file| file.is_empty() || file.starts_with('.'));
            if hidden {
                continue;
            }
            if is_image_name(Path::new(&path)) {
                self.members.push(Member { shard: number, path, offset, size, label: None });
            } else if has_extension(Path::new(&path), &["cls"]) {
                let text = small_text(&mut entry, size).map_err(|e| label_error(name, &path, e))?;
                let label = parse_label(&text).map_err(|e| label_error(name, &path, e))?;
                self.labels.insert((number, key_of(&path).to_owned()), label);
            } else if path.rsplit('/').next() == Some("classes.txt") {
                let text = small_text(&mut entry, size).map_err(|e| label_error(name, &path, e))?;
                let lines: Vec<String> =
                    text.lines().map(|line| line.trim().to_owned()).filter(|l| !l.is_empty()).collect();
                if self.class_names.as_ref().is_some_and(|known| *known != lines) {
                    return Err(label_error(
                        name,
                        &path,
                        "it differs from the classes.txt of an earlier shard".into(),
                    ));
                }
                self.class_names = Some(lines);
            }
        }
        Ok(())
    }

    /// Gives every member its label by the rules of [`TarSource`].
    fn label(mut self, shards: &[Shard]) -> Result<(Vec<Member>, Vec<String>), SourceError> {
        let shard_name = |member: &Member| shards.get(member.shard as usize).map_or("", |s| s.name.as_str());
        if !self.labels.is_empty() {
            let largest = self.labels.values().copied().max().unwrap_or(0);
            let classes = match self.class_names.take() {
                Some(names) => names,
                None => (0..=largest).map(|n| n.to_string()).collect(),
            };
            for member in &mut self.members {
                let label = self.labels.get(&(member.shard, key_of(&member.path).to_owned())).copied();
                if let Some(label) = label.filter(|&label| label as usize >= classes.len()) {
                    let problem =
                        format!("class {label} is not in classes.txt, which has {} lines", classes.len());
                    return Err(label_error(shard_name(member), &member.path, problem));
                }
                member.label = label;
            }
            return Ok((self.members, classes));
        }
        let mut folders: Vec<&str> = self.members.iter().filter_map(|m| folder_of(&m.path)).collect();
        let all_in_folders = folders.len() == self.members.len();
        folders.sort_unstable();
        folders.dedup();
        if !all_in_folders || folders.len() < 2 {
            return Ok((self.members, Vec::new()));
        }
        let classes: Vec<String> = match self.class_names.take() {
            Some(names) => names,
            None => folders.iter().map(|&f| f.to_owned()).collect(),
        };
        let numbers: HashMap<&str, u32> =
            classes.iter().enumerate().map(|(i, c)| (c.as_str(), i as u32)).collect();
        for member in &mut self.members {
            let folder = folder_of(&member.path).unwrap_or_default();
            member.label = numbers.get(folder).copied();
            if member.label.is_none() {
                let problem = format!("its folder '{folder}' is not a line of classes.txt");
                return Err(label_error(shard_name(member), &member.path, problem));
            }
        }
        Ok((self.members, classes))
    }
}

impl Source for TarSource {
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
        let io = |error| SourceError::Io { path: self.name(index), action: "read the member", error };
        let size = member.size as usize;
        match self.shards.get(member.shard as usize).map(|shard| &shard.bytes) {
            Some(Bytes::File(file)) => {
                let mut buffer = vec![0; size];
                read_exact_at(file, &mut buffer, member.offset).map_err(io)?;
                Ok(buffer)
            }
            Some(Bytes::Static(bytes)) => {
                let start = member.offset as usize;
                let part = bytes.get(start..start + size).map(<[u8]>::to_vec);
                part.ok_or_else(|| io(std::io::ErrorKind::UnexpectedEof.into()))
            }
            None => Err(io(std::io::ErrorKind::NotFound.into())),
        }
    }

    fn name(&self, index: usize) -> String {
        let Some(member) = self.members.get(index) else {
            return String::new();
        };
        let shard = self.shards.get(member.shard as usize).map_or("", |s| s.name.as_str());
        format!("{shard}:{}", member.path)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.members.get(index).and_then(|member| member.label)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn account(&self) -> Account {
        self.account.clone()
    }

    fn fingerprint(&self) -> String {
        let mut hash = Fingerprint::new();
        for member in &self.members {
            hash.sample(&member.path, member.size, member.label);
        }
        hash.finish()
    }
}

/// `./a//b.jpg` and `a/b.jpg` are one name. (Members are never written to disk, so `..` is
/// harmless.)
fn normal_path(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

/// The part that members of one sample share: up to the first dot of the file name (WebDataset's
/// rule).
fn key_of(path: &str) -> &str {
    let file = path.rfind('/').map_or(0, |slash| slash + 1);
    path[file..].find('.').map_or(path, |dot| &path[..file + dot])
}

/// Name of the folder directly around a member.
fn folder_of(path: &str) -> Option<&str> {
    let (folders, _) = path.rsplit_once('/')?;
    folders.rsplit('/').next()
}

fn small_text(entry: &mut impl Read, size: u64) -> Result<String, String> {
    if size > MAX_TEXT_BYTES {
        return Err(format!("{size} bytes of text is more than the limit of {MAX_TEXT_BYTES}"));
    }
    let mut text = String::new();
    entry.read_to_string(&mut text).map_err(|error| format!("it cannot be read as text ({error})"))?;
    Ok(text)
}

fn parse_label(text: &str) -> Result<u32, String> {
    let label = text.trim().parse::<u32>().ok().filter(|&label| label < MAX_CLASSES);
    label.ok_or_else(|| {
        let start: String = text.trim().chars().take(20).collect();
        format!("'{start}' is not a class number; a decimal number below {MAX_CLASSES} was expected")
    })
}

fn label_error(shard: &str, member: &str, problem: String) -> SourceError {
    SourceError::Label { shard: shard.into(), member: member.into(), problem }
}
