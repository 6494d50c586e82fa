//! Attention with an additive bias.

mod call;

use burn::tensor::ops::FloatTensor;
use burn_cubecl::BoolElement;
use cubecl::cuda::CudaRuntime;

use super::super::Gpu;
use super::super::portable::attention;
use crate::{AttentionGradients, AttentionOps, AttentionOutput, AttentionSpec};

pub(crate) use call::{
    AttentionBackwardCall, AttentionCall, AttentionSizes, BiasLayout, Tokens, backward, forward,
};

impl<BT: BoolElement> AttentionOps for Gpu<CudaRuntime, BT> {
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        attention::forward::<CudaRuntime, BT>(vec![q, k, v], bias, spec)
    }

    fn fused_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> AttentionGradients<Self> {
        let inputs = vec![q, k, v];
        let (gradients, dbias) =
            attention::backward::<CudaRuntime, BT, 3>(inputs, bias, output, grad, spec, bias_grad);
        let [dq, dk, dv] = gradients;
        (dq, dk, dv, dbias)
    }

    fn fused_attention_qkv(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        attention::forward::<CudaRuntime, BT>(vec![qkv], bias, spec)
    }

    fn fused_attention_qkv_backward(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let inputs = vec![qkv];
        let ([dqkv], dbias) =
            attention::backward::<CudaRuntime, BT, 1>(inputs, bias, output, grad, spec, bias_grad);
        (dqkv, dbias)
    }
}
