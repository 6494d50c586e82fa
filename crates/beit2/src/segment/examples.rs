//! What a report shows of a segmentation model.

use beit2_run::report::{PixelClass, RgbImage, Segmented};

use super::{SegmentExample, SegmentScores, SegmenterConfig, compared};

/// Images that are shown.
pub(crate) const EXAMPLES: usize = 6;

/// An image with its mask and its prediction side by side.
pub(crate) fn drawn(example: &SegmentExample, palette: &[[u8; 3]]) -> RgbImage {
    compared(&example.image, &example.mask, &example.predicted, palette)
}

/// Scores and images for the report.
pub(crate) fn segmented(
    config: &SegmenterConfig,
    scores: &SegmentScores,
    images: Vec<RgbImage>,
) -> Segmented {
    let colours = config.colours();
    let score = |shares: &[f64], class: usize| shares.get(class).copied().filter(|share| !share.is_nan());
    let class = |class: usize| PixelClass {
        name: config.class_name(class),
        colour: colours.get(class).copied().unwrap_or_default(),
        iou: score(&scores.iou, class),
        accuracy: score(&scores.acc, class),
    };
    Segmented { classes: (0..config.class_count()).map(class).collect(), images }
}
