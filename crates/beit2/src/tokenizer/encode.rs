//! A trained tokenizer as a function from images to code ids.

use std::path::Path;

use beit2_data::{EvalConfig, Image};
use beit2_kernels::Backend;
use burn::backend::Flex;
use burn::tensor::{Int, Tensor};

use super::{TokenizerConfig, VqKd};
use crate::error::Error;
use crate::infer_precision::InferPrecision;
use crate::pixels;
use crate::weights::{self, WeightFile};

/// What can be chosen when a [`Tokenizer`] is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenizerOptions {
    /// Operands of the matmuls of encoder and decoder; everything about codes stays in f32.
    pub precision: InferPrecision,
}

/// A trained tokenizer: images to visual tokens, and these to what the teacher sees.
///
/// ```no_run
/// use beit2::pixels;
/// use beit2::tokenizer::Tokenizer;
///
/// # fn main() -> Result<(), beit2::Error> {
/// let tokenizer = Tokenizer::open("vqkd_encoder_base_decoder_3x768x12_clip.pth")?;
/// let ids = tokenizer.encode(&[pixels::read("cat.jpg")?])?; // [1, 14, 14]
/// let features = tokenizer.decode(ids.clone()); // [1, 196, 512], as CLIP's
/// println!("{ids}\n{features}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Tokenizer<B: Backend = Flex> {
    /// Its sizes.
    pub config: TokenizerConfig,
    /// The model, its encoder frozen ([`VqKd::freeze_encoder`]).
    pub model: VqKd<B>,
    device: B::Device,
}

impl Tokenizer {
    /// Opens a run of `beit2 tokenizer train`, a checkpoint folder, or a weight file of this software or the official code,
    /// on the CPU and in f32. The file says its sizes.
    ///
    /// # Errors
    /// A file that cannot be read, that holds another model ([`Error::WrongModel`]), or whose codebook was never started.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path, &TokenizerOptions::default(), &Default::default())
    }
}

impl<B: Backend> Tokenizer<B> {
    /// As [`Tokenizer::open`], on any device and with choices.
    ///
    /// # Errors
    /// As [`Tokenizer::open`]; a precision that the device does not have.
    pub fn open_with(
        path: impl AsRef<Path>,
        options: &TokenizerOptions,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let path = path.as_ref();
        Self::from_file(weights::open(path)?, &path.display().to_string(), options, device)
    }

    /// A tokenizer from the contents of its weight file; `origin` names the file in messages.
    ///
    /// # Errors
    /// As [`Tokenizer::open_with`].
    pub fn from_file(
        file: WeightFile,
        origin: &str,
        options: &TokenizerOptions,
        device: &B::Device,
    ) -> Result<Self, Error> {
        options.precision.check::<B>(device)?;
        let (config, mut model) = super::load::<B>(file, origin, None, device)?;
        model.set_precision(options.precision.of_floats());
        if options.precision.is_int8() {
            model.set_int8();
        }
        Ok(Self { config, model: model.freeze_encoder(), device: device.clone() })
    }

    /// How it sees an image: the shorter side resized, the centre cut out.
    pub fn view(&self) -> EvalConfig {
        EvalConfig::of_size(self.config.image_size as u32)
    }

    /// Images of any size → code ids `[B, g, g]`, row by row from the top left patch.
    ///
    /// # Errors
    /// No images, or one that cannot be resized.
    pub fn encode(&self, images: &[Image]) -> Result<Tensor<B, 3, Int>, Error> {
        pixels::check_channels(images, self.config.in_chans)?;
        Ok(self.ids(pixels::views(images, &self.view(), &self.device)?))
    }

    /// Images in [0, 1] `[B, 3, size, size]` → code ids `[B, g, g]`.
    pub fn ids(&self, images: Tensor<B, 4>) -> Tensor<B, 3, Int> {
        let (batch, grid) = (images.dims()[0], self.config.grid());
        self.model.ids(self.model.preprocess(images)).reshape([batch, grid, grid])
    }

    /// Code ids `[B, g, g]` → the decoder's prediction of the teacher's patch features, `[B, g², teacher_dim]`.
    pub fn decode(&self, ids: Tensor<B, 3, Int>) -> Tensor<B, 3> {
        let [batch, rows, columns] = ids.dims();
        let codes = self.model.quantize.codebook().select(0, ids.reshape([batch * rows * columns]));
        self.model.decode(codes, batch)
    }
}
