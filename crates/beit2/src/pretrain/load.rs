//! A pretrained model from whatever file holds one.

use beit2_kernels::Backend;
use burn::tensor::DType;

use super::{MimConfig, MimModel};
use crate::error::{Error, config_error};
use crate::params;
use crate::vit::VitConfig;
use crate::weights::{StateFile, WeightFile, check_stage, to_tensors, written_config};

const WANTED: &str = "not one of masked image modeling with its prediction head";

/// A pretrained masked image model, with its sizes. `origin` names the file in messages.
///
/// # Errors
/// A file of another model, of another stage, or that does not fit the sizes.
pub fn load<B: Backend>(
    file: WeightFile,
    origin: &str,
    device: &B::Device,
) -> Result<(MimConfig, MimModel<B>), Error> {
    check_stage(&file.metadata, origin, "pretrain", WANTED)?;
    let written = written_config(&file.metadata, origin)?;
    let state = StateFile::new(file, origin)?;
    let config = match written {
        Some(config) => config,
        None => from_shapes(&state)?,
    };
    let model = MimModel::<B>::zeros(&config, device)?;
    let blame = state.blame();
    let model = params::load_strict(model, to_tensors(state.tensors), DType::F32, |_| false);
    Ok((config, model.map_err(|error| blame.or(error))?))
}

/// The sizes of a published masked image model.
fn from_shapes(state: &StateFile) -> Result<MimConfig, Error> {
    let origin = &state.origin;
    let Some(vocab_size) = state.summary.vocab_size else {
        return Err(Error::WrongModel {
            origin: origin.clone(),
            found: state.summary.layout.kind.to_string(),
            why: WANTED,
        });
    };
    let vit = VitConfig::from_shapes(state)?;
    let plain = MimConfig { vit, vocab_size, patch_aggregation: false, ..MimConfig::default() };
    let Some(aggregation) = state.summary.patch_aggregation else { return Ok(plain) };
    let Some(intermediate_layer) = aggregation.intermediate_layer else {
        return config_error(format!(
            "{origin} does not tell which block its aggregation head reads, and {} blocks are no published size",
            plain.vit.depth
        ));
    };
    let (head_layers, shared_lm_head) = (aggregation.head_layers, aggregation.shared_lm_head);
    Ok(MimConfig { patch_aggregation: true, intermediate_layer, head_layers, shared_lm_head, ..plain })
}
