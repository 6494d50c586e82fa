//! What the files beside weights say: Hugging Face's `config.json` and `preprocessor_config.json`, timm's `config.json`.
//!
//! Tensors show most sizes, but not how images are made, how many attention heads there are without a bias table, or what
//! the classes are called. Start reading at [`Sidecar::beside`]; [`Sidecar::check`] compares with the tensors, and what
//! contradicts them is an error. What this struct does not know is in [`Sidecar::config`], as JSON.

mod check;
mod huggingface;
mod timm;

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::WeightsError;

/// The longest file that is read; a configuration with the names of 21,841 classes has 2 MB.
const MAX_BYTES: u64 = 16 << 20;

/// Mean and standard deviation of every channel, for values in `[0, 1]`: a model sees `(x − mean) / std`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// Mean of each channel.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel.
    pub std: Vec<f64>,
}

impl Normalization {
    /// ImageNet's, of RGB: BEiT v2 from pretraining on.
    pub fn imagenet() -> Self {
        Self { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }
    }

    /// 0.5 and 0.5, so that values lie in `[−1, 1]`: BEiT v1.
    pub fn half() -> Self {
        Self { mean: vec![0.5; 3], std: vec![0.5; 3] }
    }

    /// Why these numbers cannot be used, if so.
    pub fn problem(&self) -> Option<String> {
        let Self { mean, std } = self;
        if mean.is_empty() || mean.len() != std.len() {
            return Some(format!(
                "{} means and {} standard deviations do not belong together",
                mean.len(),
                std.len()
            ));
        }
        if !mean.iter().chain(std).all(|value| value.is_finite()) || std.iter().any(|value| *value <= 0.0) {
            return Some(
                "a mean or standard deviation is not finite, or a standard deviation is not above 0".into(),
            );
        }
        None
    }
}

impl std::fmt::Display for Normalization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |values: &[f64]| match values {
            [first, rest @ ..] if rest.iter().all(|value| value == first) => first.to_string(),
            _ => values.iter().map(f64::to_string).collect::<Vec<_>>().join("/"),
        };
        write!(f, "mean {} std {}", list(&self.mean), list(&self.std))
    }
}

/// How an image that is not square becomes a square view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViewMode {
    /// The shorter side is resized, the centre is cut out.
    Center,
    /// Both sides are resized, whatever the aspect.
    Squash,
    /// The longer side is resized, the shorter one padded.
    Border,
}

/// How images are resized and cut before a model sees them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// Side of the view in pixels.
    pub size: Option<usize>,
    /// Share of the resized side that the view shows; the side is `floor(size / crop_pct)`.
    pub crop_pct: Option<f64>,
    /// What happens to images that are not square.
    pub mode: Option<ViewMode>,
    /// Filter, by its name in Pillow: `bilinear`, `bicubic`, `lanczos`, `nearest`, `box`, `hamming`.
    pub interpolation: Option<String>,
}

/// Sizes and parts of the model; of a model of images and texts those of the image side.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sizes {
    /// Width D of a token.
    pub width: Option<usize>,
    /// Number of blocks.
    pub depth: Option<usize>,
    /// Attention heads.
    pub heads: Option<usize>,
    /// Hidden width of the MLP.
    pub mlp_width: Option<usize>,
    /// Side of a patch in pixels.
    pub patch: Option<usize>,
    /// Image channels.
    pub channels: Option<usize>,
    /// Image side in pixels.
    pub image_px: Option<usize>,
    /// Whether there is an absolute position embedding.
    pub abs_pos: Option<bool>,
    /// Whether one relative position bias table serves all blocks.
    pub shared_bias: Option<bool>,
    /// Whether every block has a table of its own.
    pub block_bias: Option<bool>,
    /// Whether the blocks have layer scale.
    pub layer_scale: Option<bool>,
    /// Whether the mean of the patches is the image's feature, and not the CLS token.
    pub mean_pooling: Option<bool>,
}

/// What the files beside a weight file say; empty when there are none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sidecar {
    /// Names of the files that were read.
    pub files: Vec<String>,
    /// The whole `config.json`.
    pub config: Value,
    /// The whole `preprocessor_config.json`.
    pub preprocessor: Value,
    /// The whole `open_clip_config.json`, of a CLIP in open_clip's layout.
    pub open_clip: Value,
    /// Hugging Face's `model_type` or timm's `architecture`.
    pub model: Option<String>,
    /// Sizes and parts.
    pub sizes: Sizes,
    /// ε of the layer norms.
    pub norm_eps: Option<f64>,
    /// Activation of the MLP, such as `gelu` or `quick_gelu`.
    pub activation: Option<String>,
    /// Number of classes.
    pub classes: Option<usize>,
    /// Their names in order; empty when they are not all there, or only numbered (`LABEL_7`).
    pub class_names: Vec<String>,
    /// How pixels are standardised.
    pub normalization: Option<Normalization>,
    /// How images are resized and cut.
    pub view: View,
    /// What these files say that this software does differently, as sentences for the user.
    pub remarks: Vec<String>,
}

impl Sidecar {
    /// Reads what lies beside a weight file (or shard index, or in a folder). A `config.json` of something else is passed over.
    ///
    /// # Errors
    /// A file of one of these names that cannot be read or is not JSON, or statistics that cannot be used.
    pub fn beside(path: &Path) -> Result<Self, WeightsError> {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        let mut found = Self::default();
        let config = folder.join("config.json");
        if let Some(value) = json(&config)? {
            if timm::is_config(&value) {
                timm::read(&value, &mut found);
            } else if huggingface::is_config(&value) {
                huggingface::read(&value, &mut found);
            }
            if found != Self::default() {
                found.files.push("config.json".to_owned());
                found.config = value;
            }
        }
        let own =
            json(&folder.join("preprocessor_config.json"))?.map(|value| ("preprocessor_config.json", value));
        let processor = match own {
            Some(own) => Some(own),
            // transformers 5 writes one file for all parts of a processor.
            None => json(&folder.join("processor_config.json"))?.and_then(|mut value| {
                Some(("processor_config.json", value.get_mut("image_processor")?.take()))
            }),
        };
        if let Some((name, value)) = processor.filter(|(_, value)| value.is_object()) {
            let model = found.model.clone();
            huggingface::read_preprocessor(&value, model.as_deref(), &mut found);
            found.files.push(name.to_owned());
            found.preprocessor = value;
        }
        if let Some(value) =
            json(&folder.join("open_clip_config.json"))?.filter(|value| value["model_cfg"].is_object())
        {
            let preprocess = &value["preprocess_cfg"];
            if let (None, Some(mean), Some(std)) =
                (&found.normalization, numbers(&preprocess["mean"]), numbers(&preprocess["std"]))
            {
                found.normalization = Some(Normalization { mean, std });
            }
            found.files.push("open_clip_config.json".to_owned());
            found.open_clip = value;
        }
        if let Some(problem) = found.normalization.as_ref().and_then(Normalization::problem) {
            let path = folder.join(found.files.last().map_or("config.json", String::as_str));
            return Err(WeightsError::Layout { path, problem });
        }
        Ok(found)
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// One line for the user: which files were read and what was taken from them; `None` when there are none.
    pub fn describe(&self) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let mut parts = Vec::new();
        parts.extend(self.sizes.heads.map(|heads| match heads {
            1 => "1 head".to_owned(),
            _ => format!("{heads} heads"),
        }));
        parts.extend(self.norm_eps.map(|eps| format!("layer norm ε {eps:e}")));
        parts.extend(self.normalization.as_ref().map(Normalization::to_string));
        parts.extend(self.view.describe());
        if !self.class_names.is_empty() {
            parts.push(format!("{} class names", self.class_names.len()));
        }
        if parts.is_empty() {
            parts.push("sizes only".to_owned());
        }
        Some(format!("from {}: {}", self.files.join(" and "), parts.join(", ")))
    }
}

impl View {
    /// `256 px to 224 px, bilinear`; `None` when nothing is known.
    fn describe(&self) -> Option<String> {
        let mut parts = Vec::new();
        parts.extend(self.size.map(|size| format!("{size} px")));
        parts.extend(self.crop_pct.map(|share| format!("crop {}", (share * 1000.0).round() / 1000.0)));
        parts.extend(self.mode.filter(|mode| *mode != ViewMode::Center).map(|mode| match mode {
            ViewMode::Squash => "squashed".to_owned(),
            _ => "padded".to_owned(),
        }));
        parts.extend(self.interpolation.clone());
        (!parts.is_empty()).then(|| format!("view {}", parts.join(" ")))
    }
}

/// A JSON file; `None` when there is none.
fn json(path: &Path) -> Result<Option<Value>, WeightsError> {
    let io = |reason| WeightsError::Io { path: path.to_path_buf(), action: "read", reason };
    let Ok(metadata) = fs::metadata(path) else { return Ok(None) };
    if !metadata.is_file() {
        return Ok(None);
    }
    let layout = |problem: String| WeightsError::Layout { path: path.to_path_buf(), problem };
    if metadata.len() > MAX_BYTES {
        return Err(layout(format!("has {} bytes, too many for a configuration", metadata.len())));
    }
    match serde_json::from_slice(&fs::read(path).map_err(io)?) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            Err(layout(format!("is not valid JSON ({error}); repair it, or take it away from the weights")))
        }
    }
}

/// A number that counts something.
fn count(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

/// A side that is a number, or a list or object of two equal ones.
fn side(value: &Value) -> Option<usize> {
    let pair = match value {
        Value::Array(pair) if pair.len() == 2 => [&pair[0], &pair[1]],
        Value::Object(pair) => [pair.get("height")?, pair.get("width")?],
        one => return count(one),
    };
    let [height, width] = pair.map(count);
    height.filter(|height| Some(*height) == width)
}

/// Numbers of all channels: a list, or one number for all three.
fn numbers(value: &Value) -> Option<Vec<f64>> {
    match value {
        Value::Array(values) => values.iter().map(Value::as_f64).collect(),
        one => Some(vec![one.as_f64()?; 3]),
    }
}

/// The names of `["cat", "dog"]` or `{"0": "cat", "1": "dog"}`, with their number; no names when someone has not chosen them:
/// `LABEL_7` is only a number.
fn class_names(value: &Value) -> Option<(usize, Vec<String>)> {
    let (count, names): (usize, Option<Vec<String>>) = match value {
        Value::Array(names) => {
            (names.len(), names.iter().map(|name| Some(name.as_str()?.to_owned())).collect())
        }
        Value::Object(table) => {
            let name = |id: usize| Some(table.get(&id.to_string())?.as_str()?.to_owned());
            (table.len(), (0..table.len()).map(name).collect())
        }
        _ => return None,
    };
    let chosen = names.filter(|names| !names.iter().any(|name| name.starts_with("LABEL_")));
    (count > 0).then(|| (count, chosen.unwrap_or_default()))
}
