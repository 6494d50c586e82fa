//! What the Python package `beit2` calls: models on any device, images to rows of values, the program itself.
//!
//! The classes that people use are written in Python (`python/beit2/`): they say what may be passed and turn it into encoded
//! images or float tensors. This crate decodes, computes without the GIL, and turns every error and every panic into an
//! exception. It holds no model code and no defaults of its own: weights, devices and sentences are the program's
//! ([`beit2_cli`]).

mod decoding;
mod exceptions;
mod identity;
mod images;
mod model;
mod nets;
mod open;
mod training;

use std::ffi::OsString;

use pyo3::prelude::*;

/// Runs the program `beit2` with a command line, its name first, and gives the exit code.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| beit2_cli::run(arguments))
}

#[pymodule]
fn _beit2(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<model::Model>()?;
    module.add_class::<training::Images>()?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add_function(wrap_pyfunction!(open::open, module)?)?;
    module.add_function(wrap_pyfunction!(identity::fingerprint, module)?)?;
    module.add_function(wrap_pyfunction!(identity::stamp, module)?)?;
    module.add_function(wrap_pyfunction!(training::training_images, module)?)?;
    module.add_function(wrap_pyfunction!(decoding::decode, module)?)?;
    Ok(())
}
