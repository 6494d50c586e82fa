use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::rounded::FUSED;
use super::{BlockActivation, BlockOps, BlockParameters, BlockSpec, BlocksDrop, blocks};
use crate::TokenChoice;
use crate::precision::Precision;
use crate::testing::{Checked, check, distance, random};
use crate::{AutodiffBackend, reference};

type X<B> = Tensor<B, 1>;

/// A run of blocks and what they have of what may be left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) blocks: usize,
    /// Tokens of a sample that the last block is computed for; 0: all.
    pub(crate) chosen: usize,
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) width: usize,
    pub(crate) hidden: usize,
    pub(crate) bias: bool,
    pub(crate) qv_bias: bool,
    pub(crate) gammas: bool,
    pub(crate) drop: bool,
}

/// Everything there, nothing there, sizes that are multiples of nothing; one block, several, and chosen tokens.
pub(crate) const CASES: [Case; 4] = [
    Case {
        blocks: 1,
        chosen: 0,
        batch: 2,
        tokens: 5,
        heads: 2,
        width: 16,
        hidden: 24,
        bias: true,
        qv_bias: true,
        gammas: true,
        drop: true,
    },
    Case {
        blocks: 1,
        chosen: 0,
        batch: 1,
        tokens: 7,
        heads: 1,
        width: 8,
        hidden: 8,
        bias: false,
        qv_bias: false,
        gammas: false,
        drop: false,
    },
    Case {
        blocks: 2,
        chosen: 0,
        batch: 3,
        tokens: 10,
        heads: 3,
        width: 24,
        hidden: 40,
        bias: true,
        qv_bias: false,
        gammas: true,
        drop: false,
    },
    Case {
        blocks: 3,
        chosen: 2,
        batch: 2,
        tokens: 3,
        heads: 2,
        width: 10,
        hidden: 14,
        bias: false,
        qv_bias: true,
        gammas: false,
        drop: true,
    },
];

impl Case {
    pub(crate) fn spec(&self, precision: Precision) -> BlockSpec {
        let scale = 1.0 / ((self.width / self.heads) as f64).sqrt();
        BlockSpec {
            heads: self.heads,
            scale,
            eps: 1e-5,
            activation: BlockActivation::Gelu,
            precision,
            recompute: false,
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn sizes(&self) -> super::BlockSizes {
        let Self { batch, tokens, width, hidden, heads, .. } = *self;
        super::BlockSizes { batch, tokens, width, hidden, heads }
    }

    /// x, then the parameters of each block in the order of [`super::BlockTensors::list`], then the bias; drop path is no
    /// input.
    ///
    /// Weights shrink with the width of their layer, as in a model. Otherwise logits grow with it, softmax picks one key,
    /// and one value that lands on the other side of a tie of bf16 moves a result by a percent: sums in f32 and in f64
    /// then differ by more than a wrong kernel would.
    pub(crate) fn inputs(&self) -> Vec<Vec<f64>> {
        let mut inputs = vec![random(self.batch * self.tokens * self.width, 1, 2.0)];
        (0..self.blocks).for_each(|block| inputs.extend(self.parameters(100 * block as u64)));
        if self.bias {
            inputs.push(random(self.heads * self.tokens * self.tokens, 17, 1.0));
        }
        inputs
    }

    fn parameters(&self, seed: u64) -> Vec<Vec<f64>> {
        let (d, f) = (self.width, self.hidden);
        let random = |n, number, range| random(n, seed + number, range);
        let weights = |inputs: usize, outputs: usize, number| {
            random(outputs * inputs, number, 0.4 * (16.0 / inputs as f64).sqrt().min(1.0))
        };
        let around_one = |n, number| random(n, number, 0.5).into_iter().map(|x| x + 1.0).collect();
        let mut inputs = vec![around_one(d, 2), random(d, 3, 0.3), weights(d, 3 * d, 4)];
        if self.qv_bias {
            inputs.extend([random(d, 5, 0.5), random(d, 6, 0.5)]);
        }
        inputs.extend([weights(d, d, 7), random(d, 8, 0.3)]);
        inputs.extend([around_one(d, 9), random(d, 10, 0.3)]);
        inputs.extend([weights(d, f, 11), random(f, 12, 0.3), weights(f, d, 13), random(d, 14, 0.3)]);
        if self.gammas {
            inputs.extend([random(d, 15, 0.8), random(d, 16, 0.8)]);
        }
        inputs
    }

    /// Factors of three branches, of which a block takes the last two, the second first; the second block drops nothing.
    fn drop<B: BurnBackend>(&self, like: &X<B>) -> Option<BlocksDrop<Tensor<B, 2>>> {
        let factors: Vec<f32> = (0..3 * self.batch).map(|i| [1.25, 0.0, 1.0, 1.25][i % 4]).collect();
        let data = TensorData::new(factors, [3, self.batch]);
        let factors = Tensor::from_data(data, (&like.device(), DType::F32));
        let rows = (0..self.blocks).map(|block| (block != 1).then_some([2, 1])).collect();
        self.drop.then_some(BlocksDrop { factors, rows })
    }

    /// Some tokens of each sample, none twice, in no order: for odd numbers of tokens.
    pub(crate) fn choice<B: BurnBackend>(&self, device: &B::Device) -> Option<TokenChoice<B>> {
        let count = self.chosen;
        let token = |at: usize| ((at / count * 3 + at % count * 2) % self.tokens) as i32;
        (count > 0).then(|| {
            let local: Vec<i32> = (0..self.batch * count).map(token).collect();
            let local = TensorData::new(local, [self.batch * count]);
            let local = Tensor::<B, 1, Int>::from_data(local, device);
            TokenChoice { local: local.into_primitive(), per_sample: count }
        })
    }

    /// The arguments of [`blocks`] but the choice.
    #[allow(clippy::type_complexity)]
    pub(crate) fn arguments<B: BurnBackend>(
        &self,
        x: &[X<B>],
    ) -> (Tensor<B, 3>, Vec<Tensor<B, 4>>, Vec<BlockParameters<B>>, Option<BlocksDrop<Tensor<B, 2>>>) {
        let (d, f) = (self.width, self.hidden);
        let mut inputs = x.iter().cloned();
        let mut next = || inputs.next().unwrap();
        let tokens = next().reshape([self.batch, self.tokens, d]);
        let mut block = || {
            let norm1 = [next(), next()];
            let qkv = next().reshape([3 * d, d]);
            let qv_bias = self.qv_bias.then(|| [next(), next()]);
            let proj = (next().reshape([d, d]), next());
            let norm2 = [next(), next()];
            let fc1 = (next().reshape([f, d]), next());
            let fc2 = (next().reshape([d, f]), next());
            let gammas = self.gammas.then(|| [next(), next()]);
            BlockParameters { norm1, qkv, qv_bias, proj, norm2, fc1, fc2, gammas }
        };
        let parameters = (0..self.blocks).map(|_| block()).collect();
        let bias = self.bias.then(|| next().reshape([1, self.heads, self.tokens, self.tokens]));
        (tokens, bias.into_iter().collect(), parameters, self.drop(&x[0]))
    }

    /// The operation under test.
    pub(crate) fn run<B: BlockOps>(&self, x: &[X<B>], spec: BlockSpec) -> X<B> {
        let (tokens, biases, parameters, drop) = self.arguments(x);
        let choice = self.choice(&x[0].device());
        blocks(tokens, biases, parameters, choice, drop, spec).flatten(0, 2)
    }

    /// The blocks in Burn's primitives.
    pub(crate) fn reference<B: BurnBackend>(&self, x: &[X<B>]) -> X<B> {
        let device = x[0].device();
        let (mut x, biases, parameters, drop) = self.arguments(x);
        for (number, parameters) in parameters.into_iter().enumerate() {
            let drop = drop.as_ref().and_then(|drop| Some((&drop.factors, drop.rows[number]?)));
            x = self.reference_block(x, biases.first().cloned(), parameters, drop);
        }
        let Some(choice) = self.choice::<B>(&device) else { return x.flatten(0, 2) };
        let local = Tensor::<B, 1, Int>::from_primitive(choice.local);
        let first = Tensor::<B, 1, Int>::arange(0..self.batch as i64, &device).reshape([self.batch, 1]);
        let rows = local.reshape([self.batch, self.chosen]) + first * self.tokens as i64;
        x.reshape([-1, self.width as i32]).select(0, rows.reshape([-1])).flatten(0, 1)
    }

    fn reference_block<B: BurnBackend>(
        &self,
        x: Tensor<B, 3>,
        bias: Option<Tensor<B, 4>>,
        p: BlockParameters<B>,
        drop: Option<(&Tensor<B, 2>, [usize; 2])>,
    ) -> Tensor<B, 3> {
        let d = self.width;
        let factors = |row: usize| {
            drop.map(|(factors, rows)| {
                factors.clone().narrow(0, rows[row], 1).reshape([self.batch, 1, 1]).cast(x.dtype())
            })
        };
        let add = |x: Tensor<B, 3>, mut branch: Tensor<B, 3>, row: usize| {
            if let Some(gammas) = &p.gammas {
                branch = branch * gammas[row].clone().unsqueeze();
            }
            match factors(row) {
                Some(factors) => x + branch * factors,
                None => x + branch,
            }
        };
        let [scale, shift] = p.norm1.clone();
        let y = reference::layer_norm(x.clone(), scale, shift, 1e-5);
        let qkv_bias = p.qv_bias.clone().map(|[q, v]| Tensor::cat(vec![q.clone(), q.zeros_like(), v], 0));
        let qkv = reference::linear(y, p.qkv.clone(), qkv_bias);
        let [q, k, v] = [0, 1, 2].map(|part| qkv.clone().narrow(2, part * d, d));
        let scale = self.spec(Precision::F32).scale;
        let y = reference::attention(q, k, v, bias, self.heads, scale);
        let x = add(x.clone(), reference::linear(y, p.proj.0.clone(), Some(p.proj.1.clone())), 0);
        let [scale, shift] = p.norm2.clone();
        let y = reference::layer_norm(x.clone(), scale, shift, 1e-5);
        let y = reference::gelu(reference::linear(y, p.fc1.0.clone(), Some(p.fc1.1.clone())));
        let y = reference::linear(y, p.fc2.0.clone(), Some(p.fc2.1.clone()));
        add(x, y, 1)
    }
}

/// Values of `Σ weights·blocks` and gradients of all inputs.
pub(crate) fn results<B: AutodiffBackend>(
    inputs: &[Vec<f64>],
    dtype: DType,
    f: impl Fn(&[X<B>]) -> X<B>,
) -> Vec<Vec<f64>> {
    let device = Default::default();
    let tensor = |x: &[f64]| X::<B>::from_data(TensorData::new(x.to_vec(), [x.len()]), (&device, dtype));
    let floats = |data: TensorData| data.convert::<f64>().into_vec::<f64>().unwrap();
    let inputs: Vec<_> = inputs.iter().map(|x| tensor(x).require_grad()).collect();
    let y = f(&inputs);
    let mut results = vec![floats(y.to_data())];
    let weights = tensor(&random(results[0].len(), 99, 1.0));
    let grads = (y * weights).sum().backward();
    results.extend(inputs.iter().map(|x| floats(x.grad(&grads).unwrap().into_data())));
    results
}

/// Whether the CPU's block is the fused one while this lives.
pub(crate) struct Fused;

impl Fused {
    pub(crate) fn new() -> Self {
        FUSED.set(true);
        Self
    }
}

impl Drop for Fused {
    fn drop(&mut self) {
        FUSED.set(false);
    }
}

#[test]
fn the_composed_block_is_the_block() {
    for case in CASES {
        let inputs = case.inputs();
        let dtype = |dtype| results::<Checked>(&inputs, dtype, |x| case.run(x, case.spec(Precision::F32)));
        let want = results::<Checked>(&inputs, DType::F64, |x| case.reference(x));
        for (got, tolerance) in [(dtype(DType::F64), 1e-10), (dtype(DType::F32), 2e-5)] {
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let d = distance(got, want, 1e-3);
                assert!(d <= tolerance, "{case:?} result {i}: {d:e}");
            }
        }
    }
}

#[test]
fn other_activations_are_the_same_composed_and_fused() {
    for case in CASES.map(|case| Case { chosen: 0, ..case }) {
        let mut others: Option<Vec<f64>> = None;
        for activation in [BlockActivation::Gelu, BlockActivation::QuickGelu, BlockActivation::GeluTanh] {
            let spec = BlockSpec { activation, ..case.spec(Precision::F32) };
            let run = || values::<Flex>(&case, DType::F64, |x| case.run(x, spec));
            let composed = run();
            let fused = Fused::new();
            let d = distance(&run(), &composed, 1e-3);
            drop(fused);
            assert!(d <= 1e-10, "{case:?} {activation:?}: {d:e}");
            let other = others.replace(composed.clone());
            assert!(other.is_none_or(|other| other != composed), "{activation:?} is as the one before");
        }
    }
}

/// The result of `f` for the inputs of a case.
pub(crate) fn values<B: BurnBackend>(case: &Case, dtype: DType, f: impl Fn(&[X<B>]) -> X<B>) -> Vec<f64> {
    let tensor = |x: &Vec<f64>| {
        let data = TensorData::new(x.clone(), [x.len()]);
        Tensor::from_data(data, (&Default::default(), dtype))
    };
    let inputs: Vec<_> = case.inputs().iter().map(tensor).collect();
    f(&inputs).into_data().convert::<f64>().into_vec().unwrap()
}

/// One node, with every choice of parents that need gradients, against differences.
#[test]
fn the_fused_block_has_the_gradients_of_the_block() {
    let _fused = Fused::new();
    // x, the weights of the first norm, of qkv and of proj, γ₁ and the bias stand for all: each choice is tried.
    let chosen = [0, 3, 6, 14, 16];
    let case = CASES[0];
    let all = case.inputs();
    let varied: Vec<_> = chosen.iter().map(|&i| all[i].clone()).collect();
    let whole = |x: &[X<Checked>]| -> Vec<X<Checked>> {
        let mut tensors: Vec<_> = all.iter().map(|values| like(values, &x[0])).collect();
        chosen.iter().zip(x).for_each(|(&i, x)| tensors[i] = x.clone());
        tensors
    };
    check(
        "block",
        &varied,
        |x| {
            FUSED.set(true); // Other threads run it too.
            case.run(&whole(x), case.spec(Precision::F32))
        },
        |x| case.reference(&whole(x)),
        2e-5,
    );
}

fn like(values: &[f64], x: &X<Checked>) -> X<Checked> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), (&x.device(), x.dtype()))
}

#[test]
fn all_gradients_of_the_fused_block() {
    let _fused = Fused::new();
    for case in CASES {
        let inputs = case.inputs();
        let want = results::<Checked>(&inputs, DType::F64, |x| case.reference(x));
        let got = results::<Checked>(&inputs, DType::F64, |x| case.run(x, case.spec(Precision::F32)));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let d = distance(got, want, 1e-3);
            assert!(d <= 1e-10, "{case:?} result {i}: {d:e}");
        }
        let got = results::<Checked>(&inputs, DType::F64, |x| case.run(x, case.spec(Precision::Bf16)));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let d = distance(got, want, 1e-3);
            println!("{case:?} result {i} in bf16: {d:.1e}");
            assert!(d <= 4e-2, "{case:?} result {i}: {d:e}");
        }
    }
}

#[test]
fn a_fused_block_without_gradients_is_the_same() {
    let _fused = Fused::new();
    let case = CASES[0];
    let inputs = case.inputs();
    let tensors: Vec<X<Checked>> = inputs
        .iter()
        .map(|x| Tensor::from_data(TensorData::new(x.clone(), [x.len()]), (&Default::default(), DType::F32)))
        .collect();
    let spec = case.spec(Precision::Bf16);
    let plain = case.run(&tensors, spec).into_data();
    let inner: Vec<_> = tensors.iter().map(|x| x.clone().inner()).collect();
    case.run(&inner, spec).into_data().assert_eq(&plain, true);
}

#[test]
#[should_panic(expected = "blocks: second derivatives are not implemented")]
fn second_derivatives_are_refused() {
    let _fused = Fused::new();
    let case = CASES[1];
    results::<Autodiff<Checked>>(&case.inputs(), DType::F64, |x| case.run(x, case.spec(Precision::F32)));
}

#[test]
#[should_panic(expected = "blocks: bias [1, 2, 5, 4] is not [1, 2, 5, 5]")]
fn names_the_shapes_that_do_not_fit() {
    let case = CASES[0];
    let tensors: Vec<_> =
        case.inputs().iter().map(|x| like(x, &Tensor::ones([1], &Default::default()))).collect();
    let (x, biases, parameters, drop) = case.arguments::<Checked>(&tensors);
    let biases = biases.into_iter().map(|bias| bias.narrow(3, 0, 4)).collect();
    blocks(x, biases, parameters, None, drop, case.spec(Precision::F32));
}

/// More blocks than a node of the graph has, with a bias for each.
#[test]
fn long_runs_and_biases_of_each_block() {
    let _fused = Fused::new();
    let case = Case { blocks: 13, bias: false, ..CASES[0] };
    let of_bias = case.heads * case.tokens * case.tokens;
    let mut inputs = case.inputs();
    let first_bias = inputs.len();
    inputs.extend((0..case.blocks).map(|block| random(of_bias, 900 + block as u64, 1.0)));
    let biases = |x: &[X<Checked>]| -> Vec<Tensor<Checked, 4>> {
        let shape = [1, case.heads, case.tokens, case.tokens];
        x[first_bias..].iter().map(|bias| bias.clone().reshape(shape)).collect()
    };
    let got = results::<Checked>(&inputs, DType::F64, |x| {
        let (tokens, _, parameters, drop) = case.arguments(x);
        blocks(tokens, biases(x), parameters, None, drop, case.spec(Precision::F32)).flatten(0, 2)
    });
    let want = results::<Checked>(&inputs, DType::F64, |x| {
        let (tokens, _, parameters, drop) = case.arguments(x);
        let mut x_of_block = tokens;
        for (number, (parameters, bias)) in parameters.into_iter().zip(biases(x)).enumerate() {
            let drop = drop.as_ref().and_then(|drop| Some((&drop.factors, drop.rows[number]?)));
            x_of_block = case.reference_block(x_of_block, Some(bias), parameters, drop);
        }
        x_of_block.flatten(0, 2)
    });
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let d = distance(got, want, 1e-3);
        assert!(d <= 1e-9, "result {i}: {d:e}");
    }
}
