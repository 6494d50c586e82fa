//! A classifier from whatever file holds one.

use beit2_data::{EvalConfig, Image};
use beit2_kernels::{Backend, Precision};
use beit2_weights::layout::Kind;
use beit2_weights::plan::PlanOptions;
use beit2_weights::resize::TableResize;
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::classify::finetune::EvalTable;
use crate::error::{Error, config_error};
use crate::train::{Assets, check_precision};
use crate::vit::{DropPath, Pooling, RelPosKind, VisionTransformer, VitConfig, plan_weights};
use crate::weights::{HF_CLASS_NAMES, StateFile, to_tensors, written_config};
use crate::{params, pixels};

/// Sizes of a classifier. Defaults: BEiT v2 base as it is fine-tuned (a bias table in every block, mean pooling).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifierConfig {
    /// The Transformer.
    pub vit: VitConfig,
    /// What becomes the image's vector.
    pub pooling: Pooling,
    /// Number of classes; absent: the training images tell.
    pub classes: Option<usize>,
    /// Their names, when they are known.
    pub class_names: Vec<String>,
}

impl Default for ClassifierConfig {
    fn default() -> Self {
        Self {
            vit: VitConfig { rel_pos_bias: RelPosKind::PerBlock, ..VitConfig::default() },
            pooling: Pooling::Mean,
            classes: None,
            class_names: Vec::new(),
        }
    }
}

impl ClassifierConfig {
    /// Number of classes K of a resolved configuration: the recipe's, or what the training images told.
    pub fn class_count(&self) -> usize {
        self.classes.unwrap_or_default()
    }
}

/// How a classifier is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions<'a> {
    /// Side of the images; `None`: as it was trained. Positions are resized.
    pub image_size: Option<usize>,
    /// Rows of the head to keep, such as [`beit2_weights::plan::IMAGENET_A`].
    pub head_rows: Option<&'a [usize]>,
    /// How relative position tables are resized.
    pub tables: TableResize,
    /// Operands of the matrix products.
    pub precision: Precision,
}

/// One guess of a classifier.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Number of the class.
    pub class: usize,
    /// Its name, when the classifier knows it.
    pub name: Option<String>,
    /// Softmax of the logits.
    pub probability: f32,
}

/// A trained classifier.
///
/// ```no_run
/// use beit2::{classify::{Classifier, OpenOptions}, pixels, train::Files};
/// use burn::backend::Flex;
///
/// # fn main() -> Result<(), beit2::Error> {
/// let model = Classifier::<Flex>::open("model.safetensors", &Files, OpenOptions::default(), &Default::default())?;
/// let best = model.top_k(&[pixels::read("cat.jpg")?], 5)?; // one list for each image
/// println!("{:?}", best[0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Classifier<B: Backend> {
    /// Its sizes and classes.
    pub config: ClassifierConfig,
    /// The model, frozen ([`VisionTransformer::freeze`]).
    pub model: VisionTransformer<B>,
}

/// The names that a Hugging Face configuration gives, when there are as many as classes.
fn names_beside(state: &StateFile, classes: usize) -> Vec<String> {
    let text = state.metadata.get(HF_CLASS_NAMES).map_or("", String::as_str);
    let names: Vec<String> = serde_json::from_str(text).unwrap_or_default();
    if names.len() == classes { names } else { Vec::new() }
}

impl<B: Backend> Classifier<B> {
    /// Opens a run of `beit2 finetune`, or a classifier in official, timm or Hugging Face names.
    ///
    /// # Errors
    /// A file that cannot be read or holds another model, a precision that the device does not have.
    pub fn open(
        spec: &str,
        assets: &dyn Assets,
        options: OpenOptions<'_>,
        device: &B::Device,
    ) -> Result<Self, Error> {
        check_precision::<B>(options.precision, device)?;
        let precision = options.precision;
        let state = StateFile::new(assets.weights(spec)?, spec)?;
        let Some(mut classes) = state.facts.classes.filter(|_| state.facts.layout.kind == Kind::Classifier)
        else {
            return config_error(format!(
                "{spec} holds a {} model, which has no classes; name a fine-tuned one (`beit2 finetune` makes it)",
                state.facts.layout.kind
            ));
        };
        let mut config = match written_config(&state.metadata, spec)? {
            Some(config) => config,
            None => ClassifierConfig {
                vit: VitConfig::from_shapes(&state)?,
                pooling: match state.facts.pooling {
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
                    "{spec} has {classes} classes; the subset asks for class {row} of the 1000 of ImageNet-1k"
                ));
            }
            let kept = rows.iter().filter_map(|&row| config.class_names.get(row).cloned()).collect();
            (classes, config.class_names) = (rows.len(), kept);
        }
        config.classes = Some(classes);
        config.vit.image_size = options.image_size.unwrap_or(config.vit.image_size);
        config.vit.validate()?;
        if config.vit.in_chans != 3 {
            return config_error(format!("{spec} takes {} channels; images have 3", config.vit.in_chans));
        }
        let zeros = VisionTransformer::<B>::new(&config.vit, config.pooling, classes, device);
        let options =
            PlanOptions { head_rows: options.head_rows, tables: options.tables, ..PlanOptions::default() };
        let plan = plan_weights(state, &config.vit, config.pooling, classes, &options)?;
        let mut model = params::load_strict(zeros, to_tensors(plan.tensors), DType::F32, |_| false)?;
        model.set_precision(precision);
        Ok(Self { config, model: model.freeze() })
    }

    /// Images in [0, 1] `[B, 3, H, W]` → logits `[B, classes]`.
    pub fn logits(&self, images: Tensor<B, 4>) -> Tensor<B, 2> {
        let x = pixels::standardise(images, pixels::IMAGENET_MEAN, pixels::IMAGENET_STD);
        self.model.forward(x, &DropPath::none())
    }

    /// How it sees an image, as evaluation does it: the shorter side resized, the centre cut out.
    pub fn view(&self) -> EvalConfig {
        EvalTable::default().view(self.config.vit.image_size)
    }

    /// The `k` most probable classes of images of any size, best first; one list for each image.
    ///
    /// # Errors
    /// No images, or one that cannot be resized.
    pub fn top_k(&self, images: &[Image], k: usize) -> Result<Vec<Vec<Prediction>>, Error> {
        let device = self.model.trunk.cls_token.device();
        Ok(self.rank(self.logits(pixels::views(images, &self.view(), &device)?), k))
    }

    /// The `k` most probable classes from logits `[B, classes]`, best first; of equal ones the lower number first.
    pub fn rank(&self, logits: Tensor<B, 2>, k: usize) -> Vec<Vec<Prediction>> {
        let classes = logits.dims()[1];
        let shares = burn::tensor::activation::softmax(logits, 1);
        let shares = shares.into_data().convert::<f32>().into_vec::<f32>().unwrap_or_default();
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
        shares.chunks(classes.max(1)).map(best).collect()
    }
}
