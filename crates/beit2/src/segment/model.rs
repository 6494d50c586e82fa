//! The model: backbone, decode head and auxiliary head.

use beit2_kernels::{Backend, Precision, Rank, conv_precision, upload};
use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use rand::{Rng, RngExt};

use super::backbone::Backbone;
use super::config::{LEVELS, SegmenterConfig};
use super::fcn_head::FcnHead;
use super::layers::{BatchNorm, Moments, Pass, check_batch};
use super::uper_head::UperHead;
use crate::error::{Error, config_error};
use crate::init::{InitRule, initialise};
use crate::vit::DropPath;

/// UPerNet on a Vision Transformer (docs/method.md §5).
#[derive(Module, Debug)]
pub struct UperNet<B: burn::tensor::backend::Backend> {
    /// Trunk and pyramid.
    pub backbone: Backbone<B>,
    /// The head whose logits count.
    pub decode_head: UperHead<B>,
    /// The head that helps training.
    pub auxiliary_head: Option<FcnHead<B>>,
    aux_index: usize,
}

/// The factors on the channels before each head's classifier, `[B, 1, 1, channels]`: 0 for a dropped channel,
/// `1/(1−p)` for a kept one (PyTorch's `Dropout2d`).
#[derive(Debug, Clone)]
pub struct HeadDropout<B: Backend> {
    decode: Option<Tensor<B, 4>>,
    auxiliary: Option<Tensor<B, 4>>,
}

impl<B: Backend> HeadDropout<B> {
    /// Nothing is dropped.
    pub fn none() -> Self {
        Self { decode: None, auxiliary: None }
    }

    /// Draws the factors of one pass.
    pub fn sample(config: &SegmenterConfig, batch: usize, rng: &mut impl Rng, device: &B::Device) -> Self {
        if config.dropout == 0.0 {
            return Self::none();
        }
        let keep = 1.0 - config.dropout;
        let mut draw = |channels: usize| {
            let factor = |u: f64| if u < keep { keep.recip() as f32 } else { 0.0 };
            let factors: Vec<f32> = (0..batch * channels).map(|_| factor(rng.random())).collect();
            upload(TensorData::new(factors, [batch, 1, 1, channels]), device)
        };
        let decode = Some(draw(config.channels));
        Self { decode, auxiliary: config.has_auxiliary().then(|| draw(config.aux_channels)) }
    }
}

/// What a training pass gives.
#[derive(Debug, Clone)]
pub struct TrainLogits<B: Backend> {
    /// Of the decode head, `[B, H/4, W/4, classes]`.
    pub decode: Tensor<B, 4>,
    /// Of the auxiliary head, at the stride of its map.
    pub auxiliary: Option<Tensor<B, 4>>,
    /// What the batch norms saw, for [`UperNet::record`].
    pub statistics: Vec<Moments<B>>,
}

impl<B: Backend> UperNet<B> {
    /// A model of zeros; values come from [`UperNet::initialise`] or a file.
    ///
    /// # Errors
    /// Sizes that do not fit each other.
    pub fn zeros(config: &SegmenterConfig, device: &B::Device) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self {
            backbone: Backbone::new(config, device),
            decode_head: UperHead::new(config, device),
            auxiliary_head: config.has_auxiliary().then(|| FcnHead::new(config, device)),
            aux_index: config.aux_index,
        })
    }

    /// Fills every trained parameter, as a fresh model of the reference has it ([`InitRule::Segment`]).
    pub fn initialise(self, config: &SegmenterConfig, seed: u64) -> Self {
        initialise(self, InitRule::Segment { gamma: config.vit.layer_scale_init }, seed)
    }

    /// Runs the trunk's matmuls in `precision` from now on, and those of pyramid and heads in the one that convolutions have
    /// then ([`conv_precision`]): f32 on the CPU. The classifiers stay in f32.
    pub fn set_precision(&mut self, precision: Precision) {
        let device = self.decode_head.conv_seg.weight.val().device();
        let of_maps = conv_precision::<B>(&device, precision);
        self.backbone.set_precision(precision, of_maps);
        self.decode_head.set_precision(of_maps);
        if let Some(head) = &mut self.auxiliary_head {
            head.set_precision(of_maps);
        }
    }

    /// For a model whose weights do not change any more: those of the trunk are packed, as
    /// [`VisionTransformer::freeze`](crate::vit::VisionTransformer::freeze) does it. Other grids stay possible
    /// ([`UperNet::on_grid`]).
    #[must_use]
    pub fn freeze(self) -> Self {
        Self { backbone: self.backbone.freeze(), ..self }
    }

    /// The four maps of the backbone in evaluation, `[B, H/4, W/4, D]` … `[B, H/32, W/32, D]`.
    ///
    /// # Errors
    /// Images of a size that the model cannot see as a whole, see [`Backbone::check_size`].
    pub fn features(&self, x: Tensor<B, 4>) -> Result<[Tensor<B, 4>; LEVELS], Error> {
        let [_, _, height, width] = x.dims();
        self.backbone.check_size(height, width)?;
        Ok(self.backbone.forward(x, &DropPath::none(), &mut Pass::Evaluate))
    }

    /// Logits of the decode head in evaluation.
    ///
    /// # Shapes
    /// Standardised images `[B, 3, H, W]` → `[B, H/4, W/4, classes]`.
    ///
    /// # Errors
    /// As [`UperNet::features`].
    pub fn forward(&self, x: Tensor<B, 4>) -> Result<Tensor<B, 4>, Error> {
        Ok(self.decode_head.forward(self.features(x)?, None, &mut Pass::Evaluate))
    }

    /// Logits of the auxiliary head in evaluation, when the model has one.
    ///
    /// # Errors
    /// As [`UperNet::features`].
    pub fn auxiliary(&self, x: Tensor<B, 4>) -> Result<Option<Tensor<B, 4>>, Error> {
        let map = self.features(x)?[self.aux_index].clone();
        Ok(self.auxiliary_head.as_ref().map(|head| head.forward(map, None, &mut Pass::Evaluate)))
    }

    /// The same model for images of another grid of patches, `[B, 3, rows·P, cols·P]`, for inference: position
    /// biases keep the values of the distances that they know, and are resized for more.
    ///
    /// # Errors
    /// Position tables that cannot be resized.
    pub fn on_grid(mut self, rows: usize, cols: usize) -> Result<Self, Error> {
        self.backbone = self.backbone.on_grid(rows, cols)?;
        Ok(self)
    }

    /// Logits of both heads in training: batch norms take the statistics of the batch on all ranks, which [`UperNet::record`]
    /// then takes into the running ones.
    ///
    /// # Errors
    /// As [`UperNet::features`]; a batch of one image.
    pub fn forward_train(
        &self,
        x: Tensor<B, 4>,
        drop: &DropPath<B>,
        dropout: &HeadDropout<B>,
        rank: &Rank,
    ) -> Result<TrainLogits<B>, Error> {
        let [batch, _, height, width] = x.dims();
        self.backbone.check_size(height, width)?;
        check_batch(batch * rank.world(), self.decode_head.smallest_map(height, width))?;
        let mut statistics = Vec::new();
        let pass = &mut Pass::Train(&mut statistics, rank);
        let maps = self.backbone.forward(x, drop, pass);
        let map = maps[self.aux_index].clone();
        let decode = self.decode_head.forward(maps, dropout.decode.as_ref(), pass);
        let auxiliary =
            self.auxiliary_head.as_ref().map(|head| head.forward(map, dropout.auxiliary.as_ref(), pass));
        Ok(TrainLogits { decode, auxiliary, statistics })
    }

    /// Takes what the norms saw in one training pass into their running statistics, with PyTorch's momentum of 0.1.
    ///
    /// # Errors
    /// Statistics of another model.
    pub fn record(mut self, statistics: &[Moments<B>]) -> Result<Self, Error> {
        let Self { backbone, decode_head, auxiliary_head, .. } = &mut self;
        let auxiliary = auxiliary_head.iter_mut().flat_map(FcnHead::norms);
        let norms: Vec<_> = backbone.norms().chain(decode_head.norms()).chain(auxiliary).collect();
        if norms.len() != statistics.len() {
            return config_error(format!(
                "statistics of {} batch norms for a model that has {}",
                statistics.len(),
                norms.len()
            ));
        }
        BatchNorm::record(norms, statistics);
        Ok(self)
    }
}
