//! The command line that the program runs with.
//!
//! Why not the process's own: within Python that begins with the interpreter and its options.

use std::ffi::OsString;
use std::sync::OnceLock;

static ARGUMENTS: OnceLock<Vec<OsString>> = OnceLock::new();

/// Says what the command line is, once.
pub fn set(arguments: Vec<OsString>) {
    let _ = ARGUMENTS.set(arguments);
}

/// The command line, the program's name first.
pub fn all() -> Vec<OsString> {
    ARGUMENTS.get().cloned().unwrap_or_else(|| std::env::args_os().collect())
}

/// The same as text.
pub fn texts() -> impl Iterator<Item = String> {
    all().into_iter().map(|argument| argument.to_string_lossy().into_owned())
}
