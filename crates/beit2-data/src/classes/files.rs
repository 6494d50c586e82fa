//! Files that people write about classes: lists of names, and tables from one name to another.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::{ClassError, Target, numbered, some_of};

/// Class names in the order of a model's classes: one name a line, or as JSON a list (`["cat", "dog"]`), `id2label`
/// (`{"0": "cat", "1": "dog"}`, also inside a `config.json`) or `class_to_idx` (`{"cat": 0, "dog": 1}`).
///
/// # Errors
/// A file that cannot be read or is empty; a line without a name; JSON of another form; a class without a name.
pub fn read_names(path: &Path) -> Result<Vec<String>, ClassError> {
    let wrong = |problem: String| ClassError::File { path: path.display().to_string(), problem };
    let text = text_of(path).map_err(wrong)?;
    let names = if text.starts_with(['[', '{']) { names_of_json(&text) } else { names_of_lines(&text) };
    match names.map_err(wrong)? {
        names if names.is_empty() => Err(wrong("no class names; write one a line".into())),
        names => Ok(names),
    }
}

fn text_of(path: &Path) -> Result<String, String> {
    let bytes = std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        _ => format!("cannot read it: {error}"),
    })?;
    let text = String::from_utf8(bytes).map_err(|_| "not a text file in UTF-8".to_owned())?;
    Ok(text.trim_start_matches('\u{feff}').trim().to_owned())
}

fn names_of_lines(text: &str) -> Result<Vec<String>, String> {
    let name = |(line, name): (usize, &str)| match name.trim() {
        "" => Err(format!("line {line} is empty; write one class name a line")),
        name => Ok(name.to_owned()),
    };
    (1..).zip(text.lines()).map(name).collect()
}

fn names_of_json(text: &str) -> Result<Vec<String>, String> {
    const EXPECTED: &str = "a list of names, {\"0\": \"name\", …} or {\"name\": 0, …} is expected";
    let json: Value = serde_json::from_str(text).map_err(|error| format!("not valid JSON ({error})"))?;
    let inner = ["id2label", "label_names"].iter().find_map(|key| json.get(key));
    let pairs: Vec<(u64, &str)> = match inner.unwrap_or(&json) {
        Value::Array(list) => {
            let name = |(at, value): (u64, &'_ Value)| value.as_str().map(|_| at);
            if (0..).zip(list).any(|pair| name(pair).is_none()) {
                return Err(EXPECTED.into());
            }
            (0..).zip(list.iter().filter_map(Value::as_str)).collect()
        }
        Value::Object(table) => {
            let pair = |(key, value): (&'_ String, &'_ Value)| match value {
                Value::String(_) => key.parse().ok(),
                number => number.as_u64(),
            };
            let numbers: Option<Vec<u64>> = table.iter().map(pair).collect();
            let names = table.iter().map(|(key, value)| value.as_str().unwrap_or(key));
            numbers.ok_or(EXPECTED)?.into_iter().zip(names).collect()
        }
        _ => return Err(EXPECTED.into()),
    };
    let by_number: HashMap<u64, &str> = pairs.iter().copied().collect();
    let name = |number: u64| match by_number.get(&number) {
        Some(name) => Ok((*name).to_owned()),
        None => Err(format!("class {number} of {} has no name", pairs.len())),
    };
    (0..pairs.len() as u64).map(name).collect()
}

/// Names of the data's classes and the model's classes that they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassTable {
    path: String,
    rows: Vec<(String, String)>,
    /// The first row may be the names of the columns.
    may_have_header: bool,
}

impl ClassTable {
    /// Reads `{"data name": "model name", …}`, or a CSV or TSV file with these two columns, with or without a line of
    /// column names.
    ///
    /// # Errors
    /// A file that cannot be read; lines of another form; one name with two meanings.
    pub fn read(path: &Path) -> Result<Self, ClassError> {
        let wrong = |problem: String| ClassError::File { path: path.display().to_string(), problem };
        let text = text_of(path).map_err(wrong)?;
        let may_have_header = !text.starts_with('{');
        let rows = if may_have_header { separated(&text) } else { object(&text) }.map_err(wrong)?;
        let mut first: HashMap<&str, &str> = HashMap::new();
        for (data, model) in &rows {
            match first.insert(data, model) {
                Some(before) if before != model => {
                    return Err(wrong(format!("`{data}` is mapped to `{before}` and to `{model}`")));
                }
                _ => {}
            }
        }
        Ok(Self { path: path.display().to_string(), rows, may_have_header })
    }

    /// The rows, without that of the column names.
    fn rows(&self, is_class: impl Fn(&str, &str) -> bool) -> &[(String, String)] {
        match self.rows.as_slice() {
            [(data, model), rest @ ..]
                if self.may_have_header && !rest.is_empty() && !is_class(data, model) =>
            {
                rest
            }
            all => all,
        }
    }

    /// The target's names of the data's classes `found`; those that the table does not have keep their own.
    ///
    /// # Errors
    /// A name that is not a class of the data, or not one of the target.
    pub(super) fn rename(
        &self,
        data: &str,
        found: &[String],
        target: Target<'_>,
    ) -> Result<Vec<String>, ClassError> {
        let (of_data, of_model) = (numbered(found), numbered(target.names));
        let rows = self.rows(|data, model| of_data.contains_key(data) || of_model.contains_key(model));
        let unknown = |name: &String, place: &str, known: &[String]| {
            let (path, name, known) = (self.path.clone(), name.clone(), some_of(known));
            Err(ClassError::Table { path, name, place: place.to_owned(), known })
        };
        for (from, to) in rows {
            if !of_data.contains_key(from.as_str()) {
                return unknown(from, data, found);
            }
            if !of_model.contains_key(to.as_str()) {
                return unknown(to, target.owner, target.names);
            }
        }
        let table: HashMap<&String, &String> = rows.iter().map(|(from, to)| (from, to)).collect();
        Ok(found.iter().map(|name| (*table.get(name).unwrap_or(&name)).clone()).collect())
    }

    /// What the data call the target's classes: of several names, all with ` | ` between them; of none, the target's own.
    ///
    /// # Errors
    /// A name that is not a class of the target.
    pub fn names_of(&self, target: Target<'_>) -> Result<Vec<String>, ClassError> {
        let of_model = numbered(target.names);
        let rows = self.rows(|_, model| of_model.contains_key(model));
        for (_, to) in rows {
            if !of_model.contains_key(to.as_str()) {
                let (path, name, known) = (self.path.clone(), to.clone(), some_of(target.names));
                return Err(ClassError::Table { path, name, place: target.owner.to_owned(), known });
            }
        }
        let name = |own: &String| {
            let names: Vec<&str> =
                rows.iter().filter(|(_, to)| to == own).map(|(from, _)| from.as_str()).collect();
            if names.is_empty() { own.clone() } else { names.join(" | ") }
        };
        Ok(target.names.iter().map(name).collect())
    }
}

fn object(text: &str) -> Result<Vec<(String, String)>, String> {
    let json: serde_json::Map<String, Value> =
        serde_json::from_str(text).map_err(|error| format!("not a JSON object ({error})"))?;
    let row = |(data, model): (String, Value)| match model {
        Value::String(model) => Ok((data, model)),
        Value::Number(number) => Ok((data, number.to_string())),
        other => Err(format!("`{data}` is mapped to {other}; the name of a class is expected")),
    };
    json.into_iter().map(row).collect()
}

fn separated(text: &str) -> Result<Vec<(String, String)>, String> {
    let first = text.lines().next().unwrap_or_default();
    let delimiter = [b'\t', b',', b';'].into_iter().find(|&byte| first.as_bytes().contains(&byte));
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter.unwrap_or(b','))
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| format!("cannot read it: {error}"))?;
        match record.iter().collect::<Vec<_>>()[..] {
            [data, model] if !data.is_empty() && !model.is_empty() => rows.push((data.into(), model.into())),
            _ => {
                let line = record.position().map_or(0, csv::Position::line);
                return Err(format!(
                    "line {line} has {} cells; two are expected, the data's class and the model's",
                    record.iter().filter(|cell| !cell.is_empty()).count()
                ));
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn names_in_every_form() {
        let names = |text: &str| {
            let (_dir, path) = file("names", text);
            read_names(&path).map_err(|error| error.to_string().rsplit_once("names: ").unwrap().1.to_owned())
        };
        for text in [
            "cat\nbig dog\n",
            "\u{feff}cat\r\nbig dog\r\n\r\n",
            "[\"cat\", \"big dog\"]",
            "{\"1\": \"big dog\", \"0\": \"cat\"}",
            "{\"big dog\": 1, \"cat\": 0}",
            "{\"architectures\": [\"x\"], \"id2label\": {\"0\": \"cat\", \"1\": \"big dog\"}}",
            "{\"num_classes\": 2, \"label_names\": [\"cat\", \"big dog\"]}",
        ] {
            assert_eq!(names(text).unwrap(), ["cat", "big dog"], "{text}");
        }
        assert_eq!(names("a\n\nb").unwrap_err(), "line 2 is empty; write one class name a line");
        assert_eq!(names("").unwrap_err(), "no class names; write one a line");
        assert_eq!(names("{\"0\": \"a\", \"2\": \"b\"}").unwrap_err(), "class 1 of 2 has no name");
        assert!(names("{\"0\": [1]}").unwrap_err().contains("is expected"));
        assert!(names("[1]").unwrap_err().contains("is expected"));
    }

    #[test]
    fn tables_in_every_form() {
        let names = ["fish".to_owned(), "bird, any".to_owned()];
        let target = Target { owner: "the model", count: 2, names: &names };
        let found = ["eel".to_owned(), "owl".to_owned(), "fish".to_owned()];
        let renamed = |text: &str| {
            let (_dir, path) = file("map.csv", text);
            let renamed = ClassTable::read(&path).and_then(|table| table.rename("data", &found, target));
            renamed.map_err(|error| error.to_string())
        };
        for text in [
            "eel,fish\nowl,\"bird, any\"\n",
            "folder,class\r\neel,fish\r\nowl,\"bird, any\"\r\n",
            "eel\tfish\nowl\tbird, any\n",
            "{\"eel\": \"fish\", \"owl\": \"bird, any\"}",
        ] {
            assert_eq!(renamed(text).unwrap(), ["fish", "bird, any", "fish"], "{text}");
        }
        let why = |text: &str| renamed(text).unwrap_err();
        assert!(
            why("eel,fish\nowls,fish\n")
                .contains("the class `owls`, which is not a class of data; its classes are `eel`")
        );
        assert!(
            why("eel,fish\nowl,birds\n").contains("the class `birds`, which is not a class of the model")
        );
        assert!(
            why("eel,fish\neel,\"bird, any\"\n").contains("`eel` is mapped to `fish` and to `bird, any`")
        );
        assert!(why("eel,fish\nowl\n").contains("line 2 has 1 cells; two are expected"));

        let (_dir, path) = file("map.csv", "eel,fish\ncod,fish\n");
        let shown = ClassTable::read(&path).unwrap().names_of(target).unwrap();
        assert_eq!(shown, ["eel | cod", "bird, any"]);
    }
}
