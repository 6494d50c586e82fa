//! Entropy-coded data without its stuffing, and bits taken from it.

use std::ops::Range;

use memchr::memchr;

use crate::Unusual;

/// The entropy-coded data of one scan with stuffed bytes taken out, divided at restart markers.
///
/// Why a copy: afterwards the reader needs no look at markers, so that a refill is one load of eight bytes.
#[derive(Debug)]
pub(crate) struct ScanData {
    bytes: Vec<u8>,
    intervals: Vec<Range<usize>>,
    /// Length of what was read, up to the marker that ended the scan.
    pub(crate) length: usize,
}

impl ScanData {
    /// Takes the data at the beginning of `bytes` up to the first marker that is not a restart.
    ///
    /// # Errors
    /// Restart markers out of turn, and data without an end.
    pub(crate) fn new(bytes: &[u8]) -> Result<Self, Unusual> {
        let mut out = Vec::with_capacity(bytes.len());
        let (mut intervals, mut start, mut at) = (Vec::new(), 0, 0);
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let found = memchr(0xFF, rest).ok_or(Unusual("a scan has no end"))?;
            out.extend_from_slice(&rest[..found]);
            let marker = at + found;
            at = marker + 1;
            // Any number of 0xFF may stand before a code; with 0 behind them they are one value of 255.
            while bytes.get(at) == Some(&0xFF) {
                at += 1;
            }
            match bytes.get(at) {
                Some(0) => out.push(0xFF),
                Some(&code @ 0xD0..=0xD7) => {
                    if usize::from(code - 0xD0) != intervals.len() % 8 {
                        return Err(Unusual("a restart marker is missing"));
                    }
                    intervals.push(start..out.len());
                    start = out.len();
                }
                Some(_) => {
                    intervals.push(start..out.len());
                    out.extend([0; 8]);
                    return Ok(Self { bytes: out, intervals, length: marker });
                }
                None => return Err(Unusual("a scan has no end")),
            }
            at += 1;
        }
    }

    /// Stretches between restart markers.
    pub(crate) fn intervals(&self) -> usize {
        self.intervals.len()
    }

    /// A reader at the beginning of an interval.
    pub(crate) fn reader(&self, interval: usize) -> Bits<'_> {
        let Range { start, end } = self.intervals[interval];
        Bits { bytes: &self.bytes, at: start, end, bits: 0, count: 0 }
    }
}

/// Bits of one interval, first bit first. What lies behind its end means nothing; [`Bits::check`] says whether it was used.
#[derive(Clone, Debug)]
pub(crate) struct Bits<'a> {
    /// Of all intervals, so that the last bytes of one are read as quickly as the others.
    bytes: &'a [u8],
    at: usize,
    /// Behind the interval's last byte.
    end: usize,
    /// The next bits, from the highest on.
    bits: u64,
    /// How many of them are counted; further ones may be there already.
    count: u32,
}

impl Bits<'_> {
    /// Makes at least 32 bits available.
    #[inline(always)]
    pub(crate) fn refill(&mut self) {
        if self.count >= 32 {
            return;
        }
        let next = match self.bytes.get(self.at..).and_then(|rest| rest.first_chunk()) {
            Some(&eight) => u64::from_be_bytes(eight),
            // Far behind the end: `check` will say so.
            None => 0,
        };
        self.bits |= next >> self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    /// The next `n` bits, 1 to 32, as a number. At least `n` are available.
    #[inline(always)]
    pub(crate) fn peek(&self, n: u32) -> u32 {
        (self.bits >> (64 - n)) as u32
    }

    /// Skips `n` bits, at most as many as are available.
    #[inline(always)]
    pub(crate) fn skip(&mut self, n: u32) {
        self.bits <<= n;
        self.count -= n;
    }

    /// Takes `n` bits, 0 to 31, as a number. At least `n` are available.
    #[inline(always)]
    pub(crate) fn take(&mut self, n: u32) -> u32 {
        let value = ((self.bits >> 32) as u32 >> 1) >> (31 - n);
        self.skip(n);
        value
    }

    /// Takes a signed number of `size` bits, 0 to 16, as coefficients are stored: a first bit of 0 means below zero.
    /// ITU-T T.81, F.2.2.1.
    #[inline(always)]
    pub(crate) fn signed(&mut self, size: u32) -> i32 {
        let value = self.take(size) as i32;
        // Without a branch: the sign is as good as random.
        let below = i32::from(value < (1 << size) >> 1);
        value - below * ((1 << size) - 1)
    }

    /// Fails when more bits were taken than the interval has.
    pub(crate) fn check(&self) -> Result<(), Unusual> {
        let taken = self.at * 8 - self.count as usize;
        match taken <= self.end * 8 {
            true => Ok(()),
            false => Err(Unusual("data are missing")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stuffing_and_restarts_are_taken_out() {
        let data = ScanData::new(&[1, 0xFF, 0, 2, 0xFF, 0xD0, 3, 0xFF, 0xFF, 0xD1, 0xFF, 0xD9, 9]).unwrap();
        assert_eq!((data.intervals(), data.length), (3, 10));
        assert_eq!(data.bytes, [1, 0xFF, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(ScanData::new(&[1, 0xFF, 0xD1, 0xFF, 0xD9]).is_err());
        assert!(ScanData::new(&[1, 2]).is_err() && ScanData::new(&[1, 0xFF]).is_err());
    }

    #[test]
    fn bits_come_in_order_and_the_end_is_noticed() {
        let data = ScanData::new(&[0b1010_0000, 0b1100_0001, 0xFF, 0xD9]).unwrap();
        let mut bits = data.reader(0);
        bits.refill();
        assert_eq!((bits.peek(3), bits.take(4), bits.take(0)), (5, 10, 0));
        // 0000 is -15, 11 is 3, 0 is -1, 0 bits are 0.
        assert_eq!([bits.signed(4), bits.signed(2), bits.signed(1), bits.signed(0)], [-15, 3, -1, 0]);
        bits.skip(5);
        assert!(bits.check().is_ok());
        bits.skip(1);
        assert!(bits.check().is_err());
        for _ in 0..9 {
            bits.refill();
            assert_eq!(bits.take(31), 0);
        }
        assert!(bits.check().is_err());
    }
}
