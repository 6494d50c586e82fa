//! The work that is left out changes nothing: masked rows only, against all rows; branches of kept samples only,
//! against all multiplied by 0 or the factor.

use std::collections::BTreeMap;

use beit2::params;
use beit2::pretrain::{MimConfig, MimModel, PatchMask, masked_labels};
use beit2::tokenizer::{TokenizerConfig, VqKd};
use beit2::train::{AdamW, AdamWConfig, GroupRule, gradients};
use beit2::vit::{DropPath, Pooling, RelPosKind, VisionTransformer, VitConfig};
use beit2_kernels::Precision;
use burn::backend::Flex;
use burn::module::AutodiffModule;
use burn::tensor::{Distribution, Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::scene::{Auto, with_new_leaves};

#[test]
fn masked_rows_equal_the_full_computation() {
    for (intermediate_layer, shared_lm_head) in [(2, true), (3, false)] {
        let vit = VitConfig {
            image_size: 24,
            patch_size: 4,
            width: 24,
            depth: 3,
            heads: 3,
            ..VitConfig::default()
        };
        let config = MimConfig {
            vit,
            vocab_size: 13,
            intermediate_layer,
            head_layers: 2,
            shared_lm_head,
            patch_aggregation: true,
        };
        let device = Default::default();
        let model = MimModel::<Auto>::new(&config, 9, &device).unwrap();
        let x = Tensor::<Auto, 4>::random([2, 3, 24, 24], Distribution::Normal(0.0, 1.0), &device);
        let chosen = [0u32, 5, 17, 35, 1, 2, 30, 31];
        let mask = PatchMask::new(&chosen, 2, 36, &device);
        let short = model.forward(x.clone(), &mask, &DropPath::none());
        let full = model.logits_all(&model.patch_tokens(x, Some(&mask)));
        let rows: Vec<i32> =
            chosen.iter().enumerate().map(|(at, i)| (at as i32 / 4) * 36 + *i as i32).collect();
        let rows = Tensor::<Auto, 1, Int>::from_data(TensorData::new(rows, [8]), &device);
        for (short, full) in [short.last, short.patch_aggregation.unwrap()].into_iter().zip(full) {
            let expected = full.reshape([72, 13]).select(0, rows.clone());
            let worst = (short - expected).abs().max().into_scalar();
            assert!(worst < 1e-5, "rows differ by {worst}");
        }
        let ids = Tensor::<Auto, 1, Int>::arange(0..72, &device).reshape([2, 36]);
        let labels: Vec<i64> = masked_labels(ids, &mask).into_data().convert::<i64>().into_vec().unwrap();
        assert_eq!(labels, [0, 5, 17, 35, 37, 38, 66, 67]);
    }
}

/// Of a tokenizer, training reads the token ids of masked patches alone. That a cache holds the ids of all patches must not
/// change a run, so they are equal to the bit, wherever blocks are fused (many rows) or not (few).
#[test]
fn ids_of_masked_patches_are_those_of_all() {
    let config = TokenizerConfig {
        width: 64,
        depth: 3,
        heads: 2,
        decoder_width: 32,
        decoder_depth: 1,
        decoder_heads: 2,
        codebook_size: 512,
        kmeans_init: false,
        ..TokenizerConfig::default()
    };
    let device = Default::default();
    let patches = config.grid().pow(2);
    for (precision, batch) in [Precision::F32, Precision::Bf16].into_iter().flat_map(|p| [(p, 1), (p, 5)]) {
        let mut tokenizer = VqKd::<Flex>::new(&config, 3, &device).unwrap();
        tokenizer.set_precision(precision);
        let x = Tensor::<Flex, 4>::random([batch, 3, 224, 224], Distribution::Normal(0.0, 1.0), &device);
        let chosen: Vec<u32> = (0..batch as u32).flat_map(|at| (0..75).map(move |i| 2 * i + at)).collect();
        let mask = PatchMask::new(&chosen, batch, patches, &device);
        for frozen in [false, true] {
            if frozen {
                tokenizer = tokenizer.freeze_encoder();
            }
            let all = masked_labels(tokenizer.ids(x.clone()), &mask).into_data();
            assert_eq!(tokenizer.ids_at(x.clone(), mask.masked_tokens()).into_data(), all);
            let tokens = tokenizer.encoder.tokens(x.clone(), &DropPath::none());
            let subset = tokenizer.encoder.token_subset(x.clone(), mask.masked_tokens());
            assert_eq!(
                subset.into_data(),
                mask.masked_tokens().gather(tokens).into_data(),
                "{precision} {batch} {frozen}"
            );
        }
    }
}

/// Sums over fewer rows are taken in another order, and a gradient's size varies between tensors.
const TOLERANCE: f64 = 1e-5;

fn floats(data: &TensorData) -> Vec<f64> {
    data.clone().convert::<f64>().into_vec().unwrap()
}

fn distance(a: &TensorData, b: &TensorData) -> f64 {
    let (a, b) = (floats(a), floats(b));
    let size = b.iter().fold(1e-3, |most: f64, x| most.max(x.abs()));
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / size
}

/// Draws for 5 blocks and `batch` samples: a third dropped; or `none` or `all` kept in the third block, whose
/// branches come after those of the second.
fn draws(rates: &[f64], batch: usize, third: Option<bool>, seed: u64) -> DropPath<Auto> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut count = 0;
    let uniform = || {
        count += 1;
        match third {
            Some(kept) if (2 * batch..4 * batch).contains(&(count - 1)) => f64::from(u8::from(kept)) * 0.99,
            _ => rng.random(),
        }
    };
    DropPath::from_uniform(rates, batch, uniform, &Default::default())
}

/// Compares values and all gradients of `f` with the draws `drop` left out and multiplied.
fn compare<M: AutodiffModule<Auto>>(
    what: &str,
    model: &M,
    drop: &DropPath<Auto>,
    f: impl Fn(&M, &DropPath<Auto>) -> Tensor<Auto, 1>,
) -> Vec<String> {
    let weights = |n: usize| {
        let values: Vec<f32> = (0..n).map(|at| (at as f32 * 0.7).sin()).collect();
        Tensor::<Auto, 1>::from_data(TensorData::new(values, [n]), &Default::default())
    };
    let run = |drop: &DropPath<Auto>| -> (TensorData, BTreeMap<String, TensorData>) {
        let model = with_new_leaves(model);
        let y = f(&model, drop);
        let grads = (y.clone() * weights(y.dims()[0])).sum().backward();
        (y.into_data(), gradients(&model, &grads))
    };
    let (values, grads) = run(drop);
    let (again, same_grads) = run(drop);
    assert!(values == again && grads == same_grads, "{what}: two equal passes differ");
    let (expected, all_grads) = run(&drop.clone().multiplied());
    let worst = distance(&values, &expected);
    assert!(worst < TOLERANCE, "{what}: values differ by {worst:e}");
    let mut missing = Vec::new();
    for (name, expected) in &all_grads {
        match grads.get(name) {
            Some(grad) => {
                let worst = distance(grad, expected);
                assert!(worst < TOLERANCE, "{what}: the gradient of {name} differs by {worst:e}");
            }
            None => {
                assert!(floats(expected).iter().all(|g| *g == 0.0), "{what}: {name} lost its gradient");
                missing.push(name.clone());
            }
        }
    }
    assert!(grads.keys().all(|name| all_grads.contains_key(name)));
    missing
}

fn drop_vit(rel_pos_bias: RelPosKind, layer_scale_init: f64) -> VitConfig {
    VitConfig {
        image_size: 24,
        patch_size: 4,
        width: 24,
        depth: 4,
        heads: 3,
        rel_pos_bias,
        layer_scale_init,
        drop_path: 0.4,
        ..VitConfig::default()
    }
}

/// Pretraining ends in rows of masked patches, in the last block and in the head's last.
#[test]
fn dropped_branches_of_pretraining_need_no_computation() {
    let device = Default::default();
    let config = MimConfig {
        vit: drop_vit(RelPosKind::Shared, 0.1),
        vocab_size: 13,
        intermediate_layer: 2,
        head_layers: 2,
        ..MimConfig::default()
    };
    let model = MimModel::<Auto>::new(&config, 9, &device).unwrap();
    for (batch, third) in
        [(5, None), (5, Some(false)), (5, Some(true)), (1, None), (1, Some(false)), (2, None)]
    {
        let x = Tensor::<Auto, 4>::random([batch, 3, 24, 24], Distribution::Normal(0.0, 1.0), &device);
        let chosen: Vec<u32> = (0..batch as u32).flat_map(|at| [at, at + 7, at + 20]).collect();
        let mask = PatchMask::new(&chosen, batch, 36, &device);
        for seed in 0..4 {
            let what = format!("batch {batch}, third block {third:?}, seed {seed}");
            let drop = draws(&config.drop_path_rates(), batch, third, seed);
            let missing = compare(&what, &model, &drop, |model, drop| {
                let logits = model.forward(x.clone(), &mask, drop);
                Tensor::cat(vec![logits.last, logits.patch_aggregation.unwrap()], 0).reshape([-1])
            });
            if third == Some(false) {
                assert!(missing.contains(&"blocks.2.attn.qkv.weight".to_owned()), "{what}: {missing:?}");
                assert!(missing.contains(&"blocks.2.mlp.fc2.bias".to_owned()), "{what}: {missing:?}");
            } else if batch == 5 && third.is_none() && seed == 0 {
                assert_eq!(missing, Vec::<String>::new(), "{what}");
            }
        }
    }
}

/// Fine-tuning has a table of positions in every block and may have no layer scale.
#[test]
fn dropped_branches_of_fine_tuning_need_no_computation() {
    let device = Default::default();
    for layer_scale_init in [0.1, 0.0] {
        let config = drop_vit(RelPosKind::PerBlock, layer_scale_init);
        let model = VisionTransformer::<Auto>::new(&config, Pooling::Mean, 6, &device);
        let rule = beit2::init::InitRule::Finetune { head_scale: 1.0, gamma: layer_scale_init };
        let model = beit2::init::initialise(model, rule, 1);
        let rates = beit2::vit::drop_path_rates(config.drop_path, config.depth);
        for (batch, third) in [(6, None), (6, Some(false)), (6, Some(true)), (1, None)] {
            let x = Tensor::<Auto, 4>::random([batch, 3, 24, 24], Distribution::Normal(0.0, 1.0), &device);
            let drop = draws(&rates, batch, third, 3);
            compare(
                &format!("γ {layer_scale_init}, batch {batch}, {third:?}"),
                &model,
                &drop,
                |model, drop| model.forward(x.clone(), drop).reshape([-1]),
            );
        }
    }
}

/// A parameter whose branch nobody kept moves by weight decay and by what its moments remember.
#[test]
fn parameters_of_a_branch_dropped_for_all_move_as_with_a_gradient_of_zero() {
    let device = Default::default();
    let config = drop_vit(RelPosKind::PerBlock, 0.1);
    let rates = beit2::vit::drop_path_rates(config.drop_path, config.depth);
    let x = Tensor::<Auto, 4>::random([3, 3, 24, 24], Distribution::Normal(0.0, 1.0), &device);
    let start = VisionTransformer::<Auto>::new(&config, Pooling::Mean, 6, &device);
    let rule = beit2::init::InitRule::Finetune { head_scale: 1.0, gamma: 0.1 };
    let start = beit2::init::initialise(start, rule, 1);
    let train = |form: fn(DropPath<Auto>) -> DropPath<Auto>| {
        let mut optimizer = AdamW::<Auto>::new(AdamWConfig::default(), GroupRule::flat(0.05));
        let mut step = |model: VisionTransformer<Auto>, drop| {
            let grads = model.forward(x.clone(), &drop).powi_scalar(2).sum().backward();
            optimizer.step(model, grads, 1e-3, Some(3.0)).0
        };
        let model = step(with_new_leaves(&start), draws(&rates, 3, Some(true), 0).multiplied());
        let before = params::export(&model);
        let model = step(model, form(draws(&rates, 3, Some(false), 1)));
        (before, params::export(&model), optimizer.export())
    };
    let (before, params, moments) = train(|drop| drop);
    let (same, expected, expected_moments) = train(DropPath::multiplied);
    assert!(before == same, "two equal steps differ");
    let third = |tensors: &BTreeMap<String, TensorData>| -> BTreeMap<String, TensorData> {
        let named = |name: &str| name.contains("blocks.2.") && !name.contains("position_index");
        tensors
            .iter()
            .filter(|(name, _)| named(name))
            .map(|(name, data)| (name.clone(), data.clone()))
            .collect()
    };
    assert!(third(&params) == third(&expected) && third(&moments) == third(&expected_moments));
    assert!(third(&params).len() >= 12 && third(&moments).len() == 2 * third(&params).len());
    let moved = |name: &str| before[name] != params[name];
    assert!(
        moved("blocks.2.attn.proj.weight")
            && moved("blocks.2.mlp.fc1.bias")
            && moved("blocks.2.norm1.weight")
    );
}
