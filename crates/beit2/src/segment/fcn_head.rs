//! The auxiliary head: one 3×3 convolution on one map. It helps training and is not used afterwards.

use beit2_kernels::{Backend, Precision};
use burn::module::Module;
use burn::tensor::Tensor;

use super::config::SegmenterConfig;
use super::layers::{BatchNorm, Conv, ConvBnRelu, Pass};
use super::uper_head::classify;

/// mmsegmentation's `FCNHead` with one convolution.
#[derive(Module, Debug)]
pub struct FcnHead<B: burn::tensor::backend::Backend> {
    /// The classifier, 1×1.
    pub conv_seg: Conv<B>,
    /// The convolution.
    pub convs: Vec<ConvBnRelu<B>>,
}

impl<B: Backend> FcnHead<B> {
    /// A head of zeros.
    pub(super) fn new(config: &SegmenterConfig, device: &B::Device) -> Self {
        Self {
            conv_seg: Conv::pixel(config.aux_channels, config.class_count(), true, device),
            convs: vec![ConvBnRelu::square(config.vit.width, config.aux_channels, device)],
        }
    }

    /// `dropout`: a factor for each channel of each image.
    ///
    /// # Shapes
    /// `[B, h, w, D]`, `[B, 1, 1, channels]` → `[B, h, w, classes]`.
    pub fn forward(
        &self,
        map: Tensor<B, 4>,
        dropout: Option<&Tensor<B, 4>>,
        pass: &mut Pass<'_, B>,
    ) -> Tensor<B, 4> {
        let x = self.convs.iter().fold(map, |x, conv| conv.forward(x, pass));
        classify(&self.conv_seg, x, dropout)
    }

    /// Runs the convolutions before the classifier in `precision` from now on.
    pub(super) fn set_precision(&mut self, precision: Precision) {
        self.convs.iter_mut().for_each(|layer| layer.conv.precision = precision);
    }

    /// All norms, in order of execution.
    pub(super) fn norms(&mut self) -> impl Iterator<Item = &mut BatchNorm<B>> {
        self.convs.iter_mut().map(|conv| &mut conv.bn)
    }
}
