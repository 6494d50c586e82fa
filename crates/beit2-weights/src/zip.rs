//! The directory of a zip file as torch writes it, every claim checked against the file. Only stored entries can be read:
//! torch stores all that is needed. TorchScript compresses the code beside it, which nobody here looks at.
//!
//! Why not the `zip` crate: a checkpoint needs none of compression, encryption, recovery of damaged archives or searching
//! for a directory in the middle of a file; what it needs is that every offset is checked before anything is read.

use std::collections::HashMap;

use crate::error::{WeightsError, ZipProblem};
use crate::source::FileSource;

/// The most entries that are read; a large model with its optimizer has a few thousand.
const MAX_ENTRIES: u64 = 1 << 18;
/// The longest directory that is read.
const MAX_DIRECTORY: u64 = 64 << 20;
/// Length of the end record, and of the longest comment behind it.
const END_RECORD: u64 = 22;
const MAX_COMMENT: u64 = 0xffff;
/// Lengths of the fixed parts of a directory entry and of the header in front of an entry's bytes.
const CENTRAL_FIXED: usize = 46;
const LOCAL_FIXED: u64 = 30;

/// Where the bytes of an entry lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// The entries of a zip file, by name.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Where the bytes lie; `None` for an entry that is compressed or encrypted.
    entries: HashMap<String, Option<Range>>,
    /// The names in the order of the directory.
    pub(crate) names: Vec<String>,
}

impl Directory {
    /// Reads and checks the directory of `source`.
    pub(crate) fn read(source: &FileSource) -> Result<Self, WeightsError> {
        let fail = |problem| WeightsError::Zip { path: source.path().to_path_buf(), problem };
        let place = find_directory(source)?;
        let bytes = source.read(place.start, place.len, "its zip directory")?;
        let claims = parse_directory(&bytes, place.entries).map_err(fail)?;

        let mut entries = HashMap::with_capacity(claims.len());
        let mut ranges = Vec::with_capacity(claims.len());
        let mut names = Vec::with_capacity(claims.len());
        for claim in claims {
            let range = locate(source, &claim, place.start)?;
            ranges.push((claim.local_offset, range.start + range.len, claim.name.clone()));
            names.push(claim.name.clone());
            if entries.insert(claim.name.clone(), claim.stored.then_some(range)).is_some() {
                return Err(fail(ZipProblem::Duplicate { entry: claim.name }));
            }
        }
        ranges.sort();
        for (a, b) in ranges.iter().zip(ranges.iter().skip(1)) {
            if b.0 < a.1 {
                return Err(fail(ZipProblem::Overlap { first: a.2.clone(), second: b.2.clone() }));
            }
        }
        Ok(Self { entries, names })
    }

    /// The place of an entry; `None` when there is none. An entry that is compressed cannot be read.
    pub(crate) fn stored(&self, name: &str) -> Result<Option<Range>, ZipProblem> {
        match self.entries.get(name) {
            Some(None) => Err(ZipProblem::NotStored { entry: name.to_string() }),
            Some(place) => Ok(*place),
            None => Ok(None),
        }
    }
}

struct Place {
    start: u64,
    len: u64,
    entries: u64,
}

/// Finds the directory through the end record, which lies at the very end of the file.
fn find_directory(source: &FileSource) -> Result<Place, WeightsError> {
    let fail = |problem| WeightsError::Zip { path: source.path().to_path_buf(), problem };
    let tail_len = source.len().min(END_RECORD + MAX_COMMENT);
    let tail_start = source.len() - tail_len;
    let tail = source.read(tail_start, tail_len, "its zip end record")?;
    let is_end = |&at: &usize| {
        tail[at..].starts_with(b"PK\x05\x06")
            && u16_at(&tail, at + 20).map(|comment| at + 22 + usize::from(comment)) == Some(tail.len())
    };
    let at = (0..tail.len()).rev().find(is_end).ok_or_else(|| fail(ZipProblem::NoEndRecord))?;
    let no_end = || fail(ZipProblem::NoEndRecord);
    let mut place = Place {
        entries: u16_at(&tail, at + 10).ok_or_else(no_end)?.into(),
        len: u32_at(&tail, at + 12).ok_or_else(no_end)?.into(),
        start: u32_at(&tail, at + 16).ok_or_else(no_end)?.into(),
    };
    let mut end = tail_start + at as u64;

    if place.entries == 0xffff || place.len == 0xffff_ffff || place.start == 0xffff_ffff {
        // A file of 4 GiB or 65 535 entries and more: a zip64 record says it, a locator in front of the end record where.
        let bad = |offset| fail(ZipProblem::BadOffset { what: "its zip64 end record".to_string(), offset });
        let locator_at = end.checked_sub(20).ok_or_else(|| bad(end))?;
        let locator = source.read(locator_at, 20, "its zip64 locator")?;
        if !locator.starts_with(b"PK\x06\x07") {
            return Err(bad(locator_at));
        }
        let record_at = u64_at(&locator, 8).ok_or_else(|| bad(locator_at))?;
        if record_at.checked_add(56).is_none_or(|record_end| record_end > locator_at) {
            return Err(bad(record_at));
        }
        let record = source.read(record_at, 56, "its zip64 end record")?;
        let field = |at| u64_at(&record, at).ok_or_else(|| bad(record_at));
        if !record.starts_with(b"PK\x06\x06") {
            return Err(bad(record_at));
        }
        place = Place { entries: field(32)?, len: field(40)?, start: field(48)? };
        end = record_at;
    }

    if place.start.checked_add(place.len).is_none_or(|directory_end| directory_end > end) {
        return Err(fail(ZipProblem::BadOffset { what: "its end record".to_string(), offset: place.start }));
    }
    for (count, unit, limit) in [(place.entries, "entries", MAX_ENTRIES), (place.len, "bytes", MAX_DIRECTORY)]
    {
        if count > limit {
            return Err(fail(ZipProblem::TooLarge { count, unit, limit }));
        }
    }
    Ok(place)
}

/// What the directory says about one entry.
struct Claim {
    name: String,
    /// Bytes in the file.
    size: u64,
    local_offset: u64,
    /// Whether these bytes are the entry itself: neither compressed nor encrypted.
    stored: bool,
}

fn parse_directory(bytes: &[u8], count: u64) -> Result<Vec<Claim>, ZipProblem> {
    let mut claims = Vec::new();
    let mut at = 0usize;
    for index in 0..count {
        let bad = || ZipProblem::BadOffset { what: format!("directory entry {index}"), offset: at as u64 };
        let fixed = bytes.get(at..at + CENTRAL_FIXED).ok_or_else(bad)?;
        if !fixed.starts_with(b"PK\x01\x02") {
            return Err(bad());
        }
        let short = |offset| u16_at(fixed, offset).map(usize::from).ok_or_else(bad);
        let long = |offset| u32_at(fixed, offset).map(u64::from).ok_or_else(bad);
        let (flags, method) = (short(8)?, short(10)?);
        let (name_len, extra_len, comment_len) = (short(28)?, short(30)?, short(32)?);
        let name_end = at + CENTRAL_FIXED + name_len;
        let extra_end = name_end + extra_len;
        let name =
            String::from_utf8_lossy(bytes.get(at + CENTRAL_FIXED..name_end).ok_or_else(bad)?).into_owned();
        let extra = bytes.get(name_end..extra_end).ok_or_else(bad)?;

        let mut wide = zip64_fields(extra);
        let mut widen = |narrow: u64| {
            if narrow == 0xffff_ffff { wide.next().unwrap_or(narrow) } else { narrow }
        };
        // Their order in the extra field: uncompressed size, compressed size, offset.
        let size = widen(long(24)?);
        let compressed = widen(long(20)?);
        let local_offset = widen(long(42)?);
        // Bit 0: encrypted.
        let stored = method == 0 && flags & 1 == 0 && size == compressed;
        claims.push(Claim { name, size: compressed, local_offset, stored });
        at = extra_end + comment_len;
    }
    Ok(claims)
}

/// The 64-bit numbers of the zip64 block among the extra fields, if there is one.
fn zip64_fields(mut extra: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let mut block: &[u8] = &[];
    while let (Some(id), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let Some((body, rest)) = extra.get(4..).and_then(|body| body.split_at_checked(len.into())) else {
            break;
        };
        if id == 1 {
            block = body;
            break;
        }
        extra = rest;
    }
    let (numbers, _) = block.as_chunks::<8>();
    numbers.iter().map(|number| u64::from_le_bytes(*number))
}

/// Follows a claim to its local header and checks that both agree and the bytes lie in front of the directory.
fn locate(source: &FileSource, claim: &Claim, directory: u64) -> Result<Range, WeightsError> {
    let fail = |problem| WeightsError::Zip { path: source.path().to_path_buf(), problem };
    let bad = || {
        fail(ZipProblem::BadOffset { what: format!("entry `{}`", claim.name), offset: claim.local_offset })
    };
    let name_len = claim.name.len() as u64;
    let header_len = LOCAL_FIXED + name_len;
    if claim.local_offset.checked_add(header_len).is_none_or(|end| end > directory) {
        return Err(bad());
    }
    let header = source.read(claim.local_offset, header_len, "a zip entry")?;
    let extra_len = u16_at(&header, 28).ok_or_else(bad)?;
    if !header.starts_with(b"PK\x03\x04")
        || header.get(LOCAL_FIXED as usize..) != Some(claim.name.as_bytes())
        || u16_at(&header, 26).map(u64::from) != Some(name_len)
    {
        return Err(bad());
    }
    let start = claim.local_offset + header_len + u64::from(extra_len);
    if start.checked_add(claim.size).is_none_or(|end| end > directory) {
        return Err(fail(ZipProblem::EntryTooLarge { entry: claim.name.clone(), size: claim.size }));
    }
    Ok(Range { start, len: claim.size })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}
