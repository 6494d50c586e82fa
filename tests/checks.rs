//! Shared by the golden tests of all crates: where the recordings are, and tests that list everything that failed.
//!
//! A golden test runs its comparisons inside [`golden`] or [`each`]. A comparison that fails is noted by [`check`] and the
//! test goes on; a panic ends only the part in which it happens. The test fails once, at its end, with a line for each.
//! What a folder lacks is printed by [`skip`]. The last line of a run with `--nocapture` counts all of it.

#![allow(dead_code)]

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The folder of the recordings: `BEIT2_GOLDEN`, else the selection in the workspace.
///
/// # Panics
/// When it holds no manifest: a test of nothing must not pass.
pub fn root() -> PathBuf {
    let root = match std::env::var_os("BEIT2_GOLDEN") {
        Some(path) => path.into(),
        // Where the test was built; else it was carried elsewhere, and the folder with it.
        None => [concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden"), "tests/golden"]
            .map(PathBuf::from)
            .into_iter()
            .find(|path| path.is_dir())
            .unwrap_or_default(),
    };
    let manifest = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("manifest_"))
    };
    let any = std::fs::read_dir(&root).is_ok_and(|mut entries| entries.any(manifest));
    assert!(any, "{} holds no manifest_*.json: not a golden folder", root.display());
    root
}

#[derive(Default)]
struct Outcome {
    compared: usize,
    failed: Vec<String>,
    skipped: usize,
}

thread_local! {
    /// Of the golden test that this thread runs.
    static OUTCOME: RefCell<Option<Outcome>> = const { RefCell::new(None) };
}

// Of all golden tests of this process so far.
static TESTS: AtomicUsize = AtomicUsize::new(0);
static COMPARED: AtomicUsize = AtomicUsize::new(0);
static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// Notes a comparison. Outside a golden test a failure panics at once, so that none is lost.
#[track_caller]
pub fn check(holds: bool, line: impl FnOnce() -> String) {
    OUTCOME.with_borrow_mut(|outcome| match outcome {
        Some(outcome) => {
            outcome.compared += 1;
            if !holds {
                outcome.failed.push(line());
            }
        }
        None => assert!(holds, "{}", line()),
    });
}

/// As [`check`], for two values that must be equal.
#[track_caller]
pub fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) {
    check(found == expected, || format!("{what} is {found:?}, expected {expected:?}"));
}

/// Says what is not compared, and why.
pub fn skip(line: impl AsRef<str>) {
    println!("skipped: {}", line.as_ref());
    SKIPPED.fetch_add(1, Ordering::Relaxed);
    OUTCOME.with_borrow_mut(|outcome| {
        if let Some(outcome) = outcome {
            outcome.skipped += 1;
        }
    });
}

/// Runs a part of a golden test. A panic fails this part alone.
pub fn part(name: &str, run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        check(false, || format!("{name}: {}", message(&*panic)));
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked")
}

/// Runs a golden test: the failures of all its parts are one panic at the end. Inside another it is a part of that.
///
/// # Panics
/// When a comparison failed.
#[track_caller]
pub fn golden(run: impl FnOnce()) {
    if OUTCOME.with_borrow(Option::is_some) {
        return part("inside a test", run);
    }
    OUTCOME.set(Some(Outcome::default()));
    part("not in a case", run);
    let Outcome { compared, failed, skipped } = OUTCOME.take().unwrap_or_default();
    let total = |counter: &AtomicUsize, more| counter.fetch_add(more, Ordering::Relaxed) + more;
    println!(
        "{}: {compared} comparisons, {} failed, {skipped} skipped. So far {} tests, {} comparisons, {} skipped.",
        std::thread::current().name().unwrap_or("golden"),
        failed.len(),
        total(&TESTS, 1),
        total(&COMPARED, compared),
        SKIPPED.load(Ordering::Relaxed),
    );
    assert!(
        failed.is_empty(),
        "{} of {compared} comparisons failed:\n  {}",
        failed.len(),
        failed.join("\n  ")
    );
}

/// A golden test of several recorded things, each a part of its own, with its name.
#[track_caller]
pub fn each<T>(items: impl IntoIterator<Item = (String, T)>, run: impl Fn(&str, T)) {
    golden(|| {
        for (name, item) in items {
            part(&name, || run(&name, item));
        }
    });
}
