//! What the files beside a teacher's weights say: Hugging Face's `config.json` and `preprocessor_config.json`, timm's
//! `config.json`, open_clip's `open_clip_config.json`.

use beit2_weights::Sidecar;
use serde_json::Value;

use super::Activation;
use super::names::Names;
use crate::error::{Error, config_error};

/// Whose configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Library {
    HuggingFace,
    Timm,
    OpenClip,
}

/// Mean and standard deviation of R, G and B in [0, 1].
pub(super) type Statistics = ([f64; 3], [f64; 3]);

/// Everything that counts for features; absent is what the files do not say.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    /// The file, for messages.
    pub file: &'static str,
    pub library: Option<Library>,
    pub width: Option<usize>,
    pub depth: Option<usize>,
    pub heads: Option<usize>,
    pub patch: Option<usize>,
    pub norm_eps: Option<f64>,
    pub rope_theta: Option<f64>,
    pub activation: Option<Activation>,
    /// Weights that were trained with QuickGELU, under an architecture with GELU.
    pub quick_gelu_lost: bool,
    pub statistics: Option<Statistics>,
}

impl Said {
    /// Of the files beside the weights, the configuration that belongs to `names` first.
    pub fn of(beside: &Sidecar, names: Names) -> Result<Self, Error> {
        let (config, open_clip) = (&beside.config, &beside.open_clip);
        let said = if open_clip.is_object() && matches!(names, Names::OpenAi | Names::Plain) {
            Self::of_open_clip(open_clip)
        } else if config["architecture"].is_string() || config["pretrained_cfg"].is_object() {
            Self::of_timm(config)
        } else if config.is_object() {
            Self::of_hugging_face(config)?
        } else {
            Self::default()
        };
        let three = |values: &[f64]| <[f64; 3]>::try_from(values).ok();
        let statistics =
            beside.normalization.as_ref().and_then(|of| Some((three(&of.mean)?, three(&of.std)?)));
        Ok(Self { statistics, ..said })
    }

    fn of_hugging_face(config: &Value) -> Result<Self, Error> {
        // A model of images and texts has the image side in a table of its own.
        let vision = if config["vision_config"].is_object() { &config["vision_config"] } else { config };
        let file = "config.json";
        let kind = vision["model_type"].as_str().or(config["model_type"].as_str()).unwrap_or_default();
        let activation = match vision["hidden_act"].as_str() {
            Some(name) => match Activation::named(name) {
                Some(activation) => Some(activation),
                None => {
                    return config_error(format!(
                        "{file} beside the teacher's weights says hidden_act `{name}`; gelu, quick_gelu, \
                         gelu_pytorch_tanh and silu are offered"
                    ));
                }
            },
            // Only what differs from the library's default has to be in the file.
            None if kind.starts_with("clip") => Some(Activation::QuickGelu),
            None if kind.starts_with("siglip") => Some(Activation::GeluTanh),
            None => None,
        };
        Ok(Self {
            file,
            library: Some(Library::HuggingFace),
            width: count(&vision["hidden_size"]),
            depth: count(&vision["num_hidden_layers"]),
            heads: count(&vision["num_attention_heads"]),
            patch: count(&vision["patch_size"]),
            norm_eps: vision["layer_norm_eps"].as_f64(),
            rope_theta: vision["rope_theta"].as_f64(),
            activation,
            ..Self::default()
        })
    }

    fn of_timm(config: &Value) -> Self {
        let (inner, args) = (&config["pretrained_cfg"], &config["model_args"]);
        let text = |name: &str| config[name].as_str().or(inner[name].as_str());
        let (activation, quick_gelu_lost) = match args["act_layer"].as_str() {
            Some(name) => (Activation::named(name), false),
            None => {
                timm_activation(text("architecture").unwrap_or_default(), text("tag").unwrap_or_default())
            }
        };
        Self {
            file: "config.json",
            library: Some(Library::Timm),
            width: count(&args["embed_dim"]),
            depth: count(&args["depth"]),
            heads: count(&args["num_heads"]),
            patch: count(&args["patch_size"]),
            rope_theta: args["rope_temperature"].as_f64(),
            activation,
            quick_gelu_lost,
            ..Self::default()
        }
    }

    fn of_open_clip(config: &Value) -> Self {
        let (model, vision) = (&config["model_cfg"], &config["model_cfg"]["vision_cfg"]);
        let width = count(&vision["width"]);
        let head = count(&vision["head_width"]).unwrap_or(64).max(1);
        let activation = match vision["timm_model_name"].as_str() {
            Some(architecture) => timm_activation(architecture, "").0,
            None if model["quick_gelu"].as_bool() == Some(true) => Some(Activation::QuickGelu),
            None if vision["act_kwargs"]["approximate"] == "tanh" => Some(Activation::GeluTanh),
            None => Some(Activation::Gelu),
        };
        Self {
            file: "open_clip_config.json",
            library: Some(Library::OpenClip),
            width,
            depth: count(&vision["layers"]),
            heads: width.map(|width| width / head),
            patch: count(&vision["patch_size"]),
            norm_eps: vision["norm_kwargs"]["eps"].as_f64(),
            activation,
            ..Self::default()
        }
    }

    /// What the file says against what the tensors show.
    pub fn check(&self, width: usize, depth: usize, patch: usize) -> Result<(), Error> {
        let sizes = [
            ("width", self.width, width),
            ("number of blocks", self.depth, depth),
            ("patch", self.patch, patch),
        ];
        for (what, said, found) in sizes {
            if let Some(said) = said.filter(|said| *said != found) {
                return config_error(format!(
                    "{} beside the teacher's weights says a {what} of {said}, but the tensors show {found}; put the \
                     configuration of these weights there, or take it away",
                    self.file
                ));
            }
        }
        Ok(())
    }
}

/// The activation of a model of timm's by its name, and whether the published weights `tag` were trained with QuickGELU
/// under a name with GELU, as timm notes.
fn timm_activation(architecture: &str, tag: &str) -> (Option<Activation>, bool) {
    let quick =
        ["openai", "laion400m_e32"].contains(&tag) || tag.starts_with("metaclip") || tag.starts_with("dfn");
    const TANH: [&str; 5] =
        ["patch32_siglip", "siglip_512", "siglip_gap_512", "so400m_patch16_siglip", "giantopt"];
    let base_512 = architecture.contains("base_patch16");
    if architecture.is_empty() {
        (None, false)
    } else if architecture.contains("quickgelu") {
        (Some(Activation::QuickGelu), false)
    } else if architecture.contains("_clip_") && quick {
        (None, true)
    } else if architecture.contains("siglip")
        && !base_512
        && TANH.iter().any(|part| architecture.contains(part))
    {
        (Some(Activation::GeluTanh), false)
    } else {
        (Some(Activation::Gelu), false)
    }
}

/// A number that counts something.
fn count(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timm_names_tell_the_activation() {
        for (architecture, tag, expected) in [
            ("vit_base_patch16_clip_quickgelu_224", "openai", (Some(Activation::QuickGelu), false)),
            ("vit_base_patch16_clip_224", "laion2b", (Some(Activation::Gelu), false)),
            ("vit_base_patch16_clip_224", "openai", (None, true)),
            ("vit_base_patch16_siglip_224", "webli", (Some(Activation::Gelu), false)),
            ("vit_base_patch16_siglip_512", "webli", (Some(Activation::Gelu), false)),
            ("vit_large_patch16_siglip_512", "v2_webli", (Some(Activation::GeluTanh), false)),
            ("vit_so400m_patch14_siglip_384", "webli", (Some(Activation::Gelu), false)),
            ("vit_so400m_patch16_siglip_gap_512", "v2_webli", (Some(Activation::GeluTanh), false)),
        ] {
            assert_eq!(timm_activation(architecture, tag), expected, "{architecture}");
        }
    }
}
