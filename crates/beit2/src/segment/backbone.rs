//! A Vision Transformer whose blocks give maps of four sizes (docs/method.md §5).

use beit2_kernels::{self as kernels, Backend, Precision};
use burn::module::Module;
use burn::tensor::Tensor;

use super::config::{LEVELS, SegmenterConfig};
use super::layers::{BatchNorm, Deconv, Pass};
use crate::error::{Error, config_error};
use crate::vit::{DropPath, RelPosBias, Trunk};

/// The layers that make a larger map, at their positions in the checkpoints' `Sequential`.
#[derive(Module, Debug)]
pub struct Upscale<B: burn::tensor::backend::Backend> {
    /// Doubles the size.
    pub layer0: Deconv<B>,
    /// Norm before the second doubling; a GELU follows.
    pub layer1: Option<BatchNorm<B>>,
    /// Doubles the size again.
    pub layer3: Option<Deconv<B>>,
}

impl<B: Backend> Upscale<B> {
    fn twice(width: usize, device: &B::Device) -> Self {
        Self { layer0: Deconv::new(width, width, device), layer1: None, layer3: None }
    }

    fn four_times(width: usize, device: &B::Device) -> Self {
        Self {
            layer0: Deconv::new(width, width, device),
            layer1: Some(BatchNorm::new(width, device)),
            layer3: Some(Deconv::new(width, width, device)),
        }
    }

    fn forward(&self, x: Tensor<B, 4>, pass: &mut Pass<'_, B>) -> Tensor<B, 4> {
        let x = self.layer0.forward(x);
        match (&self.layer1, &self.layer3) {
            (Some(norm), Some(deconv)) => deconv.forward(kernels::gelu(norm.forward(x, false, pass))),
            _ => x,
        }
    }
}

/// Trunk and pyramid.
#[derive(Module, Debug)]
pub struct Backbone<B: burn::tensor::backend::Backend> {
    /// Embedding and blocks; there is no final norm.
    pub trunk: Trunk<B>,
    /// What makes the map of stride 4.
    pub fpn1: Upscale<B>,
    /// What makes the map of stride 8 from tokens of stride 16; patches of 8 pixels need nothing.
    pub fpn2: Option<Upscale<B>>,
    out_indices: [usize; LEVELS],
    patch: usize,
}

impl<B: Backend> Backbone<B> {
    /// A backbone of zeros; the configuration is valid.
    pub(super) fn new(config: &SegmenterConfig, device: &B::Device) -> Self {
        let vit = &config.vit;
        let (fpn1, fpn2) = match vit.patch_size {
            8 => (Upscale::twice(vit.width, device), None),
            _ => (Upscale::four_times(vit.width, device), Some(Upscale::twice(vit.width, device))),
        };
        let (out_indices, patch) = (config.out_indices, vit.patch_size);
        Self { trunk: Trunk::new(vit, device), fpn1, fpn2, out_indices, patch }
    }

    /// The grid of patches that the bias tables are made for, (rows, columns); `None` without tables.
    fn table_grid(&self) -> Option<(usize, usize)> {
        let own = self.trunk.blocks.first().and_then(|block| block.attn.rel_pos.as_ref());
        own.or(self.trunk.rel_pos_bias.as_ref()).map(RelPosBias::grid)
    }

    /// The same backbone for images of another grid of patches, for inference.
    ///
    /// # Errors
    /// Position tables that cannot be resized.
    pub(super) fn on_grid(mut self, rows: usize, cols: usize) -> Result<Self, Error> {
        let moved = |bias: Option<RelPosBias<B>>| bias.map(|bias| bias.on_grid(rows, cols)).transpose();
        self.trunk.rel_pos_bias = moved(self.trunk.rel_pos_bias)?;
        let mut first: Option<RelPosBias<B>> = None;
        for block in &mut self.trunk.blocks {
            block.attn.rel_pos = moved(block.attn.rel_pos.take())?;
            match (&mut block.attn.rel_pos, &first) {
                (Some(own), Some(first)) => own.share_index(first),
                (own, _) => first = own.clone(),
            }
        }
        Ok(self)
    }

    /// Runs the trunk's matmuls in `precision` from now on, and those of the pyramid in `of_maps`.
    pub(super) fn set_precision(&mut self, precision: Precision, of_maps: Precision) {
        self.trunk.set_precision(precision);
        for upscale in [Some(&mut self.fpn1), self.fpn2.as_mut()].into_iter().flatten() {
            upscale.layer0.precision = of_maps;
            if let Some(second) = &mut upscale.layer3 {
                second.precision = of_maps;
            }
        }
    }

    /// For a model whose weights do not change any more.
    pub(super) fn freeze(self) -> Self {
        Self { trunk: self.trunk.freeze_matmuls(), ..self }
    }

    /// Whether images of this size can be seen as a whole.
    ///
    /// # Errors
    /// A side that is no multiple of the patch, an image too small for the pyramid, or one that is not of the
    /// size that the relative position tables are for.
    pub fn check_size(&self, height: usize, width: usize) -> Result<(), Error> {
        let patch = self.patch;
        if !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
            return config_error(format!(
                "images of {width}×{height} px are no multiple of the patch of {patch} px"
            ));
        }
        super::config::check_pyramid(height, width)?;
        match self.table_grid() {
            Some((rows, cols)) if (rows * patch, cols * patch) != (height, width) => config_error(format!(
                "images of {width}×{height} px do not fit relative position tables for {}×{} px; use windows of \
                 that size, or open the model for another one",
                cols * patch,
                rows * patch
            )),
            _ => Ok(()),
        }
    }

    /// Maps of stride 4, 8, 16 and 32.
    ///
    /// # Shapes
    /// `x [B, 3, H, W]` → `[B, H/4, W/4, D]`, … `[B, H/32, W/32, D]`.
    pub fn forward(
        &self,
        x: Tensor<B, 4>,
        drop: &DropPath<B>,
        pass: &mut Pass<'_, B>,
    ) -> [Tensor<B, 4>; LEVELS] {
        let [batch, _, height, width] = x.dims();
        let (rows, cols) = (height / self.patch, width / self.patch);
        let bias = self.trunk.shared_bias();
        let mut tokens = self.trunk.embed(x, None);
        let mut next = 0;
        let [first, second, third, fourth] = self.out_indices.map(|block| {
            tokens = self.trunk.run(tokens.clone(), next..block + 1, None, bias.as_ref(), drop);
            next = block + 1;
            let width = tokens.dims()[2];
            kernels::narrow_tokens(kernels::cut_output(tokens.clone()), 1, rows * cols)
                .reshape([batch, rows, cols, width])
        });
        let first = self.fpn1.forward(first, pass);
        match &self.fpn2 {
            Some(twice) => [first, twice.forward(second, pass), third, kernels::max_pool(fourth, 2)],
            None => [first, second, kernels::max_pool(third, 2), kernels::max_pool(fourth, 4)],
        }
    }

    /// All norms, in order of execution.
    pub(super) fn norms(&mut self) -> impl Iterator<Item = &mut BatchNorm<B>> {
        self.fpn1.layer1.iter_mut()
    }
}
