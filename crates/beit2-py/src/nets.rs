//! The models of the library on whatever backend `device` names, behind one trait.

use beit2::classify::{Classifier, Embedder, FeatureKind};
use beit2::segment::{Predictor, Segmenter};
use beit2::tokenizer::Tokenizer;
use beit2::{Error, pixels};
use beit2_data::{EvalConfig, Image, LabelMap};
use beit2_kernels::Backend;
use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{Tensor, TensorData};

/// Rows of a result.
pub struct Rows {
    /// Little-endian values.
    pub bytes: Vec<u8>,
    /// Shape of one row.
    pub row: Vec<usize>,
    /// NumPy's name of their type.
    pub dtype: &'static str,
}

/// What Python shows of a model.
#[derive(Default)]
pub struct Facts {
    /// `Embedder`, …
    pub kind: &'static str,
    /// Side of its images in pixels; of a segmenter that of its windows.
    pub image_size: usize,
    /// Channels of its images.
    pub channels: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width of its features.
    pub width: usize,
    /// Block of the features.
    pub layer: Option<usize>,
    /// Codes of a tokenizer.
    pub codebook_size: usize,
    /// Width of what a tokenizer decodes to.
    pub teacher_dim: usize,
    /// Number of classes.
    pub classes: usize,
    /// Names of the classes; empty where they are unknown.
    pub class_names: Vec<String>,
    /// Whether an image can have several classes.
    pub multi_label: bool,
}

/// A model as a function of images.
pub trait Net: Send + Sync {
    /// What it is.
    fn facts(&self) -> Facts;

    /// How it sees an image.
    fn view(&self) -> EvalConfig;

    /// Views of its size `[B]` → rows `[B, …]` of what `what` names.
    fn of_views(&self, what: &str, views: &[Image]) -> anyhow::Result<Rows>;

    /// Values in [0, 1] `[B, C, H, W]` → rows.
    fn of_floats(&self, what: &str, values: Vec<f32>, shape: [usize; 4]) -> anyhow::Result<Rows>;

    /// The class of every pixel; for segmentation models.
    fn label(&self, _: &Image) -> anyhow::Result<LabelMap> {
        Err(Error::Config("this model has no classes of pixels".into()).into())
    }

    /// Code ids `[B, g, g]` → features `[B, g², D]`; for tokenizers.
    fn decode(&self, _: Vec<i64>, _: [usize; 3]) -> anyhow::Result<Rows> {
        Err(Error::Config("this model has no codes".into()).into())
    }
}

/// A model with its device.
pub struct On<M, B: Backend> {
    pub model: M,
    pub device: B::Device,
}

fn unknown<T>(what: &str) -> anyhow::Result<T> {
    Err(Error::Config(format!("this model gives no `{what}`")).into())
}

fn rows<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Rows {
    let row = tensor.dims()[1..].to_vec();
    let data = tensor.into_data().convert::<f32>();
    Rows { bytes: data.iter::<f32>().flat_map(f32::to_le_bytes).collect(), row, dtype: "float32" }
}

/// `[B, C, H, W]` on the device.
fn floats<B: Backend>(
    values: Vec<f32>,
    shape: [usize; 4],
    wanted: [usize; 3],
    device: &B::Device,
) -> anyhow::Result<Tensor<B, 4>> {
    if shape[1..] != wanted {
        let text = |sides: &[usize]| sides.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        return Err(Error::Config(format!(
            "float32 images have the shape [B, {}] for this model, not [{}]; give them as uint8 [H, W, C] to have them resized",
            text(&wanted),
            text(&shape)
        ))
        .into());
    }
    Ok(Tensor::from_data(TensorData::new(values, shape), device))
}

/// Both kinds of images go to `run`.
macro_rules! both_inputs {
    () => {
        fn of_views(&self, what: &str, views: &[Image]) -> anyhow::Result<Rows> {
            self.run(what, pixels::stacked(views, &self.device)?)
        }

        fn of_floats(&self, what: &str, values: Vec<f32>, shape: [usize; 4]) -> anyhow::Result<Rows> {
            let Facts { image_size, channels, .. } = self.facts();
            self.run(what, floats(values, shape, [channels, image_size, image_size], &self.device)?)
        }
    };
}

impl<B: Backend> On<Embedder<B>, B> {
    fn run(&self, what: &str, images: Tensor<B, 4>) -> anyhow::Result<Rows> {
        let net = &self.model.net;
        let kind = match what {
            "cls" => FeatureKind::Cls,
            "mean" => FeatureKind::Mean,
            "concat" => FeatureKind::Concat,
            "patches" => return Ok(rows(net.patches(images))),
            _ => return unknown(what),
        };
        net.check_kind(kind)?;
        Ok(rows(net.features(images, kind)))
    }
}

impl<B: Backend> Net for On<Embedder<B>, B> {
    both_inputs!();

    fn facts(&self) -> Facts {
        let Embedder { net, image_px, layer, .. } = &self.model;
        Facts {
            kind: "Embedder",
            image_size: *image_px,
            channels: net.channels(),
            patch_size: net.patch_px(),
            width: net.width(),
            layer: *layer,
            ..Facts::default()
        }
    }

    fn view(&self) -> EvalConfig {
        self.model.view()
    }
}

impl<B: Backend> On<Classifier<B>, B> {
    fn run(&self, what: &str, images: Tensor<B, 4>) -> anyhow::Result<Rows> {
        let logits = self.model.logits(images);
        match (what, self.model.config.multi_label) {
            ("logits", _) => Ok(rows(logits)),
            // As in `Classifier::rank`.
            ("probabilities", true) => Ok(rows(sigmoid(logits))),
            ("probabilities", false) => Ok(rows(softmax(logits, 1))),
            _ => unknown(what),
        }
    }
}

impl<B: Backend> Net for On<Classifier<B>, B> {
    both_inputs!();

    fn facts(&self) -> Facts {
        let config = &self.model.config;
        Facts {
            kind: "Classifier",
            image_size: config.vit.image_size,
            channels: config.vit.in_chans,
            patch_size: config.vit.patch_size,
            width: config.vit.width,
            classes: config.class_count(),
            class_names: config.class_names.clone(),
            multi_label: config.multi_label,
            ..Facts::default()
        }
    }

    fn view(&self) -> EvalConfig {
        self.model.view()
    }
}

impl<B: Backend> On<Tokenizer<B>, B> {
    fn run(&self, what: &str, images: Tensor<B, 4>) -> anyhow::Result<Rows> {
        if what != "ids" {
            return unknown(what);
        }
        let ids = self.model.ids(images);
        let row = ids.dims()[1..].to_vec();
        let bytes = ids.into_data().iter::<i64>().flat_map(i64::to_le_bytes).collect();
        Ok(Rows { bytes, row, dtype: "int64" })
    }
}

impl<B: Backend> Net for On<Tokenizer<B>, B> {
    both_inputs!();

    fn facts(&self) -> Facts {
        let config = &self.model.config;
        Facts {
            kind: "Tokenizer",
            image_size: config.image_size,
            channels: config.in_chans,
            patch_size: config.image_size / config.grid().max(1),
            codebook_size: config.codebook_size,
            teacher_dim: config.teacher_dim,
            ..Facts::default()
        }
    }

    fn view(&self) -> EvalConfig {
        self.model.view()
    }

    fn decode(&self, ids: Vec<i64>, shape: [usize; 3]) -> anyhow::Result<Rows> {
        let config = &self.model.config;
        let (grid, codes) = (config.grid(), config.codebook_size);
        if shape[1..] != [grid, grid] {
            let [_, h, w] = shape;
            return Err(Error::Config(format!(
                "code ids have the shape [B, {grid}, {grid}] for this tokenizer, not [B, {h}, {w}]"
            ))
            .into());
        }
        if let Some(id) = ids.iter().find(|&&id| id < 0 || id >= codes as i64) {
            return Err(Error::Config(format!("code id {id} is not one of 0 to {}", codes - 1)).into());
        }
        let ids = Tensor::from_data(TensorData::new(ids, shape), &self.device);
        Ok(rows(self.model.decode(ids)))
    }
}

impl<B: Backend> Net for On<Segmenter<B>, B> {
    fn facts(&self) -> Facts {
        let config = &self.model.config;
        let classes = config.class_count();
        Facts {
            kind: "Segmenter",
            image_size: config.vit.image_size,
            channels: config.vit.in_chans,
            patch_size: config.vit.patch_size,
            width: config.vit.width,
            classes,
            class_names: (0..classes).map(|class| config.class_name(class)).collect(),
            ..Facts::default()
        }
    }

    fn view(&self) -> EvalConfig {
        EvalConfig::of_size(self.model.config.vit.image_size as u32)
    }

    fn of_views(&self, what: &str, _: &[Image]) -> anyhow::Result<Rows> {
        unknown(what)
    }

    fn of_floats(&self, what: &str, values: Vec<f32>, shape: [usize; 4]) -> anyhow::Result<Rows> {
        if what != "logits" {
            return unknown(what);
        }
        let channels = self.model.config.vit.in_chans;
        let images = floats(values, shape, [channels, shape[2], shape[3]], &self.device)?;
        Ok(rows(self.model.logits(images)?))
    }

    fn label(&self, image: &Image) -> anyhow::Result<LabelMap> {
        let Segmenter { config, model, infer } = &self.model;
        Ok(Predictor::new(model, config, infer)?.label(image)?)
    }
}
