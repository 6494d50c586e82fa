//! Classes of every pixel of an image of any size.
//!
//! An image is resized, cut into windows as large as the crops of training, and what the model says of them is
//! averaged where they overlap and resized back (docs/method.md §5, "slide"). Several sizes and the mirrored image can be averaged
//! too. All of it runs from top to bottom in strips of rows ([`super::stitch`]).

use beit2_data::Image;
use beit2_data::segment::{LabelMap, SegmentTestConfig};
use beit2_kernels::Backend;
use beit2_weights::Normalization;
use burn::tensor::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::stitch::{Rows, Sizes, Stitcher};
use super::{SegmenterConfig, UperNet};
use crate::error::{Error, config_error};
use crate::pixels;

/// Values of a strip of averaged probabilities, 16 MiB.
const STRIP: usize = 4 << 20;

/// Most patches of an image that is seen as a whole, as 2048×512 px have with patches of 16: the position biases of a
/// block take their square, 800 MB in a base model.
const WHOLE: usize = 4096;

/// Windows per window's length, at most: what is held of an image grows with its square.
const DENSEST: usize = 16;

/// How an image is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Overlapping windows of the training size.
    Slide,
    /// The whole image at once; position tables are cut or resized to its grid.
    Whole,
}

/// `[infer]`: how images are seen after training. Defaults: the reference's test on ADE20K.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InferConfig {
    /// How an image is cut.
    pub mode: Mode,
    /// Distance of windows in pixels; absent: two thirds of a window (341 of 512).
    pub stride: Option<usize>,
    /// Whether images are resized to fit into the sides below first.
    pub resize: bool,
    /// Longest side of the resized image.
    pub long_side: u32,
    /// Shorter side of the resized image, unless the longer one would exceed its limit.
    pub short_side: u32,
    /// Sizes to average over, as factors on both sides.
    pub scales: Vec<f64>,
    /// Average over the mirrored image too.
    pub flip: bool,
    /// Windows computed at once.
    pub windows_per_batch: usize,
}

impl Default for InferConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Slide,
            stride: None,
            resize: true,
            long_side: 2048,
            short_side: 512,
            scales: vec![1.0],
            flip: false,
            windows_per_batch: 1,
        }
    }
}

impl InferConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence naming the first that cannot work.
    pub fn validate(&self, window: usize) -> Result<(), Error> {
        if let Some(stride) = self.stride.filter(|stride| *stride > window) {
            return config_error(format!(
                "infer.stride {stride} is larger than a window of {window} px, which would leave pixels out"
            ));
        }
        if let Some(stride) = self.stride.filter(|stride| *stride * DENSEST < window) {
            return config_error(format!(
                "infer.stride {stride} is less than a {DENSEST}th of a window of {window} px; use at least {}",
                window.div_ceil(DENSEST)
            ));
        }
        if self.scales.is_empty() || !self.scales.iter().all(|scale| (0.05..=20.0).contains(scale)) {
            return config_error(format!("infer.scales {:?} needs values from 0.05 to 20", self.scales));
        }
        if self.windows_per_batch == 0 {
            return config_error("infer.windows_per_batch is 0; it must be at least 1");
        }
        if self.resize && (self.long_side == 0 || self.short_side == 0) {
            return config_error(
                "infer.long_side and short_side must be at least 1; `resize = false` keeps images as they are",
            );
        }
        Ok(self.view().validate()?)
    }

    fn view(&self) -> SegmentTestConfig {
        SegmentTestConfig { base: self.resize.then_some([self.long_side, self.short_side]) }
    }
}

/// A trained model and how it cuts and resizes images.
#[derive(Debug)]
pub struct Predictor<'a, B: Backend> {
    model: &'a UperNet<B>,
    config: &'a SegmenterConfig,
    infer: &'a InferConfig,
    device: B::Device,
}

impl<'a, B: Backend> Predictor<'a, B> {
    /// # Errors
    /// Settings that cannot work.
    pub fn new(
        model: &'a UperNet<B>,
        config: &'a SegmenterConfig,
        infer: &'a InferConfig,
    ) -> Result<Self, Error> {
        infer.validate(config.vit.image_size)?;
        let device = model.backbone.trunk.cls_token.device();
        Ok(Self { model, config, infer, device })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.config.class_count()
    }

    /// The class of every pixel.
    ///
    /// # Errors
    /// An image without pixels.
    pub fn label(&self, image: &Image) -> Result<LabelMap, Error> {
        let mut ids = Vec::with_capacity(image.width as usize * image.height as usize);
        self.strips(image, |strip| -> Result<(), Error> {
            ids.extend_from_slice(strip);
            Ok(())
        })?;
        Ok(LabelMap::new(image.width, image.height, ids)?)
    }

    /// The classes of whole rows of pixels, from top to bottom.
    ///
    /// # Errors
    /// An image without pixels, and what `each` reports.
    pub fn strips<E: From<Error>>(
        &self,
        image: &Image,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (height, width, classes) =
            (image.height as usize, image.width as usize, self.config.class_count());
        if height == 0 || width == 0 {
            return config_error("an image has no pixels").map_err(E::from);
        }
        let mut views = Vec::new();
        for &scale in &self.infer.scales {
            let resized = self.infer.view().apply(image, scale).map_err(Error::from)?;
            for mirrored in [false, true].into_iter().take(1 + usize::from(self.infer.flip)) {
                let mut seen = resized.clone();
                if mirrored {
                    beit2_data::transform::flip_horizontal(&mut seen);
                }
                views.push(Rows::new(self.stitcher(seen)?, (height, width), mirrored));
            }
        }
        let count = (STRIP / (width * classes).max(1)).max(1);
        for from in (0..height).step_by(count) {
            let to = (from + count).min(height);
            let mut sum = views[0].rows(from, to)?;
            if views.len() > 1 {
                sum.par_chunks_exact_mut(classes).for_each(softmax);
                for view in &mut views[1..] {
                    let mut more = view.rows(from, to)?;
                    more.par_chunks_exact_mut(classes).for_each(softmax);
                    sum.par_iter_mut().zip(more).for_each(|(sum, value)| *sum += value);
                }
            }
            let ids: Vec<u8> = sum.par_chunks_exact(classes).map(argmax).collect();
            each(&ids)?;
        }
        Ok(())
    }

    /// The windows of one resized image.
    #[allow(clippy::type_complexity)] // a closure inside, which has no name
    fn stitcher(
        &self,
        image: Image,
    ) -> Result<Stitcher<impl FnMut(&[(usize, usize)]) -> Result<Vec<Vec<f32>>, Error> + '_>, Error> {
        let (height, width) = (image.height as usize, image.width as usize);
        let vit = &self.config.vit;
        let (window, whole) = match self.infer.mode {
            Mode::Slide => ((vit.image_size, vit.image_size), None),
            Mode::Whole => {
                let grid = (height.div_ceil(vit.patch_size), width.div_ceil(vit.patch_size));
                if grid.0 * grid.1 > WHOLE {
                    return config_error(format!(
                        "an image of {width}×{height} px has {} patches, and at most {WHOLE} can be seen as a whole; \
                         use windows (mode slide) or a smaller size",
                        grid.0 * grid.1
                    ));
                }
                let window = (grid.0 * vit.patch_size, grid.1 * vit.patch_size);
                (window, Some(self.model.clone().on_grid(grid.0, grid.1)?))
            }
        };
        let stride = self.infer.stride.unwrap_or((vit.image_size * 2 / 3).max(1));
        let sizes = Sizes {
            image: (height, width),
            window,
            stride: if whole.is_some() { window } else { (stride, stride) },
            logits: self.config.logits_size(window),
            classes: self.config.class_count(),
        };
        let (batch, device) = (self.infer.windows_per_batch, self.device.clone());
        let (sliding, statistics) = (self.model, self.config.vit.normalization.as_ref());
        Ok(Stitcher::new(sizes, move |places: &[(usize, usize)]| {
            let model = whole.as_ref().unwrap_or(sliding);
            let mut all = Vec::with_capacity(places.len());
            for places in places.chunks(batch) {
                let x = Tensor::cat(
                    places.iter().map(|&at| cut::<B>(&image, at, window, statistics, &device)).collect(),
                    0,
                );
                let logits = model.forward(x)?;
                let [_, rows, columns, classes] = logits.dims();
                let values = logits.into_data().convert::<f32>().into_vec::<f32>().unwrap_or_default();
                all.extend(values.chunks(rows * columns * classes).map(<[f32]>::to_vec));
            }
            Ok(all)
        }))
    }
}

/// The standardised window at `(top, left)`, `[1, 3, h, w]`; where it reaches beyond the image it is 0, as padded
/// crops are in training.
fn cut<B: Backend>(
    image: &Image,
    (top, left): (usize, usize),
    (height, width): (usize, usize),
    normalization: Option<&Normalization>,
    device: &B::Device,
) -> Tensor<B, 4> {
    let (rows, columns) = (height.min(image.height as usize - top), width.min(image.width as usize - left));
    let line = image.width as usize * 3;
    let pixels = (top..top + rows).flat_map(|row| {
        let start = row * line + left * 3;
        image.data[start..start + columns * 3].iter().copied()
    });
    let x = pixels::from_bytes::<B>(&[&pixels.collect::<Vec<u8>>()], [rows, columns, 3], device);
    let x = pixels::normalise(x, normalization);
    if (rows, columns) == (height, width) {
        return x;
    }
    Tensor::zeros([1, 3, height, width], device).slice_assign([0..1, 0..3, 0..rows, 0..columns], x)
}

/// The class with the largest value, the lower number among equal ones; there are at most 255.
fn argmax(row: &[f32]) -> u8 {
    let best = |best: usize, at: usize| if row[at] > row[best] { at } else { best };
    (0..row.len()).reduce(best).unwrap_or(0) as u8
}

fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|value| *value = (*value - largest).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|value| *value /= sum);
}
