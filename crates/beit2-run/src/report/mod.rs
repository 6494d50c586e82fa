//! The report: one HTML file that shows whether training is healthy.
//!
//! A reader wants the result before the details, so the order is: headline table, warnings, curves, the
//! codebook's health, images, and the settings folded away. The file needs nothing beside it:
//! charts are inline SVG, images are PNG in base64, a few lines of script only add hover values. Every text
//! from outside is escaped. Parts without data are left out or say so.
//!
//! Fill a [`ReportData`] (every field has a sensible empty value), call [`render`], write the text with
//! [`write_bytes_atomic`](crate::atomic::write_bytes_atomic).

mod axis;
mod chart;
mod classified;
mod compare;
mod curves;
mod examples;
mod health;
mod html;
mod image;
mod sections;
mod segmented;

pub use classified::{Classified, Guess, LabelScore, WorstImage};
pub use compare::{Compared, Comparison, Line, render_comparison};
pub use curves::metric_title;
pub use examples::{EXAMPLES, Examples, ExamplesError, Gallery, GalleryCode, MimSample, Seen};
pub use health::{Level, Verdict, assess};
pub use image::png;
pub use segmented::{PixelClass, Segmented};

use crate::metrics::Record;

/// Everything a report shows.
#[derive(Debug, Clone, Default)]
pub struct ReportData {
    /// What the run is, such as `quickstart`.
    pub title: String,
    /// When it ended, ready to print.
    pub date: String,
    /// The command that makes this run again.
    pub command: String,
    /// A few single numbers to show large: name and value, such as `k-NN top-1` and `61.3 %`. What follows the first line of
    /// a value is shown small below it.
    pub facts: Vec<(String, String)>,
    /// The table of results.
    pub headline: Headline,
    /// Warnings of the run, one sentence each; the report adds its own about the codebook and values that are not
    /// finite.
    pub warnings: Vec<String>,
    /// The stages in the order they ran.
    pub stages: Vec<Stage>,
    /// The codebook over time, if the run has one.
    pub codebook: Option<CodebookHealth>,
    /// Images and tables of what was learned.
    pub examples: Examples,
    /// Why there are none of those, in a sentence.
    pub without_examples: String,
    /// Machine and software, see [`Environment::pairs`](crate::environment::Environment::pairs).
    pub environment: Vec<(String, String)>,
}

/// The table of results. Its first column holds the rows' labels.
#[derive(Debug, Clone, Default)]
pub struct Headline {
    /// The columns' names, the one of the labels included.
    pub columns: Vec<String>,
    /// The rows; a short row is filled with empty cells.
    pub rows: Vec<HeadlineRow>,
    /// What the numbers are, in a sentence below the table.
    pub note: String,
}

/// One row of the table of results.
#[derive(Debug, Clone, Default)]
pub struct HeadlineRow {
    /// What was measured.
    pub label: String,
    /// The numbers.
    pub cells: Vec<Cell>,
    /// Whether this is the row the reader looks for.
    pub strong: bool,
}

/// One number of the table.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    /// The number as text.
    pub text: String,
    /// Length of the bar behind it, 0 to 1; `None` for no bar.
    pub bar: Option<f64>,
}

/// One stage of the run.
#[derive(Debug, Clone, Default)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Its records, see [`read_jsonl`](crate::metrics::read_jsonl).
    pub records: Vec<Record>,
    /// Its resolved settings.
    pub settings_toml: String,
    /// Mean speed in images per second.
    pub images_per_second: Option<f64>,
    /// Wall time in seconds.
    pub seconds: Option<f64>,
}

/// The codebook over time.
#[derive(Debug, Clone, Default)]
pub struct CodebookHealth {
    /// Number of codes.
    pub size: u32,
    /// One entry per epoch.
    pub history: Vec<CodebookPoint>,
}

/// The codebook at the end of an epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CodebookPoint {
    /// The epoch.
    pub epoch: u64,
    /// Part of the codes that were used in it, 0 to 1.
    pub usage: f64,
    /// exp of the entropy of the codes' frequencies: as varied as this many equally frequent codes.
    pub perplexity: f64,
    /// Codes that were not used in it.
    pub dead: u64,
}

/// An RGB image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RgbImage {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Row by row, three bytes per pixel: `3 * width * height` bytes.
    pub rgb: Vec<u8>,
}

impl Cell {
    /// A cell without a bar.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), bar: None }
    }

    /// A fraction as percent with a bar of that length: `0.613` is `61.3 %`.
    pub fn percent(fraction: f64) -> Self {
        if fraction.is_finite() {
            Self { text: format!("{:.1} %", 100.0 * fraction), bar: Some(fraction.clamp(0.0, 1.0)) }
        } else {
            Self::text("–")
        }
    }
}

/// The report as one HTML document.
pub fn render(data: &ReportData) -> String {
    let mut page = html::Page::new(&data.title);
    sections::top(&mut page, data);
    sections::headline(&mut page, data);
    curves::stages(&mut page, &data.stages);
    if let Some(codebook) = &data.codebook {
        health::section(&mut page, codebook);
    }
    let examples = &data.examples;
    sections::mim_samples(&mut page, examples);
    sections::gallery(&mut page, examples);
    classified::section(&mut page, examples);
    segmented::section(&mut page, examples);
    sections::settings(&mut page, data);
    page.finish()
}

#[cfg(test)]
mod tests;
