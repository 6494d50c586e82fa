//! Finished rows as a parquet file.

use std::io::Read;
use std::sync::Arc;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use beit2_run::atomic::AtomicFile;
use parquet::basic::{Compression, ConvertedType, Encoding, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{
    ByteArray, ByteArrayType, FixedLenByteArray, FixedLenByteArrayType, FloatType, Int32Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::{ColumnPath, Type, TypePtr};

use super::arrow;
use super::finished::Finished;
use super::layout::{Element, RowLayout};
use super::partial::Sample;

/// Values of a row group: what is held in memory while it is written, about 64 MB.
const GROUP_VALUES: usize = 1 << 24;

/// Rows of a group, for rows that are small.
const GROUP_ROWS: usize = 1 << 16;

/// Writes columns `path`, `path_bytes` (if a name is not UTF-8), `label` (of images with classes) and the values, as one flat list a row.
pub fn write(rows: &Finished<'_>, writer: &mut AtomicFile) -> anyhow::Result<()> {
    let layout = rows.layout;
    let odd_names = rows.odd_names || has_odd_names(rows)?;
    let shape = [("row_shape".to_owned(), serde_json::to_string(&layout.shape)?)];
    let pairs = rows.meta.iter().chain(&shape);
    let mut meta: Vec<_> =
        pairs.map(|(key, value)| KeyValue::new(format!("beit2.{key}"), value.clone())).collect();
    // Parquet has no lists of a fixed size. What its readers go by is the Arrow schema, where they know it; others see a list.
    let arrow = arrow::message(&arrow::schema(layout, &[], odd_names, rows.labelled))?;
    meta.push(KeyValue::new("ARROW:schema".to_owned(), STANDARD.encode(arrow)));
    // Compression does not shrink features, and statistics of single values help nobody.
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("beit2 ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(meta))
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None);
    if matches!(layout.element, Element::U16 | Element::U32) {
        // Ids of 8192 codes take 14 bits instead of 32.
        let path = ColumnPath::new([layout.name, "list", "element"].map(str::to_owned).to_vec());
        properties = properties.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
    }
    let schema = schema(layout, odd_names, rows.labelled)?;
    let mut file = SerializedFileWriter::new(writer, schema, Arc::new(properties.build()))?;
    let mut values = rows.partial.read_rows()?;
    let mut samples = rows.partial.read_samples()?;
    let group_rows = (GROUP_VALUES / layout.values().max(1)).clamp(1, GROUP_ROWS);
    loop {
        let some: Vec<Sample> = samples.by_ref().take(group_rows).collect::<Result<_, _>>()?;
        if some.is_empty() {
            break;
        }
        let mut group = file.next_row_group()?;
        let paths: Vec<ByteArray> =
            some.iter().map(|sample| sample.path.clone().into_bytes().into()).collect();
        let mut column = next(group.next_column()?)?;
        column.typed::<ByteArrayType>().write_batch(&paths, None, None)?;
        column.close()?;
        if odd_names {
            let bytes = some.iter().filter_map(|sample| sample.path_bytes.as_deref());
            let bytes: Vec<ByteArray> = bytes.map(|digits| unhex(digits).into()).collect();
            let present: Vec<i16> =
                some.iter().map(|sample| i16::from(sample.path_bytes.is_some())).collect();
            let mut column = next(group.next_column()?)?;
            column.typed::<ByteArrayType>().write_batch(&bytes, Some(&present), None)?;
            column.close()?;
        }
        if rows.labelled {
            let labels = some.iter().filter_map(|sample| sample.label.clone());
            let labels: Vec<ByteArray> = labels.map(|label| label.into_bytes().into()).collect();
            let present: Vec<i16> = some.iter().map(|sample| i16::from(sample.label.is_some())).collect();
            let mut column = next(group.next_column()?)?;
            column.typed::<ByteArrayType>().write_batch(&labels, Some(&present), None)?;
            column.close()?;
        }
        let mut column = next(group.next_column()?)?;
        let mut row = vec![0; layout.row_bytes()];
        // A list's first value starts a row (0), the others continue it (1).
        let mut starts = vec![1i16; layout.values()];
        if let Some(first) = starts.first_mut() {
            *first = 0;
        }
        let present = vec![1i16; layout.values()];
        for _ in &some {
            values.read_exact(&mut row).context("rows are missing")?;
            write_row(&mut column, layout.element, &row, &present, &starts)?;
        }
        column.close()?;
        group.close()?;
    }
    file.close()?;
    Ok(())
}

/// Whether a name is not UTF-8, which gives the file a column of bytes.
fn has_odd_names(rows: &Finished<'_>) -> anyhow::Result<bool> {
    for sample in rows.partial.read_samples()? {
        if sample?.path_bytes.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Bytes from pairs of hexadecimal digits.
pub fn unhex(digits: &str) -> Vec<u8> {
    let pair = |at| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    (0..digits.len()).step_by(2).filter_map(pair).collect()
}

fn next(column: Option<SerializedColumnWriter<'_>>) -> Result<SerializedColumnWriter<'_>, ParquetError> {
    column.ok_or_else(|| ParquetError::General("the schema has fewer columns than values".into()))
}

fn write_row(
    column: &mut SerializedColumnWriter<'_>,
    element: Element,
    row: &[u8],
    present: &[i16],
    starts: &[i16],
) -> Result<(), ParquetError> {
    let (present, starts) = (Some(present), Some(starts));
    let halves = || row.chunks_exact(2).map(|b| [b[0], b[1]]);
    let elements = || row.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    match element {
        Element::F32 => {
            let values: Vec<f32> = elements().map(f32::from_le_bytes).collect();
            column.typed::<FloatType>().write_batch(&values, present, starts)?;
        }
        Element::F16 => {
            let values: Vec<FixedLenByteArray> = halves().map(|half| half.to_vec().into()).collect();
            column.typed::<FixedLenByteArrayType>().write_batch(&values, present, starts)?;
        }
        Element::U16 => {
            let values: Vec<i32> = halves().map(|b| u16::from_le_bytes(b).into()).collect();
            column.typed::<Int32Type>().write_batch(&values, present, starts)?;
        }
        Element::U32 => {
            let values: Vec<i32> = elements().map(i32::from_le_bytes).collect();
            column.typed::<Int32Type>().write_batch(&values, present, starts)?;
        }
    }
    Ok(())
}

fn schema(layout: &RowLayout, odd_names: bool, labelled: bool) -> Result<TypePtr, ParquetError> {
    let text = |name: &str, repetition| {
        Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
            .with_repetition(repetition)
            .with_logical_type(Some(LogicalType::String))
            .with_converted_type(ConvertedType::UTF8)
            .build()
            .map(Arc::new)
    };
    let unsigned = |bits| Some(LogicalType::integer(bits, false));
    let (physical, logical, length) = match layout.element {
        Element::F32 => (Physical::FLOAT, None, -1),
        Element::F16 => (Physical::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Float16), 2),
        Element::U16 => (Physical::INT32, unsigned(16), -1),
        Element::U32 => (Physical::INT32, unsigned(32), -1),
    };
    let element = Type::primitive_type_builder("element", physical)
        .with_repetition(Repetition::REQUIRED)
        .with_logical_type(logical)
        .with_length(length)
        .build()?;
    let list = Type::group_type_builder("list")
        .with_repetition(Repetition::REPEATED)
        .with_fields(vec![Arc::new(element)])
        .build()?;
    let values = Type::group_type_builder(layout.name)
        .with_repetition(Repetition::REQUIRED)
        .with_logical_type(Some(LogicalType::List))
        .with_converted_type(ConvertedType::LIST)
        .with_fields(vec![Arc::new(list)])
        .build()?;
    let mut fields = vec![text("path", Repetition::REQUIRED)?];
    if odd_names {
        let bytes = Type::primitive_type_builder("path_bytes", Physical::BYTE_ARRAY);
        fields.push(Arc::new(bytes.with_repetition(Repetition::OPTIONAL).build()?));
    }
    if labelled {
        fields.push(text("label", Repetition::OPTIONAL)?);
    }
    fields.push(Arc::new(values));
    Ok(Arc::new(Type::group_type_builder("rows").with_fields(fields).build()?))
}
