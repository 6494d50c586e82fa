//! Pyramid and heads of a segmentation model.

use super::transformer::{Kept, Part, dense, matmul};
use crate::segment::SegmenterConfig;

/// Adds up layers over maps of `pixels`.
#[derive(Default)]
struct Sum {
    parameters: usize,
    flops: f64,
    values: f64,
}

impl Sum {
    /// A convolution with a norm behind it: the norm keeps its input, the next layer its output.
    fn conv(&mut self, pixels: usize, taps: usize, inputs: usize, outputs: usize) {
        self.parameters += taps * inputs * outputs + 2 * outputs;
        self.flops += matmul(pixels, taps * inputs, outputs);
        self.keep(pixels, 2 * outputs);
    }

    /// A transposed convolution from `pixels`.
    fn doubled(&mut self, pixels: usize, width: usize) {
        self.parameters += 4 * width * width + width;
        self.flops += matmul(pixels, width, 4 * width);
        self.keep(4 * pixels, width);
    }

    fn classifier(&mut self, pixels: usize, channels: usize, classes: usize) {
        self.parameters += dense(channels, classes);
        self.flops += matmul(pixels, channels, classes);
        // The dropped-out input, the logits and their gradient.
        self.keep(pixels, channels + 3 * classes);
    }

    fn keep(&mut self, pixels: usize, channels: usize) {
        self.values += (pixels * channels) as f64;
    }
}

/// Everything behind the trunk.
pub(super) fn heads(config: &SegmenterConfig) -> Part {
    let (width, channels, classes) = (config.vit.width, config.channels, config.class_count());
    let side = config.vit.image_size;
    // Pixels of the maps of stride 4, 8, 16 and 32.
    let pixels = [4, 8, 16, 32].map(|stride| (side / stride) * (side / stride));
    let mut sum = Sum::default();
    // The pyramid: from tokens of 16 pixels to stride 4 and 8, or of 8 pixels to stride 4.
    match config.vit.patch_size {
        8 => sum.doubled(pixels[1], width),
        _ => {
            sum.doubled(pixels[2], width);
            sum.parameters += 2 * width;
            sum.keep(pixels[1], 2 * width);
            sum.doubled(pixels[1], width);
            sum.doubled(pixels[2], width);
        }
    }
    // The decode head.
    for &scale in &config.pool_scales {
        sum.conv(scale * scale, 1, width, channels);
    }
    let pooled = width + config.pool_scales.len() * channels;
    sum.keep(pixels[3], 2 * pooled);
    sum.conv(pixels[3], 9, pooled, channels);
    for &map in &pixels[..3] {
        sum.conv(map, 1, width, channels);
        // The map from below, enlarged, and the sum.
        sum.keep(map, 2 * channels);
        sum.conv(map, 9, channels, channels);
    }
    // All maps at stride 4, side by side.
    sum.keep(pixels[0], 4 * channels);
    sum.conv(pixels[0], 9, 4 * channels, channels);
    sum.classifier(pixels[0], channels, classes);
    if config.has_auxiliary() {
        let map = pixels[config.aux_index];
        sum.conv(map, 9, width, config.aux_channels);
        sum.classifier(map, config.aux_channels, classes);
    }
    // The backward pass begins with the widest map: its gradient comes on top.
    sum.keep(pixels[0], 4 * channels);
    let Sum { parameters, flops, values } = sum;
    Part { parameters, flops, kept: Kept { values, operands: 0.0 } }
}
