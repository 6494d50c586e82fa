//! Models from run directories, checkpoints and weight files.

use std::path::{Path, PathBuf};

use beit2_kernels::Backend;
use burn::module::Module;
use burn::tensor::DType;
use serde::de::DeserializeOwned;

use super::{StateFile, WeightFile, to_tensors};
use crate::error::{Error, config_error};
use crate::params;
use crate::pretrain::{MimConfig, MimModel, TokenizerSource};
use crate::tokenizer::{TokenizerConfig, VqKd};
use crate::train::Assets;

/// The weight file that a user means by a run directory, a checkpoint folder or a file.
///
/// # Errors
/// A run without a complete checkpoint.
pub fn locate(spec: &str) -> Result<PathBuf, Error> {
    let path = Path::new(spec);
    if path.join("checkpoints").is_dir() {
        let latest = beit2_run::checkpoint::latest(path)?.checkpoint;
        return match latest {
            Some(checkpoint) => Ok(checkpoint.file("model.safetensors")),
            None => config_error(format!(
                "{spec} is a run without a complete checkpoint yet; let it train further"
            )),
        };
    }
    let inside = path.join("model.safetensors");
    Ok(if inside.is_file() { inside } else { path.to_owned() })
}

fn config_of<T: DeserializeOwned>(file: &WeightFile, spec: &str, stage: &str) -> Result<Option<T>, Error> {
    match file.metadata.get("beit2.stage") {
        Some(found) if found != stage => {
            return config_error(format!("{spec} holds a model of stage `{found}`, expected `{stage}`"));
        }
        _ => {}
    }
    let Some(text) = file.metadata.get("beit2.config") else { return Ok(None) };
    match serde_json::from_str(text) {
        Ok(config) => Ok(Some(config)),
        Err(error) => config_error(format!("the configuration inside {spec} cannot be read: {error}")),
    }
}

/// A tokenizer for inference, with its sizes.
///
/// # Errors
/// A file that is missing, of another stage, or does not fit the sizes.
pub fn load_tokenizer<B: Backend>(
    source: &TokenizerSource,
    assets: &dyn Assets,
    device: &B::Device,
) -> Result<(TokenizerConfig, VqKd<B>), Error> {
    let spec = source.weights.as_str();
    if spec.is_empty() {
        return config_error("tokenizer.weights is empty; name a tokenizer's run directory or weight file");
    }
    let mut file = assets.weights(spec)?;
    let named = match (config_of::<TokenizerConfig>(&file, spec, "tokenizer")?, source.variant.as_str()) {
        (Some(config), _) => Some(config),
        (None, "") => None,
        (None, variant) => match TokenizerConfig::named(variant) {
            Some(config) => Some(config),
            None => {
                return config_error(format!("tokenizer.variant `{variant}` is not a registered tokenizer"));
            }
        },
    };
    // Training files of the reference carry the teacher; a tokenizer does not need it.
    file.tensors.retain(|name, _| {
        !["loss", "teacher_model.", "scaling_layer."].iter().any(|prefix| name.starts_with(prefix))
    });
    let state = StateFile::new(file, spec)?;
    let config = match named {
        Some(config) => config,
        None => sizes_of_tokenizer(&state, spec)?,
    };
    let model = VqKd::<B>::zeros(&config, device)?;
    let model = params::load_strict(model, to_tensors(state.tensors), DType::F32, |_| false)?.no_grad();
    if !model.quantize.is_initialised() {
        return config_error(format!(
            "the codebook in {spec} was never started; train that tokenizer further"
        ));
    }
    Ok((config, model))
}

/// A pretrained masked image model, with its sizes.
///
/// # Errors
/// A file that is missing, of another stage, or does not fit the sizes.
pub fn load_mim<B: Backend>(
    spec: &str,
    assets: &dyn Assets,
    device: &B::Device,
) -> Result<(MimConfig, MimModel<B>), Error> {
    let file = assets.weights(spec)?;
    let written = config_of::<MimConfig>(&file, spec, "pretrain")?;
    let state = StateFile::new(file, spec)?;
    let config = match written {
        Some(config) => config,
        None => sizes_of_mim(&state, spec)?,
    };
    let model = MimModel::<B>::zeros(&config, device)?;
    Ok((config, params::load_strict(model, to_tensors(state.tensors), DType::F32, |_| false)?))
}

/// The sizes of a published tokenizer.
fn sizes_of_tokenizer(state: &StateFile, spec: &str) -> Result<TokenizerConfig, Error> {
    let (vit, Some(facts)) = (state.vit()?, state.facts.tokenizer) else {
        return config_error(format!("{spec} holds a {} model, not a tokenizer", state.facts.layout.kind));
    };
    let config = TokenizerConfig {
        image_size: vit.image_size,
        patch_size: vit.patch_size,
        width: vit.width,
        depth: vit.depth,
        heads: vit.heads,
        decoder_width: facts.decoder_width,
        decoder_depth: facts.decoder_depth,
        // As wide as the encoder's: so it is in every registered variant.
        decoder_heads: (facts.decoder_width * vit.heads / vit.width).max(1),
        codebook_size: facts.codes,
        code_dim: facts.code_dim,
        teacher_dim: facts.teacher_width,
        ..TokenizerConfig::default()
    };
    config.validate().map_err(|error| Error::Config(format!("{spec}: {error}")))?;
    Ok(config)
}

/// The sizes of a published masked image model.
fn sizes_of_mim(state: &StateFile, spec: &str) -> Result<MimConfig, Error> {
    let (vit, Some(vocab_size)) = (state.vit()?, state.facts.vocabulary) else {
        return config_error(format!(
            "{spec} holds a {} model; expected one of masked image modeling, with its prediction head",
            state.facts.layout.kind
        ));
    };
    let plain = MimConfig { vit, vocab_size, patch_aggregation: false, ..MimConfig::default() };
    let Some(aggregation) = state.facts.aggregation else { return Ok(plain) };
    let Some(intermediate_layer) = aggregation.early_layer else {
        return config_error(format!(
            "{spec} does not tell which block its aggregation head looks at, and {} blocks are no published size",
            plain.vit.depth
        ));
    };
    let (head_layers, shared_lm_head) = (aggregation.head_layers, aggregation.shared_head);
    Ok(MimConfig { patch_aggregation: true, intermediate_layer, head_layers, shared_lm_head, ..plain })
}
