//! The directories of a TIFF file (TIFF 6.0, section 2, and BigTIFF), which are also those of EXIF data: only what is
//! needed to look at single tags.

use std::collections::HashSet;

/// One entry of a directory.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) tag: u16,
    /// Type of the values: 1 byte, 3 short, 4 long, 16 long8, ….
    kind: u16,
    count: u64,
    /// Where the values begin in the file.
    pub(super) at: usize,
}

/// The header of a TIFF file.
pub(super) struct Tiff<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    /// Offsets of 8 bytes.
    big: bool,
    first: u64,
}

/// Entries of one directory, and the offset of the next one (0: none).
pub(super) type Directory = (Vec<Entry>, u64);

impl<'a> Tiff<'a> {
    pub(super) fn open(bytes: &'a [u8]) -> Option<Self> {
        let big_endian = match bytes.get(..2)? {
            b"II" => false,
            b"MM" => true,
            _ => return None,
        };
        let mut tiff = Self { bytes, big_endian, big: false, first: 0 };
        tiff.big = match tiff.number(2, 2)? {
            42 => false,
            43 => true,
            _ => return None,
        };
        tiff.first = if tiff.big { tiff.number(8, 8)? } else { tiff.number(4, 4)? };
        Some(tiff)
    }

    /// An unsigned number of `size` bytes.
    fn number(&self, at: usize, size: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(size)?)?;
        let add = |sum: u64, byte: &u8| (sum << 8) | u64::from(*byte);
        Some(match self.big_endian {
            true => bytes.iter().fold(0, add),
            false => bytes.iter().rev().fold(0, add),
        })
    }

    fn directory(&self, offset: u64) -> Option<Directory> {
        let mut at = usize::try_from(offset).ok()?;
        let (count_size, entry_size, offset_size) = if self.big { (8, 20, 8) } else { (2, 12, 4) };
        let count = usize::try_from(self.number(at, count_size)?).ok()?;
        at += count_size;
        // A directory cannot be longer than its file.
        let end = at.checked_add(count.checked_mul(entry_size)?)?;
        self.bytes.get(at..end)?;
        let entry = |at: usize| -> Option<Entry> {
            let (tag, kind) = (self.number(at, 2)? as u16, self.number(at + 2, 2)? as u16);
            let count = self.number(at + 4, offset_size)?;
            let value = at + 4 + offset_size;
            let size = u64::from(size_of(kind)).checked_mul(count)?;
            let inline = size <= offset_size as u64;
            let at = if inline { value } else { usize::try_from(self.number(value, offset_size)?).ok()? };
            Some(Entry { tag, kind, count, at })
        };
        let entries = (at..end).step_by(entry_size).filter_map(entry).collect();
        Some((entries, self.number(end, offset_size).unwrap_or(0)))
    }

    /// Entries of the first directory.
    pub(super) fn first(&self) -> Option<Vec<Entry>> {
        self.directory(self.first).map(|(entries, _)| entries)
    }

    /// All directories of the chain, at most `limit`.
    pub(super) fn chain(&self, limit: usize) -> Vec<Vec<Entry>> {
        let mut found = Vec::new();
        let mut offset = self.first;
        // A damaged chain may lead back to where it was.
        let mut seen = HashSet::new();
        while offset != 0 && found.len() < limit && seen.insert(offset) {
            let Some((entries, next)) = self.directory(offset) else {
                break;
            };
            found.push(entries);
            offset = next;
        }
        found
    }

    /// The unsigned integers of a tag, at most `limit`; `None` without the tag.
    pub(super) fn values(&self, entries: &[Entry], tag: u16, limit: u64) -> Option<Vec<u64>> {
        let entry = entries.iter().find(|entry| entry.tag == tag)?;
        let size = match entry.kind {
            1 | 7 => 1,
            3 => 2,
            4 => 4,
            16 => 8,
            _ => return None,
        };
        (0..entry.count.min(limit) as usize).map(|at| self.number(entry.at + at * size, size)).collect()
    }

    /// The first value of a tag.
    pub(super) fn value(&self, entries: &[Entry], tag: u16) -> Option<u64> {
        self.values(entries, tag, 1)?.first().copied()
    }

    /// Fractions of a tag (type 5), as numbers.
    pub(super) fn fractions(&self, entries: &[Entry], tag: u16, limit: u64) -> Option<Vec<f64>> {
        let entry = entries.iter().find(|entry| entry.tag == tag && entry.kind == 5)?;
        let part = |at: usize| self.number(entry.at + 4 * at, 4).map(|part| part as f64);
        (0..entry.count.min(limit) as usize).map(|at| Some(part(2 * at)? / part(2 * at + 1)?)).collect()
    }

    /// Replaces the single value of a tag in a copy of the file; false when there is none, or the value does not fit.
    pub(super) fn replace(&self, bytes: &mut [u8], entries: &[Entry], tag: u16, value: u64) -> bool {
        let Some(entry) = entries.iter().find(|entry| entry.tag == tag && entry.count == 1) else {
            return false;
        };
        let size = match entry.kind {
            3 => 2,
            4 => 4,
            16 => 8,
            _ => return false,
        };
        let place = entry.at.checked_add(size).and_then(|end| bytes.get_mut(entry.at..end));
        let (Some(place), 0) = (place, value.checked_shr(8 * size as u32).unwrap_or(0)) else {
            return false;
        };
        match self.big_endian {
            true => place.copy_from_slice(&value.to_be_bytes()[8 - size..]),
            false => place.copy_from_slice(&value.to_le_bytes()[..size]),
        }
        true
    }
}

/// Bytes of one value.
fn size_of(kind: u16) -> u8 {
    match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        5 | 10 | 12 | 16..=18 => 8,
        _ => 4,
    }
}
