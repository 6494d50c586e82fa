//! Opens a segmentation model for `eval` and `predict`.

use beit2::segment::{InferConfig, Segmenter, SegmenterOptions};
use beit2::train::Assets;
use beit2_kernels::Backend;

use crate::flags::{InferArgs, PrecisionArgs};

/// Opens a model, with the options that it runs with.
pub(super) fn open<B: Backend>(
    weights: &str,
    infer: &InferArgs,
    precision: PrecisionArgs,
    assets: &dyn Assets,
    device: &B::Device,
) -> anyhow::Result<(Segmenter<B>, InferConfig)> {
    let options = SegmenterOptions { precision: precision.precision, ..SegmenterOptions::default() };
    let segmenter = Segmenter::<B>::from_file(assets.weights(weights)?, weights, &options, device)?;
    let infer = infer.on(segmenter.infer.clone());
    infer.validate(segmenter.config.vit.image_size)?;
    Ok((segmenter, infer))
}
