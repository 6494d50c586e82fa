//! The page that puts runs side by side.

use std::fmt::Write;

use super::curves::overlaid;
use super::health::{Level, banner};
use super::html::{Page, command, escape};
use crate::metrics::Record;

/// Runs side by side.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// The title of the page.
    pub title: String,
    /// When it was made, ready to print.
    pub date: String,
    /// The command that makes it again.
    pub command: String,
    /// What a reader must know before the numbers, one sentence each.
    pub warnings: Vec<String>,
    /// The runs.
    pub runs: Vec<Compared>,
    /// Results, one line each.
    pub results: Vec<Line>,
    /// Settings that differ, one line each.
    pub settings: Vec<Line>,
}

/// One of them.
#[derive(Debug, Clone, Default)]
pub struct Compared {
    /// Its name, another one for each run.
    pub name: String,
    /// Its records.
    pub records: Vec<Record>,
}

/// A line of a table with a cell for each run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    /// What it is.
    pub label: String,
    /// A text for each run; `None` where a run has none.
    pub cells: Vec<Option<String>>,
    /// The runs with the best value; empty where none is better.
    pub best: Vec<usize>,
}

/// The comparison as one HTML document.
pub fn render_comparison(comparison: &Comparison) -> String {
    let mut page = Page::new(&comparison.title);
    let mut top = format!("<header><h1>{}</h1>\n", escape(&comparison.title));
    if !comparison.date.is_empty() {
        let _ = writeln!(top, "<p class=\"muted\">{}</p>", escape(&comparison.date));
    }
    if !comparison.command.is_empty() {
        top.push_str(&command(&comparison.command));
    }
    top.push_str("</header>\n");
    for warning in &comparison.warnings {
        let mut chars = warning.chars();
        let first = chars.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
        top.push_str(&banner(Level::Bad, "", &format!("{first}{}.", chars.as_str().trim_end_matches('.'))));
    }
    page.set_top(top);
    let names: Vec<String> = comparison.runs.iter().map(|run| run.name.clone()).collect();
    if !comparison.results.is_empty() {
        page.section("Results", table(&names, &comparison.results));
    }
    let settings = match comparison.settings.is_empty() {
        true => "<p>All settings are equal.</p>\n".to_owned(),
        false => table(&names, &comparison.settings),
    };
    page.section("Settings that differ", settings);
    let records: Vec<&[Record]> = comparison.runs.iter().map(|run| run.records.as_slice()).collect();
    let charts = overlaid(&names, &records);
    if !charts.is_empty() {
        let charts: String = charts.iter().map(super::chart::Chart::render).collect();
        page.section("Curves", format!("<div class=\"charts\">\n{charts}</div>\n"));
    }
    page.finish()
}

fn table(names: &[String], lines: &[Line]) -> String {
    let mut html =
        String::from("<div class=\"scroll\"><table class=\"list wrap\"><thead><tr><th scope=\"col\"></th>");
    for (n, name) in names.iter().enumerate() {
        let _ = write!(
            html,
            "<th scope=\"col\"><i class=\"key c{}\"></i>{}</th>",
            n % super::chart::COLOURS,
            escape(name)
        );
    }
    html.push_str("</tr></thead><tbody>\n");
    for line in lines {
        let _ = write!(html, "<tr><td>{}</td>", escape(&line.label));
        for at in 0..names.len() {
            let class = if line.best.contains(&at) { " class=\"best\"" } else { "" };
            let cell = line.cells.get(at).and_then(Option::as_deref).unwrap_or("–");
            let _ = write!(html, "<td{class}>{}</td>", escape(cell));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
    html
}
