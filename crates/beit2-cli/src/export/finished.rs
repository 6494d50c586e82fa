//! All rows, ready to be written.

use std::io::Write;

use anyhow::Context;
use beit2_run::atomic::AtomicFile;

use super::layout::RowLayout;
use super::partial::Partial;

/// Finished rows and what is known about them.
pub struct Finished<'a> {
    /// What a row is.
    pub layout: &'a RowLayout,
    /// Where the values come from, for formats that have room for it.
    pub meta: &'a [(String, String)],
    /// Whether the images have classes.
    pub labelled: bool,
    /// Whether a file beside this one can have names that are not UTF-8: parts of one collection have the same columns.
    pub odd_names: bool,
    /// The rows.
    pub partial: &'a Partial,
}

impl Finished<'_> {
    /// Shape of all rows together.
    pub fn shape(&self) -> Vec<usize> {
        [&[self.partial.rows()], self.layout.shape.as_slice()].concat()
    }

    /// Writes the values of all rows, one after the other.
    pub fn write_values(&self, writer: &mut AtomicFile) -> anyhow::Result<()> {
        std::io::copy(&mut self.partial.read_rows()?, writer).context("the rows cannot be copied")?;
        Ok(())
    }

    /// Writes the paths and labels of the rows.
    pub fn write_list(&self, writer: &mut AtomicFile) -> anyhow::Result<()> {
        for sample in self.partial.read_samples()? {
            serde_json::to_writer(&mut *writer, &sample?)?;
            writer.write_all(b"\n")?;
        }
        Ok(())
    }
}
