//! Shards whose members are listed in a file beside them, so that opening takes no look through the shards.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::shard::Shard;
use super::{Bytes, Member, Scan};
use crate::shard_index::{self, Header, INDEX_NAME, Label, ShardLine, mark};
use crate::source::labels::{RawLabel, Value};

/// A header of a tar file.
const BLOCK: usize = 512;

/// What lies in the shards, when the file beside them says so and fits all of them; `Err` with a sentence when there is
/// such a file and it does not fit.
pub(super) fn scan(paths: &[PathBuf], shards: &[Shard]) -> Result<Option<Scan>, String> {
    let Some(folder) = paths.first().and_then(|path| path.parent()) else {
        return Ok(None);
    };
    let path = folder.join(INDEX_NAME);
    if paths.iter().any(|path| path.parent() != Some(folder)) || !path.is_file() {
        return Ok(None);
    }
    let unfit = |problem: &str| {
        format!("{} was not used, and the shards were looked through instead: {problem}", path.display())
    };
    let (header, lines) = shard_index::read(&path).map_err(|problem| unfit(&problem))?;
    let by_name: HashMap<&str, &ShardLine> = lines.iter().map(|line| (line.shard.as_str(), line)).collect();
    let mut found = Vec::with_capacity(paths.len());
    for (path, shard) in paths.iter().zip(shards) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(&line) = by_name.get(name.as_ref()) else {
            return Err(unfit(&format!("it does not list {name}")));
        };
        if !fits(shard, line) {
            return Err(unfit(&format!("{name} is not the file that it lists")));
        }
        found.push(line);
    }
    Ok(Some(take(&header, &found)))
}

/// Whether a shard is the one that a line was written for: by its length and the headers of its first and last image.
fn fits(shard: &Shard, line: &ShardLine) -> bool {
    let Bytes::File(_) = shard.bytes else { return false };
    let sound = line.members.iter().all(|shard_index::Member(_, _, offset, size, _)| {
        *offset >= BLOCK as u64 && offset.checked_add(*size).is_some_and(|end| end <= line.bytes)
    });
    let header = |at: Option<&shard_index::Member>| {
        let mut block = [0; BLOCK];
        let start = at?.2.checked_sub(BLOCK as u64)?;
        shard.read_at(&mut block, start).ok().map(|()| block)
    };
    let both = header(line.members.first()).zip(header(line.members.last()));
    sound
        && shard.len().is_ok_and(|length| length == line.bytes)
        && both.is_some_and(|(a, b)| mark(&a, &b) == line.mark)
}

fn take(header: &Header, lines: &[&ShardLine]) -> Scan {
    let mut scan = Scan::default();
    for (number, line) in (0..).zip(lines) {
        for shard_index::Member(path, _, offset, size, label) in &line.members {
            let (path, bytes) = (path.clone(), None);
            scan.members.push(Member {
                shard: number,
                path,
                bytes,
                offset: *offset,
                size: *size,
                label: None,
            });
            let one = |number: &u32| Value::Number(u64::from(*number));
            scan.raw.push(match label {
                Label::None => RawLabel::None,
                Label::One(number) => RawLabel::One(one(number)),
                Label::Many(numbers) => RawLabel::Many(numbers.iter().map(one).collect()),
            });
        }
    }
    scan.shuffled = header.is_shuffled();
    scan.class_names = (!header.classes.is_empty()).then(|| header.classes.clone());
    scan
}

/// Whether a file is such a list beside shards.
pub(in crate::source) fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == INDEX_NAME)
}
