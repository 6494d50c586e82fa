//! Images whose coefficients come in several scans, each with more of them or more of their bits. ITU-T T.81, annex G.

use std::sync::Arc;

use crate::Unusual;
use crate::bits::{Bits, ScanData};
use crate::blocks::{Planes, Queue};
use crate::frame::{BLOCK, Frame, Scan, ZIGZAG};
use crate::huffman::{END, Huffman};
use crate::markers::Segments;
use crate::sequential::Walk;

/// Coefficients whose incompleteness makes libjpeg-turbo smooth the image, which this crate does not do.
const SMOOTHED: usize = 10;

/// Coefficients of one component, before quantisation is undone.
struct Coefficients {
    /// Blocks of a row, padding included.
    columns: usize,
    blocks: Vec<[i16; BLOCK]>,
    /// By coefficient: how many low bits are still missing; `None`: all.
    missing: [Option<u8>; BLOCK],
}

/// Decodes all scans and transforms what the region needs.
///
/// # Errors
/// Damaged or rare files.
pub(crate) fn decode(
    segments: &mut Segments<'_>,
    frame: &mut Frame,
    planes: &mut Planes,
) -> Result<(), Unusual> {
    let (across, down) = frame.mcus();
    let coefficients = |(h, v): (usize, usize)| Coefficients {
        columns: across * h,
        blocks: vec![[0; BLOCK]; across * h * down * v],
        missing: [None; BLOCK],
    };
    let mut all: Vec<_> = frame.components.iter().map(|part| coefficients((part.h, part.v))).collect();
    while let Some(scan) = segments.next_scan(frame)? {
        note_progress(&scan, &mut all)?;
        let data = ScanData::new(segments.rest())?;
        segments.skip(data.length);
        decode_scan(&data, &scan, frame, &mut all)?;
    }
    if all.iter().any(|component| component.missing[..SMOOTHED].iter().any(|&missing| missing != Some(0))) {
        return Err(Unusual("a progressive image is incomplete"));
    }
    let mut queue = Queue::new();
    for (number, (component, coefficients)) in frame.components.iter().zip(&all).enumerate() {
        let quantization =
            component.quantization.as_deref().ok_or(Unusual("a quantisation table is missing"))?;
        // In the order in which a block has its values.
        let mut steps = [0; BLOCK];
        ZIGZAG.iter().zip(quantization).for_each(|(&place, &step)| steps[usize::from(place)] = step);
        let (columns, rows) = (planes.0[number].columns, planes.0[number].rows);
        for (y, x) in (rows.0..rows.1).flat_map(|y| (columns.0..columns.1).map(move |x| (y, x))) {
            let block = queue.next();
            let stored = &coefficients.blocks[y * coefficients.columns + x];
            for ((value, &stored), &step) in block.0.iter_mut().zip(stored).zip(&steps) {
                *value = stored.wrapping_mul(step);
            }
            let flat = stored[1..].iter().all(|&value| value == 0);
            queue.push(planes, (number, x, y), flat);
        }
    }
    queue.finish(planes);
    Ok(())
}

/// Fails unless each of the scan's coefficients comes with the bits that are next.
fn note_progress(scan: &Scan, all: &mut [Coefficients]) -> Result<(), Unusual> {
    let ((first, last), (before, after)) = (scan.spectral, scan.approximation);
    let dc = first == 0;
    let ordered = first <= last && last < BLOCK && (before == 0 || before == after + 1) && after <= 13;
    if !ordered || (dc && last != 0) || (!dc && scan.parts.len() != 1) {
        return Err(Unusual("the header of a scan is wrong"));
    }
    for part in &scan.parts {
        let missing = &mut all[part.component].missing;
        if !dc && missing[0].is_none() {
            return Err(Unusual("its scans come in a rare order"));
        }
        for known in &mut missing[first..=last] {
            let expected = if before == 0 { None } else { Some(before) };
            if *known != expected {
                return Err(Unusual("its scans come in a rare order"));
            }
            *known = Some(after);
        }
    }
    Ok(())
}

fn decode_scan(data: &ScanData, scan: &Scan, frame: &Frame, all: &mut [Coefficients]) -> Result<(), Unusual> {
    let walk = Walk::new(frame, scan, data)?;
    let (first, last) = scan.spectral;
    let (before, after) = scan.approximation;
    let missing = Unusual("a table is missing");
    let table = |table: &'_ Option<Arc<Huffman>>, used: bool| match used {
        true => table.clone().map(Some).ok_or(missing),
        false => Ok(None),
    };
    let tables = scan.parts.iter().map(|part| {
        let dc = table(&part.dc, first == 0 && before == 0)?;
        dc.as_ref().map_or(Ok(()), |dc| dc.check_dc())?;
        Ok((dc, table(&part.ac, first > 0)?))
    });
    let tables = tables.collect::<Result<Vec<_>, Unusual>>()?;
    let mut band = Band { first, last, shift: after.into(), blocks_to_skip: 0 };
    let mut bits = data.reader(0);
    let mut means = [0i32; 3];
    let (mut left, mut interval) = (walk.interval, 0);
    for (row, column) in (0..walk.mcus.1).flat_map(|row| (0..walk.mcus.0).map(move |column| (row, column))) {
        if column == 0 {
            bits.check()?;
        }
        if left == 0 {
            bits.check()?;
            interval += 1;
            bits = data.reader(interval);
            (means, band.blocks_to_skip, left) = ([0; 3], 0, walk.interval);
        }
        left -= 1;
        for &(part, x, y) in &walk.blocks {
            let number = scan.parts[part].component;
            let coefficients = &mut all[number];
            let place =
                (row * walk.steps[part].1 + y) * coefficients.columns + column * walk.steps[part].0 + x;
            let block = &mut coefficients.blocks[place];
            match (&tables[part], before) {
                ((Some(dc), _), _) => {
                    bits.refill();
                    let (_, difference) = dc.coefficient(&mut bits)?;
                    means[number] = means[number].wrapping_add(difference);
                    block[0] = (means[number] << after) as i16;
                }
                ((None, Some(ac)), 0) => band.read(&mut bits, ac, block)?,
                ((None, Some(ac)), _) => band.refine(&mut bits, ac, block)?,
                ((None, None), _) => {
                    bits.refill();
                    block[0] |= (bits.take(1) as i16) << after;
                }
            }
        }
    }
    bits.check()
}

/// A scan's stretch of coefficients, and how many of the next blocks have nothing new in it.
struct Band {
    first: usize,
    last: usize,
    /// Low bits that later scans bring.
    shift: u32,
    blocks_to_skip: u32,
}

const TOO_LONG: Unusual = Unusual("a block has too many coefficients");

impl Band {
    /// The next coefficient and the zeros before it; `None`: this block ends, and as many more as follow, which are noted.
    #[inline(always)]
    fn coefficient(&mut self, bits: &mut Bits<'_>, table: &Huffman) -> Result<Option<(usize, i32)>, Unusual> {
        bits.refill();
        let (run, value) = table.coefficient(bits)?;
        if run < END {
            return Ok(Some((run, value)));
        }
        // `value` is at most 14.
        self.blocks_to_skip = (1 << value) + bits.take(value as u32);
        Ok(None)
    }

    /// First bits of the coefficients.
    fn read(
        &mut self,
        bits: &mut Bits<'_>,
        table: &Huffman,
        block: &mut [i16; BLOCK],
    ) -> Result<(), Unusual> {
        let mut at = self.first;
        while self.blocks_to_skip == 0 && at <= self.last {
            let Some((run, value)) = self.coefficient(bits, table)? else { break };
            at += run;
            if at > self.last {
                return Err(TOO_LONG);
            }
            block[usize::from(ZIGZAG[at])] = (value << self.shift) as i16;
            at += 1;
        }
        self.blocks_to_skip = self.blocks_to_skip.saturating_sub(1);
        Ok(())
    }

    /// One more bit of the coefficients that are known, and those that appear with this bit.
    fn refine(
        &mut self,
        bits: &mut Bits<'_>,
        table: &Huffman,
        block: &mut [i16; BLOCK],
    ) -> Result<(), Unusual> {
        let mut at = self.first;
        while self.blocks_to_skip == 0 && at <= self.last {
            let Some((run, value)) = self.coefficient(bits, table)? else { break };
            if value.abs() > 1 {
                return Err(Unusual("a coefficient appears with more than its last bit"));
            }
            at = self.correct(bits, block, at, Some(run));
            if at > self.last {
                return Err(TOO_LONG);
            }
            if value != 0 {
                block[usize::from(ZIGZAG[at])] = (value << self.shift) as i16;
            }
            at += 1;
        }
        if self.blocks_to_skip > 0 {
            self.correct(bits, block, at, None);
            self.blocks_to_skip -= 1;
        }
        Ok(())
    }

    /// Adds a bit to every coefficient from `at` on that is not zero, until so many zeros were passed and another is met;
    /// its position.
    fn correct(
        &self,
        bits: &mut Bits<'_>,
        block: &mut [i16; BLOCK],
        from: usize,
        zeros: Option<usize>,
    ) -> usize {
        let mut left = zeros;
        for at in from..=self.last {
            let value = &mut block[usize::from(ZIGZAG[at])];
            if *value == 0 {
                match &mut left {
                    Some(0) => return at,
                    Some(left) => *left -= 1,
                    None => {}
                }
                continue;
            }
            bits.refill();
            let bit = 1 << self.shift;
            if bits.take(1) == 1 && *value & bit == 0 {
                *value += if *value > 0 { bit } else { -bit };
            }
        }
        self.last + 1
    }
}
