//! Vulkan, Metal and WebGPU.

use burn::tensor::ops::FloatTensor;
use burn_cubecl::BoolElement;
use burn_cubecl::cubecl::wgpu::WgpuRuntime;

use super::super::composed;
use super::{Gpu, attention, linear};
use crate::{
    AllReduceOps, AttentionGradients, AttentionOps, AttentionOutput, AttentionSpec, Backend, LinearOps,
    Precision, Rank, collective,
};

composed!(
    WgpuRuntime: AdamwOps,
    BatchNormOps,
    BlockOps,
    ChannelMomentsOps,
    ChannelNormOps,
    ConcatOps,
    Conv3x3Ops,
    CosineLossOps,
    CrossEntropyOps,
    DeconvOps,
    GeluOps,
    HeadLossOps,
    ImageOps,
    LayerNormOps,
    LossSumOps,
    MapOps,
    MixingOps,
    NearestCodeOps,
    NormMlpOps,
    ParameterOps,
    PixelCrossEntropyOps,
    PositionBiasOps,
    QuantizeOps,
    RecomputeOps,
    ResidualScaleOps,
    SampleOps,
    SoftCrossEntropyOps,
    TanhMlpOps,
    TokenOps,
    UploadOps,
);

impl<BT: BoolElement> Backend for Gpu<WgpuRuntime, BT> {}

impl<BT: BoolElement> LinearOps for Gpu<WgpuRuntime, BT> {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        linear::forward::<WgpuRuntime, BT>(x, weight, bias, precision)
    }

    fn fused_linear_backward_input(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        linear::backward_input::<WgpuRuntime, BT>(weight, grad, precision)
    }

    fn fused_linear_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        linear::backward_weight::<WgpuRuntime, BT>(x, grad, precision)
    }
}

impl<BT: BoolElement> AttentionOps for Gpu<WgpuRuntime, BT> {
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        attention::forward::<WgpuRuntime, BT>(vec![q, k, v], bias, spec)
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
            attention::backward::<WgpuRuntime, BT, 3>(inputs, bias, output, grad, spec, bias_grad);
        let [dq, dk, dv] = gradients;
        (dq, dk, dv, dbias)
    }

    fn fused_attention_qkv(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        attention::forward::<WgpuRuntime, BT>(vec![qkv], bias, spec)
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
            attention::backward::<WgpuRuntime, BT, 1>(inputs, bias, output, grad, spec, bias_grad);
        (dqkv, dbias)
    }
}

impl<BT: BoolElement> AllReduceOps for Gpu<WgpuRuntime, BT> {
    fn all_reduce_sum(x: FloatTensor<Self>, rank: &Rank) -> FloatTensor<Self> {
        collective::through_host::<Self>(x, rank)
    }
}
