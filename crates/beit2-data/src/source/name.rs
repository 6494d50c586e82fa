//! Names of files as text that keeps their bytes.
//!
//! On Unix a file name is any bytes, and archives have the bytes of the system that made them. Text that is UTF-8 stays as it
//! is. In any other name each byte that is not part of a character becomes `%` and two hexadecimal digits, and `%` itself becomes `%25`, so
//! that two names never look alike and a name can be taken back (in Python: `urllib.parse.unquote_to_bytes`).

use std::fmt::Write;
use std::path::Path;

/// A name as text; the second value says that bytes were escaped.
pub(crate) fn text_of(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        out.push_str(&chunk.valid().replace('%', "%25"));
        chunk.invalid().iter().for_each(|byte| {
            let _ = write!(out, "%{byte:02X}"); // into a string: cannot fail
        });
    }
    out
}

/// A path as text.
pub(crate) fn path_text(path: &Path) -> String {
    text_of(path.as_os_str().as_encoded_bytes())
}

/// What stands behind the last separator of a path that is text already.
pub(crate) fn last_part(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// The last part of a path as text.
pub(crate) fn file_name(path: &Path) -> String {
    text_of(path.file_name().unwrap_or_default().as_encoded_bytes())
}

/// The bytes of a path, when they are no text.
pub(crate) fn path_bytes(path: &Path) -> Option<Vec<u8>> {
    let bytes = path.as_os_str().as_encoded_bytes();
    std::str::from_utf8(bytes).is_err().then(|| bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_no_text_change() {
        assert_eq!(text_of("50 % café.jpg".as_bytes()), "50 % café.jpg");
        assert_eq!(text_of(b"50 % caf\xE9.jpg"), "50 %25 caf%E9.jpg");
        assert_ne!(text_of(b"\xE8.jpg"), text_of(b"\xE9.jpg"));
        assert_eq!(text_of(b"\xE9\xFF"), "%E9%FF");
    }
}
