//! What a fused block computes, from Burn's primitives: the same order of operations, with values rounded to bf16 in the
//! same places. In f32 precision nothing is rounded, and it is the composed block again: that is how its
//! backward pass is checked.

use std::cell::Cell;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;

use super::composed::factors;
use super::{BlockActivation, BlockInputs, BlockOps, BlockSpec, BlockTensors, BlocksGradients, BlocksInputs};
use crate::attention::{self, AttentionSpec};
use crate::tensor::{unwrap, wrap};
use crate::tokens::TokenChoice;
use crate::{gelu, layer_norm};

thread_local! {
    /// Whether the CPU's block is this one, on this thread.
    pub(crate) static FUSED: Cell<bool> = const { Cell::new(false) };
}

type Vector<B> = Tensor<B, 1>;
type Matrix<B> = Tensor<B, 2>;

/// Row mean and inverse deviation.
type Statistics<B> = [Vector<B>; 2];

/// All values of a forward pass, rows first.
struct Forward<B: BurnBackend> {
    shape: [usize; 3],
    norm1: (Matrix<B>, Statistics<B>),
    qkv: Matrix<B>,
    attended: Matrix<B>,
    lse: Tensor<B, 3>,
    middle: Matrix<B>,
    norm2: (Matrix<B>, Statistics<B>),
    hidden: Matrix<B>,
    output: Matrix<B>,
}

impl<B: BurnBackend> Forward<B> {
    fn y(self) -> FloatTensor<B> {
        unwrap(self.output.reshape(self.shape))
    }
}

/// A weight and a bias with γ multiplied into them.
fn scaled<B: BurnBackend>(
    [weight, bias]: [FloatTensor<B>; 2],
    gamma: Option<&FloatTensor<B>>,
) -> (Matrix<B>, Vector<B>) {
    let (weight, bias): (Matrix<B>, Vector<B>) = (wrap(weight), wrap(bias));
    match gamma {
        Some(gamma) => {
            let gamma: Vector<B> = wrap(gamma.clone());
            (weight * gamma.clone().unsqueeze_dim(1), bias * gamma)
        }
        None => (weight, bias),
    }
}

/// The factors of one branch for each row, `[n, 1]`.
fn row_factors<B: BurnBackend>(
    inputs: &BlockInputs<FloatTensor<B>>,
    which: usize,
    like: &Matrix<B>,
    tokens: usize,
) -> Option<Matrix<B>> {
    inputs.drop.as_ref().map(|drop| {
        let factors = factors::<B>(drop, which).cast(like.dtype());
        let batch = factors.dims()[0];
        factors.reshape([batch, 1]).repeat_dim(1, tokens).reshape([batch * tokens, 1])
    })
}

fn times<B: BurnBackend>(x: Matrix<B>, factors: Option<Matrix<B>>) -> Matrix<B> {
    match factors {
        Some(factors) => x * factors,
        None => x,
    }
}

fn forward<B: BurnBackend>(inputs: &BlockInputs<FloatTensor<B>>, spec: &BlockSpec) -> Forward<B> {
    let round = |x: Matrix<B>| spec.precision.round(x);
    let round_bias = |x: Vector<B>| spec.precision.round(x);
    let p = inputs.parameters.clone();
    let [gamma1, gamma2] = gammas(&p);
    let x: Tensor<B, 3> = wrap(inputs.x.clone());
    let shape @ [batch, tokens, width] = x.dims();
    let x = x.reshape([batch * tokens, width]);
    let linear = |x: Matrix<B>, weight: Matrix<B>, bias: Option<Vector<B>>| {
        let y = x.matmul(round(weight).transpose());
        round(match bias {
            Some(bias) => y + round_bias(bias).unsqueeze(),
            None => y,
        })
    };
    let norm = |x: Matrix<B>, [scale, shift]: [FloatTensor<B>; 2]| {
        let (y, mean, rstd) = layer_norm::reference_train(x, wrap(scale), wrap(shift), spec.eps);
        (round(y), [mean, rstd])
    };

    let norm1 = norm(x.clone(), p.norm1);
    let bias = p.qv_bias.map(|pair| {
        let [q, v]: [Vector<B>; 2] = pair.map(wrap);
        Tensor::cat(vec![q.clone(), q.zeros_like(), v], 0)
    });
    let qkv = linear(norm1.0.clone(), wrap(p.qkv), bias);
    let (attended, lse) = attention::composed::attention_qkv::<B>(
        unwrap(qkv.clone().reshape([batch, tokens, 3 * width])),
        inputs.bias.clone(),
        attention_spec(spec),
    );
    let attended = round(wrap::<B, 3>(attended).reshape([batch * tokens, width]));
    let (weight, bias) = scaled::<B>(p.proj, gamma1.as_ref());
    let branch = linear(attended.clone(), weight, Some(bias));
    let middle = x.clone() + times(branch, row_factors(inputs, 0, &x, tokens));

    let norm2 = norm(middle.clone(), p.norm2);
    let [w1, b1] = p.fc1;
    let hidden = linear(norm2.0.clone(), wrap(w1), Some(wrap(b1)));
    let activated = round(match spec.activation {
        BlockActivation::Gelu => gelu::reference(hidden.clone()),
        BlockActivation::QuickGelu => gelu::quick_gelu(hidden.clone()),
        BlockActivation::GeluTanh => gelu::gelu_tanh(hidden.clone()),
    });
    let (weight, bias) = scaled::<B>(p.fc2, gamma2.as_ref());
    let branch = linear(activated, weight, Some(bias));
    let output = middle.clone() + times(branch, row_factors(inputs, 1, &x, tokens));
    Forward { shape, norm1, qkv, attended, lse: wrap(lse), middle, norm2, hidden, output }
}

fn gammas<T: Clone>(p: &BlockTensors<T>) -> [Option<T>; 2] {
    match p.gammas.clone() {
        Some([a, b]) => [Some(a), Some(b)],
        None => [None, None],
    }
}

fn attention_spec(spec: &BlockSpec) -> AttentionSpec {
    AttentionSpec { heads: spec.heads, scale: spec.scale, precision: spec.precision }
}

/// Gradients of a weight and bias that γ was multiplied into, and γ's, from the gradients of the products.
#[allow(clippy::type_complexity)]
fn unscaled<B: BurnBackend>(
    [weight, bias]: &[FloatTensor<B>; 2],
    gamma: Option<FloatTensor<B>>,
    dweight: Matrix<B>,
    dbias: Vector<B>,
) -> ([FloatTensor<B>; 2], Option<FloatTensor<B>>) {
    let Some(gamma) = gamma else { return ([unwrap(dweight), unwrap(dbias)], None) };
    let gamma: Vector<B> = wrap(gamma);
    let along: Vector<B> = (wrap::<B, 2>(weight.clone()) * dweight.clone()).sum_dim(1).squeeze_dim(1);
    let dgamma = along + wrap::<B, 1>(bias.clone()) * dbias.clone();
    let (dweight, dbias) = (dweight * gamma.clone().unsqueeze_dim(1), dbias * gamma);
    ([unwrap(dweight), unwrap(dbias)], Some(unwrap(dgamma)))
}

fn backward<B: BurnBackend>(
    inputs: &BlockInputs<FloatTensor<B>>,
    spec: &BlockSpec,
    grad: FloatTensor<B>,
    bias_grad: bool,
) -> Gradients<B> {
    let saved = forward::<B>(inputs, spec);
    let round = |x: Matrix<B>| spec.precision.round(x);
    let p = inputs.parameters.clone();
    let [gamma1, gamma2] = gammas(&p);
    let [batch, tokens, width] = saved.shape;
    let rows = batch * tokens;
    let grad = wrap::<B, 3>(grad).reshape([rows, width]);
    let x = wrap::<B, 3>(inputs.x.clone()).reshape([rows, width]);
    // Gradients of biases are sums of what is not rounded yet, save those of q, k and v, which a matmul reads.
    let sum = |x: Matrix<B>| x.sum_dim(0).squeeze_dim::<1>(0);
    let norm = |x: Matrix<B>, scale: &FloatTensor<B>, [mean, rstd]: Statistics<B>, grad: Matrix<B>| {
        layer_norm::reference_backward(x, wrap(scale.clone()), mean, rstd, grad)
    };

    let branch = times(grad.clone(), row_factors(inputs, 1, &x, tokens));
    let (dbias2, branch) = (sum(branch.clone()), round(branch));
    let (cdf, slope) = gelu::reference_train(saved.hidden);
    let activated = round(cdf);
    let (weight, _) = scaled::<B>(p.fc2.clone(), gamma2.as_ref());
    let dhidden = round(branch.clone().matmul(round(weight))) * slope;
    let (dbias1, dhidden) = (sum(dhidden.clone()), round(dhidden));
    let (fc2, dgamma2) = unscaled::<B>(&p.fc2, gamma2, branch.transpose().matmul(activated), dbias2);
    let fc1 = [unwrap(dhidden.clone().transpose().matmul(saved.norm2.0)), unwrap(dbias1)];
    let dnorm = round(dhidden.matmul(round(wrap(p.fc1[0].clone()))));
    let (dx, scale2, shift2) = norm(saved.middle, &p.norm2[0], saved.norm2.1, dnorm);
    let grad = grad + dx;

    let branch = times(grad.clone(), row_factors(inputs, 0, &x, tokens));
    let (dbias, branch) = (sum(branch.clone()), round(branch));
    let (weight, _) = scaled::<B>(p.proj.clone(), gamma1.as_ref());
    let dattended = round(branch.clone().matmul(round(weight)));
    let dweight = branch.transpose().matmul(saved.attended.clone());
    let (proj, dgamma1) = unscaled::<B>(&p.proj, gamma1, dweight, dbias);
    let cube = |x: Matrix<B>| {
        let width = x.dims()[1];
        unwrap(x.reshape([batch, tokens, width]))
    };
    let (dqkv, dbias) = attention::composed::attention_qkv_backward::<B>(
        cube(saved.qkv),
        inputs.bias.clone(),
        (cube(saved.attended), unwrap(saved.lse)),
        cube(dattended),
        attention_spec(spec),
        bias_grad,
    );
    let dqkv = round(wrap::<B, 3>(dqkv).reshape([rows, 3 * width]));
    let qkv = unwrap(dqkv.clone().transpose().matmul(saved.norm1.0));
    let sums = sum(dqkv.clone());
    let qv_bias = p.qv_bias.map(|_| [0, 2].map(|part| unwrap(sums.clone().narrow(0, part * width, width))));
    let dnorm = round(dqkv.matmul(round(wrap(p.qkv))));
    let (dx, scale1, shift1) = norm(x, &p.norm1[0], saved.norm1.1, dnorm);
    Gradients {
        x: cube(grad + dx),
        bias: dbias,
        parameters: BlockTensors {
            norm1: [unwrap(scale1), unwrap(shift1)],
            qkv,
            qv_bias,
            proj,
            norm2: [unwrap(scale2), unwrap(shift2)],
            fc1,
            fc2,
            gammas: dgamma1.zip(dgamma2).map(|(a, b)| [a, b]),
        },
    }
}

/// Gradients of one block.
struct Gradients<B: BurnBackend> {
    x: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    parameters: BlockTensors<FloatTensor<B>>,
}

pub(crate) fn blocks<B: BlockOps>(
    inputs: &BlocksInputs<FloatTensor<B>>,
    choice: Option<TokenChoice<B>>,
    spec: &BlockSpec,
) -> FloatTensor<B> {
    let y = (0..inputs.parameters.len())
        .fold(inputs.x.clone(), |x, number| forward::<B>(&inputs.block(number, x), spec).y());
    match choice {
        Some(choice) => B::fused_gather_tokens(y, choice),
        None => y,
    }
}

pub(crate) fn blocks_backward<B: BlockOps>(
    inputs: &BlocksInputs<FloatTensor<B>>,
    choice: Option<TokenChoice<B>>,
    spec: &BlockSpec,
    grad: FloatTensor<B>,
    bias_grad: bool,
) -> BlocksGradients<FloatTensor<B>> {
    let mut xs = vec![inputs.x.clone()];
    for number in 1..inputs.parameters.len() {
        let x = xs[number - 1].clone();
        xs.push(forward::<B>(&inputs.block(number - 1, x), spec).y());
    }
    let mut x = match choice {
        Some(choice) => {
            let tokens = wrap::<B, 3>(inputs.x.clone()).dims()[1];
            B::fused_gather_tokens_backward(grad, choice, tokens)
        }
        None => grad,
    };
    let mut biases: Vec<Option<FloatTensor<B>>> = vec![None; inputs.biases.len()];
    let mut parameters = Vec::new();
    for (number, of_block) in xs.into_iter().enumerate().rev() {
        let gradients = backward::<B>(&inputs.block(number, of_block), spec, x, bias_grad);
        x = gradients.x;
        parameters.push(gradients.parameters);
        if let Some(bias) = gradients.bias {
            let sum = &mut biases[inputs.bias_of(number)];
            *sum = Some(match sum.take() {
                Some(sum) => B::float_add(sum, bias),
                None => bias,
            });
        }
    }
    parameters.reverse();
    BlocksGradients { x, biases: biases.into_iter().flatten().collect(), parameters }
}
