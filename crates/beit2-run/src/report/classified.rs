//! What a classifier takes images for: confusion, classes, and the images with the highest loss.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::axis::number;
use super::html::{Page, escape};
use super::{Examples, RgbImage, image};
use crate::format::thousands;

/// Up to so many classes the whole confusion matrix is shown.
const MATRIX_CLASSES: usize = 20;
/// Otherwise the pairs that are mixed up most.
const PAIRS: usize = 20;
/// Classes that are listed unfolded.
const LISTED: usize = 20;
/// Longest side of an image, in pixels.
pub(super) const WORST_PX: u32 = 128;

/// What came of showing labelled images to a classifier.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Classified {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Class, class that it was taken for, and number of images, for every pair that occurs. Empty of images with
    /// several classes.
    pub confusion: Vec<(u32, u32, u64)>,
    /// Of images with several classes: one entry for each class.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<LabelScore>,
    /// Images with the highest loss, the highest first.
    pub worst: Vec<WorstImage>,
}

/// How well the images with a class are told from the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LabelScore {
    /// Images that have the class.
    pub positives: u64,
    /// Average precision; `None` where no image has the class.
    pub average_precision: Option<f64>,
}

/// An image with a high loss.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorstImage {
    /// The image's name in its source.
    pub name: String,
    /// Its classes; usually one.
    pub classes: Vec<u32>,
    /// What it was taken for: the most probable class, or all above one half of images with several classes.
    pub predicted: Vec<Guess>,
    /// The probability of its class; `None` of images with several classes.
    pub probability: Option<f64>,
    /// Its loss.
    pub loss: f64,
    /// The image as the model sees it.
    #[serde(skip)]
    pub image: RgbImage,
}

/// A predicted class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guess {
    /// The class.
    pub class: u32,
    /// Its probability.
    pub probability: f64,
}

/// One class of a confusion matrix.
struct Row {
    class: u32,
    images: u64,
    predicted: u64,
    right: u64,
}

impl Classified {
    fn name(&self, class: u32) -> String {
        match self.classes.get(class as usize) {
            Some(name) if !name.is_empty() => name.clone(),
            _ => format!("class {class}"),
        }
    }

    fn rows(&self) -> Vec<Row> {
        let largest = self.confusion.iter().map(|(class, taken, _)| class.max(taken) + 1).max().unwrap_or(0);
        let classes = (self.classes.len() as u32).max(largest.min(1 << 16));
        let mut rows: Vec<Row> =
            (0..classes).map(|class| Row { class, images: 0, predicted: 0, right: 0 }).collect();
        for &(class, taken, count) in &self.confusion {
            if let Some(row) = rows.get_mut(class as usize) {
                row.images += count;
                row.right += if class == taken { count } else { 0 };
            }
            if let Some(row) = rows.get_mut(taken as usize) {
                row.predicted += count;
            }
        }
        rows
    }
}

/// The section of a classifier.
pub(super) fn section(page: &mut Page, examples: &Examples) {
    let Some(found) = &examples.classified else { return };
    let mut html = format!("<p class=\"muted\">{}</p>\n", escape(&intro(examples)));
    if found.labels.is_empty() {
        let rows = found.rows();
        match rows.len() <= MATRIX_CLASSES {
            true => matrix(&mut html, found, &rows),
            false => pairs(&mut html, found),
        }
        per_class(&mut html, found, &rows);
    } else {
        labels(&mut html, found);
    }
    worst(&mut html, found);
    page.section("Classes", html);
}

fn intro(examples: &Examples) -> String {
    let not = if examples.averages { " (not by their moving average)" } else { "" };
    format!("{}, by the weights of step {}{not}.", examples.seen.describe(), thousands(examples.step))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Rows are classes, columns what they were taken for; the darker a cell, the larger its part of the row.
fn matrix(html: &mut String, found: &Classified, rows: &[Row]) {
    let classes = rows.len() as u32;
    let mut counts = vec![0; rows.len() * rows.len()];
    for &(class, taken, count) in found.confusion.iter().filter(|pair| pair.0.max(pair.1) < classes) {
        counts[(class * classes + taken) as usize] += count;
    }
    html.push_str(
        "<h3>Confusion matrix</h3>\n<p class=\"muted\">Rows: what the images show. Columns: what the model takes them \
         for. The stronger the colour, the larger the part of the row.</p>\n\
         <div class=\"scroll\"><table class=\"matrix\"><thead><tr><th></th>",
    );
    for row in rows {
        let _ = write!(html, "<th scope=\"col\"><span>{}</span></th>", escape(&found.name(row.class)));
    }
    html.push_str("</tr></thead><tbody>\n");
    for row in rows {
        let name = escape(&found.name(row.class));
        let _ = write!(html, "<tr><th scope=\"row\">{name}</th>");
        for taken in 0..classes {
            let count = counts[(row.class * classes + taken) as usize];
            if count == 0 {
                html.push_str("<td></td>");
                continue;
            }
            let kind = if taken == row.class { "right" } else { "wrong" };
            let share = count as f64 / row.images.max(1) as f64;
            let _ = write!(
                html,
                "<td class=\"{kind}\" style=\"--share:{:.0}%\" title=\"{name} taken for {}: {} ({})\">{count}</td>",
                // A single image in a large class is seen too.
                12.0 + 68.0 * share,
                escape(&found.name(taken)),
                thousands(count),
                percent(share),
            );
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
}

/// The pairs of classes that are mixed up most.
fn pairs(html: &mut String, found: &Classified) {
    let mut wrong: Vec<(u32, u32, u64)> =
        found.confusion.iter().copied().filter(|(class, taken, _)| class != taken).collect();
    if wrong.is_empty() {
        html.push_str("<p>Every image was taken for its own class.</p>\n");
        return;
    }
    wrong.sort_by_key(|&(class, taken, count)| (std::cmp::Reverse(count), class, taken));
    let rows = found.rows();
    let images = |class: u32| rows.get(class as usize).map_or(0, |row| row.images);
    let _ = writeln!(
        html,
        "<h3>Most confused classes</h3>\n<p class=\"muted\">The {} of {} confused pairs that occur most.</p>\n\
         <div class=\"scroll\"><table class=\"list\"><thead><tr><th scope=\"col\">class</th>\
         <th scope=\"col\">taken for</th><th scope=\"col\">images</th><th scope=\"col\">of the class</th></tr></thead><tbody>",
        wrong.len().min(PAIRS),
        thousands(wrong.len() as u64),
    );
    for &(class, taken, count) in wrong.iter().take(PAIRS) {
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&found.name(class)),
            escape(&found.name(taken)),
            thousands(count),
            percent(count as f64 / images(class).max(1) as f64),
        );
    }
    html.push_str("</tbody></table></div>\n");
}

/// Accuracy of each class, the lowest first.
fn per_class(html: &mut String, found: &Classified, rows: &[Row]) {
    let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let mut seen: Vec<&Row> = rows.iter().filter(|row| row.images > 0).collect();
    seen.sort_by(|a, b| {
        let accuracy = |row: &Row| share(row.right, row.images).unwrap_or(0.0);
        accuracy(a).total_cmp(&accuracy(b)).then(a.class.cmp(&b.class))
    });
    let lines = seen.iter().map(|row| {
        let accuracy = share(row.right, row.images);
        let precision = share(row.right, row.predicted).map_or("–".to_owned(), percent);
        let cells = [thousands(row.images), precision];
        Listed { name: found.name(row.class), share: accuracy, cells: cells.to_vec() }
    });
    let columns = ["class", "accuracy", "images", "precision"];
    list(html, "Accuracy of each class", "The lowest first.", &columns, lines.collect());
    let without = rows.len() - seen.len();
    if without > 0 {
        let _ = writeln!(
            html,
            "<p class=\"muted\">{} of the {} classes {} no image here.</p>",
            thousands(without as u64),
            thousands(rows.len() as u64),
            if without == 1 { "has" } else { "have" }
        );
    }
}

/// Average precision of each class, the lowest first.
fn labels(html: &mut String, found: &Classified) {
    let mut order: Vec<(u32, &LabelScore)> = (0..).zip(&found.labels).collect();
    order.sort_by(|a, b| {
        let key = |score: &LabelScore| score.average_precision.unwrap_or(f64::INFINITY);
        key(a.1).total_cmp(&key(b.1)).then(a.0.cmp(&b.0))
    });
    let lines = order.iter().map(|(class, score)| Listed {
        name: found.name(*class),
        share: score.average_precision,
        cells: vec![thousands(score.positives)],
    });
    let columns = ["class", "average precision", "images with it"];
    let note = "The lowest first. A class that no image has is not scored.";
    list(html, "Average precision of each class", note, &columns, lines.collect());
}

/// A class with a share and more cells.
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) share: Option<f64>,
    pub(super) cells: Vec<String>,
}

/// A table of classes with a bar for the share, folded behind the first rows when it is long. Names may hold anything,
/// titles and columns are ours.
pub(super) fn list(html: &mut String, title: &str, note: &str, columns: &[&str], rows: Vec<Listed>) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(html, "<h3>{title}</h3>\n<p class=\"muted\">{note}</p>");
    let table = |html: &mut String, rows: &[Listed]| {
        html.push_str("<div class=\"scroll\"><table class=\"list\"><thead><tr>");
        for column in columns {
            let _ = write!(html, "<th scope=\"col\">{column}</th>");
        }
        html.push_str("</tr></thead><tbody>\n");
        for row in rows {
            let (text, bar) = match row.share {
                Some(share) => (percent(share), 100.0 * share.clamp(0.0, 1.0)),
                None => ("–".to_owned(), 0.0),
            };
            let _ = write!(
                html,
                "<tr><td>{}</td><td><span>{text}</span><u><i style=\"width:{bar:.1}%\"></i></u></td>",
                escape(&row.name)
            );
            for cell in &row.cells {
                let _ = write!(html, "<td>{}</td>", escape(cell));
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table></div>\n");
    };
    // Two more rows are better than a click.
    let open = if rows.len() <= LISTED + 2 { rows.len() } else { LISTED };
    table(html, &rows[..open]);
    if open < rows.len() {
        let _ = write!(html, "<details><summary>{} more</summary>", thousands((rows.len() - open) as u64));
        table(html, &rows[open..]);
        html.push_str("</details>\n");
    }
}

/// The images with the highest loss.
fn worst(html: &mut String, found: &Classified) {
    if found.worst.is_empty() {
        return;
    }
    html.push_str(
        "<h3>Worst images</h3>\n<p class=\"muted\">Those with the highest loss, as the model sees them. Look for wrong \
         labels here first.</p>\n<div class=\"worst\">\n",
    );
    let several = !found.labels.is_empty();
    for worst in &found.worst {
        let names = |classes: &[u32]| -> String {
            let names: Vec<String> = classes.iter().map(|&class| found.name(class)).collect();
            if names.is_empty() { "no class".to_owned() } else { names.join(", ") }
        };
        let guesses: Vec<String> = worst
            .predicted
            .iter()
            .map(|guess| format!("{} ({})", found.name(guess.class), percent(guess.probability)))
            .collect();
        let guesses = if guesses.is_empty() { "no class".to_owned() } else { guesses.join(", ") };
        let own = match worst.probability {
            Some(share) if !several => format!(" ({})", percent(share)),
            _ => String::new(),
        };
        let _ = writeln!(
            html,
            "<figure>{}<figcaption><b>{}{own}</b><span>taken for {}</span><span>loss {}</span>\
             <span class=\"name\">{}</span></figcaption></figure>",
            image::large(&worst.image, &worst.name),
            escape(&names(&worst.classes)),
            escape(&guesses),
            number(worst.loss),
            escape(&worst.name),
        );
    }
    html.push_str("</div>\n");
}
