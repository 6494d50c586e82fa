//! What a segmentation model predicts, and how well for each class.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::classified::{Listed, list};
use super::html::{Page, escape};
use super::image::{self, shrunk};
use super::{Examples, RgbImage};
use crate::format::thousands;

/// Width of image, mask and prediction together, in pixels.
const SHOWN_PX: u32 = 900;
/// Their pixels, of all three: a page of six photographs takes about two megabytes.
const SHOWN_AREA: f64 = 150_000.0;

/// Images with masks, what a segmentation model predicts for them, and its scores.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Segmented {
    /// The classes.
    pub classes: Vec<PixelClass>,
    /// Image, mask and prediction side by side.
    #[serde(skip)]
    pub images: Vec<RgbImage>,
}

/// A class of pixels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PixelClass {
    /// Its name.
    pub name: String,
    /// Its colour.
    pub colour: [u8; 3],
    /// Intersection over union; `None` for a class that is neither in the masks nor predicted.
    pub iou: Option<f64>,
    /// Share of its pixels that are right; `None` for a class that is not in the masks.
    pub accuracy: Option<f64>,
}

/// Images with masks and predictions, what the colours mean, and a table of the classes.
pub(super) fn section(page: &mut Page, examples: &Examples) {
    let Some(found) = &examples.segmented else { return };
    if found.images.is_empty() && found.classes.iter().all(|class| class.iou.is_none()) {
        return;
    }
    let mut html = String::new();
    let seen = examples.seen.describe();
    if !seen.is_empty() {
        let step = thousands(examples.step);
        let _ = writeln!(html, "<p class=\"muted\">{}, by the weights of step {step}.</p>", escape(&seen));
    }
    if !found.images.is_empty() {
        let kind = if examples.seen.validation { "a validation image" } else { "a training image" };
        let _ = write!(
            html,
            "<p class=\"muted\">Left: {kind}. Middle: its mask. Right: the model's prediction.</p>\n<p class=\"legend\">"
        );
        for PixelClass { name, colour: [r, g, b], .. } in &found.classes {
            let _ =
                write!(html, "<span><i style=\"background:rgb({r},{g},{b})\"></i>{}</span> ", escape(name));
        }
        html.push_str("</p>\n<div class=\"segmented\">\n");
        for image in &found.images {
            let (width, height) = (f64::from(image.width), f64::from(image.height));
            let scale = (SHOWN_AREA / (width * height).max(1.0)).sqrt();
            let most = SHOWN_PX.min((scale * width.max(height)) as u32).max(1);
            html.push_str(&image::img(&shrunk(image, most), 0, "image, mask and prediction"));
            html.push('\n');
        }
        html.push_str("</div>\n");
    }
    let mut scored: Vec<&PixelClass> = found.classes.iter().filter(|class| class.iou.is_some()).collect();
    scored.sort_by(|a, b| a.iou.unwrap_or(0.0).total_cmp(&b.iou.unwrap_or(0.0)));
    let rows = scored.iter().map(|class| Listed {
        name: class.name.clone(),
        share: class.iou,
        cells: vec![class.accuracy.map_or("–".to_owned(), |share| format!("{:.1} %", 100.0 * share))],
    });
    let rows: Vec<Listed> = rows.collect();
    let (scored, all) = (rows.len(), found.classes.len());
    list(&mut html, "IoU of each class", "The lowest first.", &["class", "IoU", "accuracy"], rows);
    if scored > 0 && scored < all {
        let without = all - scored;
        let are = if without == 1 { "is" } else { "are" };
        let _ = writeln!(
            html,
            "<p class=\"muted\">{without} of the {all} classes {are} neither in the masks nor predicted.</p>"
        );
    }
    page.section("Segmentation", html);
}
