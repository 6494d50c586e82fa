//! A trained tokenizer from whatever file holds one.

use beit2_kernels::Backend;
use burn::module::Module;
use burn::tensor::DType;

use super::{TokenizerConfig, VqKd};
use crate::error::{Error, config_error};
use crate::params;
use crate::vit::VitConfig;
use crate::weights::{StateFile, WeightFile, check_stage, to_tensors, written_config};

/// A tokenizer for inference, with its sizes. `origin` names the file in messages; `variant` is a registered name for files
/// that do not say their sizes themselves, without which shapes tell them.
///
/// # Errors
/// A file of another model, of another stage, or that does not fit the sizes; a codebook that was never started.
pub fn load<B: Backend>(
    mut file: WeightFile,
    origin: &str,
    variant: Option<&str>,
    device: &B::Device,
) -> Result<(TokenizerConfig, VqKd<B>), Error> {
    check_stage(&file.metadata, origin, "tokenizer", "not a tokenizer")?;
    let known = match (written_config(&file.metadata, origin)?, variant) {
        (Some(config), _) => Some(config),
        (None, None) => None,
        (None, Some(variant)) => match TokenizerConfig::named(variant) {
            Some(config) => Some(config),
            None => {
                return config_error(format!("tokenizer.variant `{variant}` is not a registered tokenizer"));
            }
        },
    };
    drop_teacher(&mut file);
    let state = StateFile::new(file, origin)?;
    let config = match known {
        Some(config) => config,
        None => from_shapes(&state)?,
    };
    let model = VqKd::<B>::zeros(&config, device)?;
    let blame = state.blame();
    let model = params::load_strict(model, to_tensors(state.tensors), DType::F32, |_| false)
        .map_err(|error| blame.or(error))?
        .no_grad();
    if !model.quantize.is_initialised() {
        return config_error(format!(
            "the codebook in {origin} was never started; train that tokenizer further"
        ));
    }
    Ok((config, model))
}

/// Training files of the reference carry the teacher; a tokenizer does not need it.
pub(super) fn drop_teacher(file: &mut WeightFile) {
    file.tensors.retain(|name, _| {
        !["loss", "teacher_model.", "scaling_layer."].iter().any(|prefix| name.starts_with(prefix))
    });
}

/// The sizes of a published tokenizer.
pub(super) fn from_shapes(state: &StateFile) -> Result<TokenizerConfig, Error> {
    let origin = &state.origin;
    let Some(sizes) = state.summary.tokenizer else {
        return Err(Error::WrongModel {
            origin: origin.clone(),
            found: state.summary.layout.kind.to_string(),
            why: "not a tokenizer",
        });
    };
    let vit = VitConfig::from_shapes(state)?;
    let config = TokenizerConfig {
        image_size: vit.image_size,
        patch_size: vit.patch_size,
        in_chans: vit.in_chans,
        width: vit.width,
        depth: vit.depth,
        heads: vit.heads,
        decoder_width: sizes.decoder_width,
        decoder_depth: sizes.decoder_depth,
        // As wide as the encoder's: so it is in every registered variant.
        decoder_heads: (sizes.decoder_width * vit.heads / vit.width).max(1),
        codebook_size: sizes.codebook_size,
        code_dim: sizes.code_dim,
        teacher_dim: sizes.teacher_dim,
        ..TokenizerConfig::default()
    };
    config.validate().map_err(|error| Error::Config(format!("{origin}: {error}")))?;
    Ok(config)
}
