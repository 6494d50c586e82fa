//! A parquet shard in the layout of Hugging Face's image datasets.

use std::fs::File;
use std::io::{self, BufWriter};
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{PrimitiveTypeBuilder, Type, TypePtr};
use serde_json::json;

use super::shard::Entry;
use crate::shard_index::Label;
use crate::source::Source;

/// Images of a row group, which is read as a whole: 16 MiB are one long read on any disk.
const GROUP_BYTES: usize = 16 << 20;

/// Rows of a group of small images.
const GROUP_ROWS: usize = 512;

/// What a file needs beside its rows and the names of its classes: a kilobyte for each group of 16 MiB, and the schema.
const FOOTER: u64 = 1 << 12;

/// A parquet file that is being written.
pub(super) struct ParquetShard {
    writer: SerializedFileWriter<BufWriter<File>>,
    labels: Labels,
    rows: Vec<Row>,
    group_bytes: usize,
    /// Bytes so far, about.
    written: u64,
}

struct Row {
    bytes: Vec<u8>,
    path: String,
    label: Label,
}

#[derive(Clone, Copy, PartialEq)]
enum Labels {
    None,
    One,
    Many,
}

impl ParquetShard {
    pub(super) fn begin(file: File, source: &dyn Source) -> io::Result<Self> {
        let labels = match (source.classes().is_empty(), source.is_multi_label()) {
            (true, _) => Labels::None,
            (false, false) => Labels::One,
            (false, true) => Labels::Many,
        };
        let features = features(labels, source.classes());
        let written = FOOTER + features.len() as u64;
        let properties = WriterProperties::builder()
            .set_created_by(concat!("beit2 ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_key_value_metadata(Some(vec![KeyValue::new("huggingface".to_owned(), features)]))
            // Images are compressed already, and nobody looks for one by its bytes.
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .build();
        let writer = BufWriter::with_capacity(1 << 20, file);
        let writer =
            SerializedFileWriter::new(writer, schema(labels).map_err(io_error)?, Arc::new(properties));
        let writer = writer.map_err(io_error)?;
        Ok(Self { writer, labels, rows: Vec::new(), group_bytes: 0, written })
    }

    /// About how many bytes the file has with one more image.
    pub(super) fn len_with(&self, entry: &Entry<'_>) -> u64 {
        self.written + (entry.bytes.len() + entry.name.len() + 16) as u64
    }

    /// Adds an image; gives its row.
    pub(super) fn add(&mut self, entry: &Entry<'_>) -> io::Result<u64> {
        if self.group_bytes >= GROUP_BYTES || self.rows.len() >= GROUP_ROWS {
            self.group()?;
        }
        self.written += (entry.bytes.len() + entry.name.len() + 16) as u64;
        self.group_bytes += entry.bytes.len();
        self.rows.push(Row {
            bytes: entry.bytes.to_vec(),
            path: entry.name.to_owned(),
            label: entry.label(),
        });
        Ok(0)
    }

    /// Ends the file; gives it and its length.
    pub(super) fn end(mut self) -> io::Result<(File, u64)> {
        self.group()?;
        let file = self.writer.into_inner().map_err(io_error)?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    }

    /// Writes the rows so far as a group.
    fn group(&mut self) -> io::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        self.group_bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        let labels = self.labels;
        let write = || -> Result<(), ParquetError> {
            let mut group = self.writer.next_row_group()?;
            let (mut bytes, mut paths, mut values) = (Vec::new(), Vec::new(), Vec::new());
            for row in rows {
                bytes.push(ByteArray::from(row.bytes));
                paths.push(ByteArray::from(row.path.into_bytes()));
                values.push(row.label);
            }
            // Both are optional inside an optional group: 2 means that they are there.
            let there = vec![2i16; bytes.len()];
            column::<ByteArrayType>(&mut group, &bytes, &there, None)?;
            column::<ByteArrayType>(&mut group, &paths, &there, None)?;
            match labels {
                Labels::None => {}
                Labels::One => {
                    let of = |label: &Label| {
                        if let Label::One(label) = label { Some(i64::from(*label)) } else { None }
                    };
                    let there: Vec<i16> = values.iter().map(|label| i16::from(of(label).is_some())).collect();
                    let values: Vec<i64> = values.iter().filter_map(of).collect();
                    column::<Int64Type>(&mut group, &values, &there, None)?;
                }
                Labels::Many => {
                    // Definition: 0 no list, 1 an empty one, 3 a value. Repetition: 0 starts a row, 1 goes on.
                    let (mut there, mut starts, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
                    for label in &values {
                        let set = match label {
                            Label::Many(set) => Some(set.as_slice()),
                            Label::One(one) => Some(std::slice::from_ref(one)),
                            Label::None => None,
                        };
                        match set {
                            None | Some([]) => {
                                there.push(i16::from(set.is_some()));
                                starts.push(0i16);
                            }
                            Some(set) => {
                                there.extend(set.iter().map(|_| 3i16));
                                starts.extend((0..set.len()).map(|at| i16::from(at > 0)));
                                numbers.extend(set.iter().map(|&number| i64::from(number)));
                            }
                        }
                    }
                    column::<Int64Type>(&mut group, &numbers, &there, Some(&starts))?;
                }
            }
            group.close()?;
            Ok(())
        };
        write().map_err(io_error)
    }
}

/// Writes the next column of a group.
fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, BufWriter<File>>,
    values: &[T::T],
    there: &[i16],
    starts: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let column = group.next_column()?;
    let mut column =
        column.ok_or_else(|| ParquetError::General("the schema has fewer columns than values".into()))?;
    column.typed::<T>().write_batch(values, Some(there), starts)?;
    column.close()
}

/// A full disk stays one.
fn io_error(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(other) => io::Error::other(other),
        },
        other => io::Error::other(other),
    }
}

fn optional(name: &str, physical: Physical) -> PrimitiveTypeBuilder<'_> {
    Type::primitive_type_builder(name, physical).with_repetition(Repetition::OPTIONAL)
}

fn schema(labels: Labels) -> Result<TypePtr, ParquetError> {
    let bytes = optional("bytes", Physical::BYTE_ARRAY).build()?;
    let path = optional("path", Physical::BYTE_ARRAY)
        .with_logical_type(Some(LogicalType::String))
        .with_converted_type(ConvertedType::UTF8)
        .build()?;
    let image = Type::group_type_builder("image")
        .with_repetition(Repetition::OPTIONAL)
        .with_fields(vec![Arc::new(bytes), Arc::new(path)])
        .build()?;
    let mut fields = vec![Arc::new(image)];
    match labels {
        Labels::None => {}
        Labels::One => fields.push(Arc::new(optional("label", Physical::INT64).build()?)),
        Labels::Many => {
            let element = optional("element", Physical::INT64).build()?;
            let list = Type::group_type_builder("list")
                .with_repetition(Repetition::REPEATED)
                .with_fields(vec![Arc::new(element)])
                .build()?;
            let labels = Type::group_type_builder("labels")
                .with_repetition(Repetition::OPTIONAL)
                .with_logical_type(Some(LogicalType::List))
                .with_converted_type(ConvertedType::LIST)
                .with_fields(vec![Arc::new(list)])
                .build()?;
            fields.push(Arc::new(labels));
        }
    }
    Ok(Arc::new(Type::group_type_builder("images").with_fields(fields).build()?))
}

/// What the columns mean, as the `datasets` library keeps it.
fn features(labels: Labels, classes: &[String]) -> String {
    let class = json!({ "names": classes, "_type": "ClassLabel" });
    let mut features = json!({ "image": { "_type": "Image" } });
    match labels {
        Labels::None => {}
        Labels::One => features["label"] = class,
        Labels::Many => features["labels"] = json!({ "feature": class, "_type": "List" }),
    }
    json!({ "info": { "features": features } }).to_string()
}
