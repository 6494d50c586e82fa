//! The block on a CUDA device against the reference in f64 that rounds where it does.

use burn::backend::{Autodiff, Cuda};
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::block::tests::{Case, Fused, results};
use crate::block::{BlockOps, BlockSpec};
use crate::testing::{Checked, distance};
use crate::{
    Precision, TokenChoice, block, block_packed, block_tokens, block_tokens_packed, gather_tokens, pack_block,
};

type Inner = Cuda<f32, i32>;
type Recording = Autodiff<Inner>;

/// Heads of 64; everything there, nothing there, one or the other, and the tokens of a real model.
const CASES: [Case; 4] = [
    Case {
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
        assert!(Inner::fuses_block(&Default::default(), &sizes, &spec(&case)), "{case:?} is not fused");
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
            assert!(near <= 1e-2, "{case:?} result {i}: {near:e}");
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
        let (x, bias, parameters, _) = case.arguments(&inputs);
        let packed = pack_block(parameters, &spec(&case)).unwrap();
        let got = block_packed(x, bias, packed, case.hidden, spec(&case));
        got.reshape([want.shape.num_elements()]).into_data().assert_eq(&want, true);
    }
}

/// `count` tokens of each sample, none twice, in no order.
fn choice<B: BlockOps>(case: &Case, count: usize, device: &B::Device) -> TokenChoice<B> {
    let token = |at: usize| ((at / count * 3 + at % count * 2) % case.tokens) as i32;
    let local: Vec<i32> = (0..case.batch * count).map(token).collect();
    let local = Tensor::<B, 1, Int>::from_data(TensorData::new(local, [case.batch * count]), device);
    TokenChoice { local: local.into_primitive(), per_sample: count }
}

#[test]
fn chosen_tokens_on_cuda() {
    if !is_there() {
        return;
    }
    let device = Default::default();
    // Odd numbers of tokens, so that `choice` takes none twice.
    for (case, count) in CASES.into_iter().zip([2, 3, 20, 76]) {
        let inputs = case.inputs();
        let values = case.batch * count * case.width;
        let chosen = |spec: BlockSpec| {
            results::<Recording>(&inputs, DType::F32, |x| {
                let (x, bias, parameters, drop) = case.arguments(x);
                block_tokens(x, choice(&case, count, &device), bias, parameters, drop, spec).reshape([values])
            })
        };
        let got = chosen(spec(&case));
        let whole = results::<Recording>(&inputs, DType::F32, |x| {
            let (x, bias, parameters, drop) = case.arguments(x);
            let y = block(x, bias, parameters, drop, spec(&case));
            gather_tokens(y, choice(&case, count, &device)).reshape([values])
        });
        for (i, (got, whole)) in got.iter().zip(&whole).enumerate() {
            let near = distance(got, whole, 1e-3);
            println!("{case:?}, {count} tokens, result {i}: {near:.1e} from the whole block");
            // Two gradients of a norm's output are rounded and added where the whole block has one.
            assert!(near <= 1e-2, "{case:?}, {count} tokens, result {i}: {near:e}");
        }
        assert!(chosen(spec(&case)) == got, "{case:?}: another run gives other bits");
        let again = chosen(BlockSpec { recompute: true, ..spec(&case) });
        assert!(again == got, "{case:?}: recomputed values give other gradients");
        if !case.drop {
            let inputs: Vec<Tensor<Inner, 1>> = inputs
                .iter()
                .map(|x| Tensor::from_data(TensorData::new(x.clone(), [x.len()]), (&device, DType::F32)))
                .collect();
            let (x, bias, parameters, _) = case.arguments(&inputs);
            let packed = pack_block(parameters, &spec(&case)).unwrap();
            let choice = choice(&case, count, &device);
            let y = block_tokens_packed(x, choice, bias, packed, case.hidden, spec(&case)).into_data();
            let y: Vec<f64> = y.convert::<f64>().into_vec().unwrap();
            assert!(y == got[0], "{case:?}: packed parameters give other values");
        }
    }
}
