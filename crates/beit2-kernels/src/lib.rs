//! The hot operations of a Vision Transformer and of its segmentation heads as Burn backend extensions.
//!
//! Every operation is a plain, differentiable function on Burn tensors with a file (or folder) of its own. That file
//! holds the contract, the reference composed from Burn's primitives ([`mod@reference`]), a trait with the reference as the
//! default, and that trait for recording backends and for the CPU. [`Backend`] is the sum of these traits; `gpu` has
//! what GPUs do better. So a new operation is one new file and one line in `backend.rs`. Imports run one way: from
//! operations to `matmul` and `packed`, to `matrix`, `flex`, `tensor` and `graph`, to `slices`, `simd` and `memory`. This crate knows nothing of models,
//! names of parameters or files. Start reading at `layer_norm`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod adamw;
mod attention;
mod backend;
mod batch_norm;
mod bilinear;
mod block;
mod channel_moments;
mod channel_norm;
mod collective;
mod concat;
mod conv3x3;
mod cosine_loss;
mod cross_entropy;
mod deconv2x2;
mod flex;
mod gelu;
#[cfg(feature = "gpu")]
mod gpu;
mod graph;
mod head_loss;
mod images_from_bytes;
mod int8;
mod interrupt;
mod layer_norm;
mod linear;
mod loss_sum;
mod maps;
mod matmul;
mod matrix;
mod memory;
mod mixing;
mod nearest_code;
mod norm_mlp;
#[cfg(target_arch = "x86_64")]
mod packed;
mod parameters;
mod pixel_cross_entropy;
mod position_bias;
mod precision;
pub mod probe;
mod quantize;
mod recompute;
mod residual_scale;
mod rows;
mod samples;
pub mod simd;
mod slices;
mod soft_cross_entropy;
mod tanh_mlp;
mod tensor;
#[cfg(test)]
mod testing;
mod tokens;
mod upload;

use std::time::{Duration, Instant};

pub use adamw::{AdamwOps, AdamwStep, adamw};
pub use attention::{
    AttentionGradients, AttentionOps, AttentionOutput, AttentionSpec, attention, attention_qkv,
    attention_subset, attention_weights,
};
pub use backend::{AutodiffBackend, Backend};
pub use batch_norm::{
    BatchNormOps, ChannelAffine, Recorded, RunningMoments, RunningOf, batch_norm, fuses_batch_norm,
    record_moments,
};
pub use bilinear::bilinear;
pub use block::{
    BlockActivation, BlockOps, BlockParameters, BlockSizes, BlockSpec, BlockTensors, BlocksDrop,
    BlocksGradients, BlocksInputs, blocks, blocks_packed, fuses_blocks, pack_block,
};
pub use channel_moments::{ChannelMomentsOps, channel_moments};
pub use channel_norm::{ChannelGradients, ChannelNormOps, channel_norm};
pub use collective::{
    AllReduceOps, ArrivedMeans, Leave, Message, PeerLeft, Rank, backward, backward_recomputing,
};
pub use concat::{ConcatOps, Part, concat, narrow, qkv_bias};
pub use conv3x3::{Conv3x3Ops, conv_precision, conv3x3};
pub use cosine_loss::{CosineLossOps, cosine_loss};
pub use cross_entropy::{CrossEntropyOps, CrossEntropySaved, cross_entropy, cross_entropy_with_accuracy};
pub use deconv2x2::{DeconvOps, deconv2x2};
pub use gelu::{GeluOps, gelu, gelu_tanh, quick_gelu};
#[cfg(feature = "gpu")]
pub use gpu::{GpuSettings, set_up_gpus};
#[cfg(feature = "cuda")]
pub use gpu::{KernelTime, compile_cuda_kernels, cuda_kernel_times, record_cuda_kernel_times};
pub use head_loss::{HeadLossOps, HeadLosses, HeadSaved, HeadSpec, HeadTensors, fuses_head_loss, head_loss};
pub use images_from_bytes::{
    ImageOps, PatchSpec, Scaling, clear_outside, from_signed, images_from_bytes, patches, patches_from_bytes,
    scale, standardise, to_signed,
};
pub use interrupt::Watch;
pub use layer_norm::{LayerNormOps, layer_norm};
pub use linear::{LinearOps, PackedWeight, linear, linear_packed, pack_weight, pack_weight_int8};
pub use loss_sum::{LossSumOps, loss_sum};
pub use maps::{MapDims, MapOps, cell_means, max_pool, resize_add, resize_concat, scale_channels};
pub use memory::release_memory;
pub use mixing::{ImageBox, MixingOps, PairMix, mix_pairs, paste_boxes};
pub use nearest_code::{NearestCodeOps, code_counts, code_statistics, nearest_code};
pub use norm_mlp::{NormMlp, NormMlpOps, NormMlpSaved, NormMlpTensors, norm_mlp, norm_mlp_packed};
pub use parameters::{
    AdamwTensors, AdamwUpdated, AnyRank, ParameterOps, adamw_all, grad_norm, join_scalars, weighted_sums,
};
pub use pixel_cross_entropy::{IGNORE, PixelCrossEntropyOps, PixelLoss, pixel_cross_entropy};
pub use position_bias::{PositionBiasOps, PositionGrid, position_bias};
pub use precision::Precision;
pub use quantize::{QuantizeOps, QuantizedRows, quantize, unit_rows, update_codes};
pub use recompute::{RecomputeOps, Recomputing, cut, cut_output, recompute, recomputes};
pub use residual_scale::{ResidualScaleOps, residual, residual_scale};
pub use samples::{SampleOps, gather_samples, scatter_add_samples};
pub use soft_cross_entropy::{SoftCrossEntropyOps, soft_cross_entropy};
pub use tanh_mlp::{TanhMlpOps, TanhMlpTensors, tanh_mlp};
pub use tokens::{
    TokenChoice, TokenGradients, TokenOps, TokenParts, embed_tokens, gather_bias, gather_tokens, mean_tokens,
    narrow_tokens, replace_cls,
};
pub use upload::{UploadOps, Uploaded, Uploads, upload, upload_all, upload_ints};

/// Makes the calling thread one of those that the fast CPU versions run on, for the whole process. Without this,
/// a program's main thread hands every operation to another thread, sleeps, and is woken again, which costs tens of
/// microseconds each time. To be called once, first; later calls and calls after the first operation change
/// nothing.
///
/// The thread must not wait for other threads' operations without giving its own time to them
/// ([`help_until`]): with one thread in all, nothing would go on.
pub fn join_threads() {
    // An error says that the threads are there already.
    let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
}

/// Whether this thread is the only one that operations run on: then it must not sleep while another thread computes.
pub fn computes_alone() -> bool {
    rayon::current_thread_index().is_some() && rayon::current_num_threads() == 1
}

/// Waits until `done`, and gives this thread's time to other threads' operations meanwhile. `done` is asked between them, and a
/// few thousand times a second when there are none.
pub fn help_until(done: impl Fn() -> bool) {
    // Operations of a model follow one another closely: a sleep after each would take longer than most of them.
    const SOON: Duration = Duration::from_micros(50);
    let mut idle = Instant::now();
    while !done() {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            idle = Instant::now();
        } else if idle.elapsed() < SOON {
            std::thread::yield_now();
        } else {
            std::thread::sleep(SOON);
        }
    }
}

/// Threads that the fast CPU versions spread over.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// The operations composed from Burn's primitives: slow, obvious, on every backend.
pub mod reference {
    pub use crate::adamw::reference as adamw;
    pub use crate::attention::reference as attention;
    pub use crate::channel_moments::reference as channel_moments;
    pub use crate::channel_norm::reference as channel_norm;
    pub use crate::conv3x3::reference as conv3x3;
    pub use crate::cosine_loss::reference as cosine_loss;
    pub use crate::cross_entropy::reference as cross_entropy;
    pub use crate::gelu::reference as gelu;
    pub use crate::images_from_bytes::{
        reference as images_from_bytes, reference_patches as patches, reference_standardise as standardise,
    };
    pub use crate::layer_norm::reference as layer_norm;
    pub use crate::linear::reference as linear;
    pub use crate::nearest_code::reference as nearest_code;
    pub use crate::pixel_cross_entropy::reference as pixel_cross_entropy;
    pub use crate::quantize::{
        reference as quantize, reference_unit_rows as unit_rows, reference_update as update_codes,
    };
    pub use crate::residual_scale::reference as residual_scale;
    pub use crate::samples::{
        reference_gather as gather_samples, reference_scatter_add as scatter_add_samples,
    };
    pub use crate::soft_cross_entropy::reference as soft_cross_entropy;
}
