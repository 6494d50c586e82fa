//! Cells of CSV tables (RFC 4180).

/// A text as one cell.
pub fn csv_cell(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_survive_commas_and_quotes() {
        assert_eq!(csv_cell("cat"), "cat");
        assert_eq!(csv_cell("cat, \"tabby\""), "\"cat, \"\"tabby\"\"\"");
    }
}
