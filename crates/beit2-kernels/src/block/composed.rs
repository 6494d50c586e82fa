//! Blocks from a backend's other operations.

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use super::{BlockActivation, BlockDrop, BlockInputs, BlockOps, BlockSpec, BlocksInputs};
use crate::attention::AttentionSpec;
use crate::concat::with_zero_keys;
use crate::gelu::{gelu_tanh, quick_gelu};
use crate::norm_mlp::NormMlpTensors;
use crate::tensor::{unwrap, wrap};
use crate::tokens::TokenChoice;

pub(crate) fn blocks<B: BlockOps>(
    inputs: BlocksInputs<FloatTensor<B>>,
    choice: Option<TokenChoice<B>>,
    spec: BlockSpec,
) -> FloatTensor<B> {
    let y = (0..inputs.parameters.len())
        .fold(inputs.x.clone(), |x, number| block::<B>(inputs.block(number, x), spec));
    match choice {
        Some(choice) => B::fused_gather_tokens(y, choice),
        None => y,
    }
}

fn block<B: BlockOps>(inputs: BlockInputs<FloatTensor<B>>, spec: BlockSpec) -> FloatTensor<B> {
    let BlockInputs { x, bias, parameters: p, drop } = inputs;
    let BlockSpec { heads, scale, eps, activation, precision, .. } = spec;
    let [gamma1, gamma2] = match p.gammas {
        Some([a, b]) => [Some(a), Some(b)],
        None => [None, None],
    };
    let drop = drop.as_ref();

    let [norm_scale, shift] = p.norm1;
    let (y, ..) = B::fused_layer_norm(x.clone(), norm_scale, shift, eps);
    let qkv = B::fused_linear(y, p.qkv, p.qv_bias.map(with_zero_keys::<B>), precision);
    let (y, _) = B::fused_attention_qkv(qkv, bias, AttentionSpec { heads, scale, precision });
    let [weight, bias] = p.proj;
    let x = add::<B>(x, B::fused_linear(y, weight, Some(bias), precision), gamma1, drop, 0);

    let ([norm_scale, shift], [w1, b1], [w2, b2]) = (p.norm2, p.fc1, p.fc2);
    let approximation: fn(Tensor<B, 3>) -> Tensor<B, 3> = match activation {
        BlockActivation::Gelu => {
            let tensors = [norm_scale, shift, w1, b1, w2, b2];
            let branch = B::fused_norm_mlp(x.clone(), NormMlpTensors { tensors, eps, precision });
            return add::<B>(x, branch, gamma2, drop, 1);
        }
        BlockActivation::QuickGelu => quick_gelu,
        BlockActivation::GeluTanh => gelu_tanh,
    };
    let (y, ..) = B::fused_layer_norm(x.clone(), norm_scale, shift, eps);
    let hidden = wrap(B::fused_linear(y, w1, Some(b1), precision));
    let branch = B::fused_linear(unwrap(approximation(hidden)), w2, Some(b2), precision);
    add::<B>(x, branch, gamma2, drop, 1)
}

/// `x + s⊙γ⊙branch`.
fn add<B: BlockOps>(
    x: FloatTensor<B>,
    branch: FloatTensor<B>,
    gamma: Option<FloatTensor<B>>,
    drop: Option<&BlockDrop<FloatTensor<B>>>,
    which: usize,
) -> FloatTensor<B> {
    let branch = match drop {
        Some(drop) => {
            let factors = factors::<B>(drop, which).cast(branch.dtype());
            unwrap(wrap::<B, 3>(branch) * factors)
        }
        None => branch,
    };
    match gamma {
        Some(gamma) => B::fused_residual_scale(x, branch, gamma),
        None => B::fused_sum(x, branch),
    }
}

/// The factors of one branch, `[B, 1, 1]`.
pub(super) fn factors<B: BurnBackend>(drop: &BlockDrop<FloatTensor<B>>, which: usize) -> Tensor<B, 3> {
    let factors: Tensor<B, 2> = wrap(drop.factors.clone());
    let batch = factors.dims()[1];
    factors.narrow(0, drop.rows[which], 1).reshape([batch, 1, 1])
}
