//! A trained segmentation model from whatever file holds one.

use std::path::Path;

use beit2_data::Image;
use beit2_data::segment::LabelMap;
use beit2_kernels::{Backend, Precision};
use beit2_weights::layout::Kind;
use beit2_weights::resize::TableResize;
use burn::backend::Flex;
use burn::tensor::{DType, Tensor};

use super::config::SegmenterConfig;
use super::load::{plan_backbone, take_heads};
use super::model::UperNet;
use super::{InferConfig, Predictor};
use crate::error::{Error, config_error};
use crate::train::check_precision;
use crate::weights::{self, StateFile, WeightFile, to_tensors};
use crate::{params, pixels};

/// What can be chosen when a [`Segmenter`] is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct SegmenterOptions {
    /// Side of its windows; `None`: as it was trained. Positions are resized.
    pub image_size: Option<usize>,
    /// How relative position tables are resized.
    pub tables: TableResize,
    /// Operands of the trunk's matmuls; pyramid and heads are in f32.
    pub precision: Precision,
}

/// A trained segmentation model.
///
/// ```no_run
/// use beit2::pixels;
/// use beit2::segment::Segmenter;
///
/// # fn main() -> Result<(), beit2::Error> {
/// let segmenter = Segmenter::open("runs/scenes")?;
/// let map = segmenter.label(&pixels::read("street.jpg")?)?; // a class for every pixel
/// println!("{}", segmenter.config.class_name(map.data[0] as usize));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Segmenter<B: Backend = Flex> {
    /// Its sizes and classes.
    pub config: SegmenterConfig,
    /// The model, frozen ([`UperNet::freeze`]).
    pub model: UperNet<B>,
    /// How images are cut and resized: as in the validation of the run that made it; the reference's way for published files.
    pub infer: InferConfig,
}

impl Segmenter {
    /// Opens a run of `beit2 segment train`, a checkpoint folder, or a published segmentation file (mmsegmentation's `.pth`,
    /// whose classes and palette are read too), on the CPU and in f32. The file says its sizes and classes.
    ///
    /// # Errors
    /// A file that cannot be read, or that holds another model ([`Error::WrongModel`]).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path, &SegmenterOptions::default(), &Default::default())
    }
}

impl<B: Backend> Segmenter<B> {
    /// As [`Segmenter::open`], on any device and with choices.
    ///
    /// # Errors
    /// As [`Segmenter::open`]; a size that the model cannot have, a precision that the device does not have.
    pub fn open_with(
        path: impl AsRef<Path>,
        options: &SegmenterOptions,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let path = path.as_ref();
        Self::from_file(weights::open(path)?, &path.display().to_string(), options, device)
    }

    /// A segmentation model from the contents of its weight file; `origin` names the file in messages.
    ///
    /// # Errors
    /// As [`Segmenter::open_with`].
    pub fn from_file(
        file: WeightFile,
        origin: &str,
        options: &SegmenterOptions,
        device: &B::Device,
    ) -> Result<Self, Error> {
        check_precision::<B>(options.precision, device)?;
        let mut state = StateFile::new(file, origin)?;
        if state.summary.layout.kind != Kind::Segmentation {
            return Err(Error::WrongModel {
                origin: origin.to_owned(),
                found: state.summary.layout.kind.to_string(),
                why: "which has no pixel classes; name a segmentation model",
            });
        }
        let mut config = SegmenterConfig::of_file(&state)?;
        let infer = match state.metadata.get("beit2.infer").map(|text| serde_json::from_str(text)) {
            Some(Ok(infer)) => infer,
            Some(Err(error)) => {
                return config_error(format!("the configuration inside {origin} cannot be read: {error}"));
            }
            None => InferConfig::default(),
        };
        config.vit.image_size = options.image_size.unwrap_or(config.vit.image_size);
        let zeros = UperNet::<B>::zeros(&config, device)
            .map_err(|error| Error::Config(format!("{origin}: {error}")))?;
        if config.vit.in_chans != 3 {
            return config_error(format!("{origin} takes {} channels; images have 3", config.vit.in_chans));
        }
        let blame = state.blame().of_missing();
        let heads = take_heads(&mut state);
        let trunk = plan_backbone(state, &config, options.tables)?.tensors;
        let tensors = to_tensors(trunk.into_iter().chain(heads).collect());
        let mut model =
            params::load_strict(zeros, tensors, DType::F32, |_| false).map_err(|error| blame.or(error))?;
        model.set_precision(options.precision);
        Ok(Self { model: model.freeze(), config, infer })
    }

    /// The class of every pixel of an image of any size, seen as [`Segmenter::infer`] says.
    ///
    /// # Errors
    /// An image without pixels, or one so long that its resized form would be too large.
    pub fn label(&self, image: &Image) -> Result<LabelMap, Error> {
        Predictor::new(&self.model, &self.config, &self.infer)?.label(image)
    }

    /// Images in [0, 1] `[B, 3, H, W]` → logits `[B, H/4, W/4, classes]`.
    ///
    /// # Errors
    /// Images of a size that the model cannot see as a whole, see [`super::Backbone::check_size`].
    pub fn logits(&self, images: Tensor<B, 4>) -> Result<Tensor<B, 4>, Error> {
        self.model.forward(pixels::normalise(images, self.config.vit.normalization.as_ref()))
    }
}
