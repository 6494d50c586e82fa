//! Errors as Python's exceptions, with the program's sentence.

use beit2_cli::{Refusal, caught, refusal};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// Why work ended early: an error of ours, or an exception of a Python function that it called.
#[derive(Debug)]
pub struct Raised(pub PyErr);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Raised {}

/// Runs `work` without the GIL.
///
/// # Errors
/// `beit2.InputError` where other arguments help, else `beit2.Error`; a panic is one too. What a Python function raised within
/// `work` ([`Raised`]) is raised again.
pub fn without_gil<T: Send>(py: Python<'_>, work: impl FnOnce() -> anyhow::Result<T> + Send) -> PyResult<T> {
    py.detach(|| caught(work)).map_err(|error| exception(py, error))
}

fn exception(py: Python<'_>, error: anyhow::Error) -> PyErr {
    let error = match error.downcast::<Raised>() {
        Ok(Raised(raised)) => return raised,
        Err(error) => error,
    };
    let Refusal { sentence, is_usage } = refusal(&error);
    let name = if is_usage { "InputError" } else { "Error" };
    let class = py.import("beit2._errors").and_then(|module| module.getattr(name));
    match class.and_then(|class| class.call1((&sentence,))) {
        Ok(value) => PyErr::from_value(value),
        // Only while Python ends.
        Err(_) => PyRuntimeError::new_err(sentence),
    }
}
