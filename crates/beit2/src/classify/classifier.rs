//! A classifier from whatever file holds one.

use std::path::Path;

use beit2_data::{EvalConfig, Image};
use beit2_kernels::Backend;
use beit2_weights::layout::Kind;
use beit2_weights::plan::PlanOptions;
use beit2_weights::resize::TableResize;
use burn::backend::Flex;
use burn::tensor::{DType, Tensor};
use serde::Serialize;

use super::{ClassifierConfig, EvalTable};
use crate::error::{Error, config_error};
use crate::infer_precision::InferPrecision;
use crate::vit::{DropPath, Pooling, VisionTransformer, VitConfig, plan_weights};
use crate::weights::{self, StateFile, WeightFile, to_tensors, written_config};
use crate::{params, pixels};

/// What can be chosen when a [`Classifier`] is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClassifierOptions<'a> {
    /// Side of the images; `None`: as it was trained. Positions are resized.
    pub image_size: Option<usize>,
    /// Rows of the head to keep, such as [`beit2_weights::plan::IMAGENET_A`].
    pub head_rows: Option<&'a [usize]>,
    /// How relative position tables are resized.
    pub tables: TableResize,
    /// Operands of the matmuls.
    pub precision: InferPrecision,
}

/// One prediction of a classifier.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Number of the class.
    pub class: usize,
    /// Its name, when the classifier knows it.
    pub name: Option<String>,
    /// Softmax of the logits; of a multi-label classifier the sigmoid of its own.
    pub probability: f32,
}

/// A trained classifier.
///
/// ```no_run
/// use beit2::classify::Classifier;
/// use beit2::pixels;
///
/// # fn main() -> Result<(), beit2::Error> {
/// let classifier = Classifier::open("model.safetensors")?;
/// let best = classifier.predict(&pixels::read("cat.jpg")?)?;
/// println!("class {} ({:?}) with probability {:.3}", best.class, best.name, best.probability);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Classifier<B: Backend = Flex> {
    /// Its sizes and classes.
    pub config: ClassifierConfig,
    /// The model, frozen ([`VisionTransformer::freeze`]).
    pub model: VisionTransformer<B>,
    /// How images are made for it: as the files beside the weights say, else the reference's way.
    pub eval: EvalTable,
}

/// The names of a classifier's classes, if its file or the configuration beside it has as many.
///
/// # Errors
/// A configuration that is damaged or of another model.
pub(crate) fn class_names(state: &StateFile, classes: usize) -> Result<Vec<String>, Error> {
    let written = match state.metadata.get("beit2.stage").map(String::as_str) {
        Some("finetune") => written_config::<ClassifierConfig>(&state.metadata, &state.origin)?,
        _ => None,
    };
    let names = match written {
        Some(config) => config.class_names,
        None => names_beside(state, classes),
    };
    Ok(if names.len() == classes { names } else { Vec::new() })
}

/// The names that files beside the weights give, when there are as many as classes.
fn names_beside(state: &StateFile, classes: usize) -> Vec<String> {
    let names = &state.beside.class_names;
    if names.len() == classes { names.clone() } else { Vec::new() }
}

impl Classifier {
    /// Opens a run of `beit2 finetune`, a checkpoint folder, or a classifier in official, timm or Hugging Face names, on the
    /// CPU and in f32. The file says its sizes and classes.
    ///
    /// # Errors
    /// A file that cannot be read, or that holds another model ([`Error::WrongModel`]).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path, &ClassifierOptions::default(), &Default::default())
    }
}

impl<B: Backend> Classifier<B> {
    /// As [`Classifier::open`], on any device and with choices.
    ///
    /// # Errors
    /// As [`Classifier::open`]; options that the model cannot have, a precision that the device does not have.
    pub fn open_with(
        path: impl AsRef<Path>,
        options: &ClassifierOptions<'_>,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let path = path.as_ref();
        Self::from_file(weights::open(path)?, &path.display().to_string(), options, device)
    }

    /// A classifier from the contents of its weight file; `origin` names the file in messages.
    ///
    /// # Errors
    /// As [`Classifier::open_with`].
    pub fn from_file(
        file: WeightFile,
        origin: &str,
        options: &ClassifierOptions<'_>,
        device: &B::Device,
    ) -> Result<Self, Error> {
        options.precision.check::<B>(device)?;
        let mut this = Self::unfrozen(file, origin, options, device)?;
        this.model.set_precision(options.precision.of_floats());
        if options.precision.is_int8() {
            this.model.set_int8();
        }
        Ok(Self { model: this.model.freeze(), ..this })
    }

    /// [`Classifier::from_file`] with the weights as they are, f32.
    pub(crate) fn unfrozen(
        file: WeightFile,
        origin: &str,
        options: &ClassifierOptions<'_>,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let state = StateFile::new(file, origin)?;
        let Some(mut classes) =
            state.summary.classes.filter(|_| state.summary.layout.kind == Kind::Classifier)
        else {
            return Err(Error::WrongModel {
                origin: origin.to_owned(),
                found: state.summary.layout.kind.to_string(),
                why: "which has no classes; name a fine-tuned one (`beit2 finetune` makes it)",
            });
        };
        state.check_whole()?;
        let mut config = match written_config(&state.metadata, origin)? {
            Some(config) => config,
            None => ClassifierConfig {
                vit: VitConfig::from_shapes(&state)?,
                pooling: match state.summary.pooling {
                    Some(beit2_weights::inspect::Pooling::Cls) => Pooling::Cls,
                    _ => Pooling::Mean,
                },
                class_names: names_beside(&state, classes),
                ..ClassifierConfig::default()
            },
        };
        if let Some(rows) = options.head_rows {
            if let Some(row) = rows.iter().find(|row| **row >= classes) {
                return config_error(format!(
                    "{origin} has {classes} classes; the subset needs class {row} of the 1000 of ImageNet-1k"
                ));
            }
            let kept = rows.iter().filter_map(|&row| config.class_names.get(row).cloned()).collect();
            (classes, config.class_names) = (rows.len(), kept);
        }
        // What a user says counts, also for files that say it themselves.
        config.vit.normalization = state.beside.normalization.clone().or(config.vit.normalization);
        let eval = EvalTable::beside(&state, options.image_size)?;
        config.classes = Some(classes);
        config.vit.image_size = options.image_size.unwrap_or(config.vit.image_size);
        config.vit.validate()?;
        pixels::check_normalization(config.vit.in_chans, config.vit.normalization.as_ref())
            .map_err(|error| Error::Config(format!("{origin}: {error}")))?;
        let zeros = VisionTransformer::<B>::new(&config.vit, config.pooling, classes, device);
        let (head_rows, tables) = (options.head_rows, options.tables);
        let planned = PlanOptions { head_rows, tables, ..PlanOptions::default() };
        let plan = plan_weights(state, &config.vit, config.pooling, classes, &planned)?;
        let model = params::load_strict(zeros, to_tensors(plan.tensors), DType::F32, |_| false)?;
        Ok(Self { config, model, eval })
    }

    /// Images in [0, 1] `[B, 3, H, W]` → logits `[B, classes]`.
    pub fn logits(&self, images: Tensor<B, 4>) -> Tensor<B, 2> {
        let x = pixels::normalise(images, self.config.vit.normalization.as_ref());
        self.model.forward(x, &DropPath::none())
    }

    /// How it sees an image, as evaluation does it: the shorter side resized, the centre cut out.
    pub fn view(&self) -> EvalConfig {
        self.eval.view(self.config.vit.image_size)
    }

    /// The most probable class of an image of any size.
    ///
    /// # Errors
    /// An image that cannot be resized.
    pub fn predict(&self, image: &Image) -> Result<Prediction, Error> {
        let best = self.top_k(std::slice::from_ref(image), 1)?.pop().and_then(|mut best| best.pop());
        best.ok_or_else(|| Error::Config("the classifier gave no class".into()))
    }

    /// The `k` most probable classes of images of any size, best first; one list for each image.
    ///
    /// # Errors
    /// No images, or one that cannot be resized.
    pub fn top_k(&self, images: &[Image], k: usize) -> Result<Vec<Vec<Prediction>>, Error> {
        pixels::check_channels(images, self.config.vit.in_chans)?;
        let device = self.model.trunk.cls_token.device();
        Ok(self.rank(self.logits(pixels::views(images, &self.view(), &device)?), k))
    }

    /// The `k` most probable classes from logits `[B, classes]`, best first; of equal ones the lower number first.
    pub fn rank(&self, logits: Tensor<B, 2>, k: usize) -> Vec<Vec<Prediction>> {
        let classes = logits.dims()[1];
        let probabilities = match self.config.multi_label {
            true => burn::tensor::activation::sigmoid(logits),
            false => burn::tensor::activation::softmax(logits, 1),
        };
        let probabilities = probabilities.into_data().convert::<f32>().into_vec::<f32>().unwrap_or_default();
        let best = |row: &[f32]| {
            let mut order: Vec<usize> = (0..classes).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            let named = |class: usize| Prediction {
                class,
                name: self.config.class_names.get(class).cloned(),
                probability: row[class],
            };
            order.into_iter().take(k).map(named).collect()
        };
        probabilities.chunks(classes.max(1)).map(best).collect()
    }
}
