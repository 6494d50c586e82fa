//! The decode head: pyramid pooling on the smallest map, a feature pyramid downwards, all maps fused at stride 4.

use beit2_kernels::{self as kernels, Backend, Precision};
use burn::module::Module;
use burn::tensor::Tensor;

use super::config::{LAST_STRIDE, LEVELS, SegmenterConfig};
use super::layers::{BatchNorm, Conv, ConvBnRelu, Pass};

/// One branch of the pyramid pooling: means over a coarse grid, then a 1×1 convolution.
#[derive(Module, Debug)]
pub struct PoolBranch<B: burn::tensor::backend::Backend> {
    /// The convolution; position 0 of the checkpoints' `Sequential` is the pooling.
    pub layer1: ConvBnRelu<B>,
    scale: usize,
}

/// mmsegmentation's `UPerHead`.
#[derive(Module, Debug)]
pub struct UperHead<B: burn::tensor::backend::Backend> {
    /// The classifier, 1×1.
    pub conv_seg: Conv<B>,
    /// Pyramid pooling, one branch for each scale.
    pub psp_modules: Vec<PoolBranch<B>>,
    /// Joins the smallest map with its pooled forms, 3×3.
    pub bottleneck: ConvBnRelu<B>,
    /// 1×1 convolutions of the three larger maps.
    pub lateral_convs: Vec<ConvBnRelu<B>>,
    /// 3×3 convolutions after the addition downwards.
    pub fpn_convs: Vec<ConvBnRelu<B>>,
    /// Joins all maps at stride 4, 3×3.
    pub fpn_bottleneck: ConvBnRelu<B>,
}

impl<B: Backend> UperHead<B> {
    /// A head of zeros.
    pub(super) fn new(config: &SegmenterConfig, device: &B::Device) -> Self {
        let (width, channels) = (config.vit.width, config.channels);
        let branch = |&scale| PoolBranch { layer1: ConvBnRelu::pixel(width, channels, device), scale };
        let scales = &config.pool_scales;
        let laterals = || 0..LEVELS - 1;
        Self {
            conv_seg: Conv::pixel(channels, config.class_count(), true, device),
            psp_modules: scales.iter().map(branch).collect(),
            bottleneck: ConvBnRelu::square(width + scales.len() * channels, channels, device),
            lateral_convs: laterals().map(|_| ConvBnRelu::pixel(width, channels, device)).collect(),
            fpn_convs: laterals().map(|_| ConvBnRelu::square(channels, channels, device)).collect(),
            fpn_bottleneck: ConvBnRelu::square(LEVELS * channels, channels, device),
        }
    }

    /// Maps of stride 4, 8, 16 and 32 → logits at stride 4. `dropout`: a factor for each channel of each image.
    ///
    /// # Shapes
    /// `[B, h, w, D]` … `[B, h/8, w/8, D]`, `[B, 1, 1, channels]` → `[B, h, w, classes]`.
    pub fn forward(
        &self,
        maps: [Tensor<B, 4>; LEVELS],
        dropout: Option<&Tensor<B, 4>>,
        pass: &mut Pass<'_, B>,
    ) -> Tensor<B, 4> {
        let [.., top] = &maps;
        let top = top.clone();
        let mut levels: Vec<Tensor<B, 4>> =
            maps.into_iter().zip(&self.lateral_convs).map(|(map, conv)| conv.forward(map, pass)).collect();
        levels.push(self.pooled(top, pass));
        for level in (1..LEVELS).rev() {
            levels[level - 1] = kernels::resize_add(levels[level - 1].clone(), levels[level].clone());
        }
        let [_, height, width, _] = levels[0].dims();
        let fused = levels
            .into_iter()
            .enumerate()
            .map(|(level, map)| match self.fpn_convs.get(level) {
                Some(conv) => conv.forward(map, pass),
                None => map,
            })
            .collect();
        let fused = kernels::resize_concat(fused, height, width);
        let fused = self.fpn_bottleneck.forward(fused, pass);
        classify(&self.conv_seg, fused, dropout)
    }

    /// The smallest map concatenated with its means over coarse grids.
    fn pooled(&self, top: Tensor<B, 4>, pass: &mut Pass<'_, B>) -> Tensor<B, 4> {
        let [_, height, width, _] = top.dims();
        let mut parts = vec![top.clone()];
        parts.extend(self.psp_modules.iter().map(|branch| {
            let cells = kernels::cell_means(top.clone(), branch.scale);
            branch.layer1.forward(cells, pass)
        }));
        self.bottleneck.forward(kernels::resize_concat(parts, height, width), pass)
    }

    /// Pixels of the smallest map that a norm sees, for images of this size.
    pub(super) fn smallest_map(&self, height: usize, width: usize) -> usize {
        let pooled = self.psp_modules.iter().map(|branch| branch.scale * branch.scale);
        pooled.fold((height / LAST_STRIDE) * (width / LAST_STRIDE), usize::min)
    }

    /// Runs the convolutions before the classifier in `precision` from now on.
    pub(super) fn set_precision(&mut self, precision: Precision) {
        self.psp_modules
            .iter_mut()
            .map(|branch| &mut branch.layer1)
            .chain(self.lateral_convs.iter_mut())
            .chain(self.fpn_convs.iter_mut())
            .chain([&mut self.bottleneck, &mut self.fpn_bottleneck])
            .for_each(|layer| layer.conv.precision = precision);
    }

    /// All norms, in order of execution.
    pub(super) fn norms(&mut self) -> impl Iterator<Item = &mut BatchNorm<B>> {
        self.lateral_convs
            .iter_mut()
            .chain(self.psp_modules.iter_mut().map(|branch| &mut branch.layer1))
            .chain([&mut self.bottleneck])
            .chain(self.fpn_convs.iter_mut())
            .chain([&mut self.fpn_bottleneck])
            .map(|conv| &mut conv.bn)
    }
}

/// Dropout of whole channels, then the classifier.
pub(super) fn classify<B: Backend>(
    conv_seg: &Conv<B>,
    x: Tensor<B, 4>,
    dropout: Option<&Tensor<B, 4>>,
) -> Tensor<B, 4> {
    conv_seg.forward(match dropout {
        Some(factors) => kernels::scale_channels(x, factors.clone()),
        None => x,
    })
}
