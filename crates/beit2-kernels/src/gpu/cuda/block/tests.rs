//! The block on a CUDA device against the reference in f64 that rounds where it does.

use burn::backend::{Autodiff, Cuda, Flex};
use burn::tensor::{DType, Tensor, TensorData};

use crate::block::tests::{Case, Fused, results, values};
use crate::block::{BlockActivation, BlockOps, BlockSpec};
use crate::testing::{Checked, distance};
use crate::{Precision, blocks, blocks_packed, gather_tokens, pack_block};

type Inner = Cuda<f32, i32>;
type Recording = Autodiff<Inner>;

/// Heads of 64; everything there, nothing there, one or the other, and the tokens of a real model; one block and several.
const CASES: [Case; 4] = [
    Case {
        blocks: 1,
        chosen: 0,
        batch: 2,
        tokens: 5,
        heads: 1,
        width: 64,
        hidden: 72,
        bias: true,
        qv_bias: true,
        gammas: true,
        drop: true,
    },
    Case {
        blocks: 1,
        chosen: 0,
        batch: 1,
        tokens: 3,
        heads: 2,
        width: 128,
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
        tokens: 65,
        heads: 1,
        width: 64,
        hidden: 264,
        bias: true,
        qv_bias: false,
        gammas: true,
        drop: false,
    },
    Case {
        blocks: 3,
        chosen: 0,
        batch: 2,
        tokens: 197,
        heads: 5,
        width: 320,
        hidden: 640,
        bias: false,
        qv_bias: true,
        gammas: false,
        drop: true,
    },
];

/// Whether there is a device with native operations.
fn is_there() -> bool {
    let native = std::panic::catch_unwind(|| super::is_native(&Default::default()));
    if !matches!(native, Ok(true)) {
        println!("skipped: no CUDA device with native operations here");
    }
    matches!(native, Ok(true))
}

fn spec(case: &Case) -> BlockSpec {
    case.spec(Precision::Bf16)
}

#[test]
fn values_and_gradients_on_cuda() {
    if !is_there() {
        return;
    }
    for case in CASES {
        let inputs = case.inputs();
        let sizes = case.sizes();
        assert!(Inner::fuses_blocks(&Default::default(), &sizes, &spec(&case)), "{case:?} is not fused");
        let exact = results::<Checked>(&inputs, DType::F64, |x| case.reference(x));
        let fused = Fused::new();
        let on_cpu = |dtype| results::<Checked>(&inputs, dtype, |x| case.run(x, spec(&case)));
        // Sums in f32 take some values across a tie of bf16, on the CPU as on the device.
        let (rounded, in_f32) = (on_cpu(DType::F64), on_cpu(DType::F32));
        drop(fused);
        let got = results::<Recording>(&inputs, DType::F32, |x| case.run(x, spec(&case)));
        for (i, ((got, rounded), exact)) in got.iter().zip(&rounded).zip(&exact).enumerate() {
            let (near, far) = (distance(got, rounded, 1e-3), distance(got, exact, 1e-3));
            let (cpu, alone) = (distance(&in_f32[i], rounded, 1e-3), distance(rounded, exact, 1e-3));
            println!(
                "{case:?} result {i}: {near:.1e} from the reference (the CPU's f32 {cpu:.1e}), {far:.1e} from f64 ({alone:.1e})"
            );
            // In a run of several blocks such values move some results of the CPU by more than a percent too.
            assert!(near <= (2.0 * cpu).max(1e-2), "{case:?} result {i}: {near:e}, the CPU's f32 {cpu:e}");
            // How far rounding alone takes a result from f64 depends on the case: little averages it out where tokens and
            // hidden units are few.
            assert!(far <= alone + 1e-2, "{case:?} result {i}: {far:e} from f64, rounding alone {alone:e}");
        }
        let again = results::<Recording>(&inputs, DType::F32, |x| case.run(x, spec(&case)));
        assert!(again == got, "{case:?}: another run gives other bits");
        let recomputed = results::<Recording>(&inputs, DType::F32, |x| {
            case.run(x, BlockSpec { recompute: true, ..spec(&case) })
        });
        assert!(recomputed == got, "{case:?}: recomputed values give other gradients");
    }
}

#[test]
fn packed_blocks_on_cuda_are_the_same_to_the_bit() {
    if !is_there() {
        return;
    }
    for case in CASES.map(|case| Case { drop: false, ..case }) {
        let inputs: Vec<Tensor<Inner, 1>> = case
            .inputs()
            .iter()
            .map(|x| {
                let data = TensorData::new(x.clone(), [x.len()]);
                Tensor::from_data(data, (&Default::default(), DType::F32))
            })
            .collect();
        let want = case.run(&inputs, spec(&case)).into_data();
        let (x, biases, parameters, _) = case.arguments(&inputs);
        let packed = parameters.into_iter().map(|block| pack_block(block, &spec(&case)).unwrap()).collect();
        let got = blocks_packed(x, biases, packed, case.hidden, None, spec(&case));
        got.reshape([want.shape.num_elements()]).into_data().assert_eq(&want, true);
    }
}

/// Frozen blocks, as those of other models: no bias, no drop path.
#[test]
fn activations_of_packed_blocks_on_cuda() {
    if !is_there() {
        return;
    }
    for case in CASES.map(|case| Case { bias: false, drop: false, ..case }) {
        let mut others: Option<Vec<f64>> = None;
        for activation in [BlockActivation::Gelu, BlockActivation::QuickGelu, BlockActivation::GeluTanh] {
            let spec = BlockSpec { activation, ..spec(&case) };
            let fused = Fused::new();
            let want = values::<Flex>(&case, DType::F64, |x| case.run(x, spec));
            drop(fused);
            let got = values::<Inner>(&case, DType::F32, |x| {
                let (x, biases, parameters, _) = case.arguments(x);
                let packed = parameters.into_iter().map(|block| pack_block(block, &spec).unwrap()).collect();
                blocks_packed(x, biases, packed, case.hidden, None, spec).flatten(0, 2)
            });
            let exact = BlockSpec { precision: Precision::F32, ..spec };
            let exact = values::<Flex>(&case, DType::F64, |x| case.run(x, exact));
            let composed = values::<Flex>(&case, DType::F32, |x| case.run(x, spec));
            let (near, far) = (distance(&got, &want, 1e-3), distance(&got, &exact, 1e-3));
            let composed = distance(&composed, &exact, 1e-3);
            println!(
                "{case:?} {activation:?}: {near:.1e} from the reference, {far:.1e} from f64 (composed in bf16 {composed:.1e})"
            );
            assert!(near <= 1e-2, "{case:?} {activation:?}: {near:e}");
            let other = others.replace(got.clone());
            assert!(other.is_none_or(|other| other != got), "{case:?}: {activation:?} is as the one before");
        }
    }
}

#[test]
fn chosen_tokens_on_cuda() {
    if !is_there() {
        return;
    }
    let device = Default::default();
    // Odd numbers of tokens, so that none is chosen twice.
    for (case, chosen) in CASES.into_iter().zip([2, 3, 20, 76]) {
        let case = Case { chosen, ..case };
        let inputs = case.inputs();
        let some = |spec| results::<Recording>(&inputs, DType::F32, |x| case.run(x, spec));
        let got = some(spec(&case));
        let whole = results::<Recording>(&inputs, DType::F32, |x| {
            let (x, biases, parameters, drop) = case.arguments(x);
            let y = blocks(x, biases, parameters, None, drop, spec(&case));
            gather_tokens(y, case.choice(&device).unwrap()).flatten(0, 2)
        });
        for (i, (got, whole)) in got.iter().zip(&whole).enumerate() {
            let near = distance(got, whole, 1e-3);
            println!("{case:?}, result {i}: {near:.1e} from the whole block");
            // Two gradients of a norm's output are rounded and added where the whole block has one.
            assert!(near <= 1e-2, "{case:?}, result {i}: {near:e}");
        }
        assert!(some(spec(&case)) == got, "{case:?}: another run gives other bits");
        let again = some(BlockSpec { recompute: true, ..spec(&case) });
        assert!(again == got, "{case:?}: recomputed values give other gradients");
        if !case.drop {
            let inputs: Vec<Tensor<Inner, 1>> = inputs
                .iter()
                .map(|x| Tensor::from_data(TensorData::new(x.clone(), [x.len()]), (&device, DType::F32)))
                .collect();
            let (x, biases, parameters, _) = case.arguments(&inputs);
            let packed =
                parameters.into_iter().map(|block| pack_block(block, &spec(&case)).unwrap()).collect();
            let y = blocks_packed(x, biases, packed, case.hidden, case.choice(&device), spec(&case));
            let y: Vec<f64> = y.into_data().convert::<f64>().into_vec().unwrap();
            assert!(y == got[0], "{case:?}: packed parameters give other values");
        }
    }
}
