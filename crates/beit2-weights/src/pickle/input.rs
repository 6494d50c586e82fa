//! The bytes of a pickle, fetched from the file as they are needed.
//!
//! Why not at once: in the legacy format nothing says how long a pickle is, and a gigabyte of storages follows it.

use crate::error::{PickleProblem, WeightsError};
use crate::pickle::{MAX_BYTES, MAX_NAME, Span};
use crate::source::FileSource;

/// The first fetch; each later one doubles what there is.
const FIRST_FETCH: u64 = 64 << 10;

pub(crate) struct Input<'a> {
    source: &'a FileSource,
    start: u64,
    end: u64,
    bytes: Vec<u8>,
    position: usize,
}

impl<'a> Input<'a> {
    /// A pickle that starts at `start` and ends before `end`.
    pub(crate) fn new(source: &'a FileSource, start: u64, end: u64) -> Self {
        Self { source, start, end, bytes: Vec::new(), position: 0 }
    }

    /// An error at the current place.
    pub(crate) fn fail(&self, problem: PickleProblem) -> WeightsError {
        WeightsError::Pickle { path: self.source.path().to_path_buf(), offset: self.offset(), problem }
    }

    /// The current place in the file.
    pub(crate) fn offset(&self) -> u64 {
        self.start + self.position as u64
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn raw(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        self.bytes.get(start..start + span.len as usize).unwrap_or(&[])
    }

    /// Takes the next `count` bytes. A claim beyond the file or the limit fails before memory is taken for it.
    pub(crate) fn take(&mut self, count: u64) -> Result<Span, WeightsError> {
        let left = self.end.saturating_sub(self.offset());
        if count > left {
            return Err(self.fail(PickleProblem::Truncated { wanted: count, left }));
        }
        let position = self.position as u64;
        if position + count > MAX_BYTES {
            return Err(self.fail(PickleProblem::Limit { what: "bytes", limit: MAX_BYTES }));
        }
        let have = self.bytes.len() as u64;
        if position + count > have {
            let all = self.end - self.start;
            let target = (position + count).max(have * 2).max(FIRST_FETCH).min(all).min(MAX_BYTES);
            self.bytes.resize(target as usize, 0);
            let fetched = self.bytes.get_mut(have as usize..).unwrap_or(&mut []);
            self.source.fill(self.start + have, fetched)?;
        }
        self.position += count as usize;
        // Both fit: MAX_BYTES is below 2^32.
        Ok(Span { start: position as u32, len: count as u32 })
    }

    /// Takes `N` bytes as an array.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        let span = self.take(N as u64)?;
        match self.raw(span).first_chunk() {
            Some(chunk) => Ok(*chunk),
            None => Err(self.fail(PickleProblem::Truncated { wanted: N as u64, left: 0 })),
        }
    }

    pub(crate) fn byte(&mut self) -> Result<u8, WeightsError> {
        self.array().map(|[byte]| byte)
    }

    /// Takes a length of `N` little-endian bytes and then as many bytes as it says.
    pub(crate) fn sized<const N: usize>(&mut self) -> Result<Span, WeightsError> {
        let mut wide = [0; 8];
        let narrow: [u8; N] = self.array()?;
        for (to, from) in wide.iter_mut().zip(narrow) {
            *to = from;
        }
        self.take(u64::from_le_bytes(wide))
    }

    /// Takes a line, without its end.
    pub(crate) fn line(&mut self) -> Result<Span, WeightsError> {
        let start = self.position;
        while self.byte()? != b'\n' {
            if self.position - start > MAX_NAME {
                return Err(self.fail(PickleProblem::BadText));
            }
        }
        self.checked(Span { start: start as u32, len: (self.position - start - 1) as u32 })
    }

    /// Passes a span on if it is UTF-8.
    pub(crate) fn checked(&self, span: Span) -> Result<Span, WeightsError> {
        match std::str::from_utf8(self.raw(span)) {
            Ok(_) => Ok(span),
            Err(_) => Err(self.fail(PickleProblem::BadText)),
        }
    }
}
