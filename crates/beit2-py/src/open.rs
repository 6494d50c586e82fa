//! Models from paths, as the program opens them.

use beit2::classify::{Classifier, ClassifierOptions, Embedder, EmbedderOptions, TeacherOptions};
use beit2::segment::{InferConfig, Mode, Segmenter, SegmenterOptions};
use beit2::tokenizer::teachers::{Activation, TeacherKind};
use beit2::tokenizer::{Tokenizer, TokenizerOptions};
use beit2::train::Assets;
use beit2::weights::WeightFile;
use beit2::{Error, InferPrecision, Precision};
use beit2_cli::{AssetStore, DeviceSpec, GroupJob, Kind, Reading, decoding_of_run, run_on};
use beit2_data::{Background, DecodeOptions, EvalConfig, ExifOrientation};
use beit2_kernels::AutodiffBackend;
use beit2_weights::Normalization;
use pyo3::prelude::*;

use crate::exceptions::without_gil;
use crate::identity;
use crate::model::{Model, check_process};
use crate::nets::{Net, On};

/// What can be said when a model is opened. Python's classes have the defaults and the meaning; `None` is theirs or the file's.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Options {
    device: String,
    precision: String,
    image_size: Option<usize>,
    crop_pct: Option<f64>,
    layer: Option<usize>,
    entry: Option<String>,
    heads: Option<usize>,
    normalization: Option<String>,
    mean: Option<Vec<f64>>,
    std: Option<Vec<f64>>,
    teacher: Option<String>,
    teacher_heads: Option<usize>,
    teacher_activation: Option<String>,
    range: Option<String>,
    exif: Option<String>,
    background: Option<String>,
    mode: Option<String>,
    stride: Option<usize>,
    resize: Option<Resize>,
    scales: Option<Vec<f64>>,
    flip: bool,
}

/// `"native"`, or longer and shorter side.
#[derive(FromPyObject)]
enum Resize {
    Name(String),
    Sides(u32, u32),
}

/// One of several names, or the sentence that lists them.
fn named<T: Copy>(what: &str, name: &str, all: &[(&str, T)]) -> anyhow::Result<T> {
    match all.iter().find(|(known, _)| *known == name) {
        Some((_, value)) => Ok(*value),
        None => {
            let known: Vec<&str> = all.iter().map(|(known, _)| *known).collect();
            wrong(format!("{what} is `{name}`; it can be {}", known.join(", ")))
        }
    }
}

fn wrong<T>(sentence: String) -> anyhow::Result<T> {
    Err(Error::Config(sentence).into())
}

impl Options {
    fn device(&self) -> anyhow::Result<DeviceSpec> {
        self.device.parse().or_else(|why| wrong(format!("device is `{}`: {why}", self.device)))
    }

    fn precision(&self) -> anyhow::Result<InferPrecision> {
        let all = [InferPrecision::F32, InferPrecision::Bf16, InferPrecision::Int8];
        let names = all.map(|one| one.to_string());
        let all: Vec<(&str, InferPrecision)> = names.iter().map(String::as_str).zip(all).collect();
        named("precision", &self.precision, &all)
    }

    pub fn reading(&self) -> anyhow::Result<Reading> {
        let normalization = match (self.normalization.as_deref(), &self.mean, &self.std) {
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                return wrong("give normalization, or mean and std, not both".into());
            }
            (Some(name), None, None) => {
                let half: fn() -> Normalization = Normalization::half;
                let known = [("imagenet", Normalization::imagenet as fn() -> Normalization), ("half", half)];
                Some(named("normalization", name, &known)?())
            }
            (None, Some(mean), Some(std)) => Some(Normalization { mean: mean.clone(), std: std.clone() }),
            (None, None, None) => None,
            _ => return wrong("mean and std are given together".into()),
        };
        if let Some(problem) = normalization.as_ref().and_then(Normalization::problem) {
            return wrong(format!("mean and std: {problem}"));
        }
        Ok(Reading { entry: self.entry.clone(), heads: self.heads, normalization, about: None })
    }

    /// As the flags of the program: these, else what the run of the weights says, else the default.
    pub fn decode(&self, path: &str) -> anyhow::Result<DecodeOptions> {
        let mut options = decoding_of_run(path)?.unwrap_or_default();
        if let Some(range) = &self.range {
            options.range = range.parse().or_else(|why| wrong(format!("range: {why}")))?;
        }
        if let Some(exif) = &self.exif {
            let known = [ExifOrientation::Apply, ExifOrientation::Ignore].map(|one| (one.name(), one));
            options.exif = named("exif", exif, &known)?;
        }
        if let Some(background) = &self.background {
            let known = [Background::White, Background::Black, Background::Drop].map(|one| (one.name(), one));
            options.background = named("background", background, &known)?;
        }
        Ok(options)
    }

    fn embedder(&self) -> anyhow::Result<EmbedderOptions> {
        let kinds = [
            ("clip", TeacherKind::Clip),
            ("siglip", TeacherKind::Siglip),
            ("dino", TeacherKind::Dino),
            ("dinov2", TeacherKind::Dinov2),
            ("dinov3", TeacherKind::Dinov3),
        ];
        let activations = [
            ("gelu", Activation::Gelu),
            ("quick_gelu", Activation::QuickGelu),
            ("gelu_tanh", Activation::GeluTanh),
            ("silu", Activation::Silu),
        ];
        let kind = self.teacher.as_deref().map(|name| named("teacher", name, &kinds)).transpose()?;
        let activation = self.teacher_activation.as_deref();
        let activation =
            activation.map(|name| named("teacher_activation", name, &activations)).transpose()?;
        Ok(EmbedderOptions {
            layer: self.layer,
            image_size: self.image_size,
            teacher: TeacherOptions { kind, heads: self.teacher_heads, activation },
            precision: self.precision()?,
        })
    }

    fn segmenter(&self) -> anyhow::Result<SegmenterOptions> {
        let precision = match self.precision()? {
            InferPrecision::F32 => Precision::F32,
            InferPrecision::Bf16 => Precision::Bf16,
            InferPrecision::Int8 => return wrong("precision is `int8`; it can be f32, bf16".into()),
        };
        Ok(SegmenterOptions { precision, image_size: self.image_size, ..SegmenterOptions::default() })
    }

    /// How a segmenter sees images: the model's own options with these over them.
    fn infer(&self, mut infer: InferConfig) -> anyhow::Result<InferConfig> {
        if let Some(mode) = &self.mode {
            infer.mode = named("mode", mode, &[("slide", Mode::Slide), ("whole", Mode::Whole)])?;
        }
        infer.stride = self.stride.or(infer.stride);
        match &self.resize {
            None => {}
            Some(Resize::Name(name)) => {
                named("resize", name, &[("native", ())])?;
                infer.resize = false;
            }
            Some(Resize::Sides(a, b)) => {
                (infer.resize, infer.long_side, infer.short_side) = (true, *a.max(b), *a.min(b));
            }
        }
        if let Some(scales) = &self.scales {
            infer.scales.clone_from(scales);
        }
        infer.flip |= self.flip;
        Ok(infer)
    }
}

/// Opens one model on one device.
struct Opening<'a> {
    kind: &'a str,
    path: &'a str,
    options: &'a Options,
    file: WeightFile,
}

impl GroupJob for Opening<'_> {
    type Output = Box<dyn Net>;

    fn run<B: AutodiffBackend>(self, devices: &[B::Device]) -> anyhow::Result<Box<dyn Net>> {
        let Self { kind, path, options, file } = self;
        let [device] = devices else {
            return wrong(format!(
                "device `{}` names several devices, and a model runs on one",
                options.device
            ));
        };
        let device = device.clone();
        Ok(match kind {
            "Embedder" => {
                let model = Embedder::from_file(file, path, &options.embedder()?, &device)?;
                Box::new(On::<_, B::InnerBackend> { model, device })
            }
            "Classifier" => {
                let (image_size, precision) = (options.image_size, options.precision()?);
                let chosen = ClassifierOptions { image_size, precision, ..ClassifierOptions::default() };
                let model = Classifier::from_file(file, path, &chosen, &device)?;
                Box::new(On::<_, B::InnerBackend> { model, device })
            }
            "Tokenizer" => {
                let chosen = TokenizerOptions { precision: options.precision()? };
                let model = Tokenizer::from_file(file, path, &chosen, &device)?;
                Box::new(On::<_, B::InnerBackend> { model, device })
            }
            "Segmenter" => {
                let mut model = Segmenter::from_file(file, path, &options.segmenter()?, &device)?;
                model.infer = options.infer(model.infer)?;
                model.infer.validate(model.config.vit.image_size)?;
                Box::new(On::<_, B::InnerBackend> { model, device })
            }
            other => return wrong(format!("there is no kind of model `{other}`")),
        })
    }
}

/// Opens a model. Gives it, what is doubtful about its weights, and their fingerprint.
#[pyfunction]
pub fn open(
    py: Python<'_>,
    kind: &str,
    path: &str,
    options: Options,
) -> PyResult<(Model, Vec<String>, String)> {
    without_gil(py, || {
        check_process()?;
        let device = options.device()?;
        options.precision()?;
        let decode = options.decode(path)?;
        let file = AssetStore::silent(options.reading()?).weights(path)?;
        let (warnings, identity) = (file.warnings.clone(), identity::of(&file, &decode));
        let net = run_on(&device, Opening { kind, path, options: &options, file })?;
        let view = net.view();
        let view = EvalConfig { crop_pct: options.crop_pct.or(view.crop_pct), ..view };
        view.validate().map_err(Error::from)?;
        let decode = match kind {
            // As `beit2 segment predict`, whose models take RGB.
            "Segmenter" => decode,
            _ => decode.of_channels(net.facts().channels),
        };
        Ok((Model::new(net, view, decode, device.kind != Kind::Cpu), warnings, identity))
    })
}
