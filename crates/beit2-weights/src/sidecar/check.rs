//! Files beside the weights against the weights themselves.

use super::{Sidecar, Sizes};
use crate::convert::HF_SEGMENTATION;
use crate::inspect::{ModelSummary, Pooling, RelativeBias};
use crate::layout::{Family, Kind, LayoutError};

impl Sidecar {
    /// Compares with what the tensors of a BEiT show.
    ///
    /// # Errors
    /// The first thing that contradicts them, or that no BEiT of this software has.
    pub fn check(&self, summary: &ModelSummary) -> Result<(), LayoutError> {
        if self.is_empty() {
            // Without files the number is what a user says.
            return match (self.sizes.heads, summary.heads) {
                (Some(said), Some(found)) if said != found => Err(LayoutError::Unsupported(format!(
                    "{said} attention heads were asked for, but the weights show {found}; leave the number out"
                ))),
                _ => Ok(()),
            };
        }
        let sizes = &self.sizes;
        let file = self.files.first().map_or("config.json", String::as_str);
        let wrong = |what: &str, said: String, found: String| {
            Err(LayoutError::Unsupported(format!(
                "{file} beside the weights says {what} {said}, but the tensors show {found}; put the configuration of these \
                 weights there, or take it away"
            )))
        };
        let Sizes { width, depth, heads, mlp_width, patch, channels, image_px, .. } = *sizes;
        // There it has one block more, which is not part of the model ([`crate::convert::convert`]).
        let spare = summary.layout == HF_SEGMENTATION;
        let depth = depth.map(|depth| depth.saturating_sub(usize::from(spare)));
        for (what, said, found) in [
            ("a width of", width, Some(summary.width)),
            ("a number of blocks of", depth, Some(summary.depth)),
            ("a number of attention heads of", heads, summary.heads),
            ("an MLP width of", mlp_width, Some(summary.mlp_width)),
            ("a patch side of", patch, Some(summary.patch)),
            ("a number of channels of", channels, Some(summary.channels)),
            ("an image side of", image_px, summary.image_px()),
        ] {
            if let (Some(said), Some(found)) = (said, found)
                && said != found
            {
                return wrong(what, said.to_string(), found.to_string());
            }
        }
        // Fewer names than classes are names that someone did not finish; they are not used, and whoever reads the file says so.
        let said = self.classes.filter(|_| summary.layout.kind == Kind::Classifier);
        if let (Some(said), Some(found)) = (said, summary.classes)
            && said > found
        {
            return wrong("a number of classes of", said.to_string(), found.to_string());
        }
        let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        let bias = summary.bias;
        // A masked image model and one without pooling keep their final norm elsewhere, whatever the configuration says.
        let pooled =
            matches!(summary.layout.kind, Kind::Classifier | Kind::Backbone) && summary.vocab_size.is_none();
        let mean = summary.pooling.filter(|_| pooled).map(|pooling| pooling == Pooling::Mean);
        for (what, said, found) in [
            ("absolute position embedding:", sizes.abs_pos, Some(summary.abs_pos)),
            ("a shared relative position bias:", sizes.shared_bias, Some(bias == RelativeBias::Shared)),
            (
                "a relative position bias in every block:",
                sizes.block_bias,
                Some(bias == RelativeBias::PerBlock),
            ),
            ("layer scale:", sizes.layer_scale, Some(summary.layer_scale)),
            ("mean pooling:", sizes.mean_pooling, mean),
        ] {
            if let (Some(said), Some(found)) = (said, found)
                && said != found
            {
                return wrong(what, yes_no(said), yes_no(found));
            }
        }
        if let Some(heads) = heads.filter(|heads| *heads == 0 || !summary.width.is_multiple_of(*heads)) {
            return wrong(
                "a number of attention heads of",
                heads.to_string(),
                format!("a width of {}", summary.width),
            );
        }
        if let Some(activation) =
            self.activation.as_deref().filter(|_| summary.layout.family == Family::HuggingFace)
            && !matches!(activation, "gelu" | "gelu_python")
        {
            return Err(LayoutError::Unsupported(format!(
                "{file} beside the weights says hidden_act `{activation}`; only `gelu` is offered for BEiT"
            )));
        }
        if let Some(normalization) = &self.normalization
            && normalization.mean.len() != summary.channels
        {
            let (said, found) = (normalization.mean.len(), summary.channels);
            return wrong("mean and standard deviation of", format!("{said} channels"), found.to_string());
        }
        Ok(())
    }
}
