//! `[init]` of tokenizer training and of pretraining: weights that training goes on from.

use serde::{Deserialize, Serialize};

use super::Assets;
use super::recipe::SCRATCH;
use crate::error::{Error, config_error};
use crate::init::STD;
use crate::vit::VitConfig;
use crate::weights::WeightFile;

/// `[init]`: what training starts from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InitWeights {
    /// A run, checkpoint or weight file of a model of this stage; absent (or [`SCRATCH`]): random numbers.
    pub weights: Option<String>,
    /// Take the model's sizes from those weights. Otherwise they must be the recipe's.
    pub sizes_from_weights: bool,
    /// Take the image size from them too.
    pub image_size_from_weights: bool,
    /// Standard deviation of what starts from random numbers: 0.02 in the paper, whose narrowest model has 768 columns. A narrow
    /// model learns faster from larger numbers.
    pub std: f64,
}

impl Default for InitWeights {
    fn default() -> Self {
        Self { weights: None, sizes_from_weights: false, image_size_from_weights: false, std: STD }
    }
}

impl InitWeights {
    /// Checks that it can be a start.
    ///
    /// # Errors
    /// A deviation that gives no numbers to start from.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        match self.std > 0.0 && self.std <= 1.0 {
            true => Ok(()),
            false => config_error(format!(
                "init.std is {}; it must be above 0 and at most 1, such as {STD}, the paper's",
                self.std
            )),
        }
    }

    /// The weights by name; `None` where training starts from random numbers.
    pub fn named(&self) -> Option<&str> {
        self.weights.as_deref().filter(|weights| !weights.is_empty() && *weights != SCRATCH)
    }

    /// Their file, with the name for messages; `None` where training starts from random numbers.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn open(&self, assets: &dyn Assets) -> Result<Option<(WeightFile, &str)>, Error> {
        self.named().map(|spec| Ok((assets.weights(spec)?, spec))).transpose()
    }
}

/// A size by its name: in the weights, and in the recipe.
pub(crate) type SizePair = (&'static str, usize, usize);

/// The sizes of a Transformer that no tensor can be fitted to: all but the image size and the channels.
pub(crate) fn vit_sizes(found: &VitConfig, wanted: &VitConfig) -> Vec<SizePair> {
    let of = |vit: &VitConfig| {
        let yes = usize::from;
        [
            ("width", vit.width),
            ("depth", vit.depth),
            ("heads", vit.heads),
            ("patch size", vit.patch_size),
            ("MLP width", vit.mlp_hidden()),
            ("layer scale", yes(vit.layer_scale_init > 0.0)),
            ("query and value biases", yes(vit.qkv_bias)),
            ("absolute positions", yes(vit.abs_pos_emb)),
        ]
    };
    of(found).into_iter().zip(of(wanted)).map(|((name, found), (_, wanted))| (name, found, wanted)).collect()
}

/// Refuses weights of other sizes than the recipe's.
///
/// # Errors
/// One sentence with all sizes that differ.
pub(crate) fn check_sizes(origin: &str, pairs: &[SizePair]) -> Result<(), Error> {
    let differing: Vec<String> = pairs
        .iter()
        .filter(|(_, found, wanted)| found != wanted)
        .map(|(name, found, wanted)| format!("{name} {found} instead of {wanted}"))
        .collect();
    match differing.is_empty() {
        true => Ok(()),
        false => config_error(format!(
            "{origin} is of another size than this recipe's model: {}; name weights of the recipe's sizes, or take those \
             of the weights with init.sizes_from_weights = true",
            differing.join(", ")
        )),
    }
}
