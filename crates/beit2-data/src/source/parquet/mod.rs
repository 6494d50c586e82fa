//! Images in parquet files, in the layout of Hugging Face's image datasets.
//!
//! A row group can only be decoded as a whole. So [`Source::units`] asks the epoch's order to shuffle row groups, and
//! to mix the rows of neighbouring ones, which are kept in memory.

mod schema;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::TypePtr;

use self::schema::Layout;
use super::folder::{Entry, file_name};
use super::labels::{Labels, RawLabel, Value};
use super::name::last_part;
use super::pieces::{self, ORDER, Pieces};
use super::positioned::{Cursor, read_exact_at};
use super::spec::Columns;
use super::{Account, MAX_SAMPLE_BYTES, Source, has_extension, is_image_name};
use crate::error::SourceError;
use crate::fingerprint::Fingerprint;
use crate::order::Units;
use crate::pool::guarded;

/// Encoded images of a row group; `None` where the value is missing.
type Rows = Vec<Option<ByteArray>>;

/// A row group larger than this is warned about: 1 GiB.
const LARGE_GROUP_BYTES: u64 = 1 << 30;

/// Images in parquet files.
///
/// - Images: a column of bytes, or a group with `bytes` as Hugging Face writes it. If several columns could be meant,
///   `FILE:image=COLUMN` names one.
/// - Labels: the column `label`, `labels`, `class` or `cls`, or the one in `FILE:label=COLUMN`: numbers, names, or lists
///   of either (several classes for one image). A negative number is no label. Class names come from the file's
///   metadata (`ClassLabel` features), else they are the distinct values.
///
/// All files must have the same class names.
pub struct ParquetSource {
    files: Vec<ParquetFile>,
    groups: Vec<Group>,
    rows: usize,
    labels: Labels,
    units: Units,
    in_memory: Pieces<Rows>,
    account: Account,
}

struct ParquetFile {
    name: String,
    /// Number of its first row in the source.
    start: usize,
    reader: SerializedFileReader<Positioned>,
    image: TypePtr,
}

struct Group {
    file: usize,
    in_file: usize,
    /// Number of its first row in the source.
    start: usize,
    /// Compressed, all columns of the images together.
    bytes: u64,
}

impl ParquetSource {
    /// Opens files in the given order and reads their labels.
    ///
    /// # Errors
    /// A file that is missing or not sound parquet, columns that cannot be told apart or are not there, labels that are
    /// not classes, files whose class names differ, no row.
    pub fn open(paths: &[PathBuf], columns: &Columns) -> Result<Self, SourceError> {
        let mut files = Vec::with_capacity(paths.len());
        let (mut groups, mut raw, mut rows) = (Vec::new(), Vec::new(), 0);
        let mut names: Option<Option<Vec<String>>> = None;
        for path in paths {
            let name = path.display().to_string();
            let fail = |problem: String| SourceError::Table { path: name.clone(), problem };
            let opened = guarded(|| open_file(path, columns));
            let (reader, layout) = opened.unwrap_or_else(|panic| Err(unsound(panic))).map_err(&fail)?;
            if names.as_ref().is_some_and(|names| *names != layout.class_names) {
                return Err(fail(format!("its class names differ from those of {}", paths[0].display())));
            }
            let labels = guarded(|| read_labels(&reader, layout.label.as_ref()));
            raw.extend(labels.unwrap_or_else(|panic| Err(unsound(panic))).map_err(&fail)?);
            names = Some(layout.class_names);
            let start = rows;
            for (in_file, group) in reader.metadata().row_groups().iter().enumerate() {
                let images = group.columns().iter().filter(|column| {
                    column.column_path().parts().first().map(String::as_str)
                        == layout.image.get_fields().first().map(|field| field.name())
                });
                let bytes = images.map(|column| column.compressed_size().unsigned_abs()).sum();
                if group.num_rows() > 0 {
                    groups.push(Group { file: files.len(), in_file, start: rows, bytes });
                }
                rows += group.num_rows().unsigned_abs() as usize;
            }
            files.push(ParquetFile { name, start, reader, image: layout.image });
        }
        let first = || paths.first().map_or_else(String::new, |path| path.display().to_string());
        if rows == 0 {
            return Err(SourceError::Table { path: first(), problem: "it has no rows".into() });
        }
        let labels = Labels::new(&raw, names.flatten().as_deref()).map_err(|(row, problem)| {
            SourceError::Table { path: first(), problem: format!("row {row}: {problem}") }
        })?;
        let mut account = Account::all_used(rows);
        if labels.unlabelled() > 0 {
            account.warnings.push(format!(
                "{} of {rows} images of {} have no label",
                labels.unlabelled(),
                first()
            ));
        }
        if let Some(group) = groups.iter().find(|group| group.bytes > LARGE_GROUP_BYTES) {
            account.warnings.push(format!(
                "{} has row groups of {} MiB, which are held in memory whole; write it again with some hundred rows a group",
                files[group.file].name,
                group.bytes >> 20
            ));
        }
        let all: u64 = groups.iter().map(|group| group.bytes).sum();
        let window = pieces::window(all, groups.len());
        let ends = groups.iter().skip(1).map(|group| group.start).chain([rows]);
        let runs = groups.iter().zip(ends).map(|(group, end)| (group.start as u64, end as u64)).collect();
        let units = Units { runs, window };
        Ok(Self { files, groups, rows, labels, units, in_memory: Pieces::of_window(window), account })
    }

    /// The group of a row, and the row's place in it.
    fn find(&self, index: usize) -> Option<(usize, usize)> {
        let number = self.groups.partition_point(|group| group.start <= index).checked_sub(1)?;
        (index < self.rows).then(|| (number, index - self.groups[number].start))
    }

    fn decode(&self, number: usize) -> Result<Rows, String> {
        let group = &self.groups[number];
        let file = &self.files[group.file];
        let read = || -> Result<Rows, ParquetError> {
            let reader = file.reader.get_row_group(group.in_file)?;
            let rows = reader.get_row_iter(Some(file.image.as_ref().clone()))?;
            rows.map(|row| Ok(row?.into_columns().into_iter().next().and_then(|(_, value)| bytes_of(value))))
                .collect()
        };
        guarded(read).map_err(unsound)?.map_err(|error| unsound(error.to_string()))
    }
}

impl Source for ParquetSource {
    fn len(&self) -> usize {
        self.rows
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        let (number, row) = self.find(index).ok_or(SourceError::Index { index, len: self.rows })?;
        let fail = |problem: String| SourceError::Table { path: self.name(index), problem };
        let rows = self.in_memory.get(number, || self.decode(number)).map_err(&fail)?;
        let Some(Some(bytes)) = rows.get(row) else {
            return Err(fail("the image has no bytes in this row".into()));
        };
        if bytes.len() as u64 > MAX_SAMPLE_BYTES {
            let (name, bytes) = (self.name(index), bytes.len() as u64);
            return Err(SourceError::TooLarge { name, bytes, limit: MAX_SAMPLE_BYTES });
        }
        Ok(bytes.data().to_vec())
    }

    /// `FILE:row`, rows counted from 0 in their file.
    fn name(&self, index: usize) -> String {
        let Some((number, _)) = self.find(index) else {
            return String::new();
        };
        let file = &self.files[self.groups[number].file];
        format!("{}:{}", file.name, index - file.start)
    }

    fn key(&self, index: usize) -> String {
        self.find(index).map_or_else(String::new, |_| last_part(&self.name(index)).to_owned())
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.one(index)
    }

    fn labels(&self, index: usize) -> Option<Vec<u32>> {
        self.labels.all(index).map(<[u32]>::to_vec)
    }

    fn is_multi_label(&self) -> bool {
        self.labels.multi
    }

    fn classes(&self) -> &[String] {
        &self.labels.classes
    }

    fn fingerprint(&self) -> String {
        let mut hash = Fingerprint::new();
        // By the sizes of the groups: reading every image would take as long as an epoch.
        for (number, group) in self.groups.iter().enumerate() {
            hash.sample(&format!("{number}:{}", group.start), group.bytes, None);
        }
        hash.sample(ORDER, self.units.window as u64, None);
        for index in 0..self.rows {
            let classes = self.labels.all(index).unwrap_or_default();
            hash.sample("", classes.len() as u64, classes.first().copied());
        }
        hash.finish()
    }

    fn account(&self) -> Account {
        self.account.clone()
    }

    fn units(&self) -> Option<Units> {
        Some(self.units.clone())
    }
}

/// The parquet files of a folder that holds some and no images.
///
/// # Errors
/// Files of several splits in one folder, as datasets are published: the training images would be mixed with the test's.
pub(super) fn files_in(dir: &Path, entries: &[Entry]) -> Result<Option<Vec<PathBuf>>, SourceError> {
    let is_parquet = |entry: &&Entry| !entry.is_dir && has_extension(&entry.path, &["parquet"]);
    let files: Vec<PathBuf> = entries.iter().filter(is_parquet).map(|entry| entry.path.clone()).collect();
    if files.is_empty() || entries.iter().any(|entry| !entry.is_dir && is_image_name(&entry.path)) {
        return Ok(None);
    }
    let split_of = |path: &PathBuf| {
        let name = file_name(path);
        let stem = name.split(['-', '.', '_']).next().unwrap_or_default().to_ascii_lowercase();
        ["train", "validation", "valid", "val", "test", "dev"].contains(&stem.as_str()).then_some(stem)
    };
    let splits: Vec<String> = files.iter().filter_map(split_of).collect();
    let first = splits.first().cloned().unwrap_or_default();
    match splits.iter().find(|split| **split != first) {
        None => Ok(Some(files)),
        Some(other) => Err(SourceError::Table {
            path: dir.display().to_string(),
            problem: format!(
                "it holds several splits ({first} and {other}); name one by a pattern, such as '{}'",
                dir.join(format!("{first}*.parquet")).display()
            ),
        }),
    }
}

fn open_file(
    path: &PathBuf,
    columns: &Columns,
) -> Result<(SerializedFileReader<Positioned>, Layout), String> {
    let file = File::open(path).map_err(|error| format!("cannot open it: {error}"))?;
    let length = file.metadata().map_err(|error| format!("cannot look at it: {error}"))?.len();
    let reader = SerializedFileReader::new(Positioned { file: Arc::new(file), length });
    let reader = reader.map_err(|error| unsound(error.to_string()))?;
    // An encoded image has more than a byte; a damaged number of rows must not fill the memory.
    let counted =
        reader.metadata().row_groups().iter().map(|group| i128::from(group.num_rows().max(0))).sum::<i128>();
    if counted > i128::from(length) || counted != i128::from(reader.metadata().file_metadata().num_rows()) {
        return Err(unsound(format!("{counted} rows cannot be in it")));
    }
    let layout = Layout::of(reader.metadata().file_metadata(), columns)?;
    Ok((reader, layout))
}

fn unsound(reason: String) -> String {
    format!("not a sound parquet file ({reason}); copy or make it again")
}

fn read_labels(
    reader: &SerializedFileReader<Positioned>,
    label: Option<&TypePtr>,
) -> Result<Vec<RawLabel>, String> {
    let rows = reader.metadata().file_metadata().num_rows().unsigned_abs() as usize;
    let Some(label) = label else {
        return Ok(vec![RawLabel::None; rows]);
    };
    let all =
        reader.get_row_iter(Some(label.as_ref().clone())).map_err(|error| unsound(error.to_string()))?;
    let of_row = |(number, row): (usize, Result<Row, ParquetError>)| {
        let row = row.map_err(|error| unsound(error.to_string()))?;
        let value = row.into_columns().into_iter().next().map_or(Field::Null, |(_, value)| value);
        label_of(value).map_err(|found| {
            format!("row {number}: {found} is not a label; a class number or name was expected")
        })
    };
    let labels: Vec<RawLabel> = all.enumerate().map(of_row).collect::<Result<_, _>>()?;
    match labels.len() == rows {
        true => Ok(labels),
        false => Err(unsound(format!("{} labels for {rows} rows", labels.len()))),
    }
}

fn label_of(value: Field) -> Result<RawLabel, String> {
    if let Field::ListInternal(list) = &value {
        let each = list.elements().iter().map(|element| value_of(element).transpose());
        return Ok(RawLabel::Many(each.flatten().collect::<Result<_, _>>()?));
    }
    Ok(value_of(&value)?.map_or(RawLabel::None, RawLabel::One))
}

fn value_of(value: &Field) -> Result<Option<Value>, String> {
    let number = match value {
        Field::Null => return Ok(None),
        Field::Str(text) => return Ok((!text.is_empty()).then(|| Value::Name(text.clone()))),
        Field::Bool(value) => i128::from(*value),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        other => return Err(format!("'{other}'")),
    };
    // Hidden labels of test sets are -1.
    Ok(u64::try_from(number).ok().map(Value::Number))
}

/// The bytes of a raw column or of a group that was projected to `bytes`.
fn bytes_of(value: Field) -> Option<ByteArray> {
    match value {
        Field::Bytes(bytes) => Some(bytes),
        Field::Group(row) => bytes_of(row.into_columns().into_iter().next()?.1),
        _ => None,
    }
}

/// A file that threads read at positions of their own.
struct Positioned {
    file: Arc<File>,
    length: u64,
}

impl Length for Positioned {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Positioned {
    type T = BufReader<Cursor>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(BufReader::new(Cursor::new(self.file.clone(), start, self.length)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<bytes::Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} of {}", self.length)));
        }
        let mut buffer = vec![0; length];
        read_exact_at(&self.file, &mut buffer, start)?;
        Ok(buffer.into())
    }
}
