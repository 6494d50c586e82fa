//! Finished rows of ids as one JSON object a line.

use std::io::{Read, Write};

use anyhow::Context;
use beit2_run::atomic::AtomicFile;
use serde_json::{Map, Value};

use super::finished::Finished;
use super::layout::Element;
use super::partial::Sample;

/// Path, label where there is one, and the values as numbers.
pub fn write(finished: &Finished<'_>, writer: &mut AtomicFile) -> anyhow::Result<()> {
    let mut rows = finished.partial.read_rows()?;
    let mut row = vec![0; finished.layout.row_bytes()];
    for sample in finished.partial.read_samples()? {
        let Sample { path, path_bytes, label, .. } = sample?;
        rows.read_exact(&mut row).context("rows are missing")?;
        let ids: Vec<u32> = match finished.layout.element {
            Element::U16 => row.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]]).into()).collect(),
            _ => row.chunks(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        };
        let width = finished.layout.shape.last().copied().unwrap_or(1).max(1);
        let mut object = Map::from_iter([("path".to_owned(), Value::String(path))]);
        object.extend(path_bytes.map(|bytes| ("path_bytes".to_owned(), Value::String(bytes))));
        object.extend(label.map(|label| ("label".to_owned(), Value::String(label))));
        object.insert(finished.layout.name.to_owned(), ids.chunks(width).collect());
        serde_json::to_writer(&mut *writer, &object)?;
        writer.write_all(b"\n")?;
    }
    Ok(())
}
