//! What every operation is tested for: the fast f32 path, the composed f64 path, Burn's own
//! gradients of the reference and finite differences must agree; every choice of tracked inputs
//! must give the same gradients; runs must be equal to the bit on any number of threads.

use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, Tensor, TensorData};

use crate::precision::Precision;
use crate::probe::Probe;

/// The backend of gradient tests.
pub(crate) type Checked = Autodiff<Flex>;

type X = Tensor<Checked, 1>;
type Gradients = Vec<Option<Vec<f64>>>;

/// `n` numbers within ±`spread`, the same for the same `seed`.
pub(crate) fn random(n: usize, seed: u64, spread: f64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x2545_F491_4F6C_DD1D;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let unit = (state >> 11) as f64 / (1u64 << 53) as f64;
            let value = ((2.0 * unit - 1.0) * spread) as f32;
            // f32 values, so that both precisions see the same input, of 21 significant bits: Burn's cast
            // to bf16 goes by `half`'s conversion of f64 (2.7), which looks at no more and so mistakes
            // values just beyond a tie for the tie.
            f64::from(f32::from_bits(value.to_bits() & !7))
        })
        .collect()
}

/// Values and gradients of `Σ weights·f(inputs)`; only inputs in the bit set `tracked` get gradients.
fn run(inputs: &[Vec<f64>], dtype: DType, tracked: usize, f: impl Fn(&[X]) -> X) -> (Vec<f64>, Gradients) {
    let device = Default::default();
    let tensor = |x: &[f64]| X::from_data(TensorData::new(x.to_vec(), [x.len()]), (&device, dtype));
    let inputs: Vec<X> = inputs
        .iter()
        .enumerate()
        .map(|(i, x)| match tracked >> i & 1 {
            1 => tensor(x).require_grad(),
            _ => tensor(x),
        })
        .collect();
    let y = f(&inputs);
    let values = floats(y.clone().into_data());
    assert_eq!(y.dtype(), dtype);
    if tracked == 0 {
        return (values, vec![None; inputs.len()]);
    }
    let weights = tensor(&random(values.len(), 99, 1.0));
    let grads = (y * weights).sum().backward();
    let of = |x: &X| x.grad(&grads).map(|g| floats(g.into_data()));
    (values, inputs.iter().map(of).collect())
}

fn floats(data: TensorData) -> Vec<f64> {
    data.convert::<f64>().into_vec().unwrap()
}

/// Largest distance, relative to the largest wanted magnitude (at least `floor`).
pub(crate) fn distance(got: &[f64], want: &[f64], floor: f64) -> f64 {
    assert_eq!(got.len(), want.len());
    let size = want.iter().fold(floor, |m, x| m.max(x.abs()));
    let worst = got
        .iter()
        .zip(want)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m });
    worst / size
}

/// Compares `fast` with `reference` as the module says; `tolerance` is for f32.
pub(crate) fn check(
    name: &str,
    inputs: &[Vec<f64>],
    fast: impl Fn(&[X]) -> X + Sync,
    reference: impl Fn(&[X]) -> X,
    tolerance: f64,
) {
    let all = (1 << inputs.len()) - 1;
    let (want, want_grads) = run(inputs, DType::F64, all, &reference);
    let (got, grads) = run(inputs, DType::F32, all, &fast);
    let (wide, wide_grads) = run(inputs, DType::F64, all, &fast);
    let check = |what: &str, got: &[f64], want: &[f64], tolerance: f64| {
        let d = distance(got, want, 1e-3);
        println!("{name} {:?} {what}: {d:.1e}", lengths(inputs));
        assert!(d <= tolerance, "{name} {:?} {what}: {d:e} > {tolerance:e}", lengths(inputs));
    };
    check("f32", &got, &want, tolerance);
    check("f64", &wide, &want, 1e-10);
    for (i, want) in want_grads.iter().enumerate() {
        let want = want.as_ref().unwrap();
        check(&format!("f32 gradient {i}"), grads[i].as_ref().unwrap(), want, tolerance);
        check(&format!("f64 gradient {i}"), wide_grads[i].as_ref().unwrap(), want, 1e-10);
    }
    differences(name, inputs, &wide_grads, &reference);
    for tracked in 0..all {
        let (_, some) = run(inputs, DType::F32, tracked, &fast);
        for (i, grad) in some.iter().enumerate() {
            match tracked >> i & 1 {
                1 => assert_eq!(grad, &grads[i], "{name}: input {i}, tracked {tracked:b}"),
                _ => assert!(grad.is_none()),
            }
        }
    }
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let again = pool.install(|| run(inputs, DType::F32, all, &fast));
        assert!(again == (got.clone(), grads.clone()), "{name}: differs on {threads} threads");
    }
}

/// Compares `f` in bf16 on f32 tensors with itself on f64 tensors, where the composed version rounds
/// every operand and the sums are f64; `tolerance` is for f32 sums. On a CPU without bf16 matmuls
/// operands stay as they are, so there the reference is `f` in f32 on f64 tensors.
pub(crate) fn check_rounded(
    name: &str,
    inputs: &[Vec<f64>],
    f: impl Fn(&[X], Precision) -> X + Sync,
    tolerance: f64,
) {
    let all = (1 << inputs.len()) - 1;
    let run = |dtype, precision| run(inputs, dtype, all, |x| f(x, precision));
    let rounds = Probe::new(Precision::Bf16).is_some();
    let (want, want_grads) = run(DType::F64, if rounds { Precision::Bf16 } else { Precision::F32 });
    let (got, grads) = run(DType::F32, Precision::Bf16);
    let (plain, _) = run(DType::F64, Precision::F32);
    let rounding = distance(&got, &plain, 1e-3);
    println!("{name} {:?} bf16: {rounding:.1e} from f64", lengths(inputs));
    assert!(rounding < 2e-2, "{name} {:?}: {rounding:e} from f64", lengths(inputs));
    let pairs = std::iter::once((got.clone(), want));
    let gradients = grads.iter().cloned().zip(want_grads).map(|(a, b)| (a.unwrap(), b.unwrap()));
    for (i, (got, want)) in pairs.chain(gradients).enumerate() {
        let d = distance(&got, &want, 1e-3);
        println!("{name} {:?} bf16 result {i}: {d:.1e}", lengths(inputs));
        assert!(d <= tolerance, "{name} {:?} bf16 result {i}: {d:e} > {tolerance:e}", lengths(inputs));
    }
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let again = pool.install(|| run(DType::F32, Precision::Bf16));
        assert!(again == (got.clone(), grads.clone()), "{name}: differs on {threads} threads");
    }
}

/// Central differences of the f64 reference in some coordinates of every input.
fn differences(name: &str, inputs: &[Vec<f64>], grads: &Gradients, f: impl Fn(&[X]) -> X) {
    let work: usize = lengths(inputs).iter().sum();
    let tries = if work > 20_000 { 2 } else { 8 };
    for (i, x) in inputs.iter().enumerate() {
        let grad = grads[i].as_ref().unwrap();
        for j in (0..x.len()).step_by((x.len() / tries).max(1)) {
            let h = 1e-5;
            let value = |shift: f64| {
                let mut moved = inputs.to_vec();
                moved[i][j] += shift;
                let (y, _) = run(&moved, DType::F64, 0, &f);
                let weights = random(y.len(), 99, 1.0);
                y.iter().zip(weights).map(|(y, w)| y * w).sum::<f64>()
            };
            let slope = (value(h) - value(-h)) / (2.0 * h);
            let error = (slope - grad[j]).abs();
            assert!(
                error <= 1e-5 * slope.abs().max(1.0),
                "{name}: input {i}[{j}]: difference {slope}, gradient {}",
                grad[j]
            );
        }
    }
}

fn lengths(inputs: &[Vec<f64>]) -> Vec<usize> {
    inputs.iter().map(Vec::len).collect()
}
