//! Text for people and scripts. Results go to stdout; progress, warnings and errors go to stderr, so that a
//! pipe gets results only.

use std::io::Write;
use std::path::Path;

use beit2_run::atomic::FileError;

use crate::errors::usage;

/// Prints a result to stdout. A closed pipe is an error that the program ends on silently.
pub fn result(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(end.as_bytes()))
        .and_then(|()| out.flush());
    Ok(written.map_err(|error| FileError::new("write", Path::new("standard output"), error))?)
}

/// Prints a result as the one JSON object of `--json`.
pub fn json(value: &serde_json::Value) -> anyhow::Result<()> {
    result(&serde_json::to_string_pretty(value)?)
}

/// Refuses an output file that cannot be written, or that would replace another without `force`, before any work is done.
pub fn check_new_file(path: &Path, force: bool) -> anyhow::Result<()> {
    let name = path.display();
    if path.is_dir() {
        return usage(format!("{name} is a folder; give the path of a file"));
    }
    if path.exists() && !force {
        return usage(format!("{name} already exists; choose another name, or replace it with --force"));
    }
    match path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        Some(folder) => {
            usage(format!("{name}: the folder {} does not exist; create it first", folder.display()))
        }
        None => Ok(()),
    }
}

/// Tells the user something that is no result.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Tells the user what may be wrong.
pub fn warning(text: &str) {
    note(&format!("{} {text}", console::style("warning:").for_stderr().yellow()));
}

/// Rows of name and value with the values in one column.
pub fn pairs<N: AsRef<str>, V: AsRef<str>>(rows: &[(N, V)]) -> String {
    let width = rows.iter().map(|(name, _)| name.as_ref().chars().count()).max().unwrap_or(0);
    let line = |(name, value): &(N, V)| format!("{:width$}  {}\n", name.as_ref(), value.as_ref());
    rows.iter().map(line).collect()
}

/// A table: the first column to the left, numbers to the right.
pub fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |row: &[String], at: usize| row.get(at).cloned().unwrap_or_default();
    let widths: Vec<usize> = (0..columns.len())
        .map(|at| {
            let cells = rows.iter().map(|row| cell(row, at).chars().count());
            cells.chain([columns[at].chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &dyn Fn(usize) -> String| {
        let cells = widths.iter().enumerate().map(|(at, &width)| match at {
            0 => format!("{:width$}", cells(at)),
            _ => format!("{:>width$}", cells(at)),
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut text = line(&|at| columns[at].to_owned());
    text.extend(rows.iter().map(|row| line(&|at| cell(row, at))));
    text
}

/// Rows of texts with every column but the last as wide as its widest cell.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|at| width(at).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A text from a file, with control characters spelled out: names in weight files can be anything.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        assert_eq!(pairs(&[("a", "1"), ("long", "2")]), "a     1\nlong  2\n");
        let text = table(&["model", "k-NN"], &[vec!["pixels".into(), "34.0 %".into()], vec!["x".into()]]);
        assert_eq!(text, "model     k-NN\npixels  34.0 %\nx\n");
        let rows = [vec!["a".into(), "b".into()], vec!["long".into(), printable("x\n\u{1b}")]];
        assert_eq!(columns(&rows), "a     b\nlong  x\\n\\u{1b}\n");
    }
}
