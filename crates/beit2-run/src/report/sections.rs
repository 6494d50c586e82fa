//! The parts of the report that are not charts: top, headline table, images, settings.

use std::fmt::Write;

use super::curves::not_finite;
use super::health::{Level, assess, banner};
use super::html::{Page, escape};
use super::image;
use super::{GalleryCode, MimSample, ReportData, Segmented};
use crate::format::thousands;

/// Patches are small; four to eight of them should fit a card.
const PATCH_SHOWN: u32 = 40;

/// Title, date, large numbers and warnings.
pub(super) fn top(page: &mut Page, data: &ReportData) {
    let mut html = format!("<header><h1>{}</h1>\n", escape(&data.title));
    if !data.date.is_empty() {
        let _ = writeln!(html, "<p class=\"muted\">{}</p>", escape(&data.date));
    }
    if !data.command.is_empty() {
        let _ = writeln!(html, "<pre class=\"command\">{}</pre>", escape(&data.command));
    }
    html.push_str("</header>\n");
    if !data.facts.is_empty() {
        html.push_str("<dl class=\"facts\">");
        for (name, value) in &data.facts {
            let _ = write!(html, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
        }
        html.push_str("</dl>\n");
    }
    for warning in &data.warnings {
        html.push_str(&banner(Level::Warning, "", warning));
    }
    for stage in &data.stages {
        let count = not_finite(&stage.records);
        if count > 0 {
            let title = format!("{}: {} recorded values are not finite", stage.name, thousands(count as u64));
            html.push_str(&banner(
                Level::Bad,
                &title,
                "Training may have diverged; see where the curves are marked with ×.",
            ));
        }
    }
    // The section below says it in full; a collapse must not be missed by who reads only the top.
    if let Some(verdict) = data.codebook.as_ref().map(assess).filter(|verdict| verdict.level == Level::Bad) {
        html.push_str(&banner(verdict.level, &verdict.title, "See the section on the codebook below."));
    }
    page.set_top(html);
}

/// The table of results.
pub(super) fn headline(page: &mut Page, data: &ReportData) {
    let table = &data.headline;
    if table.rows.is_empty() {
        return;
    }
    let columns =
        table.columns.len().max(table.rows.iter().map(|row| row.cells.len() + 1).max().unwrap_or(0));
    let mut html = String::from("<div class=\"scroll\"><table class=\"headline\"><thead><tr>");
    for n in 0..columns {
        let _ = write!(
            html,
            "<th scope=\"col\">{}</th>",
            escape(table.columns.get(n).map_or("", String::as_str))
        );
    }
    html.push_str("</tr></thead><tbody>\n");
    for row in &table.rows {
        let class = if row.strong { " class=\"strong\"" } else { "" };
        let _ = write!(html, "<tr{class}><th scope=\"row\">{}</th>", escape(&row.label));
        for n in 1..columns {
            let cell = row.cells.get(n - 1).cloned().unwrap_or_default();
            let bar = match cell.bar.filter(|bar| bar.is_finite()) {
                Some(bar) => format!("<i style=\"width:{:.1}%\"></i>", 100.0 * bar.clamp(0.0, 1.0)),
                None => String::new(),
            };
            let _ = write!(html, "<td><span>{}</span>", escape(&cell.text));
            if !bar.is_empty() {
                let _ = write!(html, "<u>{bar}</u>");
            }
            html.push_str("</td>");
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
    if !table.note.is_empty() {
        let _ = writeln!(html, "<p class=\"muted\">{}</p>", escape(&table.note));
    }
    page.section("Results", html);
}

/// Input, masked input and correct predictions side by side.
pub(super) fn mim_samples(page: &mut Page, samples: &[MimSample]) {
    if samples.is_empty() {
        return;
    }
    let mut html = String::from(
        "<p class=\"muted\">Left: what the tokenizer sees. Middle: what the model sees. Right: the masked patches whose visual \
         token the model predicted correctly.</p>\n<div class=\"samples\">\n",
    );
    for sample in samples {
        let _ = writeln!(
            html,
            "<figure>{}{}{}<figcaption>{}</figcaption></figure>",
            image::large(&sample.input, "input"),
            image::large(&sample.masked, "input with masked patches"),
            image::large(&sample.correct, "correctly predicted patches"),
            escape(&sample.caption),
        );
    }
    html.push_str("</div>\n");
    page.section("Masked image modeling", html);
}

/// Patches by the code they carry.
pub(super) fn gallery(page: &mut Page, gallery: &[GalleryCode]) {
    if gallery.is_empty() {
        return;
    }
    let mut html = String::from(
        "<p class=\"muted\">Each card shows patches that got the same code. In a good codebook the patches of a card look \
         alike, and the cards differ.</p>\n<div class=\"gallery\">\n",
    );
    for code in gallery {
        let patches = if code.count == 1 { "patch" } else { "patches" };
        let _ = write!(
            html,
            "<figure><figcaption><b>{}</b> <span>{} {patches}</span></figcaption><div>",
            code.code,
            thousands(code.count)
        );
        for patch in &code.patches {
            html.push_str(&image::img(patch, PATCH_SHOWN, ""));
        }
        html.push_str("</div></figure>\n");
    }
    html.push_str("</div>\n");
    page.section("Code gallery", html);
}

/// Validation images with masks and predictions, and what the colours mean.
pub(super) fn segmented(page: &mut Page, segmented: &Segmented) {
    if segmented.images.is_empty() {
        return;
    }
    let mut html = String::from(
        "<p class=\"muted\">Left: a validation image. Middle: its mask. Right: the model's prediction.</p>\n\
         <p class=\"legend\">",
    );
    for (name, [r, g, b]) in &segmented.legend {
        let _ = write!(html, "<span><i style=\"background:rgb({r},{g},{b})\"></i>{}</span> ", escape(name));
    }
    html.push_str("</p>\n<div class=\"segmented\">\n");
    for png in &segmented.images {
        let url = image::png_url(png);
        let _ = writeln!(html, "<img src=\"{url}\" alt=\"image, mask and prediction\">");
    }
    html.push_str("</div>\n");
    page.section("Segmentation", html);
}

/// Environment and settings, folded.
pub(super) fn settings(page: &mut Page, data: &ReportData) {
    let mut html = String::new();
    if !data.environment.is_empty() {
        html.push_str("<table class=\"pairs\"><tbody>");
        for (name, value) in &data.environment {
            let _ =
                write!(html, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(name), escape(value));
        }
        html.push_str("</tbody></table>\n");
    }
    for stage in data.stages.iter().filter(|stage| !stage.settings_toml.trim().is_empty()) {
        let _ = writeln!(
            html,
            "<details><summary>Settings: {}</summary><pre>{}</pre></details>",
            escape(&stage.name),
            escape(stage.settings_toml.trim_end())
        );
    }
    if !html.is_empty() {
        page.section("Settings and environment", html);
    }
}
