//! A Transformer block with what published teachers have: other activations, gated MLPs, rotary positions.

use beit2_kernels::{
    self as kernels, AttentionSpec, Backend, BlockActivation, BlockParameters, BlockSpec, NormMlp, Precision,
};
use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData, activation};

use super::Activation;
use crate::vit::{LayerNorm, Linear, add_branch};

/// What tells one teacher's blocks from another's.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockSizes {
    /// D.
    pub width: usize,
    /// H.
    pub heads: usize,
    /// Hidden units of the MLP.
    pub mlp_hidden: usize,
    /// One bias for q, k and v.
    pub qkv_bias: bool,
    /// A bias after attention.
    pub proj_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// Whether γ exists.
    pub layer_scale: bool,
    /// Whether a second half of hidden units is gated by the activated first one.
    pub gated: bool,
    /// Of the MLP.
    pub activation: Activation,
    /// ε of both norms.
    pub norm_eps: f64,
}

#[derive(Module, Debug)]
pub(super) struct TeacherAttention<B: burn::tensor::backend::Backend> {
    qkv: Linear<B>,
    proj: Linear<B>,
    heads: usize,
    scale: f64,
}

#[derive(Module, Debug)]
pub(super) struct TeacherMlp<B: burn::tensor::backend::Backend> {
    gate: Option<Linear<B>>,
    fc1: Linear<B>,
    fc2: Linear<B>,
    #[module(skip)]
    activation: Activation,
}

/// `x + γ₁⊙Attn(LN x)`, then `x + γ₂⊙MLP(LN x)`.
#[derive(Module, Debug)]
pub(super) struct TeacherBlock<B: burn::tensor::backend::Backend> {
    gamma_1: Option<Param<Tensor<B, 1>>>,
    gamma_2: Option<Param<Tensor<B, 1>>>,
    norm1: LayerNorm<B>,
    attn: TeacherAttention<B>,
    norm2: LayerNorm<B>,
    mlp: TeacherMlp<B>,
    /// All parameters of a frozen block, where a backend computes a run of them as one operation.
    packed: Option<Tensor<B, 1>>,
}

/// Runs `blocks`, all of one teacher. Shape is kept, `[B, T, D]`.
pub(super) fn run_blocks<B: Backend>(
    blocks: &[TeacherBlock<B>],
    x: Tensor<B, 3>,
    rotation: Option<&Rotation<B>>,
) -> Tensor<B, 3> {
    let spec = blocks.first().and_then(TeacherBlock::spec);
    let packed: Option<Vec<_>> = blocks.iter().map(|block| block.packed.clone()).collect();
    if let (Some(spec), Some(packed), None) = (spec, packed, rotation) {
        let [hidden, _] = blocks[0].mlp_sizes();
        if kernels::fuses_blocks(&x, hidden, &spec) {
            return kernels::blocks_packed(x, Vec::new(), packed, hidden, None, spec);
        }
    }
    blocks.iter().fold(x, |x, block| block.forward(x, rotation))
}

impl<B: Backend> TeacherBlock<B> {
    /// A block of zeros.
    pub fn new(o: BlockSizes, device: &B::Device) -> Self {
        let gamma = || o.layer_scale.then(|| Param::from_tensor(Tensor::ones([o.width], device)));
        let fc1 = || Linear::new(o.width, o.mlp_hidden, o.mlp_bias, device);
        Self {
            gamma_1: gamma(),
            gamma_2: gamma(),
            norm1: LayerNorm::new(o.width, o.norm_eps, device),
            attn: TeacherAttention {
                qkv: Linear::new(o.width, 3 * o.width, o.qkv_bias, device),
                proj: Linear::new(o.width, o.width, o.proj_bias, device),
                heads: o.heads,
                scale: ((o.width / o.heads) as f64).powf(-0.5),
            },
            norm2: LayerNorm::new(o.width, o.norm_eps, device),
            mlp: TeacherMlp {
                gate: o.gated.then(fc1),
                fc1: fc1(),
                fc2: Linear::new(o.mlp_hidden, o.width, o.mlp_bias, device),
                activation: o.activation,
            },
            packed: None,
        }
    }

    /// Hidden units of the MLP, and its layers: two, or three with a gate.
    pub fn mlp_sizes(&self) -> [usize; 2] {
        [self.mlp.fc1.outputs(), 2 + usize::from(self.mlp.gate.is_some())]
    }

    /// Runs the matmuls in `precision` from now on.
    pub fn set_precision(&mut self, precision: Precision) {
        let Self { attn, mlp, .. } = self;
        for linear in
            [&mut attn.qkv, &mut attn.proj, &mut mlp.fc1, &mut mlp.fc2].into_iter().chain(&mut mlp.gate)
        {
            linear.set_precision(precision);
        }
    }

    /// Makes freezing round the weights to 8-bit integers ([`Linear::set_int8`]).
    pub fn set_int8(&mut self) {
        let Self { attn, mlp, .. } = self;
        let linears = [&mut attn.qkv, &mut attn.proj, &mut mlp.fc1, &mut mlp.fc2];
        linears.into_iter().chain(&mut mlp.gate).for_each(Linear::set_int8);
    }

    /// Packs the weights ([`Linear::freeze`]). `rotates`: the teacher has rotary positions.
    pub fn freeze(self, rotates: bool) -> Self {
        if self.attn.qkv.packed().is_some() {
            return self;
        }
        let spec = self.spec().filter(|_| !rotates);
        let packed = spec.and_then(|spec| kernels::pack_block(self.parameters(), &spec));
        let Self { attn, mlp, .. } = self;
        let attn = TeacherAttention { qkv: attn.qkv.freeze(), proj: attn.proj.freeze(), ..attn };
        let gate = mlp.gate.map(Linear::freeze);
        let mlp = TeacherMlp { gate, fc1: mlp.fc1.freeze(), fc2: mlp.fc2.freeze(), ..mlp };
        // Where weights stay they may be exchanged, and must be what is computed with.
        let packed = packed.filter(|_| attn.qkv.packed().is_some());
        Self { attn, mlp, packed, ..self }
    }

    /// For the block as one operation; `None` if its MLP is not of that form.
    fn spec(&self) -> Option<BlockSpec> {
        let activation = match (self.mlp.activation, &self.mlp.gate) {
            (Activation::Gelu, None) => BlockActivation::Gelu,
            (Activation::QuickGelu, None) => BlockActivation::QuickGelu,
            (Activation::GeluTanh, None) => BlockActivation::GeluTanh,
            (Activation::Silu, _) | (_, Some(_)) => return None,
        };
        let AttentionSpec { heads, scale, precision } = self.attn.spec();
        Some(BlockSpec { heads, scale, eps: self.norm1.eps(), activation, precision, recompute: false })
    }

    /// What the operation computes with. It has no bias of the keys: q·(k + b) is q·k and a q·b that is the same for all keys
    /// of a query, and softmax takes that away. Other biases that the teacher does not have are zeros.
    fn parameters(&self) -> BlockParameters<B> {
        let width = self.attn.proj.outputs();
        let norm = |norm: &LayerNorm<B>| [norm.weight.val(), norm.bias.val()];
        let layer = |layer: &Linear<B>| {
            let weight = layer.weight.val();
            let zeros = || Tensor::zeros([layer.outputs()], (&weight.device(), weight.dtype()));
            (weight.clone(), layer.bias.as_ref().map_or_else(zeros, Param::val))
        };
        let part = |bias: &Param<Tensor<B, 1>>, part: usize| bias.val().narrow(0, part * width, width);
        BlockParameters {
            norm1: norm(&self.norm1),
            qkv: self.attn.qkv.weight.val(),
            qv_bias: self.attn.qkv.bias.as_ref().map(|bias| [part(bias, 0), part(bias, 2)]),
            proj: layer(&self.attn.proj),
            norm2: norm(&self.norm2),
            fc1: layer(&self.mlp.fc1),
            fc2: layer(&self.mlp.fc2),
            gammas: self.gamma_1.as_ref().zip(self.gamma_2.as_ref()).map(|(a, b)| [a.val(), b.val()]),
        }
    }

    /// Shape is kept, `[B, T, D]`.
    fn forward(&self, x: Tensor<B, 3>, rotation: Option<&Rotation<B>>) -> Tensor<B, 3> {
        let x = add_branch(x.clone(), &self.gamma_1, &None, |_| {
            self.attn.forward(self.norm1.forward(x), rotation)
        });
        add_branch(x.clone(), &self.gamma_2, &None, |_| self.mlp_branch(x))
    }

    /// MLP(LN x).
    fn mlp_branch(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let TeacherMlp { gate, fc1, fc2, activation } = &self.mlp;
        let (Activation::Gelu, None, Some(b1), Some(b2)) = (activation, gate, &fc1.bias, &fc2.bias) else {
            return self.mlp.forward(self.norm2.forward(x));
        };
        let norm = [self.norm2.weight.val(), self.norm2.bias.val()];
        if let (Some(w1), Some(w2)) = (fc1.packed(), fc2.packed()) {
            return kernels::norm_mlp_packed(x, norm, self.norm2.eps(), (w1, b1.val()), (w2, b2.val()));
        }
        let parameters = NormMlp {
            norm,
            eps: self.norm2.eps(),
            fc1: (fc1.weight.val(), b1.val()),
            fc2: (fc2.weight.val(), b2.val()),
            precision: fc1.precision(),
        };
        kernels::norm_mlp(x, parameters)
    }
}

impl<B: Backend> TeacherAttention<B> {
    fn spec(&self) -> AttentionSpec {
        AttentionSpec { heads: self.heads, scale: self.scale, precision: self.qkv.precision() }
    }

    fn forward(&self, x: Tensor<B, 3>, rotation: Option<&Rotation<B>>) -> Tensor<B, 3> {
        let width = x.dims()[2];
        let spec = self.spec();
        let qkv = self.qkv.forward(x);
        let mixed = match rotation {
            None => kernels::attention_qkv(qkv, None, spec),
            Some(rotation) => {
                let [q, k, v] = [0, 1, 2].map(|part| qkv.clone().narrow(2, part * width, width));
                let turn = |x| rotation.apply(x, self.heads);
                kernels::attention(turn(q), turn(k), v, None, spec)
            }
        };
        self.proj.forward(mixed)
    }
}

impl<B: Backend> TeacherMlp<B> {
    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let hidden = match &self.gate {
            Some(gate) => self.activation.apply(gate.forward(x.clone())) * self.fc1.forward(x),
            None => self.activation.apply(self.fc1.forward(x)),
        };
        self.fc2.forward(hidden)
    }
}

impl Activation {
    /// Shape is kept.
    fn apply<B: Backend>(self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Self::Gelu => kernels::gelu(x),
            Self::QuickGelu => kernels::quick_gelu(x),
            Self::Silu => x.clone() * activation::sigmoid(x),
            Self::GeluTanh => kernels::gelu_tanh(x),
        }
    }
}

/// Rotary positions of a grid of patches, for queries and keys.
pub(super) struct Rotation<B: Backend> {
    /// `[1, T, 1, D/H]`.
    cos: Tensor<B, 4>,
    sin: Tensor<B, 4>,
}

impl<B: Backend> Rotation<B> {
    /// DINOv3's: a patch's centre has coordinates in [−1, 1] on both axes whatever the grid; each turns a quarter of a head's
    /// values by 2π·coordinate/period, and the other half of the head has the same angles. The `prefix` tokens are not turned.
    pub fn new(periods: &[f64], [rows, cols]: [usize; 2], prefix: usize, like: &Tensor<B, 3>) -> Self {
        let centre = |at: usize, count: usize| 2.0 * ((at as f64 + 0.5) / count as f64) - 1.0;
        let width = 4 * periods.len();
        let mut angles = vec![0.0; prefix * width];
        for row in 0..rows {
            for col in 0..cols {
                let of = |coordinate: f64| {
                    periods.iter().map(move |period| 2.0 * std::f64::consts::PI * coordinate / period)
                };
                for _ in 0..2 {
                    angles.extend(of(centre(row, rows)).chain(of(centre(col, cols))));
                }
            }
        }
        let tokens = prefix + rows * cols;
        let tensor = |of: fn(f64) -> f64| {
            let values: Vec<f64> = angles.iter().copied().map(of).collect();
            Tensor::from_data(TensorData::new(values, [1, tokens, 1, width]), (&like.device(), like.dtype()))
        };
        Self { cos: tensor(f64::cos), sin: tensor(f64::sin) }
    }

    /// `[B, T, D]`, shape is kept.
    fn apply(&self, x: Tensor<B, 3>, heads: usize) -> Tensor<B, 3> {
        let [batch, tokens, width] = x.dims();
        let half = width / heads / 2;
        let x = x.reshape([batch, tokens, heads, 2 * half]);
        let (first, second) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
        let turned = Tensor::cat(vec![second.neg(), first], 3);
        (x * self.cos.clone() + turned * self.sin.clone()).reshape([batch, tokens, width])
    }
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
