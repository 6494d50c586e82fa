//! The sum of the operations: what a backend must have to run the models of this project.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::{Autodiff, Flex};

use crate::adamw::AdamwOps;
use crate::attention::AttentionOps;
use crate::batch_norm::BatchNormOps;
use crate::block::BlockOps;
use crate::channel_moments::ChannelMomentsOps;
use crate::channel_norm::ChannelNormOps;
use crate::collective::AllReduceOps;
use crate::concat::ConcatOps;
use crate::conv3x3::Conv3x3Ops;
use crate::cosine_loss::CosineLossOps;
use crate::cross_entropy::CrossEntropyOps;
use crate::deconv2x2::DeconvOps;
use crate::gelu::GeluOps;
use crate::head_loss::HeadLossOps;
use crate::images_from_bytes::ImageOps;
use crate::layer_norm::LayerNormOps;
use crate::linear::LinearOps;
use crate::loss_sum::LossSumOps;
use crate::maps::MapOps;
use crate::mixing::MixingOps;
use crate::nearest_code::NearestCodeOps;
use crate::norm_mlp::NormMlpOps;
use crate::parameters::ParameterOps;
use crate::pixel_cross_entropy::PixelCrossEntropyOps;
use crate::position_bias::PositionBiasOps;
use crate::quantize::QuantizeOps;
use crate::recompute::RecomputeOps;
use crate::residual_scale::ResidualScaleOps;
use crate::samples::SampleOps;
use crate::soft_cross_entropy::SoftCrossEntropyOps;
use crate::tanh_mlp::TanhMlpOps;
use crate::tokens::TokenOps;
use crate::upload::UploadOps;

/// A Burn backend with the fused operations of this crate.
///
/// Each operation's trait stands in the operation's file, with the version composed from Burn's primitives as the
/// default, the recording version for [`Autodiff`] and the fast one for the CPU ([`Flex`]). A new operation is one new
/// file and one line here.
pub trait Backend:
    AdamwOps
    + AllReduceOps
    + AttentionOps
    + BatchNormOps
    + BlockOps
    + ChannelMomentsOps
    + ChannelNormOps
    + ConcatOps
    + Conv3x3Ops
    + CosineLossOps
    + CrossEntropyOps
    + DeconvOps
    + GeluOps
    + HeadLossOps
    + ImageOps
    + LayerNormOps
    + LinearOps
    + LossSumOps
    + MapOps
    + MixingOps
    + NearestCodeOps
    + NormMlpOps
    + ParameterOps
    + PixelCrossEntropyOps
    + PositionBiasOps
    + QuantizeOps
    + RecomputeOps
    + ResidualScaleOps
    + SampleOps
    + SoftCrossEntropyOps
    + TanhMlpOps
    + TokenOps
    + UploadOps
{
    /// Whether a computation that leaves some samples of a batch out is worth it. Not on backends that
    /// tune or compile their kernels for every new shape, because the number left out is another at every step.
    const SKIPS_DROPPED_SAMPLES: bool = false;

    /// Whether operations return before they are done, so that values must be waited for.
    const IS_ASYNC: bool = true;

    /// Which kernels compute the operations of a device, for people: backends with a choice say what was chosen, and why.
    fn kernels(_device: &Self::Device) -> Option<String> {
        None
    }
}

impl Backend for Flex {
    const SKIPS_DROPPED_SAMPLES: bool = true;
    const IS_ASYNC: bool = false;
}

impl<B: Backend, C: CheckpointStrategy> Backend for Autodiff<B, C> {
    const SKIPS_DROPPED_SAMPLES: bool = B::SKIPS_DROPPED_SAMPLES;
    const IS_ASYNC: bool = B::IS_ASYNC;

    fn kernels(device: &Self::Device) -> Option<String> {
        B::kernels(device)
    }
}

/// A [`Backend`] that records gradients over an inner [`Backend`].
pub trait AutodiffBackend:
    burn::tensor::backend::AutodiffBackend<InnerBackend: Backend, Gradients = Gradients> + Backend
{
}
impl<B> AutodiffBackend for B where
    B: burn::tensor::backend::AutodiffBackend<InnerBackend: Backend, Gradients = Gradients> + Backend
{
}
