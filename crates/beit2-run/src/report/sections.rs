//! The parts of the report that are not charts: top, headline table, images, settings.

use std::fmt::Write;

use super::curves::not_finite;
use super::health::{Level, assess, banner};
use super::html::{Page, command, escape};
use super::image;
use super::{Examples, ReportData};
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
        html.push_str(&command(&data.command));
    }
    html.push_str("</header>\n");
    if !data.facts.is_empty() {
        html.push_str("<dl class=\"facts\">");
        for (name, value) in &data.facts {
            let (value, note) = value.split_once('\n').unwrap_or((value, ""));
            let note = if note.is_empty() {
                String::new()
            } else {
                format!("<dd class=\"note\">{}</dd>", escape(note))
            };
            let _ = write!(html, "<div><dt>{}</dt><dd>{}</dd>{note}</div>", escape(name), escape(value));
        }
        html.push_str("</dl>\n");
    }
    if !data.without_examples.is_empty() {
        let _ = writeln!(html, "<p class=\"muted\">{}</p>", escape(&data.without_examples));
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

/// Input, masked input, visual tokens and correct predictions side by side.
pub(super) fn mim_samples(page: &mut Page, examples: &Examples) {
    if examples.mim_samples.is_empty() {
        return;
    }
    let mut html = String::from(
        "<p class=\"muted\">From the left: what the tokenizer sees; what the model sees; the visual tokens of the masked \
         patches, one colour for each token; what the model predicts in their place; the masked patches whose token it \
         predicted correctly.</p>\n",
    );
    let seen = examples.seen.describe();
    if !seen.is_empty() {
        let _ = writeln!(html, "<p class=\"muted\">{}.</p>", escape(&seen));
    }
    html.push_str("<div class=\"samples\">\n");
    for sample in &examples.mim_samples {
        let _ = writeln!(
            html,
            "<figure>{}{}{}{}{}<figcaption>{}</figcaption></figure>",
            image::large(&sample.input, "input"),
            image::large(&sample.masked, "input with masked patches"),
            image::large(&sample.tokens_drawn, "visual tokens of the masked patches"),
            image::large(&sample.predicted_drawn, "predicted visual tokens"),
            image::large(&sample.correct, "correctly predicted patches"),
            escape(&sample.caption),
        );
    }
    html.push_str("</div>\n");
    page.section("Masked image modeling", html);
}

/// Patches by the code they carry.
pub(super) fn gallery(page: &mut Page, examples: &Examples) {
    let Some(gallery) = &examples.gallery else { return };
    let mut html = String::new();
    let patches: u64 = gallery.counts.iter().sum();
    if patches > 0 {
        let size = gallery.counts.len();
        let unused = gallery.counts.iter().filter(|count| **count == 0).count();
        let seen = examples.seen.describe();
        let of = if seen.is_empty() { String::new() } else { format!(" of {seen}") };
        let used = thousands((size - unused) as u64);
        let dead = match unused {
            0 => "; none is dead".to_owned(),
            _ => format!("; {} are dead here", thousands(unused as u64)),
        };
        let _ = writeln!(
            html,
            "<p>{used} of the {} codes are used among the {} patches{}{dead}.</p>",
            thousands(size as u64),
            thousands(patches),
            escape(&of)
        );
    }
    html.push_str(
        "<p class=\"muted\">The most used codes, most used first. Each card shows patches that got the same code, with what \
         is around them. In a good codebook the patches of a card look alike, and the cards differ.</p>\n\
         <div class=\"gallery\">\n",
    );
    for code in &gallery.codes {
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
    let dead: Vec<String> = (0..)
        .zip(&gallery.counts)
        .filter(|(_, count)| **count == 0)
        .map(|(code, _): (u32, _)| code.to_string())
        .collect();
    if patches > 0 && !dead.is_empty() {
        let _ = writeln!(
            html,
            "<details><summary>Dead codes</summary><p class=\"muted\">{}</p></details>",
            dead.join(", ")
        );
    }
    page.section("Code gallery", html);
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
