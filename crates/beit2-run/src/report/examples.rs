//! What a finished run keeps for its report: `examples/` in the run directory.
//!
//! `examples.json` has the numbers and names. Images lie beside it as PNG files that are named by kind and position;
//! those of one entry (the patches of a code, the views of an image under its mask) are squares of one size side by
//! side in one file. `examples.json` is written last, so where it is, the rest is complete.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::classified::Classified;
use super::image::{beside, decode, png, shrunk, squares};
use super::segmented::Segmented;
use super::{RgbImage, classified};
use crate::atomic::{FileError, remove_leftovers, write_bytes_atomic};
use crate::format::thousands;

/// Folder of a run directory with images and tables for its report.
pub const EXAMPLES: &str = "examples";

const FILE: &str = "examples.json";

/// Longest side of a patch of the gallery, in pixels.
const PATCH_PX: u32 = 40;
/// More segmented images than any version of this software keeps.
const MOST_SEGMENTED: usize = 24;
/// Longest side of an image under its mask.
const SAMPLE_PX: u32 = 160;

/// Images and tables of what a run has learned. What its stage does not have stays empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Examples {
    /// Steps of the weights that were looked at.
    pub step: u64,
    /// Whether the run also keeps a moving average of its weights, which was not looked at.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub averages: bool,
    /// The images that were looked at.
    pub seen: Seen,
    /// Codes with patches that carry them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gallery: Option<Gallery>,
    /// Images of masked image modeling.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mim_samples: Vec<MimSample>,
    /// What a classifier takes images for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classified: Option<Classified>,
    /// What a segmentation model predicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segmented: Option<Segmented>,
}

/// Which images were looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// Whether they are of the validation set; otherwise the run has none, and they are training images.
    pub validation: bool,
    /// Their source, as the recipe names it.
    pub data: String,
    /// How many were looked at.
    pub images: u64,
    /// How many the source has.
    pub of: u64,
}

impl Seen {
    /// Such as `409 validation images (bundled:val)`.
    pub fn describe(&self) -> String {
        if self.images == 0 {
            return String::new();
        }
        let kind = if self.validation { "validation" } else { "training" };
        let plural = if self.of == 1 { "" } else { "s" };
        let count = match self.images < self.of {
            true => format!("{} of the {}", thousands(self.images), thousands(self.of)),
            false => thousands(self.images),
        };
        let data = if self.data.is_empty() { String::new() } else { format!(" ({})", self.data) };
        let why = if self.validation { "" } else { ", because the run has no validation set" };
        format!("{count} {kind} image{plural}{data}{why}")
    }
}

/// The codes of a tokenizer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gallery {
    /// How many patches carry each code, in the order of the codes.
    pub counts: Vec<u64>,
    /// The most used codes, most used first.
    pub codes: Vec<GalleryCode>,
}

/// Patches that carry one code.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GalleryCode {
    /// The code.
    pub code: u32,
    /// How many patches carry it.
    pub count: u64,
    /// Some of them.
    #[serde(skip)]
    pub patches: Vec<RgbImage>,
}

/// One image seen by masked image modeling.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MimSample {
    /// A line below, such as `27 of 75 masked patches`.
    pub caption: String,
    /// Numbers of the masked patches, row by row from the top left.
    pub masked_patches: Vec<u32>,
    /// Their visual tokens, which the tokenizer gives.
    pub tokens: Vec<u32>,
    /// What the model predicts for them, by the last block.
    pub predicted: Vec<u32>,
    /// The crop.
    #[serde(skip)]
    pub input: RgbImage,
    /// The crop with the masked patches greyed out.
    #[serde(skip)]
    pub masked: RgbImage,
    /// The masked patches in a colour for each visual token.
    #[serde(skip)]
    pub tokens_drawn: RgbImage,
    /// The same for the predicted ones.
    #[serde(skip)]
    pub predicted_drawn: RgbImage,
    /// Which masked patches' tokens were predicted correctly.
    #[serde(skip)]
    pub correct: RgbImage,
}

impl MimSample {
    fn views(&self) -> [&RgbImage; 5] {
        [&self.input, &self.masked, &self.tokens_drawn, &self.predicted_drawn, &self.correct]
    }
}

/// Why kept examples cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ExamplesError {
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// `examples.json` is not what this software writes.
    #[error("{0} is damaged ({1}); delete it, and the training command makes it again")]
    Damaged(String, String),
}

impl Examples {
    /// Keeps them in the folder `examples` of a run directory, in the place of earlier ones.
    ///
    /// # Errors
    /// A folder that cannot be written. Then the run counts as one without examples.
    pub fn save(&self, run: &Path) -> Result<(), ExamplesError> {
        let dir = run.join(EXAMPLES);
        fs::create_dir_all(&dir).map_err(|error| FileError::new("create the folder", &dir, error))?;
        remove_leftovers(&dir);
        let file = dir.join(FILE);
        if file.exists() {
            fs::remove_file(&file).map_err(|error| FileError::new("remove", &file, error))?;
        }
        for (name, image) in self.strips() {
            if let Some(png) = png(&image) {
                write_bytes_atomic(&dir.join(name), &png)?;
            }
        }
        let text = serde_json::to_string(self)
            .map_err(|error| ExamplesError::Damaged(file.display().to_string(), error.to_string()))?;
        Ok(write_bytes_atomic(&file, format!("{text}\n").as_bytes())?)
    }

    /// Those that a run directory keeps; `None` if it keeps none.
    ///
    /// # Errors
    /// `examples.json` cannot be read or is damaged. An image that is missing or damaged becomes an empty one.
    pub fn load(run: &Path) -> Result<Option<Self>, ExamplesError> {
        let dir = run.join(EXAMPLES);
        let file = dir.join(FILE);
        if !file.is_file() {
            return Ok(None);
        }
        let text = fs::read_to_string(&file).map_err(|error| FileError::new("read", &file, error))?;
        let mut found: Self = serde_json::from_str(&text)
            .map_err(|error| ExamplesError::Damaged(file.display().to_string(), error.to_string()))?;
        let read =
            |name: String| fs::read(dir.join(name)).ok().and_then(|png| decode(&png)).unwrap_or_default();
        for (at, code) in found.gallery.iter_mut().flat_map(|gallery| gallery.codes.iter_mut().enumerate()) {
            code.patches = squares(&read(code_file(at)));
        }
        for (at, sample) in found.mim_samples.iter_mut().enumerate() {
            let mut views = squares(&read(mask_file(at))).into_iter();
            let places = [
                &mut sample.input,
                &mut sample.masked,
                &mut sample.tokens_drawn,
                &mut sample.predicted_drawn,
                &mut sample.correct,
            ];
            places.into_iter().for_each(|place| *place = views.next().unwrap_or_default());
        }
        for (at, worst) in found.classified.iter_mut().flat_map(|found| found.worst.iter_mut().enumerate()) {
            worst.image = read(worst_file(at));
        }
        if let Some(segmented) = &mut found.segmented {
            let images = (0..MOST_SEGMENTED).map(|at| read(segment_file(at)));
            segmented.images = images.take_while(|image| !image.rgb.is_empty()).collect();
        }
        Ok(Some(found))
    }

    /// The images by the names of their files.
    fn strips(&self) -> impl Iterator<Item = (String, RgbImage)> {
        let codes = self.gallery.iter().flat_map(|gallery| gallery.codes.iter().enumerate());
        let codes = codes.map(|(at, code)| {
            let patches: Vec<RgbImage> = code.patches.iter().map(|patch| shrunk(patch, PATCH_PX)).collect();
            (code_file(at), beside(&patches))
        });
        let samples =
            self.mim_samples.iter().enumerate().map(|(at, sample)| {
                (mask_file(at), beside(&sample.views().map(|view| shrunk(view, SAMPLE_PX))))
            });
        let worst = self.classified.iter().flat_map(|found| found.worst.iter().enumerate());
        let worst = worst.map(|(at, worst)| (worst_file(at), shrunk(&worst.image, classified::WORST_PX)));
        let segmented = self.segmented.iter().flat_map(|found| found.images.iter().enumerate());
        let segmented = segmented.map(|(at, image)| (segment_file(at), image.clone()));
        codes.chain(samples).chain(worst).chain(segmented)
    }
}

fn code_file(at: usize) -> String {
    format!("code-{at:02}.png")
}

fn mask_file(at: usize) -> String {
    format!("masked-{at:02}.png")
}

fn worst_file(at: usize) -> String {
    format!("worst-{at:02}.png")
}

fn segment_file(at: usize) -> String {
    format!("{at:02}.png")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(side: u32, value: u8) -> RgbImage {
        RgbImage { width: side, height: side, rgb: vec![value; (3 * side * side) as usize] }
    }

    #[test]
    fn examples_come_back_from_disk() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Examples::load(dir.path()).unwrap(), None);
        let examples = Examples {
            step: 12,
            seen: Seen { validation: true, data: "val".into(), images: 3, of: 9 },
            gallery: Some(Gallery {
                counts: vec![0, 5],
                codes: vec![GalleryCode { code: 1, count: 5, patches: vec![square(4, 1), square(4, 2)] }],
            }),
            mim_samples: vec![MimSample {
                caption: "1 of 2".into(),
                tokens: vec![1, 0],
                input: square(8, 1),
                masked: square(8, 2),
                tokens_drawn: square(8, 3),
                predicted_drawn: square(8, 4),
                correct: square(8, 5),
                ..MimSample::default()
            }],
            ..Examples::default()
        };
        examples.save(dir.path()).unwrap();
        assert_eq!(Examples::load(dir.path()).unwrap().as_ref(), Some(&examples));
        // A lost image is no reason to show nothing.
        fs::remove_file(dir.path().join("examples/code-00.png")).unwrap();
        let found = Examples::load(dir.path()).unwrap().unwrap();
        assert!(found.gallery.unwrap().codes[0].patches.is_empty());
        fs::write(dir.path().join("examples/examples.json"), "{").unwrap();
        assert!(Examples::load(dir.path()).unwrap_err().to_string().contains("is damaged"));
    }

    #[test]
    fn what_was_seen_is_said() {
        let seen = |validation, images, of| Seen { validation, data: "x".into(), images, of }.describe();
        assert_eq!(seen(true, 409, 409), "409 validation images (x)");
        assert_eq!(
            seen(false, 64, 2000),
            "64 of the 2,000 training images (x), because the run has no validation set"
        );
        assert_eq!(Seen::default().describe(), "");
    }
}
