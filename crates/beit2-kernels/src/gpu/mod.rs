//! The operations on GPUs: Burn's CubeCL backends under its fusion of element-wise operations.
//!
//! What is here and why. Fusion joins chains of Burn's element-wise operations and sums, so everything that is
//! composed from them (norms, GELU, residuals, losses, AdamW) stays composed. Two things it cannot do: a matmul of
//! bf16 operands that comes out as f32, and an attention whose softmax reads the scores once. Those are
//! custom operations ([`custom`]).

mod attention;
#[cfg(feature = "cuda")]
mod cuda;
mod custom;
mod kernels;
mod matmul;
#[cfg(test)]
mod tests;
mod tuning;

use burn::tensor::DType;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime};
use burn_fusion::Fusion;

use crate::tensor::{from_rows, rows, unwrap, wrap};
use crate::{
    AllReduceOps, AttentionGradients, AttentionOps, AttentionOutput, AttentionSpec, Backend, LinearOps,
    Precision, Rank, collective, linear,
};
use matmul::{Side, matmul};
pub use tuning::keep_tuning;

/// Burn's backend for one GPU runtime (CUDA, or Vulkan, Metal and WebGPU by `wgpu`), without fusion. `BT` holds a bool.
type Plain<R, BT> = CubeBackend<R, f32, i32, BT>;
/// With fusion: `burn::backend::{Cuda, Vulkan, Metal, Wgpu}` are this type.
type Gpu<R, BT> = Fusion<Plain<R, BT>>;

/// The element type of operands that are multiplied.
fn operands(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    }
}

/// Rows of a tensor in the element type that matmuls see.
fn operand<B: BurnBackend>(x: FloatTensor<B>, precision: Precision) -> FloatTensor<B> {
    unwrap(rows::<B>(x).cast(operands(precision)))
}

/// Operations that fusion makes fast enough of the composed versions.
macro_rules! composed {
    ($($ops:ident),+) => {
        $(impl<R: CubeRuntime, BT: BoolElement> crate::$ops for Gpu<R, BT> {})+
    };
}

composed!(
    AdamwOps,
    ChannelMomentsOps,
    ChannelNormOps,
    Conv3x3Ops,
    CrossEntropyOps,
    GeluOps,
    ImageOps,
    LayerNormOps,
    NearestCodeOps,
    NormMlpOps,
    PixelCrossEntropyOps,
    ResidualScaleOps,
    SampleOps
);

impl<R: CubeRuntime, BT: BoolElement> Backend for Gpu<R, BT> {}

impl<R: CubeRuntime, BT: BoolElement> LinearOps for Gpu<R, BT> {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if precision == Precision::F32 {
            // Burn's own matmul, which fusion may join with what follows.
            return linear::composed::linear::<Self>(x, weight, bias, precision);
        }
        let shape = with_last(&x.shape, weight.shape[0]);
        let [x, weight] = [x, weight].map(|x| operand::<Self>(x, precision));
        let y = wrap::<Self, 2>(matmul::<R, BT>(x, weight, Side::Right));
        let y = match bias {
            Some(bias) => y + wrap::<Self, 1>(bias).unsqueeze(),
            None => y,
        };
        from_rows(shape, y)
    }

    fn fused_linear_backward_input(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if precision == Precision::F32 {
            return linear::composed::linear_backward_input::<Self>(weight, grad, precision);
        }
        let shape = with_last(&grad.shape, weight.shape[1]);
        let [grad, weight] = [grad, weight].map(|x| operand::<Self>(x, precision));
        from_rows(shape, wrap::<Self, 2>(matmul::<R, BT>(grad, weight, Side::Neither)))
    }

    fn fused_linear_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if precision == Precision::F32 {
            return linear::composed::linear_backward_weight::<Self>(x, grad, precision);
        }
        let [x, grad] = [x, grad].map(|x| operand::<Self>(x, precision));
        matmul::<R, BT>(grad, x, Side::Left)
    }
}

impl<R: CubeRuntime, BT: BoolElement> AttentionOps for Gpu<R, BT> {
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        attention::forward::<R, BT>(vec![q, k, v], bias, spec)
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
        let (gradients, dbias) =
            attention::backward::<R, BT, 3>(vec![q, k, v], bias, output, grad, spec, bias_grad);
        let [dq, dk, dv] = gradients;
        (dq, dk, dv, dbias)
    }

    fn fused_attention_qkv(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        attention::forward::<R, BT>(vec![qkv], bias, spec)
    }

    fn fused_attention_qkv_backward(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let ([dqkv], dbias) = attention::backward::<R, BT, 1>(vec![qkv], bias, output, grad, spec, bias_grad);
        (dqkv, dbias)
    }
}

impl<R: CubeRuntime, BT: BoolElement> AllReduceOps for Gpu<R, BT> {
    fn all_reduce_sum(x: FloatTensor<Self>, rank: &Rank) -> FloatTensor<Self> {
        #[cfg(feature = "cuda")]
        if std::any::TypeId::of::<R>() == std::any::TypeId::of::<cubecl::cuda::CudaRuntime>()
            && collective::nccl::serves(rank)
        {
            return collective::nccl::sum::<Self>(x, rank);
        }
        collective::through_host::<Self>(x, rank)
    }
}

/// `shape` with another last axis.
fn with_last(shape: &burn::tensor::Shape, width: usize) -> burn::tensor::Shape {
    let mut shape = shape.clone();
    let last = shape.num_dims() - 1;
    shape[last] = width;
    shape
}
