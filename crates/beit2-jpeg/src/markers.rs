//! The chain of marker segments around the scans. ITU-T T.81, annex B.

use std::sync::Arc;

use crate::Unusual;
use crate::frame::{BLOCK, Component, Frame, Quantization, Scan, ScanPart};
use crate::huffman::Huffman;

const START_OF_IMAGE: [u8; 2] = [0xFF, 0xD8];
const END_OF_IMAGE: u8 = 0xD9;

const CUT: Unusual = Unusual("a header is cut off");

/// A position in the file, and the tables that were defined up to there.
#[derive(Clone, Debug)]
pub(crate) struct Segments<'a> {
    bytes: &'a [u8],
    at: usize,
    quantization: [Option<Quantization>; 4],
    dc: [Option<Arc<Huffman>>; 4],
    ac: [Option<Arc<Huffman>>; 4],
    restart_interval: usize,
    jfif: bool,
    /// The colour transform that an Adobe segment names.
    adobe: Option<u8>,
}

/// What a marker segment says beyond tables.
enum Segment<'a> {
    Frame(u8, &'a [u8]),
    Scan(&'a [u8]),
    End,
    Other,
}

impl<'a> Segments<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, Unusual> {
        if !bytes.starts_with(&START_OF_IMAGE) {
            return Err(Unusual("it does not begin as a JPEG"));
        }
        Ok(Self {
            bytes,
            at: START_OF_IMAGE.len(),
            quantization: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart_interval: 0,
            jfif: false,
            adobe: None,
        })
    }

    /// Reads up to the first scan, which is left for [`Self::next_scan`].
    pub(crate) fn read_frame(&mut self) -> Result<Frame, Unusual> {
        let mut frame = None;
        loop {
            let before = self.at;
            match self.next_segment()? {
                Segment::Frame(code, content) if frame.is_none() => frame = Some(read_frame(code, content)?),
                Segment::Frame(..) => return Err(Unusual("it has two frames")),
                Segment::Scan(_) => {
                    self.at = before;
                    let frame: Frame = frame.ok_or(Unusual("a scan comes before the frame"))?;
                    self.check_colors(&frame)?;
                    frame.check_sampling()?;
                    return Ok(frame);
                }
                Segment::End => return Err(Unusual("it has no scans")),
                Segment::Other => {}
            }
        }
    }

    /// The next scan's header; `None` at the end of the image. The data follow in [`Self::rest`]. Quantisation tables of
    /// components that have their first scan are noted.
    pub(crate) fn next_scan(&mut self, frame: &mut Frame) -> Result<Option<Scan>, Unusual> {
        loop {
            match self.next_segment()? {
                Segment::Scan(content) => return self.read_scan(content, frame).map(Some),
                Segment::Frame(..) => return Err(Unusual("it has two frames")),
                Segment::End => return Ok(None),
                Segment::Other => {}
            }
        }
    }

    /// What follows the segments read so far.
    pub(crate) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// Goes on behind `length` bytes of a scan's data.
    pub(crate) fn skip(&mut self, length: usize) {
        self.at += length;
    }

    fn next_segment(&mut self) -> Result<Segment<'a>, Unusual> {
        if self.bytes.get(self.at) != Some(&0xFF) {
            return Err(Unusual("something stands between its segments"));
        }
        while self.bytes.get(self.at) == Some(&0xFF) {
            self.at += 1;
        }
        let code = *self.bytes.get(self.at).ok_or(CUT)?;
        self.at += 1;
        if code == END_OF_IMAGE {
            return Ok(Segment::End);
        }
        if code < 0xC0 || (0xD0..=0xD8).contains(&code) {
            return Err(Unusual("it has a rare marker"));
        }
        let length = self.bytes.get(self.at..self.at + 2).ok_or(CUT)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let content = self.bytes.get(self.at + 2..self.at + length).ok_or(CUT)?;
        self.at += length;
        match code {
            // Sequential and progressive with Huffman codes; the others are lossless, hierarchical or arithmetic.
            0xC0..=0xC2 => return Ok(Segment::Frame(code, content)),
            0xC4 => self.read_huffman(content)?,
            0xDA => return Ok(Segment::Scan(content)),
            0xDB => self.read_quantization(content)?,
            0xDD => match content {
                [high, low] => self.restart_interval = usize::from(u16::from_be_bytes([*high, *low])),
                _ => return Err(Unusual("a restart interval is not two bytes")),
            },
            0xE0 => self.jfif |= content.starts_with(b"JFIF\0") && content.len() >= 14,
            0xEE if content.starts_with(b"Adobe") && content.len() >= 12 => self.adobe = Some(content[11]),
            // Applications' data and comments.
            0xE1..=0xEF | 0xFE => {}
            _ => return Err(Unusual("it has a rare marker")),
        }
        Ok(Segment::Other)
    }

    fn read_quantization(&mut self, mut content: &[u8]) -> Result<(), Unusual> {
        while let [head, rest @ ..] = content {
            let (wide, table) = (head >> 4, usize::from(head & 15));
            let width = match wide {
                0 => 1,
                1 => 2,
                _ => return Err(Unusual("a quantisation table is of unknown precision")),
            };
            let values = rest.get(..BLOCK * width).ok_or(CUT)?;
            let target = self.quantization.get_mut(table).ok_or(Unusual("it has more than four tables"))?;
            *target = Some(std::array::from_fn(|at| match width {
                1 => i16::from(values[at]),
                _ => i16::from_be_bytes([values[at * 2], values[at * 2 + 1]]),
            }));
            content = &rest[BLOCK * width..];
        }
        Ok(())
    }

    fn read_huffman(&mut self, mut content: &[u8]) -> Result<(), Unusual> {
        while let [head, rest @ ..] = content {
            let (counts, rest) = rest.split_first_chunk::<16>().ok_or(CUT)?;
            let total = counts.iter().map(|&count| usize::from(count)).sum();
            let symbols = rest.get(..total).ok_or(CUT)?;
            let table = Arc::new(Huffman::new(counts, symbols)?);
            let class = match head >> 4 {
                0 => &mut self.dc,
                1 => &mut self.ac,
                _ => return Err(Unusual("a Huffman table is of an unknown class")),
            };
            *class.get_mut(usize::from(head & 15)).ok_or(Unusual("it has more than four tables"))? =
                Some(table);
            content = &rest[total..];
        }
        Ok(())
    }

    fn read_scan(&self, content: &[u8], frame: &mut Frame) -> Result<Scan, Unusual> {
        let bad = Unusual("the header of a scan is wrong");
        let [count, rest @ ..] = content else { return Err(bad) };
        let count = usize::from(*count);
        let (selectors, tail) = rest.split_at_checked(count * 2).ok_or(bad)?;
        let &[first, last, approximation] = tail else { return Err(bad) };
        if !(1..=frame.components.len()).contains(&count) {
            return Err(bad);
        }
        let mut parts: Vec<ScanPart> = Vec::with_capacity(count);
        for selector in selectors.as_chunks::<2>().0 {
            let position =
                frame.components.iter().position(|component| component.id == selector[0]).ok_or(bad)?;
            // In the order of the frame, each once.
            if parts.last().is_some_and(|part| part.component >= position) {
                return Err(bad);
            }
            let component = &mut frame.components[position];
            if component.quantization.is_none() {
                let table = self.quantization.get(component.table).copied().flatten();
                component.quantization =
                    Some(Box::new(table.ok_or(Unusual("a quantisation table is missing"))?));
            }
            let table = |tables: &[Option<Arc<Huffman>>; 4], number: u8| {
                tables.get(usize::from(number)).cloned().flatten()
            };
            let (dc, ac) = (table(&self.dc, selector[1] >> 4), table(&self.ac, selector[1] & 15));
            parts.push(ScanPart { component: position, dc, ac });
        }
        Ok(Scan {
            parts,
            spectral: (first.into(), last.into()),
            approximation: (approximation >> 4, approximation & 15),
            restart_interval: self.restart_interval,
        })
    }

    /// Three components are colours of luma and two chromas unless a segment or their names say that they are RGB.
    fn check_colors(&self, frame: &Frame) -> Result<(), Unusual> {
        let rgb = Unusual("it holds RGB");
        if frame.components.len() == 1 || self.jfif {
            return Ok(());
        }
        match self.adobe {
            Some(0) => Err(rgb),
            Some(_) => Ok(()),
            None if frame.components.iter().map(|component| component.id).eq(*b"RGB") => Err(rgb),
            None => Ok(()),
        }
    }
}

fn read_frame(code: u8, content: &[u8]) -> Result<Frame, Unusual> {
    let bad = Unusual("the header of the frame is wrong");
    let &[precision, h0, h1, w0, w1, count, ref parts @ ..] = content else { return Err(bad) };
    let (width, height) = (u16::from_be_bytes([w0, w1]), u16::from_be_bytes([h0, h1]));
    if precision != 8 {
        return Err(Unusual("its values do not have 8 bits"));
    }
    if width == 0 || height == 0 || parts.len() != usize::from(count) * 3 {
        return Err(bad);
    }
    if count != 1 && count != 3 {
        return Err(Unusual("it has neither one nor three components"));
    }
    let mut components = Vec::with_capacity(count.into());
    let (mut max_h, mut max_v) = (1, 1);
    for &[id, sampling, table] in parts.as_chunks::<3>().0 {
        let (h, v) = (usize::from(sampling >> 4), usize::from(sampling & 15));
        if !(1..=4).contains(&h)
            || !(1..=4).contains(&v)
            || components.iter().any(|other: &Component| other.id == id)
        {
            return Err(bad);
        }
        (max_h, max_v) = (max_h.max(h), max_v.max(v));
        let table = table.into();
        components.push(Component { id, h, v, width: 0, height: 0, table, quantization: None });
    }
    if let [only] = &mut components[..] {
        // The samples of the only component are not interleaved with any, whatever its factors say.
        (only.h, only.v, max_h, max_v) = (1, 1, 1, 1);
    }
    for component in &mut components {
        component.width = (usize::from(width) * component.h).div_ceil(max_h);
        component.height = (usize::from(height) * component.v).div_ceil(max_v);
    }
    let progressive = code == 0xC2;
    Ok(Frame { width: width.into(), height: height.into(), progressive, components, max_h, max_v })
}
