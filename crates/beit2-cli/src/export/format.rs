//! Finished rows as npy, safetensors or JSON lines; parquet is in [`super::columns`].

use std::fs::File;
use std::io::{BufWriter, Read, Write};

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::columns;
use super::partial::{Partial, Sample};

/// Forms of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// NumPy's array file.
    Npy,
    /// Columns `path`, `label` and the values.
    Parquet,
    /// One tensor.
    Safetensors,
    /// One JSON object a line.
    JsonLines,
}

impl Format {
    /// The ending of its files.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Npy => "npy",
            Self::Parquet => "parquet",
            Self::Safetensors => "safetensors",
            Self::JsonLines => "jsonl",
        }
    }

    /// Whether paths go into a file of their own, because this one holds numbers only.
    pub fn needs_list(self) -> bool {
        matches!(self, Self::Npy | Self::Safetensors)
    }
}

/// Type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Code ids up to 65535.
    U16,
    /// Code ids beyond.
    U32,
}

impl Element {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 | Self::U16 => 2,
        }
    }

    /// Its name in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::U16 => "u16",
            Self::U32 => "u32",
        }
    }

    /// Its name in npy files, little-endian.
    fn numpy(self) -> &'static str {
        match self {
            Self::F32 => "<f4",
            Self::F16 => "<f2",
            Self::U16 => "<u2",
            Self::U32 => "<u4",
        }
    }
}

/// What a row is.
#[derive(Debug, Clone)]
pub struct RowLayout {
    /// What its values are: `features` or `ids`.
    pub name: &'static str,
    /// Type of a value.
    pub element: Element,
    /// Shape of one row.
    pub shape: Vec<usize>,
}

impl RowLayout {
    /// Values of a row.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.values() * self.element.size()
    }
}

/// All rows, ready to be written.
pub struct Finished<'a> {
    /// What a row is.
    pub layout: &'a RowLayout,
    /// Where the values come from, for formats that have room for it.
    pub meta: &'a [(String, String)],
    /// Whether the images have classes.
    pub labelled: bool,
    /// The rows.
    pub partial: &'a Partial,
}

impl Finished<'_> {
    /// Writes rows, streaming.
    pub fn write(&self, format: Format, writer: &mut BufWriter<File>) -> anyhow::Result<()> {
        match format {
            Format::Npy => {
                writer.write_all(&npy_header(self.layout, self.partial.rows()))?;
                self.copy_rows(writer)
            }
            Format::Safetensors => {
                writer.write_all(&safetensors_header(self.layout, self.partial.rows(), self.meta))?;
                self.copy_rows(writer)
            }
            Format::JsonLines => self.write_json_lines(writer),
            Format::Parquet => columns::write(self, writer),
        }
    }

    fn copy_rows(&self, writer: &mut BufWriter<File>) -> anyhow::Result<()> {
        std::io::copy(&mut self.partial.read_rows()?, writer)?;
        Ok(())
    }

    /// Writes the paths and labels of the rows.
    pub fn write_list(&self, writer: &mut BufWriter<File>) -> anyhow::Result<()> {
        for sample in self.partial.read_samples()? {
            serde_json::to_writer(&mut *writer, &sample?)?;
            writer.write_all(b"\n")?;
        }
        Ok(())
    }

    fn write_json_lines(&self, writer: &mut BufWriter<File>) -> anyhow::Result<()> {
        let mut rows = self.partial.read_rows()?;
        let mut row = vec![0; self.layout.row_bytes()];
        for sample in self.partial.read_samples()? {
            let Sample { path, label, .. } = sample?;
            rows.read_exact(&mut row).context("rows are missing")?;
            let ids: Vec<u32> = match self.layout.element {
                Element::U16 => row.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]]).into()).collect(),
                _ => row.chunks(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            };
            let width = self.layout.shape.last().copied().unwrap_or(1).max(1);
            let mut object = Map::from_iter([("path".to_owned(), Value::String(path))]);
            object.extend(label.map(|label| ("label".to_owned(), Value::String(label))));
            object.insert(self.layout.name.to_owned(), ids.chunks(width).collect());
            serde_json::to_writer(&mut *writer, &object)?;
            writer.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// Shape of all rows as Python writes a tuple; with one entry it ends in a comma.
fn tuple(shape: &[usize]) -> String {
    let entries: Vec<String> = shape.iter().map(usize::to_string).collect();
    match entries.as_slice() {
        [one] => format!("({one},)"),
        many => format!("({})", many.join(", ")),
    }
}

/// Version 1.0 of the format: a magic number, a length, a Python dictionary padded so that values start at a multiple of
/// 64 bytes.
fn npy_header(layout: &RowLayout, rows: usize) -> Vec<u8> {
    let shape = tuple(&[&[rows], layout.shape.as_slice()].concat());
    let descr = layout.element.numpy();
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    const BEFORE: usize = 10; // magic number, version, length
    let padded = (BEFORE + text.len() + 1).next_multiple_of(64) - BEFORE;
    text.extend(std::iter::repeat_n(' ', padded - text.len() - 1));
    text.push('\n');
    let length = (text.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00".as_slice(), &length, text.as_bytes()].concat()
}

fn safetensors_header(layout: &RowLayout, rows: usize, meta: &[(String, String)]) -> Vec<u8> {
    let shape = [&[rows], layout.shape.as_slice()].concat();
    let meta: Map<String, Value> =
        meta.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect();
    let header = json!({
        "__metadata__": meta,
        layout.name: {
            "dtype": layout.element.name().to_uppercase(),
            "shape": shape,
            "data_offsets": [0, rows * layout.row_bytes()],
        },
    });
    let mut header = header.to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn npy_headers_are_aligned_and_say_the_shape() {
        for (shape, rows, expected) in
            [(vec![], 3, "(3,)"), (vec![768], 12, "(12, 768)"), (vec![14, 14], 1, "(1, 14, 14)")]
        {
            let header = npy_header(&RowLayout { name: "ids", element: Element::U16, shape }, rows);
            assert_eq!(header.len() % 64, 0);
            assert_eq!(u16::from_le_bytes([header[8], header[9]]) as usize, header.len() - 10);
            let text = String::from_utf8(header[10..].to_vec()).unwrap();
            assert!(
                text.contains(&format!("'<u2', 'fortran_order': False, 'shape': {expected}, }}")),
                "{text}"
            );
            assert!(text.ends_with('\n'));
        }
    }
}
