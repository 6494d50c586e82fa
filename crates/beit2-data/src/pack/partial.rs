//! The folder `OUT.partial`, which survives a kill at any moment and becomes `OUT` at the end.
//!
//! | file                | what                                                                          |
//! |---------------------|-------------------------------------------------------------------------------|
//! | `shard-00000.tar` … | complete shards; a line of the index says so                                   |
//! | `shards.index`      | grows by a line for each shard, after the shard is on the disk                 |
//! | `shard.writing`     | the shard at hand; thrown away when the pack goes on                           |
//! | `lock`              | held by the process that writes here                                           |

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::shard::{Entry, Shard, ShardFile};
use super::tar::TarShard;
use super::to_parquet::ParquetShard;
use super::{PackConfig, PackError, PackFormat, Packed, Unreadable};
use crate::shard_index::{self, FORMAT, Header, INDEX_NAME, ShardLine};
use crate::source::Source;

const WRITING: &str = "shard.writing";
const LOCK: &str = "lock";

pub(super) struct Partial {
    /// What the user knows.
    out: PathBuf,
    dir: PathBuf,
    index: File,
    format: PackFormat,
    /// Shards that are complete, in sum.
    so_far: Packed,
    taken: usize,
    /// Of `so_far.unreadable`, those that a line of the index has.
    recorded: usize,
    lock: Option<File>,
}

impl Partial {
    /// Continues the folder, or begins one.
    pub(super) fn open(
        out: &Path,
        source: &Arc<dyn Source>,
        config: &PackConfig,
        restart: bool,
    ) -> Result<Self, PackError> {
        let dir = check_out(out)?;
        let failed = |action| move |error| PackError::Io { path: out.to_owned(), action, error };
        refuse_foreign(&dir)?;
        fs::create_dir_all(&dir).map_err(failed("create the folder"))?;
        let open = |name: &str| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).open(dir.join(name))
        };
        let lock = open(LOCK).map_err(failed("write"))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(PackError::InUse { path: dir }),
            // Some network file systems have no locks; there the user's care must do.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let header = Header {
            format: FORMAT.to_owned(),
            settings: config.identity(),
            source: source.fingerprint(),
            images: source.len() as u64,
            classes: source.classes().to_vec(),
        };
        let path = dir.join(INDEX_NAME);
        let mut lines = Vec::new();
        if let Ok((found, shards)) = shard_index::read(&path) {
            match difference(&found, &header) {
                None => lines = shards,
                Some(_) if restart || shards.is_empty() => {}
                Some(key) => return Err(PackError::Other { path: dir, key }),
            }
        }
        // Only shards that are there as they were written count, up to the first that is not.
        let is_there = |line: &&ShardLine| {
            fs::metadata(dir.join(&line.shard)).is_ok_and(|meta| meta.is_file() && meta.len() == line.bytes)
        };
        let lines: Vec<ShardLine> = lines.iter().take_while(is_there).cloned().collect();
        clear(&dir, &lines).map_err(failed("write"))?;
        let mut text = to_line(&header);
        lines.iter().for_each(|line| text += &to_line(line));
        // By a rename, so that no kill leaves an index without the shards that are complete.
        let temp = dir.join(WRITING);
        let write = || -> io::Result<File> {
            let mut file = File::create(&temp)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temp, &path)?;
            OpenOptions::new().append(true).open(&path)
        };
        let index = write().map_err(failed("write"))?;
        let mut so_far = Packed::default();
        for line in &lines {
            so_far.images += line.members.len() as u64;
            so_far.copied += line.copied;
            so_far.shards += 1;
            so_far.bytes += line.bytes;
            so_far.unreadable.extend(line.unreadable.iter().cloned());
        }
        let taken = lines.last().map_or(0, |line| line.taken as usize);
        let recorded = so_far.unreadable.len();
        Ok(Self {
            out: out.to_owned(),
            dir,
            index,
            format: config.format,
            so_far,
            taken,
            recorded,
            lock: Some(lock),
        })
    }

    /// Images of the source that were dealt with before.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    pub(super) fn all_unreadable(&self) -> &[Unreadable] {
        &self.so_far.unreadable
    }

    pub(super) fn unreadable(&mut self, image: Unreadable) {
        self.so_far.unreadable.push(image);
    }

    /// Begins the next shard.
    pub(super) fn shard(&self, source: &dyn Source, format: PackFormat) -> Result<Shard, PackError> {
        let name = format!("shard-{:05}.{}", self.so_far.shards, self.format.ending());
        let begin = || -> io::Result<ShardFile> {
            let file = File::create(self.dir.join(WRITING))?;
            Ok(match format {
                PackFormat::Tar => ShardFile::Tar(Box::new(TarShard::begin(file, source.classes())?)),
                PackFormat::Parquet => ShardFile::Parquet(Box::new(ParquetShard::begin(file, source)?)),
            })
        };
        let file = begin().map_err(|error| self.failed(&name, error))?;
        Ok(Shard { path: self.dir.join(name), file, members: Vec::new(), copied: 0 })
    }

    pub(super) fn add(&self, shard: &mut Shard, entry: &Entry<'_>) -> Result<(), PackError> {
        shard.add(entry).map_err(|error| self.failed(&name_of(&shard.path), error))
    }

    /// Puts a complete shard on the disk, then its line; `taken` images of the source are done with it.
    pub(super) fn close(&mut self, shard: Shard, taken: usize) -> Result<(), PackError> {
        let Shard { path, file, members, copied } = shard;
        let name = name_of(&path);
        let close = |index: &mut File, unreadable: Vec<Unreadable>| -> io::Result<ShardLine> {
            let (file, bytes, mark) = match file {
                ShardFile::Tar(tar) => tar.end()?,
                ShardFile::Parquet(parquet) => {
                    let (file, bytes) = parquet.end()?;
                    (file, bytes, String::new())
                }
            };
            file.sync_all()?;
            fs::rename(self.dir.join(WRITING), &path)?;
            let shard = name.clone();
            let line = ShardLine { shard, bytes, taken: taken as u64, copied, mark, members, unreadable };
            index.write_all(to_line(&line).as_bytes())?;
            index.sync_all()?;
            Ok(line)
        };
        let unreadable = self.so_far.unreadable[self.recorded..].to_vec();
        let line = close(&mut self.index, unreadable).map_err(|error| self.failed(&name, error))?;
        self.recorded = self.so_far.unreadable.len();
        self.so_far.images += line.members.len() as u64;
        self.so_far.copied += line.copied;
        self.so_far.shards += 1;
        self.so_far.bytes += line.bytes;
        self.taken = taken;
        Ok(())
    }

    /// Gives the folder its name.
    pub(super) fn finish(mut self, images: usize) -> Result<Packed, PackError> {
        if self.so_far.images == 0 {
            self.lock = None;
            let _ = clear(&self.dir, &[]);
            for name in [INDEX_NAME, LOCK] {
                let _ = fs::remove_file(self.dir.join(name));
            }
            let _ = fs::remove_dir(&self.dir);
            return Err(PackError::NoImages { images: images as u64 });
        }
        let finish = || -> io::Result<()> {
            fs::remove_file(self.dir.join(LOCK))?;
            sync(&self.dir)?;
            if self.out.is_dir() {
                fs::remove_dir(&self.out)?; // it is empty, or this fails
            }
            fs::rename(&self.dir, &self.out)?;
            sync(self.out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        };
        finish().map_err(|error| PackError::Io { path: self.out.clone(), action: "write", error })?;
        Ok(self.so_far)
    }

    fn failed(&self, name: &str, error: io::Error) -> PackError {
        PackError::Io { path: self.out.join(name), action: "write", error }
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn to_line(value: &impl serde::Serialize) -> String {
    // Nothing in these types can fail: keys are text, and no number is infinite.
    let mut line = serde_json::to_string(value).unwrap_or_default();
    line.push('\n');
    line
}

/// `OUT.partial`, when `OUT` can be written.
fn check_out(out: &Path) -> Result<PathBuf, PackError> {
    let Some(name) = out.file_name() else {
        return Err(PackError::Out { path: out.to_owned(), problem: "this is no name of a folder" });
    };
    match fs::read_dir(out).map(Iterator::count) {
        Ok(1..) => return Err(PackError::NotEmpty { path: out.to_owned() }),
        Err(error) if error.kind() != io::ErrorKind::NotFound && out.exists() => {
            return Err(PackError::Out { path: out.to_owned(), problem: "there is a file of this name" });
        }
        _ => {}
    }
    let mut name = name.to_owned();
    name.push(".partial");
    Ok(out.with_file_name(name))
}

/// Refuses a folder that no pack began and that has something in it.
fn refuse_foreign(dir: &Path) -> Result<(), PackError> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    let ours = |name: &std::ffi::OsStr| name == LOCK || name == WRITING;
    let foreign = entries.flatten().any(|entry| !ours(&entry.file_name()));
    match foreign && shard_index::read(&dir.join(INDEX_NAME)).is_err() {
        true => Err(PackError::NotEmpty { path: dir.to_owned() }),
        false => Ok(()),
    }
}

/// Removes what an earlier pack left behind, but for `keep`. Other files stay, and then keep the folder from getting its
/// name twice over.
fn clear(dir: &Path, keep: &[ShardLine]) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_shard = name.starts_with("shard-") && (name.ends_with(".tar") || name.ends_with(".parquet"));
        if name == WRITING || (is_shard && keep.iter().all(|line| line.shard != name)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The setting in which two packs differ, if they do.
fn difference(found: &Header, wanted: &Header) -> Option<String> {
    if found.source != wanted.source || found.images != wanted.images || found.classes != wanted.classes {
        return Some("set of images".into());
    }
    let (Value::Object(found), Value::Object(wanted)) = (&found.settings, &wanted.settings) else {
        return Some("version of beit2".into());
    };
    let key = wanted.keys().chain(found.keys()).find(|key| found.get(*key) != wanted.get(*key))?;
    Some(format!("`{key}`"))
}

/// Flushes a folder's list of names to the disk, where the system can.
fn sync(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        match File::open(dir)?.sync_all() {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
            {
                Ok(())
            }
            other => other,
        }
    } else {
        Ok(())
    }
}
