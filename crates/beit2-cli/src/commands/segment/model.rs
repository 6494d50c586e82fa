//! Opens a segmentation model for `eval` and `predict`.

use beit2::segment::{InferConfig, Segmenter, SegmenterConfig, SegmenterOptions};
use beit2::train::Assets;
use beit2_kernels::Backend;

use crate::errors::usage;
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

/// The masks' classes must be the model's, in number and, where both have them, in names.
pub(super) fn check_classes(
    data: &str,
    found: &[String],
    weights: &str,
    config: &SegmenterConfig,
) -> anyhow::Result<()> {
    if found.len() != config.class_count() {
        return usage(format!(
            "{data} has {} classes, the model of {weights} has {}; both must be the same classes in the same order",
            found.len(),
            config.class_count()
        ));
    }
    match found.iter().zip(&config.class_names).position(|(a, b)| a != b) {
        Some(at) => usage(format!(
            "class {at} is `{}` in {data}, but the model of {weights} was trained with `{}` there; \
             use the same list of classes",
            found[at], config.class_names[at]
        )),
        None => Ok(()),
    }
}
