//! A trained tokenizer as a function from images to code ids.

use beit2_data::{EvalConfig, Image};
use beit2_kernels::{Backend, Precision};
use burn::tensor::{Int, Tensor};

use super::{TokenizerConfig, VqKd};
use crate::error::Error;
use crate::pixels;
use crate::train::{Assets, check_precision};

/// A trained tokenizer.
///
/// ```no_run
/// use beit2::{pixels, tokenizer::Tokenizer, train::Files};
/// use beit2_kernels::Precision;
/// use burn::backend::Flex;
///
/// # fn main() -> Result<(), beit2::Error> {
/// let name = "vqkd_encoder_base_decoder_3x768x12_clip.pth";
/// let tokenizer = Tokenizer::<Flex>::open(name, &Files, Precision::F32, &Default::default())?;
/// let ids = tokenizer.encode(&[pixels::read("cat.jpg")?])?; // [1, 14, 14]
/// println!("{ids}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Tokenizer<B: Backend> {
    /// Its sizes.
    pub config: TokenizerConfig,
    /// The model, its encoder frozen ([`VqKd::freeze_encoder`]).
    pub model: VqKd<B>,
    device: B::Device,
}

impl<B: Backend> Tokenizer<B> {
    /// Opens a run of `beit2 tokenizer train`, or a weight file of this software or the official code.
    /// `precision` is that of the encoder's products; everything about codes stays in f32.
    ///
    /// # Errors
    /// A file that cannot be read, holds another model, or whose codebook was never started; a precision that the device
    /// does not have.
    pub fn open(
        spec: &str,
        assets: &dyn Assets,
        precision: Precision,
        device: &B::Device,
    ) -> Result<Self, Error> {
        check_precision::<B>(precision, device)?;
        let (config, mut model) = super::load::<B>(assets.weights(spec)?, spec, None, device)?;
        model.set_precision(precision);
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
        Ok(self.ids(pixels::views(images, &self.view(), &self.device)?))
    }

    /// Images in [0, 1] `[B, 3, size, size]` → code ids `[B, g, g]`.
    pub fn ids(&self, images: Tensor<B, 4>) -> Tensor<B, 3, Int> {
        let (batch, grid) = (images.dims()[0], self.config.grid());
        self.model.ids(self.model.preprocess(images)).reshape([batch, grid, grid])
    }
}
