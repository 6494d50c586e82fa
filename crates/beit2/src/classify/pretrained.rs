//! The sizes of the pretrained model that training starts from, or whose features are taken.

use crate::error::Error;
use crate::pretrain::MimConfig;
use crate::tokenizer::TokenizerConfig;
use crate::vit::VitConfig;
use crate::weights::{StateFile, written_config};

use super::ClassifierConfig;

/// The Transformer of a masked image model, a tokenizer (its encoder), a classifier or a bare Vision Transformer: as a
/// checkpoint of this software says, whose configuration knows what shapes do not show, or as the shapes tell.
pub(crate) fn sizes(state: &StateFile) -> Result<VitConfig, Error> {
    let (metadata, origin) = (&state.metadata, &state.origin);
    let written = match metadata.get("beit2.stage").map(String::as_str) {
        Some("pretrain") => written_config::<MimConfig>(metadata, origin)?.map(|config| config.vit),
        Some("tokenizer") => {
            written_config::<TokenizerConfig>(metadata, origin)?.map(|config| config.encoder())
        }
        Some("finetune") => written_config::<ClassifierConfig>(metadata, origin)?.map(|config| config.vit),
        _ => None,
    };
    match written {
        // What a user says counts, also for files that say it themselves.
        Some(sizes) => {
            let normalization = state.beside.normalization.clone().or(sizes.normalization);
            Ok(VitConfig { normalization, ..sizes })
        }
        None => VitConfig::from_shapes(state),
    }
}
