//! Small encoders for kinds of files that the usual ones do not write.

use std::io::Cursor;

use beit2_data::{DecodeOptions, PixelRange, decode};

/// Unsigned TIFF values by size in bytes.
pub enum Field {
    Short(Vec<u16>),
    Long(Vec<u32>),
}

pub const LITTLE: bool = false;
pub const BIG: bool = true;

/// What a TIFF file of one or more pages is made of.
pub struct TiffFile {
    pub big_endian: bool,
    pub bigtiff: bool,
    /// For each page: its tags but for offsets, byte counts, and the bytes of its strips or tiles.
    #[allow(clippy::type_complexity)] // fields and strips of each page
    pub pages: Vec<(Vec<(u16, Field)>, Vec<Vec<u8>>)>,
}

impl TiffFile {
    pub fn one(tags: Vec<(u16, Field)>, strips: Vec<Vec<u8>>) -> Self {
        Self { big_endian: LITTLE, bigtiff: false, pages: vec![(tags, strips)] }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let number = |value: u64, size: usize| -> Vec<u8> {
            match self.big_endian {
                true => value.to_be_bytes()[8 - size..].to_vec(),
                false => value.to_le_bytes()[..size].to_vec(),
            }
        };
        let wide = if self.bigtiff { 8 } else { 4 };
        let mut out = if self.big_endian { b"MM".to_vec() } else { b"II".to_vec() };
        match self.bigtiff {
            true => [number(43, 2), number(8, 2), number(0, 2)].iter().for_each(|part| out.extend(part)),
            false => out.extend(number(42, 2)),
        }
        let mut link = out.len();
        out.extend(number(0, wide));
        for (tags, strips) in &self.pages {
            let mut offsets = Vec::new();
            for strip in strips {
                offsets.push(out.len() as u32);
                out.extend(strip);
            }
            let counts = strips.iter().map(|strip| strip.len() as u32).collect();
            let tiled = tags.iter().any(|(tag, _)| *tag == 322);
            let (at, count) = if tiled { (324, 325) } else { (273, 279) };
            let (offsets, counts) = (Field::Long(offsets), Field::Long(counts));
            let mut all: Vec<(u16, &Field)> = tags.iter().map(|(tag, field)| (*tag, field)).collect();
            all.extend([(at, &offsets), (count, &counts)]);
            all.sort_by_key(|(tag, _)| *tag);
            let mut entries = Vec::new();
            for (tag, field) in &all {
                let (kind, size, values): (u64, usize, Vec<u64>) = match field {
                    Field::Short(values) => (3, 2, values.iter().map(|&value| value.into()).collect()),
                    Field::Long(values) => (4, 4, values.iter().map(|&value| value.into()).collect()),
                };
                let mut data: Vec<u8> = values.iter().flat_map(|&value| number(value, size)).collect();
                if data.len() > wide {
                    let place = out.len() as u64;
                    out.extend(data);
                    data = number(place, wide);
                }
                data.resize(wide, 0);
                entries.extend(number((*tag).into(), 2));
                entries.extend(number(kind, 2));
                entries.extend(number(values.len() as u64, wide));
                entries.extend(data);
            }
            let here = number(out.len() as u64, wide);
            out[link..link + wide].copy_from_slice(&here);
            out.extend(number(all.len() as u64, if self.bigtiff { 8 } else { 2 }));
            out.extend(entries);
            link = out.len();
            out.extend(number(0, wide));
        }
        out
    }
}

/// Tags of an uncompressed page: sides, bits, photometric interpretation, samples, and format (1 unsigned, 2 signed, 3
/// floating point).
pub fn tags(w: u16, h: u16, bits: u16, photometric: u16, samples: u16, format: u16) -> Vec<(u16, Field)> {
    let one = |value| Field::Short(vec![value]);
    vec![
        (256, one(w)),
        (257, one(h)),
        (258, Field::Short(vec![bits; samples.into()])),
        (259, one(1)),
        (262, one(photometric)),
        (277, one(samples)),
        (278, one(h)),
        (339, Field::Short(vec![format; samples.into()])),
    ]
}

/// An uncompressed little-endian TIFF of one strip.
pub fn plain(
    size: (u16, u16),
    bits: u16,
    photometric: u16,
    samples: u16,
    format: u16,
    data: Vec<u8>,
) -> Vec<u8> {
    TiffFile::one(tags(size.0, size.1, bits, photometric, samples, format), vec![data]).bytes()
}

/// A PNG file with chunks in front of the pixels and behind them.
pub fn png(
    size: (u32, u32),
    color: png::ColorType,
    depth: png::BitDepth,
    palette: Option<(Vec<u8>, Vec<u8>)>,
    data: &[u8],
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(Cursor::new(&mut out), size.0, size.1);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if let Some((colors, alpha)) = palette {
        encoder.set_palette(colors);
        encoder.set_trns(alpha);
    }
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(data).unwrap();
    writer.finish().unwrap();
    out
}

pub fn gray16(size: (u32, u32), values: &[u16]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
    png(size, png::ColorType::Grayscale, png::BitDepth::Sixteen, None, &data)
}

pub fn with(range: &str) -> DecodeOptions {
    DecodeOptions { range: range.parse().unwrap(), ..DecodeOptions::default() }
}

/// One value per pixel of an image that must be grey.
pub fn grays(bytes: &[u8], range: &str) -> Vec<u8> {
    let image = decode(bytes, &with(range)).unwrap();
    assert!(image.data.as_chunks::<3>().0.iter().all(|[r, g, b]| r == g && g == b));
    image.data.into_iter().step_by(3).collect()
}

pub fn colors(bytes: &[u8], range: &str) -> Vec<u8> {
    decode(bytes, &with(range)).unwrap().data
}

pub fn refused(bytes: &[u8], range: &str) -> String {
    decode(bytes, &with(range)).unwrap_err().to_string()
}

#[test]
fn ranges_are_names_or_two_numbers() {
    for (text, expected) in [
        ("auto", PixelRange::Auto),
        ("full", PixelRange::Full),
        ("8bit", PixelRange::EightBit),
        ("percentile", PixelRange::Percentile),
        ("0,4095", PixelRange::Bounds(0.0, 4095.0)),
        ("[-1000, 400]", PixelRange::Bounds(-1000.0, 400.0)),
    ] {
        assert_eq!(text.parse::<PixelRange>().unwrap(), expected);
        assert_eq!(expected.to_string().parse::<PixelRange>().unwrap(), expected);
        let json = serde_json::to_string(&expected).unwrap();
        assert_eq!(serde_json::from_str::<PixelRange>(&json).unwrap(), expected, "{json}");
    }
    for wrong in ["", "ful", "5", "1,2,3", "9,3", "3,3", "0,nan", "[1 2]"] {
        assert!(wrong.parse::<PixelRange>().is_err(), "{wrong}");
    }
}
