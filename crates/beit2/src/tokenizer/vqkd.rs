//! VQ-KD: encoder, quantizer, decoder and the cosine loss to a teacher.

use beit2_kernels::{self as kernels, Backend, PatchSpec, Precision, Scaling, cosine_loss};
use burn::module::Module;
use burn::tensor::{Int, Tensor};

use super::{ProcessType, Quantized, Quantizer, TokenizerConfig};
use crate::error::Error;
use crate::init::{InitRule, STD, initialise_with};
use crate::pixels;
use crate::vit::{DropPath, Linear, Pixels, Pooling, TokenSubset, VisionTransformer};

/// `Linear · tanh · Linear` between a Transformer and its task.
#[derive(Module, Debug)]
pub struct TaskLayer<B: burn::tensor::backend::Backend> {
    /// First layer, `0` in the checkpoints.
    pub layer0: Linear<B>,
    /// Second layer, `2` in the checkpoints.
    pub layer2: Linear<B>,
}

impl<B: Backend> TaskLayer<B> {
    fn new(width: usize, outputs: usize, device: &B::Device) -> Self {
        Self {
            layer0: Linear::new(width, width, true, device),
            layer2: Linear::new(width, outputs, true, device),
        }
    }

    fn freeze(self) -> Self {
        Self { layer0: self.layer0.freeze(), layer2: self.layer2.freeze() }
    }

    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let Self { layer0, layer2 } = self;
        let weights = |layer: &Linear<B>| match (layer.packed(), &layer.bias) {
            (None, Some(bias)) => Some((layer.weight.val(), bias.val())),
            _ => None,
        };
        match (weights(layer0), weights(layer2)) {
            (Some(first), Some(second)) if layer0.precision() == layer2.precision() => {
                kernels::tanh_mlp(x, first, second, layer0.precision())
            }
            _ => layer2.forward(layer0.forward(x).tanh()),
        }
    }
}

/// The tokenizer model.
#[derive(Module, Debug)]
pub struct VqKd<B: burn::tensor::backend::Backend> {
    /// Image → patch vectors.
    pub encoder: VisionTransformer<B>,
    /// Codes → patch vectors.
    pub decoder: VisionTransformer<B>,
    /// The codebook.
    pub quantize: Quantizer<B>,
    /// Encoder width → code width.
    pub encode_task_layer: TaskLayer<B>,
    /// Decoder width → teacher width.
    pub decode_task_layer: TaskLayer<B>,
    #[module(skip)]
    process_type: ProcessType,
}

/// The losses of one batch and what the codebook's update needs.
#[derive(Debug, Clone)]
pub struct TokenizerLoss<B: Backend> {
    /// rec + commitment, `[1]`.
    pub total: Tensor<B, 1>,
    /// mean(1 − cos(decoded, teacher)), `[1]`.
    pub rec: Tensor<B, 1>,
    /// Quantized vectors, with ids and commitment loss.
    pub quantized: Quantized<B>,
    /// The decoder's prediction of the teacher's features, `[B, N, teacher_dim]`.
    pub decoded: Tensor<B, 3>,
}

impl<B: Backend> VqKd<B> {
    /// A freshly initialised tokenizer.
    ///
    /// # Errors
    /// Sizes that do not fit each other.
    pub fn new(config: &TokenizerConfig, seed: u64, device: &B::Device) -> Result<Self, Error> {
        Self::with_std(config, STD, seed, device)
    }

    /// A freshly initialised tokenizer, with another standard deviation than the paper's.
    ///
    /// # Errors
    /// As [`VqKd::new`].
    pub fn with_std(
        config: &TokenizerConfig,
        std: f64,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let rule = InitRule::Finetune { head_scale: 1.0, gamma: 0.0 };
        let mut model = initialise_with(Self::zeros(config, device)?, rule, std, seed);
        model.quantize = Quantizer::new(config, seed, device);
        Ok(model)
    }

    /// A tokenizer to load weights into.
    ///
    /// # Errors
    /// Sizes that do not fit each other.
    pub fn zeros(config: &TokenizerConfig, device: &B::Device) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self {
            encoder: VisionTransformer::new(&config.encoder(), Pooling::Mean, 0, device),
            decoder: VisionTransformer::new(&config.decoder(), Pooling::Mean, 0, device),
            quantize: Quantizer::zeros(config, device),
            encode_task_layer: TaskLayer::new(config.width, config.code_dim, device),
            decode_task_layer: TaskLayer::new(config.decoder_width, config.teacher_dim, device),
            process_type: config.process_type,
        })
    }

    /// Runs the matmuls of both Transformers and of the decoder's task layer in `precision` from now
    /// on. The encoder's task layer and everything about codes stay in f32, as in the reference.
    pub fn set_precision(&mut self, precision: Precision) {
        self.encoder.set_precision(precision);
        self.decoder.set_precision(precision);
        self.decode_task_layer.layer0.set_precision(precision);
        self.decode_task_layer.layer2.set_precision(precision);
    }

    /// Makes freezing round the weights of the encoder's blocks to 8-bit integers ([`VisionTransformer::set_int8`]).
    pub fn set_int8(&mut self) {
        self.encoder.set_int8();
    }

    /// For a tokenizer whose weights do not change any more: its encoder is frozen ([`VisionTransformer::freeze`]).
    #[must_use]
    pub fn freeze_encoder(self) -> Self {
        let (encoder, encode_task_layer) = (self.encoder.freeze(), self.encode_task_layer.freeze());
        Self { encoder, encode_task_layer, ..self }
    }

    /// Images in [0, 1] to what the encoder (and the teacher's scaling) expects.
    ///
    /// Differs from upstream: there is no guess from the batch's maximum whether pixels are 0–1 or
    /// 0–255; the caller passes [0, 1].
    pub fn preprocess(&self, images: Tensor<B, 4>) -> Tensor<B, 4> {
        preprocess(images, self.process_type)
    }

    /// How the encoder reads images in [0, 1].
    pub fn patch_spec(&self) -> PatchSpec<'static> {
        self.encoder.trunk.patch_embed.spec(scaling(self.process_type))
    }

    /// The encoder's vectors before normalisation, preprocessed `[B, 3, H, W]` → `[B, N, C]`.
    pub fn encode(&self, x: impl Into<Pixels<B>>) -> Tensor<B, 3> {
        self.encode_task_layer.forward(self.encoder.patch_tokens(x, &DropPath::none()))
    }

    /// Code ids `[B, N]` of preprocessed images: no decoder, no state, nothing but the nearest code.
    pub fn ids(&self, x: impl Into<Pixels<B>>) -> Tensor<B, 2, Int> {
        let z = self.encode(x);
        let [batch, patches, width] = z.dims();
        self.quantize.ids(z.reshape([batch * patches, width])).reshape([batch, patches])
    }

    /// Code ids `[B·R]` of some patches, given as tokens behind CLS: those of [`VqKd::ids`], for less.
    pub fn ids_at(&self, x: impl Into<Pixels<B>>, subset: &TokenSubset<B>) -> Tensor<B, 1, Int> {
        let z = self.encode_task_layer.forward(self.encoder.token_subset(x, subset));
        let [batch, count, width] = z.dims();
        self.quantize.ids(z.reshape([batch * count, width]))
    }

    /// Codes `[B·N, C]` (row-major patches of a square grid) → decoded features `[B, N, teacher_dim]`.
    pub fn decode(&self, codes: Tensor<B, 2>, batch: usize) -> Tensor<B, 3> {
        let [rows, width] = codes.dims();
        let side = (rows / batch.max(1)).isqrt();
        // The decoder's patches are single pixels, of code_dim channels.
        let pixels = Pixels::Patches(codes.reshape([batch, side * side, width]), [side, side]);
        self.decode_task_layer.forward(self.decoder.patch_tokens(pixels, &DropPath::none()))
    }

    /// Losses of preprocessed images `x [B, 3, H, W]` against teacher features `[B, N, teacher_dim]`.
    /// The codebook is not changed: pass `quantized` to [`Quantizer::update`] after the step.
    pub fn forward(&self, x: impl Into<Pixels<B>>, teacher: Tensor<B, 3>) -> TokenizerLoss<B> {
        let z = self.encode(x);
        let [batch, patches, width] = z.dims();
        let quantized = self.quantize.forward(z.reshape([batch * patches, width]));
        let decoded = self.decode(quantized.codes.clone(), batch);
        let rec = cosine_loss(decoded.clone(), teacher);
        let total = rec.clone() + quantized.commitment_loss.clone();
        TokenizerLoss { total, rec, quantized, decoded }
    }

    /// Losses with the quantizer left out (the decoder sees the unit-norm vectors themselves): the
    /// warm-up before a k-means start.
    pub fn forward_unquantized(
        &self,
        x: impl Into<Pixels<B>>,
        teacher: Tensor<B, 3>,
    ) -> (Tensor<B, 1>, Tensor<B, 2>) {
        let z = self.encode(x);
        let [batch, patches, width] = z.dims();
        let z = kernels::unit_rows(z.reshape([batch * patches, width]));
        (cosine_loss(self.decode(z.clone(), batch), teacher), z.detach())
    }
}

/// [`VqKd::preprocess`] without the model.
pub(super) fn preprocess<B: Backend>(images: Tensor<B, 4>, process_type: ProcessType) -> Tensor<B, 4> {
    kernels::scale(images, scaling(process_type))
}

/// How images in [0, 1] become what the encoder expects.
pub(crate) fn scaling(process_type: ProcessType) -> Scaling<'static> {
    match process_type {
        ProcessType::Default => Scaling::Signed,
        ProcessType::ImagenetNorm => pixels::scaling(None),
        ProcessType::DallE => Scaling::Unit,
    }
}
