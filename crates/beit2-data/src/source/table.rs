//! Images that a CSV, TSV or JSON-lines file lists, with their labels.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value as Json;

use super::folder::{fingerprint_file, read_image, slashed};
use super::labels::{Labels, RawLabel, Value};
use super::name::{path_bytes, path_text};
use super::spec::Columns;
use super::{Account, Source, has_extension};
use crate::error::SourceError;
use crate::fingerprint::Fingerprint;

/// Names that the column of paths usually has.
const IMAGE_NAMES: [&str; 8] =
    ["file_name", "filename", "filepath", "file", "path", "image_path", "image", "img"];

/// Names that the column of labels usually has.
const LABEL_NAMES: [&str; 5] = ["label", "labels", "class", "class_name", "target"];

/// The column of masks in a table of images and masks.
pub(crate) const MASK: &str = "mask";

/// Longest line: 16 MiB.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// Files that are looked for when a table is opened, to find out that paths start elsewhere.
const LOOKED_FOR: usize = 100;

/// Images listed one a line, in the order of the table.
///
/// The first line of a CSV or TSV file names the columns; a line of a JSON-lines file is an object. Paths start from the
/// table's folder. [`Columns`] names columns that are not called as usual. Several labels: a JSON list, a cell with a
/// separator, or one 0/1 column for each class.
#[derive(Debug)]
pub struct TableSource {
    root: PathBuf,
    files: Vec<PathBuf>,
    labels: Labels,
    account: Account,
    fingerprint: OnceLock<String>,
}

/// Rows of a table, as its format gives them.
struct Rows {
    columns: Vec<String>,
    /// Line number and one cell for each column.
    rows: Vec<(usize, Vec<Cell>)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Cell {
    Text(Vec<u8>),
    Json(Json),
}

impl TableSource {
    /// Whether a file is a table by its name's ending.
    pub(crate) fn is_table(path: &Path) -> bool {
        has_extension(path, &["csv", "tsv", "jsonl"])
    }

    /// Reads a table.
    ///
    /// # Errors
    /// A file that is missing or is no table, columns that are not there or could be several, labels that contradict
    /// each other, no row, no file that exists.
    pub fn open(table: impl AsRef<Path>, wanted: &Columns) -> Result<Self, SourceError> {
        let path = table.as_ref();
        let fail = |problem: String| SourceError::Table { path: path.display().to_string(), problem };
        let Rows { columns, rows } = match has_extension(path, &["jsonl"]) {
            true => json_lines(path),
            false => separated(path),
        }
        .map_err(&fail)?;
        if rows.is_empty() {
            return Err(fail("it lists no images".into()));
        }
        let choice = Choice::of(&columns, wanted).map_err(&fail)?;
        let mut account = Account::all_used(rows.len());
        let (mut files, mut raw) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for (line, cells) in &rows {
            let at = |problem: String| fail(format!("line {line}: {problem}"));
            files.push(path_of(&cells[choice.image]).map_err(at)?);
            raw.push(choice.label(cells, &columns, wanted).map_err(at)?);
        }
        let lines: Vec<usize> = rows.iter().map(|(line, _)| *line).collect();
        let twice = repeated(&files, &raw, &lines).map_err(&fail)?;
        if twice > 0 {
            account.warnings.push(format!(
                "{}: {twice} lines list an image that an earlier line lists too",
                path.display()
            ));
        }
        account.warnings.extend(
            choice.doubts(&raw, &columns, wanted).map(|doubt| format!("{}: {doubt}", path.display())),
        );
        let labels = Labels::new(&raw, choice.class_names(&columns).as_deref())
            .map_err(|(row, problem)| fail(format!("line {}: {problem}", lines[row])))?;
        if labels.unlabelled() > 0 {
            let (count, all) = (labels.unlabelled(), files.len());
            account.warnings.push(format!("{}: {count} of {all} images have no label", path.display()));
        }
        let root = match &wanted.root {
            Some(root) => PathBuf::from(root),
            None => path.parent().map(Path::to_path_buf).unwrap_or_default(),
        };
        let step = files.len().div_ceil(LOOKED_FOR);
        if !files.iter().step_by(step).any(|file| root.join(file).exists()) {
            return Err(fail(format!(
                "none of the files that it lists is there, such as {}; paths start from {}, or from root=DIR",
                root.join(&files[0]).display(),
                if root.as_os_str().is_empty() { Path::new(".") } else { &root }.display()
            )));
        }
        Ok(Self { root, files, labels, account, fingerprint: OnceLock::new() })
    }

    fn path(&self, index: usize) -> Option<PathBuf> {
        self.files.get(index).map(|file| self.root.join(file))
    }
}

impl Source for TableSource {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        read_image(&self.path(index).ok_or(SourceError::Index { index, len: self.len() })?)
    }

    fn name(&self, index: usize) -> String {
        self.path(index).map(|path| path_text(&path)).unwrap_or_default()
    }

    fn name_bytes(&self, index: usize) -> Option<Vec<u8>> {
        path_bytes(&self.path(index)?)
    }

    fn key(&self, index: usize) -> String {
        self.files.get(index).map(|file| slashed(&path_text(file))).unwrap_or_default()
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
        let compute = || {
            let mut hash = Fingerprint::new();
            for (index, file) in self.files.iter().enumerate() {
                fingerprint_file(&mut hash, &self.root, file, self.labels.one(index));
                if self.labels.multi {
                    let classes = self.labels.all(index).unwrap_or_default();
                    classes.iter().for_each(|&class| hash.sample("", 0, Some(class)));
                }
            }
            hash.finish()
        };
        self.fingerprint.get_or_init(compute).clone()
    }

    fn account(&self) -> Account {
        self.account.clone()
    }
}

/// Which columns are used.
struct Choice {
    image: usize,
    label: Label,
}

enum Label {
    None,
    Column(usize),
    /// One 0/1 column for each class.
    Flags(Vec<usize>),
}

impl Choice {
    fn of(columns: &[String], wanted: &Columns) -> Result<Self, String> {
        let listed = || columns.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
        let find = |name: &str| {
            let found = columns.iter().position(|column| column == name);
            found.ok_or_else(|| format!("it has no column '{name}'; its columns are {}", listed()))
        };
        let usual = |names: &[&str]| -> Vec<usize> {
            let is_usual = |column: &String| names.iter().any(|name| column.eq_ignore_ascii_case(name));
            (0..columns.len()).filter(|&at| is_usual(&columns[at])).collect()
        };
        let several = |found: &[usize], what: &str, key: &str| {
            let names =
                found.iter().map(|&at| format!("'{}'", columns[at])).collect::<Vec<_>>().join(" and ");
            format!("the columns {names} can both be {what}; name one: FILE:{key}={}", columns[found[0]])
        };
        let image = match (&wanted.image, &usual(&IMAGE_NAMES)[..]) {
            (Some(name), _) => find(name)?,
            (None, [one]) => *one,
            (None, []) => {
                return Err(format!(
                    "no column is called like one of paths ({}); its columns are {}; name it: FILE:image=COLUMN",
                    IMAGE_NAMES.join(", "),
                    listed()
                ));
            }
            (None, found) => return Err(several(found, "the paths", "image")),
        };
        let label = match (&wanted.label, &usual(&LABEL_NAMES)[..]) {
            (Some(names), _) => match find(names) {
                Ok(column) => Label::Column(column),
                Err(_) if names.contains('+') => {
                    Label::Flags(names.split('+').map(find).collect::<Result<_, _>>()?)
                }
                Err(error) => return Err(error),
            },
            (None, []) => Label::None,
            (None, [one]) => Label::Column(*one),
            (None, found) => return Err(several(found, "the labels", "label")),
        };
        Ok(Self { image, label })
    }

    fn label(&self, cells: &[Cell], columns: &[String], wanted: &Columns) -> Result<RawLabel, String> {
        match &self.label {
            Label::None => Ok(RawLabel::None),
            Label::Column(column) => raw_label(&cells[*column], wanted.separator.as_deref()),
            Label::Flags(flags) => {
                let mut set = Vec::new();
                for (class, &column) in flags.iter().enumerate() {
                    if flag(&cells[column]).map_err(|found| {
                        format!("column '{}' is {found}; 0 or 1 was expected", columns[column])
                    })? {
                        set.push(Value::Number(class as u64));
                    }
                }
                Ok(RawLabel::Many(set))
            }
        }
    }

    fn class_names(&self, columns: &[String]) -> Option<Vec<String>> {
        match &self.label {
            Label::Flags(flags) => Some(flags.iter().map(|&column| columns[column].clone()).collect()),
            Label::None | Label::Column(_) => None,
        }
    }

    /// What may not be meant so.
    fn doubts(&self, raw: &[RawLabel], columns: &[String], wanted: &Columns) -> impl Iterator<Item = String> {
        let mut doubts = Vec::new();
        match &self.label {
            // The second column of a table of images and masks.
            Label::None if columns.len() == 2 && columns.iter().any(|name| name == MASK) => {}
            Label::None if columns.len() > 1 => doubts.push(format!(
                "no column is called like one of labels ({}), so the images have none; name it: FILE:label=COLUMN",
                LABEL_NAMES.join(", ")
            )),
            Label::Column(_) if wanted.separator.is_none() => {
                let joined = raw.iter().find_map(|label| match label {
                    RawLabel::One(Value::Name(name)) => name.find(['|', ';']).map(|at| (name, &name[at..=at])),
                    _ => None,
                });
                if let Some((name, mark)) = joined {
                    doubts.push(format!(
                        "'{name}' is taken as one class; if it is several, say so: FILE:separator={mark}"
                    ));
                }
            }
            _ => {}
        }
        doubts.into_iter()
    }
}

fn raw_label(cell: &Cell, separator: Option<&str>) -> Result<RawLabel, String> {
    let split = |text: &str| match separator {
        Some(separator) => RawLabel::Many(text.split(separator).filter_map(Value::of_text).collect()),
        None => Value::of_text(text).map_or(RawLabel::None, RawLabel::One),
    };
    match cell {
        Cell::Text(bytes) => Ok(split(&String::from_utf8_lossy(bytes))),
        Cell::Json(Json::String(text)) if separator.is_some() => Ok(split(text)),
        Cell::Json(value) => RawLabel::of_json(value),
    }
}

fn flag(cell: &Cell) -> Result<bool, String> {
    let text = match cell {
        Cell::Text(bytes) => String::from_utf8_lossy(bytes).trim().to_ascii_lowercase(),
        Cell::Json(Json::String(text)) => text.trim().to_ascii_lowercase(),
        Cell::Json(value) => value.to_string(),
    };
    match text.as_str() {
        "1" | "1.0" | "true" => Ok(true),
        "0" | "0.0" | "false" => Ok(false),
        _ => Err(format!("'{text}'")),
    }
}

fn path_of(cell: &Cell) -> Result<PathBuf, String> {
    match cell {
        Cell::Text(bytes) if !bytes.trim_ascii().is_empty() => Ok(of_bytes(bytes)),
        Cell::Json(Json::String(text)) if !text.is_empty() => Ok(PathBuf::from(text)),
        Cell::Json(Json::Null) | Cell::Text(_) => Err("it names no image".into()),
        Cell::Json(other) => Err(format!("{other} is not a path")),
    }
}

/// Paths need not be UTF-8 on Unix.
#[cfg(unix)]
fn of_bytes(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(not(unix))]
fn of_bytes(bytes: &[u8]) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(bytes).into_owned())
}

/// Counts lines that list an image again; with another label they are an error.
fn repeated(files: &[PathBuf], raw: &[RawLabel], lines: &[usize]) -> Result<usize, String> {
    let mut first: HashMap<&Path, usize> = HashMap::new();
    let mut twice = 0;
    for (row, file) in files.iter().enumerate() {
        let Some(&before) = first.get(file.as_path()) else {
            first.insert(file, row);
            continue;
        };
        if raw[before] != raw[row] {
            return Err(format!(
                "{} has one label on line {} and another on line {}; for several labels, put them into one cell and add \
                 separator=|",
                file.display(),
                lines[before],
                lines[row]
            ));
        }
        twice += 1;
    }
    Ok(twice)
}

fn open(path: &Path) -> Result<BufReader<File>, String> {
    let file = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        _ => format!("cannot open it: {error}"),
    })?;
    let mut reader = BufReader::new(file);
    // Spreadsheets begin UTF-8 files with a byte order mark.
    if reader.fill_buf().map_err(unreadable)?.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    Ok(reader)
}

fn unreadable(error: impl std::fmt::Display) -> String {
    format!("cannot read it: {error}")
}

fn separated(path: &Path) -> Result<Rows, String> {
    let mut reader = open(path)?;
    let start = reader.fill_buf().map_err(unreadable)?;
    let header = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let delimiter = match has_extension(path, &["tsv"]) {
        true => b'\t',
        // Where the comma is the decimal sign, spreadsheets write semicolons.
        false if !header.contains(&b',') && header.contains(&b';') => b';',
        false => b',',
    };
    let mut table =
        csv::ReaderBuilder::new().delimiter(delimiter).trim(csv::Trim::Headers).from_reader(reader);
    let header = table.byte_headers().map_err(unreadable)?;
    let columns: Vec<String> = header.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let mut rows = Vec::new();
    for record in table.byte_records() {
        let record = record.map_err(|error| match error.kind() {
            csv::ErrorKind::UnequalLengths { pos, expected_len, len } => format!(
                "line {} has {len} cells, the header has {expected_len}",
                pos.as_ref().map_or(0, csv::Position::line)
            ),
            _ => unreadable(error),
        })?;
        let line = record.position().map_or(0, |position| position.line() as usize);
        rows.push((line, record.iter().map(|cell| Cell::Text(cell.to_vec())).collect()));
    }
    Ok(Rows { columns, rows })
}

fn json_lines(path: &Path) -> Result<Rows, String> {
    let mut reader = open(path)?;
    let (mut columns, mut objects) = (Vec::<String>::new(), Vec::new());
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        let read = (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut text).map_err(unreadable)?;
        match read as u64 {
            0 => break,
            MAX_LINE_BYTES => return Err(format!("line {number} is longer than {MAX_LINE_BYTES} bytes")),
            _ if text.trim_ascii().is_empty() => continue,
            _ => {}
        }
        let object: serde_json::Map<String, Json> = serde_json::from_slice(&text)
            .map_err(|error| format!("line {number} is not a JSON object ({error})"))?;
        for key in object.keys() {
            if !columns.contains(key) {
                columns.push(key.clone());
            }
        }
        objects.push((number, object));
    }
    let cell = |object: &serde_json::Map<String, Json>, name: &String| {
        Cell::Json(object.get(name).cloned().unwrap_or(Json::Null))
    };
    let rows =
        objects.iter().map(|(line, object)| (*line, columns.iter().map(|name| cell(object, name)).collect()));
    let rows = rows.collect();
    Ok(Rows { columns, rows })
}

/// The paths in two columns of a table, as they stand there.
///
/// # Errors
/// A file that cannot be read or is no table, a column that is not there, a cell without a path.
pub(crate) fn pairs(path: &Path, first: &str, second: &str) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let Rows { columns, rows } = match has_extension(path, &["jsonl"]) {
        true => json_lines(path)?,
        false => separated(path)?,
    };
    let find = |name: &str| {
        let found = columns.iter().position(|column| column.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            format!(
                "it has no column '{name}'; a table of images and masks has the columns {first} and {second}"
            )
        })
    };
    let (one, other) = (find(first)?, find(second)?);
    let pair = |(line, cells): (usize, Vec<Cell>)| {
        let at = |problem: String| format!("line {line}: {problem}");
        Ok((path_of(&cells[one]).map_err(at)?, path_of(&cells[other]).map_err(at)?))
    };
    rows.into_iter().map(pair).collect()
}

/// Whether a JSON-lines file is an index file, one class a line: its first line has `class` and `files`.
pub(super) fn is_index_file(path: &Path) -> bool {
    let mut text = Vec::new();
    let first = open(path).and_then(|reader| {
        // A class of an index file can have millions of files on its line: only the beginning is looked at.
        reader.take(1 << 16).read_until(b'\n', &mut text).map_err(unreadable)
    });
    let has = |key: &[u8]| memchr::memmem::find(&text, key).is_some();
    first.is_ok() && has(b"\"class\"") && has(b"\"files\"")
}
