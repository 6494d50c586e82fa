//! Images whose blocks come whole, one after another. ITU-T T.81, annex F.

use std::sync::Arc;

use crate::Unusual;
use crate::bits::{Bits, ScanData};
use crate::blocks::{Planes, Queue};
use crate::frame::{BLOCK, Frame, Quantization, Scan, ScanPart, ZIGZAG};
use crate::huffman::{END, Huffman};
use crate::idct::Block;
use crate::markers::Segments;

/// Decodes all scans into the planes.
///
/// # Errors
/// Damaged or rare files.
pub(crate) fn decode(
    segments: &mut Segments<'_>,
    frame: &mut Frame,
    planes: &mut Planes,
) -> Result<(), Unusual> {
    let mut seen = vec![false; frame.components.len()];
    while let Some(scan) = segments.next_scan(frame)? {
        for part in &scan.parts {
            if std::mem::replace(&mut seen[part.component], true) {
                return Err(Unusual("a component has two scans"));
            }
        }
        if scan.spectral != (0, BLOCK - 1) || scan.approximation != (0, 0) {
            return Err(Unusual("a sequential image has a progressive scan"));
        }
        let data = ScanData::new(segments.rest())?;
        segments.skip(data.length);
        decode_scan(&data, &scan, frame, planes)?;
        // What follows a scan of all components is not looked at.
        if scan.parts.len() == frame.components.len() {
            return Ok(());
        }
    }
    match seen.iter().all(|&seen| seen) {
        true => Ok(()),
        false => Err(Unusual("a component has no scan")),
    }
}

/// The order in which a scan has its blocks.
#[derive(Debug)]
pub(crate) struct Walk {
    /// MCUs across and down.
    pub(crate) mcus: (usize, usize),
    /// Blocks of an MCU: which part of the scan, and the place within the MCU.
    pub(crate) blocks: Vec<(usize, usize, usize)>,
    /// By part: blocks of an MCU, across and down.
    pub(crate) steps: Vec<(usize, usize)>,
    /// MCUs between restarts.
    pub(crate) interval: usize,
}

impl Walk {
    /// # Errors
    /// Data with another number of restarts.
    pub(crate) fn new(frame: &Frame, scan: &Scan, data: &ScanData) -> Result<Self, Unusual> {
        let (mcus, steps) = match &scan.parts[..] {
            // Alone, a component has its blocks one by one, without those that pad an MCU.
            [only] => (frame.components[only.component].blocks(), vec![(1, 1)]),
            parts => {
                let step = |part: &ScanPart| {
                    (frame.components[part.component].h, frame.components[part.component].v)
                };
                (frame.mcus(), parts.iter().map(step).collect())
            }
        };
        let mut blocks = Vec::new();
        for (part, &(h, v)) in steps.iter().enumerate() {
            blocks.extend((0..v).flat_map(|y| (0..h).map(move |x| (part, x, y))));
        }
        let total = mcus.0 * mcus.1;
        let interval = if scan.restart_interval == 0 { total } else { scan.restart_interval };
        match data.intervals() == total.div_ceil(interval) {
            true => Ok(Self { mcus, blocks, steps, interval }),
            false => Err(Unusual("the number of restarts is wrong")),
        }
    }
}

/// A block of an MCU with all that decoding it takes.
struct Unit<'a> {
    component: usize,
    step: (usize, usize),
    inner: (usize, usize),
    dc: &'a Huffman,
    ac: &'a Huffman,
    quantization: &'a Quantization,
}

fn decode_scan(data: &ScanData, scan: &Scan, frame: &Frame, planes: &mut Planes) -> Result<(), Unusual> {
    let walk = Walk::new(frame, scan, data)?;
    let missing = Unusual("a table is missing");
    let table = |table: &'_ Option<Arc<Huffman>>| table.clone().ok_or(missing);
    let tables: Vec<_> = scan
        .parts
        .iter()
        .map(|part| Ok((table(&part.dc)?, table(&part.ac)?)))
        .collect::<Result<_, Unusual>>()?;
    for (dc, _) in &tables {
        dc.check_dc()?;
    }
    let unit = |&(part, x, y): &(usize, usize, usize)| {
        let component = scan.parts[part].component;
        let quantization = frame.components[component].quantization.as_deref().ok_or(missing)?;
        let (dc, ac) = &tables[part];
        Ok(Unit { component, step: walk.steps[part], inner: (x, y), dc, ac, quantization })
    };
    let units = walk.blocks.iter().map(unit).collect::<Result<Vec<_>, Unusual>>()?;
    // MCU rows that the region needs something of.
    let needed =
        units.iter().map(|unit| planes.0[unit.component].rows.1.div_ceil(unit.step.1)).max().unwrap_or(0);
    let mut queue = Queue::new();
    let mut bits = data.reader(0);
    let mut means = [0i32; 3];
    let (mut left, mut interval) = (walk.interval, 0);
    for row in 0..needed.min(walk.mcus.1) {
        // A few bytes that claim to be a huge image are found out before they cost much.
        bits.check()?;
        for column in 0..walk.mcus.0 {
            if left == 0 {
                bits.check()?;
                interval += 1;
                bits = data.reader(interval);
                means = [0; 3];
                left = walk.interval;
            }
            left -= 1;
            for unit in &units {
                let place = (column * unit.step.0 + unit.inner.0, row * unit.step.1 + unit.inner.1);
                bits.refill();
                let (_, difference) = unit.dc.coefficient(&mut bits)?;
                let mean = &mut means[unit.component];
                *mean = mean.wrapping_add(difference);
                if !planes.0[unit.component].holds(place.0, place.1) {
                    skip_block(&mut bits, unit.ac)?;
                    continue;
                }
                let block = queue.next();
                block.0[0] = (*mean as i16).wrapping_mul(unit.quantization[0]);
                let flat = read_block(&mut bits, unit.ac, unit.quantization, block)?;
                queue.push(planes, (unit.component, place.0, place.1), flat);
            }
        }
    }
    bits.check()?;
    queue.finish(planes);
    Ok(())
}

const TOO_LONG: Unusual = Unusual("a block has too many coefficients");

/// Reads a block's coefficients behind the first; whether there are none.
#[inline(always)]
fn read_block(
    bits: &mut Bits<'_>,
    table: &Huffman,
    quantization: &Quantization,
    block: &mut Block,
) -> Result<bool, Unusual> {
    let mut at = 1;
    loop {
        bits.refill();
        let (run, value) = table.coefficient(bits)?;
        at += run;
        if at >= BLOCK {
            // An end of block leads far beyond the block.
            return if run == END { Ok(at == 1 + run) } else { Err(TOO_LONG) };
        }
        block.0[usize::from(ZIGZAG[at])] = (value as i16).wrapping_mul(quantization[at]);
        at += 1;
        if at == BLOCK {
            return Ok(false);
        }
    }
}

/// Reads past a block's coefficients behind the first.
#[inline(always)]
fn skip_block(bits: &mut Bits<'_>, table: &Huffman) -> Result<(), Unusual> {
    let mut at = 1;
    while at < BLOCK {
        bits.refill();
        let (run, _) = table.coefficient(bits)?;
        if run == END {
            return Ok(());
        }
        at += run + 1;
    }
    if at > BLOCK { Err(TOO_LONG) } else { Ok(()) }
}
