//! Huffman codes as tables that give a whole coefficient at once.

use crate::Unusual;
use crate::bits::Bits;

/// Bits that select an entry of the table. Most codes together with the bits of their coefficient are no longer.
const LOOKUP: u32 = 10;

/// Set in an entry that holds only the symbol, since the coefficient's bits may lie outside the lookup.
const PARTIAL: u32 = 0x80;

/// Positions that an end of block skips: more than a block has.
pub(crate) const END: usize = 0xFF;

/// Decodes the symbols of one table. A symbol's lower four bits are the size of a number that follows, the upper four how
/// many zeros precede it (AC) or nothing (DC).
#[derive(Debug)]
pub(crate) struct Huffman {
    /// By the next bits: the length of everything (bits 0 to 5), zeros before the coefficient (8 to 15), the coefficient
    /// (16 to 31). [`PARTIAL`]: the length of the code, and the symbol instead of zeros; alone, a longer code.
    table: Box<[u32; 1 << LOOKUP]>,
    /// By length: the first number, left-aligned to 16 bits, that is not a code of that length or a shorter one.
    limits: [u32; 17],
    /// By length: what leads from a code to its place among the symbols.
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

impl Huffman {
    /// Builds the table of a header's counts by length and symbols.
    ///
    /// # Errors
    /// Codes that do not fit into their lengths.
    pub(crate) fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Self, Unusual> {
        let mut table = Box::new([PARTIAL; 1 << LOOKUP]);
        let (mut limits, mut offsets) = ([0; 17], [0; 17]);
        let (mut code, mut next) = (0u32, 0usize);
        for (length, &count) in (1..=16u32).zip(counts) {
            offsets[length as usize] = next as i32 - code as i32;
            for &symbol in symbols.iter().skip(next).take(count.into()) {
                if code >= 1 << length {
                    return Err(Unusual("a Huffman table has too many codes"));
                }
                if length <= LOOKUP {
                    fill(&mut table[..], code, length, symbol);
                }
                code += 1;
            }
            next += usize::from(count);
            // The code of all ones may not be used: libjpeg-turbo allows it, so it is allowed here.
            limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        match next == symbols.len() {
            true => Ok(Self { table, limits, offsets, symbols: symbols.to_vec() }),
            false => Err(Unusual("a Huffman table is incomplete")),
        }
    }

    /// Fails when a symbol cannot stand in a table for DC differences.
    pub(crate) fn check_dc(&self) -> Result<(), Unusual> {
        match self.symbols.iter().all(|&symbol| symbol <= 15) {
            true => Ok(()),
            false => Err(Unusual("a Huffman table has impossible sizes")),
        }
    }

    /// Next coefficient: how many zeros precede it, and its value. [`END`]: the block ends; in a progressive image, as do
    /// the next blocks, up to as many as two to the power of the value. Needs 32 bits.
    #[inline(always)]
    pub(crate) fn coefficient(&self, bits: &mut Bits<'_>) -> Result<(usize, i32), Unusual> {
        let entry = self.table[bits.peek(LOOKUP) as usize];
        if entry & PARTIAL == 0 {
            bits.skip(entry & 0x3F);
            return Ok(((entry >> 8 & 0xFF) as usize, entry as i32 >> 16));
        }
        let symbol = self.remaining_symbol(entry, bits)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 && run < 15 {
            return Ok((END, run as i32));
        }
        Ok((run, bits.signed(size)))
    }

    /// Next symbol, bit by bit.
    fn symbol(&self, bits: &mut Bits<'_>) -> Result<u8, Unusual> {
        let next = bits.peek(16);
        let mut length = 1;
        while length <= 16 && next >= self.limits[length] {
            length += 1;
        }
        if length > 16 {
            return Err(Unusual("a code is in no Huffman table"));
        }
        bits.skip(length as u32);
        let place = (next >> (16 - length)) as i32 + self.offsets[length];
        self.symbols.get(place as usize).copied().ok_or(Unusual("a code is in no Huffman table"))
    }

    #[inline(always)]
    fn remaining_symbol(&self, entry: u32, bits: &mut Bits<'_>) -> Result<u8, Unusual> {
        if entry == PARTIAL {
            return self.symbol(bits);
        }
        bits.skip(entry & 0x3F);
        Ok((entry >> 8) as u8)
    }
}

/// Writes a code's entries: one for every continuation of its bits.
fn fill(table: &mut [u32], code: u32, length: u32, symbol: u8) {
    let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
    let spare = LOOKUP - length;
    let first = (code << spare) as usize;
    for (rest, entry) in table[first..first + (1 << spare)].iter_mut().enumerate() {
        *entry = if size == 0 {
            // An end of block, or sixteen zeros: fifteen and a coefficient of 0. In a DC table, a difference of 0.
            length | if run < 15 { (END as u32) << 8 | run << 16 } else { run << 8 }
        } else if size <= spare {
            let number = (rest as u32 >> (spare - size)) as i32;
            let value = if number < 1 << (size - 1) { number + 1 - (1 << size) } else { number };
            (length + size) | run << 8 | (value as u32) << 16
        } else {
            length | PARTIAL | u32::from(symbol) << 8
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits::ScanData;

    /// Codes 00: end, 01: one bit, 100: sixteen zeros, 101: 3 zeros and 9 bits, then one of 12 bits.
    fn table() -> Huffman {
        let mut counts = [0; 16];
        (counts[1], counts[2], counts[11]) = (2, 2, 1);
        Huffman::new(&counts, &[0x00, 0x01, 0xF0, 0x39, 0x52]).unwrap()
    }

    fn read(bytes: &[u8]) -> Vec<Result<(usize, i32), Unusual>> {
        let data = ScanData::new(&[bytes, &[0xFF, 0xD9]].concat()).unwrap();
        let mut bits = data.reader(0);
        let mut out = Vec::new();
        while out.len() < 4 {
            bits.refill();
            out.push(table().coefficient(&mut bits));
        }
        out
    }

    #[test]
    fn coefficients_of_short_partial_and_long_codes() {
        // 01 1 | 101 100000001 | 100 | 110000000000 11
        let found = read(&[0b0111_0110, 0b0000_0011, 0b0011_0000, 0b0000_0011, 0b1000_0000]);
        assert_eq!(found, [Ok((0, 1)), Ok((3, 257)), Ok((15, 0)), Ok((5, 3))]);
        assert_eq!(read(&[0b0001_0000])[..2], [Ok((END, 0)), Ok((0, -1))]);
        assert!(read(&[0b1110_0000])[0].is_err());
    }

    #[test]
    fn impossible_tables_are_refused() {
        let mut counts = [0; 16];
        counts[0] = 3;
        assert!(Huffman::new(&counts, &[1, 2, 3]).is_err());
        counts[0] = 1;
        assert!(Huffman::new(&counts, &[]).is_err());
        assert!(Huffman::new(&counts, &[16]).unwrap().check_dc().is_err());
    }
}
